package egress

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/policy"
)

// tcpRig has a TCP destination that db.test leads to.
func tcpRig(t *testing.T, change func(p *policy.Policy)) (*rig, *destination, string) {
	t.Helper()
	d := listen(t)
	p := policy.Policy{Allow: []policy.Rule{rule(policy.TCP, "db.test", d.port)}, Holes: hole(d.port)}
	if change != nil {
		change(&p)
	}
	r := newRig(t, p, rigOptions{})
	r.names.put("db.test", "127.0.0.1")
	r.names.put("api.test", "127.0.0.1")
	return r, d, policy.Target{Host: "db.test", Port: d.port}.HostPort()
}

// tlsRig has a destination that must be spoken to in TLS.
func tlsRig(t *testing.T) (*rig, *destination, string) {
	t.Helper()
	r, d, _ := tcpRig(t, func(p *policy.Policy) {
		p.Allow = []policy.Rule{rule(policy.HTTPS, "api.test", p.Allow[0].Port)}
	})
	return r, d, policy.Target{Host: "api.test", Port: d.port}.HostPort()
}

func TestBytesBehindTheOpenAreNotLost(t *testing.T) {
	t.Parallel()
	r, d, addr := tcpRig(t, nil)
	s := r.open(addr, protocol.EgressOpen{Early: true})
	send(t, s, []byte("early"))
	conn := d.next(t)
	expect(t, conn, "early")
	send(t, conn, []byte("answer"))
	expect(t, s, "answer")
	s.CloseWrite()
	expectNothing(t, conn)
	conn.Close()
	expectNothing(t, s)
	f := r.lastFlow()
	if f.Up != 5 || f.Down != 6 || f.Verdict != allowed || !f.Ended || f.Cause != "" {
		t.Errorf("the last line is %+v", f)
	}
	if want := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), d.port).String(); f.Dialed != want {
		t.Errorf("dialed %q, expected %q", f.Dialed, want)
	}
}

func TestHalfCloseGoesBothWays(t *testing.T) {
	t.Parallel()
	r, d, addr := tcpRig(t, nil)
	t.Run("the app ends first", func(t *testing.T) {
		s := r.open(addr, protocol.EgressOpen{})
		conn := d.next(t)
		send(t, s, []byte("question"))
		s.CloseWrite()
		expect(t, conn, "question")
		expectNothing(t, conn)
		send(t, conn, bytes.Repeat([]byte("x"), 300<<10))
		conn.Close()
		if data, err := io.ReadAll(s); err != nil || len(data) != 300<<10 {
			t.Errorf("read %d bytes, %v", len(data), err)
		}
	})
	t.Run("the destination ends first", func(t *testing.T) {
		s := r.open(addr, protocol.EgressOpen{})
		conn := d.next(t)
		send(t, conn, []byte("hello"))
		conn.(*net.TCPConn).CloseWrite()
		if data, err := io.ReadAll(s); err != nil || string(data) != "hello" {
			t.Fatalf("read %q, %v", data, err)
		}
		go func() {
			s.Write(bytes.Repeat([]byte("y"), 300<<10))
			s.CloseWrite()
		}()
		if data, err := io.ReadAll(conn); err != nil || len(data) != 300<<10 {
			t.Errorf("the destination read %d bytes, %v", len(data), err)
		}
	})
}

func TestTheReplyTellsTheTruthAboutTheDial(t *testing.T) {
	t.Parallel()
	r, d, addr := tcpRig(t, nil)
	d.Close()
	s := r.open(addr, protocol.EgressOpen{})
	got := refusal(t, s)
	if got == nil || got.Cause != policy.Refused || got.Flow == "" || got.Status() != 502 {
		t.Fatalf("the reply is %+v", got)
	}
	f := r.lastFlow()
	if f.Verdict != allowed || f.Cause != string(policy.Refused) || f.ID != got.Flow {
		t.Errorf("the last line is %+v", f)
	}
}

