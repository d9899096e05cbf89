package proc

import (
	"io"
	"os"
	"strconv"
)

// What is read at most. A machine may have more of everything; an app in a
// container does not.
const (
	maxStat      = 4 << 10  // bytes of one stat file
	maxCmdline   = 4 << 10  // bytes of one command line
	maxStatus    = 16 << 10 // bytes of one status file
	maxEnviron   = 64 << 10 // bytes of one environment
	maxProcesses = 32 << 10 // entries of /proc
	maxTree      = 4 << 10  // processes of one app
	maxFDs       = 8 << 10  // descriptors of one process; listeners come early, with low numbers
	maxTable     = 8 << 20  // bytes of one table of sockets, some 50,000 of them
	maxSockets   = 32 << 10 // sockets kept of one
)

func path(pid int, name string) string { return "/proc/" + strconv.Itoa(pid) + "/" + name }

// read returns at most limit bytes of a file of /proc.
func read(name string, limit int) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// Most of them fit into a page; os.ReadFile would begin with less.
	buf := make([]byte, min(limit, 4<<10))
	n := 0
	for {
		m, err := f.Read(buf[n:])
		if n += m; err == io.EOF || n == limit {
			return buf[:n], nil
		}
		if err != nil {
			return nil, err
		}
		if n == len(buf) {
			buf = append(buf, make([]byte, min(len(buf), limit-n))...)
		}
	}
}

// names returns at most limit names of a folder of /proc, in the kernel's order.
func names(folder string, limit int) ([]string, error) {
	f, err := os.Open(folder)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	list, err := f.Readdirnames(limit)
	if err == io.EOF {
		err = nil
	}
	return list, err
}

// Signals returns the masks of the signals that a process catches and ignores:
// signal n is bit n-1.
func Signals(pid int) (caught, ignored uint64, err error) {
	raw, err := read(path(pid, "status"), maxStatus)
	if err != nil {
		return 0, 0, err
	}
	caught, ignored, ok := parseSignals(raw)
	if !ok {
		return 0, 0, ErrUnavailable
	}
	return caught, ignored, nil
}

// Executable returns the file that a process runs, "" when that cannot be read.
func Executable(pid int) string {
	name, _ := os.Readlink(path(pid, "exe"))
	return name
}

// Environ returns the environment a process was started with, nil when it cannot
// be read. It carries secrets.
func Environ(pid int) []string {
	raw, err := read(path(pid, "environ"), maxEnviron)
	if err != nil {
		return nil
	}
	return splitZero(raw)
}

func splitZero(raw []byte) []string {
	var list []string
	for start, i := 0, 0; i < len(raw); i++ {
		if raw[i] == 0 {
			list = append(list, string(raw[start:i]))
			start = i + 1
		}
	}
	return list
}
