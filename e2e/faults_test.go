package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/posternhq/postern/e2e/rig"
)

// wait bounds what takes milliseconds on a quiet machine.
const wait = 10 * time.Second

// fastBeat makes dead links known soon.
const fastBeat = "POSTERN_HEARTBEAT=1s"

func TestAnAgentThatIsKilledBeforeTheAnswerMeans502Reset(t *testing.T) {
	t.Parallel()
	r := rig.StartRelay(t, rig.RelayConfig{})
	app := newGate("one")
	agent := r.StartAgent(rig.Serve(t, app), rig.AgentConfig{})
	answers := []<-chan seen{
		asking(r.Addr, r.AppHost("shop"), "/a"),
		asking(r.Addr, r.AppHost("shop"), "/b"),
	}
	for range answers {
		rig.Receive(t, wait, "the request at the app", app.arrived)
	}
	killed := time.Now()
	agent.Kill()
	for _, answer := range answers {
		s := rig.Receive(t, wait, "the answer", answer)
		if s.Err != nil || s.Status != http.StatusBadGateway || s.Code != "reset" {
			t.Fatalf("saw %v, want a complete 502 reset", s)
		}
		if s.Header.Get("Postern-Request-Id") == "" || !strings.HasPrefix(s.Header.Get("Content-Type"), "application/json") {
			t.Errorf("the 502 has the header %v", s.Header)
		}
	}
	t.Logf("502 after %v", time.Since(killed).Round(time.Millisecond))
	rig.Receive(t, wait, "the end of the request at the app", app.left)
}

