package egress

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/outbound"
	"github.com/posternhq/postern/protocol/policy"
)

const (
	idleClient  = 2 * time.Minute  // how long the app may keep a connection between requests
	idleStream  = 45 * time.Second // how long a stream for requests is kept
	idleStreams = 64               // how many of them
	maxAnswer   = 1 << 20          // bytes of an answer's head
)

// requests serves requests in absolute form with net/http, and what is no HTTP at all.
type requests struct {
	proxy   *Proxy
	server  *http.Server
	forward *httputil.ReverseProxy
	relay   *relayTransport
	direct  atomic.Pointer[http.Transport] // a new one for each policy: its connections were judged by it
	handed  handed
}

func newRequests(p *Proxy) *requests {
	q := &requests{proxy: p, handed: handed{conns: make(chan net.Conn), done: p.done}}
	q.relay = newRelayTransport(p.openStream)
	q.renewDirect()
	q.forward = &httputil.ReverseProxy{
		Rewrite:        rewrite,
		Transport:      q,
		FlushInterval:  -1,
		BufferPool:     answerBuffers{},
		ModifyResponse: cleanAnswer,
		ErrorHandler:   q.failed,
		ErrorLog:       slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
	}
	q.server = &http.Server{
		Handler:                      q,
		DisableGeneralOptionsHandler: true,
		ReadHeaderTimeout:            headTime,
		IdleTimeout:                  idleClient,
		MaxHeaderBytes:               maxHead,
		ErrorLog:                     slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, webKey{}, c)
		},
		ConnState: func(c net.Conn, state http.ConnState) {
			if state == http.StateIdle {
				c.(*webConn).idle()
			}
		},
	}
	return q
}

func (q *requests) serve() { q.server.Serve(&q.handed) }

func (q *requests) close() {
	q.server.Close()
	q.relay.transport.CloseIdleConnections()
	q.direct.Load().CloseIdleConnections()
}

// take serves conn, of which rest has been read already.
func (q *requests) take(conn net.Conn, rest []byte) {
	w := &webConn{Conn: conn, rest: rest, proxy: q.proxy}
	select {
	case q.handed.conns <- w:
	case <-q.proxy.done:
		q.proxy.forget(conn)
	}
}

// handed is a net.Listener fed with connections that somebody else has accepted.
type handed struct {
	conns chan net.Conn
	done  <-chan struct{}
}

func (h *handed) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

func (h *handed) Close() error   { return nil }
func (h *handed) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }

type webKey struct{}

// ServeHTTP serves one request, or one CONNECT on a connection that had another request
// before.
func (q *requests) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	conn := r.Context().Value(webKey{}).(*webConn)
	conn.handling.Store(true)
	if !q.proxy.enter() {
		panic(http.ErrAbortHandler)
	}
	defer q.proxy.serving.Done()
	defer func() {
		// An answer without a length ends with the connection: it must not look whole.
		if why := recover(); why != nil {
			conn.abort.Store(true)
			panic(why)
		}
	}()
	// An answer may come before the end of the upload. Without this the server would
	// first read the rest, and cut the answer off.
	http.NewResponseController(w).EnableFullDuplex()
	if len(r.TransferEncoding) > 0 {
		// With a Content-Length besides, which the server has dropped, it may be an
		// attempt at smuggling: nothing that follows is believed (RFC 9112, section 6.1).
		w.Header().Set("Connection", "close")
	}
	switch {
	case r.ProtoMajor != 1:
		(&headError{status: http.StatusBadRequest, message: "this proxy speaks HTTP/1.1"}).writeTo(w)
	case !allReadable(r.Header["Proxy-Authorization"]):
		(&headError{status: http.StatusBadRequest, message: "Proxy-Authorization cannot be read"}).writeTo(w)
	case r.Method == http.MethodConnect:
		q.connect(w, r, conn)
	default:
		q.request(w, r)
	}
}

func allReadable(values []string) bool {
	for _, v := range values {
		if !readableAuth(v) {
			return false
		}
	}
	return true
}

// connect takes the connection out of net/http's hands.
func (q *requests) connect(w http.ResponseWriter, r *http.Request, conn *webConn) {
	if r.ContentLength != 0 || len(r.TransferEncoding) > 0 {
		(&headError{status: http.StatusBadRequest, message: "a CONNECT has no body"}).writeTo(w)
		return
	}
	_, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	early, _ := io.ReadAll(io.LimitReader(buffered, int64(buffered.Reader.Buffered())))
	early = append(early, conn.rest...)
	head := connectHead{authority: r.RequestURI, trace: validTrace(r.Header.Get("Traceparent"))}
	q.proxy.connect(q.proxy.context(), conn.Conn, head, early)
}

// route is what was decided of a request. It travels in the request's context.
type route struct {
	call     policy.Call
	url      *url.URL  // its host is the target
	raw      string    // path and query as the app spelled them
	snap     *snapshot // nil: there was no policy
	decision policy.Decision
	flow     *flow

	// Of a request that is sent from here.
	direct   bool
	up, down atomic.Int64
	cause    atomic.Pointer[policy.Cause] // why it was ended before its time
}

type routeKey struct{}

