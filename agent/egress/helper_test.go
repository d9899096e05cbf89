package egress

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/outbound"
	"github.com/posternhq/postern/protocol/policy"
	"github.com/posternhq/postern/protocol/protocoltest"
)

// rig is a Proxy, a session, and a relay at its other end that does what the test says.
type rig struct {
	*Proxy
	t     testing.TB
	agent *protocol.Session
	relay *protocol.Session
	log   *logBuffer

	tunnel    func(s *protocol.Stream)                     // serves KindEgress; default: an echo
	web       func(w http.ResponseWriter, r *http.Request) // serves KindEgressHTTP; default: says what it got
	webStream func(s *protocol.Stream)                     // serves KindEgressHTTP by hand; nil: with web

	flows chan protocol.Flow
	opens chan protocol.Open // every Open that the relay saw; dropped when full
	ready chan struct{}

	mu   sync.Mutex
	down bool // guarded by mu; Open fails
}

func (r *rig) setDown(down bool) {
	r.mu.Lock()
	r.down = down
	r.mu.Unlock()
}

func (r *rig) open(ctx context.Context, o protocol.Open) (*protocol.Stream, error) {
	r.mu.Lock()
	down := r.down
	r.mu.Unlock()
	if down {
		return nil, errors.New("no tunnel to the relay is open")
	}
	return r.agent.Open(ctx, o)
}

// newRig starts everything, with p in force when it is not nil.
func newRig(t testing.TB, p *policy.Policy, change ...func(*rig, *Config)) *rig {
	t.Helper()
	r := &rig{
		t: t, log: &logBuffer{}, ready: make(chan struct{}),
		flows: make(chan protocol.Flow, 4096), opens: make(chan protocol.Open, 256),
		tunnel: func(s *protocol.Stream) { s.Accept(); io.Copy(s, s); s.CloseWrite() },
		web: func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s %s host=%s", r.Method, r.RequestURI, r.Host)
		},
	}
	close(r.ready)
	cfg := Config{
		Open: r.open, Ready: r.ready, App: "shop", Instance: "web.1", Version: "test",
		Logger: slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, c := range change {
		c(r, &cfg)
	}
	r.agent, r.relay = protocoltest.Pipe(t, protocoltest.Options{
		Relay: protocol.Config{MaxStreams: 20000},
	})
	proxy, err := Listen(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.Proxy = proxy
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { proxy.Run(ctx) })
	running.Go(func() {
		r.agent.Run(ctx, protocol.Handler{Stream: func(ctx context.Context, s *protocol.Stream) { proxy.ServePolicy(ctx, s) }})
	})
	running.Go(func() { r.relay.Run(ctx, protocol.Handler{Stream: r.serve}) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	if p != nil {
		if ack := r.push(p); ack.Error != "" {
			t.Fatalf("policy: %s", ack.Error)
		}
	}
	return r
}

// newRigB is newRig for benchmarks: nothing is logged.
func newRigB(b *testing.B, change ...func(*rig, *Config)) *rig {
	return newRig(b, testPolicy(7), append(change, func(_ *rig, c *Config) { c.Logger = nil })...)
}

func (r *rig) serve(ctx context.Context, s *protocol.Stream) {
	select {
	case r.opens <- s.Open():
	default:
	}
	switch s.Kind() {
	case protocol.KindEgress:
		r.tunnel(s)
	case protocol.KindEgressHTTP:
		if r.webStream != nil {
			r.webStream(s)
			return
		}
		s.Accept()
		serveOne(s, http.HandlerFunc(r.web))
	case protocol.KindFlows:
		s.Accept()
		for {
			var f protocol.Flow
			if protocol.ReadMessage(s, protocol.MaxFrame, &f) != nil {
				return
			}
			select {
			case r.flows <- f:
			case <-ctx.Done():
				return
			}
		}
	default:
		s.Refuse(protocol.CodeUnsupported, "not here")
	}
}

// serveOne serves HTTP on one stream until it ends.
func serveOne(s *protocol.Stream, h http.Handler) {
	l := &oneListener{conn: make(chan net.Conn, 1), done: make(chan struct{})}
	l.conn <- &closeNotice{s, l}
	http.Serve(l, h)
}

type oneListener struct {
	conn chan net.Conn
	done chan struct{}
	once sync.Once
}

func (l *oneListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *oneListener) Close() error   { return nil }
func (l *oneListener) Addr() net.Addr { return &net.TCPAddr{} }

type closeNotice struct {
	*protocol.Stream
	l *oneListener
}

func (c *closeNotice) Close() error {
	c.l.once.Do(func() { close(c.l.done) })
	return c.Stream.Close()
}

// push sends a policy to the agent and returns what it says.
func (r *rig) push(p any) protocol.PolicyAck {
	r.t.Helper()
	s, err := r.relay.Open(context.Background(), protocol.Open{Kind: protocol.KindPolicy})
	if err != nil {
		r.t.Fatal(err)
	}
	defer s.Close()
	if err := protocol.WriteMessage(s, p); err != nil {
		r.t.Fatal(err)
	}
	return readAck(r.t, s)
}

func readAck(t testing.TB, s *protocol.Stream) (ack protocol.PolicyAck) {
	t.Helper()
	s.SetReadDeadline(time.Now().Add(10 * time.Second))
	if err := protocol.ReadMessage(s, protocol.MaxFrame, &ack); err != nil {
		t.Fatal(err)
	}
	return ack
}

// flow returns the next record that the relay got.
func (r *rig) flow() protocol.Flow {
	r.t.Helper()
	select {
	case f := <-r.flows:
		return f
	case <-time.After(10 * time.Second):
		r.t.Fatal("no record came")
		panic("unreachable")
	}
}

// next returns the next Open of a kind that the relay saw.
func (r *rig) next(kind protocol.Kind) protocol.Open {
	r.t.Helper()
	for {
		select {
		case o := <-r.opens:
			if o.Kind == kind {
				return o
			}
		case <-time.After(10 * time.Second):
			r.t.Fatalf("no stream of kind %s came", kind)
		}
	}
}

// dial connects to the proxy.
func (r *rig) dial() *client { return dialTo(r.t, r.Addr()) }

type client struct {
	*net.TCPConn
	t  testing.TB
	br *bufio.Reader
}

func dialTo(t testing.TB, to netip.AddrPort) *client {
	t.Helper()
	conn, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	return &client{conn, t, bufio.NewReader(conn)}
}

func (c *client) send(s string) *client {
	c.t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		c.t.Fatal(err)
	}
	return c
}

// expect reads exactly s.
func (c *client) expect(s string) {
	c.t.Helper()
	got := make([]byte, len(s))
	n, err := io.ReadFull(c.br, got)
	if err != nil || string(got) != s {
		c.t.Fatalf("got %q, %v; expected %q", got[:n], err, s)
	}
}

// established reads the answer to a CONNECT that works.
func (c *client) established() *client {
	c.t.Helper()
	c.expect(string(established))
	return c
}

// answer reads an HTTP answer and its body.
func (c *client) answer(method string) (*http.Response, string) {
	c.t.Helper()
	resp, err := http.ReadResponse(c.br, &http.Request{Method: method})
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return resp, string(body)
}

// ended reads to the end and says how it was: "end" or "reset".
func (c *client) ended() string {
	_, err := io.Copy(io.Discard, c.br)
	switch {
	case err == nil:
		return "end"
	case strings.Contains(err.Error(), "reset"):
		return "reset"
	}
	return err.Error()
}

// errorOf is what a JSON answer says.
type errorOf struct {
	Error struct {
		Code, Message, Rule, Suggestion string
		FlowID                          string `json:"flow_id"`
	}
}

func decodeError(t *testing.T, body string) errorOf {
	t.Helper()
	var e errorOf
	if err := json.Unmarshal([]byte(body), &e); err != nil {
		t.Fatalf("answer is not JSON: %v\n%s", err, body)
	}
	return e
}

// logBuffer is a log that can be read while it is written.
type logBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// eventually waits until ok, for ten seconds at most.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for limit := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("did not happen: %s", what)
		}
	}
}

