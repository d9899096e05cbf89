package e2e

import (
	"strings"
	"testing"
	"time"
)

// A real cable that loses every packet in both directions: the kernels at both
// ends keep the sockets open and retransmit into the void.
func TestACableThatLosesEverythingIsNoticedAtBothEnds(t *testing.T) {
	c := newCable(t)
	s := c.start(t)
	s.clients.awaitReport(t, wait, func(r report) bool { return r.OK })

	cut := time.Now()
	if err := c.lose(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s.relay.await(t, wait, `msg="tunnel lost"`)
	}
	relayKnew := time.Since(cut)
	for range 2 {
		s.agent.await(t, wait, `msg="tunnel lost"`)
	}
	agentKnew := time.Since(cut)
	if relayKnew > 4*beat || agentKnew > 4*beat {
		t.Errorf("the relay knew after %v, the agent after %v, want less than 4 heartbeats", relayKnew, agentKnew)
	}
	failed := s.clients.awaitReport(t, wait, func(r report) bool { return r.From.After(cut) && !r.OK })
	if failed.Kind != "502 reset" {
		t.Errorf("a request during the outage saw %s", failed.Kind)
	}
	if failed.Took > 4*beat {
		t.Errorf("a request during the outage took %v", failed.Took)
	}

	mended := time.Now()
	c.carry(t)
	first := s.clients.awaitReport(t, wait, func(r report) bool { return r.OK && r.From.Add(r.Took).After(mended) })
	back := first.From.Add(first.Took).Sub(mended)
	if back > 4*beat {
		t.Errorf("served again %v after the cable was mended, want less than 4 heartbeats", back)
	}
	t.Logf("the relay knew after %v, the agent after %v; a request during the outage saw %s after %v; served again %v after it was mended",
		relayKnew.Round(time.Millisecond), agentKnew.Round(time.Millisecond), failed.Kind,
		failed.Took.Round(time.Millisecond), back.Round(time.Millisecond))
}

// An outage shorter than a heartbeat is TCP's matter: nothing may be lost.
func TestAnOutageShorterThanAHeartbeatLosesNothing(t *testing.T) {
	c := newCable(t)
	s := c.start(t)
	s.clients.awaitReport(t, wait, func(r report) bool { return r.OK })
	if err := c.lose(); err != nil {
		t.Fatal(err)
	}
	cut := time.Now()
	<-time.After(beat / 3) // how long the outage is
	c.carry(t)
	s.clients.awaitReport(t, wait, func(r report) bool {
		if !r.OK {
			t.Errorf("a request saw %s after %v", r.Kind, r.Took)
		}
		return r.From.After(cut.Add(2 * beat))
	})
	s.relay.drain()
	if log := strings.Join(s.relay.all, "\n"); strings.Contains(log, "tunnel lost") {
		t.Error("a tunnel was lost")
	}
}
