package outbound

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/posternhq/postern/protocol/policy"
)

// network is what DialAddr reaches in a test: addresses that answer, each after its
// time, and nothing else.
type network struct {
	answers map[string]answer // by address

	mu     sync.Mutex
	dialed []string // guarded by mu; in order
	open   int      // guarded by mu; connections that were made and not closed
}

type answer struct {
	after time.Duration
	err   error // nil: a connection
	deaf  bool  // it comes although the caller has given up meanwhile
}

func (n *network) dial(ctx context.Context, a netip.AddrPort) (net.Conn, error) {
	n.mu.Lock()
	n.dialed = append(n.dialed, a.String())
	n.mu.Unlock()
	comes, ok := n.answers[a.Addr().String()]
	if !ok {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	giveUp := ctx.Done()
	if comes.deaf {
		giveUp = nil
	}
	select {
	case <-time.After(comes.after):
	case <-giveUp:
		return nil, ctx.Err()
	}
	if comes.err != nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(a), Err: os.NewSyscallError("connect", comes.err)}
	}
	ours, theirs := net.Pipe()
	theirs.Close()
	n.mu.Lock()
	n.open++
	n.mu.Unlock()
	return &counted{Conn: ours, n: n}, nil
}

type counted struct {
	net.Conn
	n    *network
	once sync.Once
}

func (c *counted) Close() error {
	c.once.Do(func() {
		c.n.mu.Lock()
		c.n.open--
		c.n.mu.Unlock()
	})
	return c.Conn.Close()
}

// open lets everything pass but what the rules about addresses refuse.
func open(change ...func(*policy.Policy)) *policy.Compiled {
	p := policy.Policy{App: "shop", Declared: true, Mode: policy.Open}
	for _, f := range change {
		f(&p)
	}
	return policy.Compile(&p)
}

var host = policy.Target{Form: policy.Tunnel, Host: "api.example.com", Port: 443}

const (
	four1, four2, four3 = "93.184.216.34", "93.184.216.35", "93.184.216.36"
	six1, six2, six3    = "2606:2800:220:1::1", "2606:2800:220:1::2", "2606:2800:220:1::3"
)

// refusal is the error of a dial that must fail.
func refusal(t *testing.T, conn *Conn, err error) *policy.Refusal {
	t.Helper()
	var r *policy.Refusal
	if !errors.As(err, &r) {
		t.Fatalf("got connection %v and error %v, expected a *policy.Refusal", conn, err)
	}
	if strings.Contains(r.Message, "<nil>") || strings.Contains(r.Message, "dial tcp") || len(r.Message) < 10 {
		t.Errorf("the app is told %q", r.Message)
	}
	return r
}

