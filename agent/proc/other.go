//go:build !linux

package proc

import "time"

// Tree is not available here.
func Tree(int) ([]Process, error) { return nil, ErrUnavailable }

// Sockets is not available here.
func Sockets([]Process) ([]Socket, error) { return nil, ErrUnavailable }

// Listeners is not available here.
func Listeners() ([]Socket, error) { return nil, ErrUnavailable }

// Ports is not available here.
func Ports(int) ([]Socket, error) { return nil, ErrUnavailable }

// Take is not available here.
func Take(int) (Snapshot, error) { return Snapshot{}, ErrUnavailable }

// Holder is not available here.
func Holder(uint64) (Process, error) { return Process{}, ErrUnavailable }

// Runnable is not available here: false.
func Runnable(int) bool { return false }

// Age is not available here: 0.
func Age(Process) time.Duration { return 0 }

// Holds is not available here: false.
func Holds(Socket) bool { return false }

// Signals is not available here.
func Signals(int) (caught, ignored uint64, err error) { return 0, 0, ErrUnavailable }

// Executable is not available here: "".
func Executable(int) string { return "" }

// Environ is not available here: nil.
func Environ(int) []string { return nil }

// MemoryLimit is not available here: 0.
func MemoryLimit() int64 { return 0 }