func TestAnAgentThatIsKilledInsideTheAnswerNeverMakesACleanEnd(t *testing.T) {
	t.Parallel()
	r := rig.StartRelay(t, rig.RelayConfig{})
	agent := r.StartAgent(rig.Serve(t, newGate("one")), rig.AgentConfig{})
	host := r.AppHost("shop")
	requests := map[string]string{
		"a length":              "GET /body HTTP/1.1\r\nHost: " + host + "\r\n\r\n",
		"chunks":                "GET /chunked HTTP/1.1\r\nHost: " + host + "\r\n\r\n",
		"until close":           "GET /chunked HTTP/1.0\r\nHost: " + host + "\r\n\r\n",
		"chunks and close":      "GET /chunked HTTP/1.1\r\nHost: " + host + "\r\nConnection: close\r\n\r\n",
		"a length and HTTP/1.0": "GET /body HTTP/1.0\r\nHost: " + host + "\r\n\r\n",
	}
	answers := map[string]*http.Response{}
	for name, request := range requests {
		conn := r.Dial(t, callWithin)
		io.WriteString(conn, request)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		// What there is has been read: the abort does not overtake it.
		if _, err := io.ReadFull(resp.Body, make([]byte, 1000)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		answers[name] = resp
	}
	agent.Kill()
	for name, resp := range answers {
		if err := awaitAbort(resp.Body); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTheOtherAgentGoesOnServingWhenOneIsKilled(t *testing.T) {
	r := rig.StartRelay(t, rig.RelayConfig{})
	apps := newLedger()
	victim := r.StartAgent(rig.Serve(t, loadApp(apps.add)), rig.AgentConfig{Instance: "web.1"})
	r.StartAgent(rig.Serve(t, loadApp(apps.add)), rig.AgentConfig{Instance: "web.2"})
	const clients = 16
	l := startLoad(t, r.Addr, r.AppHost("shop"), clients)
	l.awaitAnswers(t, 200)
	victim.Kill()
	atDeath := l.answers.list()
	l.awaitAnswers(t, len(atDeath)+400)
	l.stop()

	failed := l.answers.failures()
	t.Logf("%d requests: %v", len(l.answers.list()), &l.answers)
	// Only what was at the victim when it died may fail: one per client at most.
	if len(failed) > clients {
		t.Errorf("%d requests failed, %d clients had one under way", len(failed), clients)
	}
	for _, s := range failed {
		if s.Status == http.StatusBadGateway && s.Code == "reset" || s.Status != 0 && s.Err != nil {
			continue
		}
		t.Errorf("saw %v", s)
	}
	l.checkNoneTwice(t, apps)
}

func TestARequestThatReachedNoAppIsServedByAnother(t *testing.T) {
	t.Parallel()
	r := rig.StartRelay(t, rig.RelayConfig{})
	apps := newLedger()
	r.StartAgent(rig.FreeAddr(t), rig.AgentConfig{Instance: "web.1"}) // its app does not listen
	r.StartAgent(rig.Serve(t, loadApp(apps.add)), rig.AgentConfig{Instance: "web.2"})
	c := &caller{addr: r.Addr, host: r.AppHost("shop")}
	defer c.close()
	for i := range 50 {
		id, body := fmt.Sprint("order-", i), bytes.Repeat([]byte{'p'}, i*1000)
		s := c.call(http.MethodPost, "/", http.Header{idHeader: {id}}, body)
		if !s.ok() || !bytes.Equal(s.Body, loadAnswer(body, 0)) {
			t.Fatalf("POST of %d bytes: saw %v", len(body), s)
		}
		if n := apps.count(id); n != 1 {
			t.Fatalf("the app has seen the POST %d times", n)
		}
	}
}

func TestANewAgentOfTheSameInstanceTakesOverFromAKilledOne(t *testing.T) {
	t.Parallel()
	r := rig.StartRelay(t, rig.RelayConfig{})
	before, after := newGate("before"), newGate("after")
	old := r.StartAgent(rig.Serve(t, before), rig.AgentConfig{Instance: "web.1"})
	if s := ask(r.Addr, r.AppHost("shop"), "/now"); string(s.Body) != "before" {
		t.Fatalf("saw %v %q", s, s.Body)
	}
	old.Kill()
	gone := time.Now()
	// These find nobody, wait, and are served by the successor.
	var parked []<-chan seen
	for range 20 {
		parked = append(parked, asking(r.Addr, r.AppHost("shop"), "/now"))
	}
	r.StartAgent(rig.Serve(t, after), rig.AgentConfig{Instance: "web.1"})
	for _, p := range parked {
		if s := rig.Receive(t, wait, "the answer", p); !s.ok() || string(s.Body) != "after" {
			t.Errorf("saw %v %q", s, s.Body)
		}
	}
	t.Logf("served again %v after the kill", time.Since(gone).Round(time.Millisecond))
}

func TestASuccessorOfTheSameInstanceTakesTheNewRequestsAndLeavesTheOldOnes(t *testing.T) {
	t.Parallel()
	r := rig.StartRelay(t, rig.RelayConfig{})
	before, after := newGate("before"), newGate("after")
	old := r.StartAgent(rig.Serve(t, before), rig.AgentConfig{Instance: "web.1"})
	var inFlight []<-chan seen
	for _, target := range []string{"/wait", "/body", "/chunked"} {
		inFlight = append(inFlight, asking(r.Addr, r.AppHost("shop"), target))
		rig.Receive(t, wait, "the request at the app", before.arrived)
	}
	r.StartAgent(rig.Serve(t, after), rig.AgentConfig{Instance: "web.1"})
	// It has more to do than the old one soon, and is preferred all the same.
	for range 8 {
		inFlight = append(inFlight, asking(r.Addr, r.AppHost("shop"), "/wait"))
		rig.Receive(t, wait, "the request at the new agent's app", after.arrived)
	}
	for range 50 {
		if s := ask(r.Addr, r.AppHost("shop"), "/now"); !s.ok() || string(s.Body) != "after" {
			t.Fatalf("a new request saw %v %q", s, s.Body)
		}
	}
	close(before.open)
	close(after.open)
	for i, answer := range inFlight {
		s := rig.Receive(t, wait, "the answer", answer)
		want := []string{"before", gateBody, gateBody, "after"}[min(i, 3)]
		if !s.ok() || string(s.Body) != want {
			t.Errorf("request %d saw %v %.20q, want %.20q", i, s, s.Body, want)
		}
	}
	if code := old.Stop(); code != 0 {
		t.Errorf("the old agent exits with %d", code)
	}
	if s := ask(r.Addr, r.AppHost("shop"), "/now"); string(s.Body) != "after" {
		t.Errorf("after the old agent left: saw %v %q", s, s.Body)
	}
}

func TestARelayThatIsKilledNeverMakesACleanEnd(t *testing.T) {
	t.Parallel()
	r := rig.StartRelay(t, rig.RelayConfig{})
	app := newGate("one")
	r.StartAgent(rig.Serve(t, app), rig.AgentConfig{})
	var answers []<-chan seen
	for _, target := range []string{"/wait", "/body", "/chunked"} {
		answers = append(answers, asking(r.Addr, r.AppHost("shop"), target))
		rig.Receive(t, wait, "the request at the app", app.arrived)
	}
	r.Kill()
	for _, answer := range answers {
		if s := rig.Receive(t, wait, "the client's end", answer); s.Err == nil {
			t.Errorf("saw %v, which looks complete", s)
		}
	}
	for range answers {
		rig.Receive(t, wait, "the end of the request at the app", app.left)
	}
	mark := r.Log.Len()
	r.Restart()
	up := time.Now()
	if s := ask(r.Addr, r.AppHost("shop"), "/now"); !s.ok() {
		t.Fatalf("after the restart: saw %v", s)
	}
	t.Logf("served again %v after the relay was back", time.Since(up).Round(time.Millisecond))
	r.Log.Wait(t, wait, mark, 2, `msg="tunnel open"`)
}

func TestARelayThatIsKilledUnderLoadIsServedAgainByItsAgents(t *testing.T) {
	r := rig.StartRelay(t, rig.RelayConfig{})
	apps := newLedger()
	for _, instance := range []string{"web.1", "web.2"} {
		r.StartAgent(rig.Serve(t, loadApp(apps.add)), rig.AgentConfig{Instance: instance})
	}
	l := startLoad(t, r.Addr, r.AppHost("shop"), 16)
	for range 3 {
		l.awaitAnswers(t, len(l.answers.list())+300)
		r.Kill()
		r.Restart()
		l.awaitSuccess(t, time.Now())
	}
	l.stop()
	t.Logf("three kills under load: %v", &l.answers)
	for _, s := range l.answers.failures() {
		if s.Err == nil && s.Status/100 == 2 {
			t.Errorf("a wrong answer looks complete: %v", s)
		}
	}
	l.checkNoneTwice(t, apps)
}

const storeManifest = `version: 1
apps:
  shop:
    endpoints:
      orders: {provider: none, mode: store, path: /orders, max_in_flight: 4}
`

func TestEveryAcknowledgedWebhookIsDeliveredAfterTheRelayIsKilled(t *testing.T) {
	r := rig.StartRelay(t, rig.RelayConfig{Manifest: storeManifest})
	apps := newLedger()
	var once sync.Once
	opened := make(chan struct{})
	defer once.Do(func() { close(opened) })
	died := make(chan string, 4096) // in the app's hands when the relay was killed
	var answered atomic.Int32
	target := rig.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		if answered.Add(1) > 20 { // from now on the app holds what it is given
			select {
			case <-opened:
			case <-req.Context().Done():
				died <- string(body)
				return
			}
		}
		apps.add(string(body))
	}))
	r.StartAgent(target, rig.AgentConfig{})

	acknowledged, refused := sendWebhooks(t, r, 8, func(sent int) bool {
		if sent == 400 {
			r.Kill()
		}
		return r.Running()
	})
	for range 4 { // as many as may be in flight
		rig.Receive(t, wait, "a webhook that was at the app", died)
	}
	once.Do(func() { close(opened) })
	r.Restart()
	up := time.Now()
	rig.Eventually(t, 3*wait, "all acknowledged webhooks at the app", func() error {
		for _, id := range acknowledged {
			if apps.count(id) == 0 {
				return errors.New(id + " is missing")
			}
		}
		return nil
	})
	twice := 0
	for _, id := range acknowledged {
		if apps.count(id) > 1 {
			twice++
		}
	}
	t.Logf("%d webhooks acknowledged, %d not; all delivered %v after the relay was back, %d of them twice",
		len(acknowledged), refused, time.Since(up).Round(time.Millisecond), twice)
}

// sendWebhooks sends until more says no, which is told how many were
// acknowledged so far. It returns the ids of those, and how many were not.
func sendWebhooks(t *testing.T, r *rig.Relay, senders int, more func(sent int) bool) (acknowledged []string, refused int) {
	t.Helper()
	var mu sync.Mutex
	var running sync.WaitGroup
	for sender := range senders {
		running.Go(func() {
			c := &caller{addr: r.Addr, host: r.Addr}
			defer c.close()
			for i := 0; ; i++ {
				id := fmt.Sprintf("%d-%d", sender, i)
				s := c.call(http.MethodPost, "/hooks/shop/orders", nil, []byte(id))
				mu.Lock()
				if s.Err == nil && s.Status == http.StatusAccepted {
					acknowledged = append(acknowledged, id)
				} else {
					refused++
				}
				goOn := more(len(acknowledged))
				mu.Unlock()
				if !goOn {
					return
				}
			}
		})
	}
	running.Wait()
	if len(acknowledged) == 0 {
		t.Fatal("no webhook was acknowledged")
	}
	return acknowledged, refused
}
