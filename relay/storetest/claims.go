package storetest

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/posternhq/postern/relay"
)

func claimTests() []test {
	return []test{
		{"a claim leases the delivery and brings its event", func(f *fixture) {
			e := newEvent("a", func(n *relay.NewEvent) { n.Deliveries[0].LeaseGen = 6 })
			f.create(e)
			leases, err := f.store.ClaimDeliveries(f.ctx, relay.Claim{
				Owner: "n1", App: app, Endpoint: endpoint, Limit: 5, Now: later(time.Second), Until: later(time.Minute),
			})
			f.must(err)
			if len(leases) != 1 {
				f.Fatalf("claimed %v", ids(leases))
			}
			want := e.Deliveries[0]
			want.State, want.LeaseOwner, want.LeaseUntil, want.LeaseGen = relay.DeliveryLeased, "n1", later(time.Minute), 7
			wantEqual(f, "claimed delivery", leases[0].Delivery, want)
			wantEqual(f, "stored delivery", f.delivery("a"), want)
			f.wantEvent(leases[0].Event, e.Event)
		}},
		{"a claimed delivery is not claimed again", func(f *fixture) {
			f.create(newEvent("a"))
			f.claimOne("dlv_a")
			f.wantClaim(later(100 * time.Hour)) // not even when the lease has long ended
		}},
		{"only what is due is claimed", func(f *fixture) {
			f.create(newEvent("a", due(later(time.Second))), newEvent("b", due(later(2*time.Second))))
			f.wantClaim(start())
			f.wantClaim(later(time.Second), "dlv_a")
			f.wantClaim(later(time.Hour), "dlv_b")
		}},
		{"only deliveries of the named app and endpoint are claimed", func(f *fixture) {
			f.create(newEvent("a", of("web", endpoint)), newEvent("b", of(app, "other")), newEvent("c"))
			f.wantClaim(start(), "dlv_c")
		}},
		{"what is finished is not claimed", func(f *fixture) {
			f.create(newEvent("a", state(relay.DeliveryDone)), newEvent("b", state(relay.DeliveryDead)),
				newEvent("c", state(relay.DeliveryCancelled)))
			f.wantClaim(later(time.Hour))
		}},
		{"the oldest are claimed first, up to the limit", func(f *fixture) {
			f.create(newEvent("c", due(later(2*time.Millisecond))), newEvent("a", due(start())), newEvent("e", due(later(3*time.Second))),
				newEvent("d", due(later(time.Second))), newEvent("b", due(start())))
			now := later(time.Minute)
			wantEqual(f, "first", ids(f.claimAt(now, 2)), []relay.DeliveryID{"dlv_a", "dlv_b"})
			wantEqual(f, "second", ids(f.claimAt(now, 2)), []relay.DeliveryID{"dlv_c", "dlv_d"})
			wantEqual(f, "third", ids(f.claimAt(now, 2)), []relay.DeliveryID{"dlv_e"})
		}},
		{"a limit of nothing claims nothing", func(f *fixture) {
			f.create(newEvent("a"))
			wantEqual(f, "claimed", ids(f.claimAt(start(), 0)), nil)
		}},
		{"only deliveries for the named destination are claimed", func(f *fixture) {
			f.create(newEvent("a"), newEvent("b", to("audit")))
			f.wantClaim(start(), "dlv_a")
			leases, err := f.store.ClaimDeliveries(f.ctx, relay.Claim{
				Owner: "n1", App: app, Endpoint: endpoint, Destination: "audit", Limit: 5, Now: start(), Until: later(time.Minute),
			})
			f.must(err)
			wantEqual(f, "claimed", ids(leases), []relay.DeliveryID{"dlv_b"})
		}},
		{"a claim stops before its bodies are too many, but has one delivery", func(f *fixture) {
			for i, size := range []int{100, 50, 50, 1, 500 << 10, 0} {
				f.create(newEvent(fmt.Sprint(i), func(n *relay.NewEvent) { n.Event.Body = make([]byte, size) }))
			}
			for _, want := range [][]relay.DeliveryID{{"dlv_0"}, {"dlv_1", "dlv_2"}, {"dlv_3"}, {"dlv_4"}, {"dlv_5"}, nil} {
				leases, err := f.store.ClaimDeliveries(f.ctx, relay.Claim{
					Owner: "n1", App: app, Endpoint: endpoint, Limit: 5, MaxBytes: 100, Now: start(), Until: later(time.Minute),
				})
				f.must(err)
				wantEqual(f, "claimed", ids(leases), want)
			}
		}},
		{"no two claims at once return the same delivery", claimTogether},
	}
}

