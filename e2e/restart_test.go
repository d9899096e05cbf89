package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/posternhq/postern/e2e/rig"
)

const (
	// rollingRestarts is how many agents are replaced under load, one after
	// another.
	rollingRestarts = 20
	loadClients     = 32
)

func TestRollingRestartsOfWrappedAppsFailNoRequest(t *testing.T) {
	r := rig.StartRelay(t, rig.RelayConfig{})
	ledgerFile := filepath.Join(t.TempDir(), "ledger")
	app := faultAppCommand(t, ledgerFile, 0)
	rollAgents(t, r, func(instance string) *rig.Agent {
		return r.StartRun(app, rig.AgentConfig{Instance: instance})
	}, func() *ledger { return readLedger(t, ledgerFile) })
}

func TestRollingRestartsOfAgentsFailNoRequest(t *testing.T) {
	r := rig.StartRelay(t, rig.RelayConfig{})
	apps := newLedger()
	target := rig.Serve(t, loadApp(apps.add))
	rollAgents(t, r, func(instance string) *rig.Agent {
		return r.StartAgent(target, rig.AgentConfig{Instance: instance})
	}, func() *ledger { return apps })
}

// rollAgents replaces two agents in turns under load: one is told to stop, and
// when it has, its successor is started, and when that is connected, the other's
// turn comes.
func rollAgents(t *testing.T, r *rig.Relay, start func(instance string) *rig.Agent, apps func() *ledger) {
	t.Helper()
	instances := []string{"web.1", "web.2"}
	agents := []*rig.Agent{start(instances[0]), start(instances[1])}
	l := startLoad(t, r.Addr, r.AppHost("shop"), loadClients)
	l.awaitAnswers(t, 10*loadClients)
	var slowest time.Duration
	began := time.Now()
	for i := range rollingRestarts {
		n := i % len(agents)
		stopped := time.Now()
		if code := agents[n].Stop(); code != 0 {
			t.Errorf("restart %d: %s exits with %d", i, agents[n].Name, code)
		}
		slowest = max(slowest, time.Since(stopped))
		agents[n] = start(instances[n])
		if failed := l.answers.failures(); len(failed) > 0 {
			t.Errorf("restart %d: a request saw %v", i, failed[0])
			break
		}
	}
	took := time.Since(began)
	l.stop()
	failed := l.answers.failures()
	t.Logf("%d restarts in %v, the slowest stop took %v; %d requests, %d failed: %v", rollingRestarts,
		took.Round(time.Millisecond), slowest.Round(time.Millisecond), len(l.answers.list()), len(failed), &l.answers)
	for _, s := range failed {
		t.Errorf("a request saw %v after %v", s, s.Took)
	}
	l.checkNoneTwice(t, apps())
}

// The relay is replaced while twenty agents are connected and requests are under
// way.
func TestARelayRestartFinishesWhatIsUnderWayAndHasItsAgentsBackWithinASecond(t *testing.T) {
	const (
		agents = 20
		outage = 3 * time.Second // long enough for agents to lose patience
	)
	r := rig.StartRelay(t, rig.RelayConfig{})
	app := newGate("one")
	target, token := rig.Serve(t, app), r.Token("shop")
	for n := range agents {
		r.StartAgent(target, rig.AgentConfig{Token: token, Instance: fmt.Sprintf("web.%d", n), NoWait: true})
	}
	r.Log.Wait(t, rig.StartsWithin, 0, 2*agents, `msg="tunnel open"`)

	var underWay []<-chan seen
	for n := range 30 {
		underWay = append(underWay, asking(r.Addr, r.AppHost("shop"), []string{"/wait", "/body", "/chunked"}[n%3]))
		rig.Receive(t, wait, "the request at the app", app.arrived)
	}
	mark := r.Log.Len()
	exit := make(chan int, 1)
	go func() { exit <- r.Stop() }()
	rig.Eventually(t, wait, "a relay that says it drains", func() error { return draining(r.Admin) })
	rig.Eventually(t, wait, "a public listener that is closed", func() error {
		if s := ask(r.Addr, r.AppHost("shop"), "/now"); s.Err == nil {
			return fmt.Errorf("a new request saw %v", s)
		}
		return nil
	})
	if !r.Running() {
		t.Fatal("the relay ended with requests under way")
	}
	if err := draining(r.Admin); err != nil {
		t.Error(err)
	}
	close(app.open)
	for _, answer := range underWay {
		if s := rig.Receive(t, wait, "the answer", answer); !s.ok() || len(s.Body) != 2000 && string(s.Body) != "one" {
			t.Errorf("a request under way saw %v %.20q", s, s.Body)
		}
	}
	if code := rig.Receive(t, wait, "the relay's exit", exit); code != 0 {
		t.Errorf("the relay exits with %d", code)
	}
	lost := r.Log.Count(mark, `msg="requests cut off`)
	mark = r.Log.Len()
	<-time.After(outage)
	r.Restart()
	first := asking(r.Addr, r.AppHost("shop"), "/now")
	r.Log.Wait(t, wait, mark, 2*agents, `msg="tunnel open"`)
	s := rig.Receive(t, wait, "the answer", first)
	if !s.ok() || lost > 0 {
		t.Errorf("the first request saw %v; %d times requests were cut off", s, lost)
	}
	byAgent, all := comeback(t, r.Log.After(mark))
	if len(byAgent) != agents {
		t.Fatalf("%d of %d agents are back", len(byAgent), agents)
	}
	slowest := time.Duration(0)
	for instance, after := range byAgent {
		slowest = max(slowest, after)
		if after > time.Second {
			t.Errorf("%s was back only after %v", instance, after)
		}
	}
	t.Logf("%d agents back within %v of the relay listening, all their tunnels within %v; the first request was answered after %v",
		agents, slowest, all, s.Took.Round(time.Millisecond))
}

