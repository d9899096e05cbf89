package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

// verbGroup is the verbs below one word, such as postern egress.
type verbGroup struct {
	name  string // egress, manifest
	about string
	first string // the verb to try first
	notes string
	verbs []eventVerb // their names begin with the group's
}

// egressGroup is postern egress.
func egressGroup() verbGroup {
	return verbGroup{
		name: "egress", about: "what apps call, what they may call, and why", first: "explain https://api.example.com",
		notes: `The relay and the token come from POSTERN_RELAY and POSTERN_TOKEN. A token of scope
developer may look; deny and allow take an administrator's:
  postern-relay token create --scope admin
What may leave is in the manifest: postern apply, postern manifest --help
Flags and examples: postern egress explain --help
`,
		verbs: []eventVerb{explainVerb, callsVerb, denyVerb, allowVerb, learnVerb, egressStatusVerb, usageVerb},
	}
}

// runEgress is postern egress …: a developer's and an operator's view of the calls
// that apps make.
//
//	runEgress → runGroup → verbGroup.run → eventVerb.run
//	  newCallFlags, parse        flags, their variables, arguments: egress_flags.go
//	  apiFor                     the client of the relay's API
//	  explain, log, deny, …      one file each: egress_*.go
func runEgress(ctx context.Context, args []string) (int, error) {
	return runGroup(ctx, egressGroup(), args)
}

// runGroup runs a verb of g as the process's own.
func runGroup(ctx context.Context, g verbGroup, args []string) (int, error) {
	interrupts := make(chan os.Signal, 4)
	signal.Notify(interrupts, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(interrupts)
	return g.run(ctx, newConsole(interrupts), args)
}

// run runs the verb that args begin with.
func (g verbGroup) run(ctx context.Context, c *console, args []string) (int, error) {
	if len(args) == 0 {
		g.help(c.errs)
		return exitUsage, usagef("which one? postern %s %s", g.name, g.first)
	}
	switch args[0] {
	case "--help", "-h", "-help", "help":
		g.help(c.out)
		return exitOK, nil
	}
	for _, v := range g.verbs {
		if v.name == g.name+" "+args[0] {
			return appVerb(ctx, c, v, args[1:])
		}
	}
	return exitUsage, usagef("there is no command %q; see postern %s --help", g.name+" "+args[0], g.name)
}

func (g verbGroup) help(w io.Writer) {
	var b strings.Builder
	fmt.Fprintf(&b, "postern %s: %s\n\nUsage:\n", g.name, g.about)
	width := 0
	for _, v := range g.verbs {
		width = max(width, len(v.name))
	}
	for _, v := range g.verbs {
		fmt.Fprintf(&b, "  postern %-*s  %s\n", width, v.name, v.about)
	}
	b.WriteString("\n" + g.notes)
	io.WriteString(w, b.String())
}
