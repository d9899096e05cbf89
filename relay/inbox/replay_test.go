package inbox

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/posternhq/postern/relay"
)

// plan stores an event that was delivered, and a replay of it n times.
func (f *fixture) plan(n int, rate float64) relay.ReplayID {
	f.t.Helper()
	f.receive("old")
	f.store.mu.Lock()
	defer f.store.mu.Unlock()
	f.store.replays = append(f.store.replays, relay.Replay{
		ID: relay.ReplayID(fmt.Sprintf("rpl_%d", len(f.store.replays))), App: testApp, Planned: n, Rate: rate,
		Filter: relay.EventFilter{IDs: []relay.EventID{f.store.deliveries[0].Event}},
	})
	return f.store.replays[len(f.store.replays)-1].ID
}

func (f *fixture) replayState(id relay.ReplayID) relay.Replay {
	r, err := f.store.Replay(f.t.Context(), id)
	if err != nil {
		f.t.Fatal(err)
	}
	return r
}

func TestAReplayRunsWhenItIsStarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.run()
		defer f.halt()
		id := f.plan(1000, 0)
		f.pass(time.Hour)
		if r := f.replayState(id); r.Made != 0 {
			t.Fatalf("a plan made %d deliveries", r.Made)
		}
		if _, err := f.inbox.StartReplay(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		f.pass(2 * time.Second)
		if r := f.replayState(id); r.State != relay.ReplayDone || r.Done != 1000 || len(f.callList()) != 1001 {
			t.Errorf("after two seconds: %+v, %d calls", r, len(f.callList()))
		}
		if _, err := f.inbox.StartReplay(t.Context(), id); relay.CodeOf(err) != relay.Conflict {
			t.Errorf("a second start: %v", err)
		}
	})
}

func TestTheRateOfAReplayIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.run()
		defer f.halt()
		id := f.plan(100, 2)
		if _, err := f.inbox.StartReplay(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		f.settle()
		for second := range 20 {
			if r := f.replayState(id); r.Made < 2+2*second-1 || r.Made > 2+2*second {
				t.Errorf("%d made after %d s", r.Made, second)
			}
			f.pass(time.Second)
		}
	})
}

// A replay of a million events must not stand in the way of the next webhook.
func TestAReplayIsOnlyALittleAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.run()
		defer f.halt()
		id, fast := f.plan(1_000, 0), f.plan(10_000, 500)
		f.set(func() { f.connected = false })
		for _, id := range []relay.ReplayID{id, fast} {
			if _, err := f.inbox.StartReplay(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		f.pass(time.Minute)
		if r := f.replayState(id); r.Made != replayAhead {
			t.Errorf("%d made while nothing is delivered, want %d", r.Made, replayAhead)
		}
		if r := f.replayState(fast); r.Made != 1000 {
			t.Errorf("%d made of the one with a rate, want two seconds' worth", r.Made)
		}
		// What ends elsewhere makes room too.
		for _, d := range f.store.deliveries[1:] {
			if d.Replay == id {
				if _, err := f.store.CancelDelivery(t.Context(), d.ID); err != nil {
					t.Fatal(err)
				}
			}
		}
		f.pass(2 * replayLook)
		if r := f.replayState(id); r.Made != 2*replayAhead {
			t.Errorf("%d made after those were cancelled, want %d", r.Made, 2*replayAhead)
		}
	})
}

func TestAReplaySurvivesARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.run()
		id := f.plan(40, 2)
		if _, err := f.inbox.StartReplay(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		f.pass(5 * time.Second)
		f.halt()
		f.inbox = New(f.inbox.cfg)
		f.store.fail(errors.New("not up yet"))
		f.run()
		defer f.halt()
		f.store.fail(nil)
		f.pass(30 * time.Second)
		if r := f.replayState(id); r.State != relay.ReplayDone || r.Done != 40 || r.Made != 40 {
			t.Errorf("replay %+v", r)
		}
	})
}

func TestACancelledReplayStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.run()
		defer f.halt()
		id := f.plan(1000, 10)
		if _, err := f.inbox.StartReplay(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		f.pass(3 * time.Second)
		r, err := f.inbox.CancelReplay(t.Context(), id)
		if err != nil || r.State != relay.ReplayCancelled {
			t.Fatalf("CancelReplay = %+v, %v", r, err)
		}
		steps := len(f.store.steps)
		f.pass(time.Hour)
		if n := len(f.store.steps) - steps; n != 0 || strings.Contains(f.log.String(), "replay ended") {
			t.Errorf("%d steps afterwards; log %s", n, f.log)
		}
	})
}
