package main

import (
	"context"
	"fmt"
	"strconv"
	"time"
)

// The groups that -only selects from.
const (
	groupSmall  = "small"  // small requests: rate, latency, CPU
	groupMiB    = "mib"    // 1 MiB responses
	groupBulk   = "bulk"   // download and upload throughput
	groupMixed  = "mixed"  // small requests during bulk transfers
	groupMemory = "memory" // idle, after load, stalled downloads
	groupAgents = "agents" // many idle agents
	groupInbox  = "inbox"  // webhooks: accepting and delivering

	groupConnect   = "connect"    // outbound: new tunnels
	groupTunnel    = "tunnelbulk" // outbound: throughput of tunnels
	groupFirstByte = "firstbyte"  // outbound: an HTTPS request from afar
)

var allGroups = []string{groupSmall, groupMiB, groupBulk, groupMixed, groupMemory, groupAgents, groupInbox,
	groupConnect, groupTunnel, groupFirstByte}

const (
	mib = 1 << 20
	// A stream downloads or uploads this much per request: enough that the
	// requests between do not count, little enough that the last ones end soon.
	oneStreamBytes  = 64 * mib
	manyStreamBytes = 16 * mib
	mixedConns      = 16
)

// pace is how long a load runs.
type pace struct{ warmup, window time.Duration }

// sample is what one measurement of one target brought, by metric id.
type sample struct {
	values     map[string]float64
	baselines  map[string]float64 // what values are compared with, where that is not proxy2
	errors     int64
	firstError string
}

// measure is one thing to do to each target in each run.
type measure struct {
	group   string
	name    string
	targets []string // those it makes sense for
	take    func(ctx context.Context, f *fleet, t *target, p pace) (sample, error)
}

var (
	smallConns  = []int{1, 16, 64, 256}
	bulkStreams = []int{1, 16}
	directions  = []string{"download", "upload"}
)

// measures lists everything, in the order in which a run does it.
func measures() []measure {
	var all []measure
	for _, conns := range smallConns {
		all = append(all, measure{groupSmall, fmt.Sprintf("small requests, %d connections", conns), allTargets, takeSmall(conns)})
	}
	all = append(all, measure{groupMiB, "1 MiB responses, 16 connections", allTargets, takeMiB})
	for _, direction := range directions {
		for _, streams := range bulkStreams {
			name := fmt.Sprintf("%s, %d streams", direction, streams)
			all = append(all, measure{groupBulk, name, allTargets, takeBulk(direction, streams)})
		}
	}
	for _, direction := range directions {
		all = append(all, measure{groupMixed, "small requests during 16 bulk " + direction + "s", allTargets, takeMixed(direction)})
	}
	hops := []string{targetProxy2, targetPostern}
	return append(all,
		measure{groupMemory, "memory idle and after load", hops, takeMemory},
		measure{groupMemory, "memory with stalled downloads", hops, takeStalled},
		measure{groupAgents, "memory per idle agent", hops[1:], takeIdleAgents},
		measure{groupInbox, "webhooks accepted", hops[1:], takeAccepts},
		measure{groupInbox, "webhooks at a moderate rate", hops[1:], takePaced},
		measure{groupInbox, "webhooks accepted and delivered", hops[1:], takeBoth},
		measure{groupInbox, "webhooks accepted into a full store", hops[1:], takeFlatAccept},
		measure{groupInbox, "webhooks delivered out of many", hops[1:], takeFlatDelivery},
		measure{groupConnect, "new tunnels", hops[1:], takeConnects},
		measure{groupTunnel, "bulk through tunnels", hops[1:], takeTunnelBulk},
		measure{groupFirstByte, "first byte from afar", hops[1:], takeFirstByte},
	)
}

// smallLoad asks for the 128-byte answer.
func (t *target) smallLoad(conns int, p pace) load {
	return load{Addr: t.addr, Host: t.host, Conns: conns, Method: "GET", Path: "/small",
		WantBody: smallBody, Warmup: p.warmup, Window: p.window}
}

// bulkLoad moves bodies of size bytes.
func (t *target) bulkLoad(direction string, conns int, size int64, p pace) load {
	l := load{Addr: t.addr, Host: t.host, Conns: conns, Warmup: p.warmup, Window: p.window}
	if direction == "upload" {
		l.Method, l.Path, l.Upload, l.WantBody = "POST", "/sink", size, strconv.FormatInt(size, 10)
	} else {
		l.Method, l.Path, l.WantBytes = "GET", fmt.Sprintf("/bytes?n=%d", size), size
	}
	return l
}

