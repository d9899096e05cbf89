package egress

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/outbound"
	"github.com/posternhq/postern/protocol/policy"
	"github.com/posternhq/postern/relay"
)

// Bounds of what an agent sends on a stream of requests.
const (
	headTime   = 30 * time.Second // for a request's head
	keptAlive  = 5 * time.Minute  // for the next request
	maxRequest = 256 << 10        // bytes of a head
)

// ServeHTTP answers the requests on a stream of protocol.KindEgressHTTP, for an
// instance of app. It returns when the stream is over.
//
//	http.Server.Serve      with a listener that has this one connection
//	└─ answer              for each request, judged alone
//	   ├─ judgeRequest     what may be asked of us at all; call.judge
//	   └─ proxy            httputil.ReverseProxy
//	      ├─ rewrite       the header rules
//	      ├─ RoundTrip     pools.of → http.Transport → pools.dial
//	      ├─ modifyAnswer
//	      └─ proxyError    Refusal.WriteHTTP
func (e *Egress) ServeHTTP(ctx context.Context, app relay.AppID, instance string, s *protocol.Stream) {
	if e.draining.Load() {
		s.Refuse(protocol.CodeDraining, "the relay is stopping")
		return
	}
	if err := s.Accept(); err != nil {
		s.Close()
		return
	}
	conn := &streamConn{Stream: s, closed: make(chan struct{})}
	// It returns when conn is closed, which is the last thing that its goroutine does.
	e.server.Serve(&oneConn{conn: conn, ctx: ctx, who: client{app, instance}})
	conn.Close()
}

// streamConn is a stream as the server's connection.
type streamConn struct {
	*protocol.Stream
	once   sync.Once
	closed chan struct{}
}

func (c *streamConn) Close() error {
	err := c.Stream.Close()
	c.once.Do(func() { close(c.closed) })
	return err
}

// oneConn is a listener for one connection.
type oneConn struct {
	conn  *streamConn
	ctx   context.Context
	who   client
	taken bool // owned by the server's Serve
}

func (l *oneConn) Accept() (net.Conn, error) {
	if !l.taken {
		l.taken = true
		return l.conn, nil
	}
	<-l.conn.closed
	return nil, net.ErrClosed
}

func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return l.conn.LocalAddr() }

type clientKey struct{}

func (e *Egress) newServer() *http.Server {
	return &http.Server{
		Handler: http.HandlerFunc(e.answer),
		BaseContext: func(l net.Listener) context.Context {
			one := l.(*oneConn)
			return context.WithValue(one.ctx, clientKey{}, one.who)
		},
		ReadHeaderTimeout: headTime,
		IdleTimeout:       keptAlive,
		MaxHeaderBytes:    maxRequest,
		ErrorLog:          slog.NewLogLogger(e.log.Handler(), slog.LevelDebug),
		// Otherwise OPTIONS * would be answered as if we were an origin.
		DisableGeneralOptionsHandler: true,
	}
}

// forward is a request on its way.
type forward struct {
	call *call
	url  *url.URL      // as the client sent it
	dial policy.Target // where to; another port than was judged when it is upgraded
	tls  bool          // the relay speaks TLS to it

	tlsBegun atomic.Int64 // Unix nanoseconds
}

type forwardKey struct{}

func forwardedOf(ctx context.Context) *forward { return ctx.Value(forwardKey{}).(*forward) }

// answer serves one request.
func (e *Egress) answer(w http.ResponseWriter, r *http.Request) {
	who := r.Context().Value(clientKey{}).(client)
	c := e.begin(who.app, who.instance, policy.Request, protocol.Flow{From: "http"})
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer e.over(c)
	c.onCut(cancel)
	// An answer may come before the end of the upload. Without this the server would
	// first read the rest, and wait for a client that waits for us.
	http.NewResponseController(w).EnableFullDuplex()
	if len(r.TransferEncoding) > 0 {
		// With a Content-Length besides, which the server has dropped, it may be an
		// attempt at smuggling: nothing that follows is believed (RFC 9112, section 6.1).
		w.Header().Set("Connection", "close")
	}
	f, refused := e.judgeRequest(ctx, c, r)
	if refused != nil {
		if r.Body != http.NoBody {
			w.Header().Set("Connection", "close")
			defer outbound.Drain(w, r.Body)
		}
		e.refuse(w, c, refused)
		return
	}
	if r.Body != http.NoBody {
		body := &upload{body: r.Body, call: c}
		r.Body = body
		defer func() {
			if !body.ended.Load() {
				outbound.Drain(w, body.body)
			}
		}()
	}
	e.proxy.ServeHTTP(w, r.WithContext(context.WithValue(ctx, forwardKey{}, f)))
}

