package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/posternhq/postern/agent/logs"
	"github.com/posternhq/postern/agent/proc"
	"github.com/posternhq/postern/agent/run"
	"github.com/posternhq/postern/protocol"
)

const (
	// clearTime is how long killed processes may take to disappear.
	clearTime = 2 * time.Second
	// outputTime is how long the output may take to end when everybody is gone.
	outputTime = time.Second
	// lastWords is how long the output of an app that has ended may take to arrive.
	lastWords = 300 * time.Millisecond
	// lookEvery is the pause between two looks at who is left.
	lookEvery = 20 * time.Millisecond
)

// actor is the app in a rehearsal, with all that it starts. It leads a session of
// its own, so that no terminal is there and whoever stays in the session is known;
// and its orphans become our children, so that those who leave it are known too.
type actor struct {
	pid    int
	began  time.Time
	gone   chan struct{} // closed when the first process has ended
	reads  []*os.File
	copies sync.WaitGroup
	heard  chan struct{} // closed when the output has ended

	mu    sync.Mutex
	exit  *run.Exit // of the first process, once gone is closed
	asked bool      // a stop was under way
}

// startActor starts the command. Its output goes to out, and into log.
func startActor(command []string, dir string, env []string, log *logs.Log, out io.Writer) (*actor, error) {
	if len(command) == 0 {
		return nil, errors.New("no command was given")
	}
	adoptOrphans()
	cmd := exec.Command(command[0], command[1:]...)
	if errors.Is(cmd.Err, exec.ErrDot) {
		cmd.Err = nil // a relative entry of PATH: Ruby's are, and platforms allow it
	}
	cmd.Dir, cmd.Env = dir, env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	a := &actor{gone: make(chan struct{}), heard: make(chan struct{})}
	out = &shared{w: out}
	stdout, err := a.pipe(log.Tee(logs.Stdout, out))
	if err != nil {
		return nil, err
	}
	defer stdout.Close()
	stderr, err := a.pipe(log.Tee(logs.Stderr, out))
	if err != nil {
		a.closeOutput(0)
		return nil, err
	}
	defer stderr.Close()
	cmd.Stdout, cmd.Stderr = stdout, stderr
	a.began = time.Now()
	if err := cmd.Start(); err != nil {
		stdout.Close()
		stderr.Close()
		a.closeOutput(0)
		return nil, fmt.Errorf("start %q: %w", command[0], err)
	}
	a.pid = cmd.Process.Pid
	go a.wait(cmd)
	go a.listen()
	return a, nil
}

// pipe makes one whose contents are copied to w. It returns the end for the app.
func (a *actor) pipe(w io.Writer) (*os.File, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe for the output: %w", err)
	}
	a.reads = append(a.reads, read)
	a.copies.Go(func() {
		defer read.Close()
		if _, err := io.Copy(w, read); err != nil {
			io.Copy(io.Discard, read) // the app must not stand still because nobody reads
		}
	})
	return write, nil
}

func (a *actor) listen() {
	defer close(a.heard)
	a.copies.Wait()
}

// hearOut waits for what an app that has ended had to say.
func (a *actor) hearOut() {
	select {
	case <-a.heard:
	case <-time.After(lastWords): // somebody else still holds the pipe
	}
}

// shared is one writer for both streams.
type shared struct {
	mu sync.Mutex
	w  io.Writer
}

func (s *shared) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(p)
}

// wait notices the end of the first process.
func (a *actor) wait(cmd *exec.Cmd) {
	defer close(a.gone)
	cmd.Wait() // the error is the exit status once more
	e := run.Exit{PID: a.pid, Code: 1, Began: a.began, Ended: time.Now()}
	if state := cmd.ProcessState; state != nil {
		e.Code, e.CPU = state.ExitCode(), state.UserTime()+state.SystemTime()
		if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			e.Code, e.Signal, e.Core = 128+int(status.Signal()), signalName(status.Signal()), status.CoreDump()
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	e.Asked = a.asked
	a.exit = &e
}

// ended reports whether the first process has ended, and with it, for a platform,
// the app.
func (a *actor) ended() bool {
	select {
	case <-a.gone:
		return true
	default:
		return false
	}
}

// state is what the doctor asks.
func (a *actor) state() (pid int, exit *protocol.Exit) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.exit == nil {
		return a.pid, nil
	}
	return a.pid, &protocol.Exit{At: a.exit.Ended, Code: a.exit.Code, Signal: a.exit.Signal, Reason: a.exit.Reason(), Asked: a.exit.Asked}
}

