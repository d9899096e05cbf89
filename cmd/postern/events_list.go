package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/posternhq/postern/protocol/api"
)

var listVerb = eventVerb{
	name: "list", about: "the app's events, newest first", usage: "[flags]",
	examples: `postern events list --since 1h --state dead
postern events list --type 'invoice.*' --text cus_123
postern events list --refused
postern events list --limit 1000 --json | jq -r '.[] | select(.state == "dead").id'`,
	notes: "Times are local, and in UTC with --json, which prints one array.",
	run:   listEvents,
}

const (
	listDefault = 50     // events, without --limit
	listMost    = 100000 // they are in memory until they are printed
	pageMost    = 500    // events the relay is asked for at once
)

// listEvents is postern events list.
func listEvents(ctx context.Context, c *console, v eventVerb, args []string) (int, error) {
	f := newEventFlags(v)
	s := f.selection(c)
	s.refused = f.yes("refused", "only those that were turned away")
	limit := listDefault
	f.value("limit", fmt.Sprintf("at most `N` events; default %d", listDefault), func(v string) (err error) {
		if limit, err = strconv.Atoi(v); err != nil || limit < 1 || limit > listMost {
			return fmt.Errorf("expected a number from 1 to %d", listMost)
		}
		return nil
	})
	f.asJSON("print a JSON array, as the API has it")
	if err := f.parse(c.out, args); err != nil {
		return exitUsage, err
	}
	if err := errors.Join(f.none(), s.check()); err != nil {
		return exitUsage, err
	}
	if *s.refused && len(s.states) > 0 {
		return exitUsage, usagef("--refused and --state together select nothing: a refused event has no deliveries")
	}
	client, err := f.apiFor()
	if err != nil {
		return exitUsage, err
	}
	ctx, stop := c.interruptible(ctx)
	defer stop()
	events, more, err := client.list(ctx, s, limit)
	if err != nil {
		return exitFailed, err
	}
	if *f.json {
		return exitOK, c.printJSON(events)
	}
	if len(events) == 0 {
		c.say("no events%s", map[bool]string{true: " yet", false: " match"}[s.empty() && !*s.refused])
		return exitOK, nil
	}
	c.eventTable(events).write(c.out, c.width(), c.color)
	if more && c.errTerminal {
		c.say("there are more; --limit %d shows them", min(limit*10, listMost))
	}
	return exitOK, nil
}

// list asks for pages until limit events are there; more says that there are
// others.
func (c *apiClient) list(ctx context.Context, s *selection, limit int) (events []api.Event, more bool, err error) {
	query := s.query()
	events = []api.Event{} // no null in JSON
	for {
		query.Set("limit", strconv.Itoa(min(limit-len(events), pageMost)))
		var page api.EventList
		if err := c.call(ctx, apiRequest{path: []string{"events"}, query: query, ofApp: true}, &page, maxAnswer); err != nil {
			return nil, false, err
		}
		events = append(events, page.Events...)
		switch {
		case len(events) >= limit:
			return events[:limit], page.Next != "" || len(events) > limit, nil
		case page.Next == "" || page.Next == query.Get("before"):
			return events, false, nil
		}
		query.Set("before", page.Next)
	}
}

// printJSON writes one document, indented as people read it.
func (c *console) printJSON(v any) error {
	e := json.NewEncoder(c.out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// printJSONLine writes one document as one line.
func (c *console) printJSONLine(v any) error {
	e := json.NewEncoder(c.out)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// eventTable is events as list and replay show them.
func (c *console) eventTable(events []api.Event) *table {
	severalApps := false
	for _, e := range events {
		severalApps = severalApps || e.App != events[0].App
	}
	t := &table{columns: []column{
		{title: "RECEIVED"}, {title: "ID"},
		{title: "ENDPOINT", min: 8}, {title: "TYPE", min: 12, drop: 2},
		{title: "STATE"}, {title: "TRIES", right: true, drop: 4}, {title: "LAST", min: 12, drop: 3},
	}}
	for _, e := range events {
		endpoint := line(e.Endpoint)
		if severalApps {
			endpoint = line(e.App) + "/" + endpoint
		}
		tries := 0
		for _, d := range e.Deliveries {
			tries += d.Attempts
		}
		t.add(
			cell{c.clock(e.ReceivedAt), plain}, cell{line(e.ID), plain},
			cell{endpoint, plain}, cell{orDash(line(e.Type)), plain},
			cell{line(e.State), stateColor(e.State)}, cell{strconv.Itoa(tries), plain}, cell{c.last(e), plain},
		)
	}
	return t
}

// clock is t as a table has it: shorter the longer it is ago.
func (c *console) clock(t time.Time) string {
	t, now := t.In(c.zone), c.now().In(c.zone)
	if t.Year() == now.Year() && t.YearDay() == now.YearDay() {
		return t.Format("15:04:05")
	}
	if t.Year() == now.Year() {
		return t.Format("Jan _2 15:04")
	}
	return t.Format("2006-01-02")
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func stateColor(state string) string {
	switch state {
	case "done":
		return green
	case "dead", "refused":
		return red
	case "ready":
		return yellow
	case "leased":
		return cyan
	case "cancelled":
		return dim
	}
	return plain
}

// last says how the event's most urgent delivery stands.
func (c *console) last(e api.Event) string {
	if e.Refusal != "" {
		return line(e.Refusal)
	}
	for _, d := range e.Deliveries {
		if d.State == e.State {
			text := c.standing(d)
			if d.Destination != "" && text != "" {
				text = line(d.Destination) + ": " + text
			}
			return text
		}
	}
	return ""
}

// standing says how d ended, or when it goes on.
func (c *console) standing(d api.Delivery) string {
	text := line(d.LastError)
	if d.LastStatus != 0 {
		text = strconv.Itoa(d.LastStatus)
	}
	if d.State != "ready" || d.NextAt == nil {
		return text
	}
	wait := d.NextAt.Sub(c.now())
	switch {
	case text == "" && wait > 0:
		return "in " + span(wait)
	case text == "":
		return "waiting"
	case wait > 0:
		return text + ", again in " + span(wait)
	}
	return text + ", due"
}
