package protocol_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/posternhq/postern/protocol"
)

const token = "eyJhbGciOi.secret-token.signature"

// dialFails dials, expects an error and looks for the token in it.
func dialFails(t testing.TB, cfg protocol.DialConfig) error {
	t.Helper()
	cfg.Token = token
	if cfg.Hello.Instance == "" {
		cfg.Hello = testHello()
	}
	s, err := protocol.Dial(t.Context(), cfg)
	if err == nil {
		s.Close(protocol.CodeShutdown, "")
		t.Fatal("the dial worked, expected an error")
	}
	if text := fmt.Sprintf("%v %+v %#v", err, err, err); strings.Contains(text, "secret-token") {
		t.Errorf("the token is in the error: %s", text)
	}
	return err
}

func TestAgentReachesASecureRelayWhoseCAItKnows(t *testing.T) {
	t.Parallel()
	relay := newRelay(t, true, protocol.AcceptConfig{})
	for _, scheme := range []string{"https", "wss"} {
		agent, err := protocol.Dial(t.Context(), protocol.DialConfig{
			URL: scheme + "://" + relay.Listener.Addr().String() + "/", Token: token, Hello: testHello(),
			TLS: &tls.Config{RootCAs: testCA.pool},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer agent.Close(protocol.CodeShutdown, "")
		if got := receive(t, relay.tokens, "request"); got != "Bearer "+token {
			t.Errorf("Authorization %q", got)
		}
		run(t, agent, relay.next(t), protocol.Handler{Stream: echo})
		if got := agent.Welcome(); got.Session != "s1" || got.Node != "n1" || got.Version != protocol.Version ||
			got.HeartbeatMS != protocol.DefaultHeartbeat.Milliseconds() {
			t.Errorf("welcome %+v", got)
		}
	}
}

func TestUnknownCAComesWithAHint(t *testing.T) {
	t.Parallel()
	relay := newRelay(t, true, protocol.AcceptConfig{})
	relay.Config.ErrorLog = nil
	err := dialFails(t, protocol.DialConfig{URL: relay.URL, TLS: &tls.Config{RootCAs: x509.NewCertPool()}})
	if !strings.Contains(err.Error(), "is something between here and the relay opening TLS?") {
		t.Errorf("no hint in: %v", err)
	}
	var unknown *tls.CertificateVerificationError
	if !errors.As(err, &unknown) {
		t.Errorf("%v does not wrap the cause", err)
	}
}

func TestRefusedUpgradeSaysWhyAndWhetherToComeBack(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 5000)
	for name, test := range map[string]struct {
		status     int
		retryAfter string
		body       string
		want       protocol.HandshakeError
		permanent  bool
	}{
		"expired": {401, "", `{"error":{"code":"unauthorized","reason":"token_expired","message":"it ended","request_id":"r"}}`,
			protocol.HandshakeError{Status: 401, Reason: "token_expired", Message: "it ended"}, false},
		"revoked": {401, "", `{"error":{"code":"unauthorized","reason":"token_revoked","message":"m"}}`,
			protocol.HandshakeError{Status: 401, Reason: "token_revoked", Message: "m"}, true},
		"malformed": {401, "", `{"error":{"code":"unauthorized","reason":"token_malformed","message":"m"}}`,
			protocol.HandshakeError{Status: 401, Reason: "token_malformed", Message: "m"}, true},
		"wrong scope": {403, "", `{"error":{"code":"forbidden","message":"scope agent expected"}}`,
			protocol.HandshakeError{Status: 403, Reason: "forbidden", Message: "scope agent expected"}, false},
		"draining": {503, "7", `{"error":{"code":"draining","message":"moving"}}`,
			protocol.HandshakeError{Status: 503, Reason: "draining", Message: "moving", RetryAfter: 7 * time.Second}, false},
		"a platform's own page": {503, "", "<html>Application error</html>",
			protocol.HandshakeError{Status: 503, Reason: "http", Message: "Service Unavailable"}, false},
		"a year's wait is cut":    {503, "31536000", "", protocol.HandshakeError{Status: 503, Reason: "http", Message: "Service Unavailable", RetryAfter: time.Hour}, false},
		"a date to come back":     {503, "Wed, 21 Oct 2026 07:28:00 GMT", "", protocol.HandshakeError{Status: 503, Reason: "http", Message: "Service Unavailable"}, false},
		"JSON longer than a KiB":  {403, "", `{"error":{"code":"forbidden","message":"` + long + `"}}`, protocol.HandshakeError{Status: 403, Reason: "http", Message: "Forbidden"}, false},
		"not found":               {404, "", "404 page not found", protocol.HandshakeError{Status: 404, Reason: "http", Message: "Not Found"}, false},
		"web site in its place":   {200, "", "<html>welcome</html>", protocol.HandshakeError{Status: 200, Reason: "http", Message: "OK"}, false},
		"JSON of somebody else's": {429, "1", `{"error":"slow down"}`, protocol.HandshakeError{Status: 429, Reason: "http", Message: "Too Many Requests", RetryAfter: time.Second}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Retry-After", test.retryAfter)
				w.WriteHeader(test.status)
				io.WriteString(w, test.body)
			}))
			defer srv.Close()
			err := dialFails(t, protocol.DialConfig{URL: srv.URL})
			var refused *protocol.HandshakeError
			if !errors.As(err, &refused) {
				t.Fatalf("%v (%T), expected a *HandshakeError", err, err)
			}
			if *refused != test.want || refused.Permanent() != test.permanent {
				t.Errorf("got %+v, permanent %v", *refused, refused.Permanent())
			}
		})
	}
}

