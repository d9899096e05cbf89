package deploy

import (
	"os/exec"
	"syscall"
)

// endWithUs makes a child end when the tests are killed.
func endWithUs(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM} }
