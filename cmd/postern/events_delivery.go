package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/posternhq/postern/protocol/api"
)

var requeueVerb = eventVerb{
	name: "requeue", about: "give dead or cancelled deliveries a fresh schedule", usage: "[flags] ID…",
	examples: `postern events requeue evt_06fg3v9k2w
postern events requeue dlv_06fg3v9m0s`,
	notes: "An event's id stands for its deliveries that are dead or cancelled.",
	run: func(ctx context.Context, c *console, v eventVerb, args []string) (int, error) {
		return actOnDeliveries(ctx, c, v, args, "dead", "cancelled")
	},
}

var cancelVerb = eventVerb{
	name: "cancel", about: "give up deliveries that wait, or a replay", usage: "[flags] ID…",
	examples: `postern events cancel evt_06fg3v9k2w
postern events cancel rpl_06fg41yd3c`,
	notes: "An event's id stands for its deliveries that are not finished.",
	run: func(ctx context.Context, c *console, v eventVerb, args []string) (int, error) {
		return actOnDeliveries(ctx, c, v, args, "ready", "leased")
	},
}

// actOnDeliveries requeues or cancels what args name: v.name is the API's word
// for it. Of an event those deliveries are meant that are in one of states.
func actOnDeliveries(ctx context.Context, c *console, v eventVerb, args []string, states ...string) (int, error) {
	f := newEventFlags(v)
	f.asJSON("print JSON lines: each delivery as it is now")
	if err := f.parse(c.out, args); err != nil {
		return exitUsage, err
	}
	if len(f.args) == 0 {
		return exitUsage, usagef("which one? postern %s evt_…", f.Name())
	}
	kinds := []string{"evt_", "dlv_"}
	if v.name == "cancel" {
		kinds = append(kinds, "rpl_")
	}
	for _, id := range f.args {
		if err := checkID(id, kinds...); err != nil {
			return exitUsage, err
		}
	}
	client, err := f.apiFor()
	if err != nil {
		return exitUsage, err
	}
	ctx, stop := c.interruptible(ctx)
	defer stop()
	code := exitOK
	for _, id := range f.args {
		if err := client.act(ctx, c, id, v.name, *f.json, states); err != nil {
			if len(f.args) == 1 || ctx.Err() != nil {
				return exitFailed, err
			}
			c.say("%s: %v", id, err)
			code = exitFailed
		}
	}
	return code, nil
}

// act does what to the delivery, event or replay id, and says so.
func (c *apiClient) act(ctx context.Context, console *console, id, what string, asJSON bool, states []string) error {
	if id[:4] == "rpl_" {
		r := &replayRun{c: console, client: c, json: asJSON}
		now, err := r.act(ctx, id, what)
		if err != nil {
			return err
		}
		if asJSON {
			return console.printJSONLine(now)
		}
		_, err = r.end(now)
		return err
	}
	ids := []string{id}
	if id[:4] == "evt_" {
		e, err := c.event(ctx, id)
		if err != nil {
			return err
		}
		ids = nil
		for _, d := range e.Deliveries {
			if slices.Contains(states, d.State) {
				ids = append(ids, d.ID)
			}
		}
		if len(ids) == 0 {
			return fmt.Errorf("no delivery of it is %s or %s", states[0], states[1])
		}
	}
	for _, id := range ids {
		var d api.Delivery
		if err := c.call(ctx, apiRequest{method: "POST", path: []string{"deliveries", id, what}}, &d, maxAnswer); err != nil {
			return err
		}
		if asJSON {
			console.printJSONLine(d)
			continue
		}
		fmt.Fprintf(console.out, "%s  to %s  %s\n", line(d.ID), receiver(d.Destination), paint(console.color, stateColor(d.State), line(d.State)))
	}
	return nil
}
