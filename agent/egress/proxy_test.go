package egress

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/policy"
)

func TestOnlyLoopbackIsListenedOn(t *testing.T) {
	for _, addr := range []string{"0.0.0.0:0", "[::]:0", ":0", "192.0.2.1:3128", "example.com:1", "3128"} {
		p, err := Listen(Config{Listen: addr, Ready: make(chan struct{})})
		if err == nil {
			p.Close()
			t.Errorf("%s: listens", addr)
			continue
		}
		if !strings.Contains(err.Error(), "127.0.0.1") {
			t.Errorf("%s: %v does not say what is expected", addr, err)
		}
	}
	for _, addr := range []string{"127.0.0.1:0", "localhost:0", "[::1]:0", ""} {
		p, err := Listen(Config{Listen: addr, Ready: make(chan struct{})})
		if err != nil {
			t.Logf("%s: %v", addr, err) // IPv6 may be off
			continue
		}
		if !p.Addr().Addr().IsLoopback() || p.Addr().Port() == 0 {
			t.Errorf("%s: listens on %v", addr, p.Addr())
		}
		p.Close()
	}
}

func TestAnAllowedConnectIsATunnel(t *testing.T) {
	r := newRig(t, testPolicy(7))
	c := r.dial().send("CONNECT api.allowed.test:443 HTTP/1.1\r\nHost: x\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\n")
	c.established().send("hello").expect("hello")
	o := r.next(protocol.KindEgress)
	e := o.Egress
	if o.Addr != "api.allowed.test:443" || e.Early || e.Serial != 7 || e.From != "connect" || !strings.HasPrefix(e.Flow, "flo_") || len(e.Flow) != 30 ||
		e.Traceparent != "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01" {
		t.Errorf("open %+v %+v", o, e)
	}
	c.CloseWrite()
	if how := c.ended(); how != "end" {
		t.Errorf("half-close came back as %s", how)
	}
}

