package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/posternhq/postern/protocol/api"
)

var showVerb = eventVerb{
	name: "show", about: "one event: the request, its deliveries, and what the app answered", usage: "[flags] ID",
	examples: `postern events show evt_06fg3v9k2w
postern events show evt_06fg3v9k2w --body > body.bin
postern events show evt_06fg3v9k2w --json | jq '.attempts[-1].status'`,
	notes: "What the endpoint's redaction hides is hidden here too.",
	run:   showEvent,
}

// showEvent is postern events show.
func showEvent(ctx context.Context, c *console, v eventVerb, args []string) (int, error) {
	f := newEventFlags(v)
	raw := f.yes("raw", "the body as it came and in full: JSON not made readable")
	bodyOnly := f.yes("body", "write the body alone, byte by byte")
	f.asJSON("print the event as the API has it")
	if err := f.parse(c.out, args); err != nil {
		return exitUsage, err
	}
	id, err := f.one()
	if err != nil {
		return exitUsage, err
	}
	if *bodyOnly && *f.json {
		return exitUsage, usagef("--body and --json exclude one another")
	}
	client, err := f.apiFor()
	if err != nil {
		return exitUsage, err
	}
	ctx, stop := c.interruptible(ctx)
	defer stop()
	e, err := client.event(ctx, id)
	switch {
	case err != nil:
		return exitFailed, err
	case *f.json:
		return exitOK, c.printJSON(e)
	case *bodyOnly && e.Body == nil:
		return exitFailed, errors.New(noBody(e))
	case *bodyOnly:
		c.out.Write(e.Body.Bytes())
		return exitOK, nil
	}
	fmt.Fprint(c.out, c.page(e, *raw))
	return exitOK, nil
}

// event asks for one event.
func (c *apiClient) event(ctx context.Context, id string) (*api.EventDetail, error) {
	e := new(api.EventDetail)
	if err := c.call(ctx, apiRequest{path: []string{"events", id}}, e, maxEvent); err != nil {
		return nil, err
	}
	return e, nil
}

// page is all of e, to be read.
func (c *console) page(e *api.EventDetail, raw bool) string {
	var b strings.Builder
	title := func(s string) { b.WriteString("\n" + paint(c.color, bold, s) + "\n") }
	fmt.Fprintf(&b, "%s  %s  %s  %s\n\n", paint(c.color, bold, line(e.ID)), line(e.App+"/"+e.Endpoint),
		orDash(line(e.Type)), paint(c.color, stateColor(e.State), line(e.State)))
	c.facts(&b, e)
	title("Headers")
	for _, h := range e.Header {
		fmt.Fprintf(&b, "  %s: %s\n", line(h[0]), line(h[1]))
	}
	title("Body")
	if e.Body == nil {
		b.WriteString("  " + noBody(e) + "\n")
	} else {
		b.WriteString(indent(c.bodyText(e.Body, raw), "  ") + "\n")
	}
	if len(e.Deliveries) > 0 {
		title("Deliveries")
		c.deliveryTable(e.Deliveries).writeIndented(&b, "  ", c.color)
	}
	if len(e.Attempts) > 0 {
		title("Attempts")
		for _, a := range e.Attempts {
			c.attempt(&b, e, a)
		}
	}
	return b.String()
}

// facts are the lines at the top of a page.
func (c *console) facts(b *strings.Builder, e *api.EventDetail) {
	fact := func(name, text string, color ...string) {
		lines := wrap(text, c.width()-15)
		for i := range lines {
			lines[i] = paint(c.color, strings.Join(color, ";"), lines[i])
		}
		fmt.Fprintf(b, "  %s  %s\n", paint(c.color, dim, fmt.Sprintf("%-11s", name)), strings.Join(lines, "\n"+strings.Repeat(" ", 15)))
	}
	fact("received", fmt.Sprintf("%s, %s ago, from %s", e.ReceivedAt.In(c.zone).Format("2006-01-02 15:04:05.000 MST"),
		span(c.now().Sub(e.ReceivedAt)), line(e.RemoteIP)))
	url := e.PublicURL
	if url == "" {
		url = e.Target
	}
	fact("request", line(e.Method+" "+url))
	switch {
	case e.Refusal != "":
		fact("refused", line(e.Refusal), red)
	case e.Verified:
		fact("verified", "yes, the signature holds", green)
	default:
		fact("verified", "no; this endpoint checks no signature")
	}
	if e.DedupeKey != "" {
		fact("dedupe key", line(e.DedupeKey))
	}
	fact("body", size(e.BodySize))
	if !e.ExpiresAt.IsZero() {
		fact("kept until", e.ExpiresAt.In(c.zone).Format("2006-01-02 15:04 MST"))
	}
}