func TestOnlyCheckedAddressesAreDialed(t *testing.T) {
	t.Parallel()
	hole := func(p *policy.Policy) {
		p.Holes = []policy.Hole{{Where: "egress.holes[0]", Range: netip.MustParsePrefix("10.1.0.0/16"), Ports: []uint16{443}}}
	}
	own := func(p *policy.Policy) { p.Own = []netip.Addr{netip.MustParseAddr("93.184.216.99")} }
	denied := func(p *policy.Policy) {
		p.Deny = []policy.Deny{{Where: "egress.deny.ranges[0]", Range: netip.MustParsePrefix(four1 + "/32")}}
	}
	emergency := func(p *policy.Policy) {
		p.Emergency = []policy.Deny{{ID: "den_1", Where: "emergency den_1", Range: netip.MustParsePrefix(four1 + "/32")}}
	}
	for _, test := range []struct {
		name   string
		addrs  []string
		change func(*policy.Policy)
		dialed string       // "" when none
		cause  policy.Cause // when none
	}{
		{"a public one", []string{four1}, nil, four1, ""},
		{"the public ones of a mixed answer", []string{"10.0.0.1", four1, "::1", "169.254.169.254"}, nil, four1, ""},
		{"all private", []string{"192.168.0.1", "10.0.0.1"}, nil, "", policy.Prohibited},
		{"metadata behind NAT64", []string{"64:ff9b::a9fe:a9fe"}, nil, "", policy.Prohibited},
		{"unspecified", []string{"::"}, nil, "", policy.Prohibited},
		{"mapped", []string{"::ffff:10.0.0.1"}, nil, "", policy.Prohibited},
		{"the relay", []string{"93.184.216.99"}, own, "", policy.Loop},
		{"the relay among private ones", []string{"10.0.0.1", "93.184.216.99", "10.0.0.2"}, own, "", policy.Loop},
		{"a hole", []string{"10.0.0.1", "10.1.0.1"}, hole, "10.1.0.1", ""},
		{"a denied range", []string{four1, four2}, denied, four2, ""},
		{"nothing but a denied range", []string{four1}, denied, "", policy.Prohibited},
		{"an emergency", []string{"10.0.0.1", four1}, emergency, "", policy.Emergency},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			n := &network{answers: map[string]answer{}}
			for _, a := range test.addrs {
				n.answers[a] = answer{}
			}
			from := &asked{answer: found(time.Minute, test.addrs...)}
			d := &Dialer{Resolver: from, DialAddr: n.dial}
			c := open()
			if test.change != nil {
				c = open(test.change)
			}
			conn, err := d.Dial(t.Context(), c, host)
			if from.count() != 1 {
				t.Errorf("%d lookups, expected 1", from.count())
			}
			if test.dialed == "" {
				r := refusal(t, conn, err)
				if r.Cause != test.cause || len(n.dialed) > 0 {
					t.Errorf("got %s (%s) after dialing %v, expected %s", r.Cause, r, n.dialed, test.cause)
				}
				return
			}
			expected := netip.AddrPortFrom(netip.MustParseAddr(test.dialed), 443)
			if err != nil || conn.Addr != expected || !slices.Equal(n.dialed, []string{expected.String()}) {
				t.Errorf("dialed %v, error %v, expected %v", n.dialed, err, expected)
			}
			conn.Close()
		})
	}
}

// The name's owner answers with a public address at first, for the check, and with
// ours for the dial. There is no second lookup.
func TestRebindingFindsNoSecondLookup(t *testing.T) {
	t.Parallel()
	for _, cached := range []bool{false, true} {
		for _, first := range []string{four1, "127.0.0.1"} {
			synctest.Test(t, func(t *testing.T) {
				n := &network{answers: map[string]answer{four1: {}, four2: {}, "127.0.0.1": {}}}
				next := []string{first, "127.0.0.1", four2}
				from := &asked{}
				from.set(func(context.Context, string) (Answer, error) {
					a := next[0]
					next = next[1:]
					return found(time.Second, a)(nil, "")
				})
				d := &Dialer{Resolver: from, DialAddr: n.dial}
				if cached {
					d.Resolver = NewCache(from, CacheConfig{})
				}
				conn, err := d.Dial(t.Context(), open(), host)
				if from.count() != 1 {
					t.Errorf("%d lookups, expected 1", from.count())
				}
				if first == "127.0.0.1" {
					if r := refusal(t, conn, err); r.Cause != policy.Prohibited || len(n.dialed) > 0 {
						t.Errorf("got %s after dialing %v", r.Cause, n.dialed)
					}
					return
				}
				if err != nil || conn.Addr.Addr().String() != four1 || len(n.dialed) != 1 {
					t.Fatalf("dialed %v, error %v", n.dialed, err)
				}
				conn.Close()
			})
		}
	}
}

func TestCachedAnswersAreCheckedAtEveryDial(t *testing.T) {
	t.Parallel()
	n := &network{answers: map[string]answer{four1: {}, "10.1.0.1": {}}}
	from := &asked{answer: found(time.Minute, four1, "10.1.0.1")}
	d := &Dialer{Resolver: NewCache(from, CacheConfig{}), DialAddr: n.dial}
	deny := func(p *policy.Policy) {
		p.Deny = []policy.Deny{{Where: "egress.deny.ranges[0]", Range: netip.MustParsePrefix("93.0.0.0/8")}}
	}
	hole := func(p *policy.Policy) {
		p.Holes = []policy.Hole{{Where: "egress.holes[0]", Range: netip.MustParsePrefix("10.1.0.0/16"), Ports: []uint16{443}}}
	}
	for _, step := range []struct {
		name   string
		c      *policy.Compiled
		dialed string
	}{
		{"at first", open(), four1},
		{"denied since", open(deny), ""},
		{"another one let through since", open(deny, hole), "10.1.0.1"},
		{"as at first", open(), four1},
	} {
		conn, err := d.Dial(t.Context(), step.c, host)
		if step.dialed == "" {
			refusal(t, conn, err)
			continue
		}
		if err != nil || conn.Addr.Addr().String() != step.dialed {
			t.Errorf("%s: error %v, dialed %v, expected %s", step.name, err, n.dialed, step.dialed)
			continue
		}
		conn.Close()
	}
	if from.count() != 1 {
		t.Errorf("%d lookups, expected 1", from.count())
	}
}

