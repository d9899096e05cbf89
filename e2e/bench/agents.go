package main

import (
	"context"
	"errors"
)

// idleAgentCount is how many idle agents the relay's memory is divided by.
const idleAgentCount = 1000

// errNoIdleAgents is why the row of the idle agents stays empty. It counts as
// left out and not as failed.
var errNoIdleAgents = errors.New("this harness holds no agent sessions of its own")

// idleAgents opens n agent sessions on a relay that do nothing but stay, and
// returns when all of them are accepted. The instances differ, the token is the
// same. release closes them and waits until they are gone. They live in the
// harness's process, so that only the relay's own memory is measured.
type idleAgents func(ctx context.Context, relay, token string, n int) (release func(), err error)

// takeIdleAgents measures how much a fresh relay grows by per idle agent.
func takeIdleAgents(ctx context.Context, f *fleet, t *target, _ pace) (sample, error) {
	if f.idle == nil {
		return sample{}, errNoIdleAgents
	}
	fresh, err := f.start(ctx, t.name)
	if err != nil {
		return sample{}, err
	}
	defer f.stop(fresh)
	before, err := fresh.settledMemory(ctx)
	if err != nil {
		return sample{}, err
	}
	release, err := f.idle(ctx, fresh.relay, fresh.token, idleAgentCount)
	if err != nil {
		return sample{}, err
	}
	defer release()
	after, err := fresh.settledMemory(ctx)
	if err != nil {
		return sample{}, err
	}
	s := newSample()
	s.values["agents.each"] = kilobytes(float64(after[0].resident-before[0].resident) / idleAgentCount)
	return s, nil
}