// noBody says why there is none.
func noBody(e *api.EventDetail) string {
	if e.BodyNote != "" {
		return line(e.BodyNote)
	}
	return fmt.Sprintf("the body (%s) is not kept any more", size(e.BodySize))
}

func (c *console) deliveryTable(deliveries []api.Delivery) *table {
	t := &table{columns: []column{
		{title: "ID"}, {title: "TO"}, {title: "WHY"}, {title: "STATE"}, {title: "TRIES", right: true}, {title: "LAST"},
	}}
	for _, d := range deliveries {
		why := line(d.Trigger)
		if d.Replay != "" {
			why += " " + line(d.Replay)
		}
		t.add(cell{line(d.ID), plain}, cell{receiver(d.Destination), plain}, cell{why, plain},
			cell{line(d.State), stateColor(d.State)}, cell{strconv.Itoa(d.Attempts), plain}, cell{c.standing(d), plain})
	}
	return t
}

func (t *table) writeIndented(b *strings.Builder, by string, color bool) {
	var inner strings.Builder
	t.write(&inner, 0, color)
	b.WriteString(indent(inner.String(), by) + "\n")
}

// receiver is what a destination is called.
func receiver(destination string) string {
	if destination == "" {
		return "the app"
	}
	return line(destination)
}

// attempt is one try and what the app said to it.
func (c *console) attempt(b *strings.Builder, e *api.EventDetail, a api.Attempt) {
	to := "the app"
	for _, d := range e.Deliveries {
		if d.ID == a.Delivery {
			to = receiver(d.Destination)
			if d.Replay != "" {
				to += ", replay"
			}
		}
	}
	if a.Instance != "" {
		to += " (" + line(a.Instance) + ")"
	}
	fmt.Fprintf(b, "  #%d  %s  to %s  %s\n", a.Number, a.StartedAt.In(c.zone).Format("2006-01-02 15:04:05.000"), to, c.outcome(a))
	for _, h := range a.Header {
		fmt.Fprintf(b, "      %s\n", paint(c.color, dim, line(h[0])+": "+line(h[1])))
	}
	if a.Body != nil && len(a.Body.Bytes()) > 0 {
		b.WriteString(indent(c.excerpt(a.Body, 20), "      ") + "\n")
	}
}

// outcome is how an attempt ended, in a few words.
func (c *console) outcome(a api.Attempt) string {
	took := span(time.Duration(a.Millis) * time.Millisecond)
	color := red
	if a.Outcome == "done" {
		color = green
	}
	if a.Status != 0 {
		return paint(c.color, color, strconv.Itoa(a.Status)) + " in " + took
	}
	text := line(a.Outcome)
	if a.Error != "" {
		text += ": " + line(a.Error)
	}
	return paint(c.color, color, text) + " after " + took
}

// wrap breaks s at blanks into lines of at most width columns; below 20 it is
// left as it is, because it would be unreadable.
func wrap(s string, width int) []string {
	if width < 20 || len(s) <= width {
		return []string{s}
	}
	var lines []string
	now := ""
	for word := range strings.SplitSeq(s, " ") {
		if now != "" && len([]rune(now))+1+len([]rune(word)) > width {
			lines, now = append(lines, now), word
			continue
		}
		if now != "" {
			now += " "
		}
		now += word
	}
	return append(lines, now)
}
