package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/posternhq/postern/e2e/rig"
)

// A relay that dies takes its flows along: the app must see that they are not whole,
// must be told at once of those that cannot begin, and is served again when the relay
// is back.
func TestALostRelayEndsFlowsWithAnErrorAndIsSaidSoAtOnce(t *testing.T) {
	t.Parallel()
	s := newStreamSite(t)
	running := s.downloads(t)
	s.Kill()
	killed := time.Now()
	for _, d := range running {
		if err := rig.Receive(t, wait, "the end of the "+d.kind, d.ended); err == nil {
			t.Errorf("the %s seems to have ended as it should", d.kind)
		}
	}
	t.Logf("the flows ended %v after the relay", time.Since(killed).Round(time.Millisecond))
	// The agent notices the end of each of its connections by itself; until then it takes
	// the tunnel for good.
	s.agent.Log.Wait(t, wait, 0, 2, "tunnel lost")
	for range 3 {
		began := time.Now()
		_, err := tunnelTo(s.agent.Proxy, streamName+":"+s.tcp, wait)
		wantRefused(t, err, http.StatusBadGateway, "relay_unreachable")
		resp, body, err := getThrough(s.agent.Proxy, "http://"+otherName+":"+s.http+"/short")
		if err != nil || resp.StatusCode != http.StatusBadGateway {
			t.Errorf("a request sees %v, %q, %v", resp, body, err)
		}
		if took := time.Since(began); took > 500*time.Millisecond {
			t.Errorf("to be told took %v", took)
		}
		// What the policy refuses it refuses by itself.
		_, err = tunnelTo(s.agent.Proxy, "evil.shop.test:443", wait)
		wantRefused(t, err, http.StatusForbidden, "http_request_denied")
	}
	s.Restart()
	rig.Eventually(t, rig.StartsWithin, "calls after the relay is back", func() error {
		conn, err := tunnelTo(s.agent.Proxy, streamName+":"+s.tcp, wait)
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = io.CopyN(io.Discard, conn, 28)
		return err
	})
	s.short(t, otherName)
	s.checkCounts(t, 0)
}

// Two lines let the agent dial by itself: one always, one while there is no relay. It
// decides by the same policy, and the relay hears of the calls.
func TestTheAgentDialsByItselfWhereALineSaysSo(t *testing.T) {
	t.Parallel()
	direct, loss, closed := portOf(rig.ServeRaw(t, echo)), portOf(rig.ServeRaw(t, echo)), portOf(rig.ServeRaw(t, echo))
	// Addresses, because the agent asks the system's name server.
	s := newSite(t, loopbackManifest([]string{direct, loss, closed}, map[string]string{"shop": fmt.Sprintf(
		`{allow: [{host: "tcp://127.0.0.1:%s", via: direct}, {host: "tcp://127.0.0.1:%s", on_relay_loss: direct}, "tcp://127.0.0.1:%s"]}`,
		direct, loss, closed)}))
	agent := s.agent(t, rig.AgentConfig{})
	call := func(port string) error {
		conn, err := tunnelTo(agent.Proxy, "127.0.0.1:"+port, wait)
		if err != nil {
			return err
		}
		defer conn.Close()
		return conn.echoed("hello")
	}
	via := func(port, want string) {
		t.Helper()
		rig.Eventually(t, wait, "the call in the relay's log", func() error {
			flows, err := s.Flows(s.operator, "shop", "127.0.0.1:"+port)
			if err != nil || len(flows) == 0 || flows[0].Via != want || !flows[0].Ended || flows[0].Up != 5 || flows[0].Down != 5 {
				return fmt.Errorf("%+v, %v; want one via %s", flows, err, want)
			}
			return nil
		})
	}
	for _, port := range []string{direct, loss, closed} {
		if err := call(port); err != nil {
			t.Errorf("with a relay: %v", err)
		}
	}
	via(direct, "direct")
	via(loss, "relay")
	s.Kill()
	rig.Eventually(t, wait, "calls without a relay", func() error { return call(loss) })
	if err := call(direct); err != nil {
		t.Errorf("without a relay: %v", err)
	}
	wantRefused(t, call(closed), http.StatusBadGateway, "relay_unreachable")
	s.Restart()
	s.AwaitPolicy(t, s.operator, 1, 1)
	via(loss, "direct") // which the agent remembered
	rig.Eventually(t, wait, "calls after the relay is back", func() error { return call(closed) })
}

// A tunnel keeps what TCP keeps: bytes right behind the CONNECT, each direction's end,
// and an abort.
func TestATunnelKeepsEarlyBytesEndsAndAborts(t *testing.T) {
	t.Parallel()
	aborts := make(chan error, 1)
	port := portOf(rig.ServeRaw(t, echo))
	abort := portOf(rig.ServeRaw(t, func(conn net.Conn) {
		_, err := io.Copy(io.Discard, conn)
		aborts <- err
	}))
	const name = "echo.shop.test"
	s := newSite(t, loopbackManifest([]string{port, abort}, map[string]string{
		"shop": fmt.Sprintf(`{allow: ["tcp://%s:%s", "tcp://%s:%s"]}`, name, port, name, abort),
	}), name)
	agent := s.agent(t, rig.AgentConfig{})
	conn, err := callProxy(agent.Proxy, wait)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "CONNECT %s:%s HTTP/1.1\r\nHost: x\r\n\r\nearly bytes", name, port)
	if resp, _, err := conn.answer(http.MethodConnect); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%v, %v", resp, err)
	}
	io.WriteString(conn, " and late ones")
	if err := conn.Conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(conn)
	if err != nil || string(got) != "early bytes and late ones" {
		t.Errorf("%q came back, %v", got, err)
	}
	cut, err := tunnelTo(agent.Proxy, name+":"+abort, wait)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(cut, "half of it")
	cut.Conn.(*net.TCPConn).SetLinger(0)
	cut.Close()
	if err := rig.Receive(t, wait, "the end at the destination", aborts); err == nil {
		t.Error("an aborted upload ended at the destination as if it were whole")
	}
	s.checkCounts(t, 0)
}

// A client that leaves in the middle of a download ends the call, at the relay and at
// the destination too.
func TestAClientThatLeavesEndsItsCalls(t *testing.T) {
	t.Parallel()
	s := newStreamSite(t)
	for range 5 {
		conn, err := tunnelTo(s.agent.Proxy, streamName+":"+s.tcp, wait)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, conn, 28); err != nil {
			t.Error(err)
		}
		conn.Close()
		request, err := callProxy(s.agent.Proxy, wait)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(request, "GET http://%s:%s/stream HTTP/1.1\r\nHost: x\r\n\r\n", streamName, s.http)
		if _, err := io.CopyN(io.Discard, request, 200); err != nil {
			t.Error(err)
		}
		request.Close()
	}
	s.checkCounts(t, 0)
	rig.Eventually(t, wait, "the destination alone", func() error {
		if n := s.connections(); n > 0 {
			return fmt.Errorf("%d connections to it are open", n)
		}
		return nil
	})
}
