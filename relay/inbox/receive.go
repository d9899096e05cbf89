package inbox

import (
	"context"
	"errors"
	"time"

	"github.com/posternhq/postern/relay"
)

// Receive verifies in, commits it and lets the worker know. When it returns
// without an error the event outlives a power cut and may be acknowledged.
//
// Errors are *relay.Error: BadSignature with the provider's reason, Invalid,
// TooLarge, and Unavailable when the store did not commit or, with the reason
// "quota", the app's share of it is used up.
//
// An Answer, when there is one, is what the sender is to get instead of 202: the
// relay's own to a handshake, which leaves no event, or the app's in hybrid mode.
func (b *Inbox) Receive(ctx context.Context, ep relay.Endpoint, in relay.Incoming) (relay.Receipt, *relay.Answer, error) {
	in = b.dated(in)
	verdict, err := b.Check(ctx, ep, in)
	if err != nil || verdict.Answer != nil {
		return relay.Receipt{}, verdict.Answer, err
	}
	if err := b.admit(ep.App); err != nil {
		return relay.Receipt{}, nil, err
	}
	draft := b.Draft(ep, in, verdict)
	if ep.Mode == relay.ModeHybrid {
		if f := b.reserve(ep, draft); f != nil {
			return b.receiveLive(ctx, f)
		}
	}
	receipt, err := b.accept(ctx, relay.NewEvent{
		Event:      draft.Event,
		Deliveries: append([]relay.Delivery{draft.Delivery}, copies(ep, draft)...),
	})
	return receipt, nil, err
}

// Check says whether in may be accepted at ep, without storing it. Errors are
// the ones of Receive, without Unavailable. A webhook that is refused is noted
// for those who want to know why, in the background.
//
// A handshake is no error, whether it passed or not: its verdict has an Answer.
func (b *Inbox) Check(ctx context.Context, ep relay.Endpoint, in relay.Incoming) (relay.Verdict, error) {
	if ep.MaxBody > 0 && int64(len(in.Body)) > ep.MaxBody {
		return relay.Verdict{}, relay.Errorf(relay.TooLarge, "the body is longer than %d bytes", ep.MaxBody)
	}
	if !safeTarget(in.Target) {
		return relay.Verdict{}, relay.Errorf(relay.Invalid, "the path does not stay below the endpoint's")
	}
	in = b.dated(in)
	verdict := b.cfg.Verify(ctx, ep, in)
	if !verdict.OK && verdict.Answer == nil {
		b.refuse(ep, in, verdict)
		return verdict, &relay.Error{Code: relay.BadSignature, Message: verdict.Reason}
	}
	if !verdict.OK {
		b.cfg.Logger.Warn("webhook answered by its provider's rules", "app", ep.App, "endpoint", ep.Name,
			"provider", ep.Provider, "status", verdict.Answer.Status, "reason", verdict.Reason)
	}
	return verdict, nil
}

// Draft makes the event that in becomes, and its delivery to the app, with their
// ids. Nothing is stored yet. The event shares in's body.
func (b *Inbox) Draft(ep relay.Endpoint, in relay.Incoming, v relay.Verdict) relay.Lease {
	in, now := b.dated(in), b.cfg.Now()
	event := eventOf(ep, in, v, now)
	delivery := relay.Delivery{
		ID: relay.NewDeliveryID(now), Event: event.ID, App: ep.App, Endpoint: ep.Name,
		OrderKey: orderKey(ep.OrderBy, in.Body),
		// Due at once, also in a store that keeps milliseconds and rounds up.
		State: relay.DeliveryReady, NextAt: now.Truncate(time.Millisecond),
	}
	return relay.Lease{Delivery: delivery, Event: event}
}

// eventOf is in as it is stored.
func eventOf(ep relay.Endpoint, in relay.Incoming, v relay.Verdict, now time.Time) relay.Event {
	keep := ep.Retention
	if keep.Events <= 0 {
		keep.Events = relay.DefaultRetention.Events
	}
	if keep.Bodies <= 0 {
		keep.Bodies = relay.DefaultRetention.Bodies
	}
	return relay.Event{
		ID: relay.NewEventID(now), App: ep.App, Endpoint: ep.Name, ReceivedAt: in.ReceivedAt,
		Method: in.Method, Target: in.Target, PublicURL: in.PublicURL,
		Header: relay.FieldsOf(in.Header), Body: in.Body, RemoteIP: in.RemoteIP,
		Type: v.Type, SentAt: v.SentAt, DedupeKey: v.DedupeKey, Verified: v.Verified,
		BodyExpiresAt: in.ReceivedAt.Add(min(keep.Bodies, keep.Events)),
		ExpiresAt:     in.ReceivedAt.Add(keep.Events), BodySize: int64(len(in.Body)),
	}
}

