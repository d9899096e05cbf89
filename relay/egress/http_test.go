package egress

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/policy"
)

// httpRig has an HTTP destination that plain.test leads to. Its URL ends in a port.
func httpRig(t *testing.T, h http.HandlerFunc, change func(p *policy.Policy)) (*rig, string) {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	port := uint16(server.Listener.Addr().(*net.TCPAddr).Port)
	p := policy.Policy{Allow: []policy.Rule{rule(policy.HTTP, "plain.test", port)}, Holes: hole(port)}
	if change != nil {
		change(&p)
	}
	r := newRig(t, p, rigOptions{})
	r.names.put("plain.test", "127.0.0.1")
	return r, "http://plain.test:" + strconv.Itoa(int(port))
}

// requests opens a stream for requests.
func (r *rig) requests(agent *protocol.Session) *protocol.Stream {
	r.t.Helper()
	s, err := agent.Open(context.Background(), protocol.Open{Kind: protocol.KindEgressHTTP})
	if err != nil {
		r.t.Fatal(err)
	}
	s.SetDeadline(time.Now().Add(20 * time.Second))
	return s
}

// raw sends bytes on a new stream and reads one answer.
func (r *rig) raw(text string) *http.Response {
	r.t.Helper()
	s := r.requests(r.agent)
	r.t.Cleanup(func() { s.Close() })
	send(r.t, s, []byte(text))
	return r.response(s)
}

func (r *rig) response(s io.Reader) *http.Response {
	r.t.Helper()
	resp, err := http.ReadResponse(bufio.NewReader(s), nil)
	if err != nil {
		r.t.Fatalf("no answer: %v", err)
	}
	return resp
}

// denial is the refusal in an answer.
func denial(t testing.TB, resp *http.Response) policy.Refusal {
	t.Helper()
	var body struct{ Error policy.Refusal }
	if err := json.NewDecoder(resp.Body).Decode(&body); err != nil {
		t.Fatalf("the answer %s has no refusal: %v", resp.Status, err)
	}
	if status := resp.Header.Get("Proxy-Status"); !strings.HasPrefix(status, pseudonym+"; error=") {
		t.Errorf("Proxy-Status is %q", status)
	}
	return body.Error
}

func TestARequestIsForwardedByTheRules(t *testing.T) {
	t.Parallel()
	var got *http.Request
	var body []byte
	r, url := httpRig(t, func(w http.ResponseWriter, req *http.Request) {
		got = req
		body, _ = io.ReadAll(req.Body)
		w.Header().Set("Proxy-Status", "evil; error=http_request_denied")
		w.Header().Set("Alt-Svc", `h3=":443"`)
		w.Header().Set("X-Answer", "yes")
		w.WriteHeader(201)
		io.WriteString(w, "made")
	}, nil)
	host := strings.TrimPrefix(url, "http://")
	resp := r.raw("POST " + strings.Replace(url, "plain", "PLAIN", 1) + "/a%2Fb/../%7Ec?x=1;y=%zz&&a HTTP/1.1\r\nHost: other.test\r\nContent-Length: 4\r\n" +
		"Proxy-Authorization: Basic eA==\r\nProxy-Connection: keep-alive\r\nX-Forwarded-For: 10.1.2.3\r\nX-Forwarded-Weird: 1\r\n" +
		"Forwarded: for=10.1.2.3\r\nX-Relay-Egress-Policy: bypass\r\nPostern-Event-Id: evt\r\nX-Upstream-Https-Proxy: http://evil.test\r\n" +
		"Connection: X-Hop, Host\r\nX-Hop: 1\r\nKeep-Alive: timeout=1\r\nTE: trailers\r\nAuthorization: Bearer x\r\nX-Mine: kept\r\n" +
		"Via: 1.0 other\r\ntraceparent: 00-zz-zz-00\r\ntracestate: a=b\r\n\r\nbody")
	defer resp.Body.Close()
	if data, _ := io.ReadAll(resp.Body); resp.StatusCode != 201 || string(data) != "made" {
		t.Fatalf("the answer is %s %q", resp.Status, data)
	}
	if got.RequestURI != "/a%2Fb/../%7Ec?x=1;y=%zz&&a" || got.Host != host || string(body) != "body" {
		t.Errorf("the destination got %s for %s with %q", got.RequestURI, got.Host, body)
	}
	for _, name := range []string{"Proxy-Authorization", "Proxy-Connection", "X-Forwarded-For", "X-Forwarded-Weird", "X-Forwarded-Host",
		"Forwarded", "X-Relay-Egress-Policy", "Postern-Event-Id", "X-Upstream-Https-Proxy", "X-Hop", "Keep-Alive", "Tracestate", "User-Agent", "Accept-Encoding"} {
		if v := got.Header.Values(name); len(v) > 0 {
			t.Errorf("the destination got %s: %q", name, v)
		}
	}
	if got.Header.Get("X-Mine") != "kept" || got.Header.Get("Authorization") != "Bearer x" {
		t.Errorf("what is the app's own was lost: %v", got.Header)
	}
	if via := got.Header.Values("Via"); !slices.Equal(via, []string{"1.0 other", "1.1 " + pseudonym}) {
		t.Errorf("Via is %q", via)
	}
	if parent := got.Header.Get("Traceparent"); !validTraceparent(parent) {
		t.Errorf("traceparent is %q", parent)
	}
	if resp.Header.Get("X-Answer") != "yes" || resp.Header.Get("Proxy-Status") != pseudonym || resp.Header.Get("Alt-Svc") != "" {
		t.Errorf("the answer's head is %v", resp.Header)
	}
	f := r.lastFlow()
	if f.Status != 201 || f.Up != 4 || f.Down != 4 || f.Path != "/a%2Fb/../%7Ec" || f.Method != "POST" || f.Traceparent != got.Header.Get("Traceparent") {
		t.Errorf("the last line is %+v", f)
	}
}

