package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/posternhq/postern/relay/selftest"
)

// realBinary builds the program: the test kills and starts again what it finds at
// its own path, and this test binary is not that.
func realBinary(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "postern-relay")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", path, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, said)
	}
	return path
}

func TestSelftestKillsItsOwnRelayAndCleansUp(t *testing.T) {
	t.Parallel()
	binary := realBinary(t)

	t.Run("to the end", func(t *testing.T) {
		t.Parallel()
		data := filepath.Join(t.TempDir(), "not", "there", "yet")
		cmd := exec.CommandContext(t.Context(), binary, "selftest", "--kill", "--for", "4s", "--rate", "100", "--data", data, "--json")
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		var r selftest.Report
		if err := json.Unmarshal(out, &r); err != nil {
			t.Fatalf("%v in %s", err, out)
		}
		if r.Acknowledged < 50 || r.Delivered != r.Acknowledged || r.Kills == 0 || len(r.Violations) > 0 || r.Disk.Median <= 0 || r.Kept != "" {
			t.Errorf("report %s", out)
		}
		if _, err := os.Stat(data); !os.IsNotExist(err) {
			t.Errorf("%s is left behind: %v", data, err)
		}
	})

	t.Run("to Ctrl-C", func(t *testing.T) {
		t.Parallel()
		if runtime.GOOS == "windows" {
			t.Skip("no signals")
		}
		data := t.TempDir()
		other := filepath.Join(data, "postern.db")
		if err := os.WriteFile(other, []byte("somebody's"), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), binary, "selftest", "--kill", "--for", "10m", "--rate", "100", "--data", data)
		var said bytes.Buffer
		cmd.Stderr = &said
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		awaitDatabase(t, data)
		cmd.Process.Signal(syscall.SIGINT)
		text, _ := io.ReadAll(out)
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %s%s", err, text, &said)
		}
		if !regexp.MustCompile(`acknowledged [\d ]+, delivered all of them \([\d ]+ twice\), relay killed \d+ times: nothing lost\n`).Match(text) ||
			!bytes.Contains(text, []byte("fsync on this disk: ")) || !strings.Contains(said.String(), "once more to give up") {
			t.Errorf("said %q and %q", text, &said)
		}
		left, _ := filepath.Glob(filepath.Join(data, "*"))
		if len(left) != 1 || left[0] != other {
			t.Errorf("left behind: %q", left)
		}
	})
}

// awaitDatabase waits until the relay has stored something in a folder of its own
// inside data.
func awaitDatabase(t *testing.T, data string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		logs, _ := filepath.Glob(filepath.Join(data, "selftest-*", "data", "*-wal"))
		for _, log := range logs {
			if info, err := os.Stat(log); err == nil && info.Size() > 256<<10 {
				return
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("the relay stores nothing")
		}
	}
}

func TestSelftestSaysWhatIsMissing(t *testing.T) {
	for _, test := range []struct{ name, args, want string }{
		{"which test", "selftest", "--kill"},
		{"no time", "selftest --kill --for 0s", "must be more than 0"},
		{"no rate", "selftest --kill --rate -1", "must be more than 0"},
		{"too many words", "selftest --kill now", "takes 0 arguments"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			code, _, stderr := postern(t, dir, nil, strings.Fields(test.args)...)
			if code != exitUsage || !strings.Contains(stderr, test.want) {
				t.Errorf("exit code %d, said %q, want %q", code, stderr, test.want)
			}
			if made, _ := filepath.Glob(filepath.Join(dir, "*")); made != nil {
				t.Errorf("made %q", made)
			}
		})
	}
}

func TestSelftestsVerdictIsPlain(t *testing.T) {
	t.Parallel()
	good := selftest.Report{Kills: 21, Disk: selftest.Disk{Median: 213456 * time.Nanosecond, Slowest: 2 * time.Millisecond}}
	good.Acknowledged, good.Delivered, good.Twice = 12345, 12345, 37
	bad := good
	bad.Delivered, bad.Kept = 12320, "/data/selftest-1"
	bad.Disk.Median = time.Microsecond
	for n := range int64(25) {
		bad.Violations = append(bad.Violations, selftest.Violation{Kind: selftest.Lost, Number: n + 1, Event: "evt_x", Detail: "never came"})
	}
	for _, test := range []struct {
		name   string
		report selftest.Report
		ok     bool
		want   []string
	}{
		{"good", good, true, []string{
			"acknowledged 12 345, delivered all of them (37 twice), relay killed 21 times: nothing lost\n",
			"fsync on this disk: 213µs as a rule, 2ms at worst\n", "power cut",
		}},
		{"bad", bad, false, []string{
			"acknowledged 12 345, delivered 12 320 of them", "NOT AS PROMISED",
			"  lost: event 20 evt_x: never came\n  and 5 more\n", "kept in /data/selftest-1\n", "no disk is that fast",
		}},
		{"nothing happened", selftest.Report{}, false, nil},
	} {
		var said bytes.Buffer
		printSelftest(&said, &test.report)
		for _, want := range test.want {
			if !strings.Contains(said.String(), want) {
				t.Errorf("%s: said %q, want %q", test.name, &said, want)
			}
		}
		if (verdictOf(&test.report) == nil) != test.ok {
			t.Errorf("%s: verdict %v", test.name, verdictOf(&test.report))
		}
	}
}

func TestThousandsAreGrouped(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]string{0: "0", 999: "999", 1000: "1 000", 12345: "12 345", 1234567: "1 234 567"} {
		if got := thousands(n); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
}
