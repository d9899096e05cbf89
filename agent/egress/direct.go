package egress

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/outbound"
	"github.com/posternhq/postern/protocol/policy"
)

// directTunnel connects from here, by the same policy as the relay: the address is
// checked, and the app's hello before it is passed on.
func (p *Proxy) directTunnel(ctx context.Context, c *call, flow *flow, snap *snapshot, d policy.Decision) {
	flow.Via = "direct"
	dest, err := p.dialer.Dial(ctx, snap.compiled, c.target)
	if err != nil {
		r := refusalOf(err)
		r.Flow = flow.ID
		c.answer.refuse(c.conn, r)
		p.logRefusal("call refused", flow.From, flow.Target, r)
		p.journal.add(flow.refused(r))
		p.bye(c.conn)
		return
	}
	defer p.forget(c.conn)
	flow.dialed(dest)
	t := &directTunnel{proxy: p, call: c, flow: flow, decision: d, dest: dest}
	t.app = &appConn{Conn: c.conn}
	live := p.live.add(c.target, dest.Addr.Addr(), t.end)
	defer p.live.remove(live)
	p.recheck(live) // the policy may have changed while we dialed
	p.journal.add(flow.begun())
	if c.answer.connected(c.conn) == nil {
		t.run(ctx)
	}
	dest.Close()
	p.journal.add(flow.ended(t.why()))
}

// directTunnel is one that is connected.
type directTunnel struct {
	proxy    *Proxy
	call     *call
	flow     *flow // its counts are the two goroutines'
	decision policy.Decision
	app      *appConn
	dest     *outbound.Conn

	up, down atomic.Int64

	mu    sync.Mutex
	cause policy.Cause // guarded by mu; why it was ended before its time
}

// end cuts both connections. The first reason is kept.
func (t *directTunnel) end(cause policy.Cause) {
	t.mu.Lock()
	if t.cause == "" {
		t.cause = cause
	}
	t.mu.Unlock()
	cut(t.dest)
	cut(t.call.conn)
}

func (t *directTunnel) why() policy.Cause {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.flow.Up, t.flow.Down = t.up.Load(), t.down.Load()
	return t.cause
}

// run moves bytes until both directions have ended.
func (t *directTunnel) run(ctx context.Context) {
	over := make(chan struct{})
	go func() {
		defer close(over)
		t.upwards(ctx)
	}()
	t.pass(t.app, t.dest, &t.down)
	<-over
	t.app.Close()
}

// upwards checks what the app sends first, and passes on that and the rest.
func (t *directTunnel) upwards(ctx context.Context) {
	app := &earlyConn{appConn: t.app, early: t.call.early}
	if need := outbound.NeedOf(t.decision); need != outbound.TLSIgnored {
		first, err := outbound.ReadFirst(ctx, app, need)
		if err == nil && first.TLS {
			t.flow.SNI, t.flow.ECH = first.Hello.SNI, first.Hello.ECH
			err = t.checkHello(first.Hello)
		}
		if err != nil {
			t.stop(err)
			return
		}
		if _, err := t.dest.Write(first.Raw); err != nil {
			t.discard(app)
			return
		}
		t.up.Add(int64(len(first.Raw)))
	}
	t.pass(t.dest, app, &t.up)
}

// checkHello judges by the policy of this moment.
func (t *directTunnel) checkHello(h policy.Hello) error {
	snap := t.proxy.snapshot.Load()
	d := snap.compiled.CheckHello(t.decision, t.call.target, h, time.Now())
	if d.Allow {
		return nil
	}
	return d.Refusal(snap.compiled, policy.Call{Target: t.call.target})
}

// stop ends a tunnel that did not begin as it must.
func (t *directTunnel) stop(err error) {
	var r *policy.Refusal
	if !errors.As(err, &r) {
		t.end("") // the app has gone
		return
	}
	r.Flow = t.flow.ID
	t.proxy.logRefusal("tunnel cut", t.flow.From, t.flow.Target, r)
	t.end(r.Cause)
}

// pass moves bytes from one end to the other and passes on how it ended. Where the
// destination takes no more, an answer may still be on its way.
func (t *directTunnel) pass(to, from net.Conn, moved *atomic.Int64) {
	err := protocol.Copy(to, from, moved)
	var failed *protocol.CopyError
	switch {
	case err == nil:
		to.(interface{ CloseWrite() error }).CloseWrite()
	case errors.As(err, &failed) && !failed.Read && to == net.Conn(t.dest):
		t.discard(from)
	default:
		t.end(policy.Cut)
	}
}

func (t *directTunnel) discard(app io.Reader) {
	if _, err := io.Copy(io.Discard, app); err != nil {
		t.end(policy.Cut)
	}
}

// earlyConn is an appConn with what was read of it already.
type earlyConn struct {
	*appConn
	early []byte // owned by the reader
}

func (e *earlyConn) Read(b []byte) (int, error) {
	if len(e.early) > 0 {
		n := copy(b, e.early)
		if e.early = e.early[n:]; len(e.early) == 0 {
			e.early = nil
		}
		return n, nil
	}
	return e.appConn.Read(b)
}

func isEnd(err error) bool { return err == io.EOF }

// liveCalls are the direct calls under way.
type liveCalls struct {
	mu    sync.Mutex
	calls map[*liveCall]struct{} // guarded by mu
}

// liveCall is one of them.
type liveCall struct {
	target policy.Target
	dialed netip.Addr         // guarded by liveCalls.mu; zero: not yet
	end    func(policy.Cause) // cuts it; may be called more than once
}

func (l *liveCalls) add(t policy.Target, dialed netip.Addr, end func(policy.Cause)) *liveCall {
	c := &liveCall{target: t, dialed: dialed, end: end}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.calls == nil {
		l.calls = map[*liveCall]struct{}{}
	}
	l.calls[c] = struct{}{}
	return c
}

func (l *liveCalls) remove(c *liveCall) {
	l.mu.Lock()
	delete(l.calls, c)
	l.mu.Unlock()
}

func (l *liveCalls) all() []*liveCall {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := make([]*liveCall, 0, len(l.calls))
	for c := range l.calls {
		list = append(list, c)
	}
	return list
}

// recheck cuts a direct call that an emergency deny covers. It reports whether.
func (p *Proxy) recheck(c *liveCall) bool {
	p.live.mu.Lock()
	dialed := c.dialed
	p.live.mu.Unlock()
	if d := p.snapshot.Load().compiled.CheckEmergency(c.target, dialed, time.Now()); d.Allow {
		return false
	}
	c.end(policy.Emergency)
	return true
}
