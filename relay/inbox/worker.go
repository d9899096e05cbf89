package inbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/posternhq/postern/relay"
)

// leaseMargin is how much longer than an app's silence a lease lasts.
const leaseMargin = 30 * time.Second

// storeTimeout bounds the worker's calls to the store, also the ones that must
// be made although everything is being stopped.
const storeTimeout = 5 * time.Second

// Causes of an attempt's context that mean: forget the attempt.
var (
	errLeaseLost = errors.New("the lease was lost")
	errStopping  = errors.New("the relay is stopping")
)

// flight is an attempt that is being made. Inbox.mu guards until.
type flight struct {
	lease relay.Lease
	ep    relay.Endpoint // as it was when the delivery was claimed
	lane  *lane
	until time.Time // the end of the lease

	ctx    context.Context
	cancel context.CancelCauseFunc
}

// Run delivers until ctx ends. Then it claims nothing more, lets the running
// attempts finish within DrainTimeout, cancels the others, gives back what it
// still holds and returns when everything it started is gone. The error is only
// about giving back: those deliveries wait until their leases expire, or until
// the node starts again.
func (b *Inbox) Run(ctx context.Context) error {
	b.releaseAtStart(ctx)

	work, stopWork := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stopWork(nil)
	var keeper sync.WaitGroup
	keeper.Add(1)
	go b.keepLeases(work, &keeper)

	b.dispatch(ctx, work)
	b.drain(stopWork)
	stopWork(nil)
	keeper.Wait()

	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	if _, err := b.cfg.Store.ReleaseLeases(end, b.cfg.Node); err != nil {
		return fmt.Errorf("release leases: %w", err)
	}
	return nil
}

// AgentConnected tells the worker that an agent of app is there: what waited for
// one goes out now.
func (b *Inbox) AgentConnected(app relay.AppID) {
	b.mu.Lock()
	for id, l := range b.lanes {
		if id.app == app {
			l.resume()
		}
	}
	b.mu.Unlock()
	b.signal()
}

// hint notes that endpoint name of app has a delivery due at t.
func (b *Inbox) hint(app relay.AppID, name string, t time.Time) {
	b.mu.Lock()
	l := b.laneLocked(laneID{app, name})
	if t.After(b.cfg.Now()) {
		l.expect(t)
	} else {
		l.expectNow()
	}
	b.mu.Unlock()
	b.signal()
}

func (b *Inbox) signal() {
	select {
	case b.wake <- struct{}{}:
	default: // one is on its way, and it will see this change too
	}
}

func (b *Inbox) laneLocked(id laneID) *lane {
	l := b.lanes[id]
	if l == nil {
		l = &lane{id: id}
		b.lanes[id] = l
	}
	return l
}

// releaseAtStart makes ready what this node held when it last died. When the
// store is down now, ReclaimExpired finds the same deliveries a little later.
func (b *Inbox) releaseAtStart(ctx context.Context) {
	call, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	n, err := b.cfg.Store.ReleaseLeases(call, b.cfg.Node)
	if err != nil {
		b.cfg.Logger.Warn("leases of the last run not released", "error", err)
	} else if n > 0 {
		b.cfg.Logger.Info("leases of the last run released", "deliveries", n)
	}
}

// dispatch looks at the lanes whenever something may have changed, until ctx
// ends.
func (b *Inbox) dispatch(ctx, work context.Context) {
	poll := b.cfg.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		if now := b.cfg.Now(); !now.Before(poll) {
			b.poll(ctx, now)
			poll = now.Add(b.cfg.Poll)
		}
		for _, l := range b.allLanes() {
			b.serve(ctx, work, l)
		}
		timer.Reset(b.nextLook(poll))
		select {
		case <-ctx.Done():
		case <-b.wake:
		case <-timer.C:
		}
	}
}

// poll asks the store what the hints do not know: deliveries of before this
// process, of other nodes, and of leases that expired.
func (b *Inbox) poll(ctx context.Context, now time.Time) {
	call, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	n, err := b.cfg.Store.ReclaimExpired(call, now)
	if err != nil && ctx.Err() == nil {
		b.cfg.Logger.Warn("expired leases not reclaimed", "error", err)
	} else if n > 0 {
		b.cfg.Logger.Info("expired leases reclaimed", "deliveries", n)
	}
	backlogs, err := b.cfg.Store.Backlogs(call)
	if err != nil {
		if ctx.Err() == nil {
			b.cfg.Logger.Warn("backlogs not read", "error", err)
		}
		return
	}
	for _, backlog := range backlogs {
		if !backlog.NextAt.IsZero() {
			b.hint(backlog.App, backlog.Endpoint, backlog.NextAt)
		}
	}
}

