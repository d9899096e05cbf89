package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// These tests start processes and look for their own children afterwards, so
// they do not run in parallel.

// runBench runs the harness with short windows and checks that nothing it
// started is left.
func runBench(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, log bytes.Buffer
	args = append([]string{"-runs", "1", "-warmup", "20ms", "-window", "60ms"}, args...)
	code = run(t.Context(), args, &out, &log)
	noChildrenLeft(t)
	return code, out.String(), log.String()
}

func noChildrenLeft(t *testing.T) {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil || len(stats) == 0 {
		t.Skip("no /proc")
	}
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // ended meanwhile
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if fields[1] == strconv.Itoa(os.Getpid()) {
			t.Errorf("still there: %s", stat)
		}
	}
}

func TestBenchMeasuresDirectAndTwoHops(t *testing.T) {
	code, out, log := runBench(t, "-targets", "direct,proxy2", "-only", "small,mib,bulk,mixed,agents")
	if code != 0 {
		t.Fatalf("exit code %d\n%s\n%s", code, out, log)
	}
	for _, line := range strings.Split(out, "\n") {
		for _, m := range metrics(fullSizes) {
			if !strings.HasPrefix(line, m.title+"  ") || strings.Contains(m.id, "cpu") || m.group == groupAgents {
				continue
			}
			cells := strings.Fields(strings.TrimPrefix(line, m.title))
			if direct, two := value(cells[1]), value(cells[2]); direct <= 0 || two <= 0 {
				t.Errorf("direct %v, two hops %v: %s", direct, two, line)
			}
		}
	}
	if !strings.Contains(out, "cores") || !strings.Contains(out, verdictNotMeasured) {
		t.Errorf("no machine facts, or no reserved row:\n%s", out)
	}
}

func value(cell string) float64 {
	v, err := strconv.ParseFloat(cell, 64)
	if err != nil {
		return -1
	}
	return v
}

func TestBenchMeasuresTheProductByItsContract(t *testing.T) {
	profiles := t.TempDir()
	code, out, log := runBench(t, "-bin", standIns(t), "-targets", "proxy2,postern",
		"-only", "small,memory", "-cpuprofile", profiles, "-window", "200ms")
	if code != 0 || strings.Contains(out, "FAILED") {
		t.Fatalf("exit code %d\n%s\n%s", code, out, log)
	}
	if profile, err := os.Stat(filepath.Join(profiles, "relay-small-64.pprof")); err != nil || profile.Size() == 0 {
		t.Errorf("no CPU profile: %v", err)
	}
	for _, want := range []string{"small, 64 conns: rate", "32 stalled downloads", "agent, second hop: idle"} {
		i := strings.Index(out, want)
		if i < 0 {
			t.Fatalf("no row %q:\n%s", want, out)
		}
		line, _, _ := strings.Cut(out[i:], "\n")
		if !strings.HasSuffix(line, verdictReached) && !strings.HasSuffix(line, verdictMissed) {
			t.Errorf("not judged: %s", line)
		}
	}
}

func TestBenchMeasuresTheInboxByItsContract(t *testing.T) {
	profiles := t.TempDir()
	code, out, log := runBench(t, "-bin", standIns(t), "-targets", "direct,postern", "-only", "inbox", "-cpuprofile", profiles,
		"-window", "200ms", "-stored", "500", "-waiting", "300", "-drained", "100", "-runs", "2")
	if code != 0 || strings.Contains(out, "FAILED") || strings.Contains(out, "direct") {
		t.Fatalf("exit code %d\n%s\n%s", code, out, log)
	}
	if profile, err := os.Stat(filepath.Join(profiles, "relay-inbox-64.pprof")); err != nil || profile.Size() == 0 {
		t.Errorf("no CPU profile: %v", err)
	}
	for _, m := range metrics(inboxSizes{Stored: 500, Waiting: 300}) {
		if m.group != groupInbox {
			continue
		}
		i := strings.Index(out, m.title)
		if i < 0 {
			t.Errorf("no row %q:\n%s", m.title, out)
			continue
		}
		line, _, _ := strings.Cut(out[i:], "\n")
		if m.bar != nil && !strings.HasSuffix(line, verdictReached) && !strings.HasSuffix(line, verdictMissed) {
			t.Errorf("not judged: %s", line)
		}
	}
}

