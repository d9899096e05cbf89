package e2e

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/posternhq/postern/e2e/rig"
	"github.com/posternhq/postern/protocol"
)

// language is one of the apps in the folder apps.
type language struct {
	name    string
	program []string // "apps/…" is made absolute; "go" is the app in Go, built
}

var languages = []language{
	{"node", []string{"node", "apps/node/server.js"}},
	{"python", []string{"python3", "apps/python/server.py"}},
	{"ruby", []string{"ruby", "apps/ruby/server.rb"}},
	{"go", []string{"go"}},
	{"shell", []string{"/bin/sh", "apps/shell/server.sh"}},
}

func languageNamed(t testing.TB, name string) language {
	t.Helper()
	for _, l := range languages {
		if l.name == name {
			return l
		}
	}
	t.Fatal("no app in", name)
	return language{}
}

// goApp is the app in Go, built once beside the product's binaries.
var goApp struct {
	once sync.Once
	path string
	err  error
}

// command starts the app; the name of a mistake may follow. The test is skipped
// where the language is not installed.
func (l language) command(t testing.TB) []string {
	t.Helper()
	if l.name == "go" {
		return []string{builtApp(t)}
	}
	needs := []string{l.program[0]}
	if l.name == "shell" {
		needs = append(needs, "socat")
	}
	for _, program := range needs {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("the app in %s needs %s, which is not installed", l.name, program)
		}
	}
	path, err := filepath.Abs(l.program[1])
	if err != nil {
		t.Fatal(err)
	}
	return []string{l.program[0], path}
}

// builtApp is the app in Go.
func builtApp(t testing.TB) string {
	t.Helper()
	goApp.once.Do(func() {
		goApp.path = filepath.Join(filepath.Dir(rig.Binary(t, "postern")), "app")
		out, err := exec.Command("go", "build", "-o", goApp.path, "./apps/go").CombinedOutput()
		if err != nil {
			goApp.err = fmt.Errorf("build the app in Go: %w: %s", err, out)
		}
	})
	if goApp.err != nil {
		t.Fatal(goApp.err)
	}
	return goApp.path
}

// mistake is one way to be unreachable.
type mistake struct {
	name string
	code string   // what the doctor is to find; "" nothing
	with []string // what goes with it
	arg  string   // of the app
	as   string   // the platform; default heroku
	// command is the whole command line instead; behind a last "sh", the app's own
	// is added.
	command func(app []string) []string
	ready   bool // the app is reached all the same
	fine    bool // no error, so exit code 0
}

// rehearsed are the mistakes that postern doctor finds before a deploy.
var rehearsed = []mistake{
	{name: "none", ready: true, fine: true},
	{name: "another port", code: "PORT02", arg: "fixed"},
	{name: "loopback", code: "PORT03", arg: "loopback"},
	{name: "IPv6 only", code: "PORT04", arg: "ipv6"},
	{name: "the host's name", code: "PORT05", arg: "hostname"},
	{name: "no listener", code: "PORT06", arg: "mute"},
	{name: "a crash", code: "PORT06", arg: "crash"},
	{name: "a debugger", code: "PORT10", arg: "debugger", ready: true, fine: true},
	{name: "TLS", code: "PORT13", arg: "tls", ready: true},
	// Heroku sends SIGTERM to every process, so that a shell does no harm there.
	{name: "a shell in between", code: "PORT18", as: "railway", ready: true, fine: true, command: func(app []string) []string {
		return []string{"/bin/sh", "-c", strings.Join(app, " ") + "; echo over"}
	}},
}

// rehearsal is what postern doctor --json prints.
type rehearsal struct {
	Platform string             `json:"platform"`
	Process  string             `json:"process"`
	Port     int                `json:"port"`
	Ready    bool               `json:"ready"`
	BootMS   int64              `json:"boot_ms"`
	Findings []protocol.Finding `json:"findings"`
	Exit     *protocol.Exit     `json:"exit"`
	StopMS   int64              `json:"stop_ms"`
}

const (
	// together is how many rehearsals there are at once. They wait more than they
	// work.
	together = 4
	// bootWait is enough for the slowest of these apps to listen on a busy machine,
	// and what a mute one is waited for.
	bootWait = "8s"
)

func TestTheDoctorFindsEachMistakeInEachLanguageAndNoOther(t *testing.T) {
	t.Parallel()
	env := []string{"APP_TLS=" + certificate(t), "HOSTNAME=" + ownAddress()}
	turn := make(chan struct{}, together)
	type outcome struct {
		out rig.Output
		err error
	}
	for _, l := range languages {
		t.Run(l.name, func(t *testing.T) {
			app := l.command(t)
			outcomes := make([]chan outcome, len(rehearsed))
			for i, m := range rehearsed {
				outcomes[i] = make(chan outcome, 1)
				args := append([]string{"doctor", "--as", cmp.Or(m.as, "heroku"), "--json", "--wait", bootWait, "--"}, m.on(app)...)
				env := append([]string{"APP_PORT=" + portOf(rig.FreeAddr(t))}, env...)
				go func() {
					turn <- struct{}{}
					defer func() { <-turn }()
					out, err := rig.TryPostern(t, env, args...)
					outcomes[i] <- outcome{out, err}
				}()
			}
			for i, m := range rehearsed {
				t.Run(m.name, func(t *testing.T) {
					got := <-outcomes[i] // TryPostern has a limit of its own
					if got.err != nil {
						t.Fatal(got.err)
					}
					if m.arg == "hostname" && ownAddress() == "" {
						t.Skip("this machine has only a loopback")
					}
					m.check(t, got.out)
				})
			}
		})
	}
}

