package egress

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/posternhq/postern/protocol/outbound"
	"github.com/posternhq/postern/protocol/policy"
)

// renewDirect ends the use of connections that an earlier policy let through.
func (q *requests) renewDirect() {
	d := q.proxy.dialer
	next := &http.Transport{
		DialContext:            d.DialContext,
		DisableCompression:     true,
		MaxIdleConns:           idleStreams,
		MaxIdleConnsPerHost:    8,
		IdleConnTimeout:        idleStream,
		TLSHandshakeTimeout:    outbound.HelloTimeout,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: maxAnswer,
	}
	if before := q.direct.Swap(next); before != nil {
		before.CloseIdleConnections()
	}
}

// fromHere sends a request to its destination, under the same policy.
func (q *requests) fromHere(r *http.Request, t *route) (*http.Response, error) {
	p := q.proxy
	t.direct, t.flow.Via = true, "direct"
	ctx, cancel := context.WithCancel(r.Context())
	target, refused := t.aim(r)
	if refused != nil {
		cancel()
		p.journal.add(t.flow.refused(refused))
		return nil, refused
	}
	live := p.live.add(target, target.Addr, func(cause policy.Cause) {
		t.cause.CompareAndSwap(nil, &cause)
		cancel()
	})
	ctx = outbound.WithTarget(ctx, t.snap.compiled, target)
	out := r.WithContext(httptrace.WithClientTrace(ctx, t.watch(p, live)))
	if out.Body != nil {
		out.Body = &countedBody{ReadCloser: out.Body, moved: &t.up}
	}
	p.journal.add(t.flow.begun())
	over := sync.OnceFunc(func() {
		p.live.remove(live)
		cancel()
		q.record(t)
	})
	if p.recheck(live) {
		over()
		return nil, policy.NewRefusal(policy.Emergency, "an emergency deny covers this call")
	}
	resp, err := q.direct.Load().RoundTrip(out)
	if err != nil {
		t.fault(err)
		over()
		return nil, err
	}
	t.flow.Status, t.flow.TTFB = resp.StatusCode, since(t.flow.StartedAt)
	resp.Body = endOf(resp.Body, &t.down, over)
	return resp, nil
}

func (q *requests) record(t *route) {
	t.flow.Up, t.flow.Down = t.up.Load(), t.down.Load()
	cause := policy.Cause("")
	if c := t.cause.Load(); c != nil {
		cause = *c
	}
	q.proxy.journal.add(t.flow.ended(cause))
}

// fault notes why there was no answer.
func (t *route) fault(err error) {
	r := answerRefusal(err)
	t.cause.CompareAndSwap(nil, &r.Cause)
	if byPolicy(r.Cause) {
		t.flow.Verdict, t.flow.Reason = "deny", r.Message
	}
}

// aim points r at its destination and returns what is dialed: the target that was
// judged, but for a rule with upgrade, which speaks TLS on 443. What the deny lines say
// of that port is asked for besides.
func (t *route) aim(r *http.Request) (policy.Target, *policy.Refusal) {
	target := t.call.Target
	scheme := "http"
	if t.decision.Rule != nil && t.decision.Rule.Upgrade {
		scheme, target.Port = "https", 443
		what := policy.Call{Target: target, Method: t.call.Method, Path: t.call.Path}
		d := t.snap.compiled.Decide(what, time.Now())
		isDeny := func(l policy.Deny) bool { return l.Where == d.Where }
		if p := t.snap.policy(); !d.Allow && (slices.ContainsFunc(p.Deny, isDeny) || slices.ContainsFunc(p.Emergency, isDeny)) {
			return target, d.Refusal(t.snap.compiled, what)
		}
		r.Host = strings.TrimSuffix(target.HostPort(), ":443")
	}
	r.URL = &url.URL{Scheme: scheme, Host: target.HostPort(), Opaque: t.raw}
	if strings.HasPrefix(t.raw, "//") { // net/http would take it for a host
		path, query, hasQuery := strings.Cut(t.raw, "?")
		path = policy.Spell(path)
		plain, err := url.PathUnescape(path)
		if err != nil {
			return target, policy.NewRefusal(policy.BadTarget, "the URL's path has an escape that cannot be read")
		}
		r.URL.Opaque, r.URL.Path, r.URL.RawPath = "", plain, path
		r.URL.RawQuery, r.URL.ForceQuery = query, hasQuery
	}
	return target, nil
}

// watch notes which connection the request got, and has it judged by the policy of
// this moment: the connection may have been there before.
func (t *route) watch(p *Proxy, live *liveCall) *httptrace.ClientTrace {
	return &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		addr, ok := info.Conn.RemoteAddr().(*net.TCPAddr)
		if !ok {
			return
		}
		p.live.dialed(live, addr.AddrPort().Addr().Unmap())
		p.recheck(live)
	}}
}

// dialed notes the address of a call that was added without.
func (l *liveCalls) dialed(c *liveCall, a netip.Addr) {
	l.mu.Lock()
	c.dialed = a
	l.mu.Unlock()
}

// countedBody counts what is read of a body.
type countedBody struct {
	io.ReadCloser
	moved *atomic.Int64
}

func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.moved.Add(int64(n))
	return n, err
}

// endOf calls over when body is closed. A body that can be written to, behind an
// upgrade, still can.
func endOf(body io.ReadCloser, moved *atomic.Int64, over func()) io.ReadCloser {
	b := &endedBody{countedBody{body, moved}, over}
	if w, ok := body.(io.Writer); ok {
		return &upgradedBody{b, w}
	}
	return b
}

type endedBody struct {
	countedBody
	over func()
}

func (b *endedBody) Close() error {
	defer b.over()
	return b.ReadCloser.Close()
}

type upgradedBody struct {
	*endedBody
	io.Writer
}
