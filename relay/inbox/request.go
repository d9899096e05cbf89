package inbox

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/relay"
)

// dropped are header lines of the sender that the app does not see. The first
// group belongs to the connection they came over (RFC 9110, section 7.6.1), the
// second describes a body that has a length of its own here, the third is ours
// to say. All else is passed on byte by byte.
var dropped = map[string]bool{
	"connection": true, "keep-alive": true, "proxy-connection": true, "proxy-authenticate": true,
	"proxy-authorization": true, "te": true, "trailer": true, "transfer-encoding": true,
	"upgrade": true, "http2-settings": true,

	"content-length": true, "expect": true, "host": true,

	"x-forwarded-for": true, "x-forwarded-proto": true, "x-forwarded-host": true,
}

// Request makes the request that hands l's event to the app: the sender's own
// body and headers, and the headers that say what this is. The caller's
// RoundTripper finds the app by the URL's host.
func (b *Inbox) Request(ctx context.Context, ep relay.Endpoint, l relay.Lease) (*http.Request, error) {
	e := l.Event
	method := e.Method
	if method == "" {
		method = http.MethodPost
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://"+string(e.App), bytes.NewReader(e.Body))
	if err != nil {
		return nil, fmt.Errorf("make the app's request: %w", err)
	}
	// With GetBody, net/http would quietly send the event again when a kept-alive
	// connection breaks, because it has an Idempotency-Key. The app may have been
	// at work already: that is an attempt with an unknown outcome, and the
	// schedule says when the next one is.
	r.GetBody = nil
	r.URL = appURL(e.App, ep.Path, e.Target)
	r.Header = appHeader(e.Header)
	b.describe(r, l)
	return r, nil
}

// describe sets what the relay says about the event.
func (b *Inbox) describe(r *http.Request, l relay.Lease) {
	e, h := l.Event, r.Header
	h.Set(protocol.HeaderEventID, string(e.ID))
	h.Set(protocol.HeaderDeliveryID, string(l.Delivery.ID))
	h.Set(protocol.HeaderAttempt, strconv.Itoa(l.Delivery.Attempt+1))
	h.Set(protocol.HeaderEndpoint, e.Endpoint)
	h.Set(protocol.HeaderReceivedAt, e.ReceivedAt.UTC().Format(time.RFC3339Nano))
	h.Set(protocol.HeaderVerified, strconv.FormatBool(e.Verified))
	h.Set(protocol.HeaderRequestID, relay.NewRequestID(b.cfg.Now()))
	if len(h.Values("Idempotency-Key")) == 0 {
		h.Set("Idempotency-Key", string(e.ID))
	}
	if len(h.Values("Traceparent")) == 0 {
		h.Set("Traceparent", traceparent(l.Delivery))
	}
	if e.RemoteIP != "" {
		h.Set("X-Forwarded-For", e.RemoteIP)
	}
	if public, err := url.Parse(e.PublicURL); err == nil && public.Host != "" {
		r.Host = public.Host
		h.Set("X-Forwarded-Host", public.Host)
		h.Set("X-Forwarded-Proto", public.Scheme)
	}
}

// appHeader is the sender's header as the app sees it.
func appHeader(fields []relay.Field) http.Header {
	gone := map[string]bool{}
	for _, f := range fields {
		if strings.EqualFold(f.Name, "Connection") {
			for name := range strings.SplitSeq(f.Value, ",") {
				gone[strings.ToLower(strings.TrimSpace(name))] = true
			}
		}
	}
	// net/http adds a User-Agent where there is none; an empty list forbids it.
	h := http.Header{"User-Agent": nil}
	for _, f := range fields {
		// CGI and its heirs give an app "_" and "-" as the same character, so
		// Postern_Verified would pass for Postern-Verified.
		name := strings.ReplaceAll(strings.ToLower(f.Name), "_", "-")
		ours := strings.HasPrefix(name, strings.ToLower(protocol.HeaderPrefix))
		// A line that net/http refuses to write would keep the whole event from
		// ever being delivered.
		if ours || dropped[name] || gone[strings.ToLower(f.Name)] || !writable(f) {
			continue
		}
		h.Add(f.Name, f.Value)
	}
	return h
}

// writable reports whether f may stand in an HTTP message (RFC 9110, sections
// 5.1 and 5.5).
func writable(f relay.Field) bool {
	const punctuation = "!#$%&'*+-.^_`|~"
	for i := range len(f.Name) {
		c := f.Name[i] | 0x20
		if (c < 'a' || c > 'z') && (f.Name[i] < '0' || f.Name[i] > '9') && !strings.Contains(punctuation, f.Name[i:i+1]) {
			return false
		}
	}
	for i := range len(f.Value) {
		if c := f.Value[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return f.Name != ""
}

// fieldsOf turns a parsed header into lines: names in alphabetical order, the
// values of one name in the order they came.
func fieldsOf(h http.Header) []relay.Field {
	var fields []relay.Field
	for _, name := range slices.Sorted(maps.Keys(h)) {
		for _, value := range h[name] {
			fields = append(fields, relay.Field{Name: name, Value: value})
		}
	}
	return fields
}

// appURL puts the endpoint's path and the rest of the sender's target together
// without decoding and encoding either, because some providers sign the URL.
func appURL(app relay.AppID, path, target string) *url.URL {
	rest, query, hasQuery := strings.Cut(target, "?")
	if strings.HasSuffix(path, "/") && strings.HasPrefix(rest, "/") {
		rest = rest[1:]
	}
	u := &url.URL{Scheme: "http", Host: string(app), RawQuery: query, ForceQuery: hasQuery}
	raw := path + rest
	if raw == "" {
		raw = "/"
	}
	u.Path = raw
	if plain, err := url.PathUnescape(raw); err == nil {
		u.Path, u.RawPath = plain, raw
	}
	// Opaque goes onto the wire as it is, except that a leading "//" would be
	// read as the name of a host.
	if !strings.HasPrefix(raw, "//") {
		u.Opaque = raw
	}
	return u
}

// safeTarget reports whether target can be put behind an endpoint's path and
// stays below it. Apps resolve dot segments, some also behind a "%2e" or a
// backslash, and a webhook address must not open the rest of the app.
func safeTarget(target string) bool {
	if target == "" {
		return true
	}
	if target[0] != '/' && target[0] != '?' {
		return false
	}
	path, _, _ := strings.Cut(target, "?")
	plain, err := url.PathUnescape(path)
	if err != nil {
		return false
	}
	segments := strings.FieldsFunc(plain, func(r rune) bool { return r == '/' || r == '\\' })
	return !slices.Contains(segments, "..") && !slices.Contains(segments, ".")
}

// traceparent is a W3C trace context. All attempts of an event share the trace,
// which is taken from its random id, and each is a span of its own.
func traceparent(d relay.Delivery) string {
	trace := sha256.Sum256([]byte(d.Event))
	span := sha256.Sum256([]byte(string(d.ID) + "/" + strconv.FormatInt(d.LeaseGen, 10)))
	return "00-" + hex.EncodeToString(trace[:16]) + "-" + hex.EncodeToString(span[:8]) + "-01"
}
