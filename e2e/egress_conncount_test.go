package e2e

import (
	"net"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/posternhq/postern/e2e/rig"
)

// connCount is a destination that knows how many connections it was given, and how
// many of them are open.
type connCount struct {
	addr       string
	made, gone atomic.Int64
}

func newConnCount(t testing.TB, h http.Handler) *connCount {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &connCount{addr: l.Addr().String()}
	rig.ServeOn(t, &countedListener{l, c}, h)
	return c
}

func (c *connCount) live() int64 { return c.made.Load() - c.gone.Load() }

type countedListener struct {
	net.Listener
	count *connCount
}

func (l *countedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.count.made.Add(1)
	return &countedConn{Conn: conn, count: l.count}, nil
}

type countedConn struct {
	net.Conn
	count  *connCount
	closed atomic.Bool
}

// Close implements net.Conn.
func (c *countedConn) Close() error {
	if c.closed.CompareAndSwap(false, true) {
		c.count.gone.Add(1)
	}
	return c.Conn.Close()
}
