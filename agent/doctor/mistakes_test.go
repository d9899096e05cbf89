package doctor

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/agent/proc"
	"github.com/posternhq/postern/protocol"
)

// These tests make each mistake with a real process and real sockets.

func TestACorrectAppHasNoFindings(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"0.0.0.0:%d", "[::]:%d", ":%d"} {
		for _, kind := range []string{"http", "tcp"} {
			port := freePort(t)
			a := start(t).do(kind + " " + fmt.Sprintf(address, port))
			d := a.doctor(port)
			for range 3 {
				got := d.Examine(t.Context())
				expect(t, got, protocol.StateReady)
				if got.Reachable.IsValid() {
					t.Errorf("a correct app has the rescue address %v", got.Reachable)
				}
				d.backdate(30 * time.Second)
			}
			if a.do("requests"); a.said != "0" {
				t.Errorf("%s requests reached the app's handler", a.said)
			}
		}
	}
}

func TestWhereAnAppListens(t *testing.T) {
	t.Parallel()
	skipWithoutProc(t)
	tests := []struct {
		name      string
		listen    []string // with the port it should have as PORT, and another as OTHER
		state     protocol.AppState
		want      []string
		reachable string
		says      []string
	}{
		{"another port", []string{"tcp 0.0.0.0:OTHER"}, protocol.StateStarting, []string{"PORT02"}, "127.0.0.1:OTHER", []string{"OTHER", "PORT"}},
		{"another port over IPv6", []string{"tcp [::]:OTHER"}, protocol.StateStarting, []string{"PORT02"}, "127.0.0.1:OTHER", nil},
		{"another port over IPv6 alone", []string{"six [::]:OTHER"}, protocol.StateStarting, []string{"PORT02"}, "[::1]:OTHER", nil},
		{"another port on localhost", []string{"tcp 127.0.0.1:OTHER"}, protocol.StateStarting, []string{"PORT02"}, "127.0.0.1:OTHER", nil},
		{"localhost only", []string{"tcp 127.0.0.1:PORT"}, protocol.StateReady, []string{"PORT03"}, "127.0.0.1:PORT", []string{"127.0.0.1:PORT", "R10", "60 s"}},
		{"localhost of both families", []string{"tcp 127.0.0.1:PORT", "six [::1]:PORT"}, protocol.StateReady, []string{"PORT03"}, "127.0.0.1:PORT", nil},
		{"another loopback address", []string{"tcp 127.0.0.5:PORT"}, protocol.StateStarting, []string{"PORT03"}, "127.0.0.5:PORT", nil},
		{"IPv6 without IPv4", []string{"six [::]:PORT"}, protocol.StateStarting, []string{"PORT04"}, "[::1]:PORT", []string{"::1 accepts"}},
		{"IPv6's localhost", []string{"tcp [::1]:PORT"}, protocol.StateStarting, []string{"PORT04"}, "[::1]:PORT", nil},
		{"several ports", []string{"tcp 0.0.0.0:PORT", "tcp 0.0.0.0:OTHER"}, protocol.StateReady, []string{"PORT10"}, "", []string{"OTHER"}},
		{"one more on localhost", []string{"tcp 0.0.0.0:PORT", "tcp 127.0.0.1:OTHER"}, protocol.StateReady, nil, "", nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			replace := strings.NewReplacer("PORT", strconv.Itoa(freePort(t)), "OTHER", strconv.Itoa(freePort(t)))
			a := start(t)
			for _, l := range test.listen {
				a.do(replace.Replace(l))
			}
			port, _ := strconv.Atoi(replace.Replace("PORT"))
			d := a.doctor(port)
			d.Examine(t.Context())
			got := d.backdate(5 * time.Second).Examine(t.Context())
			f := expect(t, got, test.state, test.want...)
			for _, part := range test.says {
				contains(t, f.Cause+f.Evidence, replace.Replace(part))
			}
			if len(test.want) > 0 && test.want[0] != "PORT10" {
				contains(t, f.Evidence, "(pid "+strconv.Itoa(a.cmd.Process.Pid)+")")
			}
			if want := replace.Replace(test.reachable); want != "" && got.Reachable != netip.MustParseAddrPort(want) || want == "" && got.Reachable.IsValid() {
				t.Errorf("rescue by %v, want %q", got.Reachable, want)
			}
			if got.Reachable.IsValid() {
				conn, err := net.Dial("tcp", got.Reachable.String())
				if err != nil {
					t.Fatalf("the rescue address: %v", err)
				}
				conn.Close()
			}
		})
	}
}

