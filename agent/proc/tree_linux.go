package proc

import (
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"
)

// Tree returns root, its descendants, and whoever else is in root's process group
// or session, which takes in what was left behind by a parent that died. Root comes
// first, then parents before their children. A root that is gone is an error that
// errors.Is calls os.ErrNotExist; what is left of its group is returned beside it.
func Tree(root int) ([]Process, error) {
	all, err := everybody()
	if err != nil {
		return nil, err
	}
	members := pick(all, root)
	if len(members) == 0 || members[0].PID != root {
		err = fmt.Errorf("process %d: %w", root, os.ErrNotExist)
	}
	for i := range members {
		members[i].Args = args(members[i].PID)
	}
	return members, err
}

// everybody reads the stat file of every process that can be seen.
func everybody() ([]Process, error) {
	entries, err := names("/proc", maxProcesses)
	if err != nil {
		return nil, ErrUnavailable
	}
	pageSize := int64(os.Getpagesize())
	all := make([]Process, 0, 64)
	for _, entry := range entries {
		if entry[0] < '0' || entry[0] > '9' {
			continue
		}
		stat, err := read("/proc/"+entry+"/stat", maxStat)
		if err != nil {
			continue // gone meanwhile
		}
		if p, ok := parseStat(stat, pageSize); ok {
			all = append(all, p)
		}
	}
	if len(all) == 0 {
		return nil, ErrUnavailable
	}
	return all, nil
}

// pick returns those of all that belong to root.
func pick(all []Process, root int) []Process {
	index := make(map[int]int, len(all)) // by PID
	children := make(map[int][]int)
	for i, p := range all {
		index[p.PID] = i
		children[p.PPID] = append(children[p.PPID], i)
	}
	var out []Process
	taken := make(map[int]bool)
	take := func(i int) {
		if !taken[i] && len(out) < maxTree {
			taken[i] = true
			out = append(out, all[i])
		}
	}
	descend := func(from int) {
		for ; from < len(out); from++ { // out grows
			for _, child := range children[out[from].PID] {
				take(child)
			}
		}
	}
	// The group of a child of ours bears its number, but not everybody who asks has
	// made one: a root without a group of its own shares ours, with us in it.
	group, session := root, root
	if i, ok := index[root]; ok {
		take(i)
		descend(0)
	}
	for i, p := range all {
		if p.Group == group || p.Session == session {
			before := len(out)
			take(i)
			descend(before)
		}
	}
	return out
}

func args(pid int) []string {
	raw, err := read(path(pid, "cmdline"), maxCmdline)
	if err != nil {
		return nil
	}
	return parseArgs(raw)
}

// process reads one process.
func process(pid int) (Process, error) {
	stat, err := read(path(pid, "stat"), maxStat)
	if err != nil {
		return Process{}, err
	}
	p, ok := parseStat(stat, int64(os.Getpagesize()))
	if !ok {
		return Process{}, fmt.Errorf("process %d: %w", pid, ErrUnavailable)
	}
	p.Args = args(pid)
	return p, nil
}

// maxThreads is how many threads of one process are looked at.
const maxThreads = 256

// Runnable reports whether some thread of a process works or waits for a processor.
// A process's own State is that of its first thread alone, which in many runtimes
// sleeps while others work.
func Runnable(pid int) bool {
	threads, err := names(path(pid, "task"), maxThreads)
	if err != nil {
		return false
	}
	for _, thread := range threads {
		stat, err := read(path(pid, "task/"+thread+"/stat"), maxStat)
		if err != nil {
			continue
		}
		if p, ok := parseStat(stat, 1); ok && p.State == 'R' {
			return true
		}
	}
	return false
}

// Age returns how long ago a process was started, in whole seconds, 0 when that
// cannot be told.
func Age(p Process) time.Duration {
	var info syscall.Sysinfo_t
	if p.Started == 0 || syscall.Sysinfo(&info) != nil {
		return 0
	}
	up, started := time.Duration(info.Uptime)*time.Second, time.Duration(min(p.Started, maxTicks))*tick
	return max(up-started, 0).Truncate(time.Second)
}

func number(name string) (int, bool) {
	n, err := strconv.Atoi(name)
	return n, err == nil && n >= 0
}
