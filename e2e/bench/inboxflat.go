package main

import (
	"context"
	"fmt"
	"time"
)

// inboxSizes is how much is in the store where it holds a lot.
type inboxSizes struct {
	Stored  int `json:"stored"`  // events that were delivered
	Waiting int `json:"waiting"` // deliveries that wait
	Drained int `json:"drained"` // deliveries that are timed
}

var (
	fullSizes  = inboxSizes{Stored: 1_000_000, Waiting: 100_000, Drained: 4000}
	quickSizes = inboxSizes{Stored: 20_000, Waiting: 5_000, Drained: 500}
)

// storedSize is the body of the many events. They are smaller than those that
// are sent, to spare disk and time: what may slow the relay down is the number
// of rows and of index entries.
const storedSize = 256

// takeFlatAccept measures accepting with nothing and with very much in the store.
// One relay is kept full over all runs; the empty one is new in each. Which comes
// first changes.
func takeFlatAccept(ctx context.Context, f *fleet, _ *target, p pace) (sample, error) {
	if f.full == "" {
		full, err := f.fillStore(ctx)
		if err != nil {
			return sample{}, err
		}
		f.full = full
	}
	empty, err := f.newHookData()
	if err != nil {
		return sample{}, err
	}
	f.fullFirst = !f.fullFirst
	order := []int{0, 1}
	if f.fullFirst {
		order = []int{1, 0}
	}
	var results [2]loadResult
	var cpu [2]float64
	for _, i := range order {
		relay, err := f.startHookRelay(ctx, []string{empty, f.full}[i])
		if err != nil {
			return sample{}, err
		}
		results[i], cpu[i], err = f.loadWithCPU(ctx, relay.hops[0], webhooks(relay.addr, hookSize, p))
		relay.stop()
		if err != nil {
			return sample{}, err
		}
	}
	s := newSample(results[:]...)
	s.compare("inbox.flat.accept", 1e6/results[1].rate(), 1e6/results[0].rate())
	s.compare("inbox.flat.accept.cpu", cpu[1], cpu[0])
	return s, nil
}

// fillStore has a relay accept and deliver one webhook, stops it, and multiplies
// what it has stored.
func (f *fleet) fillStore(ctx context.Context) (string, error) {
	relay, err := f.startFreshHookRelay(ctx)
	if err != nil {
		return "", err
	}
	defer relay.stop()
	if err := relay.sendOne(ctx, storedSize); err != nil {
		return "", err
	}
	if err := relay.startApp(ctx); err != nil {
		return "", err
	}
	if _, err := relay.between(ctx, 1, 1); err != nil {
		return "", err
	}
	relay.stop()
	return relay.data, cloneEvents(ctx, relay.data, f.sizes.Stored, nil)
}

// takeFlatDelivery measures the same number of deliveries, from the moment at
// which an agent connects, with nothing else waiting, with many that are due as
// well, and with many that wait for their next attempt. The first eighth is not
// counted: the relay starts with one delivery at a time then.
func takeFlatDelivery(ctx context.Context, f *fleet, _ *target, _ pace) (sample, error) {
	const later = int64(time.Hour / time.Microsecond)
	alone, err := f.drain(ctx, 0, nil)
	if err != nil {
		return sample{}, err
	}
	due, err := f.drain(ctx, f.sizes.Waiting, map[string]string{})
	if err != nil {
		return sample{}, err
	}
	waiting, err := f.drain(ctx, f.sizes.Waiting, map[string]string{"next_at": fmt.Sprintf("t.next_at + %d", later)})
	if err != nil {
		return sample{}, err
	}
	s := newSample()
	s.compare("inbox.flat.due", micros(due.each), micros(alone.each))
	s.compare("inbox.flat.due.cpu", due.cpu, alone.cpu)
	s.compare("inbox.flat.later", micros(waiting.each), micros(alone.each))
	s.compare("inbox.flat.later.cpu", waiting.cpu, alone.cpu)
	return s, nil
}

// drained is what deliveries cost.
type drained struct {
	each time.Duration
	cpu  float64 // seconds of the relay's CPU time for 10 000
}

// drain has f.sizes.Drained webhooks delivered that are due. Behind them wait
// others, changed by set.
func (f *fleet) drain(ctx context.Context, others int, set map[string]string) (drained, error) {
	relay, err := f.prepareDrain(ctx, others, set)
	if err != nil {
		return drained{}, err
	}
	defer relay.stop()
	if err := relay.startApp(ctx); err != nil {
		return drained{}, err
	}
	from, to := f.sizes.Drained/8, f.sizes.Drained
	if _, err := relay.between(ctx, 1, from); err != nil {
		return drained{}, err
	}
	pid := relay.hops[0].cmd.Process.Pid
	before, err := cpuTime(pid)
	if err != nil {
		return drained{}, err
	}
	begun, err := relay.arrivals(ctx, "")
	if err != nil {
		return drained{}, err
	}
	took, err := relay.between(ctx, from, to)
	if err != nil {
		return drained{}, err
	}
	after, err := cpuTime(pid)
	if err != nil {
		return drained{}, err
	}
	ended, err := relay.arrivals(ctx, "")
	return drained{
		each: took / time.Duration(to-from),
		cpu:  (after - before).Seconds() / float64(max(ended-begun, 1)) * 10_000,
	}, err
}

// prepareDrain starts a relay in whose store deliveries wait.
func (f *fleet) prepareDrain(ctx context.Context, others int, set map[string]string) (*hookRelay, error) {
	relay, err := f.startFreshHookRelay(ctx)
	if err != nil {
		return nil, err
	}
	err = relay.sendOne(ctx, storedSize)
	relay.stop()
	if err != nil {
		return nil, err
	}
	if err := cloneEvents(ctx, relay.data, f.sizes.Drained, nil); err != nil {
		return nil, err
	}
	if others > 0 {
		if err := cloneEvents(ctx, relay.data, others, set); err != nil {
			return nil, err
		}
	}
	return f.startHookRelay(ctx, relay.data)
}
