// Package storetest is the contract of relay.Store as a test suite: what the
// comments of that interface promise, sentence by sentence. Every
// implementation runs it, and a new sentence there gets a new test here.
//
// It does not test what one database alone can do wrong (damaged files, crashes,
// slow plans); that stays beside the implementation.
//
// The one rule to know: a test may use the store it got and nothing else, since
// all of them run in parallel, each with an empty store of its own. Times are
// whole microseconds, which is what every implementation must keep.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/posternhq/postern/relay"
)

// Run checks the stores that open gives. open is called once for every test,
// returns an empty store, and closes it when its test is over; closing twice
// must be harmless, as some tests close the store themselves.
func Run(t *testing.T, open func(t *testing.T) relay.Store) {
	groups := map[string][]test{
		"apps":       appTests(),
		"tokens":     tokenTests(),
		"events":     eventTests(),
		"duplicates": duplicateTests(),
		"claims":     claimTests(),
		"backlogs":   backlogTests(),
		"order":      orderTests(),
		"leases":     leaseTests(),
		"attempts":   attemptTests(),
		"accepting":  acceptTests(),
		"requeues":   requeueByHandTests(),
		"search":     searchTests(),
		"retention":  retentionTests(),
		"replays":    replayTests(),
		"last words": lastWordsTests(),
		"manifests":  append(manifestTests(), manifestChangeTests()...),
		"orders":     egressOrderTests(),
		"flows":      flowTests(),
		"audit":      auditTests(),
		"failures":   failureTests(),
	}
	for name, tests := range groups {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, tt := range tests {
				t.Run(tt.name, func(t *testing.T) {
					t.Parallel()
					tt.run(&fixture{T: t, ctx: t.Context(), store: open(t)})
				})
			}
		})
	}
}

// test is one sentence of the contract.
type test struct {
	name string
	run  func(f *fixture)
}

// fixture is a test with its store.
type fixture struct {
	*testing.T
	ctx   context.Context
	store relay.Store
}

// The app and endpoint of events unless a test says otherwise.
const (
	app      = relay.AppID("shop")
	endpoint = "stripe"
)

// start is when every test begins.
func start() time.Time { return time.Date(2026, 3, 4, 5, 6, 7, 890123000, time.UTC) }

// later is d after the start.
func later(d time.Duration) time.Time { return start().Add(d) }

// newEvent is an event "evt_<name>" with one ready delivery "dlv_<name>".
func newEvent(name string, change ...func(*relay.NewEvent)) relay.NewEvent {
	n := relay.NewEvent{
		Event: relay.Event{
			ID: relay.EventID("evt_" + name), App: app, Endpoint: endpoint, ReceivedAt: start(),
			Method: "POST", Body: []byte("body of " + name), ExpiresAt: later(24 * time.Hour),
		},
		Deliveries: []relay.Delivery{{
			ID: relay.DeliveryID("dlv_" + name), Event: relay.EventID("evt_" + name),
			App: app, Endpoint: endpoint, NextAt: start(),
		}},
	}
	for _, c := range change {
		c(&n)
	}
	return n
}

// The changes to a newEvent that several tests make.

func dedupe(key string) func(*relay.NewEvent) {
	return func(n *relay.NewEvent) { n.Event.DedupeKey = key }
}

func ordered(key string) func(*relay.NewEvent) {
	return func(n *relay.NewEvent) { n.Deliveries[0].OrderKey = key }
}

func due(at time.Time) func(*relay.NewEvent) {
	return func(n *relay.NewEvent) { n.Deliveries[0].NextAt = at }
}

func state(s relay.DeliveryState) func(*relay.NewEvent) {
	return func(n *relay.NewEvent) { n.Deliveries[0].State = s }
}

func to(destination string) func(*relay.NewEvent) {
	return func(n *relay.NewEvent) { n.Deliveries[0].Destination = destination }
}

func of(a relay.AppID, endpoint string) func(*relay.NewEvent) {
	return func(n *relay.NewEvent) {
		n.Event.App, n.Event.Endpoint = a, endpoint
		for i := range n.Deliveries {
			n.Deliveries[i].App, n.Deliveries[i].Endpoint = a, endpoint
		}
	}
}

// must stops the test on an error.
func (f *fixture) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

// wantCode stops the test unless err has the code.
func (f *fixture) wantCode(err error, code relay.Code) {
	f.Helper()
	if err == nil || relay.CodeOf(err) != code {
		f.Fatalf("got error %v with code %q, want code %q", err, relay.CodeOf(err), code)
	}
}

// wantNoCode stops the test unless err is a failure that nobody branches on.
func (f *fixture) wantNoCode(err error) {
	f.Helper()
	if err == nil || relay.CodeOf(err) != "" {
		f.Fatalf("got error %v with code %q, want an error without code", err, relay.CodeOf(err))
	}
}

