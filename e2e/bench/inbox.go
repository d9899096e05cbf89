package main

import (
	"context"
	"time"
)

// pacedRate is the open loop's rate, requests a second.
const pacedRate = 500

// fsyncCount is how often fsync is timed on either side of the paced load.
const fsyncCount = 500

// takeAccepts measures how fast webhooks are taken onto disk, between what the
// same database does one row at a time and what the same HTTP server does
// without a store. No agent is connected, so nothing is delivered meanwhile.
func takeAccepts(ctx context.Context, f *fleet, _ *target, p pace) (sample, error) {
	data, err := f.newHookData()
	if err != nil {
		return sample{}, err
	}
	commits, err := runCommits(ctx, f.dir, commitLoad{Path: data + "/commits.db", Size: hookSize, Warmup: p.warmup, Window: p.window})
	if err != nil {
		return sample{}, err
	}
	empty, err := f.server(ctx, "empty", roleEmpty)
	if err != nil {
		return sample{}, err
	}
	handled, handledCPU, err := f.loadWithCPU(ctx, empty.process, webhooks(empty.addr, hookSize, p))
	f.end(empty.process)
	if err != nil {
		return sample{}, err
	}
	relay, err := f.startFreshHookRelay(ctx)
	if err != nil {
		return sample{}, err
	}
	defer relay.stop()
	accepted, acceptedCPU, err := f.loadWithCPU(ctx, relay.hops[0], webhooks(relay.addr, hookSize, p))
	if err != nil {
		return sample{}, err
	}
	s := newSample(commits, handled, accepted)
	s.compare("inbox.accepts.commits", accepted.rate(), commits.rate())
	s.compare("inbox.accepts.handler", accepted.rate(), handled.rate())
	s.compare("inbox.accepts.p50", micros(accepted.P50), micros(handled.P50))
	s.compare("inbox.accepts.p99", micros(accepted.P99), micros(handled.P99))
	s.compare("inbox.accepts.cpu", acceptedCPU, handledCPU)
	return s, nil
}

// loadWithCPU runs l and returns, with its result, the seconds of CPU time that
// p has spent on each 10 000 of its requests.
func (f *fleet) loadWithCPU(ctx context.Context, p *process, l load) (loadResult, float64, error) {
	before, err := cpuTime(p.cmd.Process.Pid)
	if err != nil {
		return loadResult{}, 0, err
	}
	r, err := runLoad(ctx, f.dir, l)
	if err != nil {
		return r, 0, err
	}
	after, err := cpuTime(p.cmd.Process.Pid)
	return r, (after - before).Seconds() / float64(max(r.Total, 1)) * 10_000, err
}

// takePaced measures how long a sender waits at a moderate rate, in fsyncs of
// the same disk right before and right after. A relay that does not keep up needs
// no other sign than the times: they count from when a request was to begin.
func takePaced(ctx context.Context, f *fleet, _ *target, p pace) (sample, error) {
	relay, err := f.startFreshHookRelay(ctx)
	if err != nil {
		return sample{}, err
	}
	defer relay.stop()
	syncs, err := fsyncTimes(relay.data, fsyncCount)
	if err != nil {
		return sample{}, err
	}
	l := webhooks(relay.addr, hookSize, p)
	l.Rate = pacedRate
	r, err := runLoad(ctx, f.dir, l)
	if err != nil {
		return sample{}, err
	}
	again, err := fsyncTimes(relay.data, fsyncCount)
	if err != nil {
		return sample{}, err
	}
	syncs.merge(again)
	s := newSample(r)
	s.compare("inbox.paced.p50", micros(r.P50), micros(syncs.quantile(0.50)))
	s.compare("inbox.paced.p99", micros(r.P99), micros(syncs.quantile(0.99)))
	s.values["inbox.paced.late"] = micros(r.LateP50)
	return s, nil
}

// takeBoth measures accepting and delivering at once.
func takeBoth(ctx context.Context, f *fleet, _ *target, p pace) (sample, error) {
	relay, err := f.startFreshHookRelay(ctx)
	if err != nil {
		return sample{}, err
	}
	defer relay.stop()
	if err := relay.startApp(ctx); err != nil {
		return sample{}, err
	}
	if err := relay.untilConnected(ctx); err != nil {
		return sample{}, err
	}
	running, err := startLoad(ctx, f.dir, webhooks(relay.addr, hookSize, p))
	if err != nil {
		return sample{}, err
	}
	begin := time.Now()
	before, err := relay.arrivals(ctx, "")
	wait(ctx, p.window-time.Since(begin))
	seconds := time.Since(begin).Seconds()
	after, err2 := relay.arrivals(ctx, "")
	r, err3 := running.result(ctx)
	for _, err := range []error{err, err2, err3} {
		if err != nil {
			return sample{}, err
		}
	}
	s := newSample(r)
	s.compare("inbox.both", float64(after-before)/seconds, r.rate())
	return s, nil
}

func (r loadResult) rate() float64 { return float64(r.Ops) / r.Seconds }

// compare files a value of the relay's and what it is compared with.
func (s *sample) compare(id string, ours, baseline float64) {
	if s.baselines == nil {
		s.baselines = map[string]float64{}
	}
	s.values[id], s.baselines[id] = ours, baseline
}
