package egress

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/outbound"
	"github.com/posternhq/postern/protocol/policy"
	"github.com/posternhq/postern/protocol/protocoltest"
	"github.com/posternhq/postern/relay"
)

const pseudonym = "relay.example"

// rig is an Egress behind a real session, with a resolver and destinations of the
// test's own.
type rig struct {
	t     testing.TB
	e     *Egress
	agent *protocol.Session
	names *names
	store *memory
	log   *lines

	policies sync.Map // relay.AppID → *policy.Compiled
}

type rigOptions struct {
	cfg  Config
	pipe protocoltest.Options
	app  relay.AppID // default shop
	// dial replaces the dialer's connections.
	dial func(context.Context, netip.AddrPort) (net.Conn, error)
	noop bool // without a session
}

// newRig makes one whose app shop has p. p.App, Declared and Mode have defaults.
func newRig(t testing.TB, p policy.Policy, o rigOptions) *rig {
	t.Helper()
	r := &rig{t: t, names: &names{addrs: map[string][]netip.Addr{}}, store: &memory{}, log: &lines{}}
	if o.app == "" {
		o.app = "shop"
	}
	r.set(o.app, p)
	cfg := o.cfg
	cfg.Policy = func(app relay.AppID, _ string) *policy.Compiled {
		if p, ok := r.policies.Load(app); ok {
			return p.(*policy.Compiled)
		}
		return policy.Compile(&policy.Policy{App: string(app)})
	}
	cfg.Dialer = &outbound.Dialer{Resolver: r.names, DialAddr: o.dial, Timeout: 5 * time.Second}
	cfg.Team = func(relay.AppID) string { return "payments" }
	cfg.Pseudonym = pseudonym
	if cfg.Store == nil {
		cfg.Store = r.store
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.NewJSONHandler(r.log, nil))
	}
	r.e = New(cfg)
	if !o.noop {
		r.agent = r.connect(o.app, o.pipe)
	}
	return r
}

// connect opens one more session, of app.
func (r *rig) connect(app relay.AppID, o protocoltest.Options) *protocol.Session {
	r.t.Helper()
	agent, node := protocoltest.Pipe(r.t, o)
	var wg sync.WaitGroup
	wg.Go(func() { agent.Run(context.Background(), protocol.Handler{}) })
	wg.Go(func() {
		node.Run(context.Background(), protocol.Handler{Stream: func(ctx context.Context, s *protocol.Stream) {
			switch s.Kind() {
			case protocol.KindEgress:
				r.e.ServeTunnel(ctx, app, "web.1", s)
			case protocol.KindEgressHTTP:
				r.e.ServeHTTP(ctx, app, "web.1", s)
			case protocol.KindFlows:
				r.e.TakeFlows(ctx, app, "web.1", s)
			}
		}})
	})
	r.t.Cleanup(func() {
		agent.Close(protocol.CodeShutdown, "test over")
		node.Close(protocol.CodeShutdown, "test over")
		wg.Wait()
		if started, logged, inFlight := r.e.Counts(); started != logged || inFlight != 0 {
			r.t.Errorf("at the end %d calls were started, %d logged, %d in flight", started, logged, inFlight)
		}
	})
	return agent
}

// set puts a policy of app in force.
func (r *rig) set(app relay.AppID, p policy.Policy) {
	p.App, p.Declared = string(app), true
	if p.Mode == "" {
		p.Mode = policy.Enforce
	}
	if p.Version == 0 {
		p.Version = 7
	}
	p.Serial = serial.Add(1)
	for i := range p.Allow {
		if p.Allow[i].Where == "" {
			p.Allow[i].Where = "apps." + string(app) + ".egress.allow[" + string(rune('0'+i)) + "]"
		}
	}
	r.policies.Store(app, policy.Compile(&p))
}

var serial atomic.Int64

// open starts a tunnel to addr.
func (r *rig) open(addr string, how protocol.EgressOpen) *protocol.Stream {
	r.t.Helper()
	s, err := r.agent.Open(context.Background(), protocol.Open{Kind: protocol.KindEgress, Addr: addr, Egress: &how})
	if err != nil {
		r.t.Fatal(err)
	}
	s.SetDeadline(time.Now().Add(20 * time.Second))
	return s
}

// refusal is the policy.Refusal in a Reply; nil: accepted.
func refusal(t testing.TB, s *protocol.Stream) *policy.Refusal {
	t.Helper()
	err := s.AwaitReply(context.Background())
	if err == nil {
		return nil
	}
	var e *protocol.Error
	var r policy.Refusal
	if !errors.As(err, &e) || json.Unmarshal(e.Detail, &r) != nil {
		t.Fatalf("the reply is %v, without a refusal", err)
	}
	s.Close()
	return &r
}

// hole lets the rules about addresses pass loopback with the port.
func hole(ports ...uint16) []policy.Hole {
	return []policy.Hole{{Where: "egress.allow_ranges[0]", Range: netip.MustParsePrefix("127.0.0.0/8"), Ports: ports}}
}

// rule reads scheme://host:port.
func rule(scheme policy.Scheme, host string, port uint16) policy.Rule {
	return policy.Rule{Scheme: scheme, Host: host, Port: port}
}

// names is a resolver.
type names struct {
	mu      sync.Mutex
	addrs   map[string][]netip.Addr
	lookups []string
}

func (n *names) put(name string, addrs ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, a := range addrs {
		n.addrs[name] = append(n.addrs[name], netip.MustParseAddr(a))
	}
}

