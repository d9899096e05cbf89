package storetest

import (
	"fmt"
	"slices"
	"time"

	"github.com/posternhq/postern/relay"
)

func replayTests() []test {
	return slices.Concat(replayRecordTests(), stepTests(), selectionTests(), replayEndTests())
}

// newReplay is a planned replay of everything of the app.
func newReplay(change ...func(*relay.Replay)) relay.Replay {
	r := relay.Replay{ID: "rpl_a", App: app, By: "tok_1", CreatedAt: start(),
		Filter: relay.EventFilter{App: app, Until: later(time.Hour)}, Planned: 3}
	for _, c := range change {
		c(&r)
	}
	return r
}

// running stores and starts a replay.
func (f *fixture) running(change ...func(*relay.Replay)) {
	f.Helper()
	f.must(f.store.CreateReplay(f.ctx, newReplay(change...)))
	_, err := f.store.StartReplay(f.ctx, "rpl_a")
	f.must(err)
}

// step makes a step and checks that Replay says the same.
func (f *fixture) step(limit int) relay.Replay {
	f.Helper()
	r, err := f.store.StepReplay(f.ctx, "rpl_a", limit, later(time.Minute))
	f.must(err)
	wantEqual(f, "stored replay", f.replay("rpl_a"), r)
	return r
}

func (f *fixture) replay(id relay.ReplayID) relay.Replay {
	f.Helper()
	r, err := f.store.Replay(f.ctx, id)
	f.must(err)
	return r
}

func replayRecordTests() []test {
	return []test{
		{"a replay comes back with every field", func(f *fixture) {
			yes := true
			want := relay.Replay{ID: "rpl_full", App: app, By: "caf\u00e9", CreatedAt: start(), Destination: "audit", Rate: 2.5,
				State: relay.ReplayRunning, Planned: 12, Cursor: "evt_x", Made: 5, Done: 2, Dead: 1, Cancelled: 1,
				Filter: relay.EventFilter{App: app, Endpoint: endpoint, IDs: []relay.EventID{"evt_1", "evt_2"}, Type: "\xffa*",
					States: []relay.DeliveryState{relay.DeliveryDead, relay.DeliveryReady}, Refused: &yes,
					Since: later(-time.Hour), Until: start(), Text: "\x00\xfe\"", Before: "evt_9", After: "evt_0", Limit: 7}}
			f.must(f.store.CreateReplay(f.ctx, want))
			wantEqual(f, "replay", f.replay("rpl_full"), want)
			bare := relay.Replay{ID: "rpl_bare", App: "web", CreatedAt: start()}
			f.must(f.store.CreateReplay(f.ctx, bare))
			wantEqual(f, "replay", f.replay("rpl_bare"), bare)
			f.wantNoCode(f.store.CreateReplay(f.ctx, bare)) // its id is taken
		}},
		{"replays are listed newest first, of one app or of all, at most 100", func(f *fixture) {
			var want []relay.ReplayID
			for i := range 120 {
				r := newReplay(func(r *relay.Replay) { r.ID = relay.ReplayID(fmt.Sprintf("rpl_%d", 999-i)) })
				if i == 60 {
					r.App = "web"
				}
				f.must(f.store.CreateReplay(f.ctx, r))
				want = append([]relay.ReplayID{r.ID}, want...)
			}
			list := func(a relay.AppID) (all []relay.ReplayID) {
				got, err := f.store.Replays(f.ctx, a)
				f.must(err)
				for _, r := range got {
					all = append(all, r.ID)
				}
				return all
			}
			wantEqual(f, "all", list(""), want[:100])
			wantEqual(f, "web", list("web"), []relay.ReplayID{"rpl_939"})
			wantEqual(f, "nobody", list("nobody"), nil)
			wantEqual(f, "shop", len(list(app)), 100)
		}},
		{"an unknown replay is NotFound", func(f *fixture) {
			_, err := f.store.Replay(f.ctx, "rpl_a")
			f.wantCode(err, relay.NotFound)
			_, err = f.store.StartReplay(f.ctx, "rpl_a")
			f.wantCode(err, relay.NotFound)
			_, err = f.store.StepReplay(f.ctx, "rpl_a", 1, start())
			f.wantCode(err, relay.NotFound)
			_, err = f.store.CancelReplay(f.ctx, "rpl_a")
			f.wantCode(err, relay.NotFound)
		}},
		{"only a planned replay is started, and only a running one makes steps", func(f *fixture) {
			f.create(newEvent("1"))
			f.must(f.store.CreateReplay(f.ctx, newReplay()))
			_, err := f.store.StepReplay(f.ctx, "rpl_a", 1, start())
			f.wantCode(err, relay.Conflict)
			r, err := f.store.StartReplay(f.ctx, "rpl_a")
			f.must(err)
			wantEqual(f, "started", r, newReplay(func(r *relay.Replay) { r.State = relay.ReplayRunning }))
			_, err = f.store.StartReplay(f.ctx, "rpl_a")
			f.wantCode(err, relay.Conflict)
			if r := f.step(5); r.State != relay.ReplayDone {
				f.Fatalf("got %+v", r)
			}
			_, err = f.store.StepReplay(f.ctx, "rpl_a", 1, start())
			f.wantCode(err, relay.Conflict)
		}},
	}
}