func TestAValidTraceparentIsKept(t *testing.T) {
	t.Parallel()
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	r, url := httpRig(t, func(w http.ResponseWriter, req *http.Request) {
		io.WriteString(w, req.Header.Get("Traceparent")+" "+req.Header.Get("Tracestate"))
	}, nil)
	resp := r.raw("GET " + url + "/ HTTP/1.1\r\nHost: x\r\ntraceparent: " + parent + "\r\ntracestate: a=b\r\n\r\n")
	if data, _ := io.ReadAll(resp.Body); string(data) != parent+" a=b" {
		t.Errorf("the destination got %q", data)
	}
}

func TestWhatIsNotARequestInAbsoluteFormIsRefused(t *testing.T) {
	t.Parallel()
	r, url := httpRig(t, func(w http.ResponseWriter, req *http.Request) {
		t.Errorf("the destination got %s", req.RequestURI)
	}, nil)
	host := strings.TrimPrefix(url, "http://")
	for _, line := range []string{
		"GET /x HTTP/1.1", "GET http:/" + host + "/ HTTP/1.1", "GET " + host + " HTTP/1.1", "GET ftp://" + host + "/ HTTP/1.1",
		"GET ws://" + host + "/ HTTP/1.1", "GET https://" + host + "/ HTTP/1.1", "GET http://user:secret@" + host + "/?token=secret HTTP/1.1",
		"GET http://evil.test@" + host + "/ HTTP/1.1", "CONNECT " + host + " HTTP/1.1", "CONNECT http://" + host + "/ HTTP/1.1",
		"connect " + host + " HTTP/1.1", "OPTIONS * HTTP/1.1", "PRI * HTTP/2.0", "GET http://plain.test:70000/ HTTP/1.1",
		"GET http://evil.test#@" + host + "/ HTTP/1.1", "GET jar:http://" + host + "!/ HTTP/1.1", "GET http:///x HTTP/1.1",
	} {
		resp := r.raw(line + "\r\nHost: " + host + "\r\n\r\n")
		if resp.StatusCode != 400 {
			t.Errorf("%s: the answer is %s", line, resp.Status)
		}
		resp.Body.Close()
	}
	if asked := r.names.asked(); len(asked) > 0 {
		t.Errorf("looked up: %v", asked)
	}
	r.settled()
	for _, f := range r.log.flows(t) {
		if strings.Contains(fmt.Sprintf("%+v", f), "secret") {
			t.Errorf("a secret is in the log: %+v", f)
		}
	}
}

