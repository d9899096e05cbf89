package proc

import "os"

// MemoryLimit returns how much memory the container may use, in bytes, and 0 when
// nothing limits it. Both versions of cgroups are asked, and every level above ours
// that can be seen; the lowest number counts.
func MemoryLimit() int64 {
	raw, err := read("/proc/self/cgroup", maxStatus)
	if err != nil {
		return 0
	}
	return memoryLimit("/sys/fs/cgroup", raw)
}

// memoryLimit is MemoryLimit of the cgroup file systems below root. Inside a
// container the path of /proc/self/cgroup is often the host's and not there; the
// root of the mount is the container's own group then, so it is asked in any case.
func memoryLimit(root string, cgroup []byte) int64 {
	unified, memory := parseCgroup(cgroup)
	lowest := int64(0)
	ask := func(name string) {
		if raw, err := read(name, 64); err == nil {
			if n := parseLimit(raw); n > 0 && (lowest == 0 || n < lowest) {
				lowest = n
			}
		}
	}
	for _, group := range upwards(unified) {
		ask(root + group + "/memory.max")
	}
	for _, group := range upwards(memory) {
		ask(root + "/memory" + group + "/memory.limit_in_bytes")
	}
	if lowest == 0 { // where only one of the two is mounted, under a name of its own
		if _, err := os.Stat(root + "/memory.limit_in_bytes"); err == nil {
			ask(root + "/memory.limit_in_bytes")
		}
	}
	return lowest
}

// upwards lists a cgroup and those above it, the root as "".
func upwards(group string) []string {
	var list []string
	for len(group) > 1 && len(list) < 32 {
		list = append(list, group)
		i := len(group) - 1
		for i > 0 && group[i] != '/' {
			i--
		}
		group = group[:i]
	}
	return append(list, "")
}
