package storetest

import (
	"slices"
	"time"

	"github.com/posternhq/postern/relay"
)

func retentionTests() []test { return slices.Concat(bodyTests(), expiryTests(), usageTests()) }

// kept sets how long an event's body and the event are kept.
func kept(body, whole time.Duration) func(*relay.NewEvent) {
	return func(n *relay.NewEvent) {
		n.Event.BodyExpiresAt, n.Event.ExpiresAt = later(body), later(whole)
	}
}

func (f *fixture) wantExpired(now time.Time, limit int, want relay.Expired) {
	f.Helper()
	got, err := f.store.Expire(f.ctx, now, limit)
	f.must(err)
	wantEqual(f, "expired", got, want)
}

func (f *fixture) wantUsage(want ...relay.Usage) {
	f.Helper()
	got, err := f.store.Usage(f.ctx)
	f.must(err)
	slices.SortFunc(got, func(a, b relay.Usage) int { return len(a.App) - len(b.App) })
	wantEqual(f, "usage", got, want)
}

func bodyTests() []test {
	return []test{
		{"a body goes when its time is over, and the rest stays", func(f *fixture) {
			e := newEvent("a", kept(time.Hour, 2*time.Hour), state(relay.DeliveryDone), func(n *relay.NewEvent) {
				a := fullAttempt()
				n.Attempts = []relay.Attempt{a}
			})
			f.create(e)
			f.wantExpired(later(time.Hour-time.Microsecond), 10, relay.Expired{})
			f.wantExpired(later(time.Hour), 10, relay.Expired{Bodies: 1})
			f.wantExpired(later(time.Hour), 10, relay.Expired{})
			got, err := f.store.Event(f.ctx, "evt_a")
			f.must(err)
			want := e.Event
			want.BodySize, want.Body = int64(len(want.Body)), nil
			wantEqual(f, "event", got, want)
			wantEqual(f, "delivery", f.delivery("a"), e.Deliveries[0])
			n, err := f.store.CountEvents(f.ctx, relay.EventFilter{})
			f.must(err)
			wantEqual(f, "count of events with a body", n, 0)
			f.wantAttempts("dlv_a", 1)
		}},
		{"a body that an unfinished delivery waits for stays", func(f *fixture) {
			f.create(newEvent("ready", kept(time.Hour, 9*time.Hour)),
				newEvent("leased", kept(time.Hour, 9*time.Hour), state(relay.DeliveryLeased)),
				newEvent("done", kept(time.Hour, 9*time.Hour), state(relay.DeliveryDone)))
			f.wantExpired(later(2*time.Hour), 10, relay.Expired{Bodies: 1})
			f.wantExpired(later(2*time.Hour), 10, relay.Expired{})
			for _, l := range f.claimAt(later(2*time.Hour), 10) {
				f.wantEvent(l.Event, newEvent("ready", kept(time.Hour, 9*time.Hour)).Event)
			}
			f.wantExpired(later(9*time.Hour), 10, relay.Expired{Events: 3, GivenUp: 2})
		}},
		{"a large body goes and comes back not", func(f *fixture) {
			e := newEvent("a", kept(time.Hour, 2*time.Hour), state(relay.DeliveryDone))
			e.Event.Body = make([]byte, 1<<20)
			f.create(e)
			f.wantExpired(later(time.Hour), 10, relay.Expired{Bodies: 1})
			got, err := f.store.Event(f.ctx, "evt_a")
			f.must(err)
			if got.Body != nil || got.BodySize != 1<<20 {
				f.Errorf("%d bytes of %d are there", len(got.Body), got.BodySize)
			}
			f.wantUsage(relay.Usage{App: app, Events: 1})
		}},
		{"a duplicate brings back the body that its delivery needs", func(f *fixture) {
			f.create(newEvent("a", kept(time.Hour, 9*time.Hour), state(relay.DeliveryDead), dedupe("k")))
			f.wantExpired(later(time.Hour), 10, relay.Expired{Bodies: 1})
			e := newEvent("b", kept(3*time.Hour, 9*time.Hour), dedupe("k"))
			wantEqual(f, "receipt", f.createOne(e), relay.Receipt{ID: "evt_a", Duplicate: true, Requeued: true})
			leases := f.claimAt(later(time.Hour), 10)
			if len(leases) != 1 || string(leases[0].Event.Body) != "body of b" || leases[0].Event.ID != "evt_a" {
				f.Fatalf("claimed %+v", leases)
			}
			f.wantUsage(relay.Usage{App: app, Events: 1, Bytes: 9, Waiting: 1})
		}},
		{"a delivery whose body is gone is not requeued by hand", func(f *fixture) {
			f.create(newEvent("a", kept(time.Hour, 9*time.Hour), state(relay.DeliveryDead)))
			f.wantExpired(later(time.Hour), 10, relay.Expired{Bodies: 1})
			_, err := f.store.RequeueDelivery(f.ctx, "dlv_a", later(time.Hour))
			f.wantCode(err, relay.Conflict)
		}},
	}
}