func TestSmugglingFormsDoNotPass(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var seen []string
	r, url := httpRig(t, func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		mu.Lock()
		seen = append(seen, fmt.Sprintf("%s %s %d %v %q", req.Method, req.RequestURI, req.ContentLength, req.TransferEncoding, body))
		mu.Unlock()
		if up := req.Header.Get("Upgrade") + req.Header.Get("Http2-Settings"); up != "" {
			t.Errorf("the destination was asked for %q", up)
		}
	}, nil)
	for name, c := range map[string]struct {
		raw    string
		status int
		seen   string
	}{
		"unknown coding":        {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501, ""},
		"two codings":           {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", 501, ""},
		"two lengths":           {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400, ""},
		"list of lengths":       {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2, 2\r\n\r\nab", 400, ""},
		"two hosts":             {"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, ""},
		"bare CR":               {"GET / HTTP/1.1\r\nHost: a\r\nX-A: 1\rX-B: 2\r\n\r\n", 400, ""},
		"NUL":                   {"GET / HTTP/1.1\r\nHost: a\r\nX-A: 1\x002\r\n\r\n", 400, ""},
		"length and chunks":     {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 200, `POST / -1 [chunked] ""`},
		"equal lengths":         {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab", 200, `POST / 2 [] "ab"`},
		"a body like requests":  {"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 43\r\n\r\nGET http://evil.test/ HTTP/1.1\r\nHost: e\r\n\r\n", 200, "GET / 43 []"},
		"h2c":                   {"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\nConnection: Upgrade, HTTP2-Settings\r\n\r\n", 200, `GET / 0 [] ""`},
		"two slashes and a bar": {"GET //a%2Fb|c/x HTTP/1.1\r\nHost: a\r\n\r\n", 200, `GET //a%2Fb%7Cc/x 0 [] ""`},
		"two slashes":           {"GET //evil.test/x HTTP/1.1\r\nHost: a\r\n\r\n", 200, `GET //evil.test/x 0 [] ""`},
	} {
		mu.Lock()
		seen = nil
		mu.Unlock()
		method, rest, _ := strings.Cut(c.raw, " ")
		resp := r.raw(method + " " + url + rest)
		resp.Body.Close()
		mu.Lock()
		got := strings.Join(seen, "\n")
		mu.Unlock()
		if resp.StatusCode != c.status || !strings.HasPrefix(got, c.seen) || c.seen == "" && got != "" {
			t.Errorf("%s: the answer is %s, the destination got %q", name, resp.Status, got)
		}
		if c.seen != "" && strings.Contains(c.raw, "chunked") && !resp.Close {
			t.Errorf("%s: the stream goes on", name)
		}
	}
}

func TestEachRequestOnAStreamIsJudgedAlone(t *testing.T) {
	t.Parallel()
	r, url := httpRig(t, func(w http.ResponseWriter, req *http.Request) { io.WriteString(w, "ok") }, nil)
	s := r.requests(r.agent)
	defer s.Close()
	send(t, s, []byte("GET "+url+"/ HTTP/1.1\r\nHost: x\r\n\r\nGET http://evil.test/ HTTP/1.1\r\nHost: plain.test\r\n\r\nGET "+url+"/ HTTP/1.1\r\nHost: x\r\n\r\n"))
	br := bufio.NewReader(s)
	for i, want := range []int{200, 403, 200} {
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		data, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != want {
			t.Errorf("answer %d is %s %s", i, resp.Status, data)
		}
		if want == 403 && !bytes.Contains(data, []byte(`"suggestion"`)) {
			t.Errorf("the refusal has no suggestion: %s", data)
		}
	}
	if slices.Contains(r.names.asked(), "evil.test") {
		t.Error("the denied name was looked up")
	}
}

func TestDenialsAreQuickAlsoWithABodyUnderWay(t *testing.T) {
	t.Parallel()
	r, _ := httpRig(t, nil, nil)
	s := r.requests(r.agent)
	defer s.Close()
	start := time.Now()
	send(t, s, []byte("POST http://evil.test/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\nExpect: 100-continue\r\n\r\n"))
	resp := r.response(s)
	if got := denial(t, resp); got.Cause != policy.Denied || resp.StatusCode != 403 || got.Flow == "" {
		t.Errorf("the answer is %s %+v", resp.Status, got)
	}
	// The body never comes.
	s2 := r.requests(r.agent)
	defer s2.Close()
	send(t, s2, []byte("POST http://evil.test/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"))
	denial(t, r.response(s2))
	if took := time.Since(start); took > 200*time.Millisecond {
		t.Errorf("two denials took %v", took)
	}
}

func TestOwnPseudonymInViaIsALoop(t *testing.T) {
	t.Parallel()
	r, url := httpRig(t, func(http.ResponseWriter, *http.Request) {}, nil)
	for via, want := range map[string]int{
		"1.1 " + pseudonym: 508, "1.0 fred, 1.1 RELAY.example (x, y)": 508, "1.0 fred (1.1 relay.example, 1.1 relay.example)": 200, "1.1 relay.example2": 200,
	} {
		resp := r.raw("GET " + url + "/ HTTP/1.1\r\nHost: x\r\nVia: " + via + "\r\n\r\n")
		if resp.StatusCode != want {
			t.Errorf("%s: the answer is %s", via, resp.Status)
		}
		resp.Body.Close()
	}
}

func TestFailuresOfTheDestinationHaveTheirStatus(t *testing.T) {
	t.Parallel()
	d := listen(t)
	gone := listen(t)
	gone.Close()
	r := newRig(t, policy.Policy{Mode: policy.Open, Holes: hole(d.port, gone.port)}, rigOptions{cfg: Config{answer: 100 * time.Millisecond}})
	r.names.put("plain.test", "127.0.0.1")
	r.names.put("inner.test", "10.0.0.1")
	for _, c := range []struct {
		name   string
		host   string
		port   uint16
		act    func(net.Conn)
		status int
		cause  policy.Cause
	}{
		{"no such name", "missing.test", 80, nil, 502, policy.NoSuchName},
		{"nobody listens", "plain.test", gone.port, nil, 502, policy.Refused},
		{"a private address", "inner.test", 80, nil, 403, policy.Prohibited},
		{"no answer", "plain.test", d.port, func(c net.Conn) { io.Copy(io.Discard, c) }, 504, policy.AnswerTimeout},
		{"closes at once", "plain.test", d.port, func(c net.Conn) { bufio.NewReader(c).ReadString('\n'); c.Close() }, 502, policy.Cut},
		{"not HTTP", "plain.test", d.port, func(c net.Conn) {
			bufio.NewReader(c).ReadString('\n')
			io.WriteString(c, "SSH-2.0-x\r\n\r\n")
			c.Close()
		}, 502, policy.Cut},
	} {
		if c.act != nil {
			go func() { c.act(<-d.conns) }()
		}
		resp := r.raw(fmt.Sprintf("POST http://%s:%d/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", c.host, c.port))
		if got := denial(t, resp); resp.StatusCode != c.status || got.Cause != c.cause {
			t.Errorf("%s: the answer is %s %+v", c.name, resp.Status, got)
		}
		if f := r.lastFlow(); f.Cause != string(c.cause) {
			t.Errorf("%s: the last line is %+v", c.name, f)
		}
	}
}

func TestContinueWorks(t *testing.T) {
	t.Parallel()
	r, url := httpRig(t, func(w http.ResponseWriter, req *http.Request) {
		data, _ := io.ReadAll(req.Body)
		w.Write(data)
	}, nil)
	s := r.requests(r.agent)
	defer s.Close()
	send(t, s, []byte("POST "+url+"/ HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"))
	br := bufio.NewReader(s)
	for {
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode == 100 {
			send(t, s, []byte("body"))
			continue
		}
		if data, _ := io.ReadAll(resp.Body); resp.StatusCode != 200 || string(data) != "body" {
			t.Errorf("the answer is %s %q", resp.Status, data)
		}
		return
	}
}

func TestAnswersAreStreamedAndRedirectsPass(t *testing.T) {
	t.Parallel()
	more := make(chan struct{})
	r, url := httpRig(t, func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Location", "http://169.254.169.254/")
		w.WriteHeader(302)
		io.WriteString(w, "first")
		w.(http.Flusher).Flush()
		<-more
		io.WriteString(w, "second")
	}, nil)
	resp := r.raw("GET " + url + "/ HTTP/1.1\r\nHost: x\r\n\r\n")
	if resp.StatusCode != 302 || resp.Header.Get("Location") != "http://169.254.169.254/" {
		t.Errorf("the answer is %s to %s", resp.Status, resp.Header.Get("Location"))
	}
	expect(t, resp.Body, "first")
	close(more)
	expect(t, resp.Body, "second")
}

func TestAWebSocketPasses(t *testing.T) {
	t.Parallel()
	d := listen(t)
	r := newRig(t, policy.Policy{Allow: []policy.Rule{rule(policy.HTTP, "plain.test", d.port)}, Holes: hole(d.port)}, rigOptions{})
	r.names.put("plain.test", "127.0.0.1")
	s := r.requests(r.agent)
	send(t, s, []byte(fmt.Sprintf("GET http://plain.test:%d/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: a\r\n\r\n", d.port)))
	conn := d.next(t)
	br := bufio.NewReader(conn)
	req, err := http.ReadRequest(br)
	if err != nil || req.Header.Get("Upgrade") != "websocket" || req.Header.Get("Sec-Websocket-Key") != "a" {
		t.Fatalf("the destination got %v, %v", req, err)
	}
	send(t, conn, []byte("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello"))
	sr := bufio.NewReader(s)
	resp, err := http.ReadResponse(sr, nil)
	if err != nil || resp.StatusCode != 101 {
		t.Fatalf("the answer is %v, %v", resp, err)
	}
	expect(t, sr, "hello")
	big := strings.Repeat("x", 200<<10)
	go s.Write([]byte(big))
	expect(t, br, big)
	go conn.Write([]byte(big))
	expect(t, sr, big)
	s.Close()
	if f := r.lastFlow(); f.Status != 101 || f.Up != int64(len(big)) || f.Down != int64(len(big))+5 {
		t.Errorf("the last line is %+v", f)
	}
}

// TestUpgradeSpeaksTLS has no port 443 of its own: the dialer leads there.
func TestUpgradeSpeaksTLS(t *testing.T) {
	t.Parallel()
	cert, pool := certificate(t, "api.test")
	var resumed []bool
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		resumed = append(resumed, req.TLS.DidResume)
		io.WriteString(w, req.Host+" "+req.TLS.ServerName)
	}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	server.StartTLS()
	defer server.Close()
	for _, trusted := range []bool{true, false} {
		o := rigOptions{cfg: Config{}, dial: dialOnly(t, "93.184.216.34:443", server.Listener.Addr().String())}
		if trusted {
			o.cfg.RootCAs = pool
		}
		up := rule(policy.HTTP, "api.test", 80)
		up.Upgrade = true
		r := newRig(t, policy.Policy{Allow: []policy.Rule{up}}, o)
		r.names.put("api.test", "93.184.216.34")
		for range 2 {
			resp := r.raw("GET http://api.test/ HTTP/1.1\r\nHost: x\r\n\r\n")
			data, _ := io.ReadAll(resp.Body)
			switch {
			case trusted && string(data) != "api.test api.test":
				t.Errorf("the answer is %s %q", resp.Status, data)
			case !trusted && (resp.StatusCode != 502 || !bytes.Contains(data, []byte(`"tls_error"`))):
				t.Errorf("with a certificate that nobody trusts the answer is %s %q", resp.Status, data)
			}
			r.settled()
			r.e.pools.close()
		}
	}
	if !slices.Equal(resumed, []bool{false, true}) {
		t.Errorf("sessions were resumed: %v", resumed)
	}
}

func TestUploadsHaveALimit(t *testing.T) {
	t.Parallel()
	received := make(chan int, 10)
	r, url := httpRig(t, func(w http.ResponseWriter, req *http.Request) {
		data, _ := io.ReadAll(req.Body)
		received <- len(data)
	}, func(p *policy.Policy) { p.Limits.UploadBytes = 1000 })
	resp := r.raw("POST " + url + "/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n")
	if got := denial(t, resp); resp.StatusCode != 413 || got.Cause != policy.TooLarge || len(received) > 0 {
		t.Errorf("the answer is %s %+v", resp.Status, got)
	}
	resp = r.raw("POST " + url + "/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n" + strings.Repeat("x", 1000) + "\r\n1\r\ny\r\n0\r\n\r\n")
	if got := denial(t, resp); resp.StatusCode != 413 || got.Cause != policy.TooLarge {
		t.Errorf("the answer is %s %+v", resp.Status, got)
	}
	if n := <-received; n > 1000 {
		t.Errorf("the destination got %d bytes", n)
	}
	resp = r.raw("POST " + url + "/ HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n" + strings.Repeat("x", 1000))
	if n := <-received; resp.StatusCode != 200 || n != 1000 {
		t.Errorf("the answer is %s, the destination got %d bytes", resp.Status, n)
	}
}

func TestABrokenAnswerNeverLooksComplete(t *testing.T) {
	t.Parallel()
	r, url := httpRig(t, func(w http.ResponseWriter, req *http.Request) {
		io.WriteString(w, "half")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}, nil)
	resp := r.raw("GET " + url + "/ HTTP/1.1\r\nHost: x\r\n\r\n")
	if data, err := io.ReadAll(resp.Body); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("read %q and a clean end", data)
	}
	if f := r.lastFlow(); f.Cause != string(policy.Cut) || f.Status != 200 || f.Verdict != allowed {
		t.Errorf("the last line is %+v", f)
	}
}
