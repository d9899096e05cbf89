package storetest

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/posternhq/postern/relay"
)

// rawBytes is every byte value once, so that it is neither UTF-8 nor free of
// zero bytes.
func rawBytes() string {
	var b strings.Builder
	for i := range 256 {
		b.WriteByte(byte(i))
	}
	return b.String()
}

// fullEvent has a value in every field, awkward ones where a sender chooses.
func fullEvent() relay.Event {
	return relay.Event{
		ID: "evt_full", App: app, Endpoint: endpoint, ReceivedAt: start(),
		Method: "PUT", Target: "/a%20b/\xff\xfe?x=1&x=2", PublicURL: "https://hooks.example.com/hooks/shop/stripe/a%20b/\xff",
		Header: []relay.Field{
			{Name: "X-Twice", Value: "1"}, {Name: "x-twice", Value: "2"}, {Name: "X-Twice", Value: "1"},
			{Name: "X-Empty", Value: ""}, {Name: "", Value: "no name"},
			{Name: "X-Latin", Value: "caf\xe9"}, {Name: "X-Utf8", Value: "caf\u00e9 \u2603 \U0001f4a3"},
			{Name: "X-\xff\x00", Value: rawBytes()}, {Name: "X-Quote", Value: `"\u0000",["&<>"]`},
		},
		Body: []byte(rawBytes() + rawBytes()), RemoteIP: "2001:db8::1",
		Type: "charge.\xe9\x00", SentAt: later(-time.Second), DedupeKey: "key \x00\xff", Verified: true,
		BodyExpiresAt: later(7 * 24 * time.Hour), ExpiresAt: later(30 * 24 * time.Hour),
	}
}

func eventTests() []test {
	return slices.Concat(roundTripTests(), listTests(), []test{
		{"no events are no receipts", func(f *fixture) {
			receipts, err := f.store.CreateEvents(f.ctx, nil)
			f.must(err)
			if len(receipts) != 0 {
				f.Fatalf("got %+v", receipts)
			}
		}},
		{"receipts are in the order given", func(f *fixture) {
			f.create(newEvent("old", dedupe("k")))
			got, err := f.store.CreateEvents(f.ctx, []relay.NewEvent{
				newEvent("z"), newEvent("dup", dedupe("k")), newEvent("a"),
			})
			f.must(err)
			wantEqual(f, "receipts", got, []relay.Receipt{
				{ID: "evt_z"}, {ID: "evt_old", Duplicate: true}, {ID: "evt_a"},
			})
		}},
		{"one event that cannot be stored leaves nothing of its call", func(f *fixture) {
			f.create(newEvent("a"))
			again := newEvent("a") // the same ids once more
			_, err := f.store.CreateEvents(f.ctx, []relay.NewEvent{newEvent("b"), again, newEvent("c")})
			f.wantNoCode(err)
			got, err := f.store.Events(f.ctx, relay.EventFilter{})
			f.must(err)
			wantEqual(f, "events", eventIDs(got), []relay.EventID{"evt_a"})
			f.wantClaim(start(), "dlv_a")
		}},
		{"an attempt of a delivery that does not come with it is refused", func(f *fixture) {
			f.create(newEvent("a"))
			_, err := f.store.CreateEvents(f.ctx, []relay.NewEvent{newEvent("b", func(n *relay.NewEvent) {
				n.Attempts = []relay.Attempt{{Delivery: "dlv_a"}}
			})})
			f.wantNoCode(err)
		}},
		{"an unknown event is NotFound", func(f *fixture) {
			f.create(newEvent("a"))
			_, err := f.store.Event(f.ctx, "evt_b")
			f.wantCode(err, relay.NotFound)
		}},
	})
}

func roundTripTests() []test {
	return []test{
		{"an event comes back byte for byte", func(f *fixture) {
			want := fullEvent()
			f.create(relay.NewEvent{Event: want})
			got, err := f.store.Event(f.ctx, want.ID)
			f.must(err)
			f.wantEvent(got, want)
		}},
		{"a claimed event comes back byte for byte", func(f *fixture) {
			want := fullEvent()
			f.create(relay.NewEvent{Event: want, Deliveries: newEvent("full").Deliveries})
			leases := f.claimAt(start(), 1)
			if len(leases) != 1 {
				f.Fatalf("claimed %v", ids(leases))
			}
			f.wantEvent(leases[0].Event, want)
		}},
		{"fields that are empty come back empty", func(f *fixture) {
			want := relay.Event{ID: "evt_bare", App: app, Endpoint: endpoint, ReceivedAt: start()}
			f.create(relay.NewEvent{Event: want})
			got, err := f.store.Event(f.ctx, want.ID)
			f.must(err)
			f.wantEvent(got, want)
		}},
		{"empty slices are stored like nil ones", func(f *fixture) {
			e := newEvent("a")
			e.Event.Header, e.Event.Body = []relay.Field{}, []byte{}
			f.create(e)
			got, err := f.store.Event(f.ctx, "evt_a")
			f.must(err)
			if len(got.Header) != 0 || len(got.Body) != 0 {
				f.Fatalf("got header %q and body %q", got.Header, got.Body)
			}
		}},
		{"a body of some megabytes comes back byte for byte", func(f *fixture) {
			e := newEvent("big")
			e.Event.Body = bytes.Repeat([]byte(rawBytes()), 3<<20/256)
			f.create(e)
			got, err := f.store.Event(f.ctx, "evt_big")
			f.must(err)
			f.wantEvent(got, e.Event)
		}},
		{"times are kept to the microsecond and come back in UTC", func(f *fixture) {
			zone := time.FixedZone("east", 5*3600)
			e := newEvent("a")
			e.Event.ReceivedAt = start().Add(999 * time.Nanosecond).In(zone)
			e.Event.SentAt = time.Date(1969, 7, 20, 20, 17, 40, 1000, zone) // before 1970
			f.create(e)
			got, err := f.store.Event(f.ctx, "evt_a")
			f.must(err)
			want := e.Event
			want.ReceivedAt, want.SentAt = start(), e.Event.SentAt.UTC()
			f.wantEvent(got, want)
		}},
		{"deliveries come back with every field, oldest first", func(f *fixture) {
			e := newEvent("a")
			e.Deliveries = []relay.Delivery{
				{ID: "dlv_z", Event: "evt_a", App: app, Endpoint: endpoint, OrderKey: "k\xff\x00",
					State: relay.DeliveryLeased, Attempt: 3, NextAt: later(time.Second), LeaseOwner: "n7",
					LeaseUntil: later(time.Minute), LeaseGen: 9, LastStatus: 500, LastError: "caf\u00e9"},
				{ID: "dlv_a", Event: "evt_a", App: "web", Endpoint: "other", State: relay.DeliveryCancelled},
				{ID: "dlv_m", Event: "evt_a", App: app, Endpoint: endpoint, Destination: "audit", Trigger: relay.TriggerReplay,
					Replay: "rpl_gone", State: relay.DeliveryDone},
			}
			f.create(e)
			got, err := f.store.Deliveries(f.ctx, "evt_a")
			f.must(err)
			wantEqual(f, "deliveries", got, e.Deliveries)
		}},
		{"an event needs no delivery, and an unknown one has none", func(f *fixture) {
			f.create(relay.NewEvent{Event: fullEvent()})
			for _, id := range []relay.EventID{"evt_full", "evt_unknown"} {
				got, err := f.store.Deliveries(f.ctx, id)
				f.must(err)
				if len(got) != 0 {
					f.Fatalf("deliveries of %s: %+v", id, got)
				}
			}
		}},
	}
}