func stepTests() []test {
	return []test{
		{"steps make ready deliveries in the order of the commits until none is left", func(f *fixture) {
			f.create(newEvent("z", state(relay.DeliveryDone)), newEvent("other", of("web", endpoint)), newEvent("a", state(relay.DeliveryDead)),
				newEvent("m", state(relay.DeliveryDone)))
			f.running()
			r := f.step(2)
			wantEqual(f, "first step", r, newReplay(func(r *relay.Replay) { r.State, r.Cursor, r.Made = relay.ReplayRunning, "evt_a", 2 }))
			r = f.step(2)
			wantEqual(f, "last step", r, newReplay(func(r *relay.Replay) { r.State, r.Cursor, r.Made = relay.ReplayDone, "evt_m", 3 }))
			f.wantClaim(start())
			leases := f.claimAt(later(time.Minute), 10)
			var events []relay.EventID
			for _, l := range leases {
				events = append(events, l.Event.ID)
				d := l.Delivery
				if d.Trigger != relay.TriggerReplay || d.Replay != "rpl_a" || d.Attempt != 0 || !d.NextAt.Equal(later(time.Minute)) {
					f.Errorf("made %+v", d)
				}
			}
			wantEqual(f, "delivered", events, []relay.EventID{"evt_z", "evt_a", "evt_m"})
			all, err := f.store.Deliveries(f.ctx, "evt_a")
			f.must(err)
			if len(all) != 2 || all[0].State != relay.DeliveryDead || all[0].ID != "dlv_a" {
				f.Errorf("the first delivery changed: %+v", all)
			}
		}},
		{"a step that takes the last events is the last step", func(f *fixture) {
			f.create(newEvent("1"), newEvent("2"))
			f.running()
			if r := f.step(2); r.State != relay.ReplayDone || r.Made != 2 {
				f.Errorf("got %+v", r)
			}
		}},
		{"a replay of nothing is done with its first step", func(f *fixture) {
			f.running()
			if r := f.step(2); r.State != relay.ReplayDone || r.Made != 0 || r.Cursor != "" {
				f.Errorf("got %+v", r)
			}
		}},
	}
}

func selectionTests() []test {
	return []test{
		{"a replay follows its filter", func(f *fixture) {
			f.create(newEvent("1", typed("x")), newEvent("2", typed("y")), newEvent("3", typed("x"), received(later(2*time.Hour))),
				newEvent("4", typed("x")))
			f.running(func(r *relay.Replay) { r.Filter.Type, r.Filter.Text = "x", "body of" })
			if r := f.step(1); r.Cursor != "evt_1" || r.Made != 1 || r.State != relay.ReplayRunning {
				f.Errorf("got %+v", r)
			}
			if r := f.step(10); r.Cursor != "evt_4" || r.Made != 2 || r.State != relay.ReplayDone {
				f.Errorf("got %+v", r)
			}
		}},
		{"events whose body is gone are passed over", func(f *fixture) {
			f.create(newEvent("1", kept(time.Second, time.Hour), state(relay.DeliveryDone)), newEvent("2", state(relay.DeliveryDone)))
			f.wantExpired(later(2*time.Second), 10, relay.Expired{Bodies: 1})
			f.running()
			if r := f.step(10); r.Made != 1 || r.Cursor != "evt_2" || r.State != relay.ReplayDone {
				f.Errorf("got %+v", r)
			}
		}},
		{"a replay goes on when the event at its cursor is deleted", func(f *fixture) {
			f.create(newEvent("1", kept(time.Second, time.Minute)), newEvent("2"), newEvent("3"))
			f.running()
			f.step(1)
			f.wantExpired(later(time.Minute), 10, relay.Expired{Events: 1, GivenUp: 2})
			if r := f.step(10); r.Made != 3 || r.Cursor != "evt_3" {
				f.Errorf("got %+v", r)
			}
		}},
		{"a replay keeps the order key and goes to its own destination", func(f *fixture) {
			f.create(newEvent("1", ordered("k"), state(relay.DeliveryDone)), newEvent("2", ordered("k"), state(relay.DeliveryDone)),
				newEvent("3", ordered("k")))
			f.running(func(r *relay.Replay) { r.Destination = "audit" })
			f.step(10)
			claim := relay.Claim{Owner: "n1", App: app, Endpoint: endpoint, Destination: "audit", Limit: 10,
				Now: later(time.Minute), Until: later(time.Hour)}
			leases, err := f.store.ClaimDeliveries(f.ctx, claim)
			f.must(err)
			if len(leases) != 1 || leases[0].Event.ID != "evt_1" || leases[0].Delivery.OrderKey != "k" {
				f.Fatalf("claimed %+v", leases)
			}
			f.claimOne("dlv_3") // at the app nothing changed
		}},
		{"steps at once make every delivery once", func(f *fixture) {
			for i := range 20 {
				f.create(newEvent(fmt.Sprint(i), state(relay.DeliveryDone)))
			}
			f.running()
			ended := make(chan struct{})
			for range 4 {
				go func() {
					defer func() { ended <- struct{}{} }()
					for {
						r, err := f.store.StepReplay(f.ctx, "rpl_a", 3, later(time.Minute))
						if err != nil || r.State == relay.ReplayDone {
							if err != nil && relay.CodeOf(err) != relay.Conflict {
								f.Error(err)
							}
							return
						}
					}
				}()
			}
			for range 4 {
				<-ended
			}
			if r := f.replay("rpl_a"); r.Made != 20 || r.State != relay.ReplayDone {
				f.Errorf("got %+v", r)
			}
			wantEqual(f, "deliveries", len(f.claimAt(later(time.Minute), 100)), 20)
		}},
	}
}