func TestBenchRefusesToMeasureADiskThatIsNone(t *testing.T) {
	const shm = "/dev/shm"
	if !thisMachine(shm).memoryOnly() {
		t.Skip("no tmpfs at " + shm)
	}
	code, _, log := runBench(t, "-dir", shm, "-only", "inbox", "-bin", standIns(t))
	if code != 1 || !strings.Contains(log, "is no disk") {
		t.Errorf("exit code %d\n%s", code, log)
	}
}

func TestBenchReportsAProductThatAnswersWrong(t *testing.T) {
	code, out, _ := runBench(t, "-bin", standIns(t, "broken"), "-targets", "proxy2,postern", "-only", "small")
	if code != 1 || !strings.Contains(out, verdictErrors) || !strings.Contains(out, "status 502 instead of 200") {
		t.Errorf("exit code %d\n%s", code, out)
	}
}

func TestBenchMeasuresTheOthersWhenTheProductDoesNotStart(t *testing.T) {
	code, out, _ := runBench(t, "-bin", standIns(t, "dead"), "-targets", "direct,postern", "-only", "mib")
	if code != 1 || !strings.Contains(out, "does not feel like it") || !strings.Contains(out, "1 MiB responses") {
		t.Errorf("exit code %d\n%s", code, out)
	}
}

func TestBenchGoesOnWithoutATargetThatDies(t *testing.T) {
	code, out, _ := runBench(t, "-bin", standIns(t, "dying"), "-targets", "proxy2,postern", "-only", "small,mib", "-runs", "2")
	if code != 1 || !strings.Contains(out, "the relay has had enough") || !strings.Contains(out, "exit status 3") {
		t.Errorf("exit code %d\n%s", code, out)
	}
	if n := strings.Count(out, "no more of postern"); n != 1 {
		t.Errorf("its end is told %d times\n%s", n, out)
	}
}

func TestBenchEndsEverythingWhenInterrupted(t *testing.T) {
	for _, at := range []string{"small requests, 1 connections", "small requests during 16 bulk downloads"} {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		log := &interrupter{at: at, interrupt: cancel}
		var out bytes.Buffer
		code := run(ctx, []string{"-targets", "direct,proxy2", "-only", "small,mixed",
			"-runs", "1000", "-warmup", "1ms", "-window", "5ms"}, &out, log)
		if code != 1 || out.Len() > 0 || !strings.Contains(log.String(), "interrupted") {
			t.Errorf("exit code %d, output %q", code, &out)
		}
		noChildrenLeft(t)
	}
}

// interrupter calls interrupt when a log line speaks of at.
type interrupter struct {
	bytes.Buffer
	at        string
	interrupt func()
}

func (i *interrupter) Write(p []byte) (int, error) {
	if strings.Contains(string(p), i.at) {
		i.interrupt()
	}
	return i.Buffer.Write(p)
}

func TestBenchGivesUpInTime(t *testing.T) {
	code, out, _ := runBench(t, "-targets", "direct", "-only", "small", "-runs", "1000", "-timeout", "500ms")
	if code != 1 || !strings.Contains(out, "gave up after 500ms") {
		t.Errorf("exit code %d\n%s", code, out)
	}
}

func TestChildrenGetNoneOfTheHarnessSettings(t *testing.T) {
	for _, name := range []string{"POSTERN_TOKEN", "PORT", "DATABASE_URL", "https_proxy", "POSTERN_BENCH_ROLE"} {
		t.Setenv(name, "x")
	}
	t.Setenv("KEPT_SETTING", "x")
	env := fmt.Sprint(cleanEnvironment())
	if !strings.Contains(env, "KEPT_SETTING=x") {
		t.Error("a harmless setting is gone")
	}
	for _, gone := range []string{"POSTERN_", "PORT=", "DATABASE_URL", "https_proxy"} {
		if strings.Contains(env, gone) {
			t.Errorf("%s reaches the children", gone)
		}
	}
}
