package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"
)

// roleVariable names the environment variable that makes this binary, or its
// test binary, play one part of the bench instead of directing it.
const roleVariable = "POSTERN_BENCH_ROLE"

// The roles. Each ends when its standard input does, so that none outlives the
// harness, however that ends.
const (
	roleApp   = "app"   // serves appHandler, prints its address
	roleProxy = "proxy" // serves newProxy(args[0]), prints its address
	roleLoad  = "load"  // reads a load, prints an empty line when warm, then its loadResult

	roleHooks   = "hooks"   // serves newHookApp, prints its address
	roleEmpty   = "empty"   // serves emptyHandler, prints its address
	roleCommits = "commits" // reads a commitLoad, prints its loadResult

	roleConnect = "connect" // serves connectProxy, prints its address
	roleLine    = "line"    // serves a delayLine of args, prints its address
	roleSecure  = "secure"  // serves appHandler over TLS, prints its address
)

// playRole runs the role to its end.
func playRole(role string, args []string) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	switch role {
	case roleLoad:
		return playLoad(ctx, cancel)
	case roleCommits:
		return playCommits(ctx)
	}
	go func() {
		defer cancel()
		_, _ = io.Copy(io.Discard, os.Stdin)
	}()
	switch {
	case role == roleApp:
		return playServer(ctx, appHandler())
	case role == roleHooks:
		return playServer(ctx, newHookApp())
	case role == roleEmpty:
		return playServer(ctx, emptyHandler())
	case role == roleProxy && len(args) == 1:
		return playServer(ctx, newProxy(args[0]))
	case role == roleConnect:
		return playServer(ctx, connectProxy())
	case role == roleLine && len(args) == 3:
		return playLine(ctx, args)
	case role == roleSecure:
		return playSecure(ctx)
	}
	return fmt.Errorf("no such role: %s %q", role, args)
}

// playServer serves on a free port until ctx ends.
func playServer(ctx context.Context, handler http.Handler) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	fmt.Println(listener.Addr())
	if err := server.Serve(listener); ctx.Err() == nil {
		return err
	}
	return nil
}

// playLoad runs the one load that standard input holds. The end of the input
// ends the load's window early.
func playLoad(ctx context.Context, cancel func()) error {
	in := json.NewDecoder(os.Stdin)
	var l load
	if err := in.Decode(&l); err != nil {
		return fmt.Errorf("read load: %w", err)
	}
	go func() {
		defer cancel()
		_, _ = io.Copy(io.Discard, os.Stdin)
	}()
	result := l.run(ctx, func() { fmt.Println() })
	return json.NewEncoder(os.Stdout).Encode(result)
}
