//go:build !unix

package selftest

import "syscall"

// childAttributes is empty where there are no process groups.
func childAttributes() *syscall.SysProcAttr { return nil }