// create stores events, each in its own call.
func (f *fixture) create(events ...relay.NewEvent) {
	f.Helper()
	for _, e := range events {
		r := f.createOne(e)
		leased := slices.ContainsFunc(e.Deliveries, func(d relay.Delivery) bool { return d.State == relay.DeliveryLeased })
		if r != (relay.Receipt{ID: e.Event.ID, Leased: leased}) {
			f.Fatalf("receipt of a new event: %+v", r)
		}
	}
}

// createOne stores one event and returns its receipt.
func (f *fixture) createOne(e relay.NewEvent) relay.Receipt {
	f.Helper()
	receipts, err := f.store.CreateEvents(f.ctx, []relay.NewEvent{e})
	f.must(err)
	if len(receipts) != 1 {
		f.Fatalf("%d receipts for one event", len(receipts))
	}
	return receipts[0]
}

// claimAt claims up to limit deliveries as node "n1", for a minute.
func (f *fixture) claimAt(now time.Time, limit int) []relay.Lease {
	f.Helper()
	leases, err := f.store.ClaimDeliveries(f.ctx, relay.Claim{
		Owner: "n1", App: app, Endpoint: endpoint, Limit: limit, Now: now, Until: now.Add(time.Minute),
	})
	f.must(err)
	return leases
}

// claimOne claims at the start and wants exactly this delivery.
func (f *fixture) claimOne(id relay.DeliveryID) relay.Delivery {
	f.Helper()
	leases := f.claimAt(start(), 1)
	if len(leases) != 1 || leases[0].Delivery.ID != id {
		f.Fatalf("claimed %v, want %s", ids(leases), id)
	}
	return leases[0].Delivery
}

// wantClaim claims everything due at now and wants these, in this order.
func (f *fixture) wantClaim(now time.Time, want ...relay.DeliveryID) {
	f.Helper()
	if got := ids(f.claimAt(now, 100)); !slices.Equal(got, want) {
		f.Fatalf("claimed %v, want %v", got, want)
	}
}

// finish ends the claimed d: it becomes s, due again at next.
func (f *fixture) finish(d relay.Delivery, s relay.DeliveryState, next time.Time) error {
	a := relay.Attempt{Delivery: d.ID, StartedAt: start(), EndedAt: start()}
	d.State, d.NextAt, d.LeaseOwner, d.LeaseUntil = s, next, "", time.Time{}
	return f.store.FinishAttempt(f.ctx, relay.Finish{Attempt: a, Next: d})
}

// delivery reads one delivery of "evt_<name>" back.
func (f *fixture) delivery(name string) relay.Delivery {
	f.Helper()
	all, err := f.store.Deliveries(f.ctx, relay.EventID("evt_"+name))
	f.must(err)
	for _, d := range all {
		if d.ID == relay.DeliveryID("dlv_"+name) {
			return d
		}
	}
	f.Fatalf("dlv_%s is not among %+v", name, all)
	return relay.Delivery{}
}

// wantEqual compares what came back with what was stored.
func wantEqual[T any](f *fixture, what string, got, want T) {
	f.Helper()
	if !reflect.DeepEqual(got, want) {
		f.Fatalf("%s:\n got %+v\nwant %+v", what, got, want)
	}
}

// wantEvent compares two events with their bodies, without printing long ones.
// The store fills in BodySize.
func (f *fixture) wantEvent(got, want relay.Event) {
	f.Helper()
	want.BodySize = int64(len(want.Body))
	if !bytes.Equal(got.Body, want.Body) {
		f.Fatalf("body of %s: got %d bytes, want %d bytes, or they differ", want.ID, len(got.Body), len(want.Body))
	}
	got.Body, want.Body = nil, nil
	wantEqual(f, "event "+string(want.ID), got, want)
}

func ids(leases []relay.Lease) []relay.DeliveryID {
	var all []relay.DeliveryID
	for _, l := range leases {
		all = append(all, l.Delivery.ID)
	}
	return all
}

func eventIDs(events []relay.Listed) []relay.EventID {
	var all []relay.EventID
	for _, e := range events {
		all = append(all, e.Event.ID)
	}
	return all
}

// failureTests are about failures that no method documents.
func failureTests() []test {
	return []test{
		{"a closed store answers every method with an error that has no code", func(f *fixture) {
			f.create(newEvent("a"))
			f.must(f.store.Close())
			for name, call := range everyMethod(f) {
				if err := call(); err == nil || relay.CodeOf(err) != "" {
					f.Errorf("%s: got %v with code %q, want an error without code", name, err, relay.CodeOf(err))
				}
			}
		}},
		{"a cancelled context is an error that keeps its cause, and nothing is stored", func(f *fixture) {
			ctx, cancel := context.WithCancel(f.ctx)
			cancel()
			_, err := f.store.CreateEvents(ctx, []relay.NewEvent{newEvent("a")})
			f.wantNoCode(err)
			if !errors.Is(err, context.Canceled) {
				f.Fatalf("the cause is lost: %v", err)
			}
			_, err = f.store.Event(f.ctx, "evt_a")
			f.wantCode(err, relay.NotFound)
			f.create(newEvent("a")) // and the store still works
		}},
	}
}