func listTests() []test {
	return []test{
		{"events are listed newest first, whole but without their bodies", func(f *fixture) {
			full := fullEvent()
			f.create(newEvent("z"), relay.NewEvent{Event: full}, newEvent("a"))
			got, err := f.store.Events(f.ctx, relay.EventFilter{})
			f.must(err)
			wantEqual(f, "events", eventIDs(got), []relay.EventID{"evt_a", "evt_full", "evt_z"})
			full.BodySize, full.Body = int64(len(full.Body)), nil
			wantEqual(f, "listed event", got[1], relay.Listed{Event: full})
			wantEqual(f, "listed deliveries", got[2].Deliveries, newEvent("z").Deliveries)
		}},
		{"a filter selects by app and by endpoint", func(f *fixture) {
			f.create(newEvent("1", of("shop", "stripe")), newEvent("2", of("shop", "github")),
				newEvent("3", of("web", "stripe")), newEvent("4", of("shop", "stripe")))
			for _, tt := range []struct {
				filter relay.EventFilter
				want   []relay.EventID
			}{
				{relay.EventFilter{}, []relay.EventID{"evt_4", "evt_3", "evt_2", "evt_1"}},
				{relay.EventFilter{App: "shop"}, []relay.EventID{"evt_4", "evt_2", "evt_1"}},
				{relay.EventFilter{Endpoint: "stripe"}, []relay.EventID{"evt_4", "evt_3", "evt_1"}},
				{relay.EventFilter{App: "shop", Endpoint: "github"}, []relay.EventID{"evt_2"}},
				{relay.EventFilter{App: "shop", Endpoint: "stripe"}, []relay.EventID{"evt_4", "evt_1"}},
				{relay.EventFilter{App: "nobody"}, nil},
				{relay.EventFilter{App: "shop", Before: "evt_3"}, []relay.EventID{"evt_2", "evt_1"}},
			} {
				got, err := f.store.Events(f.ctx, tt.filter)
				f.must(err)
				wantEqual(f, fmt.Sprintf("events of %+v", tt.filter), eventIDs(got), tt.want)
			}
		}},
		{"pages follow one another without gap or repetition while events arrive", func(f *fixture) {
			for i := range 10 {
				f.create(newEvent(fmt.Sprint(i)))
			}
			var seen []relay.EventID
			for before := relay.EventID(""); ; {
				page, err := f.store.Events(f.ctx, relay.EventFilter{Before: before, Limit: 3})
				f.must(err)
				if len(page) == 0 {
					break
				}
				seen = append(seen, eventIDs(page)...)
				before = seen[len(seen)-1]
				f.create(newEvent("new" + string(before)))
			}
			var want []relay.EventID
			for i := 9; i >= 0; i-- {
				want = append(want, relay.EventID(fmt.Sprint("evt_", i)))
			}
			wantEqual(f, "pages", seen, want)
		}},
		{"a list has 100 events unless asked, and never more than 1000", func(f *fixture) {
			var many []relay.NewEvent
			for i := range 1010 {
				many = append(many, relay.NewEvent{Event: newEvent(fmt.Sprint(i)).Event})
			}
			_, err := f.store.CreateEvents(f.ctx, many)
			f.must(err)
			for limit, want := range map[int]int{0: 100, 7: 7, 1000: 1000, 5000: 1000} {
				got, err := f.store.Events(f.ctx, relay.EventFilter{Limit: limit})
				f.must(err)
				if len(got) != want {
					f.Errorf("limit %d: %d events, want %d", limit, len(got), want)
				}
			}
		}},
		{"a page before an unknown event is NotFound", func(f *fixture) {
			f.create(newEvent("a"))
			_, err := f.store.Events(f.ctx, relay.EventFilter{Before: "evt_gone"})
			f.wantCode(err, relay.NotFound)
		}},
	}
}
