// Command postern-relay is the server: it takes webhooks and web requests from
// outside and carries them to apps through the tunnels their agents have dialed.
// It also has the verbs that work on its data folder without a running server.
//
// It parses flags and the environment and nothing else; see relay/node.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

// version is set by the build: -ldflags "-X main.version=v1.2.3".
var version = "dev"

func main() {
	// A log whose reader has gone must not end us in the middle of a request.
	// Caught and not ignored, because a child inherits what is ignored.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	os.Exit(run(os.Args[1:]))
}

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

const usage = `postern-relay takes webhooks and web requests and carries them to your apps.

Usage:
  postern-relay serve               run the relay
  postern-relay token create        make a token for an agent: --app NAME --scope agent
  postern-relay token list          list the tokens that were made
  postern-relay token revoke ID     make a token useless, within two seconds
  postern-relay keys rotate         sign new tokens with a new key
  postern-relay migrate             bring the database to this version
  postern-relay manifest validate FILE
  postern-relay selftest --kill     kill a relay of its own under load: is anything lost?
  postern-relay --version

Every flag of "serve" has an environment variable: postern-relay serve --help
`

// verb is one command. It gets its own arguments and returns an exit code's
// error: nil, a usageError, or anything else.
type verb func(ctx context.Context, args []string) error

func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	do, rest := find(args)
	err := do(ctx, rest)
	var wrong usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &wrong):
		fmt.Fprintln(os.Stderr, "postern-relay:", err)
		return exitUsage
	}
	fmt.Fprintln(os.Stderr, "postern-relay:", err)
	return exitFailed
}

// usageError is a mistake in the command line: exit code 2.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// find picks the verb that args begin with.
func find(args []string) (verb, []string) {
	verbs := map[string]verb{
		"serve":             serve,
		"token create":      tokenCreate,
		"token list":        tokenList,
		"token revoke":      tokenRevoke,
		"keys rotate":       keysRotate,
		"migrate":           migrate,
		"manifest validate": manifestValidate,
		"selftest":          selftestKill,
	}
	if len(args) == 0 {
		return func(context.Context, []string) error {
			fmt.Fprint(os.Stderr, usage)
			return usagef("no command was given")
		}, nil
	}
	switch args[0] {
	case "--help", "-h", "-help", "help":
		return func(context.Context, []string) error { fmt.Print(usage); return nil }, nil
	case "--version", "-version", "version":
		return func(context.Context, []string) error { fmt.Println("postern-relay", version); return nil }, nil
	}
	if do := verbs[args[0]]; do != nil {
		return do, args[1:]
	}
	if len(args) > 1 {
		if do := verbs[args[0]+" "+args[1]]; do != nil {
			return do, args[2:]
		}
	}
	return func(context.Context, []string) error {
		return usagef("there is no command %q; see postern-relay --help", strings.Join(args[:min(2, len(args))], " "))
	}, nil
}
