package run

import (
	"context"
	"log/slog"
	"os"
	"syscall"
	"time"
)

const (
	// orphanGrace is what processes get that outlive a child which exited by itself.
	// Nobody asked for a stop, and nothing may hold the dyno for long.
	orphanGrace = 2 * time.Second

	// killDelay is how long a group may take to disappear after SIGKILL. A process that
	// hangs in the kernel takes longer, and must not hold us.
	killDelay = time.Second
)

// supervisor is the loop that watches one child. All of its state belongs to the
// goroutine of Run.
type supervisor struct {
	cmd     *Command
	log     *slog.Logger
	group   group
	orphans *adopter // nil where they are not ours to look after

	began    time.Time
	memory   int64 // memoryKills before the start
	memoryOK bool

	signals    <-chan os.Signal
	exited     chan struct{} // closed when the child has exited; it is then not yet reaped
	interrupts int           // SIGINTs so far

	// The stop, once one has begun.
	stopping  bool
	hook      *hook       // OnStop while SIGTERM waits for it, else nil
	called    *hook       // OnStop, also when SIGTERM no longer waits for it
	deadline  *time.Timer // when the group is killed
	broadcast bool        // everybody has SIGTERM from the platform
	termed    bool        // the group has SIGTERM, from us or from the platform
	killed    bool        // the group has SIGKILL
}

// hook is one call of OnStop.
type hook struct {
	limit    context.Context // ends when the child has waited long enough
	cancel   context.CancelFunc
	returned chan struct{}
}

func newSupervisor(c *Command) *supervisor {
	log := c.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &supervisor{
		cmd: c, log: log, orphans: newAdopter(c.Subreaper, log),
		signals: c.Signals, exited: make(chan struct{}), began: time.Now(),
	}
	s.memory, s.memoryOK = memoryKills()
	return s
}

// started takes charge of the child.
func (s *supervisor) started(g group) {
	s.group = g
	s.orphans.started(g.id)
	if s.cmd.OnStart != nil {
		s.cmd.OnStart(g.id)
	}
}

// ended tells the caller how; state is nil when that could not be read.
func (s *supervisor) ended(state *os.ProcessState) {
	if s.cmd.OnExit == nil || state == nil {
		return
	}
	e := newExit(state)
	e.Began, e.Asked, e.Killed = s.began, s.stopping || s.interrupts > 0, s.killed
	if kills, ok := memoryKills(); ok && s.memoryOK {
		e.OOM = kills > s.memory
	}
	s.cmd.OnExit(e)
}

// supervise returns when the child has exited.
func (s *supervisor) supervise(ctx context.Context) {
	go s.awaitExit()
	cancelled := ctx.Done()
	for {
		changed, again := s.orphans.events()
		var returned, limit <-chan struct{}
		if s.hook != nil {
			returned, limit = s.hook.returned, s.hook.limit.Done()
		}
		var deadline <-chan time.Time
		if s.deadline != nil {
			deadline = s.deadline.C
		}
		select {
		case <-s.exited:
			return
		case <-changed:
			s.orphans.reap()
		case <-again:
			s.orphans.reap()
		case sig, open := <-s.signals:
			s.receive(ctx, sig, open)
		case <-cancelled:
			cancelled = nil
			s.beginStop(ctx, false)
		case <-returned:
			s.terminate()
		case <-limit:
			s.log.Warn("stop hook took too long, stopping the app without it")
			s.terminate()
		case <-deadline:
			s.log.Warn("app did not stop within its grace, killing it")
			s.kill()
		}
	}
}

func (s *supervisor) awaitExit() {
	defer close(s.exited)
	if err := awaitExit(s.group.id); err != nil {
		// No such call in this sandbox: Run goes on to reap the child, which waits
		// just as well; only signals are not passed on any more.
		s.log.Error("cannot watch the app, its signals are lost", "error", err)
	}
}

