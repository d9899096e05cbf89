//go:build unix

package node

import (
	"errors"
	"os"
	"syscall"
)

// tryLock takes the lock on f, which ends with the process, however it ends.
// errLocked means that another process has it.
func tryLock(f *os.File) error {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return errLocked
	}
	return err
}
