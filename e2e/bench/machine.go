package main

import (
	"fmt"
	"os"
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
}

func thisMachine() machine {
	return machine{
		Cores:  runtime.NumCPU(),
		CPU:    cpuModel(),
		Kernel: runtime.GOOS + " " + firstLine("/proc/sys/kernel/osrelease") + " " + runtime.GOARCH,
		Go:     runtime.Version(),
		Load:   firstLine("/proc/loadavg"),
	}
}

func (m machine) String() string {
	load := m.Load
	if averages := strings.Fields(load); len(averages) >= 3 {
		load = strings.Join(averages[:3], " ")
	}
	return fmt.Sprintf("%d cores (%s), %s, %s, load at the start %s", m.Cores, m.CPU, m.Kernel, m.Go, load)
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
