package egress

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/policy"
)

// echo is a TCP destination on loopback; what ends it ends with "!".
func echo(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				io.Copy(conn, conn)
				io.WriteString(conn, "!")
			}()
		}
	}()
	return addrPort(l).Port()
}

// directRig has the agent dial host itself, at loopback.
func directRig(t *testing.T, ports ...uint16) *rig {
	t.Helper()
	r := newRig(t, testPolicy(7, ports...))
	directly(r.Proxy)
	return r
}

func TestADirectTunnel(t *testing.T) {
	port := echo(t)
	r := directRig(t, port)
	c := r.dial().send(fmt.Sprintf("CONNECT direct.allowed.test:%d HTTP/1.1\r\n\r\nearly", port)).established()
	c.expect("early")
	c.CloseWrite()
	c.expect("!")
	if how := c.ended(); how != "end" {
		t.Error(how)
	}
	begun, ended := r.flow(), r.flow()
	if begun.Ended || begun.Via != "direct" || begun.Verdict != "allow" || begun.Dialed != fmt.Sprintf("127.0.0.1:%d", port) {
		t.Errorf("%+v", begun)
	}
	if !ended.Ended || ended.ID != begun.ID || ended.Up != 5 || ended.Down != 6 || ended.Cause != "" || ended.Rule == "" {
		t.Errorf("%+v", ended)
	}
	for len(r.opens) > 0 {
		if o := <-r.opens; o.Kind == protocol.KindEgress {
			t.Errorf("the relay was asked: %+v", o)
		}
	}
}