func TestRefusalsComeBeforeAnyLookup(t *testing.T) {
	t.Parallel()
	r, _, addr := tcpRig(t, func(p *policy.Policy) {
		p.Deny = []policy.Deny{{Where: "egress.deny.hosts[0]", Host: "evil.test"}}
	})
	_, port, _ := strings.Cut(addr, ":")
	for _, c := range []struct {
		addr  string
		cause policy.Cause
		helps bool
	}{
		{"evil.test:443", policy.Denied, false},
		{"other.test:443", policy.Denied, true},
		{"api.test:" + port, policy.Denied, true},
		{"localhost:" + port, policy.Denied, false},
		{"db.test", policy.BadTarget, false},
		{"user@db.test:" + port, policy.BadTarget, false},
		{"2130706433:" + port, policy.BadTarget, false},
		{"10.0.0.1:443", policy.Prohibited, true},
	} {
		start := time.Now()
		got := refusal(t, r.open(c.addr, protocol.EgressOpen{Early: true}))
		if got == nil || got.Cause != c.cause || got.Suggestion != "" != c.helps {
			t.Errorf("%s: the reply is %+v, expected %s", c.addr, got, c.cause)
		}
		if took := time.Since(start); took > 100*time.Millisecond {
			t.Errorf("%s: the refusal took %v", c.addr, took)
		}
	}
	if asked := r.names.asked(); len(asked) > 0 {
		t.Errorf("looked up: %v", asked)
	}
	r.settled()
	for _, f := range r.log.flows(t) {
		if !f.Ended || f.Verdict != denied || strings.Contains(f.Target, "user") {
			t.Errorf("a refused call has the line %+v", f)
		}
	}
}

func TestTheRelaysOwnAddressIsALoop(t *testing.T) {
	t.Parallel()
	r, _, addr := tcpRig(t, func(p *policy.Policy) {
		p.Own = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	})
	got := refusal(t, r.open(addr, protocol.EgressOpen{}))
	if got == nil || got.Cause != policy.Loop || got.Status() != 508 {
		t.Fatalf("the reply is %+v", got)
	}
	if f := r.lastFlow(); f.Verdict != denied || f.Cause != string(policy.Loop) {
		t.Errorf("the last line is %+v", f)
	}
}

func TestAFailedDialDoesNotWaitForTheHello(t *testing.T) {
	t.Parallel()
	r, d, addr := tlsRig(t)
	d.Close()
	start := time.Now()
	if got := refusal(t, r.open(addr, protocol.EgressOpen{Early: true})); got == nil || got.Cause != policy.Refused {
		t.Errorf("the reply is %+v", got)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestATLSHelloPasses(t *testing.T) {
	t.Parallel()
	r, d, addr := tlsRig(t)
	for _, early := range []bool{true, false} {
		hello := clientHello(t, "api.test")
		s := r.open(addr, protocol.EgressOpen{Early: early})
		if !early {
			if got := refusal(t, s); got != nil {
				t.Fatalf("refused: %v", got)
			}
		}
		send(t, s, hello)
		conn := d.next(t)
		expect(t, conn, string(hello))
		send(t, conn, []byte("answer"))
		expect(t, s, "answer")
		s.Close()
		expectNothing(t, conn)
		if f := r.lastFlow(); f.SNI != "api.test" || f.Verdict != allowed {
			t.Errorf("early %v: the last line is %+v", early, f)
		}
	}
}

// TestNotOneByteOfAWrongHelloReachesTheDestination is the promise of the gate.
func TestNotOneByteOfAWrongHelloReachesTheDestination(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		first []byte
		cause policy.Cause
	}{
		"another name":       {clientHello(t, "evil.test"), policy.SNIMismatch},
		"no name":            {clientHello(t, ""), policy.SNIMismatch},
		"SSH":                {[]byte("SSH-2.0-OpenSSH_9.9\r\n"), policy.NotTLS},
		"plain HTTP":         {[]byte("GET / HTTP/1.1\r\nHost: api.test\r\n\r\n"), policy.NotTLS},
		"half a hello, then": {clientHello(t, "api.test")[:200], policy.NotTLS},
	} {
		for _, early := range []bool{true, false} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				r, d, addr := tlsRig(t)
				s := r.open(addr, protocol.EgressOpen{Early: early})
				if !early {
					if got := refusal(t, s); got != nil {
						t.Fatalf("refused before the hello: %v", got)
					}
				}
				send(t, s, c.first)
				s.CloseWrite()
				if _, err := io.Copy(io.Discard, s); protocol.CodeOf(err) != protocol.CodeForbidden {
					t.Errorf("the tunnel ended with %v", err)
				}
				s.Close()
				f := r.lastFlow()
				if f.Cause != string(c.cause) || f.Verdict != denied || f.Up != 0 {
					t.Errorf("the last line is %+v", f)
				}
				d.Close()
				select {
				case conn := <-d.conns:
					conn.SetDeadline(time.Now().Add(5 * time.Second))
					expectNothing(t, conn)
					conn.Close()
				default:
				}
			})
		}
	}
}

