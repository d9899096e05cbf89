package run

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"syscall"
	"time"
)

// Exit codes of the wrapper itself; all others are the child's.
const (
	codeFailed        = 1   // the child could not be started for want of a process, memory or its folder
	codeUsage         = 2   // no command was given
	codeNotExecutable = 126 // it exists and cannot be executed
	codeNotFound      = 127 // it does not exist
	codeSignal        = 128 // plus the number of the signal that killed the child
)

// NoGrace is the Command.Grace of a platform that kills at once.
const NoGrace time.Duration = -1

// defaultGrace is Docker's time between SIGTERM and SIGKILL.
const defaultGrace = 10 * time.Second

// Command is one run of the app. It is used once and not changed while it runs.
type Command struct {
	Args []string // program and arguments, passed on verbatim; a name without a slash is looked up in PATH
	Env  []string // "NAME=value"; default os.Environ(); ChildEnv is applied to it in any case
	Dir  string   // working folder; default the agent's own

	// The child's streams; default the agent's own. A writer that is a file is
	// handed to the child as it is. Any other gets a copy through a pipe, each
	// stream from its own goroutine, so one writer for both must stand that; when it
	// fails, the rest is thrown away, for the app must not stand still on our account.
	Stdin  *os.File
	Stdout io.Writer
	Stderr io.Writer

	// Grace is the time from the signal that begins a stop until whoever sent it
	// kills us; 0: it is not known, and taken to be 10 s. The group is killed a little
	// earlier: see killAfter. With less than a second, and with NoGrace, SIGTERM does
	// not wait for OnStop.
	Grace time.Duration

	// ForwardTERM says that SIGTERM is to be passed on. Where the platform sends it
	// to every process by itself it is left false, because some servers read the
	// second one as "hurry".
	ForwardTERM bool

	// StopOnINT treats SIGINT as SIGTERM, for platforms that stop with it.
	StopOnINT bool

	// Signals delivers what the agent receives; the caller subscribes it to Signals()
	// with room for some sixteen. Nil means that only ctx can stop the child.
	Signals <-chan os.Signal

	// Subreaper adopts the app's orphans, daemons of its own will included: they are
	// reaped when they die, and asked to stop when the app has. The first process of a
	// container has that duty in any case. Linux only.
	Subreaper bool

	// OnStart is called once, by the goroutine of Run, when the child runs. It must not
	// block.
	OnStart func(pid int)

	// OnExit is called once, by the goroutine of Run, when the child has ended. What it
	// left behind is ended only after that, which may take the rest of the grace, and its
	// last output may still be in the pipe until Run returns. It must not block. For a
	// child that never ran neither is called.
	OnExit func(Exit)

	// OnStop is called once, in a goroutine of its own, when a stop begins and before
	// SIGTERM is passed on: the moment to ask for no more work. The child waits for
	// it no longer than its context lives (see hookShare); Run waits until it has
	// returned, so it must heed that context.
	OnStop func(ctx context.Context)

	Logger *slog.Logger // default: silent
}

// Run starts the child and returns its exit code when it and everything it left in
// its process group are gone: its own code, 128+n when signal n killed it, 127 when
// there is no such program, 126 when it cannot be executed. The error is not nil
// only where the child never ran or its status could not be read.
//
// The end of ctx is a stop like SIGTERM; it is always passed on, whatever
// ForwardTERM says, because no platform has sent it. A ctx that has ended before
// the start starts nothing.
func (c *Command) Run(ctx context.Context) (int, error) {
	if err := ctx.Err(); err != nil {
		return codeFailed, fmt.Errorf("start the command: %w", err)
	}
	out, err := newOutputs(c.Stdout, c.Stderr)
	if err != nil {
		return codeFailed, fmt.Errorf("start the command: %w", err)
	}
	s := newSupervisor(c)
	defer s.orphans.stop()
	child, shared, err := c.start(out)
	out.started()
	if err != nil {
		out.wait(0)
		return startCode(err), err
	}
	s.started(group{id: child.Pid, shared: shared})
	s.supervise(ctx)
	state, err := child.Wait()
	s.ended(state)
	s.sweep()
	s.finish()
	if !out.wait(outputDelay) {
		s.log.Warn("app output abandoned: a process outside its group still holds the pipe")
	}
	if err != nil {
		return codeFailed, fmt.Errorf("wait for %q: %w", c.Args[0], err)
	}
	return exitCode(state), nil
}

