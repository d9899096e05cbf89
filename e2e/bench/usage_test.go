package main

import (
	"os"
	"testing"
	"time"
)

func TestCPUTimeIsReadBehindAnyName(t *testing.T) {
	t.Parallel()
	const rest = " S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 8 0 100 1 2"
	for _, name := range []string{"(relay)", "(a b)", "(x) S 9 (9)"} {
		got, err := parseCPUTime([]byte("42 " + name + rest))
		if err != nil || got != 3*time.Second {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	for _, bad := range []string{"", "42 (relay) S 1", "42 relay" + rest, "42 (relay) S 1 2 3 4 5 6 7 8 9 10 x 50 0"} {
		if got, err := parseCPUTime([]byte(bad)); err == nil {
			t.Errorf("%q: read as %v", bad, got)
		}
	}
}

func TestCPUTimeGrowsWithWork(t *testing.T) {
	begin, err := cpuTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(20 * time.Second); time.Now().Before(until); {
		now, err := cpuTime(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if now-begin >= 50*time.Millisecond {
			return
		}
	}
	t.Error("20 s of work and no CPU time")
}

func TestMemoryIsReadInBytes(t *testing.T) {
	t.Parallel()
	m, err := parseMemory("Name:\tx\nVmHWM:\t  9999 kB\nVmRSS:\t   2048 kB\nRssAnon:\t    512 kB\n")
	if err != nil || m.resident != 2<<20 || m.anonymous != 512<<10 {
		t.Errorf("%+v, %v", m, err)
	}
	for _, bad := range []string{"", "VmRSS:\t1 kB\n", "VmRSS:\tmuch\nRssAnon:\t1 kB\n"} {
		if _, err := parseMemory(bad); err == nil {
			t.Errorf("%q accepted", bad)
		}
	}
}
