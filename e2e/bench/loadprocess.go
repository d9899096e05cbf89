package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"
)

// loadProcess is a load that runs in a process of its own. Two loads at once,
// small requests during bulk transfers, then compete as clients do, under the
// kernel's scheduler: in one process the bulk connections' goroutines would
// keep the small ones waiting for their turn, and that wait would be measured.
type loadProcess struct {
	process *process
	load    load
}

// startLoad starts l and returns when its warm-up is over.
func startLoad(ctx context.Context, dir string, l load) (*loadProcess, error) {
	c, err := roleCommand(dir, "load", roleLoad)
	if err != nil {
		return nil, err
	}
	p, err := startProcess(ctx, c)
	if err != nil {
		return nil, err
	}
	running := &loadProcess{process: p, load: l}
	if err := json.NewEncoder(p.input).Encode(l); err != nil {
		p.stop()
		return nil, fmt.Errorf("send load: %w", err)
	}
	if _, err := p.line(ctx, l.Warmup+startsWithin); err != nil {
		p.stop()
		return nil, err
	}
	return running, nil
}

// stop ends the window early; result follows.
func (r *loadProcess) stop() { _ = r.process.input.Close() }

// result waits for the load's end.
func (r *loadProcess) result(ctx context.Context) (loadResult, error) {
	defer r.process.stop()
	var result loadResult
	line, err := r.process.line(ctx, r.load.Window+r.load.Grace+startsWithin)
	if err != nil {
		return result, err
	}
	if err := json.Unmarshal([]byte(line), &result); err != nil {
		return result, fmt.Errorf("read result of load: %w", err)
	}
	if result.Ops == 0 && result.Bytes == 0 && result.Errors == 0 {
		return result, fmt.Errorf("nothing was answered within %v", time.Duration(result.Seconds*float64(time.Second)))
	}
	return result, nil
}

// runLoad runs l to its end.
func runLoad(ctx context.Context, dir string, l load) (loadResult, error) {
	running, err := startLoad(ctx, dir, l)
	if err != nil {
		return loadResult{}, err
	}
	return running.result(ctx)
}