// While the app boots, a port it opens first proves nothing.
func TestAnotherPortIsGivenTime(t *testing.T) {
	t.Parallel()
	skipWithoutProc(t)
	port, other := freePort(t), freePort(t)
	a := start(t).do(fmt.Sprintf("tcp 0.0.0.0:%d", other))
	d := a.doctor(port)
	first, _ := d.look(t.Context(), brief)
	expect(t, first, protocol.StateStarting)
	a.do(fmt.Sprintf("tcp 0.0.0.0:%d", port))
	expect(t, d.Examine(t.Context()), protocol.StateReady, "PORT10")
}

func TestAnAppThatEndsBeforeItListens(t *testing.T) {
	t.Parallel()
	for code, want := range map[int]string{3: "code 3", 137: "SIGKILL", 0: "code 0"} {
		a := start(t).do("requests")
		d := a.doctor(freePort(t))
		d.Examine(t.Context())
		a.lines = []protocol.Line{{Stream: "stderr", Text: "cannot find module"}}
		a.die(code)
		f := expect(t, d.Examine(t.Context()), protocol.StateFailed, "PORT06")
		contains(t, f.Evidence, want, "cannot find module")
	}
}

func TestAnAppThatWasToldToStopIsNotSick(t *testing.T) {
	t.Parallel()
	a := start(t).do("requests")
	d := a.doctor(freePort(t))
	d.Examine(t.Context())
	a.die(143)
	a.exit.Load().Asked = true
	expect(t, d.Examine(t.Context()), protocol.StateFailed)
}

func TestAnAppThatNeverListens(t *testing.T) {
	t.Parallel()
	skipWithoutProc(t)
	a := start(t).do("requests")
	a.lines = []protocol.Line{{Stream: "stdout", Text: "waiting for the database"}, {Stream: "postern", Text: "ours"}}
	d := a.doctor(freePort(t))
	expect(t, d.Examine(t.Context()), protocol.StateStarting)
	f := expect(t, d.backdate(12*time.Second).Examine(t.Context()), protocol.StateStarting, "PORT06")
	contains(t, f.Evidence, "waiting for the database", "state S")
	if f.Severity != protocol.SeverityWarning {
		t.Errorf("while it may still come right it is %s", f.Severity)
	}
	expect(t, d.backdate(20*time.Second).Examine(t.Context()), protocol.StateStarting, "PORT06", "PORT07")
	f = expect(t, d.backdate(30*time.Second).Examine(t.Context()), protocol.StateFailed, "PORT06", "PORT07")
	if f.Severity != protocol.SeverityError {
		t.Errorf("after the limit it is %s", f.Severity)
	}
}

func TestABusyBootIsOnlyCounted(t *testing.T) {
	t.Parallel()
	skipWithoutProc(t)
	a := start(t).do("spin")
	d := a.doctor(freePort(t))
	d.Examine(t.Context())
	expect(t, d.backdate(20*time.Second).Examine(t.Context()), protocol.StateStarting)
	f := expect(t, d.backdate(12*time.Second).Examine(t.Context()), protocol.StateStarting, "PORT07")
	contains(t, f.Cause, "50 %")
	f = expect(t, d.backdate(18*time.Second).Examine(t.Context()), protocol.StateStarting, "PORT07")
	contains(t, f.Cause, "80 %")
	expect(t, d.backdate(20*time.Second).Examine(t.Context()), protocol.StateFailed, "PORT06", "PORT07")
}

func TestABootThatCameNearTheLimitIsRemembered(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	a := start(t).do("requests")
	d := a.doctor(port)
	d.Examine(t.Context())
	d.backdate(45 * time.Second)
	a.do(fmt.Sprintf("tcp 0.0.0.0:%d", port))
	f := expect(t, d.Examine(t.Context()), protocol.StateReady, "PORT07")
	contains(t, f.Cause, "it took 4", "of 60 s")
}

