package storetest

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/posternhq/postern/relay"
)

func searchTests() []test { return slices.Concat(filterTests(), textTests(), pageTests()) }

// wantEvents lists and counts by one filter.
func (f *fixture) wantEvents(filter relay.EventFilter, want ...relay.EventID) {
	f.Helper()
	got, err := f.store.Events(f.ctx, filter)
	f.must(err)
	wantEqual(f, fmt.Sprintf("events of %+v", filter), eventIDs(got), want)
	n, err := f.store.CountEvents(f.ctx, filter)
	f.must(err)
	wantEqual(f, fmt.Sprintf("count of %+v", filter), n, len(want))
}

func received(at time.Time) func(*relay.NewEvent) {
	return func(n *relay.NewEvent) { n.Event.ReceivedAt = at }
}

func typed(name string) func(*relay.NewEvent) {
	return func(n *relay.NewEvent) { n.Event.Type = name }
}

func filterTests() []test {
	return []test{
		{"a filter selects by ids", func(f *fixture) {
			f.create(newEvent("1"), newEvent("2"), newEvent("3", of("web", endpoint)), newEvent("4"))
			f.wantEvents(relay.EventFilter{IDs: []relay.EventID{"evt_3", "evt_1", "evt_none", "evt_1"}}, "evt_3", "evt_1")
			f.wantEvents(relay.EventFilter{IDs: []relay.EventID{"evt_3", "evt_1"}, App: app}, "evt_1")
			f.wantEvents(relay.EventFilter{IDs: []relay.EventID{"evt_none"}})
		}},
		{"a filter selects by a type or by what it begins with", func(f *fixture) {
			f.create(newEvent("1", typed("invoice.paid")), newEvent("2", typed("invoice")), newEvent("3", typed("invoice.*")),
				newEvent("4", typed("\xffraw.\x00")), newEvent("5"), newEvent("6", typed("INVOICE.PAID")))
			f.wantEvents(relay.EventFilter{Type: "invoice.paid"}, "evt_1")
			f.wantEvents(relay.EventFilter{Type: "invoice.*"}, "evt_3", "evt_1")
			f.wantEvents(relay.EventFilter{Type: "invoice*"}, "evt_3", "evt_2", "evt_1")
			f.wantEvents(relay.EventFilter{Type: "\xffr*"}, "evt_4")
			f.wantEvents(relay.EventFilter{Type: "inv%"})
			f.wantEvents(relay.EventFilter{Type: "*", Limit: 10}, "evt_6", "evt_5", "evt_4", "evt_3", "evt_2", "evt_1")
		}},
		{"a filter selects by the states of deliveries", func(f *fixture) {
			f.create(newEvent("ready"), newEvent("done", state(relay.DeliveryDone)), newEvent("dead", state(relay.DeliveryDead)),
				newEvent("off", state(relay.DeliveryCancelled)), newEvent("leased", state(relay.DeliveryLeased)),
				newEvent("head", ordered("k")), newEvent("blocked", ordered("k")), relay.NewEvent{Event: newEvent("bare").Event},
				newEvent("two", state(relay.DeliveryDone), func(n *relay.NewEvent) {
					second := n.Deliveries[0]
					second.ID, second.Destination, second.State = "dlv_second", "copy", relay.DeliveryDead
					n.Deliveries = append(n.Deliveries, second)
				}),
				newEvent("mended", state(relay.DeliveryDead), func(n *relay.NewEvent) {
					later := n.Deliveries[0]
					later.ID, later.Trigger, later.State = "dlv_later", relay.TriggerReplay, relay.DeliveryDone
					n.Deliveries = append(n.Deliveries, later)
				}))
			for _, tt := range []struct {
				states []relay.DeliveryState
				want   []relay.EventID
			}{
				{[]relay.DeliveryState{relay.DeliveryReady}, []relay.EventID{"evt_blocked", "evt_head", "evt_ready"}},
				{[]relay.DeliveryState{relay.DeliveryLeased}, []relay.EventID{"evt_leased"}},
				{[]relay.DeliveryState{relay.DeliveryDone}, []relay.EventID{"evt_mended", "evt_two", "evt_done"}},
				{[]relay.DeliveryState{relay.DeliveryDead}, []relay.EventID{"evt_two", "evt_dead"}},
				{[]relay.DeliveryState{relay.DeliveryCancelled}, []relay.EventID{"evt_off"}},
				{[]relay.DeliveryState{relay.DeliveryDead, relay.DeliveryLeased, relay.DeliveryDead},
					[]relay.EventID{"evt_two", "evt_leased", "evt_dead"}},
				{[]relay.DeliveryState{relay.DeliveryDone, relay.DeliveryCancelled}, []relay.EventID{"evt_mended", "evt_two", "evt_off", "evt_done"}},
			} {
				f.wantEvents(relay.EventFilter{States: tt.states}, tt.want...)
				f.wantEvents(relay.EventFilter{States: tt.states, App: app, Endpoint: endpoint}, tt.want...)
				f.wantEvents(relay.EventFilter{States: tt.states, App: "web"})
			}
			dead := []relay.DeliveryState{relay.DeliveryDead}
			f.wantEvents(relay.EventFilter{States: dead, Destination: new("")}, "evt_dead")
			f.wantEvents(relay.EventFilter{States: dead, Destination: new("copy")}, "evt_two")
			f.wantEvents(relay.EventFilter{States: dead, Destination: new("none")})
		}},
		{"a filter selects what was refused, or what was accepted", func(f *fixture) {
			f.create(newEvent("1"), relay.NewEvent{Event: newEvent("2", func(n *relay.NewEvent) { n.Event.Refusal = "why" }).Event})
			yes, no := true, false
			f.wantEvents(relay.EventFilter{Refused: &yes}, "evt_2")
			f.wantEvents(relay.EventFilter{Refused: &no}, "evt_1")
		}},
		{"a filter selects by the time of arrival, whatever the order of commits", func(f *fixture) {
			f.create(newEvent("1", received(later(time.Minute))), newEvent("2", received(later(3*time.Minute))),
				newEvent("3", received(later(2*time.Minute))), newEvent("4", received(later(-time.Hour))),
				newEvent("5", received(later(4*time.Minute))), newEvent("6", received(later(2*time.Minute))))
			f.wantEvents(relay.EventFilter{Since: later(2 * time.Minute)}, "evt_6", "evt_5", "evt_3", "evt_2")
			f.wantEvents(relay.EventFilter{Until: later(2 * time.Minute)}, "evt_4", "evt_1")
			f.wantEvents(relay.EventFilter{Since: later(2 * time.Minute), Until: later(3 * time.Minute)}, "evt_6", "evt_3")
			f.wantEvents(relay.EventFilter{Since: later(2*time.Minute + 1), Until: later(3*time.Minute + 1)}, "evt_2")
			f.wantEvents(relay.EventFilter{Until: later(-time.Hour)})
			f.wantEvents(relay.EventFilter{Since: later(time.Hour)})
		}},
		{"all that is set must hold", func(f *fixture) {
			f.create(newEvent("1", typed("x")), newEvent("2", typed("y")), newEvent("3", typed("x"), state(relay.DeliveryDone)),
				newEvent("4", typed("x"), received(later(time.Minute))), newEvent("5", typed("x"), of("web", endpoint)))
			f.wantEvents(relay.EventFilter{App: app, Endpoint: endpoint, Type: "x*", States: []relay.DeliveryState{relay.DeliveryReady},
				Until: later(time.Second), Text: "body of"}, "evt_1")
		}},
		{"a count knows no page and no limit", func(f *fixture) {
			f.create(newEvent("1"), newEvent("2"), newEvent("3"))
			n, err := f.store.CountEvents(f.ctx, relay.EventFilter{Limit: 1, Before: "evt_2", After: "evt_2"})
			f.must(err)
			wantEqual(f, "count", n, 3)
		}},
	}
}

