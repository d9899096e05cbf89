package run_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/posternhq/postern/agent/run"
)

// The tests run this very binary again as the app, and some as the agent around
// it. helperVariable says which part it plays; its arguments are the part's own.
const helperVariable = "RUN_TEST_HELPER"

// atOnce makes a binary built with the race detector exit without its usual second
// of reflection.
const atOnce = "GORACE=atexit_sleep_ms=0"

// patience ends a test that would otherwise hang; nothing is expected to take it.
const patience = 30 * time.Second

// An agent of the tests stays on its first thread. The kernel gives orphans to that one,
// behind the children it has started itself, so that those are always in the way.
func init() {
	if os.Getenv(helperVariable) == "agent" {
		runtime.LockOSThread()
	}
}

func TestMain(m *testing.M) {
	switch os.Getenv(helperVariable) {
	case "app":
		os.Exit(playApp(os.Args[1:]))
	case "agent":
		os.Exit(playAgent(os.Args[1:]))
	}
	os.Exit(m.Run())
}

func playApp(args []string) int {
	switch args[0] {
	case "args":
		json.NewEncoder(os.Stdout).Encode(args[1:])
	case "environ":
		raw, err := os.ReadFile("/proc/self/environ")
		if err != nil {
			raw = []byte(strings.Join(os.Environ(), "\x00"))
		}
		os.Stdout.Write(raw)
	case "flood":
		n, _ := strconv.Atoi(args[1])
		os.Stdout.WriteString(strings.Repeat("0123456789abcde\n", n/16))
	case "shell":
		run.Exec([]string{"sh", "-c", args[1]})
		return 98
	case "listen":
		return playListener(args[1], args[2:])
	case "leave": // leaves a listener behind
		return leave(nil, args[1:])
	case "daemon": // the same, but the listener makes a session of its own
		return leave(&syscall.SysProcAttr{Setsid: true}, args[1:])
	case "brief": // starts such a listener and ends
		if startListener(&syscall.SysProcAttr{Setsid: true}, args[1:]) != nil {
			return 98
		}
	case "beside": // listens, with such an orphan beside it
		brief := exec.Command(os.Args[0], "brief", args[2])
		brief.Stdin, brief.Stdout = os.Stdin, os.Stdout
		if brief.Run() != nil {
			return 98
		}
		return playListener(args[1], args[3:])
	case "orphans":
		return playOrphans(args[1], args[2])
	}
	return 0
}

// leave starts a listener and exits with 7 when it gets SIGUSR1.
func leave(attr *syscall.SysProcAttr, args []string) int {
	leave := make(chan os.Signal, 1)
	signal.Notify(leave, syscall.SIGUSR1)
	if err := startListener(attr, args); err != nil {
		return 98
	}
	<-leave
	return 7
}

// playOrphans makes as many orphans as it is told, which die at once, and says whether
// they are reaped. A zombie can still be signalled.
func playOrphans(number, kind string) int {
	script := map[string]string{"session": "setsid true >&2 & echo $!", "group": "true >&2 & echo $!"}[kind]
	n, _ := strconv.Atoi(number)
	pids := make([]int, n)
	for i := range pids {
		out, err := exec.Command("sh", "-c", script).Output()
		if err != nil {
			fmt.Println(err)
			return 98
		}
		pids[i], _ = strconv.Atoi(strings.TrimSpace(string(out)))
	}
	reaped := 0
	for deadline := time.Now().Add(patience / 2); reaped < n && time.Now().Before(deadline); {
		if syscall.Kill(pids[reaped], 0) == syscall.ESRCH {
			reaped++
			continue
		}
		time.Sleep(time.Millisecond)
	}
	fmt.Println("reaped", reaped)
	return 7
}

