package admin

import (
	"unicode/utf8"

	"github.com/posternhq/postern/protocol/api"
	"github.com/posternhq/postern/relay"
)

// The records as the API's JSON has them. What is hidden was taken out before.

func eventView(e *relay.Event, deliveries []relay.Delivery) api.Event {
	return api.Event{
		ID: string(e.ID), App: string(e.App), Endpoint: e.Endpoint, ReceivedAt: e.ReceivedAt.UTC(),
		Method: e.Method, Target: plain(e.Target), RemoteIP: e.RemoteIP,
		Type: e.Type, DedupeKey: e.DedupeKey, Verified: e.Verified, Refusal: e.Refusal,
		BodySize: e.BodySize,
		State:    stateOf(e, deliveries), Deliveries: deliveryViews(deliveries),
	}
}

// stateOf is what there is to know about an event first. Of each destination its
// newest delivery counts: a replay that went well mends what failed before it.
func stateOf(e *relay.Event, deliveries []relay.Delivery) string {
	if e.Refusal != "" {
		return stateRefused
	}
	newest := make(map[string]relay.DeliveryState)
	for _, d := range deliveries { // oldest first
		newest[d.Destination] = d.State
	}
	for _, state := range []relay.DeliveryState{relay.DeliveryDead, relay.DeliveryReady, relay.DeliveryLeased, relay.DeliveryCancelled} {
		for _, s := range newest {
			if s == state {
				return state.String()
			}
		}
	}
	if len(newest) == 0 {
		return "stored"
	}
	return relay.DeliveryDone.String()
}

func deliveryViews(list []relay.Delivery) []api.Delivery {
	views := make([]api.Delivery, len(list))
	for i := range list {
		views[i] = deliveryView(list[i])
	}
	return views
}

func deliveryView(d relay.Delivery) api.Delivery {
	view := api.Delivery{
		ID: string(d.ID), Event: string(d.Event), Destination: d.Destination,
		Trigger: d.Trigger.String(), Replay: string(d.Replay), State: d.State.String(),
		Attempts: d.Attempt, LastStatus: d.LastStatus, LastError: plain(d.LastError),
	}
	if d.State == relay.DeliveryReady && !d.NextAt.IsZero() {
		next := d.NextAt.UTC()
		view.NextAt = &next
	}
	return view
}

// attemptView leaves the answer out unless it is asked for.
func attemptView(a relay.Attempt, withAnswer bool) api.Attempt {
	view := api.Attempt{
		Delivery: string(a.Delivery), Number: a.Number, StartedAt: a.StartedAt.UTC(),
		Millis: max(0, a.EndedAt.Sub(a.StartedAt).Milliseconds()), Instance: a.Instance,
		Outcome: a.Outcome.String(), Status: a.Status, Error: plain(a.Error),
	}
	if withAnswer {
		view.Header = fieldsView(a.Header)
		if a.Body != nil {
			view.Body = bodyView(a.Body)
		}
	}
	return view
}

func replayView(r relay.Replay) api.Replay {
	return api.Replay{
		ID: string(r.ID), App: string(r.App), By: r.By, CreatedAt: r.CreatedAt.UTC(), State: r.State.String(),
		Planned: r.Planned, Made: r.Made, Done: r.Done, Dead: r.Dead, Cancelled: r.Cancelled, Rate: r.Rate,
		Destination: r.Destination,
	}
}

// detailView has the request of an event, but no attempts.
func (v *seen) detailView(stored *relay.Event, deliveries []relay.Delivery) *api.EventDetail {
	view := v.summaryView(deliveries)
	view.Header = fieldsView(v.Header)
	if view.BodyNote = v.note(stored); view.BodyNote == "" {
		view.Body = bodyView(v.Body)
	}
	return view
}

// summaryView has neither headers nor a body.
func (v *seen) summaryView(deliveries []relay.Delivery) *api.EventDetail {
	view := &api.EventDetail{
		Event: eventView(&v.Event, deliveries), PublicURL: plain(v.PublicURL),
		ExpiresAt: v.ExpiresAt.UTC(), Attempts: []api.Attempt{},
	}
	if !v.gone {
		view.AppTarget = plain(appTarget(v.endpoint.Path, v.Target))
	}
	return view
}

func fieldsView(fields []relay.Field) [][2]string {
	view := make([][2]string, len(fields))
	for i, f := range fields {
		view[i] = [2]string{plain(f.Name), plain(f.Value)}
	}
	return view
}

// bodyView chooses the form in which the bytes stay what they are.
func bodyView(body []byte) *api.Body {
	if utf8.Valid(body) {
		return &api.Body{Text: string(body)}
	}
	return &api.Body{Base64: body}
}

// plain is s as JSON can have it. Bytes of a header that are no UTF-8 are read as
// Latin-1, which is what they are in practice (RFC 9110, section 5.5).
func plain(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	runes := make([]rune, len(s))
	for i := range len(s) {
		runes[i] = rune(s[i])
	}
	return string(runes)
}
