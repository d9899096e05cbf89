package inbox

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/posternhq/postern/relay"
)

// How long the sender of a hybrid webhook is kept waiting, unless its endpoint
// says so itself: until the provider gives up, less a fifth for the way back, but
// at least minLiveMargin.
const (
	defaultLiveTime = 8 * time.Second
	minLiveMargin   = 500 * time.Millisecond
)

// Withheld reports whether an answer with status would make ep's provider drop
// the subscription, and is therefore not passed on to it.
func (b *Inbox) Withheld(ep relay.Endpoint, status int) bool {
	facts := b.cfg.Facts(ep.Provider)
	// 410 ends a subscription by the Standard Webhooks specification, and with many
	// senders whose own documents do not say so.
	ends := status == http.StatusGone && facts.NeedsSecret || slices.Contains(facts.Drops, status)
	return ends && !ep.AllowUnsubscribe
}

// liveTime is how long after its webhook arrived a sender is answered at the
// latest.
func (b *Inbox) liveTime(ep relay.Endpoint) time.Duration {
	if ep.Deadline > 0 {
		return ep.Deadline
	}
	given := b.cfg.Facts(ep.Provider).Deadline
	if given <= 0 {
		return defaultLiveTime
	}
	return max(given/2, given-max(given/5, minLiveMargin))
}

// reserve takes a place at the app for draft, which is tried as soon as it is
// stored. It gives nil when the app cannot be given it now: then it is stored
// like any other.
func (b *Inbox) reserve(ep relay.Endpoint, draft relay.Lease) *flight {
	dest, _ := ep.Destination("")
	up := b.cfg.Connected(ep.App)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.work == nil {
		return nil
	}
	now := b.cfg.Now()
	l := b.laneLocked(laneOf(draft.Delivery))
	l.look(dest, up, b.connected[ep.App], now)
	if !l.takesLive(now) {
		return nil
	}
	l.startLive()
	f := b.flightLocked(l, ep, dest, held{draft, now.Add(b.leaseLength())})
	f.live = make(chan *relay.Answer, 1)
	d := &f.lease.Delivery
	d.State, d.LeaseOwner, d.LeaseUntil, d.LeaseGen = relay.DeliveryLeased, b.cfg.Node, f.until, 1
	b.inHand += int64(len(draft.Event.Body))
	return f
}

// receiveLive stores f's event with its delivery leased, and makes the attempt
// at once. When the app's answer is there in time, it is the sender's; otherwise
// the same attempt goes on and decides what becomes of the delivery.
func (b *Inbox) receiveLive(ctx context.Context, f *flight) (relay.Receipt, *relay.Answer, error) {
	// A sender that goes away now must not leave a lease that nobody works on.
	commit, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
	defer cancel()
	receipt, err := b.accept(commit, relay.NewEvent{
		Event:      f.lease.Event,
		Deliveries: append([]relay.Delivery{f.lease.Delivery}, copies(f.ep, f.ready())...),
	})
	if err != nil || !receipt.Leased {
		b.unreserve(f)
		return receipt, nil, err
	}
	b.mu.Lock()
	b.flights[f.lease.Delivery.ID] = f
	b.mu.Unlock()
	left := b.liveTime(f.ep) - b.cfg.Now().Sub(f.lease.Event.ReceivedAt)
	go b.fly(f)
	return receipt, f.awaitAnswer(ctx, left), nil
}

// ready is f's lease as a delivery that nobody holds.
func (f *flight) ready() relay.Lease {
	l := f.lease
	d := &l.Delivery
	d.State, d.LeaseOwner, d.LeaseUntil, d.LeaseGen = relay.DeliveryReady, "", time.Time{}, 0
	return l
}

// awaitAnswer is the app's answer if it comes within left, else nil.
func (f *flight) awaitAnswer(ctx context.Context, left time.Duration) *relay.Answer {
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case answer := <-f.live:
		return answer
	case <-timer.C:
	case <-ctx.Done():
	}
	return nil
}

// unreserve gives the place of a flight back that does not take place.
func (b *Inbox) unreserve(f *flight) {
	f.cancel(nil)
	b.mu.Lock()
	f.lane.unstartLive()
	b.dropLocked(f.lease.Event)
	b.touchLocked(f.lane)
	b.mu.Unlock()
	b.workers.Done()
}

// answerFor is what the sender of f's webhook gets of an attempt that went like
// a, nil for 202: the app has to have answered, and not in a way that ends the
// subscription or that says it is not up yet.
func (b *Inbox) answerFor(f *flight, a relay.Attempt, answer *relay.Answer) *relay.Answer {
	if answer == nil || a.Outcome != relay.OutcomeDone && a.Outcome != relay.OutcomeRejected {
		return nil
	}
	if b.Withheld(f.ep, answer.Status) {
		b.cfg.Logger.Warn("the app's answer was not passed on, it would end the subscription",
			"app", f.ep.App, "endpoint", f.ep.Name, "event", f.lease.Event.ID, "status", answer.Status)
		return nil
	}
	return answer
}
