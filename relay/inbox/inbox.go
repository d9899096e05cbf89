// Package inbox keeps webhooks until their app has taken them: it checks and
// commits what comes in, and hands it to the app, again and again on a schedule,
// until the app says 2xx or the schedule is used up.
//
// It listens nowhere and knows neither tunnels nor providers nor databases:
// relay/node gives it a store, a function that verifies, and an
// http.RoundTripper that reaches apps. It does not proxy requests whose sender
// waits for the app's answer (sync mode); it only names and records them.
//
// The one rule to know: what Receive accepted is in the store, and it leaves
// the unfinished there only when an attempt's outcome was written under the
// lease it was claimed with. Everything in memory is a hint that may be lost.
// So an event is delivered at least once, and the app tells repeats apart by
// Postern-Event-Id.
package inbox

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/posternhq/postern/relay"
)

// Config is what an Inbox is made of.
type Config struct {
	Store relay.EventStore // required
	Node  string           // owner of this process's leases; required, the same after a restart

	// Verify judges a webhook by the rules of the endpoint's provider; required.
	Verify func(ep relay.Endpoint, in relay.Incoming) relay.Verdict

	// Endpoint finds an endpoint in the manifest as it is now; required.
	Endpoint func(app relay.AppID, name string) (relay.Endpoint, bool)

	// App reaches apps; required. Requests have the scheme "http" and the app's
	// id as their URL's host. It must give up when the request's context ends,
	// and say with a *relay.Error when no byte reached an app.
	App http.RoundTripper

	// Connected reports whether an agent of the app is here; required.
	Connected func(app relay.AppID) bool

	AttemptTimeout time.Duration // how long an app may be silent; default 60 s
	DrainTimeout   time.Duration // how long running attempts may go on after Run is told to stop; default 10 s
	Poll           time.Duration // how often the store is asked what the hints may have missed; default 5 s
	Retention      time.Duration // how long an event is kept; default 30 days

	Now    func() time.Time // default time.Now
	Random func() float64   // uniform in [0, 1); default math/rand/v2
	Logger *slog.Logger     // default discards
}