// A look from a shell beside an app that has run for long: its age is its own, and
// how long its boot took is nobody's guess.
func TestAnAppThatWasThereBeforeTheDoctor(t *testing.T) {
	t.Parallel()
	skipWithoutProc(t)
	older := func(d *Doctor) *Doctor {
		take := d.world.take
		d.world.take = func(pid int) (proc.Snapshot, error) {
			shot, err := take(pid)
			if len(shot.Tree) > 0 {
				shot.Tree[0].Started -= min(shot.Tree[0].Started-1, 100*100)
			}
			return shot, err
		}
		return d
	}
	port, other := freePort(t), freePort(t)
	a := start(t).do(fmt.Sprintf("tcp 0.0.0.0:%d", port))
	expect(t, older(a.doctor(port)).Examine(t.Context()), protocol.StateReady)
	expect(t, older(a.doctor(other)).Examine(t.Context()), protocol.StateFailed, "PORT02")
	b := start(t).do("requests")
	expect(t, older(b.doctor(port)).Examine(t.Context()), protocol.StateFailed, "PORT09")
}

func TestAnAppOfWhichNobodySaysWhereItShouldBe(t *testing.T) {
	t.Parallel()
	skipWithoutProc(t)
	port := freePort(t)
	a := start(t).do(fmt.Sprintf("tcp [::]:%d", port))
	got := a.doctor(0, func(c *Config) { c.Place.PortVar, c.Place.Platform = "", "" }).Examine(t.Context())
	expect(t, got, protocol.StateStarting, "PORT01")
	if want := netip.AddrPortFrom(loopback4, uint16(port)); got.Reachable != want {
		t.Errorf("rescue by %v, want %v", got.Reachable, want)
	}
}

func TestAPortThatSomebodyElseHas(t *testing.T) {
	t.Parallel()
	skipWithoutProc(t)
	port := freePort(t)
	other := start(t).do(fmt.Sprintf("tcp 0.0.0.0:%d", port))
	a := start(t).do("requests")
	got := a.doctor(port).Examine(t.Context())
	f := expect(t, got, protocol.StateStarting, "PORT09")
	contains(t, f.Cause, fmt.Sprintf("(pid %d)", other.cmd.Process.Pid))
	if got.Reachable.IsValid() {
		t.Errorf("a stranger's port is given as the rescue address: %v", got.Reachable)
	}

	// The same when the app has already ended over it.
	b := start(t).do("requests")
	d := b.doctor(port)
	b.lines = []protocol.Line{{Stream: "stderr", Text: fmt.Sprintf("Error: listen EADDRINUSE: address already in use :::%d", port)}}
	b.die(1)
	got = d.Examine(t.Context())
	expect(t, got, protocol.StateFailed, "PORT06", "PORT09")
	contains(t, fmt.Sprint(got.Findings.List), fmt.Sprintf("(pid %d)", other.cmd.Process.Pid))
}

// A stranger on an address where nothing for the app goes is not in the way.
func TestAStrangerOnAnotherAddress(t *testing.T) {
	t.Parallel()
	skipWithoutProc(t)
	port := freePort(t)
	start(t).do(fmt.Sprintf("tcp 127.0.0.9:%d", port))
	a := start(t).do(fmt.Sprintf("tcp 127.0.0.1:%d", port))
	got := a.doctor(port).Examine(t.Context())
	expect(t, got, protocol.StateReady, "PORT03")

	// One on the more exact address takes what is for the app.
	port = freePort(t)
	b := start(t).do(fmt.Sprintf("six [::]:%d", port))
	start(t).do(fmt.Sprintf("tcp 127.0.0.1:%d", port))
	if got := b.doctor(port).Examine(t.Context()); got.State == protocol.StateReady {
		t.Errorf("connections go to a stranger, and the app is called ready")
	}
}

// The agent may itself have the port, as the bridge that rescues the deploy.
func TestOurOwnBridgeIsNoStranger(t *testing.T) {
	t.Parallel()
	skipWithoutProc(t)
	bridge, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer bridge.Close()
	other := freePort(t)
	a := start(t).do(fmt.Sprintf("tcp 0.0.0.0:%d", other))
	d := a.doctor(bridge.Addr().(*net.TCPAddr).Port)
	d.Examine(t.Context())
	got := d.backdate(5 * time.Second).Examine(t.Context())
	expect(t, got, protocol.StateStarting, "PORT02")
	if int(got.Reachable.Port()) != other {
		t.Errorf("rescue by %v", got.Reachable)
	}
}

