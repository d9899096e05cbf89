package tunnel

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/relay"
)

// refusal is the JSON of an answer that is not a tunnel.
type refusal struct {
	Error struct {
		Code      string `json:"code"`
		Reason    string `json:"reason"`
		Message   string `json:"message"`
		RequestID string `json:"request_id"`
	} `json:"error"`
}

func TestTunnelIsRefusedInJSONBeforeTheUpgrade(t *testing.T) {
	for _, test := range []struct {
		name       string
		authorize  error
		known      error
		closed     bool
		status     int
		code       string
		reason     string
		message    string
		retryAfter string
	}{
		{name: "by a revoked token, with the reason", status: 401, code: "unauthorized", reason: "token_revoked", message: "the token was revoked",
			authorize: &relay.Error{Code: relay.Unauthorized, Reason: "token_revoked", Message: "the token was revoked"}},
		{name: "by a token of another scope", status: 403, code: "forbidden", message: "this token opens no tunnels",
			authorize: relay.Errorf(relay.Forbidden, "this token opens no tunnels")},
		{name: "by a fault of ours, which is not shown", status: 500, code: "internal", message: "its log has the reason",
			authorize: errors.New("secret detail")},
		{name: "while the store does not answer", status: 503, code: "unavailable", message: "the relay's store does not answer",
			known: errors.New("secret detail"), retryAfter: "5"},
		{name: "while the relay stops", status: 503, code: "draining", message: "the relay is stopping", closed: true, retryAfter: "5"},
	} {
		t.Run(test.name, func(t *testing.T) {
			registry := NewRegistry(Limits{}, nil)
			s := NewServer(ServerConfig{
				Registry:  registry,
				Authorize: func(*http.Request) (relay.Principal, error) { return relay.Principal{App: "shop"}, test.authorize },
				Known:     func(context.Context, relay.AppID) error { return test.known },
			})
			if test.closed {
				s.Close()
			}
			defer s.Close()
			w := httptest.NewRecorder()
			s.ServeHTTP(w, httptest.NewRequest("GET", protocol.TunnelPath, nil))
			var got refusal
			if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
				t.Fatalf("%v in %q", err, w.Body)
			}
			e := got.Error
			if w.Code != test.status || e.Code != test.code || e.Reason != test.reason || !strings.Contains(e.Message, test.message) {
				t.Errorf("answered %d %s", w.Code, w.Body)
			}
			if strings.Contains(w.Body.String(), "secret detail") {
				t.Errorf("the answer shows the inside: %s", w.Body)
			}
			if e.RequestID == "" || w.Header().Get(protocol.HeaderRequestID) != e.RequestID {
				t.Errorf("request id %q in the body, %q in the header", e.RequestID, w.Header().Get(protocol.HeaderRequestID))
			}
			if got := w.Header().Get("Retry-After"); got != test.retryAfter {
				t.Errorf("Retry-After %q, want %q", got, test.retryAfter)
			}
			if len(registry.Tunnels()) != 0 {
				t.Error("a refused agent has a tunnel")
			}
		})
	}
}

// serve puts a Server of cfg on a socket and dials it as web.1.
func serve(t *testing.T, cfg ServerConfig) (*Server, *protocol.Session, error) {
	t.Helper()
	cfg.Registry = NewRegistry(Limits{}, nil)
	s := NewServer(cfg)
	web := httptest.NewServer(s)
	t.Cleanup(func() {
		s.Close()
		web.Close()
	})
	sess, err := protocol.Dial(t.Context(), protocol.DialConfig{
		URL: web.URL, Token: "t", Hello: protocol.Hello{Instance: "web.1", BootID: "0123456789", Tunnels: 1},
	})
	return s, sess, err
}

func asShop(*http.Request) (relay.Principal, error) {
	return relay.Principal{App: "shop", Token: "tok_1"}, nil
}

