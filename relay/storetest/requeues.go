package storetest

import (
	"slices"
	"time"

	"github.com/posternhq/postern/relay"
)

func requeueByHandTests() []test { return slices.Concat(requeueOneTests(), cancelTests()) }

func requeueOneTests() []test {
	return []test{
		{"a dead or cancelled delivery is requeued, due now, with a fresh schedule", func(f *fixture) {
			for _, s := range []relay.DeliveryState{relay.DeliveryDead, relay.DeliveryCancelled} {
				e := newEvent(s.String(), func(n *relay.NewEvent) {
					n.Deliveries[0].State, n.Deliveries[0].Attempt, n.Deliveries[0].LeaseGen = s, 11, 4
					n.Deliveries[0].NextAt, n.Deliveries[0].LastStatus = later(100*time.Hour), 500
				})
				f.create(e)
				want := e.Deliveries[0]
				want.State, want.Attempt, want.NextAt = relay.DeliveryReady, 0, later(time.Minute)
				got, err := f.store.RequeueDelivery(f.ctx, want.ID, later(time.Minute))
				f.must(err)
				wantEqual(f, "returned", got, want)
				wantEqual(f, "stored", f.delivery(s.String()), want)
				f.wantClaim(later(time.Minute), want.ID)
			}
		}},
		{"requeueing a delivery that is neither dead nor cancelled is Conflict and changes nothing", func(f *fixture) {
			for _, s := range []relay.DeliveryState{relay.DeliveryReady, relay.DeliveryLeased, relay.DeliveryDone} {
				f.create(newEvent(s.String(), state(s)))
				want := f.delivery(s.String())
				_, err := f.store.RequeueDelivery(f.ctx, want.ID, start())
				f.wantCode(err, relay.Conflict)
				wantEqual(f, s.String(), f.delivery(s.String()), want)
			}
		}},
		{"requeueing and cancelling an unknown delivery is NotFound", func(f *fixture) {
			_, err := f.store.RequeueDelivery(f.ctx, "dlv_none", start())
			f.wantCode(err, relay.NotFound)
			_, err = f.store.CancelDelivery(f.ctx, "dlv_none")
			f.wantCode(err, relay.NotFound)
			_, err = f.store.Delivery(f.ctx, "dlv_none")
			f.wantCode(err, relay.NotFound)
		}},
		{"a requeued delivery goes before younger ones of its key, also after one that is leased", func(f *fixture) {
			f.create(newEvent("a", ordered("k"), state(relay.DeliveryDead)), newEvent("b", ordered("k")), newEvent("c", ordered("k")))
			younger := f.claimOne("dlv_b")
			_, err := f.store.RequeueDelivery(f.ctx, "dlv_a", start())
			f.must(err)
			f.must(f.finish(younger, relay.DeliveryDone, start()))
			f.must(f.finish(f.claimOne("dlv_a"), relay.DeliveryDone, start()))
			f.claimOne("dlv_c")
		}},
		{"who held a delivery before it was requeued cannot finish it", func(f *fixture) {
			f.create(newEvent("a"))
			d := f.claimOne("dlv_a")
			f.must(f.finish(d, relay.DeliveryDead, start()))
			_, err := f.store.RequeueDelivery(f.ctx, "dlv_a", start())
			f.must(err)
			f.wantCode(f.finish(d, relay.DeliveryDone, start()), relay.Conflict)
		}},
	}
}

func cancelTests() []test {
	return []test{
		{"a ready delivery is cancelled and is not claimed any more", func(f *fixture) {
			f.create(newEvent("a"))
			want := f.delivery("a")
			want.State = relay.DeliveryCancelled
			got, err := f.store.CancelDelivery(f.ctx, "dlv_a")
			f.must(err)
			wantEqual(f, "returned", got, want)
			got, err = f.store.Delivery(f.ctx, "dlv_a")
			f.must(err)
			wantEqual(f, "stored", got, want)
			f.wantClaim(later(time.Hour))
		}},
		{"cancelling what is not ready is Conflict and changes nothing", func(f *fixture) {
			for _, s := range []relay.DeliveryState{relay.DeliveryLeased, relay.DeliveryDone, relay.DeliveryDead,
				relay.DeliveryCancelled} {
				f.create(newEvent(s.String(), state(s)))
				want := f.delivery(s.String())
				_, err := f.store.CancelDelivery(f.ctx, want.ID)
				f.wantCode(err, relay.Conflict)
				wantEqual(f, s.String(), f.delivery(s.String()), want)
			}
		}},
		{"cancelling one in the middle of a key lets nobody pass", func(f *fixture) {
			f.create(newEvent("a", ordered("k")), newEvent("b", ordered("k")), newEvent("c", ordered("k")))
			_, err := f.store.CancelDelivery(f.ctx, "dlv_b")
			f.must(err)
			leases := f.claimAt(start(), 10)
			wantEqual(f, "claimed", ids(leases), []relay.DeliveryID{"dlv_a"})
			f.must(f.finish(leases[0].Delivery, relay.DeliveryDone, start()))
			f.wantClaim(start(), "dlv_c")
		}},
		{"the next of a key follows when the one before is cancelled", func(f *fixture) {
			f.create(newEvent("a", ordered("k")), newEvent("b", ordered("k")), newEvent("c", ordered("k")))
			for _, id := range []relay.DeliveryID{"dlv_b", "dlv_a"} { // one that waits, then the head
				_, err := f.store.CancelDelivery(f.ctx, id)
				f.must(err)
			}
			f.wantClaim(start(), "dlv_c")
		}},
	}
}

