//go:build !linux

package deploy

import "os/exec"

func endWithUs(*exec.Cmd) {}