func TestDirectCallsKeepToTheRules(t *testing.T) {
	port := echo(t)
	r := directRig(t, port)
	r.dialer.Resolver = fixed{"direct.allowed.test": netip.MustParseAddr("10.0.0.1")}
	resp, body := r.dial().send(fmt.Sprintf("CONNECT direct.allowed.test:%d HTTP/1.1\r\n\r\n", port)).answer("CONNECT")
	if e := decodeError(t, body); resp.StatusCode != 403 || e.Error.Code != "prohibited_address" {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if f := r.flow(); f.Verdict != "deny" || f.Cause != "prohibited_address" || f.Via != "direct" {
		t.Errorf("%+v", f)
	}
	resp, body = r.dial().send(fmt.Sprintf("GET http://web.allowed.test:%d/ HTTP/1.1\r\nHost: x\r\n\r\n", port)).answer("GET")
	if e := decodeError(t, body); resp.StatusCode != 502 || e.Error.Code != "dns_error" {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

// hello is the first thing that a TLS client for name sends.
func hello(t *testing.T, name string) string {
	t.Helper()
	ours, theirs := net.Pipe()
	go tls.Client(ours, &tls.Config{ServerName: name, InsecureSkipVerify: true}).Handshake()
	defer ours.Close()
	b := make([]byte, 16<<10)
	n, err := theirs.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

func TestTheHelloOfADirectTunnelIsChecked(t *testing.T) {
	port := echo(t)
	r := directRig(t, port)
	head := fmt.Sprintf("CONNECT tls.allowed.test:%d HTTP/1.1\r\n\r\n", port)
	good := hello(t, "tls.allowed.test")
	r.dial().send(head).established().send(good).expect(good)
	r.dial().send(head + good).established().expect(good)
	for cause, first := range map[policy.Cause]string{policy.SNIMismatch: hello(t, "evil.test"), policy.NotTLS: "SSH-2.0-OpenSSH_9.9\r\n"} {
		c := r.dial().send(head).established().send(first)
		got, err := io.ReadAll(c.br)
		if err == nil || len(got) > 0 {
			t.Errorf("%s: the app got %q, %v", cause, got, err)
		}
		eventually(t, "a record", func() bool {
			f := r.flow()
			return f.Ended && f.Cause == string(cause) && f.Up == 0
		})
	}
}

func TestWithoutARelaySomeRulesGoDirect(t *testing.T) {
	port := echo(t)
	r := directRig(t, port)
	target := fmt.Sprintf("CONNECT onloss.allowed.test:%d HTTP/1.1\r\n\r\n", port)
	r.dial().send(target + "hello").established().expect("hello")
	if o := r.next(protocol.KindEgress); o.Addr != fmt.Sprintf("onloss.allowed.test:%d", port) {
		t.Errorf("%+v", o)
	}
	r.setDown(true)
	c := r.dial().send(target + "hello").established()
	c.expect("hello")
	c.CloseWrite()
	c.expect("!")
	r.setDown(false)
	if f := r.flow(); f.Via != "direct" {
		t.Errorf("%+v", f)
	}
}

func TestDirectRequests(t *testing.T) {
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Proxy-Status", "theirs")
		w.Header().Set("Alt-Svc", "h3")
		fmt.Fprintf(w, "%s %s %s %v %s", r.Method, r.Host, r.RequestURI, r.Header["X-Relay-Policy"], body)
	}))
	defer site.Close()
	port := site.Listener.Addr().(*net.TCPAddr).AddrPort().Port()
	r := directRig(t, port)
	for _, name := range []string{"web.allowed.test", "webloss.allowed.test"} {
		if name == "webloss.allowed.test" {
			r.setDown(true)
		}
		for range 2 {
			resp, body := r.dial().send(fmt.Sprintf("POST http://%s:%d//a%%2Fb|c?d HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nX-Relay-Policy: off\r\n\r\nbody", name, port)).answer("POST")
			if want := fmt.Sprintf("POST %s:%d //a%%2Fb%%7Cc?d [] body", name, port); resp.StatusCode != 200 || body != want || resp.Header.Get("Proxy-Status") != "" || resp.Header.Get("Alt-Svc") != "" {
				t.Errorf("%d %v %s, expected %s", resp.StatusCode, resp.Header, body, want)
			}
		}
		r.setDown(false)
		for range 2 {
			begun, ended := r.flow(), r.flow()
			if begun.Ended || !ended.Ended || ended.ID != begun.ID || ended.Status != 200 || ended.Up != 4 || ended.Down == 0 || ended.Via != "direct" || ended.Method != "POST" {
				t.Errorf("%+v\n%+v", begun, ended)
			}
		}
	}
}

func TestAnEmergencyDenyCutsDirectCalls(t *testing.T) {
	port := echo(t)
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "begun")
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	defer slow.Close()
	webPort := slow.Listener.Addr().(*net.TCPAddr).AddrPort().Port()
	r := directRig(t, port, webPort)
	tunnel := r.dial().send(fmt.Sprintf("CONNECT direct.allowed.test:%d HTTP/1.1\r\n\r\nhello", port)).established()
	tunnel.expect("hello")
	web := r.dial().send(fmt.Sprintf("GET http://web.allowed.test:%d/ HTTP/1.1\r\nHost: x\r\n\r\n", webPort))
	resp, err := http.ReadResponse(web.br, nil)
	if err != nil {
		t.Fatal(err)
	}
	io.ReadFull(resp.Body, make([]byte, 5))

	next := testPolicy(8, port, webPort)
	next.Emergency = []policy.Deny{{ID: "den_1", Where: "emergency den_1", Range: netip.MustParsePrefix("127.0.0.0/8"), Until: time.Now().Add(time.Hour)}}
	begun := time.Now()
	if ack := r.push(next); ack.Serial != 8 || ack.Error != "" {
		t.Fatalf("%+v", ack)
	}
	if how := tunnel.ended(); how != "reset" {
		t.Errorf("the tunnel saw %s", how)
	}
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("the request's answer looks whole")
	}
	if took := time.Since(begun); took > time.Second {
		t.Errorf("it took %v", took)
	}
	cut := 0
	eventually(t, "two records", func() bool {
		if f := r.flow(); f.Ended && f.Cause == "emergency_deny" {
			cut++
		}
		return cut == 2
	})
	resp, body := r.dial().send(fmt.Sprintf("CONNECT direct.allowed.test:%d HTTP/1.1\r\n\r\n", port)).answer("CONNECT")
	if e := decodeError(t, body); resp.StatusCode != 403 || e.Error.Code != "emergency_deny" {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if !strings.Contains(r.log.String(), "calls=2") {
		t.Error("the log does not say how many were cut")
	}
}