func TestALiteralAddressIsNotLookedUp(t *testing.T) {
	t.Parallel()
	n := &network{answers: map[string]answer{four1: {}}}
	from := &asked{answer: found(time.Minute, four2)}
	d := &Dialer{Resolver: from, DialAddr: n.dial}
	literal := func(a string) policy.Target {
		return policy.Target{Form: policy.Tunnel, Addr: netip.MustParseAddr(a), Port: 443}
	}
	conn, err := d.Dial(t.Context(), open(), literal(four1))
	if err != nil || conn.Addr.String() != four1+":443" || conn.DNS != 0 {
		t.Fatalf("got %+v and error %v", conn, err)
	}
	conn.Close()
	conn, err = d.Dial(t.Context(), open(), literal("169.254.169.254"))
	if r := refusal(t, conn, err); r.Cause != policy.Prohibited {
		t.Errorf("got %s", r.Cause)
	}
	if from.count() != 0 || len(n.dialed) != 1 {
		t.Errorf("%d lookups, dialed %v", from.count(), n.dialed)
	}
}

func TestPhasesAreMeasured(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := &network{answers: map[string]answer{four1: {after: 30 * time.Millisecond}}}
		from := &asked{answer: func(context.Context, string) (Answer, error) {
			time.Sleep(20 * time.Millisecond)
			return found(time.Minute, four1)(nil, "")
		}}
		conn, err := (&Dialer{Resolver: from, DialAddr: n.dial}).Dial(t.Context(), open(), host)
		if err != nil || conn.DNS != 20*time.Millisecond || conn.Dial != 30*time.Millisecond {
			t.Fatalf("got %+v and error %v", conn, err)
		}
		conn.Close()
	})
}

