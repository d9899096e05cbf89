package selftest

import "syscall"

// childAttributes puts a child into a process group of its own, so that Ctrl-C
// in the terminal reaches only us, who end it in order; and has the kernel kill
// it should we die without doing so.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