func expiryTests() []test {
	return []test{
		{"an event goes with all that belongs to it when its time is over", func(f *fixture) {
			f.create(newEvent("a", kept(time.Hour, 2*time.Hour), dedupe("k"), state(relay.DeliveryDone), func(n *relay.NewEvent) {
				n.Attempts = []relay.Attempt{fullAttempt()}
			}), newEvent("b", kept(time.Hour, 3*time.Hour), state(relay.DeliveryDone)))
			f.wantExpired(later(2*time.Hour), 10, relay.Expired{Events: 1, Bodies: 1})
			_, err := f.store.Event(f.ctx, "evt_a")
			f.wantCode(err, relay.NotFound)
			_, err = f.store.Delivery(f.ctx, "dlv_a")
			f.wantCode(err, relay.NotFound)
			f.wantAttempts("dlv_a", 0)
			f.wantEvents(relay.EventFilter{States: []relay.DeliveryState{relay.DeliveryReady}})
			f.create(newEvent("a", dedupe("k"))) // and its names are free
		}},
		{"an event without an end stays", func(f *fixture) {
			f.create(newEvent("a", func(n *relay.NewEvent) { n.Event.ExpiresAt = time.Time{} }))
			f.wantExpired(later(1e6*time.Hour), 10, relay.Expired{})
		}},
		{"an event without a time for its body keeps it to its end", func(f *fixture) {
			f.create(newEvent("a", state(relay.DeliveryDone))) // a day
			f.wantExpired(later(24*time.Hour-time.Microsecond), 10, relay.Expired{})
			f.wantExpired(later(24*time.Hour), 10, relay.Expired{Events: 1})
		}},
		{"unfinished deliveries of an event whose time is over are given up", func(f *fixture) {
			f.create(newEvent("a", kept(time.Hour, time.Hour), ordered("k")), newEvent("b", kept(time.Hour, time.Hour), ordered("k")),
				newEvent("c", ordered("k")), newEvent("d", kept(time.Hour, time.Hour), state(relay.DeliveryDead)))
			d := f.claimOne("dlv_a")
			f.wantExpired(later(time.Hour), 10, relay.Expired{Events: 3, GivenUp: 2})
			f.wantCode(f.finish(d, relay.DeliveryDone, start()), relay.Conflict)
			f.claimOne("dlv_c") // nothing older stands in its way
		}},
		{"a step deletes at most limit bodies and limit events", func(f *fixture) {
			for _, name := range []string{"1", "2", "3", "4", "5"} {
				f.create(newEvent(name, kept(time.Hour, 2*time.Hour), state(relay.DeliveryDone)),
					newEvent("long"+name, kept(time.Hour, 9*time.Hour), state(relay.DeliveryDone)))
			}
			var total relay.Expired
			for range 10 {
				got, err := f.store.Expire(f.ctx, later(2*time.Hour), 2)
				f.must(err)
				if got.Bodies > 2 || got.Events > 2 {
					f.Errorf("a step did %+v", got)
				}
				total.Bodies, total.Events = total.Bodies+got.Bodies, total.Events+got.Events
			}
			wantEqual(f, "all steps", total, relay.Expired{Bodies: 5, Events: 5})
			f.wantUsage(relay.Usage{App: app, Events: 5})
			f.wantExpired(later(9*time.Hour), 100, relay.Expired{Events: 5})
		}},
	}
}

func usageTests() []test {
	return []test{
		{"an empty store has no usage", func(f *fixture) { f.wantUsage() }},
		{"usage counts events, bytes of bodies and unfinished deliveries of each app", func(f *fixture) {
			sized := func(n int) func(*relay.NewEvent) {
				return func(e *relay.NewEvent) { e.Event.Body = make([]byte, n) }
			}
			f.create(newEvent("1", sized(1000)), newEvent("2", sized(300<<10), state(relay.DeliveryLeased)),
				newEvent("3", sized(1), state(relay.DeliveryDone), dedupe("k")), newEvent("4", sized(7), of("longer", "x")),
				newEvent("5", sized(0), to("audit")), newEvent("6", state(relay.DeliveryDead), sized(10)))
			f.createOne(newEvent("again", sized(500), dedupe("k")))
			f.wantUsage(relay.Usage{App: app, Events: 5, Bytes: 1000 + 300<<10 + 1 + 10, Waiting: 3},
				relay.Usage{App: "longer", Events: 1, Bytes: 7, Waiting: 1})
		}},
		{"usage follows every way of a delivery", func(f *fixture) {
			waiting := func(n int) {
				f.Helper()
				f.wantUsage(relay.Usage{App: app, Events: 1, Bytes: 9, Waiting: n})
			}
			f.create(newEvent("a", dedupe("k")))
			waiting(1)
			d := f.claimOne("dlv_a")
			waiting(1)
			f.must(f.finish(d, relay.DeliveryReady, start()))
			waiting(1)
			f.must(f.finish(f.claimOne("dlv_a"), relay.DeliveryDead, start()))
			waiting(0)
			_, err := f.store.RequeueDelivery(f.ctx, "dlv_a", start())
			f.must(err)
			waiting(1)
			_, err = f.store.CancelDelivery(f.ctx, "dlv_a")
			f.must(err)
			waiting(0)
			f.createOne(newEvent("b", dedupe("k")))
			waiting(1)
			f.wantExpired(later(24*time.Hour), 1, relay.Expired{Events: 1, GivenUp: 1})
			f.wantUsage()
		}},
		{"what fails changes no usage", func(f *fixture) {
			f.create(newEvent("a"))
			_, err := f.store.CreateEvents(f.ctx, []relay.NewEvent{newEvent("b"), newEvent("a")})
			f.wantNoCode(err)
			f.wantUsage(relay.Usage{App: app, Events: 1, Bytes: 9, Waiting: 1})
		}},
	}
}
