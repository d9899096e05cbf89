package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// clockTick is the unit of CPU times in /proc. Linux fixes it at 100 per
// second for user space on every architecture that Go knows.
const clockTick = 10 * time.Millisecond

// cpuTime is the time that pid has spent, user and system, in steps of 10 ms.
func cpuTime(pid int) (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return parseCPUTime(stat)
}

// parseCPUTime reads fields 14 and 15 of proc_pid_stat(5). The name in field 2
// may hold spaces and parentheses, so it counts from the last parenthesis.
func parseCPUTime(stat []byte) (time.Duration, error) {
	end := bytes.LastIndexByte(stat, ')')
	fields := strings.Fields(string(stat[end+1:]))
	if end < 0 || len(fields) < 13 {
		return 0, errors.New("not a /proc/<pid>/stat line")
	}
	user, err := strconv.ParseInt(fields[11], 10, 64)
	if err != nil {
		return 0, err
	}
	system, err := strconv.ParseInt(fields[12], 10, 64)
	if err != nil {
		return 0, err
	}
	return time.Duration(user+system) * clockTick, nil
}

// memory is what a process holds, in bytes.
type memory struct {
	resident  int64 // VmRSS: what counts against a limit, shared pages too
	anonymous int64 // RssAnon: heap and stacks, without the binary's pages
}

func memoryOf(pid int) (memory, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return memory{}, err
	}
	return parseMemory(string(status))
}

func parseMemory(status string) (memory, error) {
	var m memory
	for line := range strings.Lines(status) {
		name, value, _ := strings.Cut(line, ":")
		var to *int64
		switch name {
		case "VmRSS":
			to = &m.resident
		case "RssAnon":
			to = &m.anonymous
		default:
			continue
		}
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		if err != nil {
			return m, err
		}
		*to = kib << 10
	}
	if m.resident == 0 || m.anonymous == 0 {
		return m, errors.New("/proc/<pid>/status without VmRSS or RssAnon")
	}
	return m, nil
}