func (c Config) withDefaults() Config {
	if c.Store == nil || c.Node == "" || c.Verify == nil || c.Endpoint == nil || c.App == nil || c.Connected == nil {
		panic("inbox: Config lacks a required field")
	}
	setDefault(&c.AttemptTimeout, 60*time.Second)
	setDefault(&c.DrainTimeout, 10*time.Second)
	setDefault(&c.Poll, 5*time.Second)
	setDefault(&c.Retention, 30*24*time.Hour)
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Random == nil {
		c.Random = rand.Float64
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

func setDefault(d *time.Duration, value time.Duration) {
	if *d <= 0 {
		*d = value
	}
}

// Inbox accepts webhooks and delivers them. Receive, Check, Draft, Request,
// RecordSync and AgentConnected may be called at any time from any goroutine;
// Run delivers, and is called once.
type Inbox struct {
	cfg Config

	wake    chan struct{}  // capacity 1: "look at the lanes again"
	workers sync.WaitGroup // the attempts that Run started

	mu      sync.Mutex
	lanes   map[laneID]*lane
	flights map[relay.DeliveryID]*flight
}

// New makes an Inbox and starts nothing. It panics when a required field of
// cfg is missing.
func New(cfg Config) *Inbox {
	return &Inbox{
		cfg:     cfg.withDefaults(),
		wake:    make(chan struct{}, 1),
		lanes:   make(map[laneID]*lane),
		flights: make(map[relay.DeliveryID]*flight),
	}
}

// Receive verifies in, commits it and lets the worker know. When it returns
// without an error the event outlives a power cut and may be acknowledged.
//
// Errors are *relay.Error: BadSignature with the provider's reason, Invalid,
// TooLarge, and Unavailable when the store did not commit.
func (b *Inbox) Receive(ctx context.Context, ep relay.Endpoint, in relay.Incoming) (relay.Receipt, error) {
	in = b.dated(in)
	verdict, err := b.Check(ep, in)
	if err != nil {
		return relay.Receipt{}, err
	}
	draft := b.Draft(ep, in, verdict)
	receipt, err := b.commit(ctx, relay.NewEvent{
		Event:      draft.Event,
		Deliveries: []relay.Delivery{draft.Delivery},
	})
	if err != nil {
		return relay.Receipt{}, err
	}
	if !receipt.Duplicate || receipt.Requeued {
		b.hint(ep.App, ep.Name, b.cfg.Now())
	}
	return receipt, nil
}

// Check says whether in may be accepted at ep, without storing anything. Errors
// are the ones of Receive, without Unavailable.
func (b *Inbox) Check(ep relay.Endpoint, in relay.Incoming) (relay.Verdict, error) {
	if ep.MaxBody > 0 && int64(len(in.Body)) > ep.MaxBody {
		return relay.Verdict{}, relay.Errorf(relay.TooLarge, "the body is longer than %d bytes", ep.MaxBody)
	}
	if !safeTarget(in.Target) {
		return relay.Verdict{}, relay.Errorf(relay.Invalid, "the path does not stay below the endpoint's")
	}
	verdict := b.cfg.Verify(ep, b.dated(in))
	if !verdict.OK {
		return verdict, &relay.Error{Code: relay.BadSignature, Message: verdict.Reason}
	}
	return verdict, nil
}

// Draft makes the event and the delivery that in becomes, with their ids.
// Nothing is stored yet. The event shares in's body.
func (b *Inbox) Draft(ep relay.Endpoint, in relay.Incoming, v relay.Verdict) relay.Lease {
	in, now := b.dated(in), b.cfg.Now()
	event := relay.Event{
		ID: relay.NewEventID(now), App: ep.App, Endpoint: ep.Name, ReceivedAt: in.ReceivedAt,
		Method: in.Method, Target: in.Target, PublicURL: in.PublicURL,
		Header: fieldsOf(in.Header), Body: in.Body, RemoteIP: in.RemoteIP,
		Type: v.Type, SentAt: v.SentAt, DedupeKey: v.DedupeKey, Verified: v.Verified,
		ExpiresAt: in.ReceivedAt.Add(b.cfg.Retention),
	}
	delivery := relay.Delivery{
		ID: relay.NewDeliveryID(now), Event: event.ID, App: ep.App, Endpoint: ep.Name,
		OrderKey: orderKey(ep.OrderBy, in.Body),
		// Due at once, also in a store that keeps milliseconds and rounds up.
		State: relay.DeliveryReady, NextAt: now.Truncate(time.Millisecond),
	}
	return relay.Lease{Delivery: delivery, Event: event}
}

// dated is in with a time of arrival. Without one, no timestamp would ever be
// too old.
func (b *Inbox) dated(in relay.Incoming) relay.Incoming {
	if in.ReceivedAt.IsZero() {
		in.ReceivedAt = b.cfg.Now()
	}
	return in
}

// RecordSync stores a draft that the caller has already tried on the app, while
// the sender waited, with the one attempt made. Its delivery is final, done or
// dead: the sender got the app's answer, and tries again itself if it likes.
//
// The error is an *relay.Error with code Unavailable.
func (b *Inbox) RecordSync(ctx context.Context, draft relay.Lease, a relay.Attempt) (relay.Receipt, error) {
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
	return b.commit(ctx, relay.NewEvent{
		Event:      event,
		Deliveries: []relay.Delivery{delivery},
		Attempts:   []relay.Attempt{a},
	})
}

func (b *Inbox) commit(ctx context.Context, e relay.NewEvent) (relay.Receipt, error) {
	receipts, err := b.cfg.Store.CreateEvents(ctx, []relay.NewEvent{e})
	if err != nil {
		// Whatever it is, it is our fault and may pass: the sender must try again.
		return relay.Receipt{}, &relay.Error{
			Code: relay.Unavailable, Message: "the event could not be stored", Err: err,
		}
	}
	return receipts[0], nil
}
