package protocol

import (
	"bufio"
	"net"
	"net/http"
	"sync"
	"time"
)

// corkConn sits between the WebSocket library and the socket. The library
// writes through 4 KiB buffers that cannot be configured, so a 64 KiB message
// of a client, which must be masked, would cost sixteen system calls (and, over
// TLS, sixteen records). Corked, the pieces of a message gather here and leave
// in one write.
//
// Reads go straight through; writes are safe for concurrent use.
type corkConn struct {
	net.Conn

	mu     sync.Mutex
	corked bool   // guarded by mu
	buf    []byte // guarded by mu; what was written while corked
	err    error  // guarded by mu; the first failed write, final
}

const (
	corkLimit  = 128 << 10 // a longer message leaves in several writes
	corkDirect = 16 << 10  // pieces of this size are worth a writev instead of a copy
)

// begin starts to gather.
func (c *corkConn) begin() {
	c.mu.Lock()
	c.corked = true
	c.mu.Unlock()
}

// end writes what has gathered.
func (c *corkConn) end() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.corked = false
	return c.flushLocked(nil)
}

func (c *corkConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.corked || len(p) >= corkDirect || len(c.buf)+len(p) > corkLimit {
		if err := c.flushLocked(p); err != nil {
			return 0, err
		}
		return len(p), nil
	}
	c.buf = append(c.buf, p...)
	return len(p), nil
}

// flushLocked writes the gathered bytes and then p. A write that makes no
// progress for writeStall fails, and with it the connection: a peer that does
// not read is as good as gone.
func (c *corkConn) flushLocked(p []byte) error {
	if c.err != nil || len(c.buf)+len(p) == 0 {
		return c.err
	}
	if c.err = c.Conn.SetWriteDeadline(time.Now().Add(writeStall)); c.err != nil {
		return c.err
	}
	switch {
	case len(p) == 0:
		_, c.err = c.Conn.Write(c.buf)
	case len(c.buf) == 0:
		_, c.err = c.Conn.Write(p)
	default:
		// On a *net.TCPConn this is one writev.
		both := net.Buffers{c.buf, p}
		_, c.err = both.WriteTo(c.Conn)
	}
	c.buf = c.buf[:0]
	return c.err
}

// swap replaces the empty gather buffer and returns the old one: the owner
// lends one while the tunnel is busy and takes it back when it is quiet.
func (c *corkConn) swap(buf []byte) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.buf) > 0 {
		return buf
	}
	old := c.buf
	c.buf = buf[:0]
	return old
}

// corkWriter hands websocket.Accept a corkConn in place of the server's
// connection.
type corkWriter struct {
	http.ResponseWriter
	conn *corkConn // set by Hijack
}

// Hijack implements http.Hijacker.
func (w *corkWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	w.conn = &corkConn{Conn: conn}
	// The upgrade answer is still in rw.Writer, whose target is the server's own
	// connection: it must leave before the target changes.
	if err := rw.Writer.Flush(); err != nil {
		conn.Close()
		return nil, nil, err
	}
	rw.Writer.Reset(w.conn)
	return w.conn, rw, nil
}