func (b *Inbox) allLanes() []*lane {
	b.mu.Lock()
	defer b.mu.Unlock()
	lanes := make([]*lane, 0, len(b.lanes))
	for _, l := range b.lanes {
		lanes = append(lanes, l)
	}
	return lanes
}

// serve claims what the lane has room for and starts the attempts. Without an
// agent it claims nothing, so that waiting for one costs no attempt.
func (b *Inbox) serve(ctx, work context.Context, l *lane) {
	ep, known := b.cfg.Endpoint(l.id.app, l.id.endpoint)
	if !known {
		b.forget(l)
		return
	}
	now := b.cfg.Now()
	up := b.cfg.Connected(l.id.app)
	b.mu.Lock()
	limit := l.look(ep, up, now)
	b.mu.Unlock()
	if limit == 0 || ctx.Err() != nil {
		return
	}
	until := now.Add(b.leaseLength())
	call, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	leases, err := b.cfg.Store.ClaimDeliveries(call, relay.Claim{
		Owner: b.cfg.Node, App: l.id.app, Endpoint: l.id.endpoint,
		Limit: limit, Now: now, Until: until,
	})
	if ctx.Err() != nil {
		return // Run gives back whatever was claimed
	}
	if err != nil {
		b.cfg.Logger.Warn("deliveries not claimed", "app", l.id.app, "endpoint", l.id.endpoint, "error", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		l.claimFailed(now)
		return
	}
	l.claimed(len(leases), limit)
	for _, lease := range leases {
		f := &flight{lease: lease, ep: ep, lane: l, until: until}
		f.ctx, f.cancel = context.WithCancelCause(work)
		b.flights[lease.Delivery.ID] = f
		b.workers.Add(1)
		go b.fly(f)
	}
}

// forget drops a lane whose endpoint left the manifest. Its deliveries stay in
// the store, and the poll brings the lane back with the endpoint.
func (b *Inbox) forget(l *lane) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l.up = false
	if l.inFlight == 0 {
		delete(b.lanes, l.id)
	}
}

// nextLook is how long the dispatcher may sleep when nothing wakes it.
func (b *Inbox) nextLook(poll time.Time) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	now, next := b.cfg.Now(), poll
	for _, l := range b.lanes {
		if at, ok := l.wakeAt(now); ok && at.Before(next) {
			next = at
		}
	}
	return max(0, next.Sub(now))
}

func (b *Inbox) leaseLength() time.Duration { return b.cfg.AttemptTimeout + leaseMargin }

// fly makes one attempt and writes down how it went. An attempt that was cut
// off by ourselves leaves no trace: its delivery belongs to whoever holds the
// lease now, or goes back as it was when Run ends.
func (b *Inbox) fly(f *flight) {
	defer b.workers.Done()
	defer f.cancel(nil)
	d := f.lease.Delivery
	a := b.try(f.ctx, f.ep, f.lease)
	next := d.Next(a, f.ep.Retry, b.cfg.Random())
	err := context.Cause(f.ctx)
	if err == nil || a.Outcome == relay.OutcomeDone || a.Outcome == relay.OutcomeRejected {
		err = b.finish(f, relay.Finish{Attempt: a, Next: next})
	}
	if err != nil {
		b.cfg.Logger.Info("attempt dropped", "app", d.App, "delivery", d.ID, "error", err)
		b.land(f, f.lane.dropped)
		return
	}
	if next.State == relay.DeliveryDead {
		b.cfg.Logger.Warn("delivery given up", "app", d.App, "endpoint", d.Endpoint,
			"event", d.Event, "delivery", d.ID, "attempts", next.Attempt, "status", a.Status)
	}
	b.land(f, func() { f.lane.ended(a.Outcome, next, b.cfg.Now()) })
}

// land takes f off the list, tells its lane and wakes the dispatcher.
func (b *Inbox) land(f *flight, tell func()) {
	b.mu.Lock()
	if b.flights[f.lease.Delivery.ID] == f { // not when it was claimed anew meanwhile
		delete(b.flights, f.lease.Delivery.ID)
	}
	tell()
	b.mu.Unlock()
	b.signal()
}

// finish writes the attempt down. While the store is down it tries again until
// the lease must have expired: what happened at the app cannot be learned a
// second time. The lane's place stays taken meanwhile, so that a relay without
// a store does not go on delivering.
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
func (b *Inbox) keepLeases(ctx context.Context, done *sync.WaitGroup) {
	defer done.Done()
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

// drain waits for the running attempts, and cancels those that are not done
// after DrainTimeout.
func (b *Inbox) drain(stopWork context.CancelCauseFunc) {
	cut := time.AfterFunc(b.cfg.DrainTimeout, func() { stopWork(errStopping) })
	defer cut.Stop()
	b.workers.Wait()
}
