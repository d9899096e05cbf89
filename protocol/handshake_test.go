package protocol_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"github.com/posternhq/postern/protocol"
)

func TestCancelledDialSaysSoInEveryPhase(t *testing.T) {
	mute := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{protocol.Subprotocol}})
		if err != nil {
			return
		}
		for err == nil { // reads the hello and does not answer
			_, _, err = ws.Read(context.Background())
		}
	}))
	defer mute.Close()
	p := startProxy(t, &testProxy{hang: true}, false, nil)
	for name, cfg := range map[string]protocol.DialConfig{
		"in the proxy":     {URL: "http://relay.test", Env: env("HTTP_PROXY", "http://"+p.Addr().String())},
		"in the upgrade":   {URL: "http://" + p.Addr().String()},
		"in the handshake": {URL: mute.URL},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			time.AfterFunc(50*time.Millisecond, cancel)
			cfg.Token, cfg.Hello = token, testHello()
			if _, err := protocol.Dial(ctx, cfg); !errors.Is(err, context.Canceled) {
				t.Errorf("dial ended with %v", err)
			}
		})
	}
}

// The relay accepts the upgrade and then says nothing; so does the agent.
func TestSilentHandshakeEndsAfterTenSecondsWithTheReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		agent, relay := net.Pipe()
		l := newOneConn(relay)
		ended := make(chan error, 1)
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, err := protocol.Accept(w, r, protocol.AcceptConfig{})
			ended <- err
		})}
		go srv.Serve(l)
		start := time.Now()
		ws, _, err := websocket.Dial(t.Context(), "http://relay.test"+protocol.TunnelPath, &websocket.DialOptions{
			Subprotocols: []string{protocol.Subprotocol},
			HTTPClient: &http.Client{Transport: &http.Transport{
				DialContext: func(context.Context, string, string) (net.Conn, error) { return agent, nil }}},
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := <-ended; protocol.CodeOf(err) != protocol.CodeTimeout || !strings.Contains(err.Error(), "handshake took too long") {
			t.Errorf("accept ended with %v", err)
		}
		if took := time.Since(start); took != 10*time.Second {
			t.Errorf("after %v, expected 10 s", took)
		}
		ws.CloseNow()
		srv.Close()
	})
}

// oneConn is a listener with a single connection.
type oneConn struct {
	conns chan net.Conn
	done  chan struct{}
}

func newOneConn(c net.Conn) *oneConn {
	l := &oneConn{make(chan net.Conn, 1), make(chan struct{})}
	l.conns <- c
	return l
}

func (l *oneConn) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *oneConn) Close() error   { close(l.done); return nil }
func (l *oneConn) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }
