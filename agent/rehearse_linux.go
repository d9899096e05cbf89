package agent

import "syscall"

// adoptOrphans makes this process the parent of its descendants' orphans, as the
// first process of a container is: PR_SET_CHILD_SUBREAPER of prctl(2). Where it is
// refused, an app that makes itself a daemon is not found at the end.
func adoptOrphans() {
	const setChildSubreaper = 36
	syscall.RawSyscall(syscall.SYS_PRCTL, setChildSubreaper, 1, 0)
}
