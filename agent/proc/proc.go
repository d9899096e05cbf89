// Package proc tells what the kernel says about processes and their TCP sockets:
// who belongs to the app, what it listens on, what memory it may use.
//
// It reads Linux's /proc and the cgroup files, asks sock_diag(7) where that is to be
// had, and starts nothing. On other systems,
// and where /proc is not mounted, every function answers ErrUnavailable; callers
// then know less, and must say so rather than guess.
//
//	Take      Tree, and of all listeners whose they are   one look for the doctor
//	Tree      /proc/*/stat → descendants, group, session
//	Sockets   /proc/PID/net/tcp{,6} joined to /proc/PID/fd by inode
//	Listeners the same for everybody, listening sockets only
//	Holds     one readlink: is that very socket still open in that very process
//
// The one rule to know: everything here is stale when it arrives. A process may be
// gone, and its number taken by another, between two reads of one call; what
// vanishes half-way is left out and is no error. What another user's process holds
// cannot be read without privileges: such a socket has PID 0, which means "not
// known" and never "nobody".
//
// All reads are bounded. Arguments of processes may carry secrets and are for
// recognising programs only; they must not be shown.
package proc

import (
	"errors"
	"net/netip"
	"time"
)

// ErrUnavailable says that this system has no /proc, or does not let us read it.
var ErrUnavailable = errors.New("the system does not tell about processes (no /proc)")

// Process is one process at the moment it was read.
type Process struct {
	PID, PPID, Group, Session int

	Name    string        // the kernel's name of it, at most 15 bytes; programs may change it
	Args    []string      // as the process shows them, cut after 4 KiB; may carry secrets
	State   byte          // of its first thread: R running, S sleeping, D in uninterruptible I/O, T stopped, Z zombie
	RSS     int64         // resident memory, bytes
	Threads int           //
	CPU     time.Duration // user and system time so far, in steps of 10 ms
	Started uint64        // clock ticks since the machine booted; with PID it names one process for good
}

// Socket is one TCP socket.
type Socket struct {
	PID     int    // who holds it, the topmost of several; 0 when that is not known
	Process string // the holder's name
	FD      int    // the holder's descriptor
	UID     int    // the user who made it

	State  string         // LISTEN, ESTABLISHED, CLOSE_WAIT, …
	Local  netip.AddrPort // IPv4 addresses mapped into IPv6 are given as IPv4
	Remote netip.AddrPort // zero address and port for a listener
	IPv6   bool           // a socket of the IPv6 family, whatever Local is
	Inode  uint64         // its number; 0 when no process holds it any more
}

// Listens reports whether the socket waits for connections.
func (s Socket) Listens() bool { return s.State == stateListen }

// Snapshot is one look at an app.
type Snapshot struct {
	Tree      []Process // as Tree gives it
	Listeners []Socket  // of the whole network namespace; PID is set where it is in Tree
	// Hidden says that what some process of the tree holds could not be read. A
	// listener without PID may then be the app's.
	Hidden bool
}
