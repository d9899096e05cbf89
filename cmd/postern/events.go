package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

// eventVerb is one command below postern events.
type eventVerb struct {
	name     string
	about    string
	usage    string // its arguments
	examples string // one on each line
	notes    string // what the flags do not say; may be empty
	run      func(ctx context.Context, c *console, v eventVerb, args []string) (int, error)
}

// eventVerbs are all of them, as the help shows them.
func eventVerbs() []eventVerb {
	return []eventVerb{listVerb, showVerb, tailVerb, replayVerb, exportVerb, requeueVerb, cancelVerb}
}

// runEvents is postern events …: a developer's view of the app's webhooks.
//
//	runEvents → events → eventVerb.run
//	  newEventFlags, parse       flags, their variables, arguments
//	  apiFor                     the client of the relay's API
//	  list, show, …              one file each: events_*.go
func runEvents(ctx context.Context, args []string) (int, error) {
	interrupts := make(chan os.Signal, 4)
	signal.Notify(interrupts, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(interrupts)
	return events(ctx, newConsole(interrupts), args)
}

// events runs the verb that args begin with.
func events(ctx context.Context, c *console, args []string) (int, error) {
	if len(args) == 0 {
		eventsHelp(c.errs)
		return exitUsage, usagef("which one? postern events list")
	}
	switch args[0] {
	case "--help", "-h", "-help", "help":
		eventsHelp(c.out)
		return exitOK, nil
	}
	for _, v := range eventVerbs() {
		if v.name != args[0] {
			continue
		}
		code, err := v.run(ctx, c, v, args[1:])
		switch {
		case c.out.gone():
			return exitOK, nil
		case err == nil && c.out.Err() != nil:
			return exitFailed, fmt.Errorf("write the result: %w", c.out.Err())
		case errors.Is(err, context.Canceled):
			return exitFailed, errors.New("interrupted")
		}
		return code, err
	}
	return exitUsage, usagef("there is no command %q; see postern events --help", "events "+args[0])
}

func eventsHelp(w io.Writer) {
	var b strings.Builder
	b.WriteString("postern events: what the app's webhooks are doing\n\nUsage:\n")
	for _, v := range eventVerbs() {
		fmt.Fprintf(&b, "  postern events %-8s %s\n", v.name, v.about)
	}
	b.WriteString(`
The relay and the token come from POSTERN_RELAY and POSTERN_TOKEN; the token is
of scope developer: postern-relay token create --app NAME --scope developer
Flags and examples: postern events list --help
`)
	io.WriteString(w, b.String())
}

// interruptible is ctx until the first interrupt. The second ends the process,
// should something hang. stop gives the interrupts back and reports whether there
// was one.
func (c *console) interruptible(ctx context.Context) (until context.Context, stop func() bool) {
	until, cancel := context.WithCancel(ctx)
	came := make(chan bool, 1)
	go func() {
		select {
		case <-c.interrupts:
			came <- true
			cancel()
			exitOnSecond(c.interrupts)
		case <-until.Done():
			came <- false
		}
	}()
	return until, func() bool {
		cancel()
		return <-came
	}
}
