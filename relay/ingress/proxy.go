package ingress

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
	"sync"
	"sync/atomic"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/relay"
)

// newProxy is the way from an app's host to the app. Bytes are passed on as they
// come, both ways; there is no limit on the whole, only on silence.
func (s *Server) newProxy() http.Handler {
	p := &httputil.ReverseProxy{
		Rewrite:        rewrite,
		Transport:      s.cfg.Apps,
		FlushInterval:  -1,
		BufferPool:     &bufferPool{},
		ErrorHandler:   s.proxyError,
		ModifyResponse: watchUpgrade,
		ErrorLog:       slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer abortLoudly(r)
		iw := &idleWriter{ResponseWriter: w, control: http.NewResponseController(w), idle: s.cfg.Idle}
		if r.Body != nil && r.Body != http.NoBody {
			iw.body = &idleReader{ReadCloser: r.Body, control: iw.control, idle: s.cfg.Idle}
			r.Body = iw.body
			defer iw.body.leave()
		}
		p.ServeHTTP(iw, r)
	})
}

// rewrite makes the app's request out of the client's. ReverseProxy has removed
// the hop-by-hop headers and all forwarding headers by now.
func rewrite(p *httputil.ProxyRequest) {
	c := callOf(p.In)
	p.Out.URL = &url.URL{Scheme: "http", Host: string(c.app.ID), Opaque: target(p.In)}
	p.Out.Host = p.In.Host
	p.Out.Trailer = p.In.Trailer // the same map: its values come with the end of the body
	h := p.Out.Header
	h["X-Forwarded-For"] = []string{c.forwarded}
	h["X-Forwarded-Host"] = []string{p.In.Host}
	h["X-Forwarded-Proto"] = []string{c.proto}
	h[protocol.HeaderRequestID] = []string{c.id}
}

// target is the request's path and query as the client spelled them.
func target(r *http.Request) string {
	if strings.HasPrefix(r.RequestURI, "/") || r.RequestURI == "*" {
		return r.RequestURI
	}
	// The absolute form (RFC 9112, section 3.2.2). Its path is cut out and not taken
	// from the parsed URL, which spells some bytes anew.
	if _, rest, ok := strings.Cut(r.RequestURI, "://"); ok {
		if i := strings.IndexAny(rest, "/?"); i >= 0 && rest[i] == '/' {
			return rest[i:]
		} else if i >= 0 {
			return "/" + rest[i:]
		}
		return "/"
	}
	return r.URL.RequestURI()
}

// proxyError answers a request that the app did not.
func (s *Server) proxyError(w http.ResponseWriter, r *http.Request, err error) {
	c := callOf(r)
	if errors.Is(err, context.Canceled) {
		s.log.Debug("client left", "request_id", c.id, "app", c.app.ID)
		panic(http.ErrAbortHandler)
	}
	s.log.Warn("request failed", "request_id", c.id, "app", c.app.ID, "method", r.Method, "err", err)
	relay.WriteDiagnosis(w, c.id, err, s.diagnosis(r, c))
}

// diagnosis is what the port doctor found of the app, for those who may know.
// Their token is in Postern-Authorization, or in Authorization where the app
// itself has no use for it.
func (s *Server) diagnosis(r *http.Request, c *call) []protocol.Finding {
	for _, header := range []string{c.operator, r.Header.Get("Authorization")} {
		scheme, token, _ := strings.Cut(strings.TrimSpace(header), " ")
		token = strings.TrimSpace(token)
		if strings.EqualFold(scheme, "Bearer") && token != "" && s.cfg.Operator(r.Context(), token, c.app.ID) {
			return s.cfg.Findings(c.app.ID)
		}
	}
	return nil
}

// abortLoudly makes an aborted answer end with a reset: for a client that reads
// until the end of the connection, an ordinary close would look complete.
func abortLoudly(r *http.Request) {
	reason := recover()
	if reason == nil {
		return
	}
	resetOnClose(r.Context())
	panic(reason)
}

// resetOnClose makes the coming close of the client's connection a reset.
func resetOnClose(ctx context.Context) {
	conn, _ := ctx.Value(connKey{}).(net.Conn)
	if secure, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = secure.NetConn()
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
}

// watchUpgrade does for an upgraded connection what abortLoudly does for an
// answer; ReverseProxy itself ends it in the same way whatever happened.
func watchUpgrade(resp *http.Response) error {
	if body, ok := resp.Body.(upgradedBody); ok && resp.StatusCode == http.StatusSwitchingProtocols {
		resp.Body = &watchedUpgrade{body, resp.Request.Context()}
	}
	return nil
}

// upgradedBody is the body of a 101 answer.
type upgradedBody interface {
	io.ReadWriteCloser
	CloseWrite() error
}

type watchedUpgrade struct {
	upgradedBody
	ctx context.Context // the request's
}

func (u *watchedUpgrade) Read(p []byte) (int, error) {
	n, err := u.upgradedBody.Read(p)
	if err != nil && err != io.EOF {
		resetOnClose(u.ctx)
	}
	return n, err
}

// idleWriter gives every write to the client a deadline of its own.
type idleWriter struct {
	http.ResponseWriter
	control *http.ResponseController
	idle    time.Duration
	body    *idleReader // the request's; nil without one
}

// WriteHeader makes an answer that comes before the end of the upload the last
// one on its connection. Otherwise net/http would read the upload to its end
// before it sends the answer, and wait for a client that waits for us.
func (w *idleWriter) WriteHeader(status int) {
	if status >= http.StatusOK && w.body != nil && !w.body.ended.Load() {
		w.Header().Set("Connection", "close")
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *idleWriter) Write(p []byte) (int, error) {
	w.control.SetWriteDeadline(time.Now().Add(w.idle))
	return w.ResponseWriter.Write(p)
}

// FlushError and Unwrap are for http.ResponseController.
func (w *idleWriter) FlushError() error           { return w.control.Flush() }
func (w *idleWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// lingerTime is how long what a client still uploads after its answer is taken
// in: closing at once would be a reset, which overtakes the answer.
const lingerTime = 500 * time.Millisecond

// idleReader gives every read of the client's body a deadline of its own, and
// lifts it at the end: the server goes on reading, to see whether the client
// leaves.
type idleReader struct {
	io.ReadCloser
	control *http.ResponseController
	idle    time.Duration
	ended   atomic.Bool // the body was read to its end
	left    atomic.Bool // nobody wants the rest any more
}

func (b *idleReader) Read(p []byte) (int, error) {
	if b.left.Load() {
		return 0, http.ErrBodyReadAfterClose
	}
	b.control.SetReadDeadline(time.Now().Add(b.idle))
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		b.control.SetReadDeadline(time.Time{})
		b.ended.Store(true)
	}
	return n, err
}

// leave bounds the time for what is left of the body, also for a Read that is
// under way.
func (b *idleReader) leave() {
	if !b.ended.Load() {
		b.left.Store(true)
		b.control.SetReadDeadline(time.Now().Add(lingerTime))
	}
}

// bufferPool lends ReverseProxy its copy buffers.
type bufferPool struct{ pool sync.Pool }

// copyBuffer is as large as what one read of a busy tunnel brings.
const copyBuffer = 64 << 10

func (b *bufferPool) Get() []byte {
	if p, ok := b.pool.Get().(*[copyBuffer]byte); ok {
		return p[:]
	}
	return make([]byte, copyBuffer)
}

func (b *bufferPool) Put(p []byte) { b.pool.Put((*[copyBuffer]byte)(p)) }
