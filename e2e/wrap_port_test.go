package e2e

import (
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/e2e/rig"
	"github.com/posternhq/postern/protocol/api"
)

// instances are those of app, as the relay tells a developer of it.
func instances(r *rig.Relay, token string) ([]api.Instance, error) {
	var list api.InstanceList
	err := r.Get(token, "/api/v1/instances", &list)
	return list.Instances, err
}

// developer is a developer's token.
func developer(r *rig.Relay, app string) string { return r.Token(app, "--scope", "developer") }

// awaitState waits until the only instance of an app is in that state.
func awaitState(t *testing.T, r *rig.Relay, token, state string) api.Instance {
	t.Helper()
	var found api.Instance
	rig.Eventually(t, 2*wait, "the instance is "+state, func() error {
		list, err := instances(r, token)
		switch {
		case err != nil:
			return err
		case len(list) != 1:
			return fmt.Errorf("%d instances", len(list))
		case list[0].State != state:
			return fmt.Errorf("it is %s: %s", list[0].State, list[0].Why)
		}
		found = list[0]
		return nil
	})
	return found
}

// Until the app listens, the relay knows that it is coming, holds what is sent to
// it, and counts nothing as its failure.
func TestWhatComesWhileTheAppBootsWaitsForIt(t *testing.T) {
	t.Parallel()
	ledgerFile := filepath.Join(t.TempDir(), "ledger")
	r := rig.StartRelay(t, rig.RelayConfig{Manifest: drillManifest})
	token := developer(r, "shop")
	began := time.Now()
	agent := r.StartRun(drillCommand(t, "slow", 3*time.Second, ledgerFile), rig.AgentConfig{NoWait: true})
	instance := awaitState(t, r, token, "starting")
	if instance.Tunnels == 0 || time.Since(began) > 2900*time.Millisecond {
		t.Errorf("%d tunnels are open after %v", instance.Tunnels, time.Since(began))
	}
	l := &drillLoad{addr: r.Addr, host: r.AppHost("shop"), relay: r.Addr}
	hooks := &caller{addr: r.Addr, host: r.Addr}
	defer hooks.close()
	l.webhook(hooks, 1)
	if s := ask(r.Addr, r.AppHost("shop"), "/"); !s.ok() || s.Took < 500*time.Millisecond {
		t.Errorf("a request during the boot saw %v after %v", s, s.Took)
	}
	instance = awaitState(t, r, token, "ready")
	if instance.Instance != agent.Instance || instance.BootID == "" || instance.Agent == "" {
		t.Errorf("the instance is %+v", instance)
	}
	l.checkWebhooks(t, r, ledgerFile)
	for _, id := range l.accepted {
		var event api.EventDetail
		if err := r.Get(token, "/api/v1/events/"+id, &event); err != nil {
			t.Fatal(err)
		}
		if len(event.Deliveries) != 1 || event.Deliveries[0].Attempts > 1 {
			t.Errorf("the boot was counted as a failure: %+v", event.Deliveries)
		}
	}
}

// With --front the agent has $PORT, and the app another one.
func TestAnAgentInFrontHasThePort(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]rig.AgentConfig{
		"flag":     {Flags: []string{"--front"}},
		"variable": {Env: []string{"POSTERN_FRONT=1"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := rig.StartRelay(t, rig.RelayConfig{})
			cfg.NoWait = true
			ledgerFile := filepath.Join(t.TempDir(), "ledger")
			app := faultAppCommand(t, ledgerFile, 6)
			boot := "sleep 1; " // nobody may take the port before the app is up: a platform would think that it is
			agent := r.StartRun(rig.Command{
				Args: append([]string{"/bin/sh", "-c", boot + `echo "app has port $PORT"; exec "$@"`, "sh"}, app.Args...),
				Env:  app.Env,
			}, cfg)
			early := 0
			rig.Eventually(t, wait, "the port in front", func() error {
				conn, err := net.DialTimeout("tcp", agent.Target, time.Second)
				if err != nil {
					return err
				}
				conn.Close()
				if agent.Log.Count(0, "app has port") == 0 {
					early++
				}
				return nil
			})
			if early > 0 {
				t.Error("the port was taken before the app was up")
			}
			_, port, _ := net.SplitHostPort(agent.Target)
			if agent.Log.Count(0, "app has port "+port) > 0 {
				t.Error("the app was given the agent's own port")
			}
			// Enough for the bridge's buffers to be filled in both directions.
			c := &caller{addr: agent.Target, host: "localhost"}
			defer c.close()
			for range 3 {
				if s := c.call(http.MethodPost, "/?size=200000", nil, make([]byte, 200000)); !s.ok() || len(s.Body) != 64+200000 {
					t.Errorf("through the port: %v, %d bytes", s, len(s.Body))
				}
			}
			// From outside the host, as the platform's router comes.
			if ip := ownAddress(); ip != "" {
				if s := ask(net.JoinHostPort(ip, port), "localhost", "/"); !s.ok() {
					t.Errorf("at %s: %v", ip, s)
				}
			}
			agent.AwaitTunnels(0)
			if s := ask(r.Addr, r.AppHost("shop"), "/"); !s.ok() {
				t.Errorf("through the relay: %v", s)
			}
			slow := make(chan seen, 1)
			go func() { slow <- c.call(http.MethodGet, "/?ms=700", http.Header{idHeader: {"slow"}}, nil) }()
			rig.Eventually(t, wait, "the request at the app", func() error {
				if readLedger(t, ledgerFile).count("slow") == 0 {
					return fmt.Errorf("it has not come")
				}
				return nil
			})
			if code := agent.Stop(); code != 6 {
				t.Errorf("exit code %d, want 6", code)
			}
			if s := rig.Receive(t, wait, "the answer", slow); !s.ok() {
				t.Errorf("a request under way at the stop saw %v", s)
			}
		})
	}
}

