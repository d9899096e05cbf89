package run

import (
	"errors"

	"golang.org/x/sys/unix"
)

// awaitExit blocks until the child pid has exited and leaves it unreaped, so that
// its id stays taken.
func awaitExit(pid int) error {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