// playListener prints "NAME ready", then "NAME got SIGNAL" and "NAME line TEXT", and
// ends with code 0 when stdin does. Words in its name change that: a "deaf" one does
// not read stdin, a "mortal" one ends at SIGTERM, a "fragile" one dies of it.
func playListener(name string, child []string) int {
	received := make(chan os.Signal, 64)
	signal.Notify(received, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP,
		syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH, syscall.SIGCONT)
	if strings.Contains(name, "fragile") {
		signal.Reset(syscall.SIGTERM)
	}
	lines := make(chan string)
	if !strings.Contains(name, "deaf") {
		go scan(os.Stdin, lines)
	}
	if len(child) > 0 {
		if err := startListener(nil, child); err != nil {
			fmt.Println(name, err)
			return 98
		}
	}
	fmt.Println(name, "ready", os.Getpid(), syscall.Getpgrp())
	forgotten := time.After(2 * patience) // by a test that failed
	for {
		select {
		case <-forgotten:
			return 96
		case sig := <-received:
			fmt.Println(name, "got", short(sig))
			if sig == syscall.SIGTERM && strings.Contains(name, "mortal") {
				return 0
			}
		case line, open := <-lines:
			if !open {
				return 0
			}
			fmt.Println(name, "line", line)
		}
	}
}