// on is the command line of the app with the mistake.
func (m mistake) on(app []string) []string {
	switch {
	case m.command != nil:
		line := m.command(app)
		if line[len(line)-1] == "sh" {
			line = append(line, app...)
		}
		return line
	case m.arg != "":
		return append(slices.Clone(app), m.arg)
	}
	return app
}

// check reads what the doctor says.
func (m mistake) check(t *testing.T, out rig.Output) {
	t.Helper()
	var r rehearsal
	if err := json.Unmarshal([]byte(out.Stdout), &r); err != nil {
		t.Fatalf("%v: code %d\n%s\n%s", err, out.Code, out.Stdout, out.Stderr)
	}
	checkFindings(t, r.Findings, m.code, m.with...)
	if r.Platform != cmp.Or(m.as, "heroku") || m.as == "" && r.Process != "web" || r.Port == 0 {
		t.Errorf("rehearsed as %q %q, port %d", r.Platform, r.Process, r.Port)
	}
	if r.Ready != m.ready {
		t.Errorf("ready is %v", r.Ready)
	}
	if want := map[bool]int{true: 0, false: 1}[m.fine]; out.Code != want {
		t.Errorf("exit code %d, want %d", out.Code, want)
	}
	if (m.arg == "crash") != (r.Exit != nil && r.Exit.Code == 3) {
		t.Errorf("exit is %+v", r.Exit)
	}
	if t.Failed() {
		t.Logf("%s\n%s", out.Stdout, out.Stderr)
	}
}

// checkFindings: code is among them, and nothing besides but what goes with it. What
// a platform is told to be like is no mistake: PORT19, its grace.
func checkFindings(t *testing.T, findings []protocol.Finding, code string, with ...string) {
	t.Helper()
	var codes []string
	for _, f := range findings {
		codes = append(codes, f.Code)
		if f.Cause == "" || f.Evidence == "" || f.Fix == "" || strings.ContainsAny(f.Cause, "\r\n") {
			t.Errorf("finding is not complete: %+v", f)
		}
	}
	if code != "" && !slices.Contains(codes, code) {
		t.Errorf("found %v, want %s", codes, code)
	}
	for _, c := range codes {
		if c != code && c != "PORT19" && !slices.Contains(with, c) {
			t.Errorf("found %v, want %q only", codes, code)
		}
	}
}

