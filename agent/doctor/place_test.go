package doctor

import (
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/posternhq/postern/agent/proc"
	"github.com/posternhq/postern/protocol"
)

// sightOf is what is seen of an app that listens where it should.
func sightOf(p Place) *sight {
	s := &sight{place: &p, past: &history{}, at: time.Now(), age: time.Minute, pid: 31}
	s.world = &world{
		file:       func(string) []byte { return nil },
		executable: func(int) string { return "" },
		environ:    func(int) []string { return nil },
		sockets:    func([]proc.Process) ([]proc.Socket, error) { return nil, nil },
		lookup:     func(context.Context, string) ([]netip.Addr, error) { return nil, errors.New("no names here") },
	}
	s.tree = []proc.Process{{PID: 31, Name: "node", Args: []string{"node", "server.js"}, State: 'S'}}
	if p.Serves && p.Port != 0 {
		s.mine = []proc.Socket{{PID: 31, Process: "node", Inode: 7, State: "LISTEN", Local: netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(p.Port))}}
		s.loopback = open
		s.past.booted = 1
	}
	return s
}

func env(pairs ...string) func(string) string {
	return func(name string) string {
		for _, pair := range pairs {
			if key, value, _ := strings.Cut(pair, "="); key == name {
				return value
			}
		}
		return ""
	}
}

func run(s *sight) []protocol.Finding {
	return (&Doctor{}).check(s)
}