func TestASlowHelloEndsAfterTenSeconds(t *testing.T) {
	for _, early := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			theirs := make(chan net.Conn, 1)
			r := newRig(t, policy.Policy{Allow: []policy.Rule{rule(policy.HTTPS, "api.test", 443)}}, rigOptions{
				dial: func(context.Context, netip.AddrPort) (net.Conn, error) {
					ours, other := net.Pipe()
					theirs <- other
					return ours, nil
				},
			})
			r.names.put("api.test", "93.184.216.34")
			s := r.open("api.test:443", protocol.EgressOpen{Early: early})
			s.SetDeadline(time.Time{})
			send(t, s, clientHello(t, "api.test")[:200])
			start := time.Now()
			_, err := io.Copy(io.Discard, s)
			if protocol.CodeOf(err) != protocol.CodeForbidden {
				t.Errorf("the tunnel ended with %v", err)
			}
			if took := time.Since(start); took < 9*time.Second || took > 11*time.Second {
				t.Errorf("it ended after %v", took)
			}
			s.Close()
			expectNothing(t, <-theirs)
		})
	}
}

func TestOpenModeLetsTheServerSpeakFirst(t *testing.T) {
	t.Parallel()
	r, d, addr := tcpRig(t, func(p *policy.Policy) {
		p.Mode, p.Allow = policy.Open, nil
		p.Deny = []policy.Deny{{Where: "apps.shop.egress.deny[0]", Host: "evil.test"}}
	})
	s := r.open(addr, protocol.EgressOpen{})
	conn := d.next(t)
	send(t, conn, []byte("220 mail.test\r\n"))
	expect(t, s, "220 mail.test\r\n")
	send(t, s, []byte("EHLO app\r\n"))
	expect(t, conn, "EHLO app\r\n")
	s.Close()
	expectNothing(t, conn)

	s = r.open(addr, protocol.EgressOpen{})
	conn = d.next(t)
	send(t, s, clientHello(t, "evil.test"))
	if _, err := io.Copy(io.Discard, s); protocol.CodeOf(err) != protocol.CodeForbidden {
		t.Errorf("a denied name in the hello ended with %v", err)
	}
	expectNothing(t, conn)
}

func TestReportModeSaysWhatEnforceWouldRefuse(t *testing.T) {
	t.Parallel()
	r, d, addr := tcpRig(t, func(p *policy.Policy) { p.Mode, p.Allow = policy.Report, nil })
	s := r.open(addr, protocol.EgressOpen{})
	conn := d.next(t)
	send(t, s, []byte("x"))
	expect(t, conn, "x")
	s.Close()
	if f := r.lastFlow(); f.Verdict != reported {
		t.Errorf("the last line is %+v", f)
	}
}