// ownAddress is an IPv4 address of this machine that is not its loopback, "" when
// there is none.
func ownAddress() string {
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && !n.IP.IsLoopback() && !n.IP.IsLinkLocalUnicast() {
			return n.IP.String()
		}
	}
	return ""
}

// With --rescue an app that listens in the wrong place is reached all the same,
// and its log says what is to be mended.
func TestARescueReachesTheAppWhereItShouldNotBe(t *testing.T) {
	t.Parallel()
	r := rig.StartRelay(t, rig.RelayConfig{})
	python := languageNamed(t, "python")
	heroku := []string{"DYNO=web.1", "HEROKU_APP_NAME=shop"}
	for _, c := range []struct {
		name, mistake, code string
		// outside asks at the machine's own address, where the loopback does not answer.
		outside bool
	}{
		{"another port", "fixed", "PORT02", false},
		{"another port, from outside", "fixed", "PORT02", true},
		{"the loopback", "loopback", "PORT03", true},
		{"IPv6 only", "ipv6", "PORT04", false},
		{"IPv6 only, from outside", "ipv6", "PORT04", true},
	} {
		for _, rescue := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, rescue %v", c.name, rescue), func(t *testing.T) {
				t.Parallel()
				ip := "127.0.0.1"
				if c.outside {
					if ip = ownAddress(); ip == "" {
						t.Skip("this machine has only a loopback")
					}
				}
				app := "rescued-" + strings.ReplaceAll(strings.ToLower(t.Name()[len(t.Name())-8:]), " ", "-")
				_, other, _ := net.SplitHostPort(rig.FreeAddr(t))
				cfg := rig.AgentConfig{NoWait: true, App: slug(app), Env: append([]string{"APP_PORT=" + other, "APP_TETHER=1"}, heroku...)}
				if rescue {
					cfg.Flags = []string{"--rescue"}
				}
				agent := r.StartRun(rig.Command{Args: append(python.command(t), c.mistake)}, cfg)
				_, port, _ := net.SplitHostPort(agent.Target)
				probe := func() error {
					if s := ask(net.JoinHostPort(ip, port), "localhost", "/"); !s.ok() {
						return fmt.Errorf("saw %v", s)
					}
					return nil
				}
				if !rescue {
					agent.Log.Wait(t, 2*wait, 0, 1, c.code, "by=postern")
					if probe() == nil {
						t.Error("the app is reached: this test shows nothing")
					}
					return
				}
				rig.Eventually(t, 2*wait, "the app at its port", probe)
				agent.Log.Wait(t, wait, 0, 1, c.code, "by=postern")
				// And through the tunnel.
				rig.Eventually(t, wait, "the app at the relay", func() error {
					if s := ask(r.Addr, r.AppHost(cfg.App), "/"); !s.ok() {
						return fmt.Errorf("saw %v", s)
					}
					return nil
				})
			})
		}
	}
}

// slug makes a name fit to be an app's.
func slug(s string) string {
	return strings.Trim(strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' {
			return c
		}
		return '-'
	}, strings.ToLower(s)), "-")
}

// An app that ceases to listen is failed, which the relay is told. Who may look
// into the app learns from the answer why; nobody else does.
func TestAnAppThatCannotBeReachedSaysWhyToItsDevelopers(t *testing.T) {
	t.Parallel()
	r := rig.StartRelay(t, rig.RelayConfig{Env: []string{"POSTERN_PARK=300ms"}})
	token := developer(r, "shop")
	python := languageNamed(t, "python")
	r.StartRun(rig.Command{Args: append(python.command(t), "lost")}, rig.AgentConfig{NoWait: true, Env: []string{"APP_TETHER=1", "DYNO=web.1"}})
	awaitState(t, r, token, "ready")
	rig.Eventually(t, 2*wait, "the finding", func() error {
		list, err := instances(r, token)
		if err == nil && (len(list) != 1 || list[0].State == "ready" || list[0].Why == "" || len(list[0].Findings) == 0) {
			err = fmt.Errorf("instances: %+v", list)
		}
		return err
	})
	for _, c := range []struct {
		who    string
		header http.Header
		told   bool
	}{
		{"nobody", nil, false},
		{"a developer of the app", http.Header{"Postern-Authorization": {"Bearer " + token}}, true},
		{"a developer of the app, in the usual header", http.Header{"Authorization": {"Bearer " + token}}, true},
		{"a developer of another app", http.Header{"Postern-Authorization": {"Bearer " + developer(r, "other")}}, false},
		{"the agent", http.Header{"Postern-Authorization": {"Bearer " + r.Token("shop")}}, false},
		{"a liar", http.Header{"Postern-Authorization": {"Bearer nonsense"}}, false},
	} {
		caller := &caller{addr: r.Addr, host: r.AppHost("shop")}
		s := caller.call(http.MethodGet, "/", c.header, nil)
		caller.close()
		if s.Err != nil || s.Status < 500 {
			t.Errorf("%s saw %v", c.who, s)
		}
		if told := strings.Contains(string(s.Body), "PORT12"); told != c.told {
			t.Errorf("%s: told is %v: %s", c.who, told, s.Body)
		}
	}
}
