// Package protocoltest gives tests a real session between an agent and a relay
// without a network: the WebSocket, the multiplexer and the handshake are the
// product's own, only the socket under them is a pipe in memory. It works inside
// a testing/synctest bubble.
//
// It checks no token and serves no streams; the test runs both sessions.
package protocoltest

import (
	"context"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/posternhq/postern/protocol"
)

// Options changes what Pipe makes. The zero value is ready.
type Options struct {
	Hello     protocol.Hello  // default: instance "test.1"
	Agent     protocol.Config // limits of the agent's end
	Relay     protocol.Config // limits of the relay's end
	Heartbeat time.Duration   // default: protocol.DefaultHeartbeat
	// Wrap, when set, gets the agent's end of the pipe before anything is sent:
	// a test can count, delay or swallow bytes there.
	Wrap func(net.Conn) net.Conn
}

// Pipe returns both ends of a session whose handshake is done. The test calls
// Run on each; at its end both are closed.
func Pipe(t testing.TB, o Options) (agent, relay *protocol.Session) {
	t.Helper()
	if o.Hello.Instance == "" {
		o.Hello = protocol.Hello{Instance: "test.1", BootID: "0123456789abcdef", Tunnels: 1}
	}
	listener := newListener()
	accepted := make(chan *protocol.Session, 1)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s, err := protocol.Accept(w, r, protocol.AcceptConfig{
			Config: o.Relay,
			Welcome: func(protocol.Hello) (protocol.Welcome, error) {
				return protocol.Welcome{Session: "s1", Node: "n1", HeartbeatMS: o.Heartbeat.Milliseconds()}, nil
			},
		})
		if err != nil {
			t.Errorf("accept: %v", err)
		}
		accepted <- s
	})}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })

	agent, err := protocol.Dial(context.Background(), protocol.DialConfig{
		Config: o.Agent, URL: "http://relay.test", Token: "token", Hello: o.Hello,
		DialContext: func(context.Context, string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			listener.conns <- theirs
			if o.Wrap != nil {
				return o.Wrap(ours), nil
			}
			return ours, nil
		},
	})
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	if relay = <-accepted; relay == nil {
		t.FailNow()
	}
	t.Cleanup(func() {
		agent.Close(protocol.CodeShutdown, "test over")
		relay.Close(protocol.CodeShutdown, "test over")
	})
	return agent, relay
}

// listener is a net.Listener fed by hand.
type listener struct {
	conns  chan net.Conn
	closed chan struct{}
}

func newListener() *listener {
	return &listener{conns: make(chan net.Conn, 1), closed: make(chan struct{})}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error   { close(l.closed); return nil }
func (l *listener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }
