// Command postern is the agent beside an app, and the developer's command line.
//
// It parses flags and the environment and nothing else; see agent. It links no
// database driver and no web assets, because it lives in dynos.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// version is set by the build: -ldflags "-X main.version=v1.2.3".
var version = "dev"

func main() {
	// A log whose reader has gone must not end us: the app would be left alone.
	// Caught and not ignored, because a child inherits what is ignored.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	os.Exit(execute(os.Args[1:]))
}

// Exit codes; postern run has its child's besides.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

const usage = `postern connects an app that can only dial out to a Postern relay.

Usage:
  postern run [flags] -- COMMAND…   wrap the app: web: postern run -- node server.js
  postern agent --to 127.0.0.1:3000 connect an app that runs by itself
  postern http 3000                 reach a local port under the app's public name
  postern doctor -- COMMAND…        run the app as a platform would, and say what keeps it from being reached
  postern status [APP]              which instances are connected, and how they are
  postern logs [-f] APP[/INSTANCE]  what the app writes, or wrote before it died
  postern events                    what the app's webhooks are doing: list, show, tail, replay, export
  postern egress                    what apps call, may call, and why: explain, log, deny, allow, learn, status, usage
  postern apply -f FILE             put a new version of the manifest in force
  postern manifest                  its versions: diff, history, show, rollback, promote
  postern --version

The relay and the token come from POSTERN_RELAY and POSTERN_TOKEN.
Flags and their environment variables: postern run --help
`

// verb is one command; it returns the process's exit code, and an error to show
// when the code is not its child's.
type verb func(ctx context.Context, args []string) (int, error)

func execute(args []string) int {
	code, err := find(args)
	if err == nil {
		return code
	}
	if errors.Is(err, errHelp) {
		return exitOK
	}
	fmt.Fprintln(os.Stderr, "postern:", err)
	var wrong usageError
	if errors.As(err, &wrong) {
		return exitUsage
	}
	return max(code, exitFailed)
}

// usageError is a mistake in the command line: exit code 2.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// find runs the verb that args begin with.
func find(args []string) (int, error) {
	if len(args) == 0 {
		fmt.Fprint(os.Stderr, usage)
		return exitUsage, usagef("no command was given")
	}
	verbs := map[string]verb{
		"run": runChild, "agent": runAgent, "http": runHTTP, "doctor": runDoctor,
		"status": runStatus, "logs": runLogs, "events": runEvents,
		"egress": runEgress, "apply": runApply, "manifest": runManifest,
	}
	switch name := args[0]; name {
	case "--help", "-h", "-help", "help":
		fmt.Print(usage)
		return exitOK, nil
	case "--version", "-version", "version":
		fmt.Println("postern", version)
		return exitOK, nil
	default:
		do := verbs[name]
		if do == nil {
			return exitUsage, usagef("there is no command %q; see postern --help", name)
		}
		return do(context.Background(), args[1:])
	}
}