func (n *names) Lookup(_ context.Context, name string) (outbound.Answer, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lookups = append(n.lookups, name)
	if addrs := n.addrs[name]; len(addrs) > 0 {
		return outbound.Answer{Addrs: addrs, TTL: time.Minute}, nil
	}
	return outbound.Answer{}, &outbound.LookupError{Name: name, NotFound: true}
}

func (n *names) asked() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.lookups)
}

// destination is a TCP listener on loopback.
type destination struct {
	net.Listener
	port  uint16
	conns chan net.Conn
}

func listen(t testing.TB) *destination {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &destination{Listener: l, port: uint16(l.Addr().(*net.TCPAddr).Port), conns: make(chan net.Conn, 4096)}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			d.conns <- c
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
		for {
			select {
			case c := <-d.conns:
				c.Close()
			default:
				return
			}
		}
	})
	return d
}

// next is the next connection.
func (d *destination) next(t testing.TB) net.Conn {
	t.Helper()
	select {
	case c := <-d.conns:
		c.SetDeadline(time.Now().Add(20 * time.Second))
		t.Cleanup(func() { c.Close() })
		return c
	case <-time.After(10 * time.Second):
		t.Fatal("nobody connected")
		return nil
	}
}

// memory is a Store.
type memory struct {
	mu      sync.Mutex
	sums    []relay.FlowSum
	targets []relay.EgressTarget
	broken  bool
}

var errBroken = errors.New("the disk is full")

func (m *memory) AddFlows(_ context.Context, sums []relay.FlowSum) (fresh []relay.EgressTarget, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.broken {
		return nil, errBroken
	}
	m.sums = append(m.sums, sums...)
	for _, s := range sums {
		if s.Verdict == denied || slices.ContainsFunc(m.targets, func(t relay.EgressTarget) bool { return t.App == s.App && t.Target == s.Target }) {
			continue
		}
		t := relay.EgressTarget{App: s.App, Target: s.Target, First: s.First, Last: s.Last}
		m.targets = append(m.targets, t)
		fresh = append(fresh, t)
	}
	return fresh, nil
}

func (m *memory) ExpireFlows(context.Context, time.Time, int) (int, error) { return 0, nil }

func (m *memory) Flows(_ context.Context, f relay.FlowFilter) ([]relay.FlowSum, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.sums), nil
}

func (m *memory) EgressTargets(_ context.Context, app relay.AppID) ([]relay.EgressTarget, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.broken {
		return nil, errBroken
	}
	return slices.Clone(m.targets), nil
}

// lines is a log, as JSON.
type lines struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(p)
}

// flows are the lines of calls.
func (l *lines) flows(t testing.TB) []protocol.Flow {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	var flows []protocol.Flow
	for line := range bytes.Lines(l.all.Bytes()) {
		var got struct {
			Msg string `json:"msg"`
			protocol.Flow
		}
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		if got.Msg == "egress" {
			flows = append(flows, got.Flow)
		}
	}
	return flows
}

// settled waits until no call is in flight.
func (r *rig) settled() {
	r.t.Helper()
	r.until("calls are in flight", func() bool { _, _, n := r.e.Counts(); return n == 0 })
}

// until polls, with a deadline.
func (r *rig) until(what string, done func() bool) {
	r.t.Helper()
	for start := time.Now(); !done(); time.Sleep(time.Millisecond) {
		if time.Since(start) > 10*time.Second {
			r.t.Fatal("still: " + what)
		}
	}
}

// lastFlow is the last line of the log about a call.
func (r *rig) lastFlow() protocol.Flow {
	r.t.Helper()
	r.settled()
	flows := r.log.flows(r.t)
	if len(flows) == 0 {
		r.t.Fatal("no line in the log")
	}
	return flows[len(flows)-1]
}

// clientHello is a real one for the name.
func clientHello(t testing.TB, name string) []byte {
	t.Helper()
	ours, theirs := net.Pipe()
	defer ours.Close()
	go func() {
		tls.Client(theirs, &tls.Config{ServerName: name, InsecureSkipVerify: name == ""}).Handshake()
		theirs.Close()
	}()
	head := make([]byte, 5)
	if _, err := io.ReadFull(ours, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, int(head[3])<<8|int(head[4]))
	if _, err := io.ReadFull(ours, body); err != nil {
		t.Fatal(err)
	}
	return append(head, body...)
}

// send writes and fails the test if that fails.
func send(t testing.TB, w io.Writer, data []byte) {
	t.Helper()
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
}

// expect reads exactly want.
func expect(t testing.TB, r io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(r, got); err != nil || string(got) != want {
		t.Fatalf("read %q, %v; expected %q", got[:n], err, want)
	}
}

// expectNothing reads until the end, of whatever kind, and fails if anything came.
func expectNothing(t testing.TB, r io.Reader) {
	t.Helper()
	if data, _ := io.ReadAll(r); len(data) > 0 {
		t.Fatalf("%d bytes came: %.40q", len(data), data)
	}
}

// dialOnly leads what is dialed at one address to another one.
func dialOnly(t testing.TB, from, to string) func(context.Context, netip.AddrPort) (net.Conn, error) {
	return func(ctx context.Context, a netip.AddrPort) (net.Conn, error) {
		if a.String() != from {
			t.Errorf("dialed %v, expected %v", a, from)
		}
		var d net.Dialer
		return d.DialContext(ctx, "tcp", to)
	}
}
