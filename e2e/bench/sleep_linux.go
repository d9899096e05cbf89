package main

import (
	"syscall"
	"time"
)

// timerSlack is PR_SET_TIMERSLACK of prctl(2): by how many nanoseconds the kernel
// may delay this thread's timers, 50000 unless told otherwise.
const timerSlack = 29

// sleepUntil returns at t, some microseconds late, or at once when t has passed.
func sleepUntil(t time.Time) {
	// The thread may be another one each time; without effect it is only less exact.
	_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, timerSlack, 1, 0)
	for {
		left := time.Until(t)
		if left <= 0 {
			return
		}
		spec := syscall.NsecToTimespec(int64(left))
		_ = syscall.Nanosleep(&spec, nil) // interrupted by Go's own signals
	}
}