func TestWhatThePlaceItselfTells(t *testing.T) {
	t.Parallel()
	web := func(platform, port string, change ...func(*Place)) Place {
		p := Place{Platform: platform, Process: "web", Port: 46443, PortVar: port, Serves: true, Grace: 30 * time.Second}
		for _, c := range change {
			c(&p)
		}
		return p
	}
	with := func(pairs ...string) func(*Place) { return func(p *Place) { p.Env = env(pairs...) } }
	tests := []struct {
		name  string
		place Place
		files map[string]string
		want  []string
		says  string
	}{
		{"heroku as it is", web("heroku", "46443"), nil, nil, ""},
		{"no PORT for a worker that serves", Place{Platform: "heroku", Process: "worker", Serves: true, Grace: 30 * time.Second}, nil, []string{"PORT01"}, "worker"},
		{"no PORT on Fly.io", Place{Platform: "fly", Process: "app", Serves: true, Grace: time.Minute}, nil, []string{"PORT01"}, "internal_port"},
		{"no PORT on a plain machine", Place{Serves: true}, nil, []string{"PORT01"}, "--port"},
		{"PORT is no number", Place{Serves: true, PortVar: "http"}, nil, []string{"PORT01"}, `PORT="http"`},
		{"no PORT for who serves nobody", Place{Platform: "heroku", Process: "worker"}, nil, nil, ""},
		{"heroku, a framework's default", web("heroku", "3000"), nil, []string{"PORT17"}, "config:unset"},
		{"heroku, the same again", web("heroku", "46443", func(p *Place) { p.PortBefore = "46443" }), nil, []string{"PORT17"}, "start before"},
		{"heroku, another one again", web("heroku", "46443", func(p *Place) { p.PortBefore = "31812" }), nil, nil, ""},
		{"heroku fir, of whose choice nothing is known", web("heroku", "5000", with("DYNO=web-848cd4f64d-pvpr2")), nil, nil, ""},
		{"dokku's usual port", web("dokku", "5000"), nil, nil, ""},
		{"dokku, a port the proxy does not know", web("dokku", "3000", with("DOKKU_PROXY_PORT_MAP=http:80:5000 https:443:5000")), nil, []string{"PORT17"}, "ports:set"},
		{"dokku, a port the proxy knows", web("dokku", "3000", with("DOKKU_PROXY_PORT_MAP=http:80:3000")), nil, nil, ""},
		{"render's port", web("render", "10000"), nil, nil, ""},
		{"railway without a grace", web("railway", "46443", func(p *Place) { p.Grace = 0 }), nil, []string{"PORT19"}, "DRAINING"},
		{"railway with one", web("railway", "46443"), nil, nil, ""},
		{"fly's five seconds", web("fly", "46443", func(p *Place) { p.Grace = 5 * time.Second }), nil, []string{"PORT19"}, "kill_timeout"},
		{"azure's five seconds", web("azure", "46443", func(p *Place) { p.Grace = 5 * time.Second }), nil, []string{"PORT19"}, "STOP_TIME_LIMIT"},
		{"five seconds, and the app needs one", web("fly", "46443", func(p *Place) { p.Grace, p.Drain = 5*time.Second, time.Second }), nil, nil, ""},
		{"thirty seconds, and the app needs forty", web("heroku", "46443", func(p *Place) { p.Drain = 40 * time.Second }), nil, []string{"PORT19"}, "40 s"},
		{"a platform that may let it sleep", web("render", "10000", func(p *Place) { p.Sleeps = "free services sleep after 15 minutes" }), nil, nil, ""},
		{"fly sends elsewhere", web("fly", ""), map[string]string{"fly.toml": "app = 'x'\n[http_service]\n  internal_port = 3000 # here\n"}, []string{"PORT08"}, "internal_port = 46443"},
		{"fly sends here", web("fly", ""), map[string]string{"fly.toml": "[http_service]\ninternal_port = 46443\n"}, nil, ""},
		{"fly sends elsewhere, to another process group", web("fly", ""), map[string]string{"fly.toml": "[http_service]\ninternal_port = 3000\nprocesses = [\"other\"]\n"}, nil, ""},
		{"azure sends elsewhere", web("azure", "", with("WEBSITES_PORT=8000")), nil, []string{"PORT08"}, "WEBSITES_PORT=46443"},
		{"azure sends here", web("azure", "", with("WEBSITES_PORT=46443")), nil, nil, ""},
		{"another proxy", web("heroku", "46443", with("HTTPS_PROXY=http://fixie:secret@velodrome.example:80")), nil, []string{"EGR03"}, "velodrome.example:80"},
		{"our own proxy", web("heroku", "46443", with("HTTPS_PROXY=http://127.0.0.1:4040"), func(p *Place) { p.Proxy = netip.MustParseAddrPort("127.0.0.1:4040") }), nil, []string{"EGR01"}, ""},
		{"a name that could break a header", web("render", "10000", with("RENDER_EXTERNAL_HOSTNAME=a\r\nX: y")), nil, nil, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := sightOf(test.place)
			s.world.file = func(name string) []byte {
				if text, ok := test.files[filepath.Base(name)]; ok {
					return []byte(text)
				}
				return nil
			}
			s.egress = s.calls(t.Context())
			list := run(s)
			expect(t, Diagnosis{Findings: protocol.Findings{List: list}}, "", test.want...)
			all := ""
			for _, f := range list {
				all += f.Cause + f.Evidence + f.Fix
			}
			contains(t, all, test.says)
			if strings.Contains(all, "secret") {
				t.Errorf("a password is shown: %s", all)
			}
		})
	}
	if host := platformHost(&Place{Platform: "render", Env: env("RENDER_EXTERNAL_HOSTNAME=a\r\nX: y")}); host != "" {
		t.Errorf("a host name %q would be sent", host)
	}
}

func TestAProcessThatWasStoppedForAWhile(t *testing.T) {
	t.Parallel()
	s := sightOf(Place{Platform: "cloudrun", Port: 8080, PortVar: "8080", Serves: true, Sleeps: "there is no CPU between requests"})
	s.past.frozen, s.past.thawed = 250*time.Second, time.Date(2026, 3, 1, 19, 3, 12, 0, time.UTC)
	list := putToSleep(s)
	expect(t, Diagnosis{Findings: protocol.Findings{List: list}}, "", "PORT20")
	if len(list) == 1 {
		contains(t, list[0].Evidence, "4m10s until 19:03:12Z; there is no CPU between requests")
	}
}

