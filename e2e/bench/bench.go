package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// bench goes through the measures.
type bench struct {
	options options
	fleet   *fleet
	results *results
	dead    map[string]bool // targets that ended by themselves
	log     *slog.Logger
}

// run starts what is needed, measures, and ends all it started. It returns an
// error only when nothing can be reported at all; what could not be measured is
// in the report.
//
//	run → newFleet, startTargets
//	    → repeat ×Runs → each measure × each target, the first target changing
//	    → profile
func (b *bench) run(ctx context.Context) (report, error) {
	began, facts := time.Now(), thisMachine(b.options.dir)
	ctx, cancel := context.WithTimeout(ctx, b.options.timeout)
	defer cancel()
	if slices.Contains(b.options.Only, groupInbox) && facts.memoryOnly() {
		return report{}, fmt.Errorf("the files would be on %s, which is no disk: choose another folder with -dir", facts.Disk)
	}
	fleet, err := newFleet(ctx, b.options.root, b.options.bin, b.options.dir)
	if err != nil {
		return report{}, err
	}
	defer fleet.close()
	fleet.sizes = b.options.Inbox
	b.fleet, b.results, b.dead = fleet, newResults(), map[string]bool{}
	up := b.startTargets(ctx)
	for run := 1; run <= b.options.Runs; run++ {
		b.repeat(ctx, run, up)
	}
	if b.options.cpuProfile != "" {
		b.profile(ctx, up)
	}
	if err := ctx.Err(); errors.Is(err, context.DeadlineExceeded) {
		b.results.fail("gave up after %v", b.options.timeout)
	} else if err != nil {
		return report{}, errors.New("interrupted")
	}
	return newReport(b.options, facts, b.results, began), nil
}

// startTargets starts the targets and leaves out those that do not come up.
func (b *bench) startTargets(ctx context.Context) []*target {
	var up []*target
	for _, name := range allTargets {
		if !slices.Contains(b.options.Targets, name) || !b.needs(name) {
			continue
		}
		t, err := b.fleet.start(ctx, name)
		if err != nil {
			b.results.fail("%v", err)
			b.log.Error("target left out", "target", name, "error", err)
			continue
		}
		up = append(up, t)
	}
	return up
}

// needs tells whether some measure that was asked for makes sense for a target.
func (b *bench) needs(target string) bool {
	return slices.ContainsFunc(measures(), func(m measure) bool {
		return slices.Contains(b.options.Only, m.group) && slices.Contains(m.targets, target)
	})
}

// repeat does each measure once for each target. All targets stay up, and one
// measure goes over all of them before the next begins, so that whatever else
// the machine does hits them alike; who comes first changes with the run.
func (b *bench) repeat(ctx context.Context, run int, up []*target) {
	for _, m := range measures() {
		if !slices.Contains(b.options.Only, m.group) {
			continue
		}
		for i := range up {
			t := up[(i+run-1)%len(up)]
			if slices.Contains(m.targets, t.name) && !b.dead[t.name] && ctx.Err() == nil {
				b.measure(ctx, run, m, t)
			}
		}
	}
	if !slices.Contains(b.options.Targets, targetPostern) {
		for _, group := range []string{groupAgents, groupInbox} {
			b.results.leftOut[group] = "postern is not among the targets"
		}
	}
}

// measure takes one sample and files it.
func (b *bench) measure(ctx context.Context, run int, m measure, t *target) {
	s, err := m.take(ctx, b.fleet, t, pace{b.options.Warmup, b.options.Window})
	switch {
	case errors.Is(err, errNoIdleAgents):
		b.results.leftOut[m.group] = err.Error()
	case ctx.Err() != nil:
	case err != nil:
		b.results.fail("run %d, %s, %s: %v", run, m.name, t.name, err)
		b.log.Error("not measured", "run", run, "measure", m.name, "target", t.name, "error", err)
	default:
		b.results.add(run, m, t.name, s)
		b.log.Info("measured", "run", run, "measure", m.name, "target", t.name, "errors", s.errors)
	}
	if err := t.alive(); err != nil && ctx.Err() == nil {
		b.dead[t.name] = true
		b.results.fail("run %d, after %s, no more of %s: %v", run, m.name, t.name, err)
	}
}

// profile fetches the relay's CPU profile during one more load of small
// requests, and one of webhooks, whose numbers do not count.
func (b *bench) profile(ctx context.Context, up []*target) {
	i := slices.IndexFunc(up, func(t *target) bool { return t.name == targetPostern })
	if i < 0 || b.dead[targetPostern] || ctx.Err() != nil {
		return // that it is not up has been said
	}
	p := pace{b.options.Warmup, (profileSeconds + 5) * time.Second}
	b.profileTo(ctx, up[i], up[i].smallLoad(64, p), "relay-small-64.pprof")
	if !slices.Contains(b.options.Only, groupInbox) {
		return
	}
	relay, err := b.fleet.startFreshHookRelay(ctx)
	if err != nil {
		b.results.fail("CPU profile: %v", err)
		return
	}
	defer relay.stop()
	b.profileTo(ctx, relay.target, webhooks(relay.addr, hookSize, p), "relay-inbox-64.pprof")
}

const profileSeconds = 5

func (b *bench) profileTo(ctx context.Context, t *target, l load, name string) {
	path := filepath.Join(b.options.cpuProfile, name)
	if err := b.takeProfile(ctx, t, l, path); err != nil {
		b.results.fail("CPU profile: %v", err)
		return
	}
	b.log.Info("profile written", "file", path)
}

func (b *bench) takeProfile(ctx context.Context, t *target, l load, path string) error {
	load, err := startLoad(ctx, b.fleet.dir, l)
	if err != nil {
		return err
	}
	profile, err := fetch(ctx, fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", t.admin, profileSeconds))
	load.stop()
	if _, loadErr := load.result(ctx); err == nil {
		err = loadErr
	}
	if err != nil {
		return err
	}
	return os.WriteFile(path, profile, 0o644)
}

// fetch returns the whole body of a 200, at most 64 MiB.
func fetch(ctx context.Context, url string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	client := http.Client{Timeout: time.Minute}
	answer, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: status %s", url, answer.Status)
	}
	return io.ReadAll(io.LimitReader(answer.Body, 64<<20))
}