// acceptTests are about deliveries that come with an event.
func acceptTests() []test {
	leased := func(n *relay.NewEvent) {
		d := &n.Deliveries[0]
		d.State, d.LeaseOwner, d.LeaseUntil, d.LeaseGen = relay.DeliveryLeased, "n1", later(time.Minute), 1
	}
	return []test{
		{"a delivery may come leased, and its lease counts like a claimed one", func(f *fixture) {
			e := newEvent("a", leased)
			wantEqual(f, "receipt", f.createOne(e), relay.Receipt{ID: "evt_a", Leased: true})
			wantEqual(f, "delivery", f.delivery("a"), e.Deliveries[0])
			f.wantClaim(later(time.Hour))
			f.must(f.finish(e.Deliveries[0], relay.DeliveryDone, start()))
			f.wantAttempts("dlv_a", 1)
		}},
		{"a leased one is reclaimed and released like others", func(f *fixture) {
			f.create(newEvent("a", leased), newEvent("b", leased))
			f.wantReclaimed(later(time.Hour), 2)
			f.wantClaim(start(), "dlv_a", "dlv_b")
		}},
		{"one that comes leased behind an older one of its key is ready instead", func(f *fixture) {
			f.create(newEvent("a", ordered("k")))
			e := newEvent("b", leased, ordered("k"))
			wantEqual(f, "receipt", f.createOne(e), relay.Receipt{ID: "evt_b"})
			if d := f.delivery("b"); d.State != relay.DeliveryReady || d.LeaseOwner != "" || !d.LeaseUntil.IsZero() {
				f.Errorf("got %+v", d)
			}
			f.wantCode(f.finish(e.Deliveries[0], relay.DeliveryDone, start()), relay.Conflict)
			f.must(f.finish(f.claimOne("dlv_a"), relay.DeliveryDone, start()))
			f.claimOne("dlv_b")
		}},
		{"the older one may be of the same call", func(f *fixture) {
			got, err := f.store.CreateEvents(f.ctx, []relay.NewEvent{newEvent("a", leased, ordered("k")), newEvent("b", leased, ordered("k"))})
			f.must(err)
			wantEqual(f, "receipts", got, []relay.Receipt{{ID: "evt_a", Leased: true}, {ID: "evt_b"}})
		}},
		{"of several deliveries all that came leased are, or none", func(f *fixture) {
			two := func(name string) relay.NewEvent {
				return newEvent(name, leased, func(n *relay.NewEvent) {
					other := n.Deliveries[0]
					other.ID, other.Destination, other.OrderKey = relay.DeliveryID("dlv_other_"+name), "audit", "k"
					n.Deliveries = append(n.Deliveries, other)
				})
			}
			wantEqual(f, "first", f.createOne(two("a")), relay.Receipt{ID: "evt_a", Leased: true})
			wantEqual(f, "second", f.createOne(two("b")), relay.Receipt{ID: "evt_b"})
			wantEqual(f, "state", f.delivery("b").State, relay.DeliveryReady)
		}},
		{"a finished one of the key, or one for another destination, is in nobody's way", func(f *fixture) {
			f.create(newEvent("a", ordered("k"), state(relay.DeliveryDone)), newEvent("b", ordered("k"), to("audit")))
			if r := f.createOne(newEvent("c", leased, ordered("k"))); !r.Leased {
				f.Errorf("receipt %+v", r)
			}
		}},
		{"a duplicate leases nothing", func(f *fixture) {
			f.create(newEvent("a", dedupe("k")))
			wantEqual(f, "receipt", f.createOne(newEvent("b", leased, dedupe("k"))), relay.Receipt{ID: "evt_a", Duplicate: true})
		}},
		{"an event without leased deliveries is not Leased", func(f *fixture) {
			wantEqual(f, "receipt", f.createOne(newEvent("a")), relay.Receipt{ID: "evt_a"})
		}},
		{"a refused event is kept with its reason", func(f *fixture) {
			e := newEvent("a")
			e.Event.Refusal, e.Deliveries = "the signature does not match", nil
			f.create(e)
			got, err := f.store.Event(f.ctx, "evt_a")
			f.must(err)
			f.wantEvent(got, e.Event)
			f.wantClaim(later(time.Hour))
		}},
	}
}
