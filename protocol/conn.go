package protocol

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
)

const (
	// gatherLimit is how many bytes may wait for the socket. Small enough that a
	// short request is not stuck behind a long queue, large enough to fill one
	// write.
	gatherLimit = 64 << 10
	// idleBuffer is what a quiet tunnel keeps for reading.
	idleBuffer = 4 << 10
	// busyBuffer is what one read may take from the socket, and one message hold
	// without growing, while the tunnel is busy. Lent from busyBuffers.
	busyBuffer = gatherLimit + 4<<10
	// writeStall is how long one write to the socket may make no progress.
	writeStall = 30 * time.Second
)

// busyBuffers holds *[busyBuffer]byte.
var busyBuffers = sync.Pool{New: func() any { return new([busyBuffer]byte) }}

func lendBuffer() []byte { return busyBuffers.Get().(*[busyBuffer]byte)[:] }

func returnBuffer(b []byte) {
	if cap(b) >= busyBuffer {
		busyBuffers.Put((*[busyBuffer]byte)(b[:busyBuffer]))
	}
}

// wsConn is the net.Conn under the multiplexer: a byte stream made of binary
// WebSocket messages. It replaces websocket.NetConn, which sends every yamux
// frame as a message of its own and pays for a context each time.
//
// Write appends to a buffer and returns; the goroutine flush sends whatever has
// gathered as one message. A full buffer blocks the writer and nobody else.
type wsConn struct {
	ws   *websocket.Conn
	wire *framer

	lastRead atomic.Int64 // unix nanoseconds of the last byte received

	// Read side; owned by the one reader, the multiplexer's receive loop.
	msg      io.Reader // the message being read, nil between messages
	in       []byte    // unread bytes, inside small or large
	small    []byte    // idleBuffer bytes, always there
	large    []byte    // busyBuffer bytes while the tunnel is busy, else nil
	lastFill int       // what the last read from the socket brought
	readErr  error     // final

	mu      sync.Mutex
	changed sync.Cond // of mu: gather shrank, flushing ended, or err was set
	gather  []byte    // guarded by mu; room for a header, then the bytes that wait for flush; nil while quiet
	busy    bool      // guarded by mu; flush is sending
	err     error     // guarded by mu; final

	wake    chan struct{} // one slot: gather has bytes
	closed  chan struct{}
	once    sync.Once
	flushed chan struct{} // closed when the goroutine flush has returned
}

// newWSConn starts the goroutine flush; Close ends it.
func newWSConn(ws *websocket.Conn, wire *framer) *wsConn {
	ws.SetReadLimit(-1) // a message is as long as its sender's buffer; the multiplexer bounds what is kept
	c := &wsConn{
		ws: ws, wire: wire,
		small:   make([]byte, idleBuffer),
		wake:    make(chan struct{}, 1),
		closed:  make(chan struct{}),
		flushed: make(chan struct{}),
	}
	c.changed.L = &c.mu
	c.lastRead.Store(time.Now().UnixNano())
	go c.flush()
	return c
}

// Read implements net.Conn, for one goroutine at a time.
func (c *wsConn) Read(p []byte) (int, error) {
	if len(c.in) == 0 {
		if c.readErr != nil {
			return 0, c.readErr
		}
		buf := c.readBuffer()
		if len(p) >= len(buf) {
			return c.fill(p) // no detour
		}
		n, err := c.fill(buf)
		if err != nil {
			return 0, err
		}
		c.in = buf[:n]
	}
	n := copy(p, c.in)
	c.in = c.in[n:]
	return n, nil
}

// readBuffer picks the buffer for the next fill. c.in is empty, so nothing
// points into either.
func (c *wsConn) readBuffer() []byte {
	switch {
	case c.large == nil && c.lastFill >= idleBuffer/2:
		c.large = lendBuffer()
	case c.large != nil && c.lastFill < idleBuffer/2:
		returnBuffer(c.large)
		c.large = nil
	}
	if c.large != nil {
		return c.large
	}
	return c.small
}