// start makes the process and reports whether it shares our process group.
//
// At a terminal it does. There the shell has made the group, the terminal signals
// all of it, and job control stops and resumes all of it; a child elsewhere would
// be stopped by SIGTTIN at its first read. Making the child's group the foreground
// one instead would take Ctrl-C away from everybody else in the shell's job (the
// script or the make that started us, the rest of the pipe), and Ctrl-Z would stop
// the child under a wrapper that still looks alive to the shell. Anywhere else the
// child leads a group of its own, so that signals reach its children too.
//
// Pdeathsig is not used: the kernel sends it at the death of the thread that forked
// and not of the process, and Go ends threads as it likes, so a healthy agent could
// kill the app. Nor would it help: when the agent is killed the container goes
// with it, and elsewhere an app without its agent is better than no app.
func (c *Command) start(out *outputs) (child *os.Process, shared bool, err error) {
	if len(c.Args) == 0 {
		return nil, false, errNoCommand
	}
	if c.Dir != "" {
		if err := checkFolder(c.Dir); err != nil {
			return nil, false, err
		}
	}
	env := c.Env
	if env == nil {
		env = os.Environ()
	}
	path, err := lookup(c.Args[0], c.Dir, env)
	if err != nil {
		return nil, false, fmt.Errorf("find %q: %w", c.Args[0], err)
	}
	stdin := c.Stdin
	if stdin == nil {
		stdin = os.Stdin
	}
	shared = isOurTerminal(stdin)
	child, err = os.StartProcess(path, c.Args, &os.ProcAttr{
		Dir:   c.Dir,
		Env:   ChildEnv(env),
		Files: []*os.File{stdin, out.stdout, out.stderr},
		Sys:   &syscall.SysProcAttr{Setpgid: !shared},
	})
	if err != nil {
		return nil, false, fmt.Errorf("start %q: %w", c.Args[0], err)
	}
	return child, shared, nil
}

// folderError keeps the cause's text and hides its errno: that the working folder
// does not exist must not read as "no such program".
type folderError struct{ cause error }

func (e folderError) Error() string { return "enter the working folder: " + e.cause.Error() }

func checkFolder(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return folderError{err}
	}
	if !info.IsDir() {
		return folderError{&os.PathError{Op: "chdir", Path: dir, Err: syscall.ENOTDIR}}
	}
	return nil
}

// exitCode follows the shells: the child's own code, or 128 plus its signal.
func exitCode(state *os.ProcessState) int {
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return codeSignal + int(status.Signal())
	}
	return state.ExitCode()
}

// startCode follows env(1) for a program that never ran: no such file is 127, a
// file that execve refuses is 126, anything else is our own failure.
func startCode(err error) int {
	if errors.Is(err, errNoCommand) {
		return codeUsage
	}
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return codeFailed
	}
	switch errno {
	case syscall.ENOENT:
		return codeNotFound
	case syscall.EACCES, syscall.EPERM, syscall.ENOEXEC, syscall.EISDIR, syscall.ENOTDIR, syscall.ELOOP,
		syscall.ENAMETOOLONG, syscall.ETXTBSY, syscall.E2BIG, syscall.EINVAL, syscall.EIO:
		return codeNotExecutable
	}
	return codeFailed // EAGAIN, ENOMEM, EMFILE: the dyno's limits, not the file
}
