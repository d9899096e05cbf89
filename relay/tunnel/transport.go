package tunnel

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/relay"
)

// Transport sends HTTP requests to apps through their tunnels. The app's id is
// the host of the request's URL ("http://shop/path"); req.Host is what the app
// sees, and URL.Opaque, when set, is the path as it goes on the wire (with the
// query, unless that is in RawQuery). Errors are *relay.Error or the context's.
//
// It is not net/http's Transport because that one cannot know what we know: on
// which tunnel a kept-alive stream lies and whether that tunnel is draining,
// which agent has the least work, and whether a failed request has provably not
// reached an app. It also spends two goroutines on every connection; here the
// caller's own writes the request and reads the answer, and one more is used
// only while a body is sent.
//
//	RoundTrip → Registry.acquire → Tunnel.takeIdle or Session.Open
//	  → exchange: write (request) · readHead (answer) → body
//	    body.Close, or its end → Tunnel.keep or conn.close → Registry.release
type Transport struct {
	Registry *Registry
	// Idle is how long neither direction may move before the request is given
	// up. There is no limit on the whole. Default 5 min.
	Idle time.Duration
}

// RoundTrip implements http.RoundTripper.
func (tr *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx := req.Context()
	app := relay.AppID(req.URL.Host)
	if err := checkHead(req); err != nil {
		return nil, err
	}
	up := newUpload(req)
	var past attempts
	for {
		c, err := tr.connect(ctx, app, &past)
		if err == nil {
			var resp *http.Response
			if resp, err = tr.exchange(ctx, c, req, up); err == nil {
				return resp, nil
			}
			tr.Registry.release(c.t)
			if ctx.Err() == nil && past.anew(c, req, up, err) {
				continue
			}
			if ctx.Err() == nil && unsent(err) && up.rewind() && past.again(c.t, err) {
				continue
			}
		}
		up.close()
		return nil, translate(err, app)
	}
}

// maxRenewed bounds how often one request is sent on a new connection because the
// kept one had ended.
const maxRenewed = 2

// anew reports whether the request may be sent once more, on a new connection: the
// kept one it was written to had ended, as apps end connections that lie idle. That
// is so when nothing of it was taken (protocol.CodeStale); and when the app ended the
// connection without a byte of an answer, for methods that change nothing, as RFC
// 9110, section 9.2.2, allows a proxy.
func (p *attempts) anew(c *conn, req *http.Request, up *upload, err error) bool {
	stale := protocol.CodeOf(err) == protocol.CodeStale && unsent(err)
	ended := c.reused && c.headLeft == maxHead && errors.Is(err, io.ErrUnexpectedEOF) && up == nil && isSafe(req.Method)
	if !stale && !ended || p.renewed == maxRenewed || !up.rewind() {
		return false
	}
	p.renewed++
	p.err = translate(err, c.t.app)
	return true
}

// isSafe reports whether method asks for nothing to change (RFC 9110, section 9.2.1).
func isSafe(method string) bool {
	switch method {
	case "", http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return true
	}
	return false
}

// connect finds a stream to the app: a kept-alive one, else a new one.
func (tr *Transport) connect(ctx context.Context, app relay.AppID, past *attempts) (*conn, error) {
	idle := tr.Idle
	if idle <= 0 {
		idle = 5 * time.Minute
	}
	for {
		t, err := tr.Registry.acquire(ctx, app, past)
		if err != nil {
			return nil, err
		}
		if c := t.takeIdle(); c != nil && past.renewed == 0 {
			return c, nil
		} else if c != nil {
			t.keep(c)
		}
		s, err := t.sess.Open(ctx, protocol.Open{Kind: protocol.KindHTTP})
		if err == nil {
			return newConn(t, s, idle), nil
		}
		tr.Registry.release(t)
		if ctx.Err() != nil || !past.again(t, err) {
			return nil, err
		}
	}
}