// fill reads once from the socket into buf, going on to the next message when
// one ends.
func (c *wsConn) fill(buf []byte) (int, error) {
	for {
		if c.msg == nil {
			typ, r, err := c.ws.Reader(context.Background())
			if err == nil && typ != websocket.MessageBinary {
				err = Errorf(CodeBadMessage, "WebSocket message of type %v, expected binary", typ)
			}
			if err != nil {
				c.readErr = c.cause(err)
				return 0, c.readErr
			}
			c.msg = r
		}
		n, err := c.msg.Read(buf)
		if errors.Is(err, io.EOF) {
			c.msg, err = nil, nil
		}
		if err != nil {
			err = c.cause(err)
			c.readErr = err
		}
		if n > 0 {
			c.lastFill = n
			c.lastRead.Store(time.Now().UnixNano())
			return n, nil
		}
		if err != nil {
			return 0, err
		}
	}
}

// Write implements net.Conn: it takes p over and returns before it is sent.
func (c *wsConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	for c.err == nil && c.waitingLocked() > 0 && c.waitingLocked()+len(p) > gatherLimit {
		c.changed.Wait()
	}
	if c.err != nil {
		err := c.err
		c.mu.Unlock()
		return 0, err
	}
	if c.gather == nil {
		c.gather = lendBuffer()[:frameHead]
	}
	c.gather = append(c.gather, p...)
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
	return len(p), nil
}

// flush sends what gathers until the connection is closed.
func (c *wsConn) flush() {
	defer close(c.flushed)
	for {
		select {
		case <-c.wake:
			c.flushGathered()
		case <-c.closed:
			return
		}
	}
}

// flushGathered sends until nothing is left. Writers go on filling a second
// buffer while the first is on its way.
func (c *wsConn) flushGathered() {
	spare := lendBuffer()[:frameHead]
	for {
		c.mu.Lock()
		buf := c.gather
		if c.waitingLocked() == 0 || c.err != nil {
			c.gather, c.busy = nil, false
			c.changed.Broadcast()
			c.mu.Unlock()
			returnBuffer(buf)
			returnBuffer(spare)
			return
		}
		c.gather, c.busy = spare, true
		c.changed.Broadcast()
		c.mu.Unlock()
		if err := c.wire.writeMessage(buf); err != nil {
			c.fail(err)
		}
		spare = buf[:frameHead]
	}
}

// waitingLocked is how many bytes wait for flush.
func (c *wsConn) waitingLocked() int { return max(0, len(c.gather)-frameHead) }

// fail makes err the answer to every later Write and ends the connection, which
// ends the reader too.
func (c *wsConn) fail(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	c.changed.Broadcast()
	c.mu.Unlock()
	c.wire.Conn.Close()
}

// cause is why this end gave the connection up, if it did, else what the reader
// met: "handshake took too long" says more than "use of closed connection".
func (c *wsConn) cause(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	return err
}

// drain waits until everything written so far has been given to the kernel, or
// for at most the time given.
func (c *wsConn) drain(limit time.Duration) {
	expired := time.AfterFunc(limit, func() { c.fail(os.ErrDeadlineExceeded) })
	defer expired.Stop()
	c.mu.Lock()
	for c.err == nil && (c.waitingLocked() > 0 || c.busy) {
		c.changed.Wait()
	}
	c.mu.Unlock()
}

// Close ends the connection at once, whatever has not been sent is lost, and
// waits for flush. It may be called several times.
func (c *wsConn) Close() error {
	c.once.Do(func() {
		close(c.closed)
		c.fail(net.ErrClosed)
		c.ws.CloseNow()
	})
	<-c.flushed
	return nil
}

// quiet is how long ago the last byte arrived.
func (c *wsConn) quiet(now time.Time) time.Duration {
	return now.Sub(time.Unix(0, c.lastRead.Load()))
}

func (c *wsConn) LocalAddr() net.Addr  { return c.wire.LocalAddr() }
func (c *wsConn) RemoteAddr() net.Addr { return c.wire.RemoteAddr() }

// The multiplexer sets deadlines as its safety valve. Ours are better placed:
// writeStall bounds every write to the socket, and the session's heartbeat
// decides when a silent peer is dead, because any byte counts as life.
func (c *wsConn) SetDeadline(time.Time) error      { return nil }
func (c *wsConn) SetReadDeadline(time.Time) error  { return nil }
func (c *wsConn) SetWriteDeadline(time.Time) error { return nil }
