package run

import (
	"bytes"
	"os"
	"strconv"
)

// onlyZombies reports whether every member of the group that can be seen is dead and
// merely waits for its parent to notice. The first process of a container often never
// does. A zombie holds no port, no file and no memory, so nobody need wait for it. Where
// no member can be seen, as without /proc, the answer is no.
func onlyZombies(group int) bool {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return false
	}
	found := false
	for _, entry := range entries {
		if _, err := strconv.Atoi(entry.Name()); err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + entry.Name() + "/stat")
		if err != nil {
			continue // gone meanwhile
		}
		state, of := stateAndGroup(stat)
		if of != group {
			continue
		}
		if state != "Z" && state != "X" {
			return false
		}
		found = true
	}
	return found
}

// stateAndGroup reads fields 3 and 5 of proc_pid_stat(5): "pid (name) state ppid pgrp".
// The name may contain anything, so the last parenthesis counts.
func stateAndGroup(stat []byte) (state string, group int) {
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 3 {
		return "", 0
	}
	group, err := strconv.Atoi(string(fields[2]))
	if err != nil {
		return "", 0
	}
	return string(fields[0]), group
}