// over finishes a request's call, also when its handler aborts the answer.
func (e *Egress) over(c *call) {
	reason := recover()
	if reason == nil {
		c.finish(nil)
		return
	}
	c.finish(policy.NewRefusal(policy.Cut, "the connection broke off before the answer was complete"))
	panic(reason)
}

// refuse answers in the place of the destination. The line in the log comes first.
func (e *Egress) refuse(w http.ResponseWriter, c *call, r *policy.Refusal) {
	c.finish(r)
	r.WriteHTTP(w, e.cfg.Pseudonym)
}

// judgeRequest reads where a request goes, strictly, and judges it. The Host line has
// no say in it.
func (e *Egress) judgeRequest(ctx context.Context, c *call, r *http.Request) (*forward, *policy.Refusal) {
	bad := func(message string) (*forward, *policy.Refusal) {
		c.edit(func(f *protocol.Flow) {
			f.Method, f.Target = clip(r.Method, maxMethod), unreadable(r.RequestURI)
		})
		return nil, policy.NewRefusal(policy.BadTarget, message)
	}
	switch {
	case r.ProtoMajor != 1:
		return bad("only HTTP/1 is spoken here")
	case strings.EqualFold(r.Method, http.MethodConnect), len(r.Method) > maxMethod:
		return bad("this method is not for requests in absolute form")
	}
	target, u, err := policy.ParseURL(r.RequestURI)
	if err != nil {
		return bad(err.Error())
	}
	policy.CleanRequest(r.Header)
	parent := keepTrace(r.Header)
	c.edit(func(f *protocol.Flow) { f.Traceparent = parent })
	if passedBy(r.Header, e.cfg.Pseudonym) {
		c.edit(func(f *protocol.Flow) { f.Target, f.Method = target.HostPort(), r.Method })
		return nil, policy.NewRefusal(policy.Loop, "the request has passed this relay before")
	}
	what := policy.Call{Target: target, Method: r.Method, Path: rawPath(r.RequestURI)}
	if refused := c.judge(ctx, what, r.ContentLength); refused != nil {
		return nil, refused
	}
	f := &forward{call: c, url: u, dial: target}
	if rule := c.decision.Rule; rule != nil && rule.Upgrade {
		f.tls, f.dial.Port = true, 443
		c.mu.Lock()
		c.via = f.dial
		c.mu.Unlock()
		if refused := e.judgePort(c, f.dial); refused != nil {
			return nil, refused
		}
	}
	return f, nil
}

// judgePort is what the deny lines say of the port that an upgraded request goes to.
// The allow list has named the one that the app asked for.
func (e *Egress) judgePort(c *call, t policy.Target) *policy.Refusal {
	if refused := c.emergency(c.policy); refused != nil {
		return refused
	}
	what := policy.Call{Target: t, Method: c.what.Method, Path: c.what.Path}
	d := c.policy.Decide(what, e.cfg.Now())
	isDeny := func(l policy.Deny) bool { return l.Where == d.Where }
	if d.Allow || !slices.ContainsFunc(c.policy.Policy().Deny, isDeny) {
		return nil
	}
	return d.Refusal(c.policy, what)
}

// maxMethod is the longest method in bytes.
const maxMethod = 32

// rawPath is policy.RawTarget without the query.
func rawPath(absolute string) string {
	path, _, _ := strings.Cut(policy.RawTarget(absolute), "?")
	return path
}

func (e *Egress) newProxy() http.Handler {
	return &httputil.ReverseProxy{
		Rewrite:        e.rewrite,
		Transport:      roundTripper{e},
		FlushInterval:  -1,
		BufferPool:     copyBuffers{},
		ModifyResponse: e.modifyAnswer,
		ErrorHandler:   e.proxyError,
		ErrorLog:       slog.NewLogLogger(e.log.Handler(), slog.LevelDebug),
	}
}

