package inbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/posternhq/postern/relay"
)

// leaseMargin is how much longer than an app's silence a lease lasts.
const leaseMargin = 30 * time.Second

// Causes of an attempt's context that mean: forget the attempt.
var (
	errLeaseLost = errors.New("the lease was lost")
	errStopping  = errors.New("the relay is stopping")
)

// flight is an attempt that is being made. Inbox.mu guards until.
type flight struct {
	lease relay.Lease
	ep    relay.Endpoint    // as it was when the attempt started,
	dest  relay.Destination // also this
	lane  *lane
	probe bool      // it finds out for the breaker whether the app works again
	until time.Time // the end of the lease

	// live takes the app's answer, or nil, for a sender who may be waiting for it;
	// nil when nobody does.
	live chan *relay.Answer

	ctx    context.Context
	cancel context.CancelCauseFunc
}

// flightLocked makes the flight of h. Its end is Inbox.workers.Done.
func (b *Inbox) flightLocked(l *lane, ep relay.Endpoint, dest relay.Destination, h held) *flight {
	f := &flight{lease: h.lease, ep: ep, dest: dest, lane: l, until: h.until}
	f.ctx, f.cancel = context.WithCancelCause(b.work)
	b.workers.Add(1)
	return f
}

func (b *Inbox) leaseLength() time.Duration { return b.cfg.AttemptTimeout + leaseMargin }

// fly makes one attempt and writes down how it went. An attempt that was cut
// off by ourselves leaves no trace: its delivery belongs to whoever holds the
// lease now, or goes back as it was when Run ends.
func (b *Inbox) fly(f *flight) {
	defer b.workers.Done()
	defer f.cancel(nil)
	d := f.lease.Delivery
	a, answer := b.try(f.ctx, f)
	waits := b.booting(f, &a)
	if f.live != nil {
		reply := b.answerFor(f, a, answer)
		if d.OrderKey == "" {
			f.live <- reply
		} else {
			// The sender's next event with this key must not find this one unfinished,
			// or none of them would be tried live.
			defer func() { f.live <- reply }()
		}
	}
	cut := context.Cause(f.ctx)
	if cut != nil && a.Outcome != relay.OutcomeDone && a.Outcome != relay.OutcomeRejected {
		b.cfg.Logger.Info("attempt dropped", "app", d.App, "delivery", d.ID, "error", cut)
		b.land(f, func() { f.endLive(); f.lane.dropped(f.probe) })
		return
	}
	b.left(f, a)
	next := d.Next(waits, f.dest.Retry, b.cfg.Random())
	if err := b.finish(f, relay.Finish{Attempt: a, Next: next}); err != nil {
		b.cfg.Logger.Info("attempt dropped", "app", d.App, "delivery", d.ID, "error", err)
		b.land(f, f.lane.lost)
		return
	}
	if next.State == relay.DeliveryDead {
		b.cfg.Logger.Warn("delivery given up", "app", d.App, "endpoint", d.Endpoint, "destination", d.Destination,
			"event", d.Event, "delivery", d.ID, "attempts", next.Attempt, "status", a.Status)
	}
	b.finished(f.lease.Event, next, a)
	b.land(f, func() { f.lane.landed(next) })
}

// endLive notes that f is at the app no more. Inbox.mu is held.
func (f *flight) endLive() {
	if f.live != nil {
		f.lane.live--
	}
}

