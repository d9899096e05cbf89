package tunnel

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/relay"
)

// rig is a relay's tunnel part on a real socket.
type rig struct {
	t        *testing.T
	registry *Registry
	server   *Server
	web      *httptest.Server
	client   *Transport
}

func newRig(t *testing.T, limits Limits) *rig {
	t.Helper()
	r := &rig{t: t, registry: NewRegistry(limits, nil)}
	r.server = NewServer(ServerConfig{
		Registry:  r.registry,
		Authorize: func(*http.Request) (relay.Principal, error) { return relay.Principal{App: "shop"}, nil },
		Node:      "n1",
	})
	r.web = httptest.NewServer(r.server)
	r.client = &Transport{Registry: r.registry, Idle: 10 * time.Second}
	t.Cleanup(func() {
		r.server.Close()
		r.web.Close()
	})
	return r
}

// agent connects an agent that splices to addr.
func (r *rig) agent(instance, addr string) *protocol.Session {
	r.t.Helper()
	return r.agentWith(instance, func(_ context.Context, s *protocol.Stream) {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			s.Refuse(protocol.CodeRefused, err.Error())
			return
		}
		s.Accept()
		protocol.Splice(s, conn)
	})
}

func (r *rig) agentWith(instance string, serve func(context.Context, *protocol.Stream)) *protocol.Session {
	r.t.Helper()
	before := len(r.registry.Tunnels())
	s, err := protocol.Dial(r.t.Context(), protocol.DialConfig{
		URL: r.web.URL, Token: "t",
		Hello: protocol.Hello{Instance: instance, BootID: "boot-" + instance, Tunnels: 1},
	})
	if err != nil {
		r.t.Fatalf("agent %s: %v", instance, err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Run(context.Background(), protocol.Handler{Stream: serve})
	}()
	r.t.Cleanup(func() { s.Close(protocol.CodeShutdown, "test over"); <-done })
	r.eventually(func() bool { return len(r.registry.Tunnels()) > before }, "the tunnel is registered")
	return s
}

func (r *rig) eventually(ok func() bool, what string) {
	r.t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("not within 5 s: %s", what)
		}
	}
}

func (r *rig) do(method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(r.t.Context(), method, "http://shop"+path, body)
	if err != nil {
		r.t.Fatal(err)
	}
	req.Host = "shop.example.com"
	return r.client.RoundTrip(req)
}

func app(t *testing.T, h http.HandlerFunc) string {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func TestRequestsReuseOneStreamAndKeepTheirBytes(t *testing.T) {
	r := newRig(t, Limits{})
	var conns atomic.Int32
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		w.Header().Set("X-Sum", fmt.Sprintf("%x", sha256.Sum256(body)))
		fmt.Fprintf(w, "%s %s %s %d", req.Method, req.Host, req.RequestURI, len(body))
	}))
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			conns.Add(1)
		}
	}
	srv.Start()
	defer srv.Close()
	r.agent("web.1", srv.Listener.Addr().String())
	for _, size := range []int{0, 1, 3000, 70_000, 3 << 20} {
		for _, known := range []bool{true, false} {
			body := bytes.Repeat([]byte("x"), size)
			var reader io.Reader = bytes.NewReader(body)
			if !known {
				reader = struct{ io.Reader }{reader}
			}
			resp, err := r.do("POST", "/a%2Fb?c=d", reader)
			if err != nil {
				t.Fatalf("%d bytes, known %v: %v", size, known, err)
			}
			got, err := io.ReadAll(resp.Body)
			if want := fmt.Sprintf("POST shop.example.com /a%%2Fb?c=d %d", size); err != nil || string(got) != want {
				t.Errorf("%d bytes, known %v: got %q, %v", size, known, got, err)
			}
			if resp.Header.Get("X-Sum") != fmt.Sprintf("%x", sha256.Sum256(body)) {
				t.Errorf("%d bytes, known %v: the body changed on the way", size, known)
			}
			resp.Body.Close()
		}
	}
	if n := conns.Load(); n != 1 {
		t.Errorf("%d connections at the app, expected one kept alive", n)
	}
}

