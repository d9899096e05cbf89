package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strconv"
	"time"

	"github.com/posternhq/postern/agent"
	"github.com/posternhq/postern/agent/platform"
	"github.com/posternhq/postern/agent/run"
)

// bootTime is how long the app may take to bind its port before the relay is
// connected all the same: it cannot be reached then, but it can be looked at.
const bootTime = time.Minute

// settleTime is how long requests in flight may take before the app is told to
// stop. Longer ones are the app's to finish.
const settleTime = time.Second

// runChild wraps the app. Whatever is wrong with the relay, the token or the
// network, the app runs.
func runChild(ctx context.Context, args []string) (int, error) {
	f := newFlags("run", "run the app, and connect it to the relay")
	port := f.text("port", "PORT", "", "where the app listens; default: a free one, which the app is told as PORT")
	oneOff := f.Bool("one-off", false, "connect one-off processes too (consoles, release tasks)")
	if err := f.parse(args); err != nil {
		return exitUsage, err
	}
	command := f.Args()
	if len(command) == 0 {
		return exitUsage, usagef("which command? postern run -- node server.js")
	}
	p := f.whereFrom()
	if os.Getenv("POSTERN_DISABLE") == "1" || p.OneOff && !*oneOff {
		return run.Exec(command)
	}
	log, err := f.logger()
	if err != nil {
		return exitUsage, err
	}
	// A process that its platform gives no port serves nobody: there is nothing
	// to wait for before the relay is connected.
	serves := *port != "" || p.Name == ""
	env, target, err := childPort(*port)
	if err != nil {
		return exitUsage, err
	}
	a, err := f.agentFor(target, p, log)
	if err != nil {
		log.Warn("app runs without a tunnel", "reason", err)
	}
	wait := target
	if !serves {
		wait = ""
	}
	return supervise(ctx, a, wait, p, log, command, env)
}

// childPort is the app's address and the environment that tells it.
func childPort(port string) (env []string, target string, err error) {
	env = os.Environ()
	if port == "" {
		if port, err = freePort(); err != nil {
			return nil, "", err
		}
		env = append(env, "PORT="+port)
	} else if os.Getenv("PORT") != port {
		env = append(env, "PORT="+port) // the last one counts
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return nil, "", usagef("port %q: expected 1 to 65535", port)
	}
	return env, net.JoinHostPort("127.0.0.1", port), nil
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}

// supervise runs the app with its agent beside it; a is nil when there is none,
// target is empty when the app serves nobody.
// At the end the order is: relay told, app finishes, tunnels close.
func supervise(ctx context.Context, a *agent.Agent, target string, p platform.Platform, log *slog.Logger, command, env []string) (int, error) {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, run.Signals()...)
	defer signal.Stop(signals)
	cmd := &run.Command{
		Args: command, Env: env, Grace: p.Grace,
		ForwardTERM: !p.BroadcastsTERM, StopOnINT: p.StopsWithINT,
		Signals: signals, Logger: log,
	}
	if a == nil {
		return cmd.Run(ctx)
	}
	cmd.OnStop = func(ctx context.Context) {
		if err := a.Drain(ctx, "app stops", p.Grace); err != nil {
			log.Warn("relay could not be told", "err", err)
		}
		// A request that was on its way when the relay promised to send no more
		// must not meet an app that has closed its idle connections already.
		quick, cancel := context.WithTimeout(ctx, settleTime)
		defer cancel()
		a.WaitIdle(quick)
	}
	agentCtx, stopAgent := context.WithCancel(ctx)
	defer stopAgent()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		runBeside(agentCtx, a, target, log)
	}()
	code, err := cmd.Run(ctx)
	flush, cancel := context.WithTimeout(context.Background(), time.Second)
	a.Drain(flush, "app ended", 0)
	a.WaitIdle(flush) // what the app has written last
	cancel()
	a.Close()
	stopAgent()
	<-ended
	return code, err
}

// runBeside connects once the app accepts connections, so that nobody is sent to
// an app that is still starting.
func runBeside(ctx context.Context, a *agent.Agent, target string, log *slog.Logger) {
	if target != "" && !waitForApp(ctx, target, log) {
		return
	}
	if err := a.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
		log.Error("app runs on without a tunnel", "err", err)
	}
}

// waitForApp waits until the app listens, or bootTime; false when ctx ended.
func waitForApp(ctx context.Context, target string, log *slog.Logger) bool {
	boot, cancel := context.WithTimeout(ctx, bootTime)
	defer cancel()
	err := run.WaitPort(boot, target)
	switch {
	case ctx.Err() != nil:
		return false
	case err != nil:
		log.Warn("app does not listen yet", "target", target, "after", bootTime, "err", err)
	default:
		log.Info("app listens", "target", target)
	}
	return true
}