// takeSmall measures rate, latency and the hops' CPU time. CPU time covers the
// load from start to end, so it is divided by all requests of that time.
func takeSmall(conns int) func(context.Context, *fleet, *target, pace) (sample, error) {
	return func(ctx context.Context, f *fleet, t *target, p pace) (sample, error) {
		before, err := t.cpuTimes()
		if err != nil {
			return sample{}, err
		}
		r, err := runLoad(ctx, f.dir, t.smallLoad(conns, p))
		if err != nil {
			return sample{}, err
		}
		after, err := t.cpuTimes()
		if err != nil {
			return sample{}, err
		}
		id := fmt.Sprintf("small.%d.", conns)
		s := newSample(r)
		s.values[id+"rps"] = float64(r.Ops) / r.Seconds
		s.values[id+"p50"] = micros(r.P50)
		s.values[id+"p99"] = micros(r.P99)
		var sum float64
		for i := range after {
			spent := (after[i] - before[i]).Seconds() / float64(max(r.Total, 1)) * 10_000
			s.values[fmt.Sprintf("%scpu.hop%d", id, i+1)] = spent
			sum += spent
		}
		if len(after) > 0 {
			s.values[id+"cpu"] = sum
		}
		return s, nil
	}
}

func takeMiB(ctx context.Context, f *fleet, t *target, p pace) (sample, error) {
	r, err := runLoad(ctx, f.dir, t.bulkLoad("download", 16, mib, p))
	if err != nil {
		return sample{}, err
	}
	s := newSample(r)
	s.values["mib.16.rps"] = float64(r.Ops) / r.Seconds
	return s, nil
}

func takeBulk(direction string, streams int) func(context.Context, *fleet, *target, pace) (sample, error) {
	size := int64(manyStreamBytes)
	if streams == 1 {
		size = oneStreamBytes
	}
	return func(ctx context.Context, f *fleet, t *target, p pace) (sample, error) {
		r, err := runLoad(ctx, f.dir, t.bulkLoad(direction, streams, size, p))
		if err != nil {
			return sample{}, err
		}
		s := newSample(r)
		s.values[fmt.Sprintf("bulk.%s.%d", direction, streams)] = megabytes(float64(r.Bytes) / r.Seconds)
		return s, nil
	}
}

// takeMixed runs the bulk load, and once that is warm the small one; the bulk
// load's window ends with the small one. Few small requests get through, so the
// window is three times as long, lest p99 be the one slowest.
func takeMixed(direction string) func(context.Context, *fleet, *target, pace) (sample, error) {
	return func(ctx context.Context, f *fleet, t *target, p pace) (sample, error) {
		p.window *= 3
		longer := pace{p.warmup, p.warmup + p.window + 30*time.Second}
		bulk, err := startLoad(ctx, f.dir, t.bulkLoad(direction, mixedConns, manyStreamBytes, longer))
		if err != nil {
			return sample{}, err
		}
		small, err := runLoad(ctx, f.dir, t.smallLoad(mixedConns, p))
		bulk.stop()
		moved, bulkErr := bulk.result(ctx)
		if err != nil {
			return sample{}, err
		}
		if bulkErr != nil {
			return sample{}, bulkErr
		}
		id := "mixed." + direction + "."
		s := newSample(small, moved)
		s.values[id+"p50"] = micros(small.P50)
		s.values[id+"p99"] = micros(small.P99)
		s.values[id+"rps"] = float64(small.Ops) / small.Seconds
		s.values[id+"bulk"] = megabytes(float64(moved.Bytes) / moved.Seconds)
		return s, nil
	}
}

// newSample starts a sample with the errors of the loads behind it.
func newSample(results ...loadResult) sample {
	s := sample{values: map[string]float64{}}
	for _, r := range results {
		s.errors += r.Errors
		if s.firstError == "" {
			s.firstError = r.FirstError
		}
	}
	return s
}

// cpuTimes are the hops' CPU times so far, the client's side first.
func (t *target) cpuTimes() ([]time.Duration, error) {
	var times []time.Duration
	for _, hop := range t.hops {
		spent, err := cpuTime(hop.cmd.Process.Pid)
		if err != nil {
			return nil, fmt.Errorf("CPU time of %s: %w", hop.name, err)
		}
		times = append(times, spent)
	}
	return times, nil
}

func micros(d time.Duration) float64  { return float64(d) / float64(time.Microsecond) }
func megabytes(bytes float64) float64 { return bytes / 1e6 }
func kilobytes(bytes float64) float64 { return bytes / 1e3 }
