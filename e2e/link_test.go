package e2e

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/e2e/rig"
)

// beat is the heartbeat of these tests.
const beat = time.Second

// An agent and a relay that do not hear of each other any more, with every socket
// still open: nothing tells them but their heartbeats.
func TestAHalfOpenLinkIsNoticedAtBothEndsAndReplaced(t *testing.T) {
	r := rig.StartRelay(t, rig.RelayConfig{Env: []string{fastBeat}})
	app := newGate("one")
	l := newLink(t, r.Addr, 0)
	agent := r.StartAgent(rig.Serve(t, app), rig.AgentConfig{URL: l.URL})
	relayMark, agentMark := r.Log.Len(), agent.Log.Len()
	host := r.AppHost("shop")

	stuck := asking(r.Addr, host, "/wait") // under way when the link dies
	rig.Receive(t, wait, "the request at the app", app.arrived)
	crowd := startCrowd(t, r.Addr, host)
	crowd.awaitSuccess(t, time.Now())
	died := time.Now()
	dead := l.kill()
	if len(dead) != 2 {
		t.Fatalf("the link has %d connections, the agent 2 tunnels", len(dead))
	}
	back := crowd.awaitSuccess(t, died)
	if back > 4*beat {
		t.Errorf("served again after %v, want less than 4 heartbeats", back)
	}
	// A new request may have met a tunnel of before; but from now on none does.
	r.Log.Wait(t, wait, relayMark, 2, `msg="tunnel open"`, "instance="+agent.Instance+" ")
	calm := time.Now()

	s := rig.Receive(t, wait, "the end of the request under way", stuck)
	if s.Status != http.StatusBadGateway || s.Code != "reset" {
		t.Errorf("the request under way saw %v, want 502 reset", s)
	}
	t.Logf("request under way: %v %v after the link died", s, time.Since(died).Round(time.Millisecond))
	r.Log.Wait(t, wait, relayMark, 2, `msg="tunnel lost"`)
	relayKnew := time.Since(died)
	agent.Log.Wait(t, wait, agentMark, 2, `msg="tunnel lost"`)
	agentKnew := time.Since(died)
	rig.Receive(t, wait, "the end of the request at the app", app.left)
	if relayKnew > 5*beat || agentKnew > 5*beat {
		t.Errorf("the relay knew after %v, the agent after %v", relayKnew, agentKnew)
	}
	checkMadeBeforeBroken(t, agent.Log.After(agentMark))
	crowd.stop()
	for _, s := range crowd.failures() {
		if s.From.After(calm) {
			t.Errorf("%v after the tunnels were replaced a request saw %v", s.From.Sub(calm), s)
		}
		if s.Status != http.StatusBadGateway || s.Code != "reset" {
			t.Errorf("a request during the outage saw %v", s)
		}
		if s.Took > 4*beat {
			t.Errorf("a request during the outage took %v", s.Took)
		}
	}
	t.Logf("served again after %v; known at the relay after %v, at the agent after %v; clients saw %v",
		back.Round(time.Millisecond), relayKnew.Round(time.Millisecond), agentKnew.Round(time.Millisecond), crowd)
	rig.Eventually(t, wait, "the dead connections", func() error {
		if n := l.open(); n != 2 {
			return fmt.Errorf("%d connections are held, 2 are of use", n)
		}
		return nil
	})
}

// checkMadeBeforeBroken fails the test unless the agent had its new tunnels
// before it gave the old ones up.
func checkMadeBeforeBroken(t *testing.T, log string) {
	t.Helper()
	opened := map[string]bool{} // by tunnel number
	for line := range strings.Lines(log) {
		number := logField(line, "tunnel")
		switch logField(line, "msg") {
		case "tunnel open":
			opened[number] = true
		case "tunnel lost":
			if !opened[number] {
				t.Errorf("tunnel %s was given up before there was a new one", number)
			}
		}
	}
}

// The tunnels of one agent are dead: those of the other carry what is new.
func TestADeadLinkCostsOnlyTheRequestsOnItWhileAnotherAgentServes(t *testing.T) {
	r := rig.StartRelay(t, rig.RelayConfig{Env: []string{fastBeat}})
	l := newLink(t, r.Addr, 0)
	target := rig.Serve(t, newGate("one"))
	r.StartAgent(target, rig.AgentConfig{URL: l.URL, Instance: "web.1"})
	direct := r.StartAgent(target, rig.AgentConfig{Instance: "web.2"})
	host := r.AppHost("shop")
	crowd := startCrowd(t, r.Addr, host)
	crowd.awaitSuccess(t, time.Now())
	died := time.Now()
	l.kill()
	r.Log.Wait(t, wait, 0, 2, `msg="tunnel lost"`, "instance=web.1 ")
	noticed := time.Since(died)
	back := crowd.awaitSuccess(t, died)
	crowd.stop()
	if back > beat {
		t.Errorf("the agent without a fault answered only after %v", back)
	}
	for _, s := range crowd.failures() {
		if s.Code != "reset" || s.Took > 4*beat {
			t.Errorf("saw %v after %v", s, s.Took)
		}
	}
	if n := direct.Log.Count(0, `msg="tunnel lost"`); n != 0 {
		t.Errorf("the agent without a fault lost %d tunnels", n)
	}
	t.Logf("noticed after %v; clients saw %v", noticed.Round(time.Millisecond), crowd)
}

// crowd sends a request to /now every few milliseconds, whatever became of those
// before.
type crowd struct {
	tally
	cancel context.CancelFunc
	ended  chan struct{}
}

func startCrowd(t testing.TB, addr, host string) *crowd {
	ctx, cancel := context.WithCancel(context.Background())
	c := &crowd{cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(c.ended)
		askEvery(ctx, 25*time.Millisecond, addr, host, "/now", c.add)
	}()
	t.Cleanup(cancel)
	return c
}

// awaitSuccess waits for the first success of a request that began after since,
// and returns how long after it came.
func (c *crowd) awaitSuccess(t testing.TB, since time.Time) time.Duration {
	t.Helper()
	var first time.Duration
	rig.Eventually(t, 2*wait, "a request that is served", func() error {
		for _, s := range c.list() {
			if end := s.From.Add(s.Took).Sub(since); s.ok() && s.From.After(since) && (first == 0 || end < first) {
				first = end
			}
		}
		if first == 0 {
			return fmt.Errorf("clients saw %v", c)
		}
		return nil
	})
	return first
}

// stop waits for the requests under way.
func (c *crowd) stop() {
	c.cancel()
	<-c.ended
}
