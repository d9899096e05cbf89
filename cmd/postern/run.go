package main

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"strconv"
	"strings"

	"github.com/posternhq/postern/agent"
	"github.com/posternhq/postern/agent/doctor"
	"github.com/posternhq/postern/agent/logs"
	"github.com/posternhq/postern/agent/platform"
	"github.com/posternhq/postern/agent/run"
)

// runFlags are those of postern run.
type runFlags struct {
	*flags
	port, readyPath, forwardTERM  *string
	noPort, oneOff, front, rescue *bool
	subreaper, noLogs, noDoctor   *bool
	noEgress                      *bool
	rewrite                       *list
}

func newRunFlags() *runFlags {
	f := &runFlags{flags: newFlags("run", "run the app, and connect it to the relay")}
	f.lenient = true
	f.port = f.text("port", "PORT", "", "where the app listens; default: a free one, which the app is told as PORT")
	f.noPort = f.yes("no-port", "POSTERN_NO_PORT", "the app serves nobody, as a worker does")
	f.oneOff = f.yes("one-off", "POSTERN_ONE_OFF", "connect one-off processes too (consoles, release tasks)")
	f.front = f.yes("front", "POSTERN_FRONT", "listen on PORT in the app's place, and give the app another")
	f.rescue = f.yes("rescue", "POSTERN_RESCUE", "when the app listens on a wrong port or interface, pass on to it what comes to the right one")
	f.readyPath = f.text("ready-path", "POSTERN_READY_PATH", "", "the app is ready once this path answers 2xx or 3xx; default: once it listens")
	f.forwardTERM = f.text("forward-term", "POSTERN_FORWARD_TERM", "auto", "pass SIGTERM on to the app: auto, always or never; auto: not where the platform sends it to every process itself")
	f.subreaper = f.yes("subreaper", "POSTERN_SUBREAPER", "adopt and reap the app's orphans, as the first process of a container does anyway")
	f.noLogs = f.yes("no-logs", "POSTERN_NO_LOGS", "do not look at the app's output")
	f.noDoctor = f.yes("no-doctor", "POSTERN_NO_DOCTOR", "do not look for what keeps the app from being reached")
	f.noEgress = f.yes("no-egress", "POSTERN_NO_EGRESS", "leave the app's calls to the outside alone: set no proxy")
	f.outletFlags("127.0.0.1:0")
	f.rewrite = f.listed("rewrite", "POSTERN_REWRITE", "a variable with a URL whose host is replaced by the --forward that leads there: DATABASE_URL")
	return f
}

// runChild wraps the app. Whatever is wrong with the relay, the token, the network
// or a variable, the app runs.
func runChild(ctx context.Context, args []string) (int, error) {
	f := newRunFlags()
	if err := f.parse(args); err != nil {
		return exitUsage, err
	}
	command := f.Args()
	if len(command) == 0 {
		return exitUsage, usagef("which command? postern run -- node server.js")
	}
	p := f.whereFrom()
	if os.Getenv("POSTERN_DISABLE") == "1" || p.OneOff && !*f.oneOff {
		return run.Exec(command)
	}
	if _, err := f.forwards(p); err != nil {
		if os.Getenv("POSTERN_FORWARD_TERM") != *f.forwardTERM {
			return exitUsage, err
		}
		f.faults = append(f.faults, err)
		*f.forwardTERM = "auto"
	}
	concealed := f.takeToken()
	keep := f.output()
	var errTo io.Writer = os.Stderr
	if keep != nil {
		errTo = keep.Tee(logs.Postern, os.Stderr)
	}
	log, err := f.loggerTo(errTo)
	if err != nil {
		return exitUsage, err
	}
	for _, fault := range f.faults {
		log.Warn("a variable has a mistake", "err", fault)
	}
	if concealed != nil {
		log.Warn("the token can be read by other processes", "err", concealed)
	}
	return f.wrap(ctx, p, keep, log, command)
}