func TestTrailersInterimAnswersAndUpgradesPass(t *testing.T) {
	r := newRig(t, Limits{})
	r.agent("web.1", app(t, func(w http.ResponseWriter, req *http.Request) {
		if req.Header.Get("Upgrade") != "" {
			conn, rw, _ := w.(http.Hijacker).Hijack()
			rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nhi ")
			rw.Flush()
			io.Copy(conn, rw) // until the client's half-close
			io.WriteString(conn, " bye")
			conn.Close()
			return
		}
		w.Header().Set("Link", "</a.css>")
		w.WriteHeader(103)
		w.Header().Set("Trailer", "X-End")
		io.Copy(w, req.Body)
		w.Header().Set("X-End", req.Trailer.Get("X-Sum"))
	}))
	var hints []string
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		hints = append(hints, fmt.Sprint(code, h.Get("Link")))
		return nil
	}})
	req, _ := http.NewRequestWithContext(ctx, "POST", "http://shop/", io.NopCloser(strings.NewReader("abc")))
	req.Trailer = http.Header{"X-Sum": {"42"}}
	resp, err := r.client.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	if string(body) != "abc" || resp.Trailer.Get("X-End") != "42" || strings.Join(hints, ";") != "103</a.css>" {
		t.Errorf("body %q, trailer %v, interim %v", body, resp.Trailer, hints)
	}

	req, _ = http.NewRequest("GET", "http://shop/", nil)
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "echo")
	if resp, err = r.client.RoundTrip(req); err != nil || resp.StatusCode != 101 {
		t.Fatalf("upgrade: %v, %v", resp, err)
	}
	conn := resp.Body.(io.ReadWriteCloser)
	defer conn.Close()
	io.WriteString(conn, "echo")
	conn.(interface{ CloseWrite() error }).CloseWrite()
	if got, err := io.ReadAll(conn); err != nil || string(got) != "hi echo bye" {
		t.Errorf("upgraded connection: %q, %v", got, err)
	}
}

func TestRefusedRequestGoesToAnotherAgentWithItsBody(t *testing.T) {
	r := newRig(t, Limits{})
	var seen atomic.Int32
	good := app(t, func(w http.ResponseWriter, req *http.Request) {
		seen.Add(1)
		io.Copy(w, req.Body)
	})
	for i := range 3 {
		r.agent(fmt.Sprint("broken.", i), "127.0.0.1:1")
	}
	r.agent("web.1", good)
	for range 8 {
		resp, err := r.do("POST", "/", struct{ io.Reader }{strings.NewReader("payload")})
		if err != nil {
			t.Fatalf("request: %v", err)
		}
		if body, _ := io.ReadAll(resp.Body); string(body) != "payload" {
			t.Errorf("the second agent got %q", body)
		}
	}
	if seen.Load() != 8 {
		t.Errorf("the app saw %d requests, expected 8", seen.Load())
	}
}

// An app that stops closes its idle connections, and a request may be on its way to
// one of them. Nothing of it has reached the app, so another one gets it, whatever
// its method.
func TestRequestThatMetAClosedConnectionGoesToAnotherAgent(t *testing.T) {
	for name, withFIN := range map[string]bool{"end and reset": true, "reset alone": false} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Limits{})
			asked := make(chan struct{}, 1)
			var streams atomic.Int32
			r.agentWith("web.1", func(_ context.Context, s *protocol.Stream) {
				if streams.Add(1) > 1 {
					s.Refuse(protocol.CodeRefused, "the app has stopped listening")
					return
				}
				s.Accept()
				br := bufio.NewReader(s)
				first, err := http.ReadRequest(br)
				if err != nil {
					return
				}
				io.Copy(io.Discard, first.Body)
				io.WriteString(s, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				if _, err := br.Peek(1); err == nil { // the next request has come
					asked <- struct{}{}
					if withFIN {
						s.CloseWrite()
					}
				}
				s.Reset(protocol.CodeStale)
			})
			if resp, err := r.do("POST", "/first", nil); err != nil {
				t.Fatal(err)
			} else {
				resp.Body.Close()
			}
			bodies := make(chan string, 1)
			second := app(t, func(w http.ResponseWriter, req *http.Request) {
				body, _ := io.ReadAll(req.Body)
				bodies <- string(body)
			})
			r.agent("web.2", second)
			for range 2 { // one of them takes the turn of web.1
				resp, err := r.do("POST", "/order", strings.NewReader("once only"))
				if err != nil {
					t.Fatalf("%v, expected the other agent's answer", err)
				}
				resp.Body.Close()
				if body := <-bodies; body != "once only" {
					t.Errorf("the second app got %q", body)
				}
			}
			select {
			case <-asked:
			default:
				t.Error("the first agent was not asked, so nothing was shown")
			}
		})
	}
}