// rewrite makes the destination's request out of the app's. ReverseProxy has removed
// by now what concerned only the connection.
func (e *Egress) rewrite(p *httputil.ProxyRequest) {
	f := forwardedOf(p.In.Context())
	p.Out.URL = &url.URL{Scheme: "http", Host: f.dial.HostPort()}
	p.Out.Host = hostLine(f.dial, 80)
	if f.tls {
		p.Out.URL.Scheme = "https"
		p.Out.Host = hostLine(f.dial, 443)
	}
	// As the client spelled it. What begins with two slashes net/http would take for a
	// host; it is spelled so that package url leaves it alone.
	if raw := policy.RawTarget(p.In.RequestURI); !strings.HasPrefix(raw, "//") {
		p.Out.URL.Opaque = raw
	} else {
		path, _, _ := strings.Cut(raw, "?")
		path = policy.Spell(path)
		plain, _ := url.PathUnescape(path) // ParseURL has read it
		p.Out.URL.Path, p.Out.URL.RawPath = plain, path
		p.Out.URL.RawQuery, p.Out.URL.ForceQuery = f.url.RawQuery, f.url.ForceQuery
	}
	p.Out.Trailer = p.In.Trailer // the same map: its values come with the end of the body
	addVia(p.Out.Header, e.cfg.Pseudonym)
}

// hostLine is the Host line for t; the port is left out where it goes without saying.
func hostLine(t policy.Target, usual uint16) string {
	if t.Port != usual {
		return t.HostPort()
	}
	if t.Addr.Is6() {
		return "[" + t.Addr.String() + "]"
	}
	return t.Name()
}

// modifyAnswer looks at an answer's head, and lets its bytes be counted.
func (e *Egress) modifyAnswer(resp *http.Response) error {
	c := forwardedOf(resp.Request.Context()).call
	c.edit(func(f *protocol.Flow) { f.Status = resp.StatusCode })
	c.settle()
	policy.CleanAnswer(resp.Header)
	resp.Header.Set("Proxy-Status", e.cfg.Pseudonym) // RFC 9209: this answer came by us
	addVia(resp.Header, e.cfg.Pseudonym)
	if conn, ok := resp.Body.(upgradedConn); ok && resp.StatusCode == http.StatusSwitchingProtocols {
		resp.Body = &upgraded{upgradedConn: conn, call: c}
		return nil
	}
	resp.Body = &download{ReadCloser: resp.Body, call: c}
	return nil
}

// proxyError answers a request to which the destination has no answer.
func (e *Egress) proxyError(w http.ResponseWriter, r *http.Request, err error) {
	c := forwardedOf(r.Context()).call
	refused := c.cutFor()
	switch {
	case refused != nil:
	case r.Context().Err() != nil:
		panic(http.ErrAbortHandler) // the client left
	default:
		refused = requestRefusal(err)
	}
	if body, ok := r.Body.(*upload); ok && !body.ended.Load() {
		w.Header().Set("Connection", "close")
	}
	e.refuse(w, c, refused)
}

// requestRefusal says in our words why a request came to nothing.
func requestRefusal(err error) *policy.Refusal {
	var r *policy.Refusal
	var cert *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var alert tls.AlertError
	var slow net.Error
	switch {
	case errors.As(err, &r):
		return r
	case errors.As(err, &cert):
		return policy.NewRefusal(policy.TLSFailed, "the destination's certificate is not valid: "+clip(cert.Err.Error(), maxText))
	case errors.As(err, &record), errors.As(err, &alert), strings.Contains(err.Error(), "TLS handshake timeout"):
		return policy.NewRefusal(policy.TLSFailed, "the destination does not speak TLS as it should")
	case errors.As(err, &slow) && slow.Timeout():
		return policy.NewRefusal(policy.AnswerTimeout, "the destination did not answer in time")
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return policy.NewRefusal(policy.Cut, "the destination closed the connection before it answered")
	}
	return policy.NewRefusal(policy.Cut, "the destination broke the connection off, or did not answer with HTTP")
}

// roundTripper sends each request over its own app's connections.
type roundTripper struct{ e *Egress }

func (t roundTripper) RoundTrip(r *http.Request) (*http.Response, error) {
	f := forwardedOf(r.Context())
	ctx := outbound.WithTarget(f.trace(r.Context()), f.call.policy, f.dial)
	return t.e.pools.of(f.call.app, f.call.policy).RoundTrip(r.WithContext(ctx))
}
