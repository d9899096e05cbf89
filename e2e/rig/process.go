package rig

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// stopsWithin bounds Stop: the relay's default grace and some more.
const stopsWithin = 40 * time.Second

// Process is one child. It is ended when its test ends, if it has not been
// before.
type Process struct {
	Name string
	Log  *Log // shared with the process that it succeeds, if any

	t     testing.TB
	cmd   *exec.Cmd
	input io.Closer // the write end of its standard input
	done  chan struct{}
	err   error // of Wait; valid after done
}

// command says what to start.
type command struct {
	name string
	path string
	args []string
	env  []string // added to cleanEnvironment
	dir  string
	log  *Log // nil: a new one, printed when the test fails
}

func start(t testing.TB, c command) (*Process, error) {
	t.Helper()
	if c.log == nil {
		c.log = newLog()
		t.Cleanup(func() { report(t, c.name, c.log) })
	}
	p := &Process{Name: c.name, Log: c.log, t: t, done: make(chan struct{})}
	p.cmd = exec.Command(c.path, c.args...)
	p.cmd.Env, p.cmd.Dir = append(cleanEnvironment(), c.env...), c.dir
	p.cmd.Stdout, p.cmd.Stderr = c.log, c.log
	p.cmd.SysProcAttr = childAttributes()
	// An app behind postern run may outlive its agent and hold our pipe open.
	p.cmd.WaitDelay = time.Second
	// The input ends with this process, however that ends; see shim.
	in, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	p.cmd.Stdin, p.input = in, w
	if err := p.cmd.Start(); err != nil {
		w.Close()
		return nil, fmt.Errorf("start %s: %w", c.name, err)
	}
	go p.await()
	t.Cleanup(p.end)
	return p, nil
}

// report prints a failed test's log, and fails a test whose process has raced.
func report(t testing.TB, name string, log *Log) {
	text := log.String()
	if strings.Contains(text, "WARNING: DATA RACE") {
		t.Errorf("%s has a data race", name)
	}
	if t.Failed() {
		t.Logf("log of %s:\n%s", name, text)
	}
}

func (p *Process) await() {
	p.err = p.cmd.Wait()
	close(p.done)
}

// end is the last resort of a test's end.
func (p *Process) end() {
	p.cmd.Process.Kill()
	<-p.done
	p.input.Close()
}

// PID is the process's id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Running reports whether the process has not ended.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Kill ends the process at once, with SIGKILL, and waits until it is gone.
func (p *Process) Kill() {
	p.cmd.Process.Kill()
	<-p.done
}

// Signal sends sig.
func (p *Process) Signal(sig os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Fatalf("signal %s: %v", p.Name, err)
	}
}

// Stop asks the process to end, with SIGTERM, waits for it and returns its exit
// code.
func (p *Process) Stop() int {
	p.t.Helper()
	p.Signal(syscall.SIGTERM)
	return p.ExitCode(stopsWithin)
}

// ExitCode waits for the end of the process: its code, or -1 after a signal.
func (p *Process) ExitCode(within time.Duration) int {
	p.t.Helper()
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-timer.C:
		p.t.Fatalf("%s has not ended within %v", p.Name, within)
		return 0
	}
}

// RSS is the memory that the process occupies, in bytes.
func (p *Process) RSS() int64 {
	p.t.Helper()
	status, err := os.ReadFile("/proc/" + strconv.Itoa(p.PID()) + "/status")
	if err != nil {
		p.t.Fatalf("memory of %s: %v", p.Name, err)
	}
	_, rest, _ := bytes.Cut(status, []byte("VmRSS:"))
	fields := strings.Fields(string(rest))
	if len(fields) == 0 {
		p.t.Fatalf("memory of %s: it has ended", p.Name)
	}
	kib, err := strconv.ParseInt(fields[0], 10, 64)
	if err != nil {
		p.t.Fatalf("memory of %s: %v", p.Name, err)
	}
	return kib << 10
}

// cleanEnvironment is our own environment without what would change how a child
// behaves.
func cleanEnvironment() []string {
	var kept []string
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		upper := strings.ToUpper(name)
		switch {
		case strings.HasPrefix(upper, "POSTERN"), strings.HasSuffix(upper, "_PROXY"),
			upper == "PORT", upper == "DATABASE_URL", upper == "DYNO",
			strings.HasPrefix(upper, "OTEL_"), upper == "GODEBUG", upper == "GOMEMLIMIT", upper == "GOGC":
		default:
			kept = append(kept, entry)
		}
	}
	return kept
}
