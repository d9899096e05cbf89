package egress

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/policy"
	"github.com/posternhq/postern/protocol/protocoltest"
)

// emergencyDeny is p with one.
func emergencyDeny(p policy.Policy, d policy.Deny) policy.Policy {
	d.ID, d.Where, d.Until = "den_1", "emergency den_1", time.Now().Add(time.Hour)
	p.Emergency = []policy.Deny{d}
	return p
}

func TestAnEmergencyDenyCutsARunningDownload(t *testing.T) {
	t.Parallel()
	for name, deny := range map[string]policy.Deny{
		"by host":    {Host: "db.test"},
		"by address": {Range: netip.MustParsePrefix("127.0.0.1/32")},
		"by app":     {All: true},
	} {
		t.Run(name, func(t *testing.T) {
			var p policy.Policy
			r, d, addr := tcpRig(t, func(q *policy.Policy) { p = *q })
			s := r.open(addr, protocol.EgressOpen{})
			conn := d.next(t)
			go func() {
				for {
					if _, err := conn.Write(make([]byte, 64<<10)); err != nil {
						return
					}
				}
			}()
			if _, err := io.CopyN(io.Discard, s, 4<<20); err != nil {
				t.Fatal(err)
			}
			if n := r.e.Cut(); n != 0 {
				t.Fatalf("%d calls were cut without a reason", n)
			}
			r.set("shop", emergencyDeny(p, deny))
			start := time.Now()
			if n := r.e.Cut(); n != 1 {
				t.Fatalf("%d calls were cut", n)
			}
			if _, err := io.Copy(io.Discard, s); protocol.CodeOf(err) != protocol.CodeForbidden {
				t.Errorf("the tunnel ended with %v", err)
			}
			if took := time.Since(start); took > time.Second {
				t.Errorf("the download ended after %v", took)
			}
			if f := r.lastFlow(); f.Cause != string(policy.Emergency) || f.Verdict != allowed || f.Rule != "emergency den_1" || f.Down < 4<<20 {
				t.Errorf("the last line is %+v", f)
			}
			if got := refusal(t, r.open(addr, protocol.EgressOpen{})); got == nil || got.Cause != policy.Emergency {
				t.Errorf("a new tunnel: %+v", got)
			}
		})
	}
}

func TestAnEmergencyDenyCutsRequestsAndPooledConnections(t *testing.T) {
	t.Parallel()
	waiting := make(chan struct{})
	var p policy.Policy
	r, url := httpRig(t, func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/slow" {
			io.WriteString(w, "first")
			w.(http.Flusher).Flush()
			close(waiting)
			<-req.Context().Done()
		}
	}, func(q *policy.Policy) { p = *q })
	resp := r.raw("GET " + url + "/ HTTP/1.1\r\nHost: x\r\n\r\n")
	io.Copy(io.Discard, resp.Body)
	r.settled()
	if n := r.e.pools.open(); n != 1 {
		t.Fatalf("%d connections are pooled", n)
	}
	slow := r.raw("GET " + url + "/slow HTTP/1.1\r\nHost: x\r\n\r\n")
	<-waiting
	r.set("shop", emergencyDeny(p, policy.Deny{Host: "plain.test"}))
	start := time.Now()
	if n := r.e.Cut(); n != 1 {
		t.Errorf("%d calls were cut", n)
	}
	if data, err := io.ReadAll(slow.Body); err == nil {
		t.Errorf("read %q and a clean end", data)
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("the answer ended after %v", took)
	}
	r.until("connections are pooled", func() bool { return r.e.pools.open() == 0 })
	if f := r.lastFlow(); f.Cause != string(policy.Emergency) || f.Status != 200 {
		t.Errorf("the last line is %+v", f)
	}
}

func TestAnIdleConnectionDoesNotOutliveItsPolicy(t *testing.T) {
	t.Parallel()
	var p policy.Policy
	addrs := make(chan string, 10)
	r, url := httpRig(t, func(w http.ResponseWriter, req *http.Request) { addrs <- req.RemoteAddr }, func(q *policy.Policy) { p = *q })
	get := func() string {
		resp := r.raw("GET " + url + "/ HTTP/1.1\r\nHost: x\r\n\r\n")
		io.Copy(io.Discard, resp.Body)
		r.settled()
		return <-addrs
	}
	first := get()
	if again := get(); again != first {
		t.Errorf("two requests came over %s and %s", first, again)
	}
	// The hole is gone: the connection that was dialed through it must not serve.
	p.Holes = nil
	r.set("shop", p)
	resp := r.raw("GET " + url + "/ HTTP/1.1\r\nHost: x\r\n\r\n")
	if got := denial(t, resp); got.Cause != policy.Prohibited {
		t.Errorf("the answer is %s %+v", resp.Status, got)
	}
	r.e.Cut()
	r.until("connections are pooled", func() bool { return r.e.pools.open() == 0 })
}