// Where a tunnel has led lately the app is told before the relay has dialed, until that
// proves wrong; anywhere else it sees what became of the dial.
func TestTheAppIsToldEarlyOfWhatHasGoneWell(t *testing.T) {
	detail, _ := json.Marshal(policy.Refusal{Cause: policy.Refused, Message: "nobody listens there"})
	down := &atomic.Bool{}
	r := newRig(t, testPolicy(7), func(r *rig, _ *Config) {
		carry := r.tunnel
		r.tunnel = func(s *protocol.Stream) {
			if down.Load() {
				s.RefuseWith(protocol.Reply{Code: protocol.CodeRefused, Message: "no", Detail: detail})
				return
			}
			carry(s)
		}
	})
	ask := func(early bool) *client {
		t.Helper()
		c := r.dial().send("CONNECT api.allowed.test:443 HTTP/1.1\r\n\r\n")
		if e := r.next(protocol.KindEgress).Egress; e.Early != early {
			t.Errorf("early %v, expected %v", e.Early, early)
		}
		return c
	}
	truthful := func() {
		t.Helper()
		if resp, body := ask(false).answer("CONNECT"); resp.StatusCode != 502 || decodeError(t, body).Error.Code != "connection_refused" {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
	}
	down.Store(true)
	truthful()
	down.Store(false)
	ask(false).established().send("hello").expect("hello")
	ask(true).established().send("hello").expect("hello")
	down.Store(true)
	if how := ask(true).established().ended(); how != "reset" {
		t.Errorf("the app saw %s", how)
	}
	eventually(t, "it is not believed in any more", func() bool { return !r.proven.has("api.allowed.test:443") })
	truthful()
}

func TestBytesBehindConnectAreNotLost(t *testing.T) {
	r := newRig(t, testPolicy(7))
	for _, raw := range []string{
		"CONNECT api.allowed.test:443 HTTP/1.1\r\nHost: x\r\n\r\n",
		"CONNECT api.allowed.test:443 HTTP/1.0\r\n\r\n",
	} {
		early := "\x16\x03\x01EARLY" + strings.Repeat("e", 20000)
		r.dial().send(raw + early).established().expect(early)
	}
	// On a connection that has served a request before, net/http has them.
	c := r.dial().send("GET http://plain.allowed.test/ HTTP/1.1\r\nHost: x\r\n\r\nCONNECT api.allowed.test:443 HTTP/1.1\r\nHost: x\r\n\r\nEARLY")
	if resp, body := c.answer("GET"); resp.StatusCode != 200 {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	c.established().expect("EARLY")
}

func TestHalfCloseFromTheFarEnd(t *testing.T) {
	got := make(chan string, 1)
	r := newRig(t, testPolicy(7), func(r *rig, _ *Config) {
		r.tunnel = func(s *protocol.Stream) {
			s.Accept()
			io.WriteString(s, "bye")
			s.CloseWrite()
			b, _ := io.ReadAll(s)
			got <- string(b)
		}
	})
	c := r.dial().send("CONNECT api.allowed.test:443 HTTP/1.1\r\n\r\n").established()
	if b, err := io.ReadAll(c.br); err != nil || string(b) != "bye" {
		t.Fatalf("%q %v", b, err)
	}
	c.send("still here")
	c.CloseWrite()
	if s := <-got; s != "still here" {
		t.Errorf("the far end got %q", s)
	}
}

func TestADeniedConnectIsAnsweredHere(t *testing.T) {
	r := newRig(t, testPolicy(7))
	begun := time.Now()
	resp, body := r.dial().send("CONNECT evil.test:443 HTTP/1.1\r\nHost: api.allowed.test:443\r\n\r\nEARLY").answer("CONNECT")
	if took := time.Since(begun); took > 500*time.Millisecond {
		t.Errorf("it took %v", took)
	}
	e := decodeError(t, body)
	if resp.StatusCode != 403 || e.Error.Code != "denied" || e.Error.Rule == "" || e.Error.Suggestion == "" ||
		!strings.HasPrefix(resp.Header.Get("Proxy-Status"), "postern-agent; error=http_request_denied") {
		t.Errorf("%d %v %s", resp.StatusCode, resp.Header, body)
	}
	f := r.flow()
	if f.ID != e.Error.FlowID || f.Verdict != "deny" || f.Cause != "denied" || f.Target != "evil.test:443" || !f.Ended || f.App != "shop" || f.Serial != 7 || f.Version != 3 {
		t.Errorf("%+v", f)
	}
	if !strings.Contains(r.log.String(), "evil.test:443") {
		t.Error("the log does not say so")
	}
	select {
	case o := <-r.opens:
		if o.Kind == protocol.KindEgress {
			t.Errorf("the relay was asked: %+v", o)
		}
	default:
	}
}

func TestARefusalAfterAnEarlyAnswerIsAReset(t *testing.T) {
	detail, _ := json.Marshal(policy.Refusal{Cause: policy.SNIMismatch, Message: "the hello is for another name", Where: "apps.shop.egress.allow[0]"})
	p := testPolicy(7)
	for i := range p.Allow {
		p.Allow[i].Early = true
	}
	r := newRig(t, p, func(r *rig, _ *Config) {
		r.tunnel = func(s *protocol.Stream) {
			s.RefuseWith(protocol.Reply{Code: protocol.CodeForbidden, Message: "no", Detail: detail})
		}
	})
	c := r.dial().send("CONNECT api.allowed.test:443 HTTP/1.1\r\n\r\nhello").established()
	if how := c.ended(); how != "reset" {
		t.Errorf("the app saw %s", how)
	}
	eventually(t, "a line in the log", func() bool {
		return strings.Contains(r.log.String(), "its connection was reset") && strings.Contains(r.log.String(), "sni_mismatch")
	})
}

func TestALostTunnelIsAReset(t *testing.T) {
	opened := make(chan struct{})
	r := newRig(t, testPolicy(7), func(r *rig, _ *Config) {
		r.tunnel = func(s *protocol.Stream) {
			s.Accept()
			io.WriteString(s, "half of")
			close(opened)
			io.Copy(io.Discard, s)
		}
	})
	c := r.dial().send("CONNECT api.allowed.test:443 HTTP/1.1\r\n\r\n").established()
	c.expect("half of")
	<-opened
	r.relay.Close(protocol.CodeShutdown, "gone")
	if how := c.ended(); how != "reset" {
		t.Errorf("the app saw %s", how)
	}
}

func TestARuleThatWaitsSeesTheTruth(t *testing.T) {
	for _, test := range []struct {
		cause  policy.Cause
		status int
		error  string
	}{
		{policy.Refused, 502, "connection_refused"},
		{policy.DialTimeout, 504, "connection_timeout"},
		{policy.Prohibited, 403, "destination_ip_prohibited"},
		{policy.RateLimited, 429, "http_request_denied"},
	} {
		detail, _ := json.Marshal(policy.Refusal{Cause: test.cause, Message: "as it is", Flow: "flo_x", RetryAfter: 3})
		r := newRig(t, testPolicy(7), func(r *rig, _ *Config) {
			r.tunnel = func(s *protocol.Stream) {
				s.RefuseWith(protocol.Reply{Code: protocol.CodeForbidden, Detail: detail})
			}
		})
		resp, body := r.dial().send("CONNECT wait.allowed.test:443 HTTP/1.1\r\n\r\n").answer("CONNECT")
		if e := decodeError(t, body); resp.StatusCode != test.status || e.Error.Code != string(test.cause) || e.Error.FlowID != "flo_x" ||
			!strings.Contains(resp.Header.Get("Proxy-Status"), test.error) {
			t.Errorf("%s: %d %v %s", test.cause, resp.StatusCode, resp.Header, body)
		}
		if o := r.next(protocol.KindEgress); o.Egress.Early {
			t.Error("it was called early")
		}
	}
	r := newRig(t, testPolicy(7))
	r.dial().send("CONNECT wait.allowed.test:443 HTTP/1.1\r\n\r\nhello").established().expect("hello")
}

func TestWithoutAPolicyTheRelayDecides(t *testing.T) {
	detail, _ := json.Marshal(policy.Refusal{Cause: policy.Denied, Message: "not this one", Where: "default"})
	r := newRig(t, nil, func(r *rig, _ *Config) {
		r.tunnel = func(s *protocol.Stream) {
			if s.Open().Addr == "evil.test:443" {
				s.RefuseWith(protocol.Reply{Code: protocol.CodeForbidden, Detail: detail})
				return
			}
			s.Accept()
			io.Copy(s, s)
		}
	})
	r.dial().send("CONNECT any.test:443 HTTP/1.1\r\n\r\nhello").established().expect("hello")
	resp, body := r.dial().send("CONNECT evil.test:443 HTTP/1.1\r\n\r\n").answer("CONNECT")
	if e := decodeError(t, body); resp.StatusCode != 403 || e.Error.Message != "not this one" {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if o := r.next(protocol.KindEgress); o.Egress.Early || o.Egress.Serial != 0 {
		t.Errorf("%+v", o.Egress)
	}
}

func TestNoTunnelIsToldAtOnce(t *testing.T) {
	r := newRig(t, testPolicy(7))
	r.setDown(true)
	begun := time.Now()
	for _, target := range []string{"api.allowed.test:443", "wait.allowed.test:443"} {
		resp, body := r.dial().send("CONNECT " + target + " HTTP/1.1\r\n\r\n").answer("CONNECT")
		if e := decodeError(t, body); resp.StatusCode != 502 || e.Error.Code != "relay_unreachable" {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
	}
	resp, body := r.dial().send("GET http://plain.allowed.test/ HTTP/1.1\r\nHost: x\r\n\r\n").answer("GET")
	if e := decodeError(t, body); resp.StatusCode != 502 || e.Error.Code != "relay_unreachable" {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if took := time.Since(begun); took > time.Second {
		t.Errorf("it took %v", took)
	}
	r.setDown(false)
	for range 3 {
		if f := r.flow(); f.Cause != "relay_unreachable" || !f.Ended {
			t.Errorf("%+v", f)
		}
	}
}

func TestTheFirstTunnelIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ready := make(chan struct{})
		p := &Proxy{cfg: Config{Ready: ready, Open: func(context.Context, protocol.Open) (*protocol.Stream, error) {
			return nil, errors.New("none")
		}}, done: make(chan struct{})}
		wait := func() time.Duration {
			begun := time.Now()
			p.openStream(t.Context(), protocol.Open{})
			return time.Since(begun)
		}
		go func() { time.Sleep(3 * time.Second); close(ready) }()
		if took := wait(); took != 3*time.Second {
			t.Errorf("ready after 3 s: it took %v", took)
		}
		if took := wait(); took != 0 {
			t.Errorf("later: it took %v", took)
		}
		p.cfg.Ready = make(chan struct{})
		if took := wait(); took != 5*time.Second {
			t.Errorf("never ready: it took %v", took)
		}
		if took := wait(); took != 0 {
			t.Errorf("after one that waited in vain: it took %v", took)
		}
	})
}

func TestLoopsAreRefused(t *testing.T) {
	r := newRig(t, testPolicy(7))
	own := r.Addr().String()
	for _, raw := range []string{
		"CONNECT " + own + " HTTP/1.1\r\n\r\n",
		"CONNECT localhost:" + own[strings.LastIndex(own, ":")+1:] + " HTTP/1.1\r\n\r\n",
		"GET http://" + own + "/ HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		resp, body := r.dial().send(raw).answer("GET")
		if e := decodeError(t, body); resp.StatusCode != 508 || e.Error.Code != "loop" || !strings.Contains(resp.Header.Get("Proxy-Status"), "proxy_loop_detected") {
			t.Errorf("%q: %d %v %s", raw, resp.StatusCode, resp.Header, body)
		}
	}
}

func TestANamedForward(t *testing.T) {
	r := newRig(t, testPolicy(7), func(_ *rig, c *Config) {
		c.Forwards = []Forward{{Local: "127.0.0.1:0", Target: "DB.allowed.test:5432"}, {Local: "127.0.0.1:0", Target: "evil.test:5432"}}
	})
	list := r.Forwards()
	if list[0].Target != "db.allowed.test:5432" || strings.HasSuffix(list[0].Local, ":0") {
		t.Fatalf("%+v", list)
	}
	addr := func(i int) *client { return dialTo(t, addrPort(r.forwards[i].listener)) }
	addr(0).send("startup").expect("startup")
	if o := r.next(protocol.KindEgress); o.Egress.From != "forward" || o.Addr != "db.allowed.test:5432" {
		t.Errorf("%+v", o)
	}
	// It may be cut before the dialer has returned.
	conn, err := net.Dial("tcp", list[1].Local)
	if err == nil {
		defer conn.Close()
		_, err = io.Copy(io.Discard, conn)
	}
	if err == nil || !strings.Contains(err.Error(), "reset") {
		t.Errorf("a denied forward: the app saw %v", err)
	}
}

func TestParseForward(t *testing.T) {
	for _, good := range [][3]string{
		{"15432=db.partner.test:5432", "127.0.0.1:15432", "db.partner.test:5432"},
		{"127.0.0.1:0=DB.Partner.test:5432", "127.0.0.1:0", "db.partner.test:5432"},
		{"[::1]:15432=db.partner.test:5432", "[::1]:15432", "db.partner.test:5432"},
	} {
		f, err := ParseForward(good[0])
		if err != nil || f.Local != good[1] || f.Target != good[2] {
			t.Errorf("%s: %+v %v", good[0], f, err)
		}
	}
	for _, bad := range []string{"", "15432", "15432:db:5432", "=db.test:1", "x=db.test:1", "70000=db.test:1", "0.0.0.0:1=db.test:1", "1=db.test", "1=db.test:0", "1=user@db.test:1"} {
		if f, err := ParseForward(bad); err == nil {
			t.Errorf("%q: %+v", bad, f)
		}
	}
}

func TestWhatIsRefusedAsUnreadable(t *testing.T) {
	r := newRig(t, testPolicy(7))
	long := strings.Repeat("x", maxHead+8192)
	for _, test := range []struct {
		raw    string
		status int
	}{
		{"connect api.allowed.test:443 HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400},
		{"GET / HTTP/1.1\r\nHost: plain.allowed.test\r\n\r\n", 400},
		{"OPTIONS * HTTP/1.1\r\nHost: plain.allowed.test\r\n\r\n", 400},
		{"GET http://plain.allowed.test/\r\n\r\n", 400},
		{"GET http://plain.allowed.test/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400},
		{"GET http://plain.allowed.test/ HTTP/1.1\r\nHost: a\r\nX: 1\x002\r\n\r\n", 400},
		{"GET ftp://plain.allowed.test/ HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"GET https://api.allowed.test/ HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"GET http:/evil.test/ HTTP/1.1\r\nHost: plain.allowed.test\r\n\r\n", 400},
		{"GET http://user:pw@plain.allowed.test/ HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"GET http://plain.allowed.test/ HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic !!!\r\n\r\n", 400},
		{"POST http://plain.allowed.test/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400},
		{"POST http://plain.allowed.test/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n", 501},
		{"GET http://plain.allowed.test/ HTTP/1.1\r\nHost: x\r\nX: " + long + "\r\n\r\n", 431},
		{"nonsense\r\n\r\n", 400},
		{"CONNECT /x HTTP/1.1\r\nHost: api.allowed.test:443\r\n\r\n", 400},
		{"CONNECT api.allowed.test HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"CONNECT api.allowed.test:443@evil.test:443 HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"CONNECT api.allowed.test:443/evil HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"CONNECT  api.allowed.test:443 HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		{"CONNECT api.allowed.test:443 HTTP/2.0\r\nHost: x\r\n\r\n", 400},
		{"CONNECT api.allowed.test:443\r\n\r\n", 400},
		{"CONNECT api.allowed.test:443 HTTP/1.1\n\n", 400},
		{"CONNECT api.allowed.test:443 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400},
		{"CONNECT api.allowed.test:443 HTTP/1.1\r\nX : a\r\n\r\n", 400},
		{"CONNECT api.allowed.test:443 HTTP/1.1\r\nX: a\r\n folded\r\n\r\n", 400},
		{"CONNECT api.allowed.test:443 HTTP/1.1\r\nX: a\rb\r\n\r\n", 400},
		{"CONNECT api.allowed.test:443 HTTP/1.1\r\nContent-Length: 4\r\n\r\n", 400},
		{"CONNECT api.allowed.test:443 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
		{"CONNECT api.allowed.test:443 HTTP/1.1\r\nProxy-Authorization: Basic !!!\r\n\r\n", 400},
		{"CONNECT api.allowed.test:443 HTTP/1.1\r\nX: " + long + "\r\n\r\n", 431},
		{"CONNECT " + long + ":443 HTTP/1.1\r\n\r\n", 431},
	} {
		name := test.raw[:min(len(test.raw), 80)]
		resp, body := r.dial().send(test.raw).answer("GET")
		if resp.StatusCode != test.status || !strings.HasPrefix(resp.Header.Get("Proxy-Status"), "postern-agent; error=http_request_error") ||
			decodeError(t, body).Error.Message == "" {
			t.Errorf("%q: %d %v %s", name, resp.StatusCode, resp.Header, body)
		}
		if strings.Contains(body, "pw") {
			t.Errorf("%q: the answer repeats a password: %s", name, body)
		}
	}
	if strings.Contains(r.log.String(), "pw@") {
		t.Error("the log has a password")
	}
	// A long field of a CONNECT is read past.
	r.dial().send("CONNECT api.allowed.test:443 HTTP/1.1\r\nProxy-Authorization: Negotiate " + long[:20000] + "\r\n\r\nhello").established().expect("hello")
}

func TestASlowHeadIsBounded(t *testing.T) {
	for _, part := range []string{"CONNECT api.allow", "CONN", "GET http://plain.allowed.test/ HTTP/1.1\r\nHo"} {
		synctest.Test(t, func(t *testing.T) {
			p, err := Listen(Config{Ready: make(chan struct{})})
			if err != nil {
				t.Fatal(err)
			}
			go p.requests.serve()
			ours, theirs := net.Pipe()
			p.start(theirs, func(c net.Conn) { p.serveConn(t.Context(), c) })
			begun := time.Now()
			io.WriteString(ours, part)
			line, err := bufio.NewReader(ours).ReadString('\n')
			if took := time.Since(begun); err != nil || !strings.HasPrefix(line, "HTTP/1.1 408") || took > 15*time.Second {
				t.Errorf("%q: %q, %v after %v", part, line, err, took)
			}
			ours.Close()
			p.Close()
			p.serving.Wait()
			synctest.Wait()
		})
	}
}

func TestCloseEndsEverything(t *testing.T) {
	r := newRig(t, testPolicy(7))
	c := r.dial().send("CONNECT api.allowed.test:443 HTTP/1.1\r\n\r\nhello").established()
	c.expect("hello")
	web := r.dial().send("GET http://plain.allowed.test/ HTTP/1.1\r\nHost: x\r\n\r\n")
	web.answer("GET")
	idle := r.dial()
	r.Close()
	for _, c := range []*client{c, web, idle} {
		c.ended() // returns
	}
	if _, err := net.Dial("tcp", r.Addr().String()); err == nil {
		t.Error("it still listens")
	}
}
