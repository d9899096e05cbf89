package rig

import "syscall"

// childAttributes puts a child into its own process group, so that Ctrl-C in
// the terminal reaches only the tests, which end their children in order; and
// has the kernel kill it should the tests die without doing so.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
