package main

import (
	"os"
	"syscall"
	"unsafe"
)

// terminalWidth is how many columns the terminal f has: 0 when f is none, 80
// when it does not say.
func terminalWidth(f *os.File) int {
	var size struct{ rows, columns, x, y uint16 } // struct winsize of ioctl_tty(2)
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&size)))
	switch {
	case errno != 0:
		return 0
	case size.columns == 0:
		return 80
	}
	return int(size.columns)
}

// isTerminal reports whether f is one. Being a character device is not enough:
// /dev/null is one too.
func isTerminal(f *os.File) bool { return terminalWidth(f) > 0 }
