package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/api"
)

// forwarder hands events to a developer's app: each once, and whatever becomes
// of it, nobody but the developer hears of it.
type forwarder struct {
	target *url.URL
	client *http.Client
	slots  chan struct{} // one for each event on its way
	now    func() time.Time
}

const (
	forwardMost = 8 // events at the local app at once
	forwardTime = 30 * time.Second
	forwardRead = 1 << 20 // bytes of an answer that are read, to keep the connection
)

func newForwarder(target *url.URL, now func() time.Time) *forwarder {
	return &forwarder{
		target: target, slots: make(chan struct{}, forwardMost), now: now,
		client: &http.Client{
			Transport: &http.Transport{
				// No proxy: the app is here. No compression: the app is to see
				// the sender's Accept-Encoding or none.
				DisableCompression: true, MaxIdleConnsPerHost: forwardMost,
				MaxResponseHeaderBytes: 64 << 10,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// localURL is the target of --forward: "3000", "localhost:3000/path", a URL.
func localURL(s string) (*url.URL, error) {
	full := s
	if !strings.Contains(s, "://") {
		host, path, hasPath := strings.Cut(s, "/")
		at, err := address(host)
		if err != nil {
			return nil, err
		}
		full = "http://" + at
		if hasPath {
			full += "/" + path
		}
	}
	u, err := url.Parse(full)
	switch {
	case err != nil || u.Hostname() == "" || u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("%q is not an address; expected 3000 or http://127.0.0.1:3000/path", s)
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.User != nil:
		return nil, fmt.Errorf("%q: only a host, a port and a path can be given; the event has its own query", s)
	}
	return u, nil
}

// forwarded is how handing over one event ended; --json prints it.
type forwarded struct {
	Kind   string    `json:"kind"` // forwarded
	At     time.Time `json:"at"`
	Event  api.Event `json:"event"`
	URL    string    `json:"url"`
	Millis int64     `json:"ms"`
	Status int       `json:"status,omitempty"`
	Error  string    `json:"error,omitempty"`
}

// forward hands n's event over, at the side; when too many are on their way it
// waits, which makes the relay wait too.
func (t *tail) forward(ctx context.Context, n *api.Notice) {
	select {
	case t.local.slots <- struct{}{}:
	case <-ctx.Done():
		return
	}
	t.working.Go(func() {
		defer func() { <-t.local.slots }()
		r := t.local.hand(ctx, n)
		if ctx.Err() != nil && r.Status == 0 {
			return // we were told to stop
		}
		if t.json {
			t.mu.Lock()
			t.c.printJSONLine(r)
			t.mu.Unlock()
			return
		}
		w := words{"local", green, fmt.Sprintf("%d in %s from %s", r.Status, span(time.Duration(r.Millis)*time.Millisecond), r.URL)}
		switch {
		case r.Error != "":
			w.color, w.rest = red, "skipped: "+line(r.Error)
		case r.Status < 200 || r.Status > 299:
			w.color = yellow
		}
		t.line(r.At, w, n.Event)
	})
}

// hand makes the request and sees what the app says.
func (f *forwarder) hand(ctx context.Context, n *api.Notice) forwarded {
	ctx, cancel := context.WithTimeout(ctx, forwardTime)
	defer cancel()
	start := f.now()
	r := forwarded{Kind: "forwarded", Event: n.Event.Event}
	fail := func(err error) forwarded {
		r.At = f.now()
		r.Millis, r.Error = r.At.Sub(start).Milliseconds(), err.Error()
		return r
	}
	req, err := f.request(ctx, n)
	if err != nil {
		return fail(err)
	}
	r.URL = f.target.Scheme + "://" + f.target.Host + req.URL.RequestURI()
	res, err := f.client.Do(req)
	if err != nil {
		var inURL *url.Error
		if errors.As(err, &inURL) {
			err = inURL.Err
		}
		switch {
		case errors.Is(err, syscall.ECONNREFUSED):
			err = errors.New("nothing listens there")
		case errors.Is(err, context.DeadlineExceeded):
			err = fmt.Errorf("no answer within %s", forwardTime)
		case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
			err = errors.New("the connection was closed without an answer")
		}
		return fail(fmt.Errorf("%s: %w", f.target.Host, err))
	}
	defer res.Body.Close()
	io.CopyN(io.Discard, res.Body, forwardRead)
	r.At, r.Status = f.now(), res.StatusCode
	r.Millis = r.At.Sub(start).Milliseconds()
	return r
}

// request is the event as the app itself gets it from the relay, at another URL.
func (f *forwarder) request(ctx context.Context, n *api.Notice) (*http.Request, error) {
	e := n.Event
	if e.Body == nil {
		return nil, errors.New("the relay sent it without its body")
	}
	// Where the app itself has it, unless the user said where.
	path, target := f.target.EscapedPath(), e.Target
	if path == "" || path == "/" {
		path, target = "/webhooks/"+url.PathEscape(e.Endpoint), e.Target
		if strings.HasPrefix(e.AppTarget, "/") {
			path, target = "", e.AppTarget
		}
	}
	req, err := http.NewRequestWithContext(ctx, e.Method, f.target.Scheme+"://"+f.target.Host, bytes.NewReader(e.Body.Bytes()))
	if err != nil {
		return nil, fmt.Errorf("it cannot be made a request: %w", err)
	}
	// With GetBody, net/http would send an event again when a kept-alive
	// connection breaks, because it has an Idempotency-Key.
	req.GetBody = nil
	req.URL = targetURL(f.target, path, target)
	req.Header = localHeader(e.Header)
	resigned := map[string]bool{}
	for _, h := range n.Resigned {
		if name := http.CanonicalHeaderKey(h[0]); !resigned[name] {
			resigned[name] = true
			req.Header.Del(name)
		}
		req.Header.Add(h[0], h[1])
	}
	describeEvent(req.Header, e)
	// The URL that the signature is for is the local one, so the app must not
	// take another from the header.
	req.Header.Set("X-Forwarded-Host", f.target.Host)
	req.Header.Set("X-Forwarded-Proto", f.target.Scheme)
	return req, nil
}

// targetURL puts path and what the sender had behind the endpoint's address
// together, without decoding and encoding either: some providers sign the URL.
func targetURL(base *url.URL, path, target string) *url.URL {
	rest, query, hasQuery := strings.Cut(target, "?")
	if strings.HasSuffix(path, "/") {
		rest = strings.TrimPrefix(rest, "/")
	}
	raw := path + rest
	u := &url.URL{Scheme: base.Scheme, Host: base.Host, Path: raw, RawQuery: query, ForceQuery: hasQuery}
	if decoded, err := url.PathUnescape(raw); err == nil {
		u.Path, u.RawPath = decoded, raw
	}
	if !strings.HasPrefix(raw, "//") { // which would be read as a host
		u.Opaque = raw
	}
	return u
}

// notForwarded are header lines that belong to the sender's connection, or that
// are said anew.
var notForwarded = map[string]bool{
	"Connection": true, "Keep-Alive": true, "Proxy-Connection": true, "Proxy-Authenticate": true,
	"Proxy-Authorization": true, "Te": true, "Trailer": true, "Transfer-Encoding": true, "Upgrade": true,
	"Http2-Settings": true, "Content-Length": true, "Expect": true, "Host": true,
	"X-Forwarded-For": true, "X-Forwarded-Proto": true, "X-Forwarded-Host": true,
}

func localHeader(fields [][2]string) http.Header {
	gone := map[string]bool{} // what the sender's connection alone was told
	for _, f := range fields {
		if strings.EqualFold(f[0], "Connection") {
			for name := range strings.SplitSeq(f[1], ",") {
				gone[http.CanonicalHeaderKey(strings.TrimSpace(name))] = true
			}
		}
	}
	// net/http adds a User-Agent where there is none; an empty list forbids it.
	h := http.Header{"User-Agent": nil}
	for _, f := range fields {
		name := http.CanonicalHeaderKey(f[0])
		ours := strings.HasPrefix(strings.ReplaceAll(name, "_", "-"), protocol.HeaderPrefix)
		if !ours && !notForwarded[name] && !gone[name] {
			h.Add(f[0], f[1])
		}
	}
	return h
}

// describeEvent sets what the relay says about an event.
func describeEvent(h http.Header, e *api.EventDetail) {
	h.Set(protocol.HeaderEventID, e.ID)
	// It is no delivery of the relay's, but apps may want an id here.
	delivery := "local_" + strings.TrimPrefix(e.ID, "evt_")
	h.Set(protocol.HeaderDeliveryID, delivery)
	h.Set(protocol.HeaderAttempt, strconv.Itoa(1))
	h.Set(protocol.HeaderEndpoint, e.Endpoint)
	h.Set(protocol.HeaderReceivedAt, e.ReceivedAt.UTC().Format(time.RFC3339Nano))
	h.Set(protocol.HeaderVerified, strconv.FormatBool(e.Verified))
	if len(h.Values("Idempotency-Key")) == 0 {
		h.Set("Idempotency-Key", e.ID)
	}
	if len(h.Values("Traceparent")) == 0 {
		trace, span := sha256.Sum256([]byte(e.ID)), sha256.Sum256([]byte(delivery))
		h.Set("Traceparent", "00-"+hex.EncodeToString(trace[:16])+"-"+hex.EncodeToString(span[:8])+"-01")
	}
	if e.RemoteIP != "" {
		h.Set("X-Forwarded-For", e.RemoteIP)
	}
}