func TestLinesThatSayThePortIsTaken(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]int{
		"Error: listen EADDRINUSE: address already in use :::3000":                                              3000,
		"OSError: [Errno 98] Address already in use":                                                            0,
		"ERROR: [Errno 98] error while attempting to bind on address ('0.0.0.0', 8000): address already in use": 8000,
		"[ERROR] Connection in use: ('0.0.0.0', 8000)":                                                          8000,
		`Address already in use - bind(2) for "0.0.0.0" port 3000 (Errno::EADDRINUSE)`:                          3000,
		"2026/11/21 12:34:56 listen tcp :8080: bind: address already in use":                                    8080,
		"Web server failed to start. Port 8080 was already in use.":                                             8080,
		"Failed to listen on localhost:8000 (reason: Address already in use)":                                   8000,
		"Failed to bind to address http://127.0.0.1:5000: address already in use.":                              5000,
		"12:34:56 Address already in use (os error 98)":                                                         0,
	} {
		text, port := takenIn([]protocol.Line{{Stream: "stderr", Text: "before"}, {Stream: "stderr", Text: line}, {Stream: "stderr", Text: "after"}})
		if text != line || port != want {
			t.Errorf("%s\ngave %q, %d, want %d", line, text, port, want)
		}
	}
	for _, line := range []string{"the address is fine", "port 3000 in use by us", ""} {
		if text, _ := takenIn([]protocol.Line{{Text: line}}); text != "" {
			t.Errorf("%q was taken for a complaint", line)
		}
	}
	if text, _ := takenIn([]protocol.Line{{Stream: "postern", Text: "EADDRINUSE"}}); text != "" {
		t.Error("our own line was taken for the app's")
	}
}

func TestADebuggerOnAllInterfacesIsFlagged(t *testing.T) {
	t.Parallel()
	s := sightOf(Place{Platform: "heroku", Process: "web", Port: 46443, PortVar: "46443", Serves: true, Grace: 30 * time.Second})
	s.elsewhere = []proc.Socket{{PID: 31, Process: "node", Inode: 8, Local: netip.MustParseAddrPort("0.0.0.0:9229")}}
	f := expect(t, Diagnosis{Findings: protocol.Findings{List: run(s)}}, "", "PORT10")
	contains(t, f.Evidence, "9229 is the port of Node's inspector", "46443")
	if f.Severity != protocol.SeverityWarning {
		t.Errorf("it is %s", f.Severity)
	}
	s.elsewhere[0].Local = netip.MustParseAddrPort("127.0.0.1:9229")
	expect(t, Diagnosis{Findings: protocol.Findings{List: run(s)}}, "")

	// Nor is a debugger the app on the wrong port.
	s.mine, s.loopback, s.past.booted = nil, untried, 0
	s.elsewhere[0].Local = netip.MustParseAddrPort("0.0.0.0:9229")
	s.past.busy = 1
	s.age = 20 * time.Second
	expect(t, Diagnosis{Findings: protocol.Findings{List: run(s)}}, "")
}

func TestWhatConnectionsAloneProve(t *testing.T) {
	t.Parallel()
	eth := netip.MustParseAddr("172.17.0.5")
	tests := []struct {
		name                 string
		loopback, six, outer outcome
		state                protocol.AppState
		want                 []string
		reachable            string
	}{
		{"all of them", open, untried, open, protocol.StateReady, nil, ""},
		{"localhost only", open, untried, refused, protocol.StateReady, []string{"PORT03"}, "127.0.0.1:46443"},
		{"localhost, and nothing is known of others", open, untried, silent, protocol.StateReady, nil, ""},
		{"IPv6 only", refused, open, refused, protocol.StateStarting, []string{"PORT04"}, "[::1]:46443"},
		{"the interface only", refused, refused, open, protocol.StateStarting, []string{"PORT05"}, "172.17.0.5:46443"},
		{"nothing, and it may still come", refused, refused, refused, protocol.StateStarting, nil, ""},
	}
	for _, test := range tests {
		s := sightOf(Place{Platform: "heroku", Process: "web", Port: 46443, PortVar: "46443", Serves: true, Grace: 30 * time.Second, BootLimit: 2 * time.Minute})
		s.blind, s.tree, s.mine = true, nil, nil
		s.loopback, s.six, s.outer, s.outerAt = test.loopback, test.six, test.outer, eth
		s.past.booted = 0
		s.age = 30 * time.Second
		state, _ := judge(s)
		d := Diagnosis{State: state, Findings: protocol.Findings{List: run(s)}}
		expect(t, d, test.state, test.want...)
		if got := s.reachable(); got.IsValid() != (test.reachable != "") || got.IsValid() && got.String() != test.reachable {
			t.Errorf("%s: rescue by %v, want %q", test.name, got, test.reachable)
		}
	}
}

