package tunnel

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/relay"
)

const (
	// idleStream is how long a kept-alive stream waits for its next request. It
	// is shorter than the keep-alive limit of common app servers (gunicorn 2 s,
	// Node and uvicorn 5 s), so that the app practically never closes the
	// connection in the moment a request leaves for it. A new stream costs no
	// round trip, so little is lost.
	idleStream = 1500 * time.Millisecond
	// maxIdlePerTunnel bounds the kept-alive streams of one tunnel.
	maxIdlePerTunnel = 256
	// maxHead is the most an app's answer may spend on its head, in bytes, all
	// interim answers included.
	maxHead = 256 << 10
	// continueWait is how long an app may take to say 100 Continue before the
	// body is sent all the same: many servers never say it.
	continueWait = time.Second
	// idleSteps is into how many silent parts the idle limit is divided.
	idleSteps = 4
)

// conn is HTTP/1.1 on one stream. It is used by one request at a time, or lies
// idle in its Tunnel.
type conn struct {
	t      *Tunnel
	stream *protocol.Stream
	br     *bufio.Reader // owned by the reader of the answer
	bw     *bufio.Writer // owned by the writer of the request

	reused   bool // it has carried a request before; set by takeIdle
	headLeft int  // owned by the reader; bytes the head may still take, -1 in the body

	wrote    atomic.Int64 // bytes of the current request given to the stream
	moved    atomic.Bool  // bytes moved either way since the last look
	silent   atomic.Int32 // looks without movement
	timedOut atomic.Bool
	idle     time.Duration
	timer    *time.Timer // runs tick

	mu     sync.Mutex
	asleep bool // guarded by mu; lies in the Tunnel
	over   bool // guarded by mu
}

var (
	readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, 4<<10) }}
	writers = sync.Pool{New: func() any { return bufio.NewWriterSize(nil, 4<<10) }}
)

// newConn starts the idle watch; idle is the request's limit of silence.
func newConn(t *Tunnel, s *protocol.Stream, idle time.Duration) *conn {
	c := &conn{t: t, stream: s, idle: idle}
	c.br, c.bw = readers.Get().(*bufio.Reader), writers.Get().(*bufio.Writer)
	c.br.Reset(connReader{c})
	c.bw.Reset(connWriter{c})
	c.timer = time.AfterFunc(idle/idleSteps, c.tick)
	return c
}

// connReader and connWriter note movement on the way.
type connReader struct{ c *conn }
type connWriter struct{ c *conn }

func (r connReader) Read(p []byte) (int, error) {
	c := r.c
	if c.headLeft == 0 {
		return 0, errHeadTooLarge
	}
	if c.headLeft > 0 && len(p) > c.headLeft {
		p = p[:c.headLeft]
	}
	n, err := c.stream.Read(p)
	if n > 0 {
		c.moved.Store(true)
		if c.headLeft > 0 {
			c.headLeft -= n
		}
	}
	return n, err
}

func (w connWriter) Write(p []byte) (int, error) {
	n, err := w.c.stream.Write(p)
	if n > 0 {
		w.c.moved.Store(true)
		w.c.wrote.Add(int64(n))
	}
	return n, err
}

var errHeadTooLarge = errors.New("the head of the answer is too large")

// tick is the conn's timer: it ends an idle stream after its rest, and a
// request after its limit of silence.
func (c *conn) tick() {
	c.mu.Lock()
	asleep, over := c.asleep, c.over
	c.mu.Unlock()
	switch {
	case over:
	case asleep:
		if c.t.drop(c) {
			c.close(protocol.CodeCanceled)
			c.recycle()
		}
	case c.moved.Swap(false):
		c.silent.Store(0)
		c.timer.Reset(c.idle / idleSteps)
	default:
		if c.silent.Add(1) < idleSteps {
			c.timer.Reset(c.idle / idleSteps)
			return
		}
		c.timedOut.Store(true)
		c.stream.Reset(protocol.CodeTimeout)
	}
}

// sleep and wake are called on the way into and out of the Tunnel's idle list.
func (c *conn) sleep() {
	c.mu.Lock()
	c.asleep = true
	c.mu.Unlock()
	c.timer.Reset(idleStream)
}

// wake reports whether the stream is still good.
func (c *conn) wake() bool {
	c.mu.Lock()
	c.asleep = false
	c.mu.Unlock()
	if c.br.Buffered() > 0 || !c.stream.Fresh() {
		c.close(protocol.CodeCanceled)
		c.recycle()
		return false
	}
	c.moved.Store(true)
	c.timer.Reset(c.idle / idleSteps)
	return true
}

// recycle gives the buffers back. Only for a conn that lay idle: no request and
// no body holds it any more.
func (c *conn) recycle() {
	c.br.Reset(nil)
	c.bw.Reset(nil)
	readers.Put(c.br)
	writers.Put(c.bw)
	c.br, c.bw = nil, nil
}

// close ends the stream. It may be called more than once and by anybody.
func (c *conn) close(code protocol.Code) {
	c.mu.Lock()
	c.over = true
	c.mu.Unlock()
	c.timer.Stop()
	c.stream.Reset(code)
}

// readHead reads the answer's head, handing interim answers to the trace.
func (c *conn) readHead(req *http.Request, interim func(*http.Response) error) (*http.Response, error) {
	c.headLeft = maxHead
	for {
		resp, err := http.ReadResponse(c.br, req)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode >= 200 || resp.StatusCode == http.StatusSwitchingProtocols {
			c.headLeft = -1
			return resp, nil
		}
		if err := interim(resp); err != nil {
			return nil, err
		}
	}
}

// failure explains why a request on c came to nothing.
func (c *conn) failure(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case c.timedOut.Load():
		return &relay.Error{Code: relay.AppTimeout, Message: "app " + string(c.t.app) + " was silent for " + c.idle.String(), Err: err}
	case protocol.CodeOf(err) != "":
		return err
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return &relay.Error{Code: relay.AppReset, Message: "app " + string(c.t.app) + " closed the connection before it answered", Err: err}
	}
	return &relay.Error{Code: relay.AppReset, Message: "app " + string(c.t.app) + " did not answer with HTTP", Err: err}
}