func replayEndTests() []test {
	return []test{
		{"a replay counts what became of its deliveries", func(f *fixture) {
			f.create(newEvent("1"), newEvent("2"), newEvent("3"), newEvent("4"))
			f.running()
			f.wantClaim(start(), "dlv_1", "dlv_2", "dlv_3", "dlv_4")
			f.step(10)
			leases := f.claimAt(later(time.Minute), 3)
			f.must(f.finish(leases[0].Delivery, relay.DeliveryDone, start()))
			f.must(f.finish(leases[1].Delivery, relay.DeliveryDead, start()))
			f.must(f.finish(leases[2].Delivery, relay.DeliveryReady, later(time.Hour)))
			last := f.claimAt(later(time.Minute), 1)[0].Delivery
			f.wantReleased("n1", 5) // the four live ones, too
			_, err := f.store.CancelDelivery(f.ctx, last.ID)
			f.must(err)
			counts := func() [4]int {
				r := f.replay("rpl_a")
				return [4]int{r.Made, r.Done, r.Dead, r.Cancelled}
			}
			wantEqual(f, "made, done, dead, cancelled", counts(), [4]int{4, 1, 1, 1})
			_, err = f.store.RequeueDelivery(f.ctx, leases[1].Delivery.ID, start())
			f.must(err)
			wantEqual(f, "made, done, dead, cancelled", counts(), [4]int{4, 1, 0, 1})
		}},
		{"cancelling a running replay ends it and cancels its ready deliveries only", func(f *fixture) {
			f.create(newEvent("1"), newEvent("2"), newEvent("3"), newEvent("4"), newEvent("5"))
			f.running()
			f.wantClaim(start(), "dlv_1", "dlv_2", "dlv_3", "dlv_4", "dlv_5")
			f.step(3)
			held := f.claimAt(later(time.Minute), 1)[0].Delivery
			r, err := f.store.CancelReplay(f.ctx, "rpl_a")
			f.must(err)
			if r.State != relay.ReplayCancelled || r.Made != 3 || r.Cancelled != 2 {
				f.Errorf("got %+v", r)
			}
			f.wantClaim(later(time.Hour))
			f.must(f.finish(held, relay.DeliveryDone, start()))
			wantEqual(f, "done", f.replay("rpl_a").Done, 1)
			_, err = f.store.StepReplay(f.ctx, "rpl_a", 1, start())
			f.wantCode(err, relay.Conflict)
			f.wantReleased("n1", 5)
		}},
		{"cancelling a planned replay ends it", func(f *fixture) {
			f.must(f.store.CreateReplay(f.ctx, newReplay()))
			r, err := f.store.CancelReplay(f.ctx, "rpl_a")
			f.must(err)
			wantEqual(f, "cancelled", r, newReplay(func(r *relay.Replay) { r.State = relay.ReplayCancelled }))
			_, err = f.store.StartReplay(f.ctx, "rpl_a")
			f.wantCode(err, relay.Conflict)
		}},
		{"cancelling a done replay cancels its deliveries and it stays done", func(f *fixture) {
			var many []relay.NewEvent
			for i := range 450 {
				many = append(many, newEvent(fmt.Sprint(i), ordered(fmt.Sprint(i%3)), state(relay.DeliveryDone)))
			}
			_, err := f.store.CreateEvents(f.ctx, many)
			f.must(err)
			f.running()
			f.step(1000)
			r, err := f.store.CancelReplay(f.ctx, "rpl_a")
			f.must(err)
			if r.State != relay.ReplayDone || r.Cancelled != 450 {
				f.Errorf("got %+v", r)
			}
			f.wantClaim(later(time.Hour))
		}},
	}
}
