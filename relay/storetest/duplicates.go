package storetest

import (
	"slices"
	"time"

	"github.com/posternhq/postern/relay"
)

func duplicateTests() []test { return slices.Concat(dedupeTests(), requeueTests()) }

// again is the second arrival of what was stored as "a", an hour later.
func again() relay.NewEvent {
	return newEvent("b", dedupe("k"), func(n *relay.NewEvent) {
		n.Event.ReceivedAt, n.Deliveries[0].NextAt = later(time.Hour), later(time.Hour)
	})
}

func dedupeTests() []test {
	return []test{
		{"an event with a stored key is a duplicate of the first and is not stored", func(f *fixture) {
			f.create(newEvent("a", dedupe("k")))
			wantEqual(f, "receipt", f.createOne(again()), relay.Receipt{ID: "evt_a", Duplicate: true})
			_, err := f.store.Event(f.ctx, "evt_b")
			f.wantCode(err, relay.NotFound)
			f.wantClaim(later(2*time.Hour), "dlv_a")
		}},
		{"an event that comes twice in one call is stored once", func(f *fixture) {
			receipts, err := f.store.CreateEvents(f.ctx, []relay.NewEvent{newEvent("a", dedupe("k")), again()})
			f.must(err)
			wantEqual(f, "receipts", receipts, []relay.Receipt{{ID: "evt_a"}, {ID: "evt_a", Duplicate: true}})
			got, err := f.store.Events(f.ctx, relay.EventFilter{})
			f.must(err)
			wantEqual(f, "events", eventIDs(got), []relay.EventID{"evt_a"})
		}},
		{"the same key at another app or endpoint is no duplicate", func(f *fixture) {
			f.create(newEvent("a", dedupe("k")), newEvent("b", dedupe("k"), of(app, "other")),
				newEvent("c", dedupe("k"), of("web", endpoint)))
		}},
		{"keys are compared byte for byte", func(f *fixture) {
			f.create(newEvent("a", dedupe("k")), newEvent("b", dedupe("K")), newEvent("c", dedupe("k ")),
				newEvent("d", dedupe("k\x00")), newEvent("e", dedupe("\xff")), newEvent("f", dedupe("\xfe")))
		}},
		{"events without a key are never duplicates", func(f *fixture) {
			f.create(newEvent("a"), newEvent("b"), newEvent("c"))
		}},
		{"a duplicate leaves ready, leased and done deliveries alone", func(f *fixture) {
			for _, s := range []relay.DeliveryState{relay.DeliveryReady, relay.DeliveryLeased, relay.DeliveryDone} {
				f.create(newEvent(s.String(), dedupe(s.String()), state(s)))
				want := f.delivery(s.String())
				r := f.createOne(newEvent("again", dedupe(s.String())))
				wantEqual(f, "receipt", r, relay.Receipt{ID: relay.EventID("evt_" + s.String()), Duplicate: true})
				wantEqual(f, s.String(), f.delivery(s.String()), want)
			}
		}},
		{"of the same new event sent many times at once one is stored", func(f *fixture) {
			firsts := make(chan bool)
			for i := range 8 {
				go func() {
					e := newEvent(string(rune('a'+i)), dedupe("k"))
					receipts, err := f.store.CreateEvents(f.ctx, []relay.NewEvent{e})
					if err != nil {
						f.Error(err)
					}
					firsts <- err == nil && !receipts[0].Duplicate
				}()
			}
			stored := 0
			for range 8 {
				if <-firsts {
					stored++
				}
			}
			if stored != 1 {
				f.Fatalf("%d were stored", stored)
			}
		}},
	}
}

