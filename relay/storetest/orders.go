package storetest

import (
	"fmt"
	"time"

	"github.com/posternhq/postern/relay"
)

func egressOrderTests() []test {
	return []test{
		{"an empty store has no orders", func(f *fixture) {
			f.wantOrders(start(), false)
			f.wantOrders(start(), true)
			_, err := f.store.EndOrder(f.ctx, "den_a", start())
			f.wantCode(err, relay.NotFound)
		}},
		{"an order comes back as it was", func(f *fixture) {
			deny, allow := newOrder("den_a"), newOrder("exc_a")
			deny.App = ""
			allow.Kind, allow.What, allow.EndedAt = relay.OrderAllow, "https://caf\u00e9.example", later(time.Second)
			f.must(f.store.CreateOrder(f.ctx, deny))
			f.must(f.store.CreateOrder(f.ctx, allow))
			got, err := f.store.Orders(f.ctx, start(), true)
			f.must(err)
			wantEqual(f, "orders", got, []relay.Order{allow, deny})
		}},
		{"one id has one order, and the first stays", func(f *fixture) {
			f.must(f.store.CreateOrder(f.ctx, newOrder("den_a")))
			f.wantNoCode(f.store.CreateOrder(f.ctx, newOrder("den_a", func(o *relay.Order) { o.What = "b.example" })))
			got, err := f.store.Orders(f.ctx, start(), false)
			f.must(err)
			wantEqual(f, "orders", got, []relay.Order{newOrder("den_a")})
		}},
		{"those in force have neither ended nor reached their time", func(f *fixture) {
			for name, until := range map[string]time.Duration{"den_1": time.Minute, "den_2": 2 * time.Minute, "den_3": 3 * time.Minute} {
				f.must(f.store.CreateOrder(f.ctx, newOrder(name, func(o *relay.Order) { o.Until = later(until) })))
			}
			f.must(f.store.CreateOrder(f.ctx, newOrder("den_4", func(o *relay.Order) { o.EndedAt = start() })))
			for now, want := range map[time.Duration]int{
				0: 3, time.Minute - time.Microsecond: 3, time.Minute: 2, 2 * time.Minute: 1, 3 * time.Minute: 0,
			} {
				live, err := f.store.Orders(f.ctx, later(now), false)
				f.must(err)
				if len(live) != want {
					f.Errorf("after %v there are %d: %v, want %d", now, len(live), live, want)
				}
			}
		}},
		{"they are listed newest first, whenever they end", func(f *fixture) {
			for i, until := range []time.Duration{3, 1, 4, 2} {
				f.must(f.store.CreateOrder(f.ctx, newOrder(fmt.Sprint("den_", i), func(o *relay.Order) {
					o.CreatedAt, o.Until = later(time.Duration(i)), later(until*time.Hour)
				})))
			}
			f.wantOrders(start(), false, "den_3", "den_2", "den_1", "den_0")
			f.wantOrders(later(90*time.Minute), false, "den_3", "den_2", "den_0")
			f.wantOrders(later(90*time.Minute), true, "den_3", "den_2", "den_1", "den_0")
		}},
		{"all are the newest thousand", func(f *fixture) {
			for i := range 1002 {
				f.must(f.store.CreateOrder(f.ctx, newOrder(fmt.Sprint("den_", i))))
			}
			got, err := f.store.Orders(f.ctx, start(), true)
			f.must(err)
			if len(got) != 1000 || got[0].ID != "den_1001" || got[999].ID != "den_2" {
				f.Fatalf("%d are listed, from %s to %s", len(got), got[0].ID, got[len(got)-1].ID)
			}
		}},
		{"a live one is ended, once", func(f *fixture) {
			want := newOrder("den_a")
			f.must(f.store.CreateOrder(f.ctx, want))
			f.must(f.store.CreateOrder(f.ctx, newOrder("den_b")))
			want.EndedAt = later(time.Second)
			got, err := f.store.EndOrder(f.ctx, "den_a", later(time.Second))
			f.must(err)
			wantEqual(f, "ended order", got, want)
			f.wantOrders(later(time.Second), false, "den_b")
			_, err = f.store.EndOrder(f.ctx, "den_a", later(2*time.Second))
			f.wantCode(err, relay.Conflict)
			all, err := f.store.Orders(f.ctx, start(), true)
			f.must(err)
			wantEqual(f, "stored order", all[1], want)
		}},
		{"one whose time is over cannot be ended", func(f *fixture) {
			want := newOrder("den_a")
			f.must(f.store.CreateOrder(f.ctx, want))
			_, err := f.store.EndOrder(f.ctx, "den_a", want.Until)
			f.wantCode(err, relay.Conflict)
			all, err := f.store.Orders(f.ctx, start(), true)
			f.must(err)
			wantEqual(f, "stored orders", all, []relay.Order{want})
		}},
	}
}

// newOrder is a deny that lasts for an hour.
func newOrder(id string, change ...func(*relay.Order)) relay.Order {
	o := relay.Order{ID: id, Kind: relay.OrderDeny, App: app, What: "a.example", Reason: "a leak", Owner: "ops",
		By: "tok_1 admin", CreatedAt: start(), Until: later(time.Hour)}
	for _, c := range change {
		c(&o)
	}
	return o
}

func (f *fixture) wantOrders(now time.Time, all bool, want ...string) {
	f.Helper()
	list, err := f.store.Orders(f.ctx, now, all)
	f.must(err)
	var got []string
	for _, o := range list {
		got = append(got, o.ID)
	}
	wantEqual(f, "orders", got, want)
}
