package selftest

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const childVariable = "SELFTEST_TEST_CHILD"

// TestMain makes the test binary a child process of a test when it is asked to.
func TestMain(m *testing.M) {
	switch os.Getenv(childVariable) {
	case "":
		os.Exit(m.Run())
	case "environment":
		os.Stdout.WriteString(strings.Join(os.Environ(), "\n"))
	case "wait":
		io.Copy(io.Discard, os.Stdin)
	}
}

func child(what string, log io.Writer) Process {
	return Process{Command: []string{os.Args[0]}, Env: []string{childVariable + "=" + what}, Log: log}
}

func TestAProcessIsKilledAndStartedAgain(t *testing.T) {
	t.Parallel()
	p := child("wait", nil)
	p.Kill() // nothing is there yet
	for range 2 {
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-p.Done():
			t.Fatalf("it ended by itself: %v", p.Ended())
		default:
		}
		p.Kill()
		<-p.Done()
		if err := p.Ended(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Errorf("ended with %v", err)
		}
		p.Kill() // it is gone already
	}
	none := Process{Command: []string{"/nowhere/at/all"}}
	if err := none.Start(); err == nil {
		t.Error("started what is not there")
	}
	none.Kill()
}

func TestAChildDoesNotInheritHowWeAreSetUp(t *testing.T) {
	for _, name := range []string{"POSTERN_DATA", "PORT", "DATABASE_URL", "https_proxy", "DYNO"} {
		t.Setenv(name, "ours")
	}
	t.Setenv("SELFTEST_KEPT", "kept")
	var said bytes.Buffer
	p := child("environment", &said)
	p.Env = append(p.Env, "POSTERN_LISTEN=theirs")
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if text := said.String(); strings.Contains(text, "=ours") || !strings.Contains(text, "SELFTEST_KEPT=kept") || !strings.Contains(text, "POSTERN_LISTEN=theirs") {
		t.Errorf("environment %s", text)
	}
}

func TestARelayThatEndsWhileItStartsIsAnError(t *testing.T) {
	t.Parallel()
	addr, err := freeAddr()
	if err != nil {
		t.Fatal(err)
	}
	r := &Relay{URL: "http://" + addr, Process: child("environment", nil)}
	if err := r.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "ended while it started") {
		t.Errorf("error %v", err)
	}
}

func TestARunWithoutARelayIsAnErrorAndLeavesNothing(t *testing.T) {
	t.Setenv(childVariable, "environment") // our relay ends at once
	data := filepath.Join(t.TempDir(), "new")
	report, err := Run(t.Context(), Config{Binary: os.Args[0], Data: data})
	if err == nil || !strings.Contains(err.Error(), "ended while it started") || report != nil {
		t.Errorf("report %+v, error %v", report, err)
	}
	if _, err := os.Stat(data); !os.IsNotExist(err) {
		t.Errorf("left behind: %v", err)
	}
}

func TestADiskIsMeasuredAndNothingIsLeft(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d, err := MeasureDisk(dir)
	if err != nil || d.Median <= 0 || d.Slowest < d.Median {
		t.Errorf("%+v, %v", d, err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if _, err := MeasureDisk(dir + "/none"); err == nil {
		t.Error("measured a folder that is not there")
	}
}
