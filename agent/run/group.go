package run

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// group is the child's process group, or, where the child shares ours, the child
// alone: a signal to the shared group would reach the agent and the shell's job.
type group struct {
	id     int // the child's process id, and its group's where it has one
	shared bool
}

// signal sends sig. A group that is gone is no error.
func (g group) signal(sig syscall.Signal) error {
	target := -g.id
	if g.shared {
		target = g.id
	}
	if err := syscall.Kill(target, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return os.NewSyscallError("kill", err)
	}
	return nil
}

// gone reports whether the group has no living member left. It is asked only after
// the child itself was reaped, and never of a shared group, which is not ours to empty.
//
// Where the agent is the first process of its container, or a subreaper, orphans of
// the group become its children when they die, and are reaped here: wait4 of this very
// group cannot take the exit status of any other child from os/exec.
func (g group) gone() bool {
	if g.shared {
		return true
	}
	for {
		pid, err := syscall.Wait4(-g.id, nil, syscall.WNOHANG, nil)
		if pid <= 0 && !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	return errors.Is(syscall.Kill(-g.id, 0), syscall.ESRCH) || onlyZombies(g.id)
}

// isOurTerminal reports whether f is the controlling terminal of this process. Only
// that one signals process groups and stops background readers; any other file, and
// any other terminal, refuses the question.
func isOurTerminal(f *os.File) bool {
	_, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCGPGRP)
	return err == nil
}
