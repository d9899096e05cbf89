package egress

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/policy"
	"github.com/posternhq/postern/protocol/protocoltest"
	"github.com/posternhq/postern/relay"
)

// TestEveryCallThatStartsIsLoggedOrInFlight runs calls of all kinds, with faults and
// cuts, and looks at the counts all the while. In the end the log has each call once
// with its end, and the first line of those that went on.
func TestEveryCallThatStartsIsLoggedOrInFlight(t *testing.T) {
	t.Parallel()
	echo := listen(t)
	go func() {
		for conn := range echo.conns {
			go func() {
				defer conn.Close()
				if rand.IntN(4) == 0 {
					conn.(*net.TCPConn).SetLinger(0)
					return
				}
				io.Copy(conn, io.LimitReader(conn, 1000))
			}()
		}
	}()
	var p policy.Policy
	r, url := httpRig(t, func(w http.ResponseWriter, req *http.Request) {
		if rand.IntN(4) == 0 {
			panic(http.ErrAbortHandler)
		}
		io.Copy(w, req.Body)
	}, func(q *policy.Policy) {
		q.Allow = append(q.Allow, rule(policy.TCP, "db.test", echo.port), rule(policy.HTTPS, "api.test", echo.port), rule(policy.TCP, "gone.test", 1))
		q.Holes = append(q.Holes, hole(echo.port, 1)...)
		q.Limits = policy.Limits{Tunnels: 20}
		p = *q
	})
	for _, name := range []string{"db.test", "api.test", "gone.test"} {
		r.names.put(name, "127.0.0.1")
	}
	stop := make(chan struct{})
	var watch, work sync.WaitGroup
	watch.Go(func() {
		for {
			started, logged, inFlight := r.e.Counts()
			if started != logged+inFlight || inFlight < 0 {
				t.Errorf("%d started, %d logged, %d in flight", started, logged, inFlight)
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	watch.Go(func() {
		for i := 0; ; i++ {
			q := p
			if i%3 == 0 {
				q = emergencyDeny(p, policy.Deny{Host: "db.test"})
			}
			r.set("shop", q)
			r.e.Cut()
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	for range 8 {
		agent := r.connect("shop", protocoltest.Options{})
		work.Go(func() {
			for range 40 {
				r.oneCall(agent, url, echo.port)
			}
			if rand.IntN(2) == 0 {
				agent.Close(protocol.CodeShutdown, "gone")
			}
		})
	}
	work.Wait()
	close(stop)
	watch.Wait()
	r.settled()
	started, logged, _ := r.e.Counts()
	if started != logged || started < 200 {
		t.Errorf("%d started, %d logged", started, logged)
	}
	ends, begins := map[string]int{}, map[string]int{}
	for _, f := range r.log.flows(t) {
		if f.Ended {
			ends[f.ID]++
		} else {
			begins[f.ID]++
		}
	}
	if int64(len(ends)) != logged {
		t.Errorf("%d calls were logged, the log has the end of %d", logged, len(ends))
	}
	for id, n := range ends {
		if n != 1 || begins[id] > 1 {
			t.Errorf("%s has %d first lines and %d last ones", id, begins[id], n)
		}
	}
	for id := range begins {
		if ends[id] != 1 {
			t.Errorf("%s has no end in the log", id)
		}
	}
	if n := r.e.limits.open(); n != 0 {
		t.Errorf("%d tunnels count as open", n)
	}
}

// oneCall makes one call of a random kind and leaves it in a random way.
func (r *rig) oneCall(agent *protocol.Session, url string, port uint16) {
	ctx := context.Background()
	kind := rand.IntN(7)
	if kind >= 5 {
		s, err := agent.Open(ctx, protocol.Open{Kind: protocol.KindEgressHTTP})
		if err != nil {
			return
		}
		defer s.Close()
		s.SetDeadline(time.Now().Add(5 * time.Second))
		host := []string{url, "http://evil.test", "http://[::1]"}[rand.IntN(3)]
		fmt.Fprintf(s, "POST %s/ HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nab", host)
		if rand.IntN(3) > 0 {
			io.WriteString(s, "cd")
		}
		if rand.IntN(3) > 0 {
			s.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			http.ReadResponse(bufio.NewReader(s), nil)
		}
		return
	}
	addr := []string{"db.test", "api.test", "gone.test", "evil.test", "[::1]"}[kind]
	how := &protocol.EgressOpen{Early: rand.IntN(2) == 0, Flow: relay.NewFlowID(time.Now())}
	s, err := agent.Open(ctx, protocol.Open{Kind: protocol.KindEgress, Addr: fmt.Sprintf("%s:%d", addr, map[bool]uint16{true: 1, false: port}[kind == 2]), Egress: how})
	if err != nil {
		return
	}
	defer s.Close()
	s.SetDeadline(time.Now().Add(100 * time.Millisecond))
	s.Write([]byte("hello"))
	if rand.IntN(2) == 0 {
		s.CloseWrite()
	}
	if rand.IntN(3) > 0 {
		io.Copy(io.Discard, s)
	}
}

func TestTheAgentsNameForACallIsKept(t *testing.T) {
	t.Parallel()
	r, d, addr := tcpRig(t, nil)
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	id := relay.NewFlowID(time.Now())
	s := r.open(addr, protocol.EgressOpen{Flow: id, From: "socks", Traceparent: parent})
	d.next(t)
	s.Close()
	r.settled()
	flows := r.log.flows(t)
	if len(flows) != 2 {
		t.Fatalf("the log has %d lines", len(flows))
	}
	for i, f := range flows {
		if f.ID != id || f.From != "socks" || f.Traceparent != parent || f.App != "shop" || f.Instance != "web.1" || f.Team != "payments" ||
			f.Rule != "apps.shop.egress.allow[0]" || f.Version != 7 || f.Ended != (i == 1) || f.Target != addr || f.Form != "tunnel" || f.Via != "relay" {
			t.Errorf("line %d is %+v", i, f)
		}
	}
	s = r.open(addr, protocol.EgressOpen{Flow: "flo_x evil", From: "moon", Traceparent: "x"})
	d.next(t)
	s.Close()
	if f := r.lastFlow(); !validFlowID(f.ID) || f.From != "connect" || f.Traceparent != "" {
		t.Errorf("the last line is %+v", f)
	}
}

func TestSumsFirstSeenAndUsage(t *testing.T) {
	t.Parallel()
	r, d, addr := tcpRig(t, nil)
	ctx := context.Background()
	s := r.open(addr, protocol.EgressOpen{})
	conn := d.next(t)
	send(t, s, []byte("12345"))
	expect(t, conn, "12345")
	r.until("the call is not counted", func() bool {
		r.e.ledger.flush(ctx)
		r.store.mu.Lock()
		defer r.store.mu.Unlock()
		return len(r.store.sums) > 0
	})
	// The store fails for a while: nothing is lost.
	r.store.mu.Lock()
	r.store.broken = true
	r.store.mu.Unlock()
	send(t, conn, []byte("123"))
	expect(t, s, "123")
	r.until("the answer is not counted", func() bool { return r.e.Recent("shop", "", "", 1)[0].Down == 3 })
	r.e.ledger.flush(ctx)
	r.store.mu.Lock()
	r.store.broken = false
	r.store.mu.Unlock()
	s.Close()
	r.settled()
	refusal(t, r.open("evil.test:443", protocol.EgressOpen{}))
	r.settled()
	list, err := r.e.Usage(ctx, "shop", time.Now().Add(-time.Hour))
	if err != nil || len(list.Usage) != 2 {
		t.Fatalf("usage is %+v, %v", list, err)
	}
	if u := list.Usage[0]; u.Target != addr || u.Calls != 1 || u.Up != 5 || u.Down != 3 || u.Team != "payments" || u.Rule != "apps.shop.egress.allow[0]" || u.Failed != 0 {
		t.Errorf("the first usage is %+v", u)
	}
	if u := list.Usage[1]; u.Verdict != denied || u.Calls != 1 || u.Target != "evil.test:443" {
		t.Errorf("the second usage is %+v", u)
	}
	targets, err := r.e.Targets(ctx, "shop")
	if err != nil || len(targets.Targets) != 1 || targets.Targets[0].Target != addr {
		t.Errorf("targets are %+v, %v", targets, err)
	}
	flows := r.e.Recent("shop", "", "", 0)
	if len(flows) != 2 || flows[0].Verdict != denied || !flows[1].Fresh || flows[1].Down != 3 || !flows[1].Ended {
		t.Errorf("the latest are %+v", flows)
	}
	if got := r.e.Recent("shop", "db.test", allowed, 0); len(got) != 1 || got[0].Target != addr {
		t.Errorf("of db.test: %+v", got)
	}
	if got := r.e.Recent("blog", "", "", 0); len(got) != 0 {
		t.Errorf("of another app: %+v", got)
	}
	// The second call is no news.
	s = r.open(addr, protocol.EgressOpen{})
	d.next(t)
	s.Close()
	if f := r.lastFlow(); f.Fresh {
		t.Errorf("the second call is marked: %+v", f)
	}
	r.log.mu.Lock()
	news := bytes.Count(r.log.all.Bytes(), []byte("egress to a new target"))
	r.log.mu.Unlock()
	if news != 1 {
		t.Errorf("%d new targets were announced", news)
	}
}

// TestATargetOfAnotherDayIsNotNew has what the store knew before this process.
func TestATargetOfAnotherDayIsNotNew(t *testing.T) {
	t.Parallel()
	r, d, addr := tcpRig(t, nil)
	r.store.targets = []relay.EgressTarget{{App: "shop", Target: addr}}
	s := r.open(addr, protocol.EgressOpen{})
	d.next(t)
	s.Close()
	if f := r.lastFlow(); f.Fresh {
		t.Errorf("the last line is %+v", f)
	}
}

// TestATargetIsAnnouncedLateWhenTheStoreWasAway has a store that cannot say at the
// first line whether the target is new.
func TestATargetIsAnnouncedLateWhenTheStoreWasAway(t *testing.T) {
	t.Parallel()
	r, d, addr := tcpRig(t, nil)
	r.store.broken = true
	s := r.open(addr, protocol.EgressOpen{})
	d.next(t)
	s.Close()
	if f := r.lastFlow(); f.Fresh {
		t.Errorf("the last line is %+v", f)
	}
	r.store.mu.Lock()
	r.store.broken = false
	r.store.mu.Unlock()
	r.e.ledger.flush(context.Background())
	if f := r.e.Recent("shop", "", "", 1)[0]; !f.Fresh {
		t.Errorf("the record is %+v", f)
	}
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	if n := bytes.Count(r.log.all.Bytes(), []byte("egress to a new target")); n != 1 {
		t.Errorf("%d new targets were announced", n)
	}
}

func TestManyTargetsAreAddedUpAsOther(t *testing.T) {
	t.Parallel()
	r := newRig(t, policy.Policy{}, rigOptions{noop: true})
	for i := range maxTargets + 500 {
		c := r.e.begin("shop", "web.1", policy.Tunnel, protocol.Flow{})
		target, _ := policy.ParseTunnel(fmt.Sprintf("h%d.test:443", i))
		c.finish(c.judge(context.Background(), policy.Call{Target: target}, -1))
	}
	r.e.ledger.flush(context.Background())
	if n := len(r.store.sums); n != maxTargets+1 {
		t.Errorf("%d sums", n)
	}
	i := slices.IndexFunc(r.store.sums, func(s relay.FlowSum) bool { return s.Target == other })
	if i < 0 || r.store.sums[i].Count != 500 {
		t.Errorf("what was added up is %+v", r.store.sums[max(i, 0)])
	}
	if n := len(r.e.Recent("shop", "", "", 10000)); n != maxRecent {
		t.Errorf("%d calls are remembered", n)
	}
}

func TestWatchersSeeBothLinesAndNeverHoldACallBack(t *testing.T) {
	t.Parallel()
	r, d, addr := tcpRig(t, nil)
	ctx, stop := context.WithCancel(context.Background())
	mine, others := r.e.Watch(ctx, "shop"), r.e.Watch(ctx, "blog")
	s := r.open(addr, protocol.EgressOpen{})
	d.next(t)
	if f := <-mine; f.Ended || f.Target != addr {
		t.Errorf("the first line is %+v", f)
	}
	s.Close()
	if f := <-mine; !f.Ended {
		t.Errorf("the second line is %+v", f)
	}
	for range 3 * watchBuffer {
		refusal(t, r.open("evil.test:443", protocol.EgressOpen{}))
	}
	stop()
	n := 0
	for range mine {
		n++
	}
	if n > watchBuffer {
		t.Errorf("%d lines were kept for a watcher that does not read", n)
	}
	if f, ok := <-others; ok {
		t.Errorf("a watcher of another app got %+v", f)
	}
}

func TestRecordsOfAnAgentsOwnCallsAreTakenWithCare(t *testing.T) {
	t.Parallel()
	var observed sync.Map
	r := newRig(t, policy.Policy{}, rigOptions{cfg: Config{Observe: func(app relay.AppID, version int64, denied bool) { observed.Store(app, version) }}})
	s, err := r.agent.Open(context.Background(), protocol.Open{Kind: protocol.KindFlows})
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", 5000)
	for _, f := range []protocol.Flow{
		{ID: "flo_00000000000000000000000001", App: "blog", Instance: "evil", Via: "relay", Form: "tunnel", From: "socks", Target: "api.test:443", Verdict: allowed, Ended: true, Up: 5, Down: 7, Version: 3, StartedAt: time.Now().Add(-time.Minute)},
		{ID: "x", Target: long, Path: long, Method: long, Cause: long, Rule: long, Reason: long, Verdict: "yes", Traceparent: "x", Ended: true, Up: -1, Down: 1 << 62, Duration: -1, StartedAt: time.Now().Add(time.Hour)},
		{ID: "flo_00000000000000000000000002", Form: "tunnel", Target: "api.test:443", Verdict: allowed},
	} {
		if err := protocol.WriteMessage(s, f); err != nil {
			t.Fatal(err)
		}
	}
	s.CloseWrite()
	if _, err := io.ReadAll(s); err != nil {
		t.Fatal(err)
	}
	flows := r.log.flows(t)
	if len(flows) != 3 {
		t.Fatalf("the log has %d lines", len(flows))
	}
	if f := flows[0]; f.App != "shop" || f.Instance != "web.1" || f.Via != "direct" || f.ID != "flo_00000000000000000000000001" || f.Up != 5 {
		t.Errorf("the first is %+v", f)
	}
	if f := flows[1]; !validFlowID(f.ID) || len(f.Target) > 400 || len(f.Path) > 600 || len(f.Method) > 40 || f.Verdict != denied || f.Up != 0 || f.Down > maxBytes || f.StartedAt.After(time.Now()) || f.Traceparent != "" {
		t.Errorf("the second is %+v", f)
	}
	if _, ok := observed.Load(relay.AppID("shop")); !ok {
		t.Error("nobody was told of the verdicts")
	}
	r.e.ledger.flush(context.Background())
	if n := len(r.store.sums); n != 2 {
		t.Errorf("%d sums, expected those of the calls that are over", n)
	}
	if started, _, _ := r.e.Counts(); started != 0 {
		t.Errorf("%d calls count as the relay's", started)
	}

	s, err = r.agent.Open(context.Background(), protocol.Open{Kind: protocol.KindFlows})
	if err != nil {
		t.Fatal(err)
	}
	send(t, s, []byte{0x7f, 0xff, 0xff, 0xff})
	if _, err := io.ReadAll(s); protocol.CodeOf(err) != protocol.CodeBadMessage {
		t.Errorf("a record of 2 GiB ended with %v", err)
	}
}

func TestMetricsAddUp(t *testing.T) {
	t.Parallel()
	r, d, addr := tcpRig(t, nil)
	s := r.open(addr, protocol.EgressOpen{})
	conn := d.next(t)
	send(t, s, []byte("12345"))
	expect(t, conn, "12345")
	refusal(t, r.open("evil.test:443", protocol.EgressOpen{}))
	var out strings.Builder
	r.until("the refusal is not counted", func() bool { _, logged, _ := r.e.Counts(); return logged == 1 })
	r.e.WriteMetrics(&out)
	for _, line := range []string{
		"postern_egress_started_total 2", "postern_egress_logged_total 1", "postern_egress_in_flight 1", "postern_egress_tunnels 1",
		`postern_egress_calls_total{app="shop",team="payments",form="tunnel",verdict="deny",cause="denied"} 1`,
	} {
		if !strings.Contains(out.String(), line+"\n") {
			t.Errorf("%q is not in\n%s", line, out.String())
		}
	}
	s.Close()
	r.settled()
	out.Reset()
	r.e.WriteMetrics(&out)
	for _, line := range []string{
		`postern_egress_bytes_total{app="shop",team="payments",rule="apps.shop.egress.allow[0]",direction="up"} 5`,
		`postern_egress_phase_seconds_count{phase="dial"} 1`,
	} {
		if !strings.Contains(out.String(), line+"\n") {
			t.Errorf("%q is not in\n%s", line, out.String())
		}
	}
}

func TestExplainSaysWhichLineDecides(t *testing.T) {
	t.Parallel()
	r := newRig(t, policy.Policy{
		Allow: []policy.Rule{rule(policy.HTTPS, "api.test", 443), rule(policy.HTTPS, "inner.test", 443), rule(policy.HTTPS, "missing.test", 443)},
		Deny:  []policy.Deny{{Where: "egress.deny.hosts[0]", Host: "*.evil.test", Line: 3}},
	}, rigOptions{noop: true})
	r.names.put("api.test", "93.184.216.34", "2606:2800:220:1::1")
	r.names.put("inner.test", "10.0.0.1")
	for _, c := range []struct {
		url, verdict, rule, text, cause string
		status, addrs                   int
		suggests, dns                   bool
	}{
		{"https://api.test/v1?key=secret", allowed, "apps.shop.egress.allow[0]", "https://api.test:443", "", 0, 2, false, false},
		{"https://inner.test", denied, "addresses", "", "prohibited_address", 403, 1, true, false},
		{"https://missing.test", allowed, "apps.shop.egress.allow[2]", "https://missing.test:443", "", 0, 0, false, true},
		{"https://a.evil.test", denied, "egress.deny.hosts[0]", "*.evil.test", "denied", 403, 0, false, false},
		{"http://other.test/x", denied, "default", "", "denied", 403, 0, true, false},
	} {
		x, err := r.e.Explain(context.Background(), "shop", "web.1", c.url, "")
		if err != nil {
			t.Fatal(err)
		}
		if x.Verdict != c.verdict || x.Rule != c.rule || x.Text != c.text || x.Cause != c.cause || x.Status != c.status || len(x.Addresses) != c.addrs ||
			(x.Suggestion != "") != c.suggests || (x.DNSError != "") != c.dns || x.Version != 7 || strings.Contains(x.URL, "secret") {
			t.Errorf("%s: %+v", c.url, x)
		}
	}
	if asked := r.names.asked(); slices.Contains(asked, "a.evil.test") || slices.Contains(asked, "other.test") {
		t.Errorf("looked up: %v", asked)
	}
	var unread *policy.TargetError
	if _, err := r.e.Explain(context.Background(), "shop", "", "gopher://x", ""); !errors.As(err, &unread) {
		t.Errorf("the error is %v", err)
	}
}

func TestDrainWaitsForRequestsAndThenTunnels(t *testing.T) {
	t.Parallel()
	r, d, addr := tcpRig(t, nil)
	s := r.open(addr, protocol.EgressOpen{})
	d.next(t)
	if refusal(t, s) != nil {
		t.Fatal("refused")
	}
	done := make(chan error, 1)
	go func() { done <- r.e.Drain(context.Background()) }()
	r.until("the relay takes calls", r.e.draining.Load)
	if got := refusal(t, r.open(addr, protocol.EgressOpen{})); got == nil || got.Cause != policy.Unavailable || got.RetryAfter < 1 {
		t.Errorf("a new tunnel: %+v", got)
	}
	select {
	case err := <-done:
		t.Fatalf("drained with a tunnel open: %v", err)
	default:
	}
	s.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := r.e.Drain(ctx); err != nil {
		t.Errorf("nothing is in flight: %v", err)
	}
}

func TestRunStoresWhatIsLeft(t *testing.T) {
	t.Parallel()
	r, d, addr := tcpRig(t, nil)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.e.Run(ctx) }()
	s := r.open(addr, protocol.EgressOpen{})
	d.next(t)
	s.Close()
	r.settled()
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if len(r.store.sums) == 0 {
		t.Error("nothing was stored")
	}
}

// TestTenThousandCallsAreCutWithinASecond has the register full, without streams.
func TestTenThousandCallsAreCutWithinASecond(t *testing.T) {
	p := policy.Policy{Mode: policy.Open}
	r := newRig(t, p, rigOptions{noop: true})
	const n = 10000
	calls := make([]*call, n)
	for i := range calls {
		c := r.e.begin("shop", fmt.Sprintf("web.%d", i%50), policy.Tunnel, protocol.Flow{})
		target, _ := policy.ParseTunnel(fmt.Sprintf("h%d.test:443", i%100))
		if refused := c.judge(context.Background(), policy.Call{Target: target}, -1); refused != nil {
			t.Fatal(refused)
		}
		c.dialed(netip.MustParseAddrPort("93.184.216.34:443"))
		c.onCut(func() {})
		calls[i] = c
	}
	start := time.Now()
	if cut := r.e.Cut(); cut != 0 {
		t.Errorf("%d were cut without a reason", cut)
	}
	r.set("shop", emergencyDeny(p, policy.Deny{Range: netip.MustParsePrefix("93.184.216.0/24")}))
	if cut := r.e.Cut(); cut != n {
		t.Errorf("%d were cut", cut)
	}
	t.Logf("looked at %d twice in %v", n, time.Since(start))
	if took := time.Since(start); took > time.Second && !raceEnabled {
		t.Errorf("it took %v", took)
	}
	for _, c := range calls {
		c.finish(nil)
	}
}
