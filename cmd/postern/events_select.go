package main

import (
	"errors"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/posternhq/postern/protocol/api"
)

// selection is which events are meant, as the flags of list and replay say it.
type selection struct {
	endpoint, kind, text *string
	states               []string
	since, until         time.Time
	refused              *bool // nil: replay, which refused events have no part in
}

// selection gives f the flags of a selection.
func (f *eventFlags) selection(c *console) *selection {
	s := &selection{
		endpoint: f.str("endpoint", "only of this endpoint, by its `NAME`"),
		kind:     f.str("type", "only of this `TYPE`; invoice.* is every type with that beginning"),
	}
	f.value("state", "only where a delivery is in `STATE`: ready, leased, done, dead or cancelled; or several, with commas", func(v string) (err error) {
		s.states, err = states(v)
		return err
	})
	moment := func(name, about string, t *time.Time) {
		f.value(name, about, func(v string) (err error) {
			*t, err = when(v, c.now(), c.zone)
			return err
		})
	}
	moment("since", "received since `TIME`: 1h, 7d, 2026-11-21, 2026-11-21T15:04:05Z", &s.since)
	moment("until", "received before `TIME`", &s.until)
	s.text = f.str("text", "only with this `TEXT` in the body, a header, the target, the type or the dedupe key")
	return s
}

// states reads a list of delivery states.
func states(v string) ([]string, error) {
	known := []string{"ready", "leased", "done", "dead", "cancelled"}
	list := strings.Split(v, ",")
	for i, state := range list {
		list[i] = strings.TrimSpace(state)
		if !slices.Contains(known, list[i]) {
			if list[i] == "refused" {
				return nil, errors.New("refused events have no deliveries; list them with --refused")
			}
			return nil, errors.New("expected " + strings.Join(known, ", "))
		}
	}
	return list, nil
}

// check refuses a time that nothing can have been received in.
func (s *selection) check() error {
	if !s.since.IsZero() && !s.until.IsZero() && !s.since.Before(s.until) {
		return usagef("--since %s is not before --until %s", s.since.Format(time.RFC3339), s.until.Format(time.RFC3339))
	}
	return nil
}

// empty reports whether s selects everything.
func (s *selection) empty() bool {
	return *s.endpoint == "" && *s.kind == "" && *s.text == "" && len(s.states) == 0 && s.since.IsZero() && s.until.IsZero()
}

// query is s as the API's parameters.
func (s *selection) query() url.Values {
	q := url.Values{}
	set := func(name, value string) {
		if value != "" {
			q.Set(name, value)
		}
	}
	set("endpoint", *s.endpoint)
	set("type", *s.kind)
	set("text", *s.text)
	if len(s.states) > 0 {
		q["state"] = s.states
	}
	if !s.since.IsZero() {
		q.Set("since", s.since.UTC().Format(time.RFC3339Nano))
	}
	if !s.until.IsZero() {
		q.Set("until", s.until.UTC().Format(time.RFC3339Nano))
	}
	if s.refused != nil && *s.refused {
		q.Set("refused", strconv.FormatBool(true))
	}
	return q
}

// replay is s as a request for a replay.
func (s *selection) replay() api.ReplayRequest {
	r := api.ReplayRequest{Endpoint: *s.endpoint, Type: *s.kind, States: s.states, Text: *s.text}
	if !s.since.IsZero() {
		r.Since = new(s.since.UTC())
	}
	if !s.until.IsZero() {
		r.Until = new(s.until.UTC())
	}
	return r
}
