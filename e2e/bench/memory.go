package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

// Stalled downloads: the client reads the head and then nothing more.
const (
	stalledBytes = 64 * mib
	// stalledReceive is the client's receive buffer in bytes. A small one keeps
	// the kernel from taking in what the hops are to be measured with.
	stalledReceive = 64 << 10
)

var stalledSteps = []int{32, 100}

const (
	settlesWithin = 5 * time.Second
	settleEvery   = 100 * time.Millisecond
	settledAfter  = 5 // samples in a row within 1 %
)

// takeMemory measures fresh hops before and after a load of small requests.
func takeMemory(ctx context.Context, f *fleet, t *target, p pace) (sample, error) {
	fresh, err := f.start(ctx, t.name)
	if err != nil {
		return sample{}, err
	}
	defer f.stop(fresh)
	idle, err := fresh.settledMemory(ctx)
	if err != nil {
		return sample{}, err
	}
	r, err := runLoad(ctx, f.dir, fresh.smallLoad(64, p))
	if err != nil {
		return sample{}, err
	}
	loaded, err := fresh.settledMemory(ctx)
	if err != nil {
		return sample{}, err
	}
	s := newSample(r)
	s.addMemory("idle", idle)
	s.addMemory("loaded", loaded)
	return s, nil
}

// takeStalled measures fresh hops that hold more and more stalled downloads.
func takeStalled(ctx context.Context, f *fleet, t *target, _ pace) (sample, error) {
	fresh, err := f.start(ctx, t.name)
	if err != nil {
		return sample{}, err
	}
	defer f.stop(fresh)
	s := newSample()
	var held []net.Conn
	defer func() {
		for _, conn := range held {
			_ = conn.Close()
		}
	}()
	for _, n := range stalledSteps {
		for len(held) < n {
			conn, err := fresh.stalledDownload(ctx)
			if err != nil {
				return sample{}, fmt.Errorf("stalled download %d: %w", len(held)+1, err)
			}
			held = append(held, conn)
		}
		holding, err := fresh.settledMemory(ctx)
		if err != nil {
			return sample{}, err
		}
		s.addMemory(fmt.Sprintf("stalled%d", n), holding)
	}
	return s, nil
}

// stalledDownload begins a download and reads no further than its head.
func (t *target) stalledDownload(ctx context.Context) (net.Conn, error) {
	dialer := net.Dialer{Timeout: 5 * time.Second}
	conn, err := dialer.DialContext(ctx, "tcp", t.addr)
	if err != nil {
		return nil, err
	}
	if err := t.beginDownload(conn.(*net.TCPConn)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

func (t *target) beginDownload(conn *net.TCPConn) error {
	if err := conn.SetReadBuffer(stalledReceive); err != nil {
		return err
	}
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write(t.bulkLoad("download", 1, stalledBytes, pace{}).head()); err != nil {
		return err
	}
	head, err := newResponseReader(conn, smallBuffer).head()
	if err != nil {
		return err
	}
	if head.status != 200 || head.length != stalledBytes && !head.chunked {
		return fmt.Errorf("status %d with %d bytes instead of 200 with %d", head.status, head.length, int64(stalledBytes))
	}
	return conn.SetDeadline(time.Time{})
}

// settledMemory samples the hops until their sum stays the same, at most for
// settlesWithin, and returns the most that each of them held in that time.
func (t *target) settledMemory(ctx context.Context) ([]memory, error) {
	tick := time.NewTicker(settleEvery)
	defer tick.Stop()
	latest := time.Now().Add(settlesWithin)
	most := make([]memory, len(t.hops))
	var last int64
	for same := 0; same < settledAfter && time.Now().Before(latest); {
		var sum int64
		for i, hop := range t.hops {
			now, err := memoryOf(hop.cmd.Process.Pid)
			if err != nil {
				return nil, errors.Join(err, t.alive())
			}
			most[i].resident = max(most[i].resident, now.resident)
			most[i].anonymous = max(most[i].anonymous, now.anonymous)
			sum += now.resident
		}
		same++
		if diff := sum - last; diff*100 > last || -diff*100 > last {
			same = 0
		}
		last = sum
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return most, nil
}

// addMemory files what each hop holds in one state.
func (s *sample) addMemory(state string, hops []memory) {
	for i, m := range hops {
		id := fmt.Sprintf("memory.%s.hop%d", state, i+1)
		s.values[id] = megabytes(float64(m.resident))
		s.values[id+".anon"] = megabytes(float64(m.anonymous))
	}
}
