package egress

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/posternhq/postern/protocol"
)

// relayTransport sends requests to the relay in absolute form. Its connections are
// streams, kept alive, each for requests to whatever host.
//
// The rule to know: a request is sent a second time only when not one byte of it was
// written to a stream, or the relay says that it has seen none. Of what was written nobody knows whether
// it has been obeyed.
type relayTransport struct {
	open      func(context.Context, protocol.Open) (*protocol.Stream, error)
	transport *http.Transport
}

// lostError is an Open that failed: there is no tunnel.
type lostError struct{ err error }

func (e *lostError) Error() string { return "no tunnel to the relay: " + e.err.Error() }
func (e *lostError) Unwrap() error { return e.err }

// sendAttempts is how many streams a request may meet that have just ended.
const sendAttempts = 3

func newRelayTransport(open func(context.Context, protocol.Open) (*protocol.Stream, error)) *relayTransport {
	t := &relayTransport{open: open}
	relay := &url.URL{Scheme: "http", Host: "relay"} // the name is never looked up
	t.transport = &http.Transport{
		Proxy:                  http.ProxyURL(relay),
		DialContext:            t.dial,
		DisableCompression:     true,
		MaxIdleConns:           idleStreams,
		MaxIdleConnsPerHost:    idleStreams,
		IdleConnTimeout:        idleStream,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: maxAnswer,
	}
	return t
}

// dial opens a stream. It does not wait for the relay's Reply: the first answer does.
func (t *relayTransport) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	s, err := t.open(ctx, protocol.Open{Kind: protocol.KindEgressHTTP})
	if err != nil {
		return nil, &lostError{err}
	}
	return &countedStream{Stream: s}, nil
}

// countedStream knows how much was written to it.
type countedStream struct {
	*protocol.Stream
	written atomic.Int64
}

func (s *countedStream) Write(b []byte) (int, error) {
	n, err := s.Stream.Write(b)
	s.written.Add(int64(n))
	return n, err
}

// RoundTrip implements http.RoundTripper.
func (t *relayTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	for attempt := 1; ; attempt++ {
		sent := &sending{}
		out := r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{GotConn: sent.got}))
		out.Body = sent.guard(r)
		resp, err := t.transport.RoundTrip(out)
		if err == nil || attempt == sendAttempts || r.Context().Err() != nil || !sent.again(err) {
			return resp, err
		}
	}
}

// sending is one attempt to send a request.
type sending struct {
	mu     sync.Mutex
	stream *countedStream // guarded by mu; nil: none was had
	before int64          // guarded by mu; written to it before this request

	touched atomic.Bool // the body was read from
}

func (s *sending) got(info httptrace.GotConnInfo) {
	stream, ok := info.Conn.(*countedStream)
	if !ok {
		return
	}
	s.mu.Lock()
	s.stream, s.before = stream, stream.written.Load()
	s.mu.Unlock()
}

// again reports whether the request that failed with err can be sent once more.
func (s *sending) again(err error) bool {
	var lost *lostError
	if s.touched.Load() || errors.As(err, &lost) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stream == nil {
		return false
	}
	if protocol.CodeOf(err) == protocol.CodeStale {
		return true // the relay had ended the stream before, and says so
	}
	var e *protocol.Error
	if errors.As(err, &e) && e.Unsent {
		return len(e.Detail) == 0 && isElsewhere(err)
	}
	return s.stream.written.Load() == s.before
}

// guard is the body of one attempt. http.Transport sends a GET again by itself when its
// connection breaks, whatever was written; it does not when there is a body, be it an
// empty one.
func (s *sending) guard(r *http.Request) io.ReadCloser {
	if r.Body == nil || r.Body == http.NoBody {
		switch r.Method {
		case http.MethodGet, http.MethodHead, http.MethodOptions:
			return &emptyBody{}
		}
		return r.Body
	}
	return &touchedBody{Reader: r.Body, touched: &s.touched}
}

// emptyBody is a body of a request that has none.
type emptyBody struct{}

func (*emptyBody) Read([]byte) (int, error) { return 0, io.EOF }
func (*emptyBody) Close() error             { return nil }

// touchedBody notes that it was read from. Its end is the server's to close.
type touchedBody struct {
	io.Reader
	touched *atomic.Bool
}

func (b *touchedBody) Read(p []byte) (int, error) {
	b.touched.Store(true)
	return b.Reader.Read(p)
}

func (b *touchedBody) Close() error { return nil }
