package run

import (
	"bytes"
	"os"
	"strconv"
)

// member is what one line of /proc says about a process.
type member struct {
	pid, parent, group int
	state              byte // R, S, D, T, Z, X, …
}

// dead reports whether the process has ended and merely waits for its parent to
// notice. It holds no port, no file and no memory, so nobody need wait for it.
func (m member) dead() bool { return m.state == 'Z' || m.state == 'X' }

// members lists all processes that can be seen; without /proc there are none.
func members() []member {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil
	}
	var all []member
	for _, name := range names {
		if name[0] < '0' || name[0] > '9' {
			continue
		}
		stat, err := os.ReadFile("/proc/" + name + "/stat")
		if err != nil {
			continue // gone meanwhile
		}
		if m, ok := parseStat(stat); ok {
			all = append(all, m)
		}
	}
	return all
}

// parseStat reads the first fields of proc_pid_stat(5): "pid (name) state ppid pgrp".
// The name may contain anything, so the last parenthesis counts.
func parseStat(stat []byte) (m member, ok bool) {
	first, _, _ := bytes.Cut(stat, []byte(" "))
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 3 {
		return member{}, false
	}
	pid, err := strconv.Atoi(string(first))
	parent, err2 := strconv.Atoi(string(fields[1]))
	group, err3 := strconv.Atoi(string(fields[2]))
	if err != nil || err2 != nil || err3 != nil {
		return member{}, false
	}
	return member{pid: pid, parent: parent, group: group, state: fields[0][0]}, true
}

// onlyZombies reports whether every member of the group that can be seen is dead. The
// first process of a container often never reaps them. Where no member can be seen, as
// without /proc, the answer is no.
func onlyZombies(group int) bool {
	found := false
	for _, m := range members() {
		if m.group != group {
			continue
		}
		if !m.dead() {
			return false
		}
		found = true
	}
	return found
}