// draining is nil when /readyz of the admin listener says 503.
func draining(admin string) error {
	client := http.Client{Timeout: wait, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + admin + "/readyz")
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusServiceUnavailable {
		return errors.New("/readyz says " + resp.Status)
	}
	return nil
}

// comeback reads from a relay's log how long after it listened each agent had
// its first tunnel, and the last one all of them.
func comeback(t *testing.T, log string) (byAgent map[string]time.Duration, all time.Duration) {
	t.Helper()
	byAgent = map[string]time.Duration{}
	var ready time.Time
	for line := range strings.Lines(log) {
		at, ok := logTime(line)
		switch msg := logField(line, "msg"); {
		case !ok:
		case msg == "relay ready":
			ready = at
		case msg == "tunnel open":
			// An agent may be faster than the line about being ready.
			all = max(all, at.Sub(ready))
			if _, known := byAgent[logField(line, "instance")]; !known {
				byAgent[logField(line, "instance")] = max(0, at.Sub(ready))
			}
		}
	}
	if ready.IsZero() {
		t.Fatal("the relay has not said that it is ready")
	}
	return byAgent, all
}

// Requests do not stop while the relay is replaced: those that reach it are
// answered, the others find nobody listening.
func TestARelayRestartUnderLoadCutsNoAnswer(t *testing.T) {
	r := rig.StartRelay(t, rig.RelayConfig{})
	apps := newLedger()
	target := rig.Serve(t, loadApp(apps.add))
	for _, instance := range []string{"web.1", "web.2"} {
		r.StartAgent(target, rig.AgentConfig{Instance: instance})
	}
	l := startLoad(t, r.Addr, r.AppHost("shop"), loadClients)
	for range 3 {
		l.awaitAnswers(t, len(l.answers.list())+200)
		if code := r.Stop(); code != 0 {
			t.Errorf("the relay exits with %d", code)
		}
		r.Restart()
		l.awaitSuccess(t, time.Now())
	}
	l.stop()
	t.Logf("three restarts under load: %v", &l.answers)
	for _, s := range l.answers.failures() {
		if s.Status != 0 {
			t.Errorf("a request saw %v", s)
		}
	}
	l.checkNoneTwice(t, apps)
	checkNoAnswerLost(t, l, apps)
}

// checkNoAnswerLost fails the test when a request was at an app and its client
// has had no answer: an orderly stop waits for those.
func checkNoAnswerLost(t *testing.T, l *load, apps *ledger) {
	t.Helper()
	served, answered := 0, 0
	for _, id := range l.ids {
		if apps.count(id) > 0 {
			served++
		}
	}
	for _, s := range l.answers.list() {
		if s.ok() {
			answered++
		}
	}
	if served != answered {
		t.Errorf("%d requests were at an app, %d answered", served, answered)
	}
}

// Many clients at once, in the moment in which the only agent is replaced by
// another: those that come in between wait for it.
func TestRequestsWaitThroughTheGapBetweenTwoAgents(t *testing.T) {
	t.Parallel()
	r := rig.StartRelay(t, rig.RelayConfig{})
	apps := newLedger()
	target := rig.Serve(t, loadApp(apps.add))
	agent := r.StartAgent(target, rig.AgentConfig{Instance: "web.1"})
	ctx, cancel := context.WithCancel(t.Context())
	var answers tally
	var asked sync.WaitGroup
	asked.Go(func() { askEvery(ctx, 5*time.Millisecond, r.Addr, r.AppHost("shop"), "/", answers.add) })
	for range 3 {
		if code := agent.Stop(); code != 0 {
			t.Errorf("the agent exits with %d", code)
		}
		agent = r.StartAgent(target, rig.AgentConfig{Instance: "web.1"})
	}
	cancel()
	asked.Wait()
	for _, s := range answers.failures() {
		t.Errorf("a request saw %v after %v", s, s.Took)
	}
	t.Logf("three gaps: %v", &answers)
}
