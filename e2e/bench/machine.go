package main

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// machine is what the numbers depend on.
type machine struct {
	Cores  int    `json:"cores"`
	CPU    string `json:"cpu"`
	Kernel string `json:"kernel"`
	Go     string `json:"go"`
	Load   string `json:"load"` // load averages when the bench began
	Disk   string `json:"disk"` // file system that the relays' data is on
}

// thisMachine looks at the machine, and at the folder that files will be in; ""
// is the system's for temporary ones.
func thisMachine(dir string) machine {
	return machine{
		Cores:  runtime.NumCPU(),
		CPU:    cpuModel(),
		Kernel: runtime.GOOS + " " + firstLine("/proc/sys/kernel/osrelease") + " " + runtime.GOARCH,
		Go:     runtime.Version(),
		Load:   firstLine("/proc/loadavg"),
		Disk:   fileSystem(cmp.Or(dir, os.TempDir())),
	}
}

func (m machine) String() string {
	load := m.Load
	if averages := strings.Fields(load); len(averages) >= 3 {
		load = strings.Join(averages[:3], " ")
	}
	return fmt.Sprintf("%d cores (%s), %s, %s, files on %s, load at the start %s", m.Cores, m.CPU, m.Kernel, m.Go, m.Disk, load)
}

// memoryOnly tells whether fsync has nothing to do there.
func (m machine) memoryOnly() bool {
	kind, _, _ := strings.Cut(m.Disk, " ")
	return kind == "tmpfs" || kind == "ramfs"
}

// fileSystem is the kind and the device of what dir is on: "ext4 (/dev/vda)".
func fileSystem(dir string) string {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "unknown"
	}
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "unknown"
	}
	return parseMounts(string(mounts), dir)
}

// parseMounts finds dir's line in fstab(5)'s form. The deepest mount counts, and
// of several on one another the last.
func parseMounts(mounts, dir string) string {
	found, depth := "unknown", 0
	for line := range strings.Lines(mounts) {
		fields := strings.Fields(line)
		if len(fields) < 3 {
			continue
		}
		point := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\134`, `\`).Replace(fields[1])
		below := strings.TrimSuffix(point, "/") + "/"
		if (dir == point || strings.HasPrefix(dir+"/", below)) && len(below) >= depth {
			found, depth = fields[2]+" ("+fields[0]+")", len(below)
		}
	}
	return found
}

func cpuModel() string {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err == nil {
		for line := range strings.Lines(string(info)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				return strings.TrimSpace(value)
			}
		}
	}
	return "unknown CPU"
}

func firstLine(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return "unknown"
	}
	line, _, _ := strings.Cut(string(text), "\n")
	return line
}
