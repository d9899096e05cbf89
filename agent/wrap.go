package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/posternhq/postern/agent/bridge"
	"github.com/posternhq/postern/agent/doctor"
	"github.com/posternhq/postern/agent/logs"
	"github.com/posternhq/postern/agent/proc"
	"github.com/posternhq/postern/agent/report"
	"github.com/posternhq/postern/agent/run"
	"github.com/posternhq/postern/protocol"
)

// WrapConfig is an app to run, and what is to be beside it.
type WrapConfig struct {
	Command run.Command  // what to run and how it is stopped; hooks, output and logger are set by Wrap
	Agent   *Config      // the tunnels; nil: none. Streams, hooks and the app's state are set by Wrap
	Place   doctor.Place // Port is the app's own; without Serves nothing is sent to it
	Dir     string       // of the app, for recognising what it is made with

	Log      *logs.Log // keeps the app's output; nil: it is not looked at
	NoDoctor bool      // ready is who takes a connection, and nothing is explained

	// Front is the platform's port when the agent owns it and the app has another,
	// Place.Port. It is bound once the app is ready. 0: the app has the platform's.
	Front int
	// Rescue bridges from where the app should listen to where it does.
	Rescue bool

	Logger *slog.Logger // default: discard
}

// Times at the end of the app's life. Together they fit into what run leaves of a
// grace of ten seconds or more.
const (
	settleTime   = time.Second            // for requests in flight, before the app is told to stop
	lastWordTime = time.Second            // for the last report to be stored
	farewellTime = 700 * time.Millisecond // for what the app has written last
)

// Wrap runs the app and returns its exit code, as run.Command.Run does. Whatever
// happens to the relay, the network or the doctor, the app runs.
//
//	app starts → doctor watches → state and findings to the relay
//	stop: relay told → app finishes → app exits → last words → tunnels close
func Wrap(ctx context.Context, cfg WrapConfig) (int, error) {
	w := newWrapper(cfg)
	parts, stopParts := context.WithCancel(context.WithoutCancel(ctx))
	defer stopParts()
	w.start(parts)
	code, err := w.cmd.Run(ctx)
	w.postMortem()
	if w.cfg.Log != nil {
		w.cfg.Log.Close()
	}
	w.farewell()
	stopParts()
	w.running.Wait()
	return code, err
}

// wrapper is one run of Wrap.
type wrapper struct {
	cfg      WrapConfig
	cmd      *run.Command
	log      *slog.Logger
	agent    *Agent           // nil: none
	doctor   *doctor.Doctor   // nil: none
	reporter *report.Reporter // nil without an agent
	began    time.Time

	stopping atomic.Bool // a stop is under way

	mu    sync.Mutex
	pid   int            // guarded by mu; of the child, 0 before it runs
	exit  *protocol.Exit // guarded by mu; once it has ended
	front *bridge.Bridge // guarded by mu; nil: none yet

	bridges    context.Context // set by start; ends the bridges
	stopDoctor func()          // set by start; ends the doctor's goroutine and waits for it
	running    sync.WaitGroup  // everything that start and the bridges began

	// Owned by the doctor's goroutine, and by postMortem after it.
	told    map[string]protocol.Finding // what the log has, by code and cause
	ready   bool                        // the app has been ready
	fronted bool                        // it has been tried to open front
	rescued *bridge.Bridge
	whither netip.AddrPort // where rescued leads
}

func newWrapper(cfg WrapConfig) *wrapper {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if _, err := proc.Tree(os.Getpid()); cfg.Rescue && errors.Is(err, proc.ErrUnavailable) {
		// Nobody could tell the bridge's listener from the app's.
		cfg.Logger.Warn("--rescue is not used", "err", err)
		cfg.Rescue = false
	}
	w := &wrapper{cfg: cfg, log: cfg.Logger, began: time.Now(), told: map[string]protocol.Finding{}}
	cmd := cfg.Command
	cmd.Logger, cmd.OnStart, cmd.OnExit, cmd.OnStop = cfg.Logger, w.started, w.exited, w.stop
	w.cmd = &cmd
	if !cfg.NoDoctor {
		w.doctor = doctor.New(doctor.Config{
			Place: cfg.Place, Command: cmd.Args, Dir: cfg.Dir,
			Child: w.child, Lines: w.lines(), Changed: w.diagnosed, Logger: cfg.Logger,
		})
	}
	if cfg.Agent != nil {
		w.attach(*cfg.Agent)
	}
	return w
}

// attach makes the agent and its report.
func (w *wrapper) attach(c Config) {
	c.Hello.State = protocol.StateStarting
	if !w.cfg.Place.Serves {
		c.Hello.State = protocol.StateNone
	}
	rc := report.Config{Open: w.openReport, Sample: w.sample, Sockets: w.sockets, Logger: w.log}
	if w.cfg.Log != nil {
		c.Streams = map[protocol.Kind]func(context.Context, *protocol.Stream){protocol.KindLogs: w.cfg.Log.Serve}
		rc.Lines = w.cfg.Log
	}
	w.reporter = report.New(rc)
	c.Opened = w.reporter.Poke
	if w.doctor != nil {
		c.Refused = w.doctor.Poke
	}
	w.agent = New(c)
}

