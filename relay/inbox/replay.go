package inbox

import (
	"context"
	"time"

	"github.com/posternhq/postern/relay"
)

// How far a replay's deliveries are made before they are delivered. What came in
// meanwhile waits behind as many of one lane, and no more: a lane delivers what
// is due longest first, and what it has in hand live events first.
const (
	replayAhead  = 200
	replayPause  = 50 * time.Millisecond // between two steps
	replayLook   = 5 * time.Second       // when nothing happens, or the store failed
	replaySecond = 2                     // seconds' worth of a fast replay that may be ahead
)

// StartReplay makes a planned replay running. Errors are those of
// relay.ReplayStore.StartReplay.
func (b *Inbox) StartReplay(ctx context.Context, id relay.ReplayID) (relay.Replay, error) {
	r, err := b.cfg.Store.StartReplay(ctx, id)
	if err == nil {
		poke(b.findReplays)
	}
	return r, err
}

// CancelReplay ends a replay and cancels those of its deliveries that are ready.
// Errors are those of relay.ReplayStore.CancelReplay.
func (b *Inbox) CancelReplay(ctx context.Context, id relay.ReplayID) (relay.Replay, error) {
	r, err := b.cfg.Store.CancelReplay(ctx, id)
	if err == nil {
		poke(b.findReplays)
		poke(b.pollNow) // what waited behind them for the order's sake
	}
	return r, err
}

// replayed notes that a delivery of replay id has ended.
func (b *Inbox) replayed(id relay.ReplayID) {
	b.mu.Lock()
	b.ended[id]++
	b.mu.Unlock()
	poke(b.stepReplays)
}

// stepper is a replay that is running here. Nothing of it has to outlive the
// process: the store has the cursor.
type stepper struct {
	replay relay.Replay
	bucket bucket
	next   time.Time // no step before

	counted time.Time // when the store last said how far it is
}

// replay makes the deliveries of running replays until ctx ends.
func (b *Inbox) replay(ctx context.Context) {
	running := make(map[relay.ReplayID]*stepper)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for find := true; ; {
		if find {
			find = !b.findRunning(ctx, running)
		}
		timer.Reset(b.stepAll(ctx, running))
		select {
		case <-ctx.Done():
			return
		case <-b.findReplays:
			find = true
		case <-b.stepReplays:
		case <-timer.C:
		}
	}
}

// findRunning takes in which replays are running, and reports whether the store
// could say.
func (b *Inbox) findRunning(ctx context.Context, running map[relay.ReplayID]*stepper) bool {
	call, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	all, err := b.cfg.Store.Replays(call, "")
	if err != nil {
		if ctx.Err() == nil {
			b.cfg.Logger.Warn("replays not read", "error", err)
		}
		return false
	}
	for _, r := range all {
		switch s := running[r.ID]; {
		case r.State != relay.ReplayRunning:
			b.forgetReplay(running, r.ID)
		case s == nil:
			b.cfg.Logger.Info("replay running", "app", r.App, "replay", r.ID, "planned", r.Planned, "made", r.Made)
			running[r.ID] = &stepper{replay: r}
		}
	}
	return true
}

func (b *Inbox) forgetReplay(running map[relay.ReplayID]*stepper, id relay.ReplayID) {
	delete(running, id)
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.ended, id)
}

// stepAll steps what may be stepped, and says when to look again.
func (b *Inbox) stepAll(ctx context.Context, running map[relay.ReplayID]*stepper) time.Duration {
	wait := replayLook
	for id, s := range running {
		now := b.cfg.Now()
		if !now.Before(s.next) {
			if !b.stepOne(ctx, s, now) {
				b.forgetReplay(running, id)
				continue
			}
		}
		wait = min(wait, max(0, s.wakeAt(now).Sub(now)))
	}
	return wait
}

// stepOne makes as many deliveries of s as it wants now, and reports whether
// there may be more.
func (b *Inbox) stepOne(ctx context.Context, s *stepper, now time.Time) bool {
	id := s.replay.ID
	b.mu.Lock()
	ended := b.ended[id]
	b.mu.Unlock()
	call, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	if n := s.wants(ended, now); n > 0 {
		return b.step(call, s, n, now)
	}
	if now.Sub(s.counted) < replayLook {
		return true
	}
	// Deliveries also end elsewhere: by an operator's hand, or with their events.
	return b.recount(s, now, func() (relay.Replay, error) { return b.cfg.Store.Replay(call, id) })
}

// recount asks the store, and reports whether the replay goes on.
func (b *Inbox) recount(s *stepper, now time.Time, ask func() (relay.Replay, error)) bool {
	b.mu.Lock()
	delete(b.ended, s.replay.ID) // before the store counts, so that none is left out
	b.mu.Unlock()
	s.counted = now
	r, err := ask()
	switch relay.CodeOf(err) {
	case relay.Conflict, relay.NotFound:
		return false
	}
	if err != nil {
		s.next = now.Add(replayLook)
		b.cfg.Logger.Warn("replay not stepped", "replay", s.replay.ID, "error", err)
		return true
	}
	s.replay = r
	return r.State == relay.ReplayRunning
}

// wants is how many deliveries to make now, when ended of them ended since the
// last step.
func (s *stepper) wants(ended int, now time.Time) int {
	s.bucket.refill(s.replay.Rate, perSecond(s.replay.Rate), now)
	r := s.replay
	ahead := max(replayAhead, int(min(r.Rate, 1000)*replaySecond))
	room := ahead - (r.Made - r.Done - r.Dead - r.Cancelled - ended)
	if r.Rate <= 0 && room < ahead/2 {
		return 0 // a few at a time would each be a transaction
	}
	return max(0, min(room, s.bucket.whole()))
}

// wakeAt is when the next step may be made, as far as time decides.
func (s *stepper) wakeAt(now time.Time) time.Time {
	if ready := s.bucket.readyAt(); !ready.IsZero() {
		return later(s.next, ready)
	}
	if s.next.After(now) {
		return s.next
	}
	return s.counted.Add(replayLook) // it waits for its deliveries to end, which wakes
}

// step makes n deliveries of s, and reports whether there may be more.
func (b *Inbox) step(ctx context.Context, s *stepper, n int, now time.Time) bool {
	s.next = now.Add(replayPause)
	made := s.replay.Made
	more := b.recount(s, now, func() (relay.Replay, error) { return b.cfg.Store.StepReplay(ctx, s.replay.ID, n, now) })
	r := s.replay
	s.bucket.take(r.Made - made)
	b.usage.wait(r.App, r.Made-made)
	if r.Made > made {
		b.hintReplay(r, made == 0, now)
	}
	if !more {
		b.cfg.Logger.Info("replay ended", "app", r.App, "replay", r.ID, "state", r.State, "made", r.Made)
	}
	return more
}

// hintReplay tells the lanes that may have got deliveries of r.
func (b *Inbox) hintReplay(r relay.Replay, first bool, now time.Time) {
	if r.Filter.Endpoint != "" {
		b.hint(laneID{r.App, r.Filter.Endpoint, r.Destination}, now)
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for id, l := range b.lanes {
		if id.app == r.App && id.destination == r.Destination {
			l.expectNow()
			b.touchLocked(l)
		}
	}
	if first {
		poke(b.pollNow) // it knows the lanes that have had nothing yet
	}
}
