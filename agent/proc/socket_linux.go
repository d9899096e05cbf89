package proc

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
)

// Sockets returns the TCP sockets that the processes hold. One that several hold,
// as workers do that were forked, is given once, to the first of them.
func Sockets(tree []Process) ([]Socket, error) {
	if len(tree) == 0 {
		return nil, nil
	}
	wanted := make(map[uint64]*Socket)
	table, err := tables(tree[0].PID, false)
	if err != nil {
		return nil, err
	}
	for i := range table {
		if table[i].Inode != 0 {
			wanted[table[i].Inode] = &table[i]
		}
	}
	own(tree, wanted)
	kept := table[:0]
	for _, s := range table {
		if s.PID != 0 {
			kept = append(kept, s)
		}
	}
	return kept, nil
}

// Ports returns the listening sockets of a process's network namespace without
// asking whose they are, which is what makes it cheap.
func Ports(pid int) ([]Socket, error) { return listening(pid) }

// Listeners returns all listening TCP sockets of this network namespace, with
// their holders where these can be told.
func Listeners() ([]Socket, error) {
	list, err := listening(os.Getpid())
	if err != nil {
		return nil, err
	}
	all, err := everybody()
	if err != nil {
		return list, nil // a namespace without processes: sockets all the same
	}
	own(all, byInode(list))
	return list, nil
}

// Take has one look at the app whose first process is root. A root that is gone is
// an error, as for Tree; the rest of the Snapshot is good then, too.
func Take(root int) (Snapshot, error) {
	tree, gone := Tree(root)
	if gone != nil && !errors.Is(gone, os.ErrNotExist) {
		return Snapshot{}, gone
	}
	of := root
	if gone != nil {
		of = os.Getpid()
	}
	list, err := listening(of)
	if err != nil {
		return Snapshot{Tree: tree}, err
	}
	hidden := own(tree, byInode(list))
	return Snapshot{Tree: tree, Listeners: list, Hidden: hidden}, gone
}

// Holder looks through every process that can be read for the one that holds a
// socket. It is the dearest of all questions here.
func Holder(inode uint64) (Process, error) {
	all, err := everybody()
	if err != nil {
		return Process{}, err
	}
	s := &Socket{Inode: inode}
	own(all, map[uint64]*Socket{inode: s})
	if s.PID == 0 {
		return Process{}, fmt.Errorf("holder of socket %d: %w", inode, os.ErrNotExist)
	}
	return process(s.PID)
}

// Holds reports whether the socket is still open where it was found. A listener
// that is still open still listens, so for a server this one readlink is worth a
// whole Take.
func Holds(s Socket) bool {
	link, err := os.Readlink(path(s.PID, "fd/"+strconv.Itoa(s.FD)))
	if err != nil {
		return false
	}
	inode, ok := parseLink(link)
	return ok && inode == s.Inode
}

func byInode(list []Socket) map[uint64]*Socket {
	wanted := make(map[uint64]*Socket, len(list))
	for i := range list {
		if list[i].Inode != 0 {
			wanted[list[i].Inode] = &list[i]
		}
	}
	return wanted
}

// own writes into the wanted sockets who holds them, the first one of the list, and
// reports whether somebody's descriptors could not be read.
func own(list []Process, wanted map[uint64]*Socket) (hidden bool) {
	if len(wanted) == 0 {
		return false
	}
	left := len(wanted)
	for _, p := range list {
		if left == 0 {
			break
		}
		if p.State == 'Z' || p.State == 'X' {
			continue
		}
		fds, err := names(path(p.PID, "fd"), maxFDs)
		if err != nil {
			hidden = hidden || errors.Is(err, os.ErrPermission)
			continue
		}
		for _, name := range fds {
			link, err := os.Readlink(path(p.PID, "fd/"+name))
			if err != nil {
				continue
			}
			inode, ok := parseLink(link)
			if !ok {
				continue
			}
			s := wanted[inode]
			if s == nil || s.PID != 0 {
				continue
			}
			fd, ok := number(name)
			if !ok {
				continue
			}
			s.PID, s.Process, s.FD = p.PID, p.Name, fd
			left--
		}
	}
	return hidden
}

// tables reads the sockets of a process's network namespace, of both families.
func tables(pid int, listenersOnly bool) ([]Socket, error) {
	four, err := table(path(pid, "net/tcp"), listenersOnly)
	if errors.Is(err, os.ErrNotExist) { // the process is gone
		pid = os.Getpid()
		four, err = table(path(pid, "net/tcp"), listenersOnly)
	}
	if err != nil {
		return nil, ErrUnavailable
	}
	six, err := table(path(pid, "net/tcp6"), listenersOnly)
	if err != nil && !errors.Is(err, os.ErrNotExist) { // a kernel without IPv6 has none
		return nil, ErrUnavailable
	}
	return append(four, six...), nil
}

// beyond is how many sockets that do not listen are read behind the last that
// does. Linux lists the listeners first, so that a busy server's thousands of
// connections need not be read; a kernel that lists them in some other order (gVisor)
// is read to the end as long as it has fewer.
const beyond = 256

func table(name string, listenersOnly bool) ([]Socket, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var list []Socket
	others := 0
	lines := bufio.NewScanner(io.LimitReader(f, maxTable))
	lines.Buffer(make([]byte, 4<<10), 64<<10)
	for lines.Scan() {
		s, ok := parseSocket(lines.Bytes())
		if !ok {
			continue
		}
		if listenersOnly {
			if !s.Listens() {
				if others++; others > beyond {
					break
				}
				continue
			}
			others = 0
			s.Remote = netip.AddrPort{}
		}
		if list = append(list, s); len(list) == maxSockets {
			break
		}
	}
	return list, lines.Err()
}
