package agent_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/posternhq/postern/agent"
	"github.com/posternhq/postern/agent/platform"
	"github.com/posternhq/postern/protocol"
)

// The tests run this very binary again, as the stage on which a rehearsal is held,
// since a process holds one at a time, and as the app. These variables say so.
const (
	stageVariable = "REHEARSE_TEST_STAGE" // a stage, as JSON
	appVariable   = "REHEARSE_TEST_APP"   // what the app does: words
	pidsVariable  = "REHEARSE_TEST_PIDS"  // a file into which each process of the app writes its number
)

// patience ends a test that would otherwise hang; nothing is expected to take it.
const patience = 60 * time.Second

// Both roles are taken before any test begins, whoever has a TestMain.
func init() {
	if words := os.Getenv(appVariable); words != "" {
		os.Exit(playApp(strings.Fields(words)))
	}
	if stage := os.Getenv(stageVariable); stage != "" {
		os.Unsetenv(stageVariable)
		os.Exit(playStage(stage))
	}
}

// stage is one rehearsal for another process to hold.
type stage struct {
	As       string
	App      string   // what the app does
	Command  []string // default the test binary
	Env      []string
	Dir      string
	Port     int           // instead of the platform's; 0: a random one
	Grace    time.Duration // instead of the platform's; -1 is none
	Wait     time.Duration
	Watch    time.Duration
	Visiting bool // only look
}

func playStage(text string) int {
	var s stage
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		panic(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT)
	defer stop()
	var r *agent.Rehearsal
	var err error
	if s.Visiting {
		r, err = agent.Visit(ctx, agent.Visiting{Env: s.Env})
	} else {
		m, _ := platform.Mimic(s.As)
		if s.Port > 0 || m.GivesPort { // the tests are not alone
			m.Port = s.Port
		}
		if s.Grace != 0 {
			m.Grace = max(s.Grace, 0)
		}
		env := append(os.Environ(), s.Env...)
		if s.App != "" {
			env = append(env, appVariable+"="+s.App)
		}
		if len(s.Command) == 0 {
			s.Command = []string{os.Args[0]}
		}
		r, err = agent.Rehearse(ctx, agent.Rehearsing{As: m, Command: s.Command, Dir: s.Dir, Env: env, Wait: s.Wait, Watch: s.Watch, Output: os.Stderr})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "rehearsal failed:", err)
		return 1
	}
	json.NewEncoder(os.Stdout).Encode(r)
	return 0
}

// playApp is the app. Each word is something it does before it waits for its end.
func playApp(words []string) int {
	noteSelf()
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	var lag time.Duration
	terms := 1
	for _, word := range words {
		verb, value, _ := strings.Cut(word, ":")
		switch verb {
		case "serve":
			go serve(listen(value + ":" + os.Getenv("PORT")))
		case "elsewhere":
			go serve(listen("0.0.0.0:0"))
		case "fixed":
			go serve(listen("0.0.0.0:" + value))
		case "environ":
			fmt.Println(strings.Join(os.Environ(), "\n"))
		case "lag":
			lag, _ = time.ParseDuration(value)
		case "terms": // so many signals end it
			terms, _ = strconv.Atoi(value)
		case "child": // in the same session, doing what comes behind the comma
			spawn(nil, strings.ReplaceAll(value, ",", " "))
		case "daemon": // a child that leaves the session and whose parent dies
			spawn(&syscall.SysProcAttr{Setsid: true}, "orphan")
		case "orphan":
			spawn(&syscall.SysProcAttr{Setsid: true}, "deaf")
			return 0
		case "deaf":
			terms = 1 << 20
		case "default": // the signal's own action
			signal.Reset(syscall.SIGTERM)
		}
	}
	forgotten := time.After(2 * patience) // by a test that failed
	for {
		select {
		case <-forgotten:
			return 96
		case sig := <-signals:
			fmt.Println(words[0], "got", sig)
			if terms--; terms == 0 {
				time.Sleep(lag) // its open requests
				return 0
			}
		}
	}
}

func noteSelf() {
	f, err := os.OpenFile(os.Getenv(pidsVariable), os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	fmt.Fprintln(f, os.Getpid())
}

func listen(addr string) net.Listener {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		fmt.Println(err)
		os.Exit(98)
	}
	return l
}

// serve answers everything with 200 and keeps connections as long as the other
// side does.
func serve(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go answer(conn)
	}
}

func answer(conn net.Conn) {
	defer conn.Close()
	buffer := make([]byte, 4096)
	for {
		if _, err := conn.Read(buffer); err != nil {
			return
		}
		fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	}
}

func spawn(attr *syscall.SysProcAttr, words string) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), appVariable+"="+words)
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = os.Stdout, os.Stderr, attr
	if err := cmd.Start(); err != nil {
		panic(err)
	}
}

// rehearsed is what a stage has shown.
type rehearsed struct {
	agent.Rehearsal
	said string // by the app and the stage
	took time.Duration
}

// hold holds the rehearsal and checks that nobody of the app is left.
func hold(t *testing.T, s stage) rehearsed {
	t.Helper()
	p := open(t, s)
	out := p.wait(t)
	if p.code != 0 {
		t.Fatalf("code %d: %s", p.code, p.errs.String())
	}
	r := rehearsed{said: p.errs.String(), took: p.took}
	if err := json.Unmarshal(out, &r.Rehearsal); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	return r
}

// playing is a stage in its process.
type playing struct {
	cmd       *exec.Cmd
	pids      string
	out, errs bytes.Buffer
	began     time.Time
	took      time.Duration
	code      int
}

func open(t *testing.T, s stage) *playing {
	t.Helper()
	text, _ := json.Marshal(s)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	p := &playing{cmd: exec.CommandContext(ctx, os.Args[0]), pids: filepath.Join(t.TempDir(), "pids"), began: time.Now()}
	p.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "GORACE=atexit_sleep_ms=0", stageVariable + "=" + string(text),
		pidsVariable + "=" + p.pids, "POSTERN_TOKEN=secret"}
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.errs
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return p
}

// wait returns what was printed when the stage and all of the app are gone.
func (p *playing) wait(t *testing.T) []byte {
	t.Helper()
	err := p.cmd.Wait()
	p.took = time.Since(p.began)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	p.code = p.cmd.ProcessState.ExitCode()
	for _, pid := range p.members() {
		if alive(pid) {
			t.Errorf("process %d of the app is left", pid)
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	return p.out.Bytes()
}

func (p *playing) members() []int {
	text, _ := os.ReadFile(p.pids)
	var pids []int
	for _, field := range strings.Fields(string(text)) {
		if pid, err := strconv.Atoi(field); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// alive is false for a zombie, too, which nobody may have buried yet.
func alive(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, ok := strings.Cut(string(stat), ") ")
	return !ok || rest[0] != 'Z'
}

func finding(r rehearsed, code string) (protocol.Finding, bool) {
	i := slices.IndexFunc(r.Findings, func(f protocol.Finding) bool { return f.Code == code })
	if i < 0 {
		return protocol.Finding{}, false
	}
	return r.Findings[i], true
}

func freePort(t *testing.T) int {
	t.Helper()
	l := listen(":0")
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func waitFor(t *testing.T, port int) {
	t.Helper()
	for until := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(until) {
			t.Fatal(err)
		}
	}
}