func TestTLSOnThePort(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	a := start(t).do(fmt.Sprintf("tls 0.0.0.0:%d", port))
	d := a.doctor(port)
	expect(t, d.Examine(t.Context()), protocol.StateReady, "PORT13")
	expect(t, d.Examine(t.Context()), protocol.StateReady, "PORT13") // remembered, not asked again
	if a.do("requests"); a.said != "0" {
		t.Errorf("%s requests reached the handler", a.said)
	}

	d = a.doctor(port, func(c *Config) { c.Place.ReadyPath = "/healthz" })
	expect(t, d.Examine(t.Context()), protocol.StateStarting, "PORT13")
}

func TestAnAppThatIsLost(t *testing.T) {
	t.Parallel()
	skipWithoutProc(t)
	port := freePort(t)
	a := start(t).do(fmt.Sprintf("tcp 0.0.0.0:%d", port))
	d := a.doctor(port)
	expect(t, d.Examine(t.Context()), protocol.StateReady)
	a.do("close")
	f := expect(t, d.Examine(t.Context()), protocol.StateStarting, "PORT12")
	contains(t, f.Cause, "was lost")
	expect(t, d.backdate(lossPatience).Examine(t.Context()), protocol.StateFailed, "PORT12")
	a.do(fmt.Sprintf("tcp 0.0.0.0:%d", port))
	f = expect(t, d.Examine(t.Context()), protocol.StateReady, "PORT12")
	if f.Severity != protocol.SeverityWarning {
		t.Errorf("an app that is back has a finding of %s", f.Severity)
	}
	expect(t, d.backdate(reported).Examine(t.Context()), protocol.StateReady)
	a.die(137)
	f = expect(t, d.Examine(t.Context()), protocol.StateFailed, "PORT12")
	contains(t, f.Evidence, "SIGKILL", "memory")
}

func TestAServerThatIsReplacedAgainAndAgain(t *testing.T) {
	t.Parallel()
	skipWithoutProc(t)
	port := freePort(t)
	a := start(t)
	d := a.doctor(port)
	var got Diagnosis
	for range 4 {
		a.do(fmt.Sprintf("tcp 0.0.0.0:%d", port))
		got = d.Examine(t.Context())
		a.do("close")
		d.Examine(t.Context())
	}
	if got.Findings.List[0].Severity != protocol.SeverityError {
		t.Errorf("a crash loop is %+v", got.Findings.List)
	}
	contains(t, got.Findings.List[0].Cause, "3 times")
}

func TestShellsInFront(t *testing.T) {
	t.Parallel()
	skipWithoutProc(t)
	script := filepath.Join(t.TempDir(), "start.sh")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n\"$1\"\necho done\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		before []string
		want   []string
	}{
		{"a shell that waits", []string{"sh", "-c", `"$0"; true`}, []string{"PORT18"}},
		{"a script that waits", []string{script}, []string{"PORT18"}},
		{"a shell that is replaced", []string{"sh", "-c", `exec "$0"`}, nil},
		{"a shell that knows what to do", []string{"sh", "-c", `trap 'kill $!' TERM; "$0" <&3 & wait`}, nil},
		{"a program that is no shell", []string{"env"}, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			port := freePort(t)
			before := test.before
			if strings.Contains(strings.Join(before, " "), "<&3") { // a shell gives what is in the background no stdin
				before = []string{"sh", "-c", "exec 3<&0; " + before[2]}
			}
			a := start(t, before...).do(fmt.Sprintf("tcp 0.0.0.0:%d", port))
			f := expect(t, a.doctor(port).Examine(t.Context()), protocol.StateReady, test.want...)
			if test.want != nil {
				contains(t, f.Evidence, "sh (pid "+strconv.Itoa(a.cmd.Process.Pid)+")", "(pid "+a.said+")")
			}
		})
	}
}

