package forward

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/protocoltest"
)

// heldConn is a connection whose reader can be held up, as if what the app sent were
// still on its way.
type heldConn struct {
	*net.TCPConn
	hold atomic.Pointer[chan struct{}]
}

func (h *heldConn) Read(p []byte) (int, error) {
	if hold := h.hold.Load(); hold != nil {
		<-*hold
	}
	return h.TCPConn.Read(p)
}

// An app closes a connection that lies idle, and the next request crosses its end on
// the way. Whether the app has had it, only its kernel knows, and it tells.
func TestARequestThatCrossedTheAppsEndIsUnsentOnlyIfItWasNotTaken(t *testing.T) {
	for _, test := range []struct {
		name string
		app  func(app net.Conn, ask func())
		want protocol.Code // "" is a plain end
	}{
		{"not taken", func(app net.Conn, ask func()) { app.Close(); ask() }, protocol.CodeStale},
		{"read, and not answered", func(app net.Conn, ask func()) {
			ask()
			io.ReadFull(app, make([]byte, 3))
			app.Close()
		}, ""},
		{"come to the app, and not read", func(app net.Conn, ask func()) {
			ask()
			app.Read(make([]byte, 1)) // it has come, whole
			app.Close()
		}, protocol.CodeReset},
	} {
		t.Run(test.name, func(t *testing.T) {
			agent, relay := protocoltest.Pipe(t, protocoltest.Options{})
			l := listen(t, "127.0.0.1:0")
			conns := make(chan *heldConn, 1)
			go agent.Run(context.Background(), protocol.Handler{Stream: func(_ context.Context, s *protocol.Stream) {
				conn, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					t.Error(err)
					return
				}
				held := &heldConn{TCPConn: conn.(*net.TCPConn)}
				conns <- held
				s.Accept()
				protocol.SpliceRequests(s, held, takenOf(conn))
			}})
			go relay.Run(context.Background(), protocol.Handler{})
			st, err := open(t, relay, protocol.Open{Kind: protocol.KindHTTP})
			if err != nil {
				t.Fatal(err)
			}
			app, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			held := <-conns
			io.WriteString(st, "one")
			if _, err := io.ReadFull(app, make([]byte, 3)); err != nil {
				t.Fatal(err)
			}
			hold := make(chan struct{})
			held.hold.Store(&hold)
			io.WriteString(app, "answer")
			if _, err := io.ReadFull(st, make([]byte, 6)); err != nil {
				t.Fatal(err)
			}
			written := make(chan struct{})
			go func() {
				defer close(written)
				test.app(app, func() { io.WriteString(st, "two") })
			}()
			<-written
			// The agent's write follows the relay's; the reader goes on behind it.
			for taken := takenOf(held.TCPConn); test.want == protocol.CodeStale; {
				if _, gone := taken(); gone {
					break
				}
			}
			close(hold)
			_, err = st.Read(make([]byte, 1))
			if test.want == "" {
				if err != io.EOF {
					t.Errorf("the app's end is %v", err)
				}
				return
			}
			var e *protocol.Error
			if !errors.As(err, &e) || e.Code != test.want || e.Unsent != (test.want == protocol.CodeStale) {
				t.Errorf("%v, want %s", err, test.want)
			}
		})
	}
}
