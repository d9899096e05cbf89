package protocol

import (
	"bytes"
	"math"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
)

const (
	// gatherLimit is how many bytes may wait for the socket: two chunks. Small
	// enough that a short request is not stuck behind a long queue.
	gatherLimit = 2 * (chunk + headerSize)
	// idleBuffer is what a quiet tunnel keeps for reading.
	idleBuffer = 512
	// busyBuffer is what one read may take from the socket, and one message hold
	// without growing, while the tunnel is busy. Lent from busyBuffers.
	busyBuffer = gatherLimit + 8<<10
	// controlLimit is how far frames that cannot wait may overfill the buffer.
	controlLimit = 1 << 20
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

// wsConn is what the multiplexer stands on: bytes in, frames out, as binary
// WebSocket messages. It replaces websocket.NetConn, which sends every yamux
// header and body as a message of its own and pays for a context each time.
//
// Writing gathers: a frame is appended to a buffer, and whoever finds nobody
// sending sends everything that has gathered, as one message, until nothing is
// left; the others return at once. There is no timer and no hand-over to another
// goroutine. A full buffer blocks the writer and nobody else.
type wsConn struct {
	wire *framer

	lastRead atomic.Int64 // unix nanoseconds of the last byte received

	// Read side; owned by the one reader, the multiplexer's receiver.
	reader  frameReader
	in      []byte // unread bytes, inside the reader's buffer
	small   []byte // idleBuffer bytes, always there
	large   []byte // busyBuffer bytes while the tunnel is busy, else nil
	readErr error  // final

	answering atomic.Bool // a control frame is being answered

	mu      sync.Mutex
	changed sync.Cond // of mu: gather shrank, sending ended, or err was set
	gather  []byte    // guarded by mu; room for a header, then the frames that wait; nil while quiet
	frames  int       // guarded by mu; how many frames gather holds
	busy    bool      // guarded by mu; somebody is sending
	err     error     // guarded by mu; final

	senders sync.WaitGroup // background senders; Add under mu while err is nil
}

// newWSConn starts nothing. The library has done its part with the handshake: ws
// is let go, and with it 4 KiB, and must not close the socket when it is collected.
func newWSConn(ws *websocket.Conn, wire *framer) *wsConn {
	runtime.SetFinalizer(ws, nil)
	c := &wsConn{wire: wire, small: make([]byte, idleBuffer)}
	c.changed.L = &c.mu
	c.reader = frameReader{src: wire, masked: !wire.masked, control: c.answer}
	c.reader.use(c.small)
	c.lastRead.Store(time.Now().UnixNano())
	return c
}

// next returns bytes that have arrived, at least one, waiting for them. They
// stay valid until the next call; advance says how many were used.
func (c *wsConn) next() ([]byte, error) {
	if len(c.in) > 0 {
		return c.in, nil
	}
	if c.readErr == nil {
		c.chooseBuffer()
		if c.in, c.readErr = c.reader.next(); c.readErr == nil {
			c.lastRead.Store(time.Now().UnixNano())
		}
	}
	if c.readErr != nil {
		return nil, c.cause(c.readErr)
	}
	return c.in, nil
}

func (c *wsConn) advance(n int) { c.in = c.in[n:] }

// chooseBuffer gives the reader a large buffer while much arrives, and takes it
// back when little does.
func (c *wsConn) chooseBuffer() {
	if !c.reader.empty() {
		return
	}
	switch much := c.reader.lastFill >= idleBuffer/2; {
	case much && c.large == nil:
		c.large = lendBuffer()
		c.reader.use(c.large)
	case !much && c.large != nil:
		c.reader.use(c.small)
		returnBuffer(c.large)
		c.large = nil
	}
}

// answer answers a ping or a close. It is called by the receiver, which must not
// wait for the socket. One answer at a time: RFC 6455, section 5.5.3, asks only
// for the latest ping's.
func (c *wsConn) answer(op byte, payload []byte) {
	if c.answering.Swap(true) {
		return
	}
	if op == opPing {
		op = opPong
	}
	payload = bytes.Clone(payload)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.senders.Go(func() {
		defer c.answering.Store(false)
		if err := c.wire.writeControl(op, payload); err != nil {
			c.fail(err)
		}
	})
}

// writeFrame queues one frame, waiting while the buffer is full, and sends it
// unless somebody is sending already. Nil means queued.
func (c *wsConn) writeFrame(h header, p []byte) error {
	size := headerSize + len(p)
	c.mu.Lock()
	for c.err == nil && c.waitingLocked() > 0 && c.waitingLocked()+size > gatherLimit {
		c.changed.Wait()
	}
	mine := c.appendLocked(h, p)
	err := c.err
	c.mu.Unlock()
	if mine {
		c.send(sendTurns)
	}
	return err
}

// writeControl queues a frame without content at once and sends it unless
// somebody is sending already.
func (c *wsConn) writeControl(h header) {
	c.mu.Lock()
	mine := c.appendLocked(h, nil)
	c.mu.Unlock()
	if mine {
		c.send(sendTurns)
	}
}

// appendFrame queues a small frame for those who must not wait for the socket:
// the receiver, whoever holds a stream's lock, and the control stream.
func (c *wsConn) appendFrame(h header, p []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waitingLocked() > controlLimit {
		c.failLocked(Errorf(CodeBadMessage, "the peer sends and does not read"))
	}
	if c.appendLocked(h, p) {
		c.senders.Go(c.sendRest)
	}
	return c.err
}

// appendLocked queues a frame. True obliges the caller to call send.
func (c *wsConn) appendLocked(h header, p []byte) bool {
	if c.err != nil {
		return false
	}
	if c.gather == nil {
		c.gather = lendBuffer()[:frameHead]
	}
	c.gather = append(append(c.gather, h[:]...), p...)
	c.frames++
	mine := !c.busy
	c.busy = true
	return mine
}

// sendTurns is how many messages a writer sends before it leaves what others
// have added meanwhile to a goroutine: a short write must not last as long as
// somebody else's transfer.
const sendTurns = 4

func (c *wsConn) sendRest() { c.send(math.MaxInt) }

// send sends until nothing is left, or turns are used up; busy is the caller's.
// Writers go on filling a second buffer while the first is on its way.
func (c *wsConn) send(turns int) {
	spare := lendBuffer()[:frameHead]
	for crowd := false; ; turns-- {
		if crowd {
			// Several streams were writing a moment ago: let those that can run
			// add their frames before this message leaves.
			runtime.Gosched()
		}
		c.mu.Lock()
		buf := c.gather
		if c.waitingLocked() == 0 || c.err != nil {
			c.gather, c.frames, c.busy = nil, 0, false
			c.changed.Broadcast()
			c.mu.Unlock()
			returnBuffer(buf)
			returnBuffer(spare)
			return
		}
		if turns == 0 {
			c.senders.Go(c.sendRest)
			c.mu.Unlock()
			returnBuffer(spare)
			return
		}
		crowd = c.frames > 1
		c.gather, c.frames = spare, 0
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

// fail makes err the answer to every later write and ends the connection, which
// ends the reader too.
func (c *wsConn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failLocked(err)
}

func (c *wsConn) failLocked(err error) {
	if c.err == nil {
		c.err = err
	}
	c.changed.Broadcast()
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
// waits for background senders. It may be called several times.
func (c *wsConn) Close() error {
	c.fail(net.ErrClosed)
	c.senders.Wait()
	return nil
}

// quiet is how long ago the last byte arrived.
func (c *wsConn) quiet(now time.Time) time.Duration {
	return now.Sub(time.Unix(0, c.lastRead.Load()))
}

func (c *wsConn) LocalAddr() net.Addr  { return c.wire.LocalAddr() }
func (c *wsConn) RemoteAddr() net.Addr { return c.wire.RemoteAddr() }
