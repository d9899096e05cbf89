package run

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"path"
	"strconv"
	"strings"
)

// rssUnit is the unit of ru_maxrss, see getrusage(2): kilobytes here.
const rssUnit = 1024

// memoryKills returns how many processes of this container the kernel has killed so
// far for want of memory, and whether it tells. It counts them in memory.events
// (cgroup v2) or memory.oom_control (v1, since Linux 4.13).
func memoryKills() (kills int64, ok bool) {
	unified, memory := controlGroup()
	for _, file := range []string{
		path.Join("/sys/fs/cgroup", unified, "memory.events"),
		"/sys/fs/cgroup/memory.events", // a container without a namespace for its groups
		path.Join("/sys/fs/cgroup/memory", memory, "memory.oom_control"),
		"/sys/fs/cgroup/memory/memory.oom_control",
	} {
		if kills, ok := killsIn(readSome(file)); ok {
			return kills, true
		}
	}
	return 0, false
}

// killsIn reads the line "oom_kill N".
func killsIn(counters []byte) (int64, bool) {
	for line := range bytes.Lines(counters) {
		if n, ok := bytes.CutPrefix(line, []byte("oom_kill ")); ok {
			kills, err := strconv.ParseInt(string(bytes.TrimSpace(n)), 10, 64)
			return kills, err == nil
		}
	}
	return 0, false
}

// controlGroup is where this process is: in the one hierarchy of cgroup v2, and in the
// one of v1 that has the memory controller. See cgroups(7): "ID:controllers:path".
func controlGroup() (unified, memory string) {
	lines := bufio.NewScanner(bytes.NewReader(readSome("/proc/self/cgroup")))
	for lines.Scan() {
		parts := strings.SplitN(lines.Text(), ":", 3)
		if len(parts) != 3 {
			continue
		}
		if parts[1] == "" {
			unified = parts[2]
		}
		for name := range strings.SplitSeq(parts[1], ",") {
			if name == "memory" {
				memory = parts[2]
			}
		}
	}
	return unified, memory
}

// readSome returns the beginning of a file of the kernel's; nil when it cannot be read.
func readSome(name string) []byte {
	f, err := os.Open(name)
	if err != nil {
		return nil
	}
	defer f.Close()
	text, _ := io.ReadAll(io.LimitReader(f, 16<<10))
	return text
}
