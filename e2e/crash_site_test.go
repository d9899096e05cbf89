package e2e

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/posternhq/postern/e2e/rig"
	"github.com/posternhq/postern/relay/selftest"
)

// crashSchedule is patient: what is given up would count as lost. An app that is
// killed often would open a breaker of the usual kind for half a minute.
var crashSchedule = strings.TrimSuffix(strings.Repeat("150ms, ", 20)+strings.Repeat("1s, ", 30), ", ")

// crashManifest has an endpoint for each way an event can go.
var crashManifest = strings.NewReplacer("RETRY", "retry: {schedule: ["+crashSchedule+"]}, breaker: {pause: 500ms}").Replace(`version: 1
apps:
  shop:
    endpoints:
      ordered:        {provider: stripe, secrets: [{env: CRASH_SECRET}], mode: store, order_by: /account, RETRY}
      ordered-hybrid: {provider: stripe, secrets: [{env: CRASH_SECRET}], mode: hybrid, order_by: /account, RETRY}
      plain:          {provider: github, secrets: [{env: CRASH_SECRET}], mode: store, RETRY}
      plain-hybrid:   {provider: github, secrets: [{env: CRASH_SECRET}], mode: hybrid, RETRY}
`)

const crashSecret = "whsec_the_secret_of_the_crash_tests"

// crashSite is a relay with agents and apps, each a process that may be killed,
// and the ledger of what they did.
type crashSite struct {
	t      *testing.T
	relay  *selftest.Relay
	ledger *selftest.Ledger
	dir    string
	data   string
	token  string

	reader  *selftest.Reader // of the apps' journal
	journal string
	stop    context.CancelFunc // ends the load
	loading sync.WaitGroup
}

// crashConfig says how a site differs from the usual.
type crashConfig struct {
	Binary string   // of the relay; default the product's own
	Tracer []string // what the relay's command is put behind
	Data   string   // the relay's data folder; default a fresh one
	Env    []string // of the relay
}

// newCrashSite starts a relay; apps and agents are the caller's.
func newCrashSite(t *testing.T, cfg crashConfig) *crashSite {
	t.Helper()
	if cfg.Binary == "" {
		cfg.Binary = rig.Binary(t, "postern-relay")
	}
	s := &crashSite{t: t, ledger: selftest.NewLedger(), dir: t.TempDir(), data: cfg.Data}
	if s.data == "" {
		s.data = filepath.Join(s.dir, "data")
	}
	s.journal = filepath.Join(s.dir, "journal")
	s.reader = selftest.NewReader(s.journal)
	manifest := filepath.Join(s.dir, "manifest.yaml")
	if err := os.WriteFile(manifest, []byte(crashManifest), 0o600); err != nil {
		t.Fatal(err)
	}
	addr := rig.FreeAddr(t)
	s.relay = &selftest.Relay{URL: "http://" + addr, Process: selftest.Process{
		Command: append(append([]string{}, cfg.Tracer...), cfg.Binary, "serve"),
		Log:     s.log("relay"),
		Env: append([]string{
			"POSTERN_DATA=" + s.data, "POSTERN_MANIFEST=" + manifest, "POSTERN_LISTEN=" + addr,
			"POSTERN_PUBLIC_URL=http://" + addr, "POSTERN_ADMIN_LISTEN=off", "POSTERN_LOG_LEVEL=warn",
			"POSTERN_HEARTBEAT=2s", "CRASH_SECRET=" + crashSecret,
		}, cfg.Env...),
	}}
	cmd := exec.CommandContext(t.Context(), cfg.Binary, "token", "create", "--app", "shop")
	cmd.Env = append(selftest.Environment(), s.relay.Env...)
	token, err := cmd.Output()
	if err != nil {
		t.Fatalf("make a token: %v", err)
	}
	s.token = strings.TrimSpace(string(token))
	t.Cleanup(func() { s.relay.Kill() })
	s.startRelay()
	return s
}

func (s *crashSite) startRelay() {
	s.t.Helper()
	if err := s.relay.Start(context.Background()); err != nil {
		s.t.Fatal(err)
	}
}

// log is a process's log; its end is printed when the test fails.
func (s *crashSite) log(name string) *os.File {
	s.t.Helper()
	f, err := os.Create(filepath.Join(s.dir, name+".log"))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		f.Close()
		text, _ := os.ReadFile(f.Name())
		if bytes.Contains(text, []byte("WARNING: DATA RACE")) {
			s.t.Errorf("%s has a data race", name)
		}
		if !s.t.Failed() {
			return
		}
		const most = 6000
		s.t.Logf("the end of the log of %s:\n%s", name, text[max(0, len(text)-most):])
	})
	return f
}

// process makes a process that is killed when the test ends.
func (s *crashSite) process(name string, env []string, command ...string) *selftest.Process {
	s.t.Helper()
	p := &selftest.Process{Command: command, Env: env, Log: s.log(name)}
	s.t.Cleanup(p.Kill)
	return p
}

func (s *crashSite) start(p *selftest.Process) {
	s.t.Helper()
	if err := p.Start(); err != nil {
		s.t.Fatal(err)
	}
}

// agentEnv is the environment of an agent.
func (s *crashSite) agentEnv(instance string) []string {
	return []string{"POSTERN_RELAY=" + s.relay.URL, "POSTERN_TOKEN=" + s.token, "POSTERN_INSTANCE=" + instance}
}

// The variables of an app process.
const (
	crashAppVariable = "E2E_CRASH_APP" // its journal; set: this process is the app
	crashPIDVariable = "E2E_CRASH_PID" // file that gets its pid
)

// app makes an app that listens on target.
func (s *crashSite) app(name, target string) *selftest.Process {
	return s.process(name, s.appEnv(name, target), crashAppCommand()...)
}

