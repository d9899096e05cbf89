package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/posternhq/postern/e2e/rig"
	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/api"
)

// awaitLastWords waits until the relay keeps one account of how an instance of
// app has ended.
func awaitLastWords(t *testing.T, r *rig.Relay, app string) api.LastWords {
	t.Helper()
	token := developer(r, app)
	var list api.LastWordsList
	rig.Eventually(t, 2*wait, "last words", func() error {
		if err := r.Get(token, "/api/v1/lastwords", &list); err != nil {
			return err
		}
		if len(list.LastWords) != 1 {
			return fmt.Errorf("%d of them", len(list.LastWords))
		}
		return nil
	})
	return list.LastWords[0]
}

func lineWith(w api.LastWords, text, stream string) bool {
	for _, l := range w.Lines {
		if strings.Contains(l.Text, text) && l.Stream == stream {
			return true
		}
	}
	return false
}

func TestTheRelayKeepsTheLastWordsOfAnAppThatEnds(t *testing.T) {
	t.Parallel()
	r := rig.StartRelay(t, rig.RelayConfig{})
	for _, c := range []struct {
		app    string
		script string
		code   int
		signal string
	}{
		{"failed", `echo out-of-it; echo "fatal: no database" >&2; exit 3`, 3, ""},
		{"killed", `echo out-of-it; echo "fatal: no database" >&2; kill -KILL $$`, 137, "SIGKILL"},
		{"aborted", `echo out-of-it; echo "fatal: no database" >&2; kill -ABRT $$`, 134, "SIGABRT"},
	} {
		t.Run(c.app, func(t *testing.T) {
			t.Parallel()
			// It runs a moment: so long that the tunnel is open.
			agent := r.StartRun(rig.Command{Args: []string{"/bin/sh", "-c", "sleep 1.5; " + c.script}},
				rig.AgentConfig{App: c.app, NoWait: true, NoPort: true, Flags: []string{"--no-port"}})
			if code := agent.ExitCode(wait); code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			w := awaitLastWords(t, r, c.app)
			if w.Exit == nil || w.Exit.Code != c.code || w.Exit.Signal != c.signal || w.Exit.Reason == "" || w.Exit.Asked {
				t.Errorf("exit is %+v", w.Exit)
			}
			if !lineWith(w, "out-of-it", "stdout") || !lineWith(w, "fatal: no database", "stderr") {
				t.Errorf("lines are %+v", w.Lines)
			}
			// And for people.
			for _, args := range [][]string{{"logs", c.app}, {"logs", "--last-words", c.app + "/" + agent.Instance}} {
				out := rig.Postern(t, r.CLI(c.app), args...)
				if out.Code != 0 || !strings.Contains(out.Stdout, "fatal: no database") || !strings.Contains(out.Stdout+out.Stderr, w.Reason) {
					t.Errorf("postern %q: code %d: %s%s", args, out.Code, out.Stdout, out.Stderr)
				}
			}
			if w.Reason == "" || w.Instance != agent.Instance || len(w.Memory) == 0 || w.EndedAt.Before(w.StartedAt) {
				t.Errorf("last words are %+v", w)
			}
		})
	}
}

func TestTheRelayKeepsWhatItKnewWhenAnAgentIsKilled(t *testing.T) {
	t.Parallel()
	r := rig.StartRelay(t, rig.RelayConfig{Env: []string{fastBeat}})
	agent := r.StartRun(faultAppCommand(t, "", 0), rig.AgentConfig{})
	awaitState(t, r, developer(r, "shop"), "ready")
	// What the relay knows it has been told: so this waits for the report.
	listens := func(sockets []protocol.Socket) bool {
		return slices.ContainsFunc(sockets, func(s protocol.Socket) bool {
			return s.State == "LISTEN" && strings.HasSuffix(s.Local, ":"+portOf(agent.Target))
		})
	}
	rig.Eventually(t, 2*wait, "vitals", func() error {
		list, err := instances(r, developer(r, "shop"))
		if err == nil && (len(list) != 1 || list[0].Vitals == nil || list[0].Vitals.RSS == 0 || !listens(list[0].Vitals.Sockets)) {
			err = fmt.Errorf("instances: %+v", list)
		}
		return err
	})
	mark := r.Log.Len()
	agent.KillTree()
	r.Log.Wait(t, wait, mark, 2, `msg="tunnel lost"`)
	// It may come back, for which the relay has some patience; not beyond its own
	// end.
	r.Stop()
	r.Restart()
	w := awaitLastWords(t, r, "shop")
	if w.Exit != nil || w.Reason == "" || w.Instance != agent.Instance || len(w.Memory) == 0 {
		t.Errorf("last words are %+v", w)
	}
	if !listens(w.Sockets) {
		t.Errorf("sockets are %+v", w.Sockets)
	}
}

// An app that was asked to stop and did has nothing to explain; it is said that
// it was asked.
func TestLastWordsSayThatAStopWasAskedFor(t *testing.T) {
	t.Parallel()
	r := rig.StartRelay(t, rig.RelayConfig{})
	agent := r.StartRun(faultAppCommand(t, "", 0), rig.AgentConfig{})
	if code := agent.Stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	var list api.LastWordsList
	rig.Eventually(t, wait, "the end at the relay", func() error {
		if err := r.Get(developer(r, "shop"), "/api/v1/lastwords", &list); err != nil {
			return err
		}
		running, err := instances(r, developer(r, "shop"))
		if err == nil && len(running) > 0 {
			err = fmt.Errorf("it is there")
		}
		return err
	})
	for _, w := range list.LastWords {
		if w.Exit == nil || !w.Exit.Asked || w.Exit.Code != 0 {
			t.Errorf("exit is %+v", w.Exit)
		}
	}
}

