package main

import "syscall"

// childAttributes puts a child into its own process group, so that Ctrl-C in
// the terminal reaches only the harness, which ends its children in order; and
// has the kernel kill it should the harness die without doing so. The signal
// follows the thread that started the child; no goroutine here is locked to
// one, so threads last as long as the process.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