func (w *wrapper) openReport(ctx context.Context, o protocol.Open) (report.Stream, error) {
	s, err := w.agent.Open(ctx, protocol.FeatureReport, o)
	if err != nil {
		return nil, err // and not a nil *Stream in an interface
	}
	return s, nil
}

// lines is the app's latest output for the doctor, nil when nobody keeps it.
func (w *wrapper) lines() func(int) []protocol.Line {
	if w.cfg.Log == nil {
		return nil
	}
	return w.cfg.Log.Tail
}

// start starts everything but the app.
func (w *wrapper) start(ctx context.Context) {
	w.bridges = ctx
	w.running.Go(func() { tidyUp(ctx) })
	if w.doctor != nil {
		watch, stop := context.WithCancel(ctx)
		watched := make(chan struct{})
		w.stopDoctor = func() { stop(); <-watched }
		w.running.Go(func() { defer close(watched); w.doctor.Run(watch) })
	} else if w.cfg.Place.Serves {
		w.running.Go(func() { w.waitForPort(ctx) })
	}
	if w.agent == nil {
		return
	}
	if outlet := w.cfg.Agent.Outlet; outlet != nil {
		w.running.Go(func() { outlet.Run(ctx) })
	}
	w.running.Go(func() {
		if err := w.agent.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
			w.log.Error("app runs on without a tunnel", "err", err)
		}
	})
	w.running.Go(func() { w.reporter.Run(ctx) })
}

// tidyAfter is when the start is over, whose garbage would lie around for minutes: the
// system's root certificates, the first looks of the doctor, what the app wrote at once.
const tidyAfter = 10 * time.Second

// tidyUp gives what the start took back to the system, once: dynos are small.
func tidyUp(ctx context.Context) {
	select {
	case <-time.After(tidyAfter):
		debug.FreeOSMemory()
	case <-ctx.Done():
	}
}

// started, exited and child are the app's process as run and the doctor see it.
func (w *wrapper) started(pid int) {
	w.mu.Lock()
	w.pid = pid
	w.mu.Unlock()
	w.poke()
}

func (w *wrapper) exited(e run.Exit) {
	exit := exitOf(e)
	w.mu.Lock()
	w.exit = &exit
	w.mu.Unlock()
	level := slog.LevelInfo
	if !e.Asked && e.Code != 0 {
		level = slog.LevelWarn
	}
	w.log.Log(context.Background(), level, "app has ended", "code", exit.Code, "reason", exit.Reason)
	if w.agent != nil && w.cfg.Place.Serves {
		w.agent.SetState(protocol.StateFailed, exit.Reason)
	}
	w.poke()
}

func (w *wrapper) poke() {
	if w.doctor != nil {
		w.doctor.Poke()
	}
}

func (w *wrapper) child() (int, *protocol.Exit) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pid, w.exit
}

// stop is run's OnStop: nothing new is sent to the app from here on.
func (w *wrapper) stop(ctx context.Context) {
	w.stopping.Store(true)
	w.mu.Lock()
	front := w.front
	w.mu.Unlock()
	if front != nil {
		w.running.Go(func() { front.Drain(w.bridges) }) // no new connections; those there are end with the app
	}
	if w.agent == nil {
		return
	}
	if err := w.agent.Drain(ctx, "app stops", w.cmd.Grace); err != nil {
		w.log.Warn("relay could not be told", "err", err)
	}
	// A request that was on its way when the relay promised to send no more
	// must not meet an app that has closed its idle connections already.
	quick, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	w.agent.WaitIdle(quick)
}

// postMortem has the doctor look once more when the app ended unasked: what it
// wrote last may say why.
func (w *wrapper) postMortem() {
	if w.doctor == nil {
		return
	}
	w.stopDoctor() // what was its goroutine's is ours now
	if _, exit := w.child(); exit != nil && !exit.Asked && exit.Code != 0 {
		ctx, cancel := context.WithTimeout(context.Background(), lastWordTime)
		defer cancel()
		w.diagnosed(w.doctor.Examine(ctx))
	}
}

// farewell is what is left to do when the app has gone.
func (w *wrapper) farewell() {
	if w.agent == nil {
		return
	}
	_, exit := w.child()
	if exit != nil && w.agent.connected() {
		ctx, cancel := context.WithTimeout(context.Background(), lastWordTime)
		if err := w.reporter.End(ctx, *exit); err != nil {
			w.log.Debug("last words not stored", "err", err)
		}
		cancel()
	}
	ctx, cancel := context.WithTimeout(context.Background(), farewellTime)
	defer cancel()
	w.agent.Drain(ctx, "app ended", 0)
	w.agent.WaitIdle(ctx)
	w.agent.Close()
}