// fixed is a resolver with one answer.
type fixed map[string]netip.Addr

func (f fixed) Lookup(_ context.Context, name string) (outbound.Answer, error) {
	if a, ok := f[name]; ok {
		return outbound.Answer{Addrs: []netip.Addr{a}, TTL: time.Minute}, nil
	}
	return outbound.Answer{}, &outbound.LookupError{Name: name, NotFound: true}
}

var loopback = netip.MustParseAddr("127.0.0.1")

// testPolicy lets what the tests call through. Names that go direct are at loopback, on
// the ports of holes.
func testPolicy(serial int64, holes ...uint16) *policy.Policy {
	allow := func(i int, r policy.Rule) policy.Rule {
		r.Where = fmt.Sprintf("apps.shop.egress.allow[%d]", i)
		return r
	}
	p := &policy.Policy{
		App: "shop", Version: 3, Serial: serial, Declared: true, Mode: policy.Enforce, SNI: policy.SNIMatch,
		Allow: []policy.Rule{
			allow(0, policy.Rule{Scheme: policy.HTTPS, Host: "api.allowed.test", Port: 443}),
			allow(1, policy.Rule{Scheme: policy.TCP, Host: "wait.allowed.test", Port: 443, Wait: true}),
			allow(2, policy.Rule{Scheme: policy.TCP, Host: "db.allowed.test", Port: 5432}),
			allow(3, policy.Rule{Scheme: policy.HTTP, Host: "plain.allowed.test", Port: 80}),
		},
	}
	for i, port := range holes {
		p.Holes = append(p.Holes, policy.Hole{Where: "egress.allow_ranges[0]", Range: netip.PrefixFrom(loopback, 32), Ports: []uint16{port}})
		for j, r := range []policy.Rule{
			{Scheme: policy.TCP, Host: "direct.allowed.test", Via: "direct"},
			{Scheme: policy.HTTPS, Host: "tls.allowed.test", Via: "direct"},
			{Scheme: policy.HTTP, Host: "web.allowed.test", Via: "direct"},
			{Scheme: policy.TCP, Host: "onloss.allowed.test", OnRelayLoss: "direct"},
			{Scheme: policy.HTTP, Host: "webloss.allowed.test", OnRelayLoss: "direct"},
		} {
			r.Port = port
			p.Allow = append(p.Allow, allow(4+5*i+j, r))
		}
	}
	return p
}

// directly has names that the agent looks up itself lead to loopback.
func directly(r *Proxy) {
	r.dialer.Resolver = fixed{"direct.allowed.test": loopback, "tls.allowed.test": loopback, "web.allowed.test": loopback,
		"onloss.allowed.test": loopback, "webloss.allowed.test": loopback}
}