// Between the check of the token and the registration, nobody who revokes it
// would find the tunnel.
func TestTokenRevokedDuringTheHandshakeEndsTheTunnel(t *testing.T) {
	_, sess, err := serve(t, ServerConfig{
		Authorize: asShop,
		Revoked:   func(id relay.TokenID) bool { return id == "tok_1" },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := sess.Run(t.Context(), protocol.Handler{}); protocol.CodeOf(err) != protocol.CodeRevoked {
		t.Errorf("the agent was told %v, want %s", err, protocol.CodeRevoked)
	}
}

func TestAgentIsToldWhereItIsAndItsAppIsMadeKnownFirst(t *testing.T) {
	var known []relay.AppID
	_, sess, err := serve(t, ServerConfig{
		Authorize: asShop, Node: "n1",
		Known:  func(_ context.Context, id relay.AppID) error { known = append(known, id); return nil },
		AppURL: func(id relay.AppID) string { return "https://" + string(id) + ".example.com" },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer sess.Close(protocol.CodeShutdown, "test over")
	w := sess.Welcome()
	if w.URL != "https://shop.example.com" || w.Node != "n1" || w.Session == "" {
		t.Errorf("welcomed with %+v", w)
	}
	if w.HeartbeatMS != protocol.DefaultHeartbeat.Milliseconds() {
		t.Errorf("heartbeat of %d ms, want the default", w.HeartbeatMS)
	}
	if len(known) != 1 || known[0] != "shop" {
		t.Errorf("made known: %v, want shop once", known)
	}
}

func TestAgentsGetSlotsOneAfterAnotherWithinTheSpread(t *testing.T) {
	s := NewServer(ServerConfig{Registry: NewRegistry(Limits{}, nil)})
	defer s.Close()
	seen := map[int64]bool{}
	for range slotSpread / slotStep {
		ms := s.welcome("shop").SlotMS
		if ms < 0 || ms >= slotSpread.Milliseconds() {
			t.Errorf("slot of %d ms, want less than %v", ms, slotSpread)
		}
		seen[ms] = true
	}
	if want := int(slotSpread / slotStep); len(seen) != want {
		t.Errorf("%d different slots, want %d", len(seen), want)
	}
}

func TestCloseTellsTheAgentsAndLeavesNoTunnel(t *testing.T) {
	s, sess, err := serve(t, ServerConfig{Authorize: asShop})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- sess.Run(context.Background(), protocol.Handler{}) }()
	s.Close()
	if err := <-ended; protocol.CodeOf(err) != protocol.CodeShutdown {
		t.Errorf("the agent was told %v, want %s", err, protocol.CodeShutdown)
	}
	if n := len(s.cfg.Registry.Tunnels()); n != 0 {
		t.Errorf("%d tunnels after Close", n)
	}
}

// A server that is closed while an agent is between the handshake and the
// registry must not leave that tunnel open, nor cut it without a word.
func TestTunnelThatComesTooLateIsToldSo(t *testing.T) {
	for name, stop := range map[string]func(*Registry){
		"drained": func(r *Registry) { r.Drain(t.Context(), 0, 0) },
		"closed":  (*Registry).Close,
	} {
		t.Run(name, func(t *testing.T) {
			s := NewServer(ServerConfig{Registry: NewRegistry(Limits{}, nil), Authorize: asShop})
			stop(s.cfg.Registry)
			web := httptest.NewServer(s)
			defer web.Close()
			defer s.Close()
			sess, err := protocol.Dial(t.Context(), protocol.DialConfig{
				URL: web.URL, Token: "t", Hello: protocol.Hello{Instance: "web.1", BootID: "0123456789", Tunnels: 1},
			})
			if err != nil {
				t.Fatal(err)
			}
			time.AfterFunc(10*time.Second, func() { sess.Close(protocol.CodeDead, "nobody ended it") })
			if err := sess.Run(t.Context(), protocol.Handler{}); protocol.CodeOf(err) != protocol.CodeShutdown {
				t.Errorf("the agent was told %v, want %s", err, protocol.CodeShutdown)
			}
		})
	}
}
