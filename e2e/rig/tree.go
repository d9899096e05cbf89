package rig

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Tree is the ids of the process and of all that descend from it: what a
// platform calls the container. It is empty where there is no /proc.
func (p *Process) Tree() []int {
	children := map[int][]int{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			if parent, ok := parentOf(pid); ok {
				children[parent] = append(children[parent], pid)
			}
		}
	}
	tree := []int{p.PID()}
	for i := 0; i < len(tree); i++ {
		tree = append(tree, children[tree[i]]...)
	}
	if _, ok := parentOf(p.PID()); !ok {
		tree = slices.DeleteFunc(tree, func(pid int) bool { return pid == p.PID() })
	}
	return tree
}

// parentOf is false for a process that has ended, zombies included.
func parentOf(pid int) (int, bool) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false
	}
	// The name, in brackets, may hold anything.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 2 || fields[0] == "Z" || fields[0] == "X" {
		return 0, false
	}
	parent, err := strconv.Atoi(fields[1])
	return parent, err == nil
}

// Alive reports whether pid is a process that has not ended.
func Alive(pid int) bool {
	_, ok := parentOf(pid)
	return ok
}

// SignalEach sends sig to each of these processes, as platforms do to a
// container; those that have ended are passed over.
func SignalEach(pids []int, sig syscall.Signal) {
	for _, pid := range pids {
		syscall.Kill(pid, sig)
	}
}

// KillTree ends the process and its descendants at once, and waits until they
// are gone.
func (p *Process) KillTree() {
	p.t.Helper()
	tree := p.Tree()
	SignalEach(tree, syscall.SIGKILL)
	Eventually(p.t, 10*time.Second, "the end of "+p.Name, func() error {
		for _, pid := range tree {
			if Alive(pid) {
				return fmt.Errorf("process %d is still there", pid)
			}
		}
		return nil
	})
}

// Status is a field of /proc/<pid>/status, "VmRSS" or "Threads", as a number;
// sizes are in KiB.
func (p *Process) Status(field string) int64 {
	p.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		p.t.Fatalf("%s of %s: %v", field, p.Name, err)
	}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		if words := strings.Fields(value); name == field && len(words) > 0 {
			n, err := strconv.ParseInt(words[0], 10, 64)
			if err != nil {
				p.t.Fatalf("%s of %s: %v", field, p.Name, err)
			}
			return n
		}
	}
	p.t.Fatalf("%s has no %s: it has ended", p.Name, field)
	return 0
}
