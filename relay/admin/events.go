package admin

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/posternhq/postern/protocol/api"
	"github.com/posternhq/postern/relay"
)

// Limits of a list.
const (
	defaultPage = 100
	maxPage     = 1000 // also the store's
)

// stateRefused is the state of an event that was turned away. It is none of a
// delivery's.
const stateRefused = "refused"

func (s *Server) listEvents(c *call) (any, error) {
	f, err := filterOf(c)
	if err != nil {
		return nil, err
	}
	listed, next, err := s.findEvents(c.ctx(), f, c.query.number("limit", defaultPage))
	if relay.CodeOf(err) == relay.NotFound {
		return nil, relay.Errorf(relay.Invalid, `the query parameter "before" names an event that is not there any more; begin without it`)
	}
	if err != nil {
		return nil, err
	}
	list := api.EventList{Events: make([]api.Event, len(listed)), Next: string(next)}
	for i, l := range listed {
		v := s.sight(l.Event)
		list.Events[i] = eventView(&v.Event, l.Deliveries)
	}
	return list, nil
}

// filterOf is the selection that a query makes.
func filterOf(c *call) (relay.EventFilter, error) {
	q := c.query
	f := relay.EventFilter{
		App: c.app, Endpoint: q.text("endpoint"), Type: q.text("type"),
		Since: q.time("since"), Until: q.time("until"), Text: q.text("text"),
		Before: relay.EventID(q.text("before")),
	}
	if refused, asked := q.flag("refused"); asked {
		f.Refused = &refused
	}
	words := q.words("state")
	if slices.Equal(words, []string{stateRefused}) && f.Refused == nil {
		f.Refused, words = new(bool), nil
		*f.Refused = true
	}
	var err error
	if f.States, err = states(words); err != nil {
		return f, err
	}
	return f, checkSpan(f.Since, f.Until)
}

func checkSpan(since, until time.Time) error {
	if !since.IsZero() && !until.IsZero() && !since.Before(until) {
		return relay.Errorf(relay.Invalid, "since is not before until, so no event can be between them")
	}
	return nil
}

// allStates are the states of a delivery by name.
var allStates = []relay.DeliveryState{
	relay.DeliveryReady, relay.DeliveryLeased, relay.DeliveryDone, relay.DeliveryDead, relay.DeliveryCancelled,
}

func states(words []string) ([]relay.DeliveryState, error) {
	var list []relay.DeliveryState
	for _, word := range words {
		i := slices.IndexFunc(allStates, func(s relay.DeliveryState) bool { return s.String() == word })
		if i < 0 && word == stateRefused {
			return nil, relay.Errorf(relay.Invalid, "refused events have no deliveries: ask for the state refused alone")
		}
		if i < 0 {
			return nil, relay.Errorf(relay.Invalid, "the state %s is not known; there are ready, leased, done, dead, cancelled and refused", quoted(word))
		}
		if !slices.Contains(list, allStates[i]) {
			list = append(list, allStates[i])
		}
	}
	return list, nil
}

// findEvents lists a page of the events that f selects, and the last one's id
// when there are more. A text counts only where people see it.
func (s *Server) findEvents(ctx context.Context, f relay.EventFilter, limit int) (found []relay.Listed, next relay.EventID, err error) {
	q := search{text: f.Text}
	f.Limit = min(limit+1, maxPage)
	for {
		page, err := s.cfg.Store.Events(ctx, f)
		if err != nil {
			return nil, "", err
		}
		for _, l := range page {
			ok, spent, err := s.finds(ctx, &q, l.Event)
			if err != nil {
				return nil, "", err
			}
			if spent {
				return found, f.Before, nil
			}
			if ok && len(found) == limit {
				return found, found[limit-1].Event.ID, nil
			}
			if ok {
				found = append(found, l)
			}
			f.Before = l.Event.ID
		}
		if len(page) < f.Limit {
			return found, "", nil
		}
	}
}

// event gets one event that the token reaches. One of another app is not there:
// a 403 would say that it is.
func (s *Server) event(c *call) (relay.Event, error) {
	missing := relay.Errorf(relay.NotFound, "there is no event %s", quoted(c.path()))
	if !validID(c.path()) {
		return relay.Event{}, missing
	}
	e, err := s.cfg.Store.Event(c.ctx(), relay.EventID(c.path()))
	if relay.CodeOf(err) == relay.NotFound || err == nil && !c.may(e.App) {
		return relay.Event{}, missing
	}
	return e, err
}

// validID reports whether s may be a record's id. The store is not asked for
// anything else.
func validID(s string) bool {
	return s != "" && len(s) <= maxID && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_' && r != '-'
	})
}

func (s *Server) showEvent(c *call) (any, error) {
	e, err := s.event(c)
	if err != nil {
		return nil, err
	}
	deliveries, err := s.cfg.Store.Deliveries(c.ctx(), e.ID)
	if err != nil {
		return nil, err
	}
	attempts, err := s.attempts(c.ctx(), deliveries)
	if err != nil {
		return nil, err
	}
	v := s.sight(e)
	view := v.detailView(&e, deliveries)
	for _, a := range attempts {
		view.Attempts = append(view.Attempts, attemptView(v.attempt(a), true))
	}
	return view, nil
}

// attempts are those of all deliveries, in the order they began.
func (s *Server) attempts(ctx context.Context, deliveries []relay.Delivery) ([]relay.Attempt, error) {
	var all []relay.Attempt
	for _, d := range deliveries {
		list, err := s.cfg.Store.Attempts(ctx, d.ID)
		if err != nil {
			return nil, err
		}
		all = append(all, list...)
	}
	slices.SortStableFunc(all, func(a, b relay.Attempt) int {
		return cmp.Or(a.StartedAt.Compare(b.StartedAt), cmp.Compare(a.Number, b.Number))
	})
	return all, nil
}
