package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/api"
)

var statusVerb = eventVerb{
	name: "status", about: "which instances are connected, and how they are", usage: "[flags] [APP]",
	examples: `postern status
postern status shop
postern status --json | jq -r '.[] | select(.state != "ready").instance'`,
	notes: `Below the table is what the port doctor found, and why an app is not ready. The
exit code is 1 when an APP is named and no agent of it is connected.`,
	run: showStatus,
}

// runStatus is postern status.
func runStatus(ctx context.Context, args []string) (int, error) {
	return runAppVerb(ctx, statusVerb, args)
}

func showStatus(ctx context.Context, c *console, v eventVerb, args []string) (int, error) {
	f := newAppFlags(v)
	f.asJSON("print a JSON array, as the API has it")
	if err := f.parse(c.out, args); err != nil {
		return exitUsage, err
	}
	instance, err := f.target()
	if err != nil {
		return exitUsage, err
	}
	if instance != "" {
		return exitUsage, usagef("status takes an app, got the instance %q besides", instance)
	}
	client, err := f.apiFor()
	if err != nil {
		return exitUsage, err
	}
	ctx, stop := c.interruptible(ctx)
	defer stop()
	var list api.InstanceList
	if err := client.call(ctx, apiRequest{path: []string{"instances"}, ofApp: true}, &list, maxAnswer); err != nil {
		return exitFailed, err
	}
	code := exitOK
	if len(list.Instances) == 0 && *f.app != "" {
		code = exitFailed
	}
	if *f.json {
		return code, c.printData(append([]api.Instance{}, list.Instances...), true)
	}
	if len(list.Instances) == 0 {
		return code, c.nobody(ctx, client, code)
	}
	c.instanceTable(list.Instances).write(c.out, c.width(), c.color)
	for i := range list.Instances {
		c.remarks(&list.Instances[i])
	}
	return code, nil
}

// nobody says that no agent is connected, and how the last one ended.
func (c *console) nobody(ctx context.Context, client *apiClient, code int) error {
	app := line(client.tokenApp())
	if app == "" {
		c.say("no agent is connected")
		return nil
	}
	text := "no agent of " + app + " is connected"
	if all, err := client.lastWords(ctx, "", 1); err == nil && len(all) > 0 {
		w := all[0]
		text += "\n" + line(w.Instance) + " ended " + c.ago(w.EndedAt) + " ago: " + line(w.Reason) + "\npostern logs " + app + " has its last words"
	}
	if code != exitOK {
		return errors.New(text)
	}
	c.say("%s", text)
	return nil
}

// instanceTable is one line for each instance.
func (c *console) instanceTable(list []api.Instance) *table {
	severalApps := false
	for _, i := range list {
		severalApps = severalApps || i.App != list[0].App
	}
	t := &table{columns: []column{
		{title: "INSTANCE", min: 10}, {title: "STATE"}, {title: "PLATFORM", min: 4, drop: 4}, {title: "RELEASE", min: 4, drop: 3},
		{title: "SINCE", right: true}, {title: "IN FLIGHT", right: true, drop: 2}, {title: "MEMORY", right: true, drop: 1}, {title: "FINDINGS", min: 8},
	}}
	for _, i := range list {
		name := line(i.Instance)
		if severalApps {
			name = line(i.App) + "/" + name
		}
		state, color := stateWords(&i)
		platform := line(i.Platform)
		if i.Process != "" && platform != "" {
			platform += " " + line(i.Process)
		}
		codes, worst := findingCodes(i.Findings)
		t.add(
			cell{name, plain}, cell{state, color}, cell{orDash(platform), plain}, cell{orDash(line(i.Release)), plain},
			cell{c.ago(i.Since), plain}, cell{strconv.Itoa(i.InFlight), plain}, cell{memoryUse(i.Vitals), plain}, cell{codes, worst},
		)
	}
	return t
}

func stateWords(i *api.Instance) (text, color string) {
	if i.Draining {
		return "draining", dim
	}
	switch protocol.AppState(i.State) {
	case protocol.StateReady:
		return "ready", green
	case protocol.StateStarting:
		return "starting", yellow
	case protocol.StateFailed:
		return "failed", red
	}
	return orDash(line(i.State)), plain
}

// memoryUse is the app's memory, beside its limit where there is one.
func memoryUse(v *protocol.Vitals) string {
	switch {
	case v == nil:
		return "-"
	case v.Limit > 0:
		return mebibytes(v.RSS) + " of " + mebibytes(v.Limit)
	}
	return mebibytes(v.RSS)
}

// findingCodes are the codes of findings, and the colour of the worst.
func findingCodes(findings []protocol.Finding) (codes, color string) {
	if len(findings) == 0 {
		return "-", plain
	}
	list := make([]string, len(findings))
	for i, f := range findings {
		list[i] = line(f.Code)
	}
	return strings.Join(list, " "), severityColor(findings[0].Severity) // worst first
}

// remarks are what one line has no room for.
func (c *console) remarks(i *api.Instance) {
	name := line(i.Instance)
	if i.Why != "" && i.State != string(protocol.StateReady) {
		state, color := stateWords(i)
		fmt.Fprintf(c.out, "%s %s: %s\n", name, paint(c.color, color, state), line(i.Why))
	}
	for _, f := range i.Findings {
		fmt.Fprintf(c.out, "%s %s\n", name, paint(c.color, severityColor(f.Severity), findingWords(f)))
	}
}