// everyMethod calls each method of the store with arguments that would succeed
// in a store which has the event "a".
func everyMethod(f *fixture) map[string]func() error {
	s, ctx := f.store, f.ctx
	second := func(_ any, err error) error { return err }
	return map[string]func() error{
		"EnsureApp":     func() error { return s.EnsureApp(ctx, app, start()) },
		"Apps":          func() error { return second(s.Apps(ctx)) },
		"CreateToken":   func() error { return s.CreateToken(ctx, relay.Token{ID: "tok_a", IssuedAt: start()}) },
		"RevokeToken":   func() error { return s.RevokeToken(ctx, "tok_a", start()) },
		"Tokens":        func() error { return second(s.Tokens(ctx)) },
		"RevokedTokens": func() error { return second(s.RevokedTokens(ctx, start())) },
		"CreateEvents":  func() error { return second(s.CreateEvents(ctx, []relay.NewEvent{newEvent("b")})) },
		"ClaimDeliveries": func() error {
			return second(s.ClaimDeliveries(ctx, relay.Claim{App: app, Endpoint: endpoint, Limit: 1, Now: start()}))
		},
		"FinishAttempt": func() error {
			return f.finish(relay.Delivery{ID: "dlv_a", LeaseGen: 1}, relay.DeliveryDone, start())
		},
		"ExtendLease":    func() error { return s.ExtendLease(ctx, "dlv_a", 1, start()) },
		"ReleaseLeases":  func() error { return second(s.ReleaseLeases(ctx, "n1")) },
		"ReclaimExpired": func() error { return second(s.ReclaimExpired(ctx, start())) },
		"Backlogs":       func() error { return second(s.Backlogs(ctx)) },
		"Event":          func() error { return second(s.Event(ctx, "evt_a")) },
		"Events":         func() error { return second(s.Events(ctx, relay.EventFilter{})) },
		"Deliveries":     func() error { return second(s.Deliveries(ctx, "evt_a")) },
		"Attempts":       func() error { return second(s.Attempts(ctx, "dlv_a")) },

		"RequeueDelivery": func() error { return second(s.RequeueDelivery(ctx, "dlv_a", start())) },
		"CancelDelivery":  func() error { return second(s.CancelDelivery(ctx, "dlv_a")) },
		"Expire":          func() error { return second(s.Expire(ctx, start(), 10)) },
		"Usage":           func() error { return second(s.Usage(ctx)) },
		"CountEvents":     func() error { return second(s.CountEvents(ctx, relay.EventFilter{})) },
		"Delivery":        func() error { return second(s.Delivery(ctx, "dlv_a")) },
		"CreateReplay":    func() error { return s.CreateReplay(ctx, relay.Replay{ID: "rpl_a", App: app, CreatedAt: start()}) },
		"Replay":          func() error { return second(s.Replay(ctx, "rpl_a")) },
		"Replays":         func() error { return second(s.Replays(ctx, app)) },
		"StartReplay":     func() error { return second(s.StartReplay(ctx, "rpl_a")) },
		"StepReplay":      func() error { return second(s.StepReplay(ctx, "rpl_a", 10, start())) },
		"CancelReplay":    func() error { return second(s.CancelReplay(ctx, "rpl_a")) },
		"SaveLastWords":   func() error { return s.SaveLastWords(ctx, lastWords(app, "web.1", "boot-a", start())) },
		"LastWords":       func() error { return second(s.LastWords(ctx, relay.LastWordsFilter{})) },

		"AddManifest":     func() error { return second(s.AddManifest(ctx, newManifest("a"))) },
		"UpdateManifests": func() error { return s.UpdateManifests(ctx, relay.ManifestVersion{Number: 1}) },
		"Manifest":        func() error { return second(s.Manifest(ctx, 1)) },
		"Manifests":       func() error { return second(s.Manifests(ctx, 1)) },
		"CreateOrder":     func() error { return s.CreateOrder(ctx, newOrder("den_a")) },
		"EndOrder":        func() error { return second(s.EndOrder(ctx, "den_a", start())) },
		"Orders":          func() error { return second(s.Orders(ctx, start(), false)) },
		"AddFlows":        func() error { return second(s.AddFlows(ctx, []relay.FlowSum{newFlow("a:1", "allow")})) },
		"Flows":           func() error { return second(s.Flows(ctx, relay.FlowFilter{})) },
		"EgressTargets":   func() error { return second(s.EgressTargets(ctx, app)) },
		"ExpireFlows":     func() error { return second(s.ExpireFlows(ctx, start(), 1)) },
		"AddAudit":        func() error { return s.AddAudit(ctx, relay.AuditEntry{ID: "aud_a", At: start()}) },
		"Audit":           func() error { return second(s.Audit(ctx, app, 1)) },
	}
}