func TestTokenDoesNotFollowARedirect(t *testing.T) {
	t.Parallel()
	for _, status := range []int{301, 302, 303, 307, 308} {
		var visited atomic.Int32
		elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { visited.Add(1) }))
		defer elsewhere.Close()
		srv := httptest.NewServer(http.RedirectHandler(elsewhere.URL+protocol.TunnelPath, status))
		defer srv.Close()
		err := dialFails(t, protocol.DialConfig{URL: srv.URL})
		var refused *protocol.HandshakeError
		if !errors.As(err, &refused) || refused.Status != status {
			t.Errorf("%d: %v", status, err)
		}
		if visited.Load() != 0 {
			t.Errorf("%d was followed", status)
		}
	}
}

func TestServerThatIsNoRelayFailsAtOnceAndClearly(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		serve func(net.Conn)
		want  string
	}{
		"hangs up":      {func(c net.Conn) {}, "connect to the relay at"},
		"is not HTTP":   {func(c net.Conn) { io.WriteString(c, "SSH-2.0-OpenSSH_9.9\r\n") }, "connect to the relay at"},
		"wrong upgrade": {func(c net.Conn) { io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\n\r\n") }, "is not our tunnel"},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				c, err := l.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				c.Read(make([]byte, 4096))
				test.serve(c)
			}()
			if err := dialFails(t, protocol.DialConfig{URL: "http://" + l.Addr().String()}); !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, expected %q", err, test.want)
			}
		})
	}
	t.Run("another WebSocket", func(t *testing.T) {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ws, err := websocket.Accept(w, r, nil)
			if err == nil {
				ws.Read(context.Background())
				ws.CloseNow()
			}
		}))
		defer srv.Close()
		if err := dialFails(t, protocol.DialConfig{URL: srv.URL}); !strings.Contains(err.Error(), "not "+protocol.Subprotocol) {
			t.Error(err)
		}
	})
}

func TestRelayCanRefuseAfterHello(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		err       error
		want      protocol.HandshakeError
		permanent bool
	}{
		"instance": {protocol.Errorf(protocol.CodeReplaced, "web.1 is here already"), protocol.HandshakeError{Reason: "replaced", Message: "web.1 is here already"}, false},
		"limit":    {fmt.Errorf("check: %w", protocol.Errorf(protocol.CodeLimit, "9 agents")), protocol.HandshakeError{Reason: "limit", Message: "9 agents"}, false},
		"revoked":  {protocol.Errorf(protocol.CodeRevoked, "m"), protocol.HandshakeError{Reason: "token_revoked", Message: "m"}, true},
		"no code":  {errors.New("pq: password of postgres://u:p@h"), protocol.HandshakeError{Reason: "shutdown", Message: "the relay cannot take this session now"}, false},
		"inner cause stays here": {&protocol.Error{Code: protocol.CodeDraining, Message: "moving", Err: errors.New("10.0.0.7 lost")},
			protocol.HandshakeError{Reason: "agent_draining", Message: "moving"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			relay := newRelay(t, false, protocol.AcceptConfig{
				Welcome: func(protocol.Hello) (protocol.Welcome, error) { return protocol.Welcome{}, test.err },
			})
			err := dialFails(t, protocol.DialConfig{URL: relay.URL})
			var refused *protocol.HandshakeError
			if !errors.As(err, &refused) || *refused != test.want || refused.Permanent() != test.permanent {
				t.Errorf("got %#v, expected %+v", err, test.want)
			}
			if a := receive(t, relay.sessions, "end at the relay"); !errors.Is(a.err, test.err) {
				t.Errorf("accept ended with %v", a.err)
			}
		})
	}
}

func TestHelloOutsideItsLimitsIsNotSent(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*protocol.Hello){
		"no boot id":         func(h *protocol.Hello) { h.BootID = "" },
		"short boot id":      func(h *protocol.Hello) { h.BootID = "1234567" },
		"no tunnels":         func(h *protocol.Hello) { h.Tunnels = 0 },
		"too many tunnels":   func(h *protocol.Hello) { h.Tunnels = protocol.MaxTunnels + 1 },
		"tunnel out of them": func(h *protocol.Hello) { h.Tunnel = 1 },
		"negative tunnel":    func(h *protocol.Hello) { h.Tunnel = -1 },
		"long instance":      func(h *protocol.Hello) { h.Instance = strings.Repeat("x", 129) },
		"line feed":          func(h *protocol.Hello) { h.Release = "v1\nlevel=error" },
		"beyond ASCII":       func(h *protocol.Hello) { h.Region = "zürich" },
	} {
		t.Run(name, func(t *testing.T) {
			relay := newRelay(t, false, protocol.AcceptConfig{})
			h := testHello()
			change(&h)
			if err := dialFails(t, protocol.DialConfig{URL: relay.URL, Hello: h}); protocol.CodeOf(err) != protocol.CodeBadMessage {
				t.Error(err)
			}
			if a := receive(t, relay.sessions, "end at the relay"); a.err == nil {
				t.Error("the relay has a session")
			}
		})
	}
}

func TestRelayURLThatCannotBeUsedKeepsItsPasswordToItself(t *testing.T) {
	for _, bad := range []string{"", "relay.example", "ftp://u:geheim@relay.example", "https://", "https://u:geheim@relay.example:port",
		"https://u:100%geheim@relay.example", "https://u:a/geheim@relay.example", "http://[::1"} {
		if err := dialFails(t, protocol.DialConfig{URL: bad}); strings.Contains(err.Error(), "geheim") || !strings.Contains(err.Error(), "relay URL") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