func backlogTests() []test {
	return []test{
		{"a backlog is that of one destination, and what is blocked is not next", func(f *fixture) {
			f.create(newEvent("1", ordered("k"), due(later(time.Hour))), newEvent("2", ordered("k"), due(later(time.Minute))),
				newEvent("3", to("audit"), due(later(time.Second))), newEvent("4", ordered("l"), of("web", endpoint)),
				newEvent("5", ordered("l"), of("web", endpoint)))
			leases, err := f.store.ClaimDeliveries(f.ctx, relay.Claim{
				Owner: "n1", App: "web", Endpoint: endpoint, Limit: 5, Now: start(), Until: later(time.Minute),
			})
			f.must(err)
			wantEqual(f, "claimed", ids(leases), []relay.DeliveryID{"dlv_4"})
			got, err := f.store.Backlogs(f.ctx)
			f.must(err)
			slices.SortFunc(got, func(a, b relay.Backlog) int {
				return cmp.Or(cmp.Compare(a.App, b.App), cmp.Compare(a.Destination, b.Destination))
			})
			wantEqual(f, "backlogs", got, []relay.Backlog{
				{App: app, Endpoint: endpoint, Waiting: 2, NextAt: later(time.Hour)},
				{App: app, Endpoint: endpoint, Destination: "audit", Waiting: 1, NextAt: later(time.Second)},
				{App: "web", Endpoint: endpoint, Waiting: 2},
			})
		}},
		{"a backlog counts what is ready and leased and names the earliest time", func(f *fixture) {
			f.create(newEvent("1", due(later(3*time.Second))), newEvent("2", due(later(2*time.Second))), newEvent("3"),
				newEvent("4", state(relay.DeliveryDone)), newEvent("5", of(app, "done"), state(relay.DeliveryDead)),
				newEvent("6", of("web", "github"), due(later(time.Hour))),
				newEvent("7", of("web", "leased"), state(relay.DeliveryLeased)))
			f.claimOne("dlv_3")
			got, err := f.store.Backlogs(f.ctx)
			f.must(err)
			byEndpoint := make(map[string]relay.Backlog)
			for _, b := range got {
				byEndpoint[b.Endpoint] = b
			}
			wantEqual(f, "backlogs", byEndpoint, map[string]relay.Backlog{
				endpoint: {App: app, Endpoint: endpoint, Waiting: 3, NextAt: later(2 * time.Second)},
				"github": {App: "web", Endpoint: "github", Waiting: 1, NextAt: later(time.Hour)},
				"leased": {App: "web", Endpoint: "leased", Waiting: 1},
			})
		}},
		{"a store without unfinished work has no backlog", func(f *fixture) {
			f.create(newEvent("a"))
			f.must(f.finish(f.claimOne("dlv_a"), relay.DeliveryDone, start()))
			got, err := f.store.Backlogs(f.ctx)
			f.must(err)
			if len(got) != 0 {
				f.Fatalf("got %+v", got)
			}
		}},
	}
}

// claimTogether lets eight workers empty one endpoint, in which half of the
// deliveries share three order keys: those may only be claimed one at a time.
func claimTogether(f *fixture) {
	const total = 120
	var events []relay.NewEvent
	for i := range total {
		e := newEvent(fmt.Sprint(i))
		if i%2 == 0 {
			e.Deliveries[0].OrderKey = fmt.Sprint("key", i%3)
		}
		events = append(events, e)
	}
	_, err := f.store.CreateEvents(f.ctx, events)
	f.must(err)

	// If some delivery never became claimable, the workers would not end.
	ctx, cancel := context.WithTimeout(f.ctx, time.Minute)
	defer cancel()
	f.ctx = ctx

	claimed := make(chan relay.Delivery)
	ended := make(chan struct{})
	for i := range 8 {
		go func() {
			defer func() { ended <- struct{}{} }()
			claimUntilEmpty(f, fmt.Sprint("n", i), claimed)
		}()
	}
	times := make(map[relay.DeliveryID]int)
	for running := 8; running > 0; {
		select {
		case d := <-claimed:
			times[d.ID]++
		case <-ended:
			running--
		}
	}
	if len(times) != total {
		f.Errorf("%d of %d deliveries were claimed", len(times), total)
	}
	for id, n := range times {
		if n != 1 {
			f.Errorf("%s was claimed %d times", id, n)
		}
	}
}

// claimUntilEmpty claims and finishes three deliveries at a time until none is
// unfinished.
func claimUntilEmpty(f *fixture, owner string, claimed chan<- relay.Delivery) {
	for f.ctx.Err() == nil {
		leases, err := f.store.ClaimDeliveries(f.ctx, relay.Claim{
			Owner: owner, App: app, Endpoint: endpoint, Limit: 3, Now: start(), Until: later(time.Minute),
		})
		if err != nil {
			f.Error(err)
			return
		}
		for _, l := range leases {
			claimed <- l.Delivery
			if err := f.finish(l.Delivery, relay.DeliveryDone, start()); err != nil {
				f.Error(err)
				return
			}
		}
		if len(leases) > 0 {
			continue
		}
		// Others may hold the heads of the order keys: look whether all is done.
		backlogs, err := f.store.Backlogs(f.ctx)
		if err != nil {
			f.Error(err)
			return
		}
		if len(backlogs) == 0 {
			return
		}
	}
}