func TestLogsShowWhatTheAppWritesAndFollowIt(t *testing.T) {
	t.Parallel()
	r := rig.StartRelay(t, rig.RelayConfig{})
	agent := r.StartRun(rig.Command{Args: []string{"/bin/sh", "-c", `
trap 'n=$((n+1)); echo "tick $n"' USR1
exec 3<&0; cat <&3 >/dev/null & cat=$!
echo first; echo complaint >&2
while kill -0 $cat; do wait $cat; done`}}, rig.AgentConfig{NoWait: true, NoPort: true, Flags: []string{"--no-port"}})
	agent.AwaitTunnels(0)
	out := awaitLogs(t, r, "shop", "complaint")
	if !strings.Contains(out, "first") {
		t.Errorf("logs are %q", out)
	}
	env := r.CLI("shop")
	follow := rig.StartPostern(t, env, "logs", "-f", "shop")
	follow.Log.Wait(t, wait, 0, 1, "first")
	for n := range 3 {
		// To the app alone: cat knows nothing of it.
		for _, pid := range agent.Tree()[1:2] {
			syscall.Kill(pid, syscall.SIGUSR1)
		}
		follow.Log.Wait(t, wait, 0, 1, fmt.Sprintf("tick %d", n+1))
	}
	if n := follow.Log.Count(0, "first"); n != 1 {
		t.Errorf("a line was shown %d times", n)
	}
	// One instance, by name; and as JSON.
	one := rig.Postern(t, env, "logs", "shop/"+agent.Instance, "--json")
	if one.Code != 0 || !strings.Contains(one.Stdout, "tick 3") {
		t.Errorf("logs of the instance: code %d: %s%s", one.Code, one.Stdout, one.Stderr)
	}
	for line := range strings.Lines(one.Stdout) {
		if !json.Valid([]byte(line)) {
			t.Errorf("not JSON: %q", line)
		}
	}
	if out := rig.Postern(t, env, "logs", "shop/web.nobody"); out.Code == 0 && strings.Contains(out.Stdout, "first") {
		t.Errorf("logs of nobody: %q", out.Stdout)
	}
	// The next boot of the app is picked up.
	agent.Kill()
	next := r.StartRun(waitingShell("echo second-boot"), rig.AgentConfig{NoWait: true, NoPort: true, Flags: []string{"--no-port"}})
	next.AwaitTunnels(0)
	follow.Log.Wait(t, 2*wait, 0, 1, "second-boot")
}

// A developer of one app sees nothing of another.
func TestLogsAndInstancesAreTheAppsOwn(t *testing.T) {
	t.Parallel()
	r := rig.StartRelay(t, rig.RelayConfig{})
	agent := r.StartRun(waitingShell("echo private-line"), rig.AgentConfig{NoWait: true, NoPort: true, Flags: []string{"--no-port"}})
	agent.AwaitTunnels(0)
	awaitLogs(t, r, "shop", "private-line")
	other := r.CLI("other")
	for _, args := range [][]string{{"logs", "shop"}, {"logs", "shop/" + agent.Instance}, {"logs", "other"}, {"status", "--json"}} {
		out := rig.Postern(t, other, args...)
		if strings.Contains(out.Stdout+out.Stderr, "private-line") || strings.Contains(out.Stdout, agent.Instance) {
			t.Errorf("postern %q shows it to a developer of another app: %s", args, out.Stdout)
		}
	}
	for _, path := range []string{"/api/v1/instances?app=shop", "/api/v1/lastwords?app=shop"} {
		var any map[string]any
		if err := r.Get(developer(r, "other"), path, &any); err == nil {
			t.Errorf("%s is shown to a developer of another app: %v", path, any)
		}
	}
}

// An app that writes faster than anybody reads is not slowed down.
func TestAnAppThatWritesALotIsNotHeldUp(t *testing.T) {
	t.Parallel()
	r := rig.StartRelay(t, rig.RelayConfig{})
	const lines = 200000
	script := fmt.Sprintf(`i=0; while [ $i -lt 200 ]; do seq 1000; i=$((i+1)); done; echo "wrote %d"; read -r x`, lines)
	began := time.Now()
	agent := r.StartRun(rig.Command{Args: []string{"/bin/sh", "-c", script}}, rig.AgentConfig{NoWait: true, NoPort: true, Flags: []string{"--no-port"}})
	agent.Log.Wait(t, 2*wait, 0, 1, fmt.Sprintf("wrote %d", lines))
	t.Logf("%d lines in %v", lines, time.Since(began).Round(time.Millisecond))
	if n := agent.Log.Count(0, "1000"); n != 200 {
		t.Errorf("%d of 200 marked lines came out", n)
	}
	agent.AwaitTunnels(0)
	awaitLogs(t, r, "shop", fmt.Sprintf("wrote %d", lines))
	if rss := agent.RSS(); rss > 40<<20 {
		t.Errorf("the agent occupies %s", mib(rss))
	}
}