func (s *crashSite) appEnv(name, target string) []string {
	return []string{"PORT=" + portOf(target), crashAppVariable + "=" + s.journal, crashPIDVariable + "=" + s.pidFile(name)}
}

func (s *crashSite) pidFile(name string) string { return filepath.Join(s.dir, name+".pid") }

func crashAppCommand() []string { return []string{os.Args[0], "-test.run=^TestCrashAppProcess$"} }

// TestCrashAppProcess is no test: it is the app of other tests when the binary is
// executed again.
func TestCrashAppProcess(*testing.T) {
	if journal := os.Getenv(crashAppVariable); journal != "" {
		os.Exit(crashApp(journal))
	}
}

// crashApp writes down what it gets, before it answers. Now and then it fails or
// takes its time.
func crashApp(path string) int {
	journal, err := selftest.OpenJournal(path)
	if err != nil {
		fmt.Fprintln(os.Stderr, "app:", err)
		return 1
	}
	l, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("PORT"))
	// Who had the port before may be about to end; see below.
	for until := time.Now().Add(5 * time.Second); err != nil && time.Now().Before(until); {
		<-time.After(20 * time.Millisecond)
		l, err = net.Listen("tcp", "127.0.0.1:"+os.Getenv("PORT"))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "app:", err)
		return 1
	}
	if err := os.WriteFile(os.Getenv(crashPIDVariable), strconv.AppendInt(nil, int64(os.Getpid()), 10), 0o600); err != nil {
		fmt.Fprintln(os.Stderr, "app:", err)
		return 1
	}
	// Nobody else ends an app whose agent was killed: our input is the agent's,
	// which the test holds.
	go func() {
		var b [1]byte
		os.Stdin.Read(b[:])
		os.Exit(0)
	}()
	app := &selftest.App{Observe: journal.Write, Status: func(selftest.Delivery) int {
		switch n := rand.IntN(1000); {
		case n < 20: // and never 503, which is what the relay says itself
			return http.StatusInternalServerError
		case n < 40:
			time.Sleep(time.Duration(rand.IntN(150)) * time.Millisecond)
		}
		return http.StatusOK
	}}
	fmt.Fprintln(os.Stderr, "app:", http.Serve(l, app))
	return 1
}

// targets are all endpoints of the manifest.
func (s *crashSite) targets() []selftest.Target {
	hooks := s.relay.URL + "/hooks/shop/"
	ordered, plain := selftest.Stripe(crashSecret, crashSize), selftest.GitHub(crashSecret, crashSize)
	return []selftest.Target{
		{URL: hooks + "ordered", Make: ordered, Keys: 3, Repeats: true},
		{URL: hooks + "ordered-hybrid", Make: ordered, Keys: 3, Repeats: true},
		{URL: hooks + "plain", Make: plain, Repeats: true},
		{URL: hooks + "plain-hybrid", Make: plain, Repeats: true},
	}
}

// crashSize is the length of a body: mostly small, sometimes nothing, and
// sometimes more than is kept beside other events.
func crashSize(r *rand.Rand) int {
	switch n := r.IntN(1000); {
	case n < 100:
		return 0
	case n < 900:
		return 1 + r.IntN(4<<10)
	case n < 980:
		return 4<<10 + r.IntN(60<<10)
	case n < 995:
		return 256<<10 + r.IntN(64<<10)
	}
	return 512<<10 + r.IntN(512<<10) + 1
}

// send starts the load; see await.
func (s *crashSite) send(load *selftest.Load) {
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	load.Ledger = s.ledger
	s.loading.Go(func() { load.Run(ctx) })
	s.t.Cleanup(s.endLoad)
}

// endLoad stops the senders; their last answers are heard.
func (s *crashSite) endLoad() {
	if s.stop != nil {
		s.stop()
		s.loading.Wait()
	}
}

// follow reads what the apps have written since the last time.
func (s *crashSite) follow() error { return s.reader.Read(s.ledger.Observe) }

// awaitAcknowledged waits until n more events were acknowledged.
func (s *crashSite) awaitAcknowledged(n int) {
	s.t.Helper()
	n += s.ledger.Counts().Acknowledged
	rig.Eventually(s.t, 2*time.Minute, "acknowledged webhooks", func() error {
		if c := s.ledger.Counts(); c.Acknowledged < n {
			return fmt.Errorf("%d of %d: %+v", c.Acknowledged, n, c)
		}
		return nil
	})
}

// settle waits until all has come that will, and returns what is wrong.
func (s *crashSite) settle(quiet time.Duration) []selftest.Violation {
	s.t.Helper()
	if err := selftest.Settle(s.t.Context(), s.ledger, quiet, s.follow); err != nil {
		s.t.Fatal(err)
	}
	return s.ledger.Check()
}

// report prints violations, the first ones.
func (s *crashSite) report(violations []selftest.Violation) {
	s.t.Helper()
	const most = 30
	for _, v := range violations[:min(most, len(violations))] {
		s.t.Error(v)
	}
	if len(violations) > most {
		s.t.Errorf("and %d more", len(violations)-most)
	}
}

// killApp kills the app whose id is in a file. The id may be an old one's, and
// somebody else's by now; that one is left alone.
func killApp(file string) bool {
	text, err := os.ReadFile(file)
	if err != nil {
		return false
	}
	os.Remove(file) // so that it is killed once only
	pid, err := strconv.Atoi(string(text))
	if err != nil || pid <= 1 {
		return false
	}
	command, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !bytes.Contains(command, []byte("TestCrashAppProcess")) {
		return false
	}
	return syscall.Kill(pid, syscall.SIGKILL) == nil
}