func orderTests() []test {
	return []test{
		{"of deliveries with one key only the oldest is claimable", func(f *fixture) {
			f.create(newEvent("a", ordered("k")), newEvent("b", ordered("k")), newEvent("c", ordered("k")))
			f.wantClaim(start(), "dlv_a")
			f.wantClaim(later(time.Hour)) // "a" is leased, which is unfinished
		}},
		{"one that arrives while an older one of its key is leased waits", func(f *fixture) {
			f.create(newEvent("a", ordered("k")))
			d := f.claimOne("dlv_a")
			f.create(newEvent("b", ordered("k")))
			f.wantClaim(start())
			f.must(f.finish(d, relay.DeliveryDone, start()))
			f.wantClaim(start(), "dlv_b")
		}},
		{"the next of a key follows when the one before is final", func(f *fixture) {
			f.create(newEvent("a", ordered("k")), newEvent("b", ordered("k")),
				newEvent("c", ordered("k")), newEvent("d", ordered("k")))
			f.must(f.finish(f.claimOne("dlv_a"), relay.DeliveryDone, start()))
			f.must(f.finish(f.claimOne("dlv_b"), relay.DeliveryDead, start()))
			f.must(f.finish(f.claimOne("dlv_c"), relay.DeliveryCancelled, start()))
			f.claimOne("dlv_d")
		}},
		{"one that waits for its retry holds back the younger ones of its key", func(f *fixture) {
			f.create(newEvent("a", ordered("k")), newEvent("b", ordered("k")))
			f.must(f.finish(f.claimOne("dlv_a"), relay.DeliveryReady, later(time.Minute)))
			f.wantClaim(later(30 * time.Second))
			f.wantClaim(later(time.Minute), "dlv_a")
		}},
		{"the older goes first even when the younger is due before it", func(f *fixture) {
			f.create(newEvent("a", ordered("k"), due(later(time.Minute))), newEvent("b", ordered("k")))
			f.wantClaim(start())
			f.wantClaim(later(time.Minute), "dlv_a")
		}},
		{"other keys and deliveries without one do not wait", func(f *fixture) {
			f.create(newEvent("a", ordered("k")), newEvent("b", ordered("k")), newEvent("c", ordered("l")),
				newEvent("d"), newEvent("e", ordered("l")), newEvent("f"))
			f.wantClaim(start(), "dlv_a", "dlv_c", "dlv_d", "dlv_f")
		}},
		{"the same key at another app, endpoint or destination does not wait", func(f *fixture) {
			f.create(newEvent("a", ordered("k"), of("web", endpoint)), newEvent("b", ordered("k"), of(app, "other")),
				newEvent("d", ordered("k"), to("audit")), newEvent("c", ordered("k")))
			f.wantClaim(start(), "dlv_c")
		}},
		{"keys are compared byte for byte", func(f *fixture) {
			f.create(newEvent("a", ordered("\xff")), newEvent("b", ordered("\xfe")), newEvent("c", ordered("k")),
				newEvent("d", ordered("K")), newEvent("e", ordered("k\x00")))
			f.wantClaim(start(), "dlv_a", "dlv_b", "dlv_c", "dlv_d", "dlv_e")
		}},
		{"the order of one call is the order of its events", func(f *fixture) {
			_, err := f.store.CreateEvents(f.ctx, []relay.NewEvent{
				newEvent("z", ordered("k")), newEvent("a", ordered("k")),
			})
			f.must(err)
			f.must(f.finish(f.claimOne("dlv_z"), relay.DeliveryDone, start()))
			f.claimOne("dlv_a")
		}},
		{"a finished delivery of the key holds nothing back", func(f *fixture) {
			f.create(newEvent("a", ordered("k"), state(relay.DeliveryDone)), newEvent("b", ordered("k")))
			f.wantClaim(start(), "dlv_b")
		}},
		{"a released delivery keeps its place in its key", func(f *fixture) {
			f.create(newEvent("a", ordered("k")), newEvent("b", ordered("k")))
			f.claimOne("dlv_a")
			_, err := f.store.ReleaseLeases(f.ctx, "n1")
			f.must(err)
			f.wantClaim(start(), "dlv_a")
			_, err = f.store.ReclaimExpired(f.ctx, later(time.Hour))
			f.must(err)
			f.wantClaim(later(time.Hour), "dlv_a")
		}},
	}
}