func TestHealthPaths(t *testing.T) {
	t.Parallel()
	on := func(platform, path string, env map[string]string) func(*Config) {
		return func(c *Config) {
			c.Place.Platform, c.Place.ReadyPath = platform, path
			c.Place.Env = func(name string) string { return env[name] }
		}
	}
	render := map[string]string{"RENDER_EXTERNAL_HOSTNAME": "shop.onrender.example"}
	tests := []struct {
		name  string
		host  string // the one the app allows, "" all
		place func(*Config)
		state protocol.AppState
		want  []string
		says  []string
	}{
		{"a good answer", "", on("render", "/200", render), protocol.StateReady, nil, nil},
		{"a redirect where one is taken", "", on("render", "/302", render), protocol.StateReady, nil, nil},
		{"a redirect where 200 is wanted", "", on("railway", "302", nil), protocol.StateReady, []string{"PORT16", "PORT19"}, []string{"302 Found"}},
		{"a path that is not there", "", on("render", "/404", render), protocol.StateStarting, []string{"PORT16"}, []string{"404 Not Found"}},
		{"an app that warms up", "", on("render", "/503", render), protocol.StateStarting, nil, nil},
		{"a path that is none", "", on("render", "/a b", render), protocol.StateReady, []string{"PORT16"}, []string{"/a b"}},
		{"a host that is refused", "localhost:PORT", on("render", "/", render), protocol.StateReady, []string{"PORT15"}, []string{"shop.onrender.example", "localhost:PORT 200"}},
		{"every host that can be tried is refused, and it says so", "shop.example", on("render", "/", render), protocol.StateStarting, []string{"PORT15"}, []string{"host name"}},
		{"the platform's host is the allowed one", "healthcheck.railway.app", on("railway", "/", nil), protocol.StateReady, []string{"PORT19"}, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			port := freePort(t)
			host := strings.ReplaceAll(test.host, "PORT", strconv.Itoa(port))
			a := start(t).do(fmt.Sprintf("http 0.0.0.0:%d %s", port, host))
			d := a.doctor(port, test.place, func(c *Config) {
				if c.Place.Platform == "railway" {
					c.Place.Grace = 0
				}
			})
			f := expect(t, d.Examine(t.Context()), test.state, test.want...)
			for _, part := range test.says {
				contains(t, f.Evidence, strings.ReplaceAll(part, "PORT", strconv.Itoa(port)))
			}
		})
	}
}

// What is good is asked once, however often the doctor looks.
func TestAGoodHealthPathIsAskedOnce(t *testing.T) {
	t.Parallel()
	skipWithoutProc(t)
	port := freePort(t)
	a := start(t).do(fmt.Sprintf("http 0.0.0.0:%d", port))
	d := a.doctor(port, func(c *Config) { c.Place.ReadyPath = "/" })
	for range 3 {
		expect(t, d.Examine(t.Context()), protocol.StateReady)
	}
	d.Examine(t.Context())
	if a.do("requests"); a.said != "1" && a.said != "2" { // Examine looks twice the first time
		t.Errorf("the path was asked %s times", a.said)
	}
}

func TestIdleConnectionsAreTimed(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := newServer(150 * time.Millisecond)
	go server.Serve(l)
	defer server.Close()
	addr := netip.MustParseAddrPort(l.Addr().String())
	held, ok := idleTime(t.Context(), dial, addr, "localhost", "/", 10*time.Second)
	if !ok || held < 100*time.Millisecond || held > 8*time.Second {
		t.Errorf("held for %v, %v", held, ok)
	}
	if held, ok := idleTime(t.Context(), dial, addr, "localhost", "/", 20*time.Millisecond); ok {
		t.Errorf("a connection that outlived the limit counts as closed after %v", held)
	}
	if _, ok := idleTime(t.Context(), dial, addr, "localhost", "/close", 10*time.Second); ok {
		t.Error("an answer that announced the end counts")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, ok := idleTime(ctx, dial, addr, "localhost", "/", 10*time.Second); ok {
		t.Error("an end that was ours counts")
	}
}

func TestARefusedConnectionThoughTheAppListens(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	a := start(t).do(fmt.Sprintf("tcp 0.0.0.0:%d", port))
	d := a.doctor(port)
	d.Poke() // while it boots, which explains it
	expect(t, d.Examine(t.Context()), protocol.StateReady)
	d.Poke()
	expect(t, d.Examine(t.Context()), protocol.StateReady, "PORT11")
	expect(t, d.backdate(reported+time.Second).Examine(t.Context()), protocol.StateReady)
}

func TestAWorkerHasNoPort(t *testing.T) {
	t.Parallel()
	a := start(t).do("requests")
	d := a.doctor(0, func(c *Config) { c.Place.Serves, c.Place.PortVar, c.Place.Process = false, "", "worker" })
	d.Examine(t.Context())
	expect(t, d.backdate(2*time.Minute).Examine(t.Context()), protocol.StateReady)
}