func textTests() []test {
	with := func(change func(*relay.Event)) func(*relay.NewEvent) {
		return func(n *relay.NewEvent) { change(&n.Event) }
	}
	return []test{
		{"a text is found in the body, a header, the target, the type and the dedupe key", func(f *fixture) {
			f.create(newEvent("body", with(func(e *relay.Event) { e.Body = []byte("..needle..") })),
				newEvent("value", with(func(e *relay.Event) {
					e.Header = []relay.Field{{Name: "A", Value: "b"}, {Name: "X", Value: "a needle"}}
				})),
				newEvent("name", with(func(e *relay.Event) { e.Header = []relay.Field{{Name: "X-needle"}} })),
				newEvent("target", with(func(e *relay.Event) { e.Target = "/?needle=1" })),
				newEvent("type", typed("needle.made")), newEvent("key", dedupe("needle-1")),
				newEvent("case", typed("Needle")), newEvent("none", with(func(e *relay.Event) { e.PublicURL = "https://x/" })))
			f.wantEvents(relay.EventFilter{Text: "needle"}, "evt_key", "evt_type", "evt_target", "evt_name", "evt_value", "evt_body")
			f.wantEvents(relay.EventFilter{Text: "Needle"}, "evt_case")
			f.wantEvents(relay.EventFilter{Text: "needle", App: "web"})
		}},
		{"a text is compared byte for byte", func(f *fixture) {
			f.create(newEvent("a", with(func(e *relay.Event) { e.Body = []byte("x\xff\x00%_y") })),
				newEvent("b", with(func(e *relay.Event) { e.Header = []relay.Field{{Name: "X", Value: "caf\xe9 \"<"}} })))
			f.wantEvents(relay.EventFilter{Text: "\xff\x00%"}, "evt_a")
			f.wantEvents(relay.EventFilter{Text: "\xe9 \"<"}, "evt_b")
			f.wantEvents(relay.EventFilter{Text: "x_y"})
		}},
		{"a text is found in a body of some megabytes", func(f *fixture) {
			f.create(newEvent("big", with(func(e *relay.Event) {
				e.Body = []byte(strings.Repeat("hay ", 1<<18) + "needle" + strings.Repeat(" hay", 1<<18))
			})), newEvent("bigger", with(func(e *relay.Event) { e.Body = make([]byte, 2<<20) })))
			f.wantEvents(relay.EventFilter{Text: "needle"}, "evt_big")
		}},
		{"pages of a text follow one another", func(f *fixture) {
			for i := range 7 {
				f.create(newEvent(fmt.Sprint(i), with(func(e *relay.Event) { e.Body = []byte([]string{"even", "odd"}[i%2]) })))
			}
			for _, tt := range []struct {
				filter relay.EventFilter
				want   []relay.EventID
			}{
				{relay.EventFilter{Limit: 2}, []relay.EventID{"evt_6", "evt_4"}},
				{relay.EventFilter{Limit: 2, Before: "evt_4"}, []relay.EventID{"evt_2", "evt_0"}},
				{relay.EventFilter{Limit: 2, Before: "evt_0"}, nil},
				{relay.EventFilter{Limit: 2, After: "evt_1"}, []relay.EventID{"evt_2", "evt_4"}},
			} {
				tt.filter.Text = "even"
				got, err := f.store.Events(f.ctx, tt.filter)
				f.must(err)
				wantEqual(f, fmt.Sprintf("page %+v", tt.filter), eventIDs(got), tt.want)
			}
		}},
	}
}