// exchange sends req on c and reads the head of the answer. On success the
// answer's body owns c; on failure c is closed, and the caller releases its
// tunnel.
func (tr *Transport) exchange(ctx context.Context, c *conn, req *http.Request, up *upload) (*http.Response, error) {
	x := &exchange{tr: tr, c: c, up: up, ctx: ctx, goOn: make(chan struct{})}
	x.stop = context.AfterFunc(ctx, x.cancel)
	c.wrote.Store(0)
	f := framingOf(req)
	err := writeHead(c.bw, req, f)
	if err == nil {
		err = c.bw.Flush()
	}
	if err != nil {
		return nil, x.fail(err)
	}
	if f != noBody {
		x.sent = make(chan struct{})
		go x.sendBody(req, f)
	}
	resp, err := c.readHead(req, x.interim)
	if err != nil {
		return nil, x.fail(err)
	}
	x.finalAnswer()
	x.attach(resp, req)
	return resp, nil
}

// staleTime is how long an agent may take, besides two round trips, to say that an
// app was gone before a request came.
const staleTime = 500 * time.Millisecond

// exchange is one request and its answer on a conn.
type exchange struct {
	tr   *Transport
	c    *conn
	up   *upload // nil: no body
	ctx  context.Context
	stop func() bool // lifts the cancellation; false when it has struck

	writeErr error         // of the body; set before sent is closed
	sent     chan struct{} // closed when the body has been sent, or given up; nil without one
	goOn     chan struct{} // closed when a body that waits for 100 Continue may go
	once     sync.Once     // closes goOn
	final    atomic.Bool   // the answer came before the body was asked for: do not send it

	released sync.Once
}

// cancel ends the exchange because its context has.
func (x *exchange) cancel() { x.c.stream.Reset(protocol.CodeCanceled) }

// sendBody sends the body while the answer may already be coming.
func (x *exchange) sendBody(req *http.Request, f framing) {
	defer close(x.sent)
	body := &uploadReader{x: x}
	if expectsContinue(req) {
		if x.writeErr = x.awaitContinue(); x.writeErr != nil {
			return // the stream is not kept: over sees that the request is incomplete
		}
	}
	x.writeErr = writeBody(x.c.bw, connWriter{x.c}, req, body, f)
	var failed *protocol.CopyError
	if errors.As(x.writeErr, &failed) && failed.Read || errors.Is(x.writeErr, io.ErrUnexpectedEOF) {
		// The client broke off: the app must not take the part for the whole.
		x.c.stream.Reset(protocol.CodeCanceled)
	}
}

var errNotWanted = errors.New("the app answered without asking for the body")

// awaitContinue waits until the app wants the body (RFC 9110, section 10.1.1).
// Reading the body makes our server send the client its own 100 Continue.
func (x *exchange) awaitContinue() error {
	timer := time.NewTimer(continueWait)
	defer timer.Stop()
	select {
	case <-x.goOn:
	case <-timer.C:
	case <-x.ctx.Done():
		return x.ctx.Err()
	}
	if x.final.Load() {
		return errNotWanted
	}
	return nil
}

// interim hands a 1xx answer to the request's trace, as net/http does.
func (x *exchange) interim(resp *http.Response) error {
	trace := httptrace.ContextClientTrace(x.ctx)
	if resp.StatusCode == http.StatusContinue {
		x.once.Do(func() { close(x.goOn) })
		if trace != nil && trace.Got100Continue != nil {
			trace.Got100Continue()
		}
	}
	if trace != nil && trace.Got1xxResponse != nil {
		return trace.Got1xxResponse(resp.StatusCode, textproto.MIMEHeader(resp.Header))
	}
	return nil
}

// finalAnswer releases a body that still waits for 100 Continue: it is not
// wanted any more.
func (x *exchange) finalAnswer() {
	x.once.Do(func() {
		x.final.Store(true)
		close(x.goOn)
	})
}