// Why a call did not come through, in words of ours.
func TestFailuresHaveTheirCause(t *testing.T) {
	t.Parallel()
	type answers = map[string]answer
	for _, test := range []struct {
		name    string
		says    func(context.Context, string) (Answer, error) // default: four1
		answers answers
		cause   policy.Cause
		words   string
	}{
		{"no such name", fails(LookupError{NotFound: true}), nil, policy.NoSuchName, "does not exist"},
		{"no address", fails(LookupError{NotFound: true, Err: ErrNoAddress}), nil, policy.NoSuchName, "has no address"},
		{"an empty answer", found(time.Minute), nil, policy.NoSuchName, "has no address"},
		{"servers that fail", fails(LookupError{Err: errors.New("server 10.9.9.9 answered SERVFAIL")}), nil, policy.NoSuchName, "could not answer"},
		{"servers that are silent", fails(LookupError{Timeout: true}), nil, policy.DNSTimeout, "in time"},
		{"a lookup that never ends", func(ctx context.Context, _ string) (Answer, error) {
			<-ctx.Done()
			return Answer{}, ctx.Err()
		}, nil, policy.DNSTimeout, "in time"},
		{"refused", nil, answers{four1: {err: syscall.ECONNREFUSED}}, policy.Refused, "api.example.com:443 refused the connection"},
		{"reset", nil, answers{four1: {err: syscall.ECONNRESET}}, policy.Refused, "refused"},
		{"silent", nil, answers{}, policy.DialTimeout, "did not answer within 10s"},
		{"given up by the system", nil, answers{four1: {err: syscall.ETIMEDOUT}}, policy.DialTimeout, "did not answer"},
		{"no route", nil, answers{four1: {err: syscall.EHOSTUNREACH}}, policy.Unreachable, "cannot be reached: no route to host"},
		{"no network", nil, answers{four1: {err: syscall.ENETUNREACH}}, policy.Unreachable, "network is unreachable"},
		{"a firewall", nil, answers{four1: {err: syscall.EPERM}}, policy.Unreachable, "not permitted"},
		{"no socket left", nil, answers{four1: {err: syscall.EMFILE}}, policy.Unavailable, "too many open files"},
		{"no port left", nil, answers{four1: {err: syscall.EADDRNOTAVAIL}}, policy.Unavailable, "assign"},
		{"no IPv6 here, and refused", found(time.Minute, six1, four1),
			answers{six1: {err: syscall.EADDRNOTAVAIL}, four1: {err: syscall.ECONNREFUSED}}, policy.Refused, "(2 addresses tried)"},
		{"no IPv6 here, and silent", found(time.Minute, six1, four1),
			answers{six1: {err: syscall.ENETUNREACH}}, policy.DialTimeout, "(2 addresses tried)"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				n := &network{answers: test.answers}
				says := test.says
				if says == nil {
					says = found(time.Minute, four1)
				}
				d := &Dialer{Resolver: &asked{answer: says}, DialAddr: n.dial}
				start := time.Now()
				conn, err := d.Dial(t.Context(), open(), host)
				r := refusal(t, conn, err)
				if r.Cause != test.cause || !strings.Contains(r.Message, test.words) || strings.Contains(r.Message, "10.9.9.9") {
					t.Errorf("got %s: %q, expected %s: … %s …", r.Cause, r.Message, test.cause, test.words)
				}
				if took := time.Since(start); took > 10*time.Second {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

func TestADialEndsWithItsContext(t *testing.T) {
	t.Parallel()
	for name, d := range map[string]*Dialer{
		"while it looks up": {
			Resolver: NewCache(&asked{answer: func(ctx context.Context, _ string) (Answer, error) {
				<-ctx.Done()
				return Answer{}, ctx.Err()
			}}, CacheConfig{}),
		},
		"while it dials": {
			Resolver: &asked{answer: found(time.Minute, four1, six1)},
			DialAddr: (&network{}).dial,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				time.AfterFunc(time.Second, cancel)
				start := time.Now()
				conn, err := d.Dial(ctx, open(), host)
				if r := refusal(t, conn, err); r.Cause != policy.Cut || time.Since(start) != time.Second {
					t.Errorf("got %s (%s) after %v", r.Cause, r, time.Since(start))
				}
				if _, err := d.Resolve(ctx, open(), host); d.DialAddr == nil && err == nil {
					t.Error("resolved with a context that has ended")
				}
				time.Sleep(time.Minute) // the flight of the cache
			})
		})
	}
}

// The real thing over loopback, in an http.Transport.
func TestDialContextDialsNothingButTheTarget(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Host, r.URL.Path)
	})}
	go server.Serve(listener)
	defer server.Close()
	at := netip.MustParseAddrPort(listener.Addr().String())
	hole := func(p *policy.Policy) {
		p.Holes = []policy.Hole{{Where: "egress.holes[0]", Range: netip.MustParsePrefix("127.0.0.0/8"), Ports: []uint16{at.Port()}}}
	}
	c := open(hole)
	target := policy.Target{Form: policy.Request, Host: "api.example.com", Port: at.Port()}
	if !c.CheckAddr(target, at.Addr(), time.Now()).Allow {
		t.Fatal("the hole does not let loopback through")
	}
	from := &asked{answer: found(time.Minute, "127.0.0.1")}
	d := &Dialer{Resolver: from}
	transport := &http.Transport{DialContext: d.DialContext}
	defer transport.CloseIdleConnections()
	get := func(ctx context.Context, url string) (string, error) {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, "GET", url, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := transport.RoundTrip(req)
		if err != nil {
			return "", err
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		return string(body), err
	}
	url := "http://" + target.HostPort() + "/a"
	for range 2 {
		body, err := get(WithTarget(t.Context(), c, target), url)
		if err != nil || body != target.HostPort()+"/a" {
			t.Errorf("got %q and error %v", body, err)
		}
	}
	if from.count() != 1 {
		t.Errorf("%d lookups, expected one connection for both", from.count())
	}
	transport.CloseIdleConnections()
	if _, err := get(t.Context(), url); !errors.Is(err, errNotJudged) {
		t.Errorf("without a target: error %v", err)
	}
	if _, err := get(WithTarget(t.Context(), c, host), url); !errors.Is(err, errNotJudged) {
		t.Errorf("with another target: error %v", err)
	}
	_, err = get(WithTarget(t.Context(), open(), target), url)
	if r := refusal(t, nil, err); r.Cause != policy.Prohibited {
		t.Errorf("under a policy without the hole: %v", err)
	}
}