func TestAHalfClosedTunnelThatIsSilentEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		theirs := make(chan net.Conn, 1)
		r := newRig(t, policy.Policy{Allow: []policy.Rule{rule(policy.TCP, "db.test", 5432)}}, rigOptions{
			dial: func(context.Context, netip.AddrPort) (net.Conn, error) {
				ours, other := net.Pipe()
				theirs <- other
				return halfPipe{ours}, nil
			},
		})
		r.names.put("db.test", "93.184.216.36")
		s := r.open("db.test:5432", protocol.EgressOpen{})
		s.SetDeadline(time.Time{})
		conn := <-theirs
		s.CloseWrite()
		// It moves once in a while, and goes on.
		for range 5 {
			time.Sleep(40 * time.Second)
			send(t, conn, []byte("x"))
			expect(t, s, "x")
		}
		start := time.Now()
		if _, err := s.Read(make([]byte, 1)); err == nil {
			t.Error("read something")
		}
		if took := time.Since(start); took < 50*time.Second || took > 2*time.Minute {
			t.Errorf("it ended after %v of silence", took)
		}
		if f := r.lastFlow(); f.Cause != string(policy.Cut) || f.Down != 5 {
			t.Errorf("the last line is %+v", f)
		}
	})
}

// halfPipe is a pipe whose CloseWrite ends nothing.
type halfPipe struct{ net.Conn }

func (halfPipe) CloseWrite() error { return nil }

func TestAnAppThatLeavesCutsTheDestination(t *testing.T) {
	t.Parallel()
	r, d, addr := tcpRig(t, nil)
	s := r.open(addr, protocol.EgressOpen{})
	conn := d.next(t)
	send(t, conn, []byte("x"))
	expect(t, s, "x")
	s.Close()
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the destination sees %v, expected a reset", err)
	}
}

// TestAnAppThatLeavesAfterItsEndIsNoticed has nobody reading from the stream any more,
// and a destination that is silent.
func TestAnAppThatLeavesAfterItsEndIsNoticed(t *testing.T) {
	t.Parallel()
	r, d, addr := tcpRig(t, nil)
	s := r.open(addr, protocol.EgressOpen{})
	conn := d.next(t)
	send(t, s, []byte("x"))
	s.CloseWrite()
	expect(t, conn, "x")
	expectNothing(t, conn)
	s.Close()
	r.settled()
	if _, err := conn.Write([]byte("y")); err == nil {
		r.until("the destination is held", func() bool { _, err := conn.Write([]byte("y")); return err != nil })
	}
}

func TestADestinationThatBreaksOffResetsTheStream(t *testing.T) {
	t.Parallel()
	r, d, addr := tcpRig(t, nil)
	s := r.open(addr, protocol.EgressOpen{})
	conn := d.next(t)
	if err := s.AwaitReply(t.Context()); err != nil { // before that it is a dial that failed
		t.Fatal(err)
	}
	conn.(*net.TCPConn).SetLinger(0)
	conn.Close()
	if _, err := s.Read(make([]byte, 1)); protocol.CodeOf(err) != protocol.CodeReset {
		t.Errorf("the app sees %v, expected a reset", err)
	}
	s.Close()
	if f := r.lastFlow(); f.Cause != string(policy.Cut) || f.Verdict != allowed {
		t.Errorf("the last line is %+v", f)
	}
}

func TestARealTLSHandshakeThroughATunnel(t *testing.T) {
	t.Parallel()
	r, d, addr := tlsRig(t)
	server, pool := certificate(t, "api.test")
	go func() {
		conn := tls.Server(<-d.conns, &tls.Config{Certificates: []tls.Certificate{server}})
		io.Copy(conn, conn)
		conn.Close()
	}()
	s := r.open(addr, protocol.EgressOpen{Early: true})
	conn := tls.Client(s, &tls.Config{ServerName: "api.test", RootCAs: pool})
	big := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	go func() {
		conn.Write(big)
		conn.CloseWrite()
	}()
	if got, err := io.ReadAll(conn); err != nil || !bytes.Equal(got, big) {
		t.Errorf("%d bytes came back of %d, %v", len(got), len(big), err)
	}
	s.Close()
}
