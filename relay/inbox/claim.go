package inbox

import (
	"context"
	"sync"
	"time"

	"github.com/posternhq/postern/relay"
)

// Bounds of what is claimed by the whole node: bodies are held in memory from
// the claim to the end of the attempt.
const (
	maxInHand = 64 << 20 // beyond, a lane that has something in hand claims nothing
	maxClaim  = 16 << 20 // bytes of bodies in one claim
	maxClaims = 8        // at once
)

// claimLocked starts a claim of n deliveries for l, or has l wait for room.
func (b *Inbox) claimLocked(ctx context.Context, l *lane, n int) {
	size := min(maxInHand-b.inHand, maxClaim)
	idle := l.inFlight+l.landing+len(l.held) == 0
	if b.claims >= maxClaims || size <= 0 && !idle {
		l.waiting = true
		b.waiting[l] = true
		return
	}
	if size <= 0 {
		n, size = 1, 1 // always one, or an endpoint could keep the others from theirs
	}
	l.claim()
	b.claims++
	b.workers.Add(1)
	go b.claim(ctx, l, n, size)
}

// claim takes in hand up to limit due deliveries of l. Once ctx has ended it
// leaves them to Run, which gives back whatever was claimed.
func (b *Inbox) claim(ctx context.Context, l *lane, limit int, maxBytes int64) {
	defer b.workers.Done()
	now := b.cfg.Now()
	until := now.Add(b.leaseLength())
	call, cancel := context.WithTimeout(ctx, storeTimeout)
	leases, err := b.cfg.Store.ClaimDeliveries(call, relay.Claim{
		Owner: b.cfg.Node, App: l.id.app, Endpoint: l.id.endpoint, Destination: l.id.destination,
		Limit: limit, MaxBytes: maxBytes, Now: now, Until: until,
	})
	cancel()
	took := b.cfg.Now().Sub(now)
	if err != nil && ctx.Err() == nil {
		b.cfg.Logger.Warn("deliveries not claimed", "app", l.id.app, "endpoint", l.id.endpoint,
			"destination", l.id.destination, "error", err)
	}
	whole := leases[:0]
	for _, lease := range leases {
		if lease.Event.Body == nil && lease.Event.BodySize > 0 {
			b.bury(ctx, lease)
			continue
		}
		whole = append(whole, lease)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.claims--
	if err != nil {
		l.claimFailed(b.cfg.Now())
	} else {
		for _, lease := range whole {
			b.inHand += int64(len(lease.Event.Body))
		}
		l.claimed(whole, until, took, limit-(len(leases)-len(whole)), maxBytes)
	}
	b.touchLocked(l)
	b.roomLocked()
}

// roomLocked has some of the lanes looked at that waited for room on the node,
// and all of them when no claim is left whose end would call again.
func (b *Inbox) roomLocked() {
	n := 2 * maxClaims
	if b.claims == 0 {
		n = len(b.waiting)
	}
	for l := range b.waiting {
		if n == 0 {
			return
		}
		n--
		delete(b.waiting, l)
		l.waiting = false
		b.touchLocked(l)
	}
}

// dropLocked notes that a body is in hand no more.
func (b *Inbox) dropLocked(e relay.Event) {
	before := b.inHand
	b.inHand -= int64(len(e.Body))
	if before >= maxInHand && b.inHand < maxInHand {
		b.roomLocked()
	}
}

// bury gives up a delivery whose body is not there any more. When the store does
// not take that, the lease ends and it comes here again.
func (b *Inbox) bury(ctx context.Context, l relay.Lease) {
	now := b.cfg.Now()
	a := relay.Attempt{
		Delivery: l.Delivery.ID, StartedAt: now, EndedAt: now, Outcome: relay.OutcomeUnsent,
		Error: "the event's body is gone: retention deleted it, or it is damaged",
	}
	next := l.Delivery
	next.State, next.LeaseOwner, next.LeaseUntil, next.LastError = relay.DeliveryDead, "", time.Time{}, a.Error
	call, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	if err := b.cfg.Store.FinishAttempt(call, relay.Finish{Attempt: a, Next: next}); err != nil {
		b.cfg.Logger.Warn("attempt dropped", "app", next.App, "delivery", next.ID, "error", err)
		return
	}
	b.cfg.Logger.Error("delivery given up", "app", next.App, "endpoint", next.Endpoint,
		"event", next.Event, "delivery", next.ID, "error", a.Error)
	b.finished(l.Event, next, a)
	if next.OrderKey != "" {
		b.hint(laneOf(next), now)
	}
}

// giveBackLocked starts to give back what l has in hand without need.
func (b *Inbox) giveBackLocked(l *lane, now time.Time) {
	surplus := l.surplus(now, b.leaseLength())
	if len(surplus) == 0 || b.work == nil {
		return // Run gives back the rest
	}
	for _, h := range surplus {
		b.dropLocked(h.lease.Event)
	}
	b.workers.Add(1)
	go b.giveBack(b.work, l.id, surplus)
}

// giveBack makes deliveries ready that were claimed and not started. It moves the
// end of their leases into the past and has the ended ones reclaimed; those for
// which that fails are reclaimed when their leases end by themselves.
func (b *Inbox) giveBack(ctx context.Context, id laneID, surplus []held) {
	defer b.workers.Done()
	call, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	now := b.cfg.Now()
	var calls sync.WaitGroup
	for _, h := range surplus {
		calls.Go(func() {
			d := h.lease.Delivery
			err := b.cfg.Store.ExtendLease(call, d.ID, d.LeaseGen, now.Add(-time.Millisecond))
			if err != nil && ctx.Err() == nil && relay.CodeOf(err) != relay.Conflict {
				b.cfg.Logger.Warn("lease not given back", "delivery", d.ID, "error", err)
			}
		})
	}
	calls.Wait()
	b.reclaim(call, now)
	b.hint(id, now)
}