// What the kernel itself says about an attempt, and not what a test makes of it.
func TestRealFailuresHaveTheirCause(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort(listener.Addr().String())
	listener.Close()
	c := open(func(p *policy.Policy) {
		p.Holes = []policy.Hole{{Where: "egress.holes[0]", Range: netip.MustParsePrefix("127.0.0.0/8"), Ports: []uint16{at.Port()}}}
	})
	target := policy.Target{Form: policy.Tunnel, Host: "api.example.com", Port: at.Port()}
	d := &Dialer{Resolver: &asked{answer: found(time.Minute, "127.0.0.1", "127.0.0.2")}}
	conn, err := d.Dial(t.Context(), c, target)
	if r := refusal(t, conn, err); r.Cause != policy.Refused {
		t.Errorf("nobody listens: %s %q", r.Cause, r.Message)
	}
	late, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	conn, err = d.Dial(late, c, target)
	if r := refusal(t, conn, err); r.Cause != policy.DialTimeout {
		t.Errorf("too late: %s %q", r.Cause, r.Message)
	}
}

// connected returns a Conn over loopback, and its other end.
func connected(t *testing.T) (*Conn, net.Conn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	tcp, err := dialTCP(t.Context(), netip.MustParseAddrPort(listener.Addr().String()))
	if err != nil {
		t.Fatal(err)
	}
	other, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tcp.Close(); other.Close() })
	return &Conn{Conn: tcp}, other
}

func TestAConnHasWhatTCPHas(t *testing.T) {
	t.Parallel()
	conn, other := connected(t)
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		for name, option := range map[string][2]int{
			"TCP_NODELAY":  {syscall.IPPROTO_TCP, syscall.TCP_NODELAY},
			"SO_KEEPALIVE": {syscall.SOL_SOCKET, syscall.SO_KEEPALIVE},
		} {
			if v, err := syscall.GetsockoptInt(int(fd), option[0], option[1]); err != nil || v == 0 {
				t.Errorf("%s is %d, error %v", name, v, err)
			}
		}
	})
	if n, err := conn.ReadFrom(strings.NewReader("up")); n != 2 || err != nil {
		t.Errorf("wrote %d, error %v", n, err)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Error(err)
	}
	if got, err := io.ReadAll(other); string(got) != "up" || err != nil {
		t.Errorf("the other end got %q, error %v", got, err)
	}
	if _, err := other.Write([]byte("down")); err != nil {
		t.Error(err)
	}
	got := make([]byte, 4)
	if _, err := io.ReadFull(conn, got); string(got) != "down" || err != nil {
		t.Errorf("behind our end: %q, error %v", got, err)
	}
}

func TestAConnCanBeAborted(t *testing.T) {
	t.Parallel()
	conn, other := connected(t)
	if err := conn.SetLinger(0); err != nil {
		t.Error(err)
	}
	conn.Close()
	if _, err := other.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the other end saw %v, expected a reset", err)
	}
}

func BenchmarkDialDecision(b *testing.B) {
	from := NewCache(&asked{answer: found(time.Hour, four1, six1)}, CacheConfig{})
	d := &Dialer{Resolver: from}
	c := open()
	b.Run("lookup and check", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := d.Resolve(b.Context(), c, host); err != nil {
				b.Fatal(err)
			}
		}
	})
	ours, _ := net.Pipe()
	d.DialAddr = func(context.Context, netip.AddrPort) (net.Conn, error) { return ours, nil }
	for _, addrs := range [][]string{{four1}, {four1, six1}} {
		d.Resolver = NewCache(&asked{answer: found(time.Hour, addrs...)}, CacheConfig{})
		b.Run(fmt.Sprintf("dial, %d addresses", len(addrs)), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := d.Dial(b.Context(), c, host); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