func routeOf(ctx context.Context) *route { return ctx.Value(routeKey{}).(*route) }

// request serves one request in absolute form.
func (q *requests) request(w http.ResponseWriter, r *http.Request) {
	p := q.proxy
	target, u, err := policy.ParseURL(r.RequestURI)
	if err != nil {
		p.badTarget("http", err)
		refusalOf(err).WriteHTTP(w, pseudonym)
		return
	}
	f := p.newFlow(&call{from: "http", target: target, trace: validTrace(r.Header.Get("Traceparent"))})
	raw := policy.RawTarget(r.RequestURI)
	f.Method = r.Method
	f.Path, _, _ = strings.Cut(raw, "?")
	t := &route{call: policy.Call{Target: target, Method: r.Method, Path: f.Path}, url: u, raw: raw, flow: f, snap: p.snapshot.Load()}
	if p.isOwn(target) {
		q.refuse(w, t, policy.NewRefusal(policy.Loop, "this is the address of the proxy itself"))
		return
	}
	if t.snap != nil {
		t.decision = t.snap.decide(t.call, f.StartedAt)
		f.judge(t.snap, t.decision)
		if !t.decision.Allow {
			q.refuse(w, t, t.decision.Refusal(t.snap.compiled, t.call))
			return
		}
	}
	ctx, cancel := context.WithCancel(context.WithValue(r.Context(), routeKey{}, t))
	defer cancel()
	r = r.WithContext(ctx)
	if r.Body != http.NoBody {
		body := &watchedBody{ReadCloser: r.Body}
		r.Body = body
		defer func() {
			if !body.ended.Load() {
				outbound.Drain(w, body.ReadCloser)
			}
		}()
	}
	q.forward.ServeHTTP(w, r)
}

// watchedBody knows whether it was read to its end. What is left may be read after its
// Close, which is the server's business.
type watchedBody struct {
	io.ReadCloser
	ended, over atomic.Bool
}

func (b *watchedBody) Read(p []byte) (int, error) {
	if b.over.Load() {
		return 0, http.ErrBodyReadAfterClose
	}
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		b.ended.Store(true)
	}
	return n, err
}

func (b *watchedBody) Close() error {
	b.over.Store(true)
	return nil
}

// refuse answers a request that was decided here.
func (q *requests) refuse(w http.ResponseWriter, t *route, r *policy.Refusal) {
	r.Flow = t.flow.ID
	r.WriteHTTP(w, pseudonym)
	q.proxy.logRefusal("call refused", "http", t.flow.Target, r)
	q.proxy.journal.add(t.flow.refused(r))
}

// rewrite makes the request that leaves: what was judged, spelled as the app did, and
// nothing of the way to this proxy.
func rewrite(pr *httputil.ProxyRequest) {
	t := routeOf(pr.Out.Context())
	pr.Out.URL = &url.URL{Scheme: "http", Host: t.url.Host, Opaque: "//" + t.url.Host + t.raw}
	pr.Out.Host = t.url.Host
	pr.Out.Trailer = pr.In.Trailer // the same map: its values come with the end of the body
	cleanRequest(pr.Out.Header)
}

// RoundTrip sends a request to the relay, or where its rule says so to its destination.
func (q *requests) RoundTrip(r *http.Request) (*http.Response, error) {
	t := routeOf(r.Context())
	if isDirect(t.decision) {
		return q.fromHere(r, t)
	}
	resp, err := q.relay.RoundTrip(r)
	if lost := (*lostError)(nil); errors.As(err, &lost) && directOnLoss(t.decision) {
		return q.fromHere(r, t)
	}
	return resp, err
}

// failed answers a request that got no answer.
func (q *requests) failed(w http.ResponseWriter, r *http.Request, err error) {
	t := routeOf(r.Context())
	if r.Context().Err() != nil && t.cause.Load() == nil {
		panic(http.ErrAbortHandler) // the app has gone
	}
	refusal := answerRefusal(err)
	if cause := t.cause.Load(); cause != nil {
		refusal = policy.NewRefusal(*cause, "the call was ended by an emergency deny")
	}
	if refusal.Flow == "" {
		refusal.Flow = t.flow.ID
	}
	refusal.WriteHTTP(w, pseudonym)
	q.proxy.logRefusal("call failed", "http", t.flow.Target, refusal)
	if !t.direct && refusal.Cause == policy.RelayLost {
		q.proxy.journal.add(t.flow.ended(refusal.Cause))
	}
}

// answerRefusal is what err amounts to, of a request that was sent or could not be.
func answerRefusal(err error) *policy.Refusal {
	var r *policy.Refusal
	var lost *lostError
	var e *protocol.Error
	var tooLong interface{ Timeout() bool }
	switch {
	case errors.As(err, &r):
		return r
	case errors.As(err, &lost):
		return lostRefusal(lost.err)
	case errors.As(err, &e) && e.Unsent:
		return replyRefusal(err)
	case errors.As(err, &tooLong) && tooLong.Timeout():
		return policy.NewRefusal(policy.AnswerTimeout, "the answer did not come in time")
	}
	return policy.NewRefusal(policy.Cut, "the connection ended before an answer came")
}