func TestAppsDoNotShareConnections(t *testing.T) {
	t.Parallel()
	var p policy.Policy
	addrs := make(chan string, 10)
	r, url := httpRig(t, func(w http.ResponseWriter, req *http.Request) { addrs <- req.RemoteAddr }, func(q *policy.Policy) { p = *q })
	r.set("blog", p)
	blog := r.connect("blog", protocoltest.Options{})
	var seen []string
	for _, agent := range []*protocol.Session{r.agent, blog, r.agent} {
		s := r.requests(agent)
		send(t, s, []byte("GET "+url+"/ HTTP/1.1\r\nHost: x\r\n\r\n"))
		resp, err := http.ReadResponse(bufio.NewReader(s), nil)
		if err != nil || resp.StatusCode != 200 {
			t.Fatal(resp, err)
		}
		s.Close()
		r.settled()
		seen = append(seen, <-addrs)
	}
	if seen[0] == seen[1] || seen[0] != seen[2] {
		t.Errorf("shop, blog, shop came over %v", seen)
	}
}

// TestACutDuringTheDialWins covers the moment in which a call is judged already and
// has no connection yet.
func TestACutDuringTheDialWins(t *testing.T) {
	t.Parallel()
	dialing := make(chan struct{})
	p := policy.Policy{Allow: []policy.Rule{rule(policy.TCP, "db.test", 5432)}}
	r := newRig(t, p, rigOptions{dial: func(ctx context.Context, _ netip.AddrPort) (net.Conn, error) {
		close(dialing)
		<-ctx.Done()
		return nil, ctx.Err()
	}})
	r.names.put("db.test", "93.184.216.36")
	s := r.open("db.test:5432", protocol.EgressOpen{})
	<-dialing
	r.set("shop", emergencyDeny(p, policy.Deny{Host: "db.test"}))
	if n := r.e.Cut(); n != 1 {
		t.Errorf("%d calls were cut", n)
	}
	if got := refusal(t, s); got == nil || got.Cause != policy.Emergency {
		t.Errorf("the reply is %+v", got)
	}
}

// TestADenyOfTheAddressDuringTheDialWins covers a policy that changes while Cut cannot
// know yet which address will be dialed.
func TestADenyOfTheAddressDuringTheDialWins(t *testing.T) {
	t.Parallel()
	p := policy.Policy{Allow: []policy.Rule{rule(policy.TCP, "db.test", 5432)}}
	var r *rig
	r = newRig(t, p, rigOptions{dial: func(context.Context, netip.AddrPort) (net.Conn, error) {
		r.set("shop", emergencyDeny(p, policy.Deny{Range: netip.MustParsePrefix("93.184.216.0/24")}))
		r.e.Cut()
		ours, _ := net.Pipe()
		return ours, nil
	}})
	r.names.put("db.test", "93.184.216.36")
	if got := refusal(t, r.open("db.test:5432", protocol.EgressOpen{})); got == nil || got.Cause != policy.Emergency {
		t.Errorf("the reply is %+v", got)
	}
}

// TestIdleTunnelsCostLittleAndAreCutAtOnce opens as many as a small test may, and
// measures what each costs at the relay and the agent together, the kernel's part not
// counted.
func TestIdleTunnelsCostLittleAndAreCutAtOnce(t *testing.T) {
	const n = 1000
	var p policy.Policy
	r, d, addr := tcpRig(t, func(q *policy.Policy) { p = *q })
	r.agent = r.connect("shop", protocoltest.Options{Relay: protocol.Config{MaxStreams: 2 * n}, Agent: protocol.Config{MaxStreams: 2 * n}})
	before := heap()
	streams := make([]*protocol.Stream, n)
	conns := make([]net.Conn, n)
	for i := range streams {
		streams[i] = r.open(addr, protocol.EgressOpen{})
		streams[i].SetDeadline(time.Time{})
		send(t, streams[i], []byte("x"))
		conns[i] = d.next(t)
		conns[i].SetDeadline(time.Time{})
		send(t, conns[i], []byte("y"))
		expect(t, streams[i], "y")
		expect(t, conns[i], "x")
	}
	if raceEnabled {
		t.Log("memory is not measured with the race detector")
	} else if each := (heap() - before) / n; each > 24<<10 {
		t.Errorf("an idle tunnel costs %d bytes", each)
	} else {
		t.Logf("an idle tunnel costs %d bytes", each)
	}
	r.set("shop", emergencyDeny(p, policy.Deny{Host: "db.test"}))
	start := time.Now()
	if cut := r.e.Cut(); cut != n {
		t.Errorf("%d were cut", cut)
	}
	took := time.Since(start)
	r.settled()
	t.Logf("%d were cut in %v, and ended in %v", n, took, time.Since(start))
	if took > 500*time.Millisecond && !raceEnabled {
		t.Errorf("it took %v to cut %d tunnels", took, n)
	}
	var wg sync.WaitGroup
	for i := range conns {
		wg.Go(func() {
			conns[i].SetReadDeadline(time.Now().Add(5 * time.Second))
			if _, err := conns[i].Read(make([]byte, 1)); errors.Is(err, io.EOF) || err == nil || strings.Contains(err.Error(), "timeout") {
				t.Errorf("a destination sees %v, expected a reset", err)
			}
			conns[i].Close()
			streams[i].Close()
		})
	}
	wg.Wait()
}

// heap is what is in use, stacks included.
func heap() int {
	var m runtime.MemStats
	for range 3 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int(m.HeapInuse + m.StackInuse)
}
