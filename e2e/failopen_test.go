package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/posternhq/postern/e2e/rig"
)

// Whatever is wrong with the relay, the app runs, is left in peace, and ends
// with its own code; and one line says what is wrong.
func TestAnAppRunsWhateverIsWrongWithItsRelay(t *testing.T) {
	t.Parallel()
	r := rig.StartRelay(t, rig.RelayConfig{})
	token := r.Token("shop")
	revoked := r.Token("shop")
	r.Verb("token", "revoke", idOfToken(t, revoked))
	foreign := rig.StartRelay(t, rig.RelayConfig{}).Token("shop")
	html := rig.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		io.WriteString(w, "<h1>It works!</h1>")
	}))
	down := rig.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "<h1>Application error</h1>", http.StatusServiceUnavailable)
	}))
	garbage := rig.ServeRaw(t, func(c net.Conn) { c.Write([]byte("\x00\xff\x16 not HTTP at all\r\n\r\n")) })
	mute := rig.ServeRaw(t, func(c net.Conn) { io.Copy(io.Discard, c) })
	upgrade := rig.ServeRaw(t, func(c net.Conn) {
		c.Read(make([]byte, 4096))
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n")
		io.Copy(io.Discard, c)
	})
	for _, c := range []struct {
		name, relay, token string
		says               string // in the line
		lines              int    // of warnings and errors, at most; see agent.logFailure for why some repeat
	}{
		{"no token", r.URL, "", "POSTERN_TOKEN", 1},
		{"no relay", "", token, "POSTERN_RELAY", 1},
		{"a relay that is no URL", "relay.example", token, "relay.example", 1},
		{"a token that is none", r.URL, "nonsense", "will not accept this token again", 1},
		{"a token that was revoked", r.URL, revoked, "will not accept this token again", 3},
		{"a token of another relay", r.URL, foreign, "401", 5},
		{"nobody listens", "http://" + rig.FreeAddr(t), token, "connection refused", 5},
		{"a web page", "http://" + html, token, "is this the URL of the relay", 5},
		{"a router's error", "http://" + down, token, "503", 5},
		{"bytes that are no HTTP", "http://" + garbage, token, garbage, 5},
		{"an upgrade to something else", "http://" + upgrade, token, upgrade, 5},
		{"silence", "http://" + mute, token, "", 5},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			agent := r.StartRun(faultAppCommand(t, "", 7), rig.AgentConfig{
				NoWait: true, Token: token, Env: []string{"POSTERN_RELAY=" + c.relay, "POSTERN_TOKEN=" + c.token},
			})
			if c.says != "" {
				agent.Log.Wait(t, wait, 0, 1, c.says, "by=postern")
			}
			rig.Eventually(t, wait, "the app answers", func() error {
				s := ask(agent.Target, "localhost", "/")
				if !s.ok() {
					return fmt.Errorf("saw %v", s)
				}
				return nil
			})
			if !agent.Running() {
				t.Fatal("it has ended")
			}
			stopped := time.Now()
			if code := agent.Stop(); code != 7 {
				t.Errorf("exit code %d, want the app's own, 7", code)
			}
			if took := time.Since(stopped); took > 3*time.Second {
				t.Errorf("it took %v to stop", took)
			}
			lines := complaints(agent.Log.String())
			if len(lines) > c.lines {
				t.Errorf("%d complaints, want at most %d:\n%s", len(lines), c.lines, strings.Join(lines, "\n"))
			}
			for _, line := range lines {
				t.Log(line)
			}
		})
	}
}

