//go:build unix && !linux

package selftest

import "syscall"

// childAttributes puts a child into a process group of its own, so that Ctrl-C
// in the terminal reaches only us, who end it in order.
func childAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
