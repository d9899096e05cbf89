package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/posternhq/postern/e2e/rig"
)

// standsAlone checks that the app runs, answers, and ends with its own code
// within a time that is its own; the log has at most so many complaints, and one
// of them with says.
func standsAlone(t *testing.T, agent *rig.Agent, code, complaintsAtMost int, says ...string) {
	t.Helper()
	rig.Eventually(t, wait, "the app answers", func() error {
		if s := ask(agent.Target, "localhost", "/"); !s.ok() {
			return fmt.Errorf("saw %v", s)
		}
		return nil
	})
	if len(says) > 0 {
		agent.Log.Wait(t, 2*wait, 0, 1, append(says, "by=postern")...)
	}
	if !agent.Running() {
		t.Fatal("it has ended")
	}
	stopped := time.Now()
	if got := agent.Stop(); got != code {
		t.Errorf("exit code %d, want the app's own, %d", got, code)
	}
	if took := time.Since(stopped); took > 4*time.Second {
		t.Errorf("it took %v to stop", took)
	}
	lines := complaints(agent.Log.String())
	if len(lines) > complaintsAtMost {
		t.Errorf("%d complaints, want at most %d:\n%s", len(lines), complaintsAtMost, strings.Join(lines, "\n"))
	}
	for _, line := range lines {
		t.Log(line)
	}
}

// The network's and the relay's ways to be wrong that are not in
// TestAnAppRunsWhateverIsWrongWithItsRelay.
func TestAnAppRunsWhateverTheNetworkDoes(t *testing.T) {
	t.Parallel()
	r := rig.StartRelay(t, rig.RelayConfig{})
	token := r.Token("shop")
	answers := func(status int, header http.Header) string {
		return rig.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			for name, values := range header {
				w.Header()[name] = values
			}
			http.Error(w, "no", status)
		}))
	}
	garbage := rig.ServeRaw(t, func(c net.Conn) { io.WriteString(c, "\x15\x03\x01\x00\x02\x02\x28 this is no TLS\n") })
	for _, c := range []struct {
		name, relay string
		says        string
	}{
		{"a name that does not resolve", "https://relay.invalid", "relay.invalid"},
		{"TLS to a relay without", "https://" + r.Addr, "TLS"},
		{"TLS to garbage", "https://" + garbage, garbage},
		{"a black hole", "http://" + blackHole(t), ""},
		{"401", "http://" + answers(401, nil), "401"},
		{"403", "http://" + answers(403, nil), "403"},
		{"404", "http://" + answers(404, nil), "404"},
		{"500", "http://" + answers(500, nil), "500"},
		{"a redirect", "http://" + answers(302, http.Header{"Location": {"https://login.example/"}}), "302"},
		{"a redirect to itself", "http://" + answers(307, http.Header{"Location": {"/v1/tunnel"}}), "307"},
		{"a page of 200", "http://" + answers(200, nil), "200"},
		{"another scheme", "ftp://relay.example", "ftp"},
		{"a URL with a password", "https://user:pass%zz@relay.example", "POSTERN_RELAY"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			agent := r.StartRun(faultAppCommand(t, "", 7), rig.AgentConfig{NoWait: true, Token: token, Env: []string{"POSTERN_RELAY=" + c.relay}})
			if c.says == "" {
				standsAlone(t, agent, 7, 5)
			} else {
				standsAlone(t, agent, 7, 5, c.says)
			}
			for _, secret := range []string{token, "pass%zz"} {
				if strings.Contains(agent.Log.String(), secret) {
					t.Errorf("the log shows %.10s…", secret)
				}
			}
		})
	}
}

// blackHole is an address where nobody answers: the queue of a listener that
// takes no connections is full.
func blackHole(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	at, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := "127.0.0.1:" + strconv.Itoa(at.(*syscall.SockaddrInet4).Port)
	for range 8 {
		conn, err := net.DialTimeout("tcp", addr, 200*time.Millisecond)
		if err != nil {
			return addr
		}
		t.Cleanup(func() { conn.Close() })
	}
	t.Skip("the queue of a listener does not fill here")
	return ""
}

