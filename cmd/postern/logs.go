package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
)

var logsVerb = eventVerb{
	name: "logs", about: "what the app's instances write, or wrote before they ended", usage: "[flags] APP[/INSTANCE]",
	examples: `postern logs shop
postern logs -f shop/web.1
postern logs --last-words shop/worker.2
postern logs --json -f shop | jq -r 'select(.stream == "stderr").text'`,
	notes: `-f is --follow and -n is --lines. APP may be left out where the token has one.
Lines are marked | for standard output, ! for standard error and * for what the
agent says itself. When no agent of the app is connected, the last words of the
instance that ended last are shown: its lines on standard output, how it ended on
standard error. The exit code is 1 when there was nothing to read.`,
	run: showLogs,
}

// runLogs is postern logs.
//
//	runLogs → showLogs
//	  newAppFlags, parse         flags, their variables, the app
//	  logReader.run              the relay's stream: logs_stream.go, logs_line.go
//	  lastWords                  how instances ended: logs_lastwords.go
func runLogs(ctx context.Context, args []string) (int, error) { return runAppVerb(ctx, logsVerb, args) }

// runAppVerb runs a verb that is about an app, as the process's own.
func runAppVerb(ctx context.Context, v eventVerb, args []string) (int, error) {
	interrupts := make(chan os.Signal, 4)
	signal.Notify(interrupts, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(interrupts)
	return appVerb(ctx, newConsole(interrupts), v, args)
}

// appVerb runs v at c.
func appVerb(ctx context.Context, c *console, v eventVerb, args []string) (int, error) {
	code, err := v.run(ctx, c, v, args)
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

// newAppFlags are those of a verb that is about an app. Like those of the events
// commands, they may stand behind the argument.
func newAppFlags(v eventVerb) *eventFlags {
	f := &eventFlags{flags: newRelayFlags(v.name, v.about), verb: v}
	f.app = f.text("app", "POSTERN_APP", "", "which app; default: the token's")
	return f
}

// target is the only argument, APP or APP/INSTANCE; an app in it goes before --app.
func (f *eventFlags) target() (instance string, err error) {
	if len(f.args) > 1 {
		return "", usagef("%s takes one app, got %q besides", f.Name(), f.args[1])
	}
	if len(f.args) == 0 {
		return "", checkApp(*f.app)
	}
	app, instance, named := strings.Cut(f.args[0], "/")
	if app != "" {
		*f.app = app
	}
	if named && (instance == "" || len(instance) > 128 || line(instance) != instance) {
		return "", usagef("%q: expected APP or APP/INSTANCE, such as shop/web.1", f.args[0])
	}
	return instance, checkApp(*f.app)
}

// checkApp refuses what cannot be the name of an app.
func checkApp(app string) error {
	if len(app) > 63 || strings.Trim(app, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return usagef("%q is not the name of an app", app)
	}
	return nil
}

// longNames spells the flags of one letter out. The environment then sees that they
// were given.
func longNames(args []string, names map[string]string) []string {
	out := make([]string, 0, len(args))
	for i, arg := range args {
		if arg == "--" {
			return append(out, args[i:]...)
		}
		short, value, hasValue := strings.Cut(arg, "=")
		if long := names[short]; long != "" {
			arg = long
			if hasValue {
				arg += "=" + value
			}
		}
		out = append(out, arg)
	}
	return out
}

const (
	defaultLines = 200
	mostLines    = 10_000 // the relay's own limit
)

// showLogs is postern logs.
func showLogs(ctx context.Context, c *console, v eventVerb, args []string) (int, error) {
	f := newAppFlags(v)
	follow := f.flags.yes("follow", "POSTERN_LOGS_FOLLOW", "go on with what is written from now on, until Ctrl-C")
	lines := defaultLines
	f.env["lines"] = "POSTERN_LOGS_LINES"
	f.Func("lines", fmt.Sprintf("begin with the latest `N` lines of each instance, 0 to %d; default %d", mostLines, defaultLines), func(s string) (err error) {
		if lines, err = strconv.Atoi(s); err != nil || lines < 0 || lines > mostLines {
			return fmt.Errorf("expected a number from 0 to %d", mostLines)
		}
		return nil
	})
	last := f.flags.yes("last-words", "POSTERN_LOGS_LAST_WORDS", "how the latest instances ended, and the last lines of the very latest, also when others are connected")
	f.order = append(f.order, "follow", "lines", "last-words")
	f.asJSON("print JSON lines, as the API's stream has them; with --last-words one array")
	if err := f.parse(c.out, longNames(args, map[string]string{"-f": "--follow", "-n": "--lines"})); err != nil {
		return exitUsage, err
	}
	instance, err := f.target()
	if err != nil {
		return exitUsage, err
	}
	if *follow && *last {
		return exitUsage, usagef("--follow and --last-words exclude one another")
	}
	client, err := f.apiFor()
	if err != nil {
		return exitUsage, err
	}
	if client.tokenApp() == "" && !*last {
		return exitUsage, usagef("whose logs? postern logs APP")
	}
	ctx, stop := c.interruptible(ctx)
	defer stop()
	if *last {
		return client.showLastWords(ctx, c, instance, lines, *f.json)
	}
	r := newLogReader(c, client, instance, lines, *follow, *f.json)
	code, err := r.run(ctx)
	if *follow && errors.Is(err, context.Canceled) {
		return exitOK, nil
	}
	return code, err
}

// logsRequest asks for the stream.
func logsRequest(instance string, lines int, follow bool) apiRequest {
	query := url.Values{"lines": {strconv.Itoa(lines)}}
	if instance != "" {
		query.Set("instance", instance)
	}
	if follow {
		query.Set("follow", "1")
	}
	return apiRequest{path: []string{"logs"}, query: query, header: http.Header{"Accept": {"text/event-stream"}}, ofApp: true}
}