// fail ends the exchange before there was an answer and says why.
func (x *exchange) fail(err error) error {
	x.finalAnswer()
	x.stop()
	x.c.timer.Stop()
	if x.ctx.Err() == nil && !x.c.timedOut.Load() && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)) {
		// The app has closed the connection; the agent may say that it did so before
		// this request came.
		if reset := x.c.stream.AwaitReset(staleTime); protocol.CodeOf(reset) == protocol.CodeStale {
			err = reset
		}
	}
	x.c.close(protocol.CodeCanceled)
	x.letGo()
	err = x.c.failure(x.ctx, err)
	if e := (*protocol.Error)(nil); errors.As(err, &e) && x.c.wrote.Load() == 0 {
		// Nothing of this request has left us, so that it is as good as untried
		// even if the stream had carried others before.
		err = &protocol.Error{Code: e.Code, Message: e.Message, Err: e.Err, Unsent: true}
	}
	return err
}

// letGo waits until the body's sender has stopped. One that waits for the
// client's next byte cannot be stopped; then the body cannot be sent again.
func (x *exchange) letGo() {
	if x.sent == nil {
		return
	}
	timer := time.NewTimer(rewindWait)
	defer timer.Stop()
	select {
	case <-x.sent:
	case <-timer.C:
		x.up.lost.Store(true)
	}
}

// attach gives resp a body that ends the exchange.
func (x *exchange) attach(resp *http.Response, req *http.Request) {
	if resp.StatusCode == http.StatusSwitchingProtocols {
		resp.Body = &upgraded{body: body{x: x, rc: http.NoBody}}
		return
	}
	b := &body{x: x, rc: resp.Body, keep: !resp.Close && !req.Close && resp.ProtoAtLeast(1, 1)}
	resp.Body = b
	if resp.ContentLength == 0 || req.Method == http.MethodHead ||
		resp.StatusCode == http.StatusNoContent || resp.StatusCode == http.StatusNotModified {
		b.finish()
		resp.Body = http.NoBody
	}
}

// over ends the exchange after the answer: the stream is kept when both
// messages are complete, closed otherwise.
func (x *exchange) over(keep bool) {
	x.released.Do(func() {
		stopped := x.stop()
		keep = keep && stopped && x.requestSent() && !x.c.timedOut.Load()
		if keep {
			x.c.t.keep(x.c)
		} else {
			x.c.close(protocol.CodeCanceled)
		}
		x.up.close()
		x.tr.Registry.release(x.c.t)
	})
}

// sentWait is how long the end of an answer waits for the end of its request.
// The two race when the app answers the last byte at once; a request that takes
// longer is one that the app has answered early.
const sentWait = 50 * time.Millisecond

// requestSent reports whether the request has been written to its end.
func (x *exchange) requestSent() bool {
	if x.sent == nil {
		return true
	}
	select {
	case <-x.sent:
		return x.writeErr == nil
	default:
	}
	timer := time.NewTimer(sentWait)
	defer timer.Stop()
	select {
	case <-x.sent:
		return x.writeErr == nil
	case <-timer.C:
		return false // the rest of the body is of no use
	}
}

// body is an answer's body. Reaching its end keeps the stream; closing it early,
// or a cut, ends it.
type body struct {
	x    *exchange
	rc   io.ReadCloser
	keep bool
	done bool // owned by the reader
}

func (b *body) Read(p []byte) (int, error) {
	if b.done {
		return 0, io.EOF
	}
	n, err := b.rc.Read(p)
	switch {
	case err == nil:
	case err == io.EOF:
		b.finish()
	default:
		err = b.x.c.failure(b.x.ctx, err)
		b.x.over(false)
	}
	return n, err
}

func (b *body) finish() {
	b.done = true
	b.x.over(b.keep)
}

func (b *body) Close() error {
	b.x.over(false)
	return nil
}

// upgraded is the two-way body of a 101 answer.
type upgraded struct{ body }

func (u *upgraded) Read(p []byte) (int, error)  { return u.x.c.br.Read(p) }
func (u *upgraded) Write(p []byte) (int, error) { return connWriter{u.x.c}.Write(p) }
func (u *upgraded) CloseWrite() error           { return u.x.c.stream.CloseWrite() }

func expectsContinue(req *http.Request) bool {
	return strings.EqualFold(req.Header.Get("Expect"), "100-continue")
}