func pageTests() []test {
	return []test{
		{"a page after an event is oldest first", func(f *fixture) {
			f.create(newEvent("1"), newEvent("2"), newEvent("3", of("web", endpoint)), newEvent("4"), newEvent("5"))
			for _, tt := range []struct {
				filter relay.EventFilter
				want   []relay.EventID
			}{
				{relay.EventFilter{After: "evt_1"}, []relay.EventID{"evt_2", "evt_3", "evt_4", "evt_5"}},
				{relay.EventFilter{After: "evt_1", App: app, Limit: 2}, []relay.EventID{"evt_2", "evt_4"}},
				{relay.EventFilter{After: "evt_1", Before: "evt_4"}, []relay.EventID{"evt_2", "evt_3"}},
				{relay.EventFilter{After: "evt_5"}, nil},
			} {
				got, err := f.store.Events(f.ctx, tt.filter)
				f.must(err)
				wantEqual(f, fmt.Sprintf("page %+v", tt.filter), eventIDs(got), tt.want)
			}
		}},
		{"a page after an unknown event is NotFound", func(f *fixture) {
			f.create(newEvent("a"))
			_, err := f.store.Events(f.ctx, relay.EventFilter{After: "evt_gone"})
			f.wantCode(err, relay.NotFound)
		}},
		{"listed deliveries are those of their event, oldest first", func(f *fixture) {
			second := newEvent("b").Deliveries[0]
			second.ID, second.Destination = "dlv_again", "audit"
			f.create(newEvent("a"), newEvent("b", func(n *relay.NewEvent) { n.Deliveries = append(n.Deliveries, second) }))
			got, err := f.store.Events(f.ctx, relay.EventFilter{})
			f.must(err)
			wantEqual(f, "of a", got[1].Deliveries, newEvent("a").Deliveries)
			wantEqual(f, "of b", got[0].Deliveries, append(newEvent("b").Deliveries, second))
		}},
	}
}