// waitForPort stands in for the doctor.
func (w *wrapper) waitForPort(ctx context.Context) {
	port := w.cfg.Place.Port
	if port == 0 {
		return
	}
	if run.WaitPort(ctx, net.JoinHostPort("127.0.0.1", strconv.Itoa(port))) == nil {
		w.diagnosed(doctor.Diagnosis{State: protocol.StateReady})
	}
}

// diagnosed acts on what the doctor sees.
func (w *wrapper) diagnosed(d doctor.Diagnosis) {
	_, exit := w.child()
	if w.stopping.Load() || exit != nil && (exit.Asked || exit.Code == 0) {
		return // that it listens no more is as it should be
	}
	w.tellLog(d.Findings.List)
	if w.reporter != nil {
		w.reporter.SetFindings(d.Findings)
	}
	if !w.cfg.Place.Serves {
		return
	}
	state, why := d.State, d.Why
	if w.cfg.Place.Port == 0 && d.Reachable.IsValid() {
		// Nobody has said where the app should be, so it is where it is.
		w.setTarget(d.Reachable.String())
		state = protocol.StateReady
	}
	if state == protocol.StateReady && !w.ready {
		w.ready = true
		w.log.Info("app listens", "port", cmp.Or(w.cfg.Place.Port, int(d.Reachable.Port())), "after", time.Since(w.began).Round(time.Millisecond))
	}
	if state == protocol.StateReady && w.cfg.Front != 0 && !w.fronted {
		w.fronted = true
		w.openFront()
	}
	if w.cfg.Rescue && w.port() != 0 && exit == nil {
		if w.rescue(d) && state != protocol.StateReady {
			state, why = protocol.StateReady, "rescued: "+why
		}
	}
	if w.agent != nil && exit == nil { // else exited has said it
		w.agent.SetState(state, why)
	}
}

// tellLog logs each finding once, and when it is gone.
func (w *wrapper) tellLog(list []protocol.Finding) {
	now := map[string]bool{}
	for _, f := range list {
		key := f.Code + " " + f.Cause
		now[key] = true
		if _, known := w.told[key]; known {
			continue
		}
		w.told[key] = f
		level := map[protocol.Severity]slog.Level{
			protocol.SeverityError: slog.LevelError, protocol.SeverityWarning: slog.LevelWarn,
		}[f.Severity] // a note is info
		w.log.Log(context.Background(), level, f.Code+": "+f.Cause, "evidence", f.Evidence, "fix", f.Fix)
	}
	for key, f := range w.told {
		if !now[key] {
			delete(w.told, key)
			w.log.Info(f.Code + " is over: " + f.Cause)
		}
	}
}

// openFront takes the platform's port and passes what comes there to the app.
func (w *wrapper) openFront() {
	target := net.JoinHostPort("127.0.0.1", strconv.Itoa(w.cfg.Place.Port))
	b, err := bridge.Listen(w.bridges, ":"+strconv.Itoa(w.cfg.Front), bridge.Config{
		Target: func() string { return target }, Refused: func(error) { w.poke() }, Logger: w.log,
	})
	if err != nil {
		w.log.Error("the platform's port cannot be bound: nothing that its router sends will arrive", "port", w.cfg.Front, "err", err)
		return
	}
	w.mu.Lock()
	w.front = b
	w.mu.Unlock()
	w.log.Info("in front of the app", "port", w.cfg.Front, "app", target)
	w.running.Go(func() { b.Run(w.bridges) })
}

// rescue opens or closes the bridge that d calls for, and reports whether there is
// one.
func (w *wrapper) rescue(d doctor.Diagnosis) bool {
	if !d.Reachable.IsValid() {
		if w.rescued != nil {
			w.rescued.Close()
			w.rescued, w.whither = nil, netip.AddrPort{}
			w.log.Info("the app is where it should be, the bridge is closed", "port", w.port())
			w.setTarget(net.JoinHostPort("127.0.0.1", strconv.Itoa(w.cfg.Place.Port)))
		}
		return false
	}
	if w.whither == d.Reachable {
		return true
	}
	if w.rescued != nil {
		w.rescued.Close()
	}
	target := d.Reachable.String()
	b, err := bridge.ListenRescue(w.bridges, w.port(), bridge.Config{
		Target: func() string { return target }, Refused: func(error) { w.poke() }, Logger: w.log,
	})
	if err != nil {
		w.log.Error("the app cannot be rescued", "port", w.port(), "err", err)
		w.rescued, w.whither = nil, netip.AddrPort{}
		return false
	}
	w.rescued, w.whither = b, d.Reachable
	w.log.Warn(fmt.Sprintf("rescued: what comes to port %d is passed on to the app at %s; repair the app, this costs it the client's address", w.port(), target))
	w.setTarget(target)
	w.running.Go(func() { b.Run(w.bridges) })
	return true
}

// port is where the platform sends to.
func (w *wrapper) port() int {
	if w.cfg.Front != 0 {
		return w.cfg.Front
	}
	return w.cfg.Place.Port
}

func (w *wrapper) setTarget(target string) {
	if w.agent != nil {
		w.agent.SetTarget(target)
	}
}
