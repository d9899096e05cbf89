package storetest

import (
	"bytes"
	"time"

	"github.com/posternhq/postern/relay"
)

// fullAttempt has a value in every field.
func fullAttempt() relay.Attempt {
	return relay.Attempt{
		Delivery: "dlv_a", Number: 1, StartedAt: later(time.Second), EndedAt: later(2 * time.Second),
		Instance: "web.1", Outcome: relay.OutcomeBooting, Status: 503, RetryIn: 90 * time.Second,
		Header: []relay.Field{{Name: "X-Raw", Value: rawBytes()}, {Name: "X-Raw", Value: ""}},
		Body:   bytes.Repeat([]byte(rawBytes()), 256), Error: "the app answered 503",
	}
}

func attemptTests() []test {
	return []test{
		{"finishing moves the delivery and records the attempt whole", func(f *fixture) {
			f.create(newEvent("a"))
			next := f.claimOne("dlv_a")
			next.State, next.Attempt, next.NextAt = relay.DeliveryReady, 1, later(time.Minute)
			next.LeaseOwner, next.LeaseUntil = "", time.Time{}
			next.LastStatus, next.LastError = 503, "the app answered 503"
			f.must(f.store.FinishAttempt(f.ctx, relay.Finish{Attempt: fullAttempt(), Next: next}))
			wantEqual(f, "delivery", f.delivery("a"), next)
			got, err := f.store.Attempts(f.ctx, "dlv_a")
			f.must(err)
			wantEqual(f, "attempts", got, []relay.Attempt{fullAttempt()})
		}},
		{"an attempt with nothing in it comes back with nothing in it", func(f *fixture) {
			f.create(newEvent("a"))
			next := f.claimOne("dlv_a")
			next.State = relay.DeliveryDone
			f.must(f.store.FinishAttempt(f.ctx, relay.Finish{Attempt: relay.Attempt{Delivery: "dlv_a"}, Next: next}))
			got, err := f.store.Attempts(f.ctx, "dlv_a")
			f.must(err)
			wantEqual(f, "attempts", got, []relay.Attempt{{Delivery: "dlv_a", Number: 1}})
		}},
		{"attempts without a number are numbered in the order they ended, for each delivery", func(f *fixture) {
			f.create(newEvent("a"), newEvent("b"))
			for _, id := range []relay.DeliveryID{"dlv_a", "dlv_a", "dlv_b", "dlv_a"} {
				for _, l := range f.claimAt(start(), 2) {
					a, next := relay.Attempt{Delivery: l.Delivery.ID, Error: "turn of " + string(id)}, l.Delivery
					next.State = relay.DeliveryReady
					if next.ID == id {
						f.must(f.store.FinishAttempt(f.ctx, relay.Finish{Attempt: a, Next: next}))
					}
				}
				_, err := f.store.ReleaseLeases(f.ctx, "n1")
				f.must(err)
			}
			for id, want := range map[relay.DeliveryID]int{"dlv_a": 3, "dlv_b": 1} {
				got, err := f.store.Attempts(f.ctx, id)
				f.must(err)
				var all []relay.Attempt
				for i := range want {
					all = append(all, relay.Attempt{Delivery: id, Number: i + 1, Error: "turn of " + string(id)})
				}
				wantEqual(f, "attempts", got, all)
			}
		}},
		{"an event answered live is stored with its finished delivery and attempts", func(f *fixture) {
			second := fullAttempt()
			second.Number = 0 // numbered by the store
			f.create(newEvent("a", state(relay.DeliveryDone), func(n *relay.NewEvent) {
				n.Attempts = []relay.Attempt{fullAttempt(), second}
			}))
			f.wantClaim(later(time.Hour))
			second.Number = 2
			got, err := f.store.Attempts(f.ctx, "dlv_a")
			f.must(err)
			wantEqual(f, "attempts", got, []relay.Attempt{fullAttempt(), second})
		}},
		{"an unknown delivery has no attempts", func(f *fixture) {
			f.create(newEvent("a"))
			f.wantAttempts("dlv_a", 0)
			f.wantAttempts("dlv_none", 0)
		}},
		{"an attempt of another delivery is refused and nothing moves", func(f *fixture) {
			f.create(newEvent("a"), newEvent("b"))
			d := f.claimOne("dlv_a")
			next := d
			next.State = relay.DeliveryDone
			f.wantNoCode(f.store.FinishAttempt(f.ctx, relay.Finish{Attempt: relay.Attempt{Delivery: "dlv_b"}, Next: next}))
			wantEqual(f, "delivery", f.delivery("a"), d)
		}},
		{"a next state that is leased is refused and nothing moves", func(f *fixture) {
			f.create(newEvent("a"))
			d := f.claimOne("dlv_a")
			f.wantNoCode(f.finish(d, relay.DeliveryLeased, start()))
			wantEqual(f, "delivery", f.delivery("a"), d)
			f.wantAttempts("dlv_a", 0)
		}},
	}
}