// requeueTests are about duplicates of events that an app never took.
func requeueTests() []test {
	return []test{
		{"a duplicate makes dead and cancelled deliveries ready at once with a fresh schedule", func(f *fixture) {
			for _, s := range []relay.DeliveryState{relay.DeliveryDead, relay.DeliveryCancelled} {
				f.create(newEvent(s.String(), dedupe(s.String()), func(n *relay.NewEvent) {
					n.Deliveries[0].State, n.Deliveries[0].Attempt, n.Deliveries[0].LeaseGen = s, 11, 4
					n.Deliveries[0].NextAt = later(100 * time.Hour)
				}))
				r := f.createOne(newEvent("again", dedupe(s.String())))
				wantEqual(f, "receipt", r, relay.Receipt{ID: relay.EventID("evt_" + s.String()), Duplicate: true, Requeued: true})
				d := f.delivery(s.String())
				if d.State != relay.DeliveryReady || d.Attempt != 0 || d.LeaseGen < 4 {
					f.Fatalf("requeued %s delivery: %+v", s, d)
				}
				f.claimOne(d.ID)
			}
		}},
		{"a delivery that died after its claim is requeued by a duplicate", func(f *fixture) {
			f.create(newEvent("a", dedupe("k")))
			d := f.claimOne("dlv_a")
			f.must(f.finish(d, relay.DeliveryDead, start()))
			f.wantClaim(later(time.Minute))
			if r := f.createOne(again()); !r.Requeued {
				f.Fatalf("receipt: %+v", r)
			}
			f.wantClaim(later(time.Hour), "dlv_a")
			f.wantCode(f.finish(d, relay.DeliveryDone, start()), relay.Conflict)
		}},
		{"a dead delivery that a replay has made good, or is about to, is not requeued", func(f *fixture) {
			for _, tt := range []struct {
				replayed relay.DeliveryState
				requeued bool
			}{
				{relay.DeliveryDone, false}, {relay.DeliveryReady, false},
				{relay.DeliveryDead, true}, {relay.DeliveryCancelled, true},
			} {
				name := tt.replayed.String()
				f.create(newEvent(name, dedupe(name), state(relay.DeliveryDead), func(n *relay.NewEvent) {
					replay := n.Deliveries[0]
					replay.ID, replay.Trigger, replay.State = relay.DeliveryID("dlv_replay_"+name), relay.TriggerReplay, tt.replayed
					n.Deliveries = append(n.Deliveries, replay)
				}))
				r := f.createOne(newEvent("again", dedupe(name)))
				wantEqual(f, name, r, relay.Receipt{ID: relay.EventID("evt_" + name), Duplicate: true, Requeued: tt.requeued})
				got, err := f.store.Delivery(f.ctx, relay.DeliveryID("dlv_replay_"+name))
				f.must(err)
				wantEqual(f, "the replay's delivery", got.State, tt.replayed)
			}
		}},
		{"only the dead deliveries of an event are requeued", func(f *fixture) {
			f.create(newEvent("a", dedupe("k"), func(n *relay.NewEvent) {
				dead, done := n.Deliveries[0], n.Deliveries[0]
				dead.ID, dead.State = "dlv_dead", relay.DeliveryDead
				done.ID, done.State = "dlv_done", relay.DeliveryDone
				n.Deliveries = []relay.Delivery{done, dead}
			}))
			if r := f.createOne(again()); !r.Requeued {
				f.Fatalf("receipt: %+v", r)
			}
			f.wantClaim(later(time.Hour), "dlv_dead")
		}},
		{"a requeued delivery takes its old place before younger ones of its key", func(f *fixture) {
			f.create(newEvent("a", dedupe("k"), ordered("o"), state(relay.DeliveryDead)),
				newEvent("b", ordered("o")), newEvent("c", ordered("o")), newEvent("d", ordered("p")))
			if r := f.createOne(again()); !r.Requeued {
				f.Fatalf("receipt: %+v", r)
			}
			now := later(2 * time.Hour)
			leases := f.claimAt(now, 10)
			wantEqual(f, "claimed", ids(leases), []relay.DeliveryID{"dlv_d", "dlv_a"})
			f.must(f.finish(leases[1].Delivery, relay.DeliveryDone, now))
			f.wantClaim(now, "dlv_b")
		}},
		{"a delivery leased while an older one is requeued waits for it when it fails", func(f *fixture) {
			f.create(newEvent("a", dedupe("k"), ordered("o"), state(relay.DeliveryDead)), newEvent("b", ordered("o")))
			younger := f.claimOne("dlv_b")
			f.createOne(again())
			f.must(f.finish(younger, relay.DeliveryReady, start()))
			f.wantClaim(later(2*time.Hour), "dlv_a")
		}},
	}
}
