package run

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// awaitExit blocks until the child pid has exited and leaves it unreaped, so that
// its id stays taken. It asks the kernel's event queue, because macOS lets waitid
// return for a child that was merely stopped (go.dev/issue/19314).
func awaitExit(pid int) error {
	queue, err := unix.Kqueue()
	if err != nil {
		return fmt.Errorf("open an event queue: %w", err)
	}
	defer unix.Close(queue)
	unix.CloseOnExec(queue)

	changes := make([]unix.Kevent_t, 1)
	unix.SetKevent(&changes[0], pid, unix.EVFILT_PROC, unix.EV_ADD|unix.EV_ONESHOT)
	changes[0].Fflags = unix.NOTE_EXIT
	events := make([]unix.Kevent_t, 1)
	for {
		_, err := unix.Kevent(queue, changes, events, nil)
		switch {
		case err == nil, errors.Is(err, unix.ESRCH): // ESRCH: it exited before we asked
			return nil
		case !errors.Is(err, unix.EINTR):
			return fmt.Errorf("wait for an event: %w", err)
		}
	}
}