// A connection that lay idle may end while a request is on its way, and nobody can
// say whether the app has read it. What changes nothing is asked once more.
func TestSafeRequestThatFoundAKeptConnectionEndedIsSentOnceMore(t *testing.T) {
	for method, want := range map[string]relay.Code{"GET": "", "HEAD": "", "POST": relay.AppReset, "DELETE": relay.AppReset} {
		t.Run(method, func(t *testing.T) {
			r := newRig(t, Limits{})
			r.agentWith("web.1", func(_ context.Context, s *protocol.Stream) {
				s.Accept()
				br := bufio.NewReader(s)
				req, err := http.ReadRequest(br)
				if err != nil {
					return
				}
				io.Copy(io.Discard, req.Body)
				io.WriteString(s, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				br.Peek(1)
				s.CloseWrite()
				io.Copy(io.Discard, br)
			})
			for n := range 2 {
				resp, err := r.do(method, "/", nil)
				if n == 0 && err != nil || n == 1 && relay.CodeOf(err) != want {
					t.Fatalf("request %d: %v, want %q", n+1, err, want)
				}
				if err == nil {
					resp.Body.Close()
				}
			}
		})
	}
}

func TestFailuresHaveTheirCodes(t *testing.T) {
	silent := app(t, func(w http.ResponseWriter, req *http.Request) { <-req.Context().Done() })
	closes := app(t, func(w http.ResponseWriter, req *http.Request) { panic(http.ErrAbortHandler) })
	for name, test := range map[string]struct {
		addr string
		want relay.Code
	}{
		"no agent":      {"", relay.NoAgent},
		"app not there": {"127.0.0.1:1", relay.AppRefused},
		"app silent":    {silent, relay.AppTimeout},
		"app hangs up":  {closes, relay.AppReset},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Limits{Park: 50 * time.Millisecond})
			r.client.Idle = 200 * time.Millisecond
			if test.addr != "" {
				r.agent("web.1", test.addr)
			}
			_, err := r.do("GET", "/", nil)
			if relay.CodeOf(err) != test.want {
				t.Errorf("got %v, expected %s", err, test.want)
			}
		})
	}
}

// No byte may reach a second app once one of them might have seen the request.
func TestRequestThatMayHaveReachedAnAppIsNotRepeated(t *testing.T) {
	r := newRig(t, Limits{})
	var seen atomic.Int32
	for i := range 2 {
		r.agentWith(fmt.Sprint("web.", i), func(_ context.Context, s *protocol.Stream) {
			s.Accept()
			io.ReadFull(s, make([]byte, 10))
			seen.Add(1)
			s.Reset(protocol.CodeReset)
		})
	}
	if _, err := r.do("GET", "/", nil); relay.CodeOf(err) != relay.AppReset {
		t.Errorf("got %v, expected %s", err, relay.AppReset)
	}
	if seen.Load() != 1 {
		t.Errorf("%d agents saw the request, expected one", seen.Load())
	}
}

func TestCutAnswerIsAnErrorAndNotAnEnd(t *testing.T) {
	for _, head := range []string{"Content-Length: 100", "Transfer-Encoding: chunked", "Connection: close"} {
		t.Run(head, func(t *testing.T) {
			r := newRig(t, Limits{})
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			read := make(chan struct{})
			go func() {
				c, err := l.Accept()
				if err != nil {
					return
				}
				io.WriteString(c, "HTTP/1.1 200 OK\r\n"+head+"\r\n\r\n5\r\nabcde\r\n")
				<-read
				c.(*net.TCPConn).SetLinger(0)
				c.Close()
			}()
			r.agent("web.1", l.Addr().String())
			resp, err := r.do("GET", "/", nil)
			if err != nil {
				t.Fatal(err)
			}
			io.ReadFull(resp.Body, make([]byte, 3))
			close(read)
			if _, err := io.ReadAll(resp.Body); err == nil {
				t.Error("a cut answer ended like a whole one")
			}
		})
	}
}