// members are the living processes of the app: its session, its descendants, and
// those of our own children that it has left to us. Where the kernel does not say,
// it is the process group, under its number as kill(2) takes it.
func (a *actor) members() []proc.Process {
	tree, err := proc.Tree(os.Getpid())
	if err != nil {
		return a.group()
	}
	self := os.Getpid()
	var own int // our session
	for _, p := range tree {
		if p.PID == self {
			own = p.Session
		}
	}
	is := map[int]bool{a.pid: true}
	for changed := true; changed; {
		changed = false
		for _, p := range tree {
			orphan := p.PPID == self && p.Session != own
			if !is[p.PID] && p.PID != self && (p.Session == a.pid || is[p.PPID] || orphan) {
				is[p.PID], changed = true, true
			}
		}
	}
	var alive []proc.Process
	for _, p := range tree {
		switch {
		case !is[p.PID]:
		case p.State != 'Z' && p.State != 'X':
			alive = append(alive, p)
		case p.PPID == self && p.PID != a.pid:
			syscall.Wait4(p.PID, nil, syscall.WNOHANG, nil) // an orphan, ours to bury
		}
	}
	return alive
}

// group stands for all members of the process group.
func (a *actor) group() []proc.Process {
	for a.ended() { // its own status is not ours to take
		if pid, err := syscall.Wait4(-a.pid, nil, syscall.WNOHANG, nil); pid <= 0 && !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if syscall.Kill(-a.pid, 0) != nil {
		return nil
	}
	return []proc.Process{{PID: -a.pid, Name: "its process group"}}
}

// signal sends sig to the app: to every process of it, or to the first one.
func (a *actor) signal(sig syscall.Signal, everybody bool) {
	if !everybody {
		if !a.ended() {
			syscall.Kill(a.pid, sig)
		}
		return
	}
	for _, p := range a.members() {
		syscall.Kill(p.PID, sig) // gone meanwhile is as good
	}
}

// clear kills whatever is left and waits until it is gone. A process that hangs in
// the kernel is left behind after clearTime. It may be called again.
func (a *actor) clear() {
	for until := time.Now().Add(clearTime); time.Now().Before(until); time.Sleep(lookEvery) {
		left := a.members()
		if len(left) == 0 && a.ended() {
			break
		}
		for _, p := range left {
			syscall.Kill(p.PID, syscall.SIGKILL)
		}
	}
	a.closeOutput(outputTime)
}

// closeOutput waits for what is still in the pipes.
func (a *actor) closeOutput(within time.Duration) {
	for _, read := range a.reads {
		read.SetReadDeadline(time.Now().Add(within)) // fails on one that has ended, rightly
	}
	a.copies.Wait()
}

// signalName is SIGTERM for 15: what Go says of signals is prose.
func signalName(sig syscall.Signal) string {
	names := map[syscall.Signal]string{
		syscall.SIGHUP: "SIGHUP", syscall.SIGINT: "SIGINT", syscall.SIGQUIT: "SIGQUIT", syscall.SIGILL: "SIGILL",
		syscall.SIGTRAP: "SIGTRAP", syscall.SIGABRT: "SIGABRT", syscall.SIGBUS: "SIGBUS", syscall.SIGFPE: "SIGFPE",
		syscall.SIGKILL: "SIGKILL", syscall.SIGSEGV: "SIGSEGV", syscall.SIGPIPE: "SIGPIPE", syscall.SIGALRM: "SIGALRM",
		syscall.SIGTERM: "SIGTERM", syscall.SIGXCPU: "SIGXCPU", syscall.SIGXFSZ: "SIGXFSZ", syscall.SIGSYS: "SIGSYS",
	}
	if name := names[sig]; name != "" {
		return name
	}
	return fmt.Sprintf("signal %d", int(sig))
}
