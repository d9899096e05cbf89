package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/posternhq/postern/agent"
)

// runAgent connects an app that somebody else runs.
func runAgent(ctx context.Context, args []string) (int, error) {
	f := newFlags("agent", "connect an app that runs by itself")
	to := f.text("to", "POSTERN_TO", "", "where the app listens: 127.0.0.1:3000, or just 3000")
	f.outletFlags("") // the app is told by somebody else where the proxy is
	if err := f.parse(args); err != nil {
		return exitUsage, err
	}
	if f.NArg() > 0 {
		return exitUsage, usagef("agent takes no arguments, got %q; the app's address goes behind --to", f.Arg(0))
	}
	target, err := address(*to)
	if err != nil {
		return exitUsage, usagef("--to: %w", err)
	}
	return connect(ctx, f, target, nil)
}

// runHTTP is a developer's tunnel to a local port.
func runHTTP(ctx context.Context, args []string) (int, error) {
	f := newFlags("http", "reach a local port under the app's public name")
	// The port may stand before or behind the flags.
	var port string
	if len(args) > 0 && args[0] != "" && args[0][0] != '-' {
		port, args = args[0], args[1:]
	}
	if err := f.parse(args); err != nil {
		return exitUsage, err
	}
	rest := f.Args()
	if port == "" && len(rest) > 0 {
		port, rest = rest[0], rest[1:]
	}
	if len(rest) > 0 {
		return exitUsage, usagef("http takes one port, got %q besides", rest[0])
	}
	target, err := address(port)
	if err != nil {
		return exitUsage, usagef("which port? postern http 3000: %w", err)
	}
	return connect(ctx, f, target, func(a *agent.Agent) {
		fmt.Printf("%s → http://%s\n", a.URL(), target)
	})
}

// connect runs an agent until a signal. ready, when set, is called once the
// first tunnel is open.
func connect(ctx context.Context, f *flags, target string, ready func(*agent.Agent)) (int, error) {
	log, err := f.logger()
	if err != nil {
		return exitUsage, err
	}
	if warning := f.takeToken(); warning != nil {
		log.Warn("the token can be read by other processes", "err", warning)
	}
	p := f.whereFrom()
	config, err := f.agentConfig(target, p, log)
	if err != nil {
		return exitUsage, usageError{err}
	}
	if f.forward != nil && (*f.egressListen != "" || len(*f.forward) > 0) {
		if config.Outlet, err = f.outlet(p, log); err != nil {
			return exitFailed, err
		}
		log.Info("the app's way out", "proxy", config.Outlet.Addr())
		defer config.Outlet.Close()
		go config.Outlet.Run(ctx)
	}
	a := agent.New(config)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(signals)
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	announced := a.Ready()
	for {
		select {
		case <-announced:
			announced = nil
			if ready != nil {
				ready(a)
			}
		case err := <-ended:
			return exitFailed, err
		case sig := <-signals:
			log.Info("agent stops", "signal", sig.String())
			go exitOnSecond(signals)
			stopAgent(a, cmp.Or(p.Grace, time.Second), log)
			return exitOK, <-ended
		}
	}
}

// exitOnSecond ends the process when somebody is in a hurry.
func exitOnSecond(signals <-chan os.Signal) {
	if sig, ok := (<-signals).(syscall.Signal); ok {
		os.Exit(128 + int(sig))
	}
}

// address is host:port of "3000", ":3000" or "host:3000".
func address(s string) (string, error) {
	if s == "" {
		return "", errors.New("an address is missing: 127.0.0.1:3000, or just 3000")
	}
	if _, err := strconv.Atoi(s); err == nil {
		s = ":" + s
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return "", fmt.Errorf("%q is not an address; expected 127.0.0.1:3000, or just 3000", s)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return "", fmt.Errorf("port %q: expected 1 to 65535", port)
	}
	if host == "" {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port), nil
}