// complaints are the product's warnings and errors.
func complaints(log string) []string {
	var lines []string
	for line := range strings.Lines(log) {
		if level := logField(line, "level"); strings.Contains(line, "by=postern") && (level == "WARN" || level == "ERROR") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

func TestRunExitsAsItsAppDoes(t *testing.T) {
	t.Parallel()
	r := rig.StartRelay(t, rig.RelayConfig{})
	token := r.Token("shop")
	notExecutable := filepath.Join(t.TempDir(), "app")
	if err := os.WriteFile(notExecutable, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	shell := func(script string) []string { return []string{"/bin/sh", "-c", script} }
	for _, c := range []struct {
		name string
		args []string
		want int
	}{
		{"success", shell("exit 0"), 0},
		{"a code of its own", shell("exit 42"), 42},
		{"the largest code", shell("exit 255"), 255},
		{"killed", shell("kill -KILL $$"), 128 + int(syscall.SIGKILL)},
		{"terminated by itself", shell("kill -TERM $$"), 128 + int(syscall.SIGTERM)},
		{"a crash", shell("kill -SEGV $$"), 128 + int(syscall.SIGSEGV)},
		{"not found", []string{"there-is-no-such-program"}, 127},
		{"not found at its path", []string{"/nowhere/app"}, 127},
		{"not executable", []string{notExecutable}, 126},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			agent := r.StartRun(rig.Command{Args: c.args}, rig.AgentConfig{Token: token, NoWait: true})
			if code := agent.ExitCode(wait); code != c.want {
				t.Errorf("exit code %d, want %d", code, c.want)
			}
		})
	}
}

func TestSignalsReachTheWrappedAppAndItsCodeComesBack(t *testing.T) {
	t.Parallel()
	r := rig.StartRelay(t, rig.RelayConfig{})
	t.Run("SIGTERM to an app that stops in its own way", func(t *testing.T) {
		t.Parallel()
		agent := r.StartRun(faultAppCommand(t, "", 7), rig.AgentConfig{})
		slow := asking(r.Addr, r.AppHost("shop"), "/?ms=700")
		rig.Eventually(t, wait, "the request is under way", func() error {
			if connections(t, agent.Target) == 0 {
				return fmt.Errorf("nobody is connected to the app")
			}
			return nil
		})
		if code := agent.Stop(); code != 7 {
			t.Errorf("exit code %d, want 7", code)
		}
		if s := rig.Receive(t, wait, "the answer", slow); !s.ok() {
			t.Errorf("the request under way saw %v", s)
		}
	})
	t.Run("SIGTERM to an app that does not care", func(t *testing.T) {
		t.Parallel()
		agent := r.StartRun(waitingShell("trap '' TERM"), rig.AgentConfig{App: "deaf", NoWait: true, Flags: []string{"--grace", "3s"}})
		agent.Log.Wait(t, wait, 0, 1, "up")
		began := time.Now()
		if code := agent.Stop(); code != 128+int(syscall.SIGKILL) {
			t.Errorf("exit code %d, want %d", code, 128+int(syscall.SIGKILL))
		}
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("it ended after %v, beyond its grace of 3s", took)
		}
	})
	t.Run("SIGTERM to an app without a handler", func(t *testing.T) {
		t.Parallel()
		agent := r.StartRun(waitingShell(""), rig.AgentConfig{App: "plain", NoWait: true})
		agent.Log.Wait(t, wait, 0, 1, "up")
		if code := agent.Stop(); code != 128+int(syscall.SIGTERM) {
			t.Errorf("exit code %d, want %d", code, 128+int(syscall.SIGTERM))
		}
	})
	for _, c := range []struct {
		name string
		sig  syscall.Signal
	}{{"HUP", syscall.SIGHUP}, {"INT", syscall.SIGINT}, {"USR1", syscall.SIGUSR1}, {"USR2", syscall.SIGUSR2}} {
		t.Run("SIG"+c.name+" is passed on", func(t *testing.T) {
			t.Parallel()
			if signal.Ignored(c.sig) {
				t.Skip("this test runs with the signal ignored, as under nohup, and so would the app")
			}
			agent := r.StartRun(waitingShell("trap 'exit 9' "+c.name), rig.AgentConfig{App: "sig-" + strings.ToLower(c.name), NoWait: true})
			agent.Log.Wait(t, wait, 0, 1, "up")
			agent.Signal(c.sig)
			if code := agent.ExitCode(wait); code != 9 {
				t.Errorf("exit code %d, want 9", code)
			}
		})
	}
}

// waitingShell prepares itself, says that it is up, and waits until its input
// ends, which is when these tests do.
func waitingShell(prepare string) rig.Command {
	return rig.Command{Args: []string{"/bin/sh", "-c", prepare + "\nexec 3<&0\ncat <&3 >/dev/null &\necho up\nwait"}}
}

// connections is how many connections to addr are open.
func connections(t testing.TB, addr string) int {
	t.Helper()
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(addr)
	var n int
	fmt.Sscan(port, &n)
	open := 0
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		if len(fields) > 3 && fields[3] == "01" && strings.HasSuffix(fields[1], fmt.Sprintf(":%04X", n)) { // 01: established
			open++
		}
	}
	return open
}

// idOfToken is the id of a token: the claim jti.
func idOfToken(t testing.TB, token string) string {
	t.Helper()
	var claims struct {
		ID string `json:"jti"`
	}
	if parts := strings.Split(token, "."); len(parts) == 3 {
		payload, _ := base64.RawURLEncoding.DecodeString(parts[1])
		json.Unmarshal(payload, &claims)
	}
	if claims.ID == "" {
		t.Fatal("the token has no id")
	}
	return claims.ID
}
