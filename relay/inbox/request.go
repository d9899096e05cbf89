package inbox

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/relay"
)

// dropped are header lines of the sender that the app does not see, besides those
// that belong to the connection they came over. The first group describes a body
// that has a length of its own here, the second is ours to say. All else is passed
// on byte by byte.
var dropped = map[string]bool{
	"content-length": true, "expect": true, "host": true,

	"x-forwarded-for": true, "x-forwarded-proto": true, "x-forwarded-host": true,
}

// Request makes the request that hands l's event to its destination: the
// sender's own body and headers, and the headers that say what this is. Where the
// destination says so, values are taken out and the rest is signed anew.
//
// For the app, Config.App finds it by the URL's host. A URL gets all events as it
// is written in the manifest: nothing of what the sender asked for is added.
func (b *Inbox) Request(ctx context.Context, ep relay.Endpoint, l relay.Lease) (*http.Request, error) {
	dest, known := ep.Destination(l.Delivery.Destination)
	if !known {
		return nil, fmt.Errorf("make the request: endpoint %s has no destination %s", ep.Name, l.Delivery.Destination)
	}
	if dest.URL != "" {
		l.Event = ep.Redact.With(dest.Redact).Apply(l.Event)
		ep.MaskSecrets(&l.Event)
	}
	e := l.Event
	method := e.Method
	if method == "" {
		method = http.MethodPost
	}
	base := dest.URL
	if base == "" {
		base = "http://" + string(e.App)
	}
	r, err := http.NewRequestWithContext(ctx, method, base, bytes.NewReader(e.Body))
	if err != nil {
		return nil, fmt.Errorf("make the request: %w", err)
	}
	// With GetBody, net/http would quietly send the event again when a kept-alive
	// connection breaks, because it has an Idempotency-Key. The app may have been
	// at work already: that is an attempt with an unknown outcome, and the
	// schedule says when the next one is.
	r.GetBody = nil
	r.Header = appHeader(e.Header)
	seen := dest.URL // the URL that the receiver believes in
	if dest.URL == "" {
		r.URL = appURL(e.App, ep.Path, e.Target)
		if public, err := url.Parse(e.PublicURL); err == nil && public.Host != "" {
			r.Host = public.Host
			seen = public.Scheme + "://" + public.Host + rawTarget(r.URL)
		}
	}
	if dest.Resign {
		b.resign(r.Header, ep, l, seen)
	}
	b.describe(r.Header, ep, l)
	return r, nil
}

// resign replaces the sender's signature in h by one of now. Where that cannot
// be done the sender's own stays, which is still good for those that check no age.
func (b *Inbox) resign(h http.Header, ep relay.Endpoint, l relay.Lease, url string) {
	fields, err := b.cfg.Resign(ep, l.Event, url, b.cfg.Now())
	if err != nil {
		id := laneOf(l.Delivery)
		b.mu.Lock()
		known := b.unsigned[id]
		b.unsigned[id] = true
		b.mu.Unlock()
		if !known {
			b.cfg.Logger.Warn("events cannot be signed anew, they go out as they came", "app", id.app,
				"endpoint", id.endpoint, "destination", id.destination, "error", err)
		}
		return
	}
	for _, f := range fields {
		h.Del(f.Name)
	}
	for _, f := range fields {
		h.Add(f.Name, f.Value)
	}
}

// describe sets what the relay says about the event.
func (b *Inbox) describe(h http.Header, ep relay.Endpoint, l relay.Lease) {
	e := l.Event
	h.Set(protocol.HeaderEventID, string(e.ID))
	h.Set(protocol.HeaderDeliveryID, string(l.Delivery.ID))
	h.Set(protocol.HeaderAttempt, strconv.Itoa(l.Delivery.Attempt+1))
	h.Set(protocol.HeaderEndpoint, e.Endpoint)
	h.Set(protocol.HeaderReceivedAt, e.ReceivedAt.UTC().Format(time.RFC3339Nano))
	h.Set(protocol.HeaderVerified, strconv.FormatBool(e.Verified))
	h.Set(protocol.HeaderRequestID, relay.NewRequestID(b.cfg.Now()))
	if len(h.Values("Idempotency-Key")) == 0 {
		h.Set("Idempotency-Key", idempotencyKey(ep, e))
	}
	if len(h.Values("Traceparent")) == 0 {
		h.Set("Traceparent", traceparent(l.Delivery))
	}
	if e.RemoteIP != "" {
		h.Set("X-Forwarded-For", e.RemoteIP)
	}
	if public, err := url.Parse(e.PublicURL); err == nil && public.Host != "" {
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
		if ours || relay.HopByHop(name) || dropped[name] || gone[strings.ToLower(f.Name)] || !writable(f) {
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

// rawTarget is what appURL's result puts into the request line.
func rawTarget(u *url.URL) string {
	target := u.Opaque
	if target == "" {
		target = u.EscapedPath()
	}
	if u.RawQuery != "" || u.ForceQuery {
		target += "?" + u.RawQuery
	}
	return target
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

// idempotencyKey tells the app what it has had already. A sync event's sender
// tries again itself, each time with an event of its own, so that only the
// sender's own id stays the same.
func idempotencyKey(ep relay.Endpoint, e relay.Event) string {
	if ep.Mode == relay.ModeSync && e.DedupeKey != "" {
		return e.DedupeKey
	}
	return string(e.ID)
}
