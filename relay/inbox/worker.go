package inbox

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/posternhq/postern/relay"
)

// storeTimeout bounds the worker's calls to the store, also the ones that must
// be made although everything is being stopped.
const storeTimeout = 5 * time.Second

// Run delivers until ctx ends. Then it claims nothing more, lets the running
// attempts finish within DrainTimeout, cancels the others, gives back what it
// still holds and returns when everything it started is gone. The error is only
// about giving back: those deliveries wait until their leases expire, or until
// the node starts again.
func (b *Inbox) Run(ctx context.Context) error {
	b.releaseAtStart(ctx)

	work, stopWork := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stopWork(nil)
	var helpers sync.WaitGroup
	helpers.Go(func() { b.keepLeases(work) })
	helpers.Go(func() { b.poll(ctx) })
	helpers.Go(func() { b.keepRefusals(ctx) })
	helpers.Go(func() { b.replay(ctx) })
	helpers.Go(func() { b.expire(ctx) })

	b.startAttempts(work)
	b.dispatch(ctx)
	b.stopAttempts()
	b.drain(stopWork)
	stopWork(nil)
	helpers.Wait()

	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	if _, err := b.cfg.Store.ReleaseLeases(end, b.cfg.Node); err != nil {
		return fmt.Errorf("release leases: %w", err)
	}
	return nil
}

// startAttempts says that attempts may start, in this context.
func (b *Inbox) startAttempts(work context.Context) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.work = work
}

// stopAttempts says that no attempt may start any more.
func (b *Inbox) stopAttempts() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.work = nil
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

// drain waits for the running attempts, and cancels those that are not done
// after DrainTimeout.
func (b *Inbox) drain(stopWork context.CancelCauseFunc) {
	cut := time.AfterFunc(b.cfg.DrainTimeout, func() { stopWork(errStopping) })
	defer cut.Stop()
	b.workers.Wait()
}

// AgentConnected tells the worker that an agent of app is there: what waited for
// one goes out now.
func (b *Inbox) AgentConnected(app relay.AppID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.connected[app] = b.cfg.Now()
	for id, l := range b.lanes {
		if id.app == app {
			l.resume()
			b.touchLocked(l)
		}
	}
}

// hint notes that lane id has a delivery due at t.
func (b *Inbox) hint(id laneID, t time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.laneLocked(id)
	if t.After(b.cfg.Now()) {
		l.expect(t)
	} else {
		l.expectNow()
	}
	b.touchLocked(l)
}

func (b *Inbox) laneLocked(id laneID) *lane {
	l := b.lanes[id]
	if l == nil {
		l = &lane{id: id}
		b.lanes[id] = l
	}
	return l
}

// touchLocked has the dispatcher look at l.
func (b *Inbox) touchLocked(l *lane) {
	b.touched[l] = true
	poke(b.wake)
}

// dispatch looks at the lanes of which something may have changed, until ctx
// ends. It makes no call that could wait.
func (b *Inbox) dispatch(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		for _, l := range b.toLookAt() {
			b.serve(ctx, l)
		}
		timer.Reset(b.untilAlarm())
		select {
		case <-ctx.Done():
		case <-b.wake:
		case <-timer.C:
		}
	}
}

// toLookAt is the lanes that were touched, and all when the time of one has come.
func (b *Inbox) toLookAt() []*lane {
	b.mu.Lock()
	defer b.mu.Unlock()
	if now := b.cfg.Now(); !now.Before(b.alarm) {
		b.alarm = now.Add(b.cfg.Poll)
		for _, l := range b.lanes {
			b.touched[l] = true
		}
	}
	lanes := make([]*lane, 0, len(b.touched))
	for l := range b.touched {
		lanes = append(lanes, l)
	}
	clear(b.touched)
	return lanes
}

func (b *Inbox) untilAlarm() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return max(0, b.alarm.Sub(b.cfg.Now()))
}

// destination finds where lane id goes in the manifest as it is now.
func (b *Inbox) destination(id laneID) (relay.Endpoint, relay.Destination, bool) {
	ep, known := b.cfg.Endpoint(id.app, id.endpoint)
	if !known {
		return ep, relay.Destination{}, false
	}
	d, known := ep.Destination(id.destination)
	return ep, d, known
}

// reachable reports whether there is somebody who could take d's deliveries.
func (b *Inbox) reachable(app relay.AppID, d relay.Destination) bool {
	if d.URL != "" {
		return b.cfg.URLs != nil
	}
	return b.cfg.Connected(app)
}

// serve starts what may start, and claims what is wanted besides.
func (b *Inbox) serve(ctx context.Context, l *lane) {
	ep, dest, known := b.destination(l.id)
	up := known && b.reachable(l.id.app, dest)
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.cfg.Now()
	if !known {
		b.forgetLocked(l, now)
		return
	}
	connected := b.connected[l.id.app]
	if dest.URL != "" {
		connected = time.Time{}
	}
	l.look(dest, up, connected, now)
	if !up && dest.URL == "" && l.due() && b.cfg.Absent != nil {
		b.cfg.Absent(l.id.app)
	}
	b.giveBackLocked(l, now)
	for h, probe, ok := l.next(now); ok; h, probe, ok = l.next(now) {
		f := b.flightLocked(l, ep, dest, h)
		f.probe = probe
		b.flights[h.lease.Delivery.ID] = f
		go b.fly(f)
	}
	if n := l.wants(now); n > 0 && ctx.Err() == nil {
		b.claimLocked(ctx, l, n)
	}
	if at, ok := l.wakeAt(now); ok && at.Before(b.alarm) {
		b.alarm = at
	}
}

// forgetLocked drops a lane whose destination left the manifest. Its deliveries
// stay in the store, and the poll brings the lane back with the destination.
func (b *Inbox) forgetLocked(l *lane, now time.Time) {
	l.up = false
	b.giveBackLocked(l, now)
	if l.inFlight == 0 && l.landing == 0 && !l.claiming {
		delete(b.waiting, l)
		delete(b.lanes, l.id)
	}
}

// poll asks the store what the hints do not know, now and then, until ctx ends.
func (b *Inbox) poll(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-b.pollNow:
		case <-timer.C:
		}
		b.askStore(ctx)
		timer.Reset(b.cfg.Poll)
	}
}

// askStore finds deliveries of before this process, of other nodes, and of leases
// that expired.
func (b *Inbox) askStore(ctx context.Context) {
	call, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	b.reclaim(call, b.cfg.Now())
	if b.cfg.Quota != nil {
		if err := b.measure(call); err != nil && ctx.Err() == nil {
			b.cfg.Logger.Warn("usage not read", "error", err)
		}
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
			b.hint(laneID{backlog.App, backlog.Endpoint, backlog.Destination}, backlog.NextAt)
		}
	}
}

// reclaim makes ready what was leased until before now.
func (b *Inbox) reclaim(ctx context.Context, now time.Time) {
	n, err := b.cfg.Store.ReclaimExpired(ctx, now)
	if err != nil && ctx.Err() == nil {
		b.cfg.Logger.Warn("expired leases not reclaimed", "error", err)
	} else if n > 0 {
		b.cfg.Logger.Info("leases reclaimed", "deliveries", n)
	}
}