// booting makes a's outcome uncounted when the app has only just come up and
// asks for a moment, and returns a with the wait that it is given.
func (b *Inbox) booting(f *flight, a *relay.Attempt) relay.Attempt {
	if a.Outcome != relay.OutcomeRejected || a.Status != 503 || a.RetryIn <= 0 {
		return *a
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !f.lane.booting(a.StartedAt) {
		return *a
	}
	a.Outcome = relay.OutcomeBooting
	waits := *a
	waits.RetryIn = min(a.RetryIn, bootTime)
	return waits
}

// left tells f's lane that the app is done with it. The next one may go while
// this one's outcome is being written.
func (b *Inbox) left(f *flight, a relay.Attempt) {
	b.mu.Lock()
	f.endLive()
	change := f.lane.ended(a.Outcome, a.EndedAt.Sub(a.StartedAt), f.probe, b.cfg.Now())
	breaker := f.lane.breaker
	b.touchLocked(f.lane)
	b.mu.Unlock()
	if change == unchanged {
		return
	}
	log := b.cfg.Logger.With("app", f.ep.App, "endpoint", f.ep.Name, "destination", f.dest.Name)
	switch change {
	case opened:
		log.Warn("breaker opened: every delivery fails", "failures", breaker.failures, "pause", breaker.pause)
	case stayedOpen:
		log.Warn("breaker stays open: the probe failed too", "failures", breaker.failures, "pause", breaker.pause)
	case closed:
		log.Info("breaker closed: a delivery succeeded")
	}
}

// finished tells everybody but the lane that a left its delivery as next.
func (b *Inbox) finished(e relay.Event, next relay.Delivery, a relay.Attempt) {
	b.noteAttempt(e, next, a)
	if next.State == relay.DeliveryReady {
		return
	}
	b.usage.wait(next.App, -1)
	if next.Replay != "" {
		b.replayed(next.Replay)
	}
}

// land takes f off the list, tells its lane and wakes the dispatcher.
func (b *Inbox) land(f *flight, tell func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.flights[f.lease.Delivery.ID] == f { // not when it was claimed anew meanwhile
		delete(b.flights, f.lease.Delivery.ID)
	}
	b.dropLocked(f.lease.Event)
	tell()
	b.touchLocked(f.lane)
}

// finish writes the attempt down. While the store is down it tries again until
// the lease must have expired: what happened at the app cannot be learned a
// second time.
func (b *Inbox) finish(f *flight, done relay.Finish) error {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, storeTimeout) {
		call, cancel := context.WithTimeout(context.WithoutCancel(f.ctx), storeTimeout)
		err := b.cfg.Store.FinishAttempt(call, done)
		cancel()
		if code := relay.CodeOf(err); err == nil || code == relay.Conflict || code == relay.NotFound {
			return err
		}
		if f.ctx.Err() != nil || !b.cfg.Now().Before(b.leaseEnd(f)) {
			return fmt.Errorf("finish attempt: %w", err)
		}
		select {
		case <-f.ctx.Done(): // once more, then no longer
		case <-time.After(wait):
		}
	}
}

func (b *Inbox) leaseEnd(f *flight) time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return f.until
}

// keepLeases extends the leases of long attempts until ctx ends. It comes by
// four times in the length of a lease and extends what has passed half of it,
// so one failed round is made good by the next.
func (b *Inbox) keepLeases(ctx context.Context) {
	ticker := time.NewTicker(b.leaseLength() / 4)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		for _, f := range b.ageing() {
			b.extend(ctx, f)
		}
	}
}

// ageing lists the flights whose lease is half over.
func (b *Inbox) ageing() []*flight {
	b.mu.Lock()
	defer b.mu.Unlock()
	half := b.cfg.Now().Add(b.leaseLength() / 2)
	var old []*flight
	for _, f := range b.flights {
		if !f.until.After(half) {
			old = append(old, f)
		}
	}
	return old
}

// extend moves the end of f's lease. When the lease is gone, somebody else may
// be delivering the event, so the attempt is cancelled.
func (b *Inbox) extend(ctx context.Context, f *flight) {
	until := b.cfg.Now().Add(b.leaseLength())
	d := f.lease.Delivery
	call, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	err := b.cfg.Store.ExtendLease(call, d.ID, d.LeaseGen, until)
	switch {
	case relay.CodeOf(err) == relay.Conflict:
		f.cancel(errLeaseLost)
	case err != nil:
		if ctx.Err() == nil {
			b.cfg.Logger.Warn("lease not extended", "delivery", d.ID, "error", err)
		}
	default:
		b.mu.Lock()
		f.until = until
		b.mu.Unlock()
	}
}