func TestRequestWaitsForAnAgentToComeBack(t *testing.T) {
	r := newRig(t, Limits{Park: 5 * time.Second})
	addr := app(t, func(w http.ResponseWriter, req *http.Request) { io.WriteString(w, "here") })
	var requests sync.WaitGroup
	for range 5 {
		requests.Go(func() {
			resp, err := r.do("GET", "/", nil)
			if err != nil {
				t.Errorf("parked request: %v", err)
				return
			}
			resp.Body.Close()
		})
	}
	r.eventually(func() bool {
		r.registry.mu.Lock()
		defer r.registry.mu.Unlock()
		return r.registry.apps["shop"] != nil && r.registry.apps["shop"].parked == 5
	}, "five requests are parked")
	r.agent("web.1", addr)
	requests.Wait()
}

func TestDrainingAgentFinishesAndGetsNothingNew(t *testing.T) {
	r := newRig(t, Limits{})
	release := make(chan struct{})
	entered := make(chan struct{})
	slow := app(t, func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/slow" {
			close(entered)
			<-release
		}
		io.WriteString(w, "old")
	})
	old := r.agent("web.1", slow)
	result := make(chan error, 1)
	go func() {
		resp, err := r.do("GET", "/slow", nil)
		if err == nil {
			var b []byte
			if b, err = io.ReadAll(resp.Body); err == nil && string(b) != "old" {
				err = errors.New("wrong body")
			}
		}
		result <- err
	}()
	<-entered
	r.agent("web.2", app(t, func(w http.ResponseWriter, req *http.Request) { io.WriteString(w, "new") }))
	if err := old.Drain(t.Context(), protocol.Drain{Grace: time.Minute}); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		resp, err := r.do("GET", "/", nil)
		if err != nil {
			t.Fatal(err)
		}
		if b, _ := io.ReadAll(resp.Body); string(b) != "new" {
			t.Fatal("a draining agent got a new request")
		}
	}
	close(release)
	if err := <-result; err != nil {
		t.Errorf("request in flight during the drain: %v", err)
	}
	if err := old.WaitIdle(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestClientGoneCancelsTheAppsRequest(t *testing.T) {
	r := newRig(t, Limits{})
	entered, gone := make(chan struct{}), make(chan struct{})
	r.agent("web.1", app(t, func(w http.ResponseWriter, req *http.Request) {
		close(entered)
		<-req.Context().Done()
		close(gone)
	}))
	ctx, cancel := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, "GET", "http://shop/", nil)
	go func() { <-entered; cancel() }()
	if _, err := r.client.RoundTrip(req); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	select {
	case <-gone:
	case <-time.After(5 * time.Second):
		t.Error("the app's request goes on after its client left")
	}
}

func TestExpectContinueAsksTheAppBeforeTheBody(t *testing.T) {
	r := newRig(t, Limits{})
	r.agentWith("raw", func(_ context.Context, s *protocol.Stream) {
		s.Accept()
		req, err := http.ReadRequest(bufio.NewReader(s))
		if err != nil || req.Header.Get("Expect") != "100-continue" {
			t.Errorf("app got %v, %v", req, err)
		}
		io.WriteString(s, "HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n")
		if n, _ := io.Copy(io.Discard, s); n != 0 {
			t.Errorf("%d bytes of a body that was not wanted", n)
		}
	})
	read := false
	req, _ := http.NewRequest("PUT", "http://shop/", readerFunc(func(p []byte) (int, error) { read = true; return 0, io.EOF }))
	req.ContentLength = 5
	req.Header.Set("Expect", "100-continue")
	resp, err := r.client.RoundTrip(req)
	if err != nil || resp.StatusCode != 401 {
		t.Fatalf("got %v, %v", resp, err)
	}
	resp.Body.Close()
	if read {
		t.Error("the client's body was read although the app refused it")
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