// certificate is a folder with a certificate of its own for localhost.
func certificate(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	err = errors.Join(
		os.WriteFile(filepath.Join(dir, "cert.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o600),
		os.WriteFile(filepath.Join(dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// A correct app is correct everywhere.
func TestTheDoctorHasNothingToSayOfACorrectAppOnAnyPlatform(t *testing.T) {
	t.Parallel()
	app := languageNamed(t, "go").command(t)
	for _, as := range []string{"heroku", "render", "fly", "railway", "cloudrun", "cf", "azure", "dokku"} {
		// One after the other: most have the same fixed port.
		t.Run(as, func(t *testing.T) {
			// A platform that gives no PORT expects the app at its own.
			out := rig.Postern(t, []string{"APP_PORT=8080"}, append([]string{"doctor", "--as", as, "--json", "--wait", bootWait, "--"}, app...)...)
			var r rehearsal
			if err := json.Unmarshal([]byte(out.Stdout), &r); err != nil {
				if as == "fly" && strings.Contains(out.Stderr, "taken") {
					t.Skip("port 8080 is taken here")
				}
				t.Fatalf("%v: code %d\n%s\n%s", err, out.Code, out.Stdout, out.Stderr)
			}
			checkFindings(t, r.Findings, "")
			if out.Code != 0 || !r.Ready || r.Platform != as || r.StopMS > 3000 || r.Exit == nil {
				t.Errorf("code %d: %s", out.Code, out.Stdout)
			}
		})
	}
}

// usualAddr is a free address whose port is the default of some framework, a
// different one at each call.
func usualAddr(t *testing.T) string {
	t.Helper()
	usualPorts.Lock()
	defer usualPorts.Unlock()
	for i, port := range usualPorts.left {
		addr := "127.0.0.1:" + port
		if l, err := net.Listen("tcp", addr); err == nil {
			l.Close()
			usualPorts.left = usualPorts.left[i+1:]
			return addr
		}
	}
	t.Skip("all the usual ports are taken here")
	return ""
}

var usualPorts = struct {
	sync.Mutex
	left []string // guarded
}{left: []string{"5173", "4567", "9292", "4200", "8888", "8081", "3001", "4000", "9000", "1234", "5000", "3000", "8000"}}

// living is a mistake that postern run finds, and how the app is started.
type living struct {
	mistake
	languages []string // nil: all
	taken     bool     // somebody else has the port
	noPort    bool
	usual     bool // PORT is one that Heroku would hardly have chosen
}

var livings = []living{
	{mistake: mistake{name: "none", ready: true}},
	{mistake: mistake{name: "no PORT", code: "PORT01", with: []string{"PORT02"}}, noPort: true},
	// Most end when their port is taken, and who is to be looked at must live: so
	// there is a shell.
	{mistake: mistake{name: "a port that is taken", code: "PORT09", with: []string{"PORT06", "PORT18"}, command: func([]string) []string {
		return []string{"/bin/sh", "-c", `"$@"; exec cat >/dev/null`, "sh"}
	}}, taken: true},
	{mistake: mistake{name: "lost after its boot", code: "PORT12", with: []string{"PORT06"}, arg: "lost"}},
	{mistake: mistake{name: "PORT set by hand", code: "PORT17", ready: true}, usual: true},
	{mistake: mistake{name: "another port", code: "PORT02", arg: "fixed"}, languages: []string{"ruby"}},
	{mistake: mistake{name: "loopback", code: "PORT03", arg: "loopback"}, languages: []string{"python"}},
	{mistake: mistake{name: "IPv6 only", code: "PORT04", arg: "ipv6"}, languages: []string{"shell"}},
	{mistake: mistake{name: "no listener", code: "PORT06", arg: "mute"}, languages: []string{"go"}},
	{mistake: mistake{name: "a debugger", code: "PORT10", arg: "debugger"}, languages: []string{"node"}},
	{mistake: mistake{name: "TLS", code: "PORT13", arg: "tls"}, languages: []string{"node"}},
}

// What shows itself only in life is found by postern run, told in the app's own
// log, and known at the relay.
func TestARunningAppsMistakesAreInItsLogAndAtTheRelay(t *testing.T) {
	t.Parallel()
	r := rig.StartRelay(t, rig.RelayConfig{})
	tls := certificate(t)
	for _, m := range livings {
		for _, l := range languages {
			if m.languages != nil && !slices.Contains(m.languages, l.name) {
				continue
			}
			t.Run(l.name+"/"+m.name, func(t *testing.T) {
				t.Parallel()
				name := slug(l.name + "-" + m.name)
				agent := m.start(t, r, name, l.command(t), tls)
				if m.code == "" {
					m.nothing(t, r, agent, developer(r, name))
					return
				}
				m.found(t, r, agent, developer(r, name))
				if l.name == "python" { // the same, as the CLI tells it
					out := rig.Postern(t, r.CLI(name), "status", "--json")
					if out.Code != 0 || !strings.Contains(out.Stdout, m.code) {
						t.Errorf("postern status --json: code %d: %s%s", out.Code, out.Stdout, out.Stderr)
					}
				}
			})
		}
	}
}

// start starts the app as a dyno of Heroku's.
func (m living) start(t *testing.T, r *rig.Relay, name string, app []string, tls string) *rig.Agent {
	t.Helper()
	target := rig.FreeAddr(t)
	if m.usual {
		target = usualAddr(t)
	}
	if m.taken {
		l, err := net.Listen("tcp", "0.0.0.0:"+portOf(target))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
	}
	env := []string{
		"DYNO=web.1", "HEROKU_APP_NAME=shop", "APP_TLS=" + tls, "APP_TETHER=1", "APP_PORT=" + portOf(rig.FreeAddr(t)),
	}
	if !m.noPort {
		env = append(env, "PORT="+portOf(target))
	}
	return r.StartRun(rig.Command{Args: m.on(app)}, rig.AgentConfig{App: name, NoWait: true, NoPort: m.noPort, Env: env})
}

// nothing checks that nothing is found for as long as most mistakes take to be.
func (m living) nothing(t *testing.T, r *rig.Relay, agent *rig.Agent, token string) {
	t.Helper()
	awaitState(t, r, token, "ready")
	<-time.After(3 * time.Second)
	list, err := instances(r, token)
	if err != nil || len(list) != 1 {
		t.Fatalf("%d instances, %v", len(list), err)
	}
	checkFindings(t, list[0].Findings, "")
	if lines := complaints(agent.Log.String()); len(lines) > 0 {
		t.Errorf("it complains:\n%s", strings.Join(lines, "\n"))
	}
}

// found waits for the finding at the relay and in the log.
func (m living) found(t *testing.T, r *rig.Relay, agent *rig.Agent, token string) {
	t.Helper()
	var found []protocol.Finding
	rig.Eventually(t, 2*wait, "the finding at the relay", func() error {
		list, err := instances(r, token)
		if err != nil || len(list) != 1 {
			return fmt.Errorf("%d instances, %w", len(list), err)
		}
		found = list[0].Findings
		if !slices.ContainsFunc(found, func(f protocol.Finding) bool { return f.Code == m.code }) {
			return fmt.Errorf("it is not among %+v", found)
		}
		return nil
	})
	checkFindings(t, found, m.code, m.with...)
	agent.Log.Wait(t, wait, 0, 1, m.code, "by=postern")
}