// wrap runs the command with what the flags ask for beside it.
func (f *runFlags) wrap(ctx context.Context, p platform.Platform, keep *logs.Log, log *slog.Logger, command []string) (int, error) {
	where, err := f.ports(p, log)
	if err != nil {
		return exitUsage, err
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, run.Signals()...)
	defer signal.Stop(signals)
	forward, _ := f.forwards(p)
	grace := p.Grace
	if grace == 0 {
		grace = run.NoGrace // a platform that kills at once
	}
	target := ""
	if where.port != 0 {
		target = net.JoinHostPort("127.0.0.1", strconv.Itoa(where.port))
	}
	config, noAgent := f.agentConfig(target, p, log)
	var proxy netip.AddrPort
	if noAgent != nil {
		log.Warn("app runs without a tunnel", "reason", noAgent)
	} else {
		outlet, cleanUp := f.wayOut(p, &where, log)
		defer cleanUp()
		if config.Outlet = outlet; outlet != nil && !*f.noEgress {
			proxy = outlet.Addr()
		}
	}
	cfg := agent.WrapConfig{
		Command: run.Command{
			Args: command, Env: where.env, Grace: grace,
			ForwardTERM: forward, StopOnINT: p.StopsWithINT, Subreaper: *f.subreaper, Signals: signals,
		},
		Place: doctor.Place{
			Platform: p.Name, Process: p.Process, Port: where.port, PortVar: os.Getenv("PORT"), Serves: where.serves,
			BootLimit: p.BootLimit, Grace: p.Grace, Sleeps: p.Sleeps, Env: lookup(where.env), ReadyPath: *f.readyPath, Proxy: proxy,
		},
		Log: keep, NoDoctor: *f.noDoctor, Front: where.front, Rescue: *f.rescue, Logger: log,
	}
	if keep != nil {
		cfg.Command.Stdout, cfg.Command.Stderr = keep.Tee(logs.Stdout, os.Stdout), keep.Tee(logs.Stderr, os.Stderr)
	}
	if noAgent == nil {
		cfg.Agent = &config
	}
	return agent.Wrap(ctx, cfg)
}

// output is what keeps the app's output, nil when nobody does. An app at a terminal
// has the terminal itself: it may draw on it.
func (f *runFlags) output() *logs.Log {
	if *f.noLogs || isTerminal(os.Stdout) || isTerminal(os.Stderr) {
		return nil
	}
	secrets := logs.SecretsIn(os.Environ())
	if f.token != "" {
		secrets = append(secrets, f.token)
	}
	return logs.New(logs.Config{Secrets: secrets})
}

// forwards reports whether SIGTERM is to be passed on at p.
func (f *runFlags) forwards(p platform.Platform) (bool, error) {
	switch *f.forwardTERM {
	case "auto":
		return !p.BroadcastsTERM, nil
	case "always":
		return true, nil
	case "never":
		return false, nil
	}
	return false, usagef("--forward-term %q: expected auto, always or never", *f.forwardTERM)
}

// ports is where the app is, and the environment that tells it.
type ports struct {
	env    []string
	port   int  // the app's own; 0: not known
	front  int  // the platform's, when the agent owns it; else 0
	serves bool // something is sent to the app
}

// ports decides where the app listens. A PORT that cannot be used is left for the
// doctor to explain; only a flag can be a usage error.
func (f *runFlags) ports(p platform.Platform, log *slog.Logger) (ports, error) {
	where := ports{env: os.Environ()}
	fromPlatform := os.Getenv("PORT")
	if *f.noPort {
		return where, nil
	}
	port, err := strconv.Atoi(*f.port)
	wrong := *f.port != "" && (err != nil || port < 1 || port > 65535)
	switch {
	case wrong && *f.port != fromPlatform:
		return where, usagef("port %q: expected 1 to 65535", *f.port)
	case wrong:
		port = 0
	}
	switch {
	case *f.port == "" && p.Name == "":
		if where.port, err = freePort(); err != nil {
			log.Warn("no free port for the app", "err", err)
		} else {
			where.env = append(where.env, "PORT="+strconv.Itoa(where.port))
		}
		where.serves = true
	case *f.port == "":
		// A process that its platform gives no port serves nobody, but where platforms
		// give none to anybody, or forgot to, the app is looked for.
		where.serves = p.GivesPort || p.Name == platform.Fly
	default:
		where.port, where.serves = port, true
		if fromPlatform != *f.port {
			where.env = append(where.env, "PORT="+*f.port) // the last one counts
		}
	}
	if *f.front {
		f.behind(&where, log)
	}
	return where, nil
}

// behind gives the app a port of its own; the agent will own the one it had.
func (f *runFlags) behind(where *ports, log *slog.Logger) {
	own, err := freePort()
	if where.port == 0 || err != nil {
		log.Warn("--front is not used: there is no port to stand in front of", "err", err)
		return
	}
	where.front, where.port = where.port, own
	where.env = append(where.env, "PORT="+strconv.Itoa(own))
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// lookup reads environ as the app does: the last one of a name counts.
func lookup(environ []string) func(string) string {
	values := map[string]string{}
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		values[name] = value
	}
	return func(name string) string { return values[name] }
}
