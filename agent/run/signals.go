package run

import (
	"os"
	"os/signal"
	"slices"
	"syscall"
)

// Signals lists what a caller subscribes to for Command.Signals:
//
//	received := make(chan os.Signal, 16)
//	signal.Notify(received, run.Signals()...)
//
// SIGURG (Go's own preemption), SIGCHLD and SIGPIPE concern the agent alone and are
// not among them: passing on every SIGURG means hundreds a second. Nor are SIGHUP
// and SIGINT where they were ignored when the agent started. Subscribing to them would
// stop the child from ignoring them, and undo nohup. (Of the other signals Go does not
// tell whether they were ignored.)
func Signals() []os.Signal {
	return slices.DeleteFunc([]os.Signal{
		syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP,
		syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH, syscall.SIGCONT,
	}, signal.Ignored)
}

// passes reports whether sig, which is neither SIGTERM nor SIGINT, goes on to the
// child. In a group that a terminal signals the child has the terminal's signals
// already, and twice is not the same as once.
func (g group) passes(sig os.Signal) bool {
	switch sig {
	case syscall.SIGUSR1, syscall.SIGUSR2:
		return true
	case syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGWINCH, syscall.SIGCONT:
		return !g.shared
	}
	return false
}