func startListener(attr *syscall.SysProcAttr, args []string) error {
	cmd := exec.Command(os.Args[0], append([]string{"listen"}, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.SysProcAttr = os.Stdin, os.Stdout, attr
	return cmd.Start()
}

func scan(from *os.File, lines chan<- string) {
	defer close(lines)
	for s := bufio.NewScanner(from); s.Scan(); {
		lines <- s.Text()
	}
}

func short(sig os.Signal) string {
	return map[os.Signal]string{
		syscall.SIGTERM: "TERM", syscall.SIGINT: "INT", syscall.SIGQUIT: "QUIT", syscall.SIGHUP: "HUP",
		syscall.SIGUSR1: "USR1", syscall.SIGUSR2: "USR2", syscall.SIGWINCH: "WINCH", syscall.SIGCONT: "CONT",
	}[sig]
}

// playAgent is the agent as its main function will be, around an app of the tests.
func playAgent(args []string) int {
	switch args[0] {
	case "signals":
		fmt.Println(run.Signals())
		return 0
	case "exec":
		code, err := run.Exec(args[1:])
		fmt.Fprintln(os.Stderr, err)
		return code
	}
	received := make(chan os.Signal, 16)
	signal.Notify(received, run.Signals()...)
	if folder := os.Getenv(procVariable); folder != "" {
		if err := mountProc(folder); err != nil {
			fmt.Println("skip:", err)
			return 97
		}
	}
	check := func() {}
	if os.Getenv(bystandersVariable) != "" {
		check = bystanders()
	}
	code, err := (&run.Command{
		Args:        append([]string{os.Args[0]}, args...),
		Env:         appEnv(),
		ForwardTERM: true,
		Subreaper:   os.Getenv(subreaperVariable) != "",
		Signals:     received,
	}).Run(context.Background())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	check()
	return code
}

// Variables for playAgent.
const (
	subreaperVariable  = "RUN_TEST_SUBREAPER"
	bystandersVariable = "RUN_TEST_BYSTANDERS"
	procVariable       = "RUN_TEST_PROC" // "proc": mount it anew; "none": hide it
)

// bystanders are what another part of the agent has started with os/exec: some that end
// long before anybody asks, and some that are waited for all the time. What it returns
// says whether their exit codes have arrived.
func bystanders() (check func()) {
	var late []*exec.Cmd
	for range 3 {
		cmd := exec.Command("sh", "-c", "exit 5")
		if err := cmd.Start(); err != nil {
			fmt.Println(err)
		}
		late = append(late, cmd)
	}
	stop, lost := make(chan struct{}), make(chan error, 2)
	for range cap(lost) {
		go func() {
			for {
				err := exec.Command("true").Run()
				select {
				case <-stop:
					lost <- err
					return
				default:
				}
				if err != nil {
					lost <- err
					return
				}
			}
		}()
	}
	return func() {
		close(stop)
		for range cap(lost) {
			fmt.Println("bystander", <-lost)
		}
		for _, cmd := range late {
			cmd.Wait()
			fmt.Println("late", cmd.ProcessState.ExitCode())
		}
	}
}

// appEnv is our environment for a process that is to play the app.
func appEnv(more ...string) []string {
	return append(run.ChildEnv(os.Environ(), helperVariable), append(more, helperVariable+"=app", atOnce)...)
}

// app is a running Command as a test sees it.
type app struct {
	*transcript
	signals chan os.Signal
	stdin   *os.File // our end
	stdout  *os.File // the app's end; wait closes it
	stop    context.CancelFunc
	ended   chan struct{}
	code    int
	err     error
}

// launch runs an app of the tests under c, with its stdin and stdout in our hands.
func launch(t *testing.T, c *run.Command, args ...string) *app {
	t.Helper()
	stdin, feed := pipe(t)
	output, stdout := pipe(t)
	ctx, stop := context.WithCancel(t.Context())
	a := &app{
		transcript: newTranscript(t, output),
		signals:    make(chan os.Signal, 16),
		stdin:      feed,
		stdout:     stdout,
		stop:       stop,
		ended:      make(chan struct{}),
	}
	c.Args, c.Env = append([]string{os.Args[0]}, args...), appEnv(c.Env...)
	c.Stdin, c.Stdout, c.Stderr, c.Signals = stdin, stdout, os.Stderr, a.signals
	go func() {
		defer close(a.ended)
		a.code, a.err = c.Run(ctx)
		stdin.Close()
	}()
	t.Cleanup(func() {
		feed.Close()
		stop()
		<-a.ended
	})
	return a
}

// wait returns the exit code, once everybody who could write to the app's stdout is
// gone: the output ends only then.
func (a *app) wait() int {
	a.t.Helper()
	select {
	case <-a.ended:
	case <-time.After(patience):
		a.t.Fatalf("the app did not end; it said %q", a.seen)
	}
	if a.err != nil {
		a.t.Errorf("run: %v", a.err)
	}
	a.stdout.Close()
	a.drain()
	return a.code
}

// send delivers signals to the agent, one after the other.
func (a *app) send(signals ...os.Signal) {
	for _, sig := range signals {
		a.signals <- sig
	}
}

// sync returns when every signal sent so far has reached the app called name, if it
// ever will: the two sent here come after them, and the app reports both.
func (a *app) sync(name string) {
	a.t.Helper()
	a.send(syscall.SIGUSR1)
	a.expect(name + " got USR1")
	a.send(syscall.SIGUSR2)
	a.expect(name + " got USR2")
}

// transcript is what a process has said so far. It belongs to the test's goroutine.
type transcript struct {
	t     *testing.T
	lines chan string
	seen  []string
}

func newTranscript(t *testing.T, output *os.File) *transcript {
	lines := make(chan string, 1024)
	go scan(output, lines)
	return &transcript{t: t, lines: lines}
}

// expect waits for a line that is, or begins with, want and returns the whole of it.
func (tr *transcript) expect(want string) string {
	tr.t.Helper()
	return tr.expectNth(want, 1)
}

func (tr *transcript) expectNth(want string, nth int) string {
	tr.t.Helper()
	deadline := time.After(patience)
	for i, found := 0, 0; ; i++ {
		if i == len(tr.seen) {
			select {
			case line, open := <-tr.lines:
				if !open {
					tr.t.Fatalf("the output ended without %q: %q", want, tr.seen)
				}
				tr.seen = append(tr.seen, line)
			case <-deadline:
				tr.t.Fatalf("no line %q: %q", want, tr.seen)
			}
		}
		if tr.seen[i] == want || strings.HasPrefix(tr.seen[i], want+" ") {
			if found++; found == nth {
				return tr.seen[i]
			}
		}
	}
}

// drain reads to the end of the output.
func (tr *transcript) drain() {
	tr.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case line, open := <-tr.lines:
			if !open {
				return
			}
			tr.seen = append(tr.seen, line)
		case <-deadline:
			tr.t.Fatalf("somebody still holds the output: %q", tr.seen)
		}
	}
}

// count is how often line was said.
func (tr *transcript) count(line string) int {
	n := 0
	for _, seen := range tr.seen {
		if seen == line {
			n++
		}
	}
	return n
}

func pipe(t *testing.T) (read, write *os.File) {
	t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { read.Close(); write.Close() })
	return read, write
}