// A variable that makes no sense is one line in the log: a typing error in a
// dashboard must not take the app down.
func TestAnAppRunsWhateverIsInItsVariables(t *testing.T) {
	t.Parallel()
	r := rig.StartRelay(t, rig.RelayConfig{})
	for _, c := range []struct {
		variable string
		says     string // default the variable's name
	}{
		{"POSTERN_TUNNELS=many", ""},
		{"POSTERN_TUNNELS=-1", ""},
		{"POSTERN_TUNNELS=100000", ""},
		{"POSTERN_GRACE=soon", ""},
		{"POSTERN_GRACE=-5s", ""},
		{"POSTERN_LOG_FORMAT=xml", ""},
		{"POSTERN_LOG_LEVEL=loud", ""},
		{"POSTERN_FRONT=perhaps", ""},
		{"POSTERN_RESCUE=perhaps", ""},
		{"POSTERN_NO_PORT=perhaps", ""},
		{"POSTERN_ONE_OFF=perhaps", ""},
		{"POSTERN_SUBREAPER=perhaps", ""},
		{"POSTERN_NO_LOGS=perhaps", ""},
		{"POSTERN_NO_DOCTOR=perhaps", ""},
		{"POSTERN_FORWARD_TERM=sometimes", "forward-term"},
		{"POSTERN_READY_PATH=no path", "path"},
		{"POSTERN_TOKEN=\xff\xfe", "token"},
	} {
		t.Run(c.variable, func(t *testing.T) {
			t.Parallel()
			if c.says == "" {
				c.says, _, _ = strings.Cut(c.variable, "=")
			}
			agent := r.StartRun(faultAppCommand(t, "", 7), rig.AgentConfig{NoWait: true, Tunnels: -1, Env: []string{c.variable}})
			standsAlone(t, agent, 7, 1, c.says)
		})
	}
	t.Run("all of them", func(t *testing.T) {
		t.Parallel()
		agent := r.StartRun(faultAppCommand(t, "", 7), rig.AgentConfig{NoWait: true, Tunnels: -1, Env: []string{
			"POSTERN_TUNNELS=many", "POSTERN_GRACE=soon", "POSTERN_LOG_LEVEL=loud", "POSTERN_RELAY=:", "POSTERN_TOKEN=x", "POSTERN_INSTANCE=\xff \t",
		}})
		standsAlone(t, agent, 7, 8)
	})
}

// PORT is the platform's, and whatever it says is handed on: the app may know
// what to do with it.
func TestAnAppRunsWithAPORTThatIsNone(t *testing.T) {
	t.Parallel()
	r := rig.StartRelay(t, rig.RelayConfig{})
	for _, port := range []string{"none", "0", "99999", "tcp://10.0.0.1:80"} {
		t.Run(port, func(t *testing.T) {
			t.Parallel()
			agent := r.StartRun(waitingShell(`echo "PORT is $PORT"`), rig.AgentConfig{NoWait: true, Env: []string{"PORT=" + port}})
			agent.Log.Wait(t, wait, 0, 1, "PORT is "+port)
			agent.Signal(syscall.SIGTERM)
			if code := agent.ExitCode(wait); code != 128+int(syscall.SIGTERM) {
				t.Errorf("exit code %d", code)
			}
		})
	}
}

// A flag is in a Procfile, where a mistake is seen when it is made.
func TestAFlagThatIsWrongIsSaidAtOnce(t *testing.T) {
	t.Parallel()
	for _, flags := range [][]string{
		{"--tunnels", "many"}, {"--grace", "soon"}, {"--forward-term", "sometimes"}, {"--front=perhaps"}, {"--port", "none"}, {"--no-such-flag"},
	} {
		out := rig.Postern(t, []string{"POSTERN_RELAY=http://127.0.0.1:1", "POSTERN_TOKEN=x"}, append(append([]string{"run"}, flags...), "--", "true")...)
		if out.Code != 2 || strings.Count(strings.TrimSpace(out.Stderr), "\n") > 1 || !strings.Contains(out.Stderr, strings.TrimLeft(strings.Split(flags[0], "=")[0], "-")) {
			t.Errorf("%q: code %d: %s", flags, out.Code, out.Stderr)
		}
	}
}