func TestCallsPastTheProxy(t *testing.T) {
	t.Parallel()
	proxy := netip.MustParseAddrPort("127.0.0.1:4040")
	java := proc.Process{PID: 40, Name: "java", Args: []string{"/usr/bin/java", "-jar", "app.jar"}}
	node := proc.Process{PID: 41, Name: "node", Args: []string{"node", "server.js"}}
	out := proc.Socket{PID: 41, Process: "node", State: "ESTABLISHED", Local: netip.MustParseAddrPort("10.0.0.2:50000"), Remote: netip.MustParseAddrPort("203.0.113.9:443")}
	private, database, accepted, own := out, out, out, out
	private.Remote = netip.MustParseAddrPort("10.0.0.9:443")
	database.Remote = netip.MustParseAddrPort("203.0.113.9:5432")
	accepted.Local = netip.MustParseAddrPort("10.0.0.2:46443")
	own.Remote = proxy
	listener := proc.Socket{PID: 41, State: "LISTEN", Local: netip.MustParseAddrPort("0.0.0.0:46443")}
	tests := []struct {
		name    string
		tree    []proc.Process
		env     []string
		exe     string
		files   map[string]string
		environ []string
		sockets []proc.Socket
		want    []string
	}{
		{name: "Node that was not told", tree: []proc.Process{node}, want: []string{"EGR01"}},
		{name: "Node 24 that was told", tree: []proc.Process{node}, env: []string{"NODE_USE_ENV_PROXY=1"}, exe: "/root/.nvm/versions/node/v24.1.0/bin/node"},
		{name: "Node 22.21", tree: []proc.Process{node}, env: []string{"NODE_USE_ENV_PROXY=1"}, environ: []string{"NODE_VERSION=22.21.0"}},
		{name: "Node 22.20", tree: []proc.Process{node}, env: []string{"NODE_USE_ENV_PROXY=1"}, environ: []string{"npm_config_user_agent=npm/10.8.2 node/v22.20.1 linux x64"}, want: []string{"EGR01"}},
		{name: "Node 20 by its header", tree: []proc.Process{node}, env: []string{"NODE_OPTIONS=--use-env-proxy"}, exe: "/app/.heroku/node/bin/node",
			files: map[string]string{"/app/.heroku/node/include/node/node_version.h": "#define NODE_MAJOR_VERSION 20\n#define NODE_MINOR_VERSION 20\n#define NODE_PATCH_VERSION 2\n"}, want: []string{"EGR01"}},
		{name: "Node of an unknown version", tree: []proc.Process{node}, env: []string{"NODE_USE_ENV_PROXY=1"}, exe: "/usr/bin/node", want: []string{"EGR01"}},
		{name: "Node with a shim", tree: []proc.Process{node}, env: []string{"NODE_OPTIONS=--require /app/shim.js"}},
		{name: "Java without flags", tree: []proc.Process{java}, want: []string{"EGR02"}},
		{name: "Java with flags in its tools' options", tree: []proc.Process{java}, env: []string{"JAVA_TOOL_OPTIONS=-Xmx300m -Dhttps.proxyHost=127.0.0.1 -Dhttps.proxyPort=4040"}},
		{name: "a connection of its own", sockets: []proc.Socket{out}, want: []string{"EGR04"}},
		{name: "connections that are none of ours", sockets: []proc.Socket{listener, private, database, accepted, own}},
		{name: "one that NO_PROXY excepts by range", env: []string{"NO_PROXY=localhost,203.0.113.0/24"}, sockets: []proc.Socket{out}},
		{name: "one that NO_PROXY excepts by name", env: []string{"no_proxy=api.example"}, sockets: []proc.Socket{out}},
		{name: "one that NO_PROXY may mean", env: []string{"NO_PROXY=*.partner.example"}, sockets: []proc.Socket{out}},
		{name: "one that NO_PROXY cannot mean", env: []string{"NO_PROXY=localhost,127.0.0.1,::1,169.254.169.254,*.internal"}, sockets: []proc.Socket{out}, want: []string{"EGR04"}},
	}
	for _, test := range tests {
		s := sightOf(Place{Platform: "heroku", Grace: time.Minute, Proxy: proxy, Env: env(test.env...)})
		s.tree = test.tree
		s.world.executable = func(int) string { return test.exe }
		s.world.environ = func(int) []string { return test.environ }
		s.world.sockets = func([]proc.Process) ([]proc.Socket, error) { return test.sockets, nil }
		s.world.file = func(name string) []byte { return []byte(test.files[name]) }
		s.world.lookup = func(_ context.Context, host string) ([]netip.Addr, error) {
			if host != "api.example" {
				return nil, errors.New("no such name")
			}
			return []netip.Addr{netip.MustParseAddr("203.0.113.9")}, nil
		}
		s.egress = s.calls(t.Context())
		got := codes(t, Diagnosis{Findings: protocol.Findings{List: run(s)}})
		if !slices.Equal(got, append([]string{}, test.want...)) {
			t.Errorf("%s: got %v, want %v", test.name, got, test.want)
		}
	}
	s := sightOf(Place{Platform: "heroku", Grace: time.Minute, Env: env()})
	s.tree = []proc.Process{java, node}
	s.egress = s.calls(t.Context())
	expect(t, Diagnosis{Findings: protocol.Findings{List: run(s)}}, "") // no proxy, no advice
}

