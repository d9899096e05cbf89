package main

import (
	"context"
	"fmt"
	"time"

	"github.com/posternhq/postern/protocol/api"
)

var egressStatusVerb = eventVerb{
	name: "egress status", about: "which policy each agent decides by, and what is under way", usage: "[flags]",
	examples: `postern egress status
postern egress status --app shop
postern egress status --json | jq '.applied_ms'`,
	notes: `A state is current, none yet, error, or older: the agent decides by a policy from before
the last change, which it may not have yet, or which does not concern it. Every call
that started is logged or in flight; administrators see how many, and a line says so when
that does not add up. The warnings are about lines and exceptions that end soon, or have.`,
	run: showEgressStatus,
}

// showEgressStatus is postern egress status.
func showEgressStatus(ctx context.Context, c *console, v eventVerb, args []string) (int, error) {
	f := newCallFlags(v)
	f.asJSON("print it as the API has it")
	client, err := f.parseAlone(c, args)
	if err != nil {
		return exitUsage, err
	}
	var s api.EgressStatus
	if err := c.ask(ctx, client, apiRequest{path: []string{"egress", "status"}, ofApp: true}, &s); err != nil {
		return exitFailed, err
	}
	if *f.json {
		return exitOK, c.printData(s, true)
	}
	facts := []fact{
		{name: "manifest", text: manifestWords(&s)},
	}
	if len(s.Agents) > 0 {
		facts = append(facts, fact{name: "last change", text: appliedWords(&s)})
	}
	// Nobody counts them by app: who sees one app is not told.
	if scope, app := tokenClaims(client.token); scope == "admin" && app == "" {
		facts = append(facts, fact{name: "calls", text: fmt.Sprintf("%d started, %d logged, %d in flight", s.Started, s.Logged, s.InFlight)})
	}
	if lost := s.Started - s.Logged - s.InFlight; lost != 0 {
		facts = append(facts, fact{name: "", text: fmt.Sprintf("does not add up: %d are neither logged nor in flight", lost), color: red})
	}
	for i, warning := range s.Warnings {
		facts = append(facts, fact{name: map[bool]string{true: "warning"}[i == 0], text: line(warning), color: yellow})
	}
	fmt.Fprint(c.out, c.factList(facts))
	if len(s.Agents) == 0 {
		c.say("no agent is connected")
		return exitOK, nil
	}
	fmt.Fprintln(c.out)
	c.policyTable(&s).write(c.out, c.width(), c.color)
	for _, a := range s.Agents {
		if a.Error != "" {
			fmt.Fprintf(c.out, "%s %s\n", line(a.App+"/"+a.Instance), paint(c.color, red, line(a.Error)))
		}
	}
	return exitOK, nil
}

func manifestWords(s *api.EgressStatus) string {
	text := versionWords(s.Version)
	if s.Canary != 0 {
		text += fmt.Sprintf(", and version %d as a canary", s.Canary)
	}
	return text
}

// appliedWords is how long the last change took.
func appliedWords(s *api.EgressStatus) string {
	switch {
	case s.AppliedMS < 0:
		return "not in force at every agent yet"
	case s.AppliedMS == 0: // none had to change
		return "in force at every agent"
	}
	return "in force at every agent after " + span(time.Duration(s.AppliedMS*float64(time.Millisecond)))
}

// policyTable is one line for each agent.
func (c *console) policyTable(s *api.EgressStatus) *table {
	t := &table{columns: []column{
		{title: "INSTANCE", min: 10}, {title: "MANIFEST"}, {title: "STATE"},
		{title: "SINCE", drop: 2}, {title: "TOOK", right: true, drop: 1},
	}}
	for _, a := range s.Agents {
		state, color := "current", green
		switch {
		case a.Error != "":
			state, color = "error", red
		case a.Serial == 0:
			state, color = "none yet", yellow
		case a.Serial < s.Serial && s.AppliedMS < 0:
			// A change that does not concern an app leaves it the policy it has, so
			// that this alone does not say that it is late.
			state, color = "older", yellow
		}
		since, took := "-", "-"
		if !a.AppliedAt.IsZero() {
			since, took = c.clock(a.AppliedAt), span(time.Duration(a.DelayMS*float64(time.Millisecond)))
		}
		version := versionWords(a.Version)
		if s.Canary != 0 && a.Version == s.Canary {
			version += " (canary)"
		}
		t.add(cell{line(a.App + "/" + a.Instance), plain}, cell{version, plain},
			cell{state, color}, cell{since, plain}, cell{took, plain})
	}
	return t
}