// receive deals with one signal, or with the end of the channel.
func (s *supervisor) receive(ctx context.Context, sig os.Signal, open bool) {
	switch {
	case !open:
		s.signals = nil
	case sig == syscall.SIGTERM, sig == syscall.SIGINT && s.cmd.StopOnINT:
		// A platform that broadcasts does so with SIGTERM.
		s.beginStop(ctx, sig == syscall.SIGTERM && !s.cmd.ForwardTERM)
	case sig == syscall.SIGINT:
		s.interrupt()
	case s.group.passes(sig):
		s.send(sig.(syscall.Signal)) // passes knows only these
	}
}

// interrupt passes Ctrl-C on, since a child in its own group does not get it from
// the terminal; a second one means that the person has lost patience. In a shared
// group the child has it already, and may be a shell or a debugger to which Ctrl-C
// is everyday business, so nothing is counted there.
func (s *supervisor) interrupt() {
	if s.group.shared {
		return
	}
	s.interrupts++
	if s.interrupts > 1 {
		s.log.Warn("interrupted twice, killing the app")
		s.kill()
		return
	}
	s.send(syscall.SIGINT)
}

// beginStop starts the clock and the hook; SIGTERM follows when the hook is done.
// The second and every later call does nothing: some platforms repeat SIGTERM, and
// apps tend to take a second one for an order to drop everything. broadcast says
// that the group has the signal from the platform.
func (s *supervisor) beginStop(ctx context.Context, broadcast bool) {
	if s.stopping {
		return
	}
	s.stopping, s.broadcast, s.termed = true, broadcast, broadcast
	grace := s.cmd.Grace
	if grace == 0 {
		grace = defaultGrace
	}
	s.log.Info("stopping the app", "grace", max(grace, 0))
	s.deadline = time.NewTimer(killAfter(grace))
	if s.cmd.OnStop == nil {
		s.terminate()
		return
	}
	share, waits := hookShare(grace)
	h := &hook{returned: make(chan struct{})}
	// The stop may be the end of ctx itself, and the hook has work left to do.
	h.limit, h.cancel = context.WithTimeout(context.WithoutCancel(ctx), share)
	s.called = h
	go h.run(s.cmd.OnStop)
	if !waits {
		s.terminate()
		return
	}
	s.hook = h
}

func (h *hook) run(onStop func(context.Context)) {
	defer close(h.returned)
	onStop(h.limit)
}

// terminate is the second half of a stop.
func (s *supervisor) terminate() {
	s.hook = nil
	if !s.termed {
		s.termed = true
		s.send(syscall.SIGTERM)
	}
}

// kill ends everybody at once. The child is not yet reaped, so its group is there.
func (s *supervisor) kill() {
	s.killed = true
	s.send(syscall.SIGKILL)
	s.orphans.tell(syscall.SIGKILL)
	s.orphans.gone()
}

func (s *supervisor) send(sig syscall.Signal) {
	if err := s.group.signal(sig); err != nil {
		s.log.Warn("signal not delivered to the app", "signal", sig.String(), "error", err)
	}
}

// finish waits for what the stop has started.
func (s *supervisor) finish() {
	if s.deadline != nil {
		s.deadline.Stop()
	}
	if s.called != nil {
		s.called.cancel()
		<-s.called.returned
	}
}

// killAfter is when a group that will not stop is killed: early enough before the
// grace ends that logs and recordings can still be sent, two seconds as a rule and
// one where there are only five. Half of the grace is the app's in any case. Who has
// NoGrace is killed by its platform; where that does not happen, nobody is in a hurry.
func killAfter(grace time.Duration) time.Duration {
	if grace <= 0 {
		grace = defaultGrace
	}
	if grace > 5*time.Second {
		return grace - 2*time.Second
	}
	return max(grace-time.Second, grace/2)
}

// hookShare is how much of the grace OnStop has, and whether the app waits for it.
// Below a second it does not: the relay is told at the same time as the app, for either
// may be all that there is time for.
func hookShare(grace time.Duration) (share time.Duration, waits bool) {
	if grace < time.Second {
		return killAfter(grace), false
	}
	return min(grace/3, 5*time.Second), true
}