// copies are the deliveries of draft's event to ep's other destinations.
func copies(ep relay.Endpoint, draft relay.Lease) []relay.Delivery {
	var all []relay.Delivery
	for _, d := range ep.Destinations {
		if !d.Filter.Match(&draft.Event) {
			continue
		}
		c := draft.Delivery
		c.ID, c.Destination = relay.NewDeliveryID(c.NextAt), d.Name
		all = append(all, c)
	}
	return all
}

// dated is in with a time of arrival. Without one, no timestamp would ever be
// too old.
func (b *Inbox) dated(in relay.Incoming) relay.Incoming {
	if in.ReceivedAt.IsZero() {
		in.ReceivedAt = b.cfg.Now()
	}
	// What a store keeps: the app must see the same time at each attempt.
	in.ReceivedAt = in.ReceivedAt.Truncate(time.Microsecond)
	return in
}

// RecordSync stores a draft that the caller has already tried on the app, while
// the sender waited, with the one attempt made. Its delivery is final, done or
// dead: the sender got the app's answer, and tries again itself if it likes. The
// endpoint's other destinations get the event as they always do.
//
// The error is an *relay.Error with code Unavailable.
func (b *Inbox) RecordSync(ctx context.Context, draft relay.Lease, a relay.Attempt) (relay.Receipt, error) {
	if err := b.admit(draft.Event.App); err != nil {
		return relay.Receipt{}, err
	}
	event, delivery := draft.Event, draft.Delivery
	// Every try of the sender is an event of its own here. With its key, a later
	// one would be taken for a duplicate of the first, not be recorded, and bring
	// a dead delivery back to life behind the sender's back.
	event.DedupeKey = ""
	a.Delivery, a.Number = delivery.ID, 1
	delivery.Attempt, delivery.LastStatus, delivery.LastError = 1, a.Status, a.Error
	delivery.State = relay.DeliveryDead
	if a.Outcome == relay.OutcomeDone {
		delivery.State = relay.DeliveryDone
	}
	deliveries := []relay.Delivery{delivery}
	if ep, known := b.cfg.Endpoint(event.App, event.Endpoint); known {
		deliveries = append(deliveries, copies(ep, draft)...)
	}
	receipt, err := b.accept(ctx, relay.NewEvent{
		Event: event, Deliveries: deliveries, Attempts: []relay.Attempt{a},
	})
	if err == nil {
		b.noteAttempt(event, delivery, a)
	}
	return receipt, err
}

// accept commits e and tells everybody who waits for something like it.
func (b *Inbox) accept(ctx context.Context, e relay.NewEvent) (relay.Receipt, error) {
	receipts, err := b.cfg.Store.CreateEvents(ctx, []relay.NewEvent{e})
	if err != nil {
		return relay.Receipt{}, unstored(err)
	}
	receipt := receipts[0]
	if receipt.Duplicate {
		b.cfg.Logger.Debug("duplicate webhook", "app", e.Event.App, "endpoint", e.Event.Endpoint,
			"event", receipt.ID, "requeued", receipt.Requeued)
	} else {
		b.usage.add(e)
		b.note(relay.Notice{Kind: relay.NoticeReceived, At: b.cfg.Now(), Event: e.Event})
	}
	if !receipt.Duplicate || receipt.Requeued {
		b.hintNew(e, receipt)
	}
	return receipt, nil
}

// unstored is the answer for what the store did not take. Whatever the reason is,
// it is our fault and may pass: the sender must try again.
func unstored(err error) error {
	answer := &relay.Error{Code: relay.Unavailable, Message: "the event could not be stored", Err: err}
	var known *relay.Error
	if errors.As(err, &known) && known.Code == relay.Unavailable {
		answer.Reason, answer.Message = known.Reason, known.Message
	}
	return answer
}

// Admit reports whether a sync event of size bytes may go to the app now: what
// could not be recorded afterwards is not begun. Errors are Unavailable.
func (b *Inbox) Admit(ctx context.Context, ep relay.Endpoint, size int64) error {
	if err := b.admit(ep.App); err != nil {
		return err
	}
	if err := b.cfg.Store.Room(ctx, size); err != nil {
		return unstored(err)
	}
	return nil
}

// hintNew tells the lanes of e's deliveries that they have something.
func (b *Inbox) hintNew(e relay.NewEvent, receipt relay.Receipt) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, d := range e.Deliveries {
		if d.State == relay.DeliveryReady || d.State == relay.DeliveryLeased && !receipt.Leased {
			l := b.laneLocked(laneOf(d))
			l.largest = max(l.largest, e.Event.BodySize)
			l.expectNow()
			b.touchLocked(l)
		}
	}
}