func TestABlockedReadIsTold(t *testing.T) {
	t.Parallel()
	s := sightOf(Place{Platform: "heroku", Process: "web", Port: 46443, PortVar: "46443", Serves: true, BootLimit: time.Minute, Grace: 30 * time.Second})
	s.mine, s.loopback, s.past.booted = nil, untried, 0
	s.age = 15 * time.Second
	s.tree[0].State = 'D'
	f := expect(t, Diagnosis{Findings: protocol.Findings{List: run(s)}}, "", "PORT06")
	contains(t, f.Cause, "blocked in I/O")
}

// On a machine that is busy otherwise, an app that works gets little time, and waits
// for nothing but its turn.
func TestAnAppThatWaitsForAProcessorIsNotIdle(t *testing.T) {
	t.Parallel()
	s := sightOf(Place{Platform: "heroku", Process: "web", Port: 46443, PortVar: "46443", Serves: true, BootLimit: time.Minute, Grace: 30 * time.Second})
	s.mine, s.loopback, s.past.booted = nil, untried, 0
	s.age = 15 * time.Second
	s.works = true
	expect(t, Diagnosis{Findings: protocol.Findings{List: run(s)}}, "")
	s.works = false
	expect(t, Diagnosis{Findings: protocol.Findings{List: run(s)}}, "", "PORT06")
}

// Nothing of the arguments reaches a finding: they may carry secrets.
func TestArgumentsAreNotShown(t *testing.T) {
	t.Parallel()
	s := sightOf(Place{Platform: "heroku", Process: "web", Port: 46443, PortVar: "3000", Serves: true, BootLimit: time.Minute})
	s.tree = []proc.Process{
		{PID: 30, Name: "sh", Args: []string{"sh", "-c", "node server.js --key=hunter2; true"}, State: 'S'},
		{PID: 31, PPID: 30, Name: "node", Args: []string{"node", "server.js", "--key=hunter2"}, State: 'S'},
	}
	s.pid, s.barrier = 30, s.tree[0]
	s.elsewhere = []proc.Socket{{PID: 31, Process: "node", Inode: 8, Local: netip.MustParseAddrPort("0.0.0.0:9000")}}
	list := run(s)
	if len(list) < 3 {
		t.Fatalf("only %+v", list)
	}
	for _, f := range list {
		if strings.Contains(f.Cause+f.Evidence+f.Fix, "hunter2") {
			t.Errorf("a secret is shown: %+v", f)
		}
	}
}

func TestAProbeThatMeetsItselfIsARefusal(t *testing.T) {
	t.Parallel()
	s := sightOf(Place{Port: 46443, Serves: true})
	for err, want := range map[error]outcome{errSelf: refused, syscall.ECONNREFUSED: refused, context.DeadlineExceeded: silent, syscall.EHOSTUNREACH: silent} {
		s.world.dial = failing(err)
		if got := s.try(t.Context(), s.target(), brief); got != want {
			t.Errorf("%v is %v, want %v", err, got, want)
		}
	}
}
