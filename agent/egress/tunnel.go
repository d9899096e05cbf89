package egress

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"sync/atomic"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/policy"
)

// call is a tunnel that the app asks for. It is owned by the goroutine that serves it.
type call struct {
	conn   net.Conn
	from   string // connect, socks, forward
	target policy.Target
	trace  string // traceparent, or ""
	early  []byte // what the app has sent already
	answer answer
}

// answer tells the app what became of its call, in the words of its protocol.
type answer interface {
	connected(conn net.Conn) error
	refuse(conn net.Conn, r *policy.Refusal)
}

// replyTime is how long the relay may take to answer an Open: for a lookup and a dial.
const replyTime = 30 * time.Second

// tunnel serves one call until it is over.
//
//	an address of ours → 508
//	no policy yet      → the relay decides: waitTunnel
//	Decide             → refuse, directTunnel, waitTunnel, or earlyTunnel
func (p *Proxy) tunnel(ctx context.Context, c *call) {
	c.conn.SetDeadline(time.Time{})
	flow := p.newFlow(c)
	if p.isOwn(c.target) {
		p.refuse(c, flow, policy.NewRefusal(policy.Loop, "this is the address of the proxy itself"))
		return
	}
	snap := p.snapshot.Load()
	if snap == nil {
		p.waitTunnel(ctx, c, flow, nil, policy.Decision{})
		return
	}
	d := snap.decide(policy.Call{Target: c.target}, flow.StartedAt)
	flow.judge(snap, d)
	switch {
	case !d.Allow:
		p.refuse(c, flow, d.Refusal(snap.compiled, policy.Call{Target: c.target}))
	case isDirect(d):
		p.directTunnel(ctx, c, flow, snap, d)
	case p.isEarly(c.target, d):
		p.earlyTunnel(ctx, c, flow, snap, d)
	default:
		p.waitTunnel(ctx, c, flow, snap, d)
	}
}

// isEarly reports whether the app is told that it is connected before the relay has
// dialed: where its line says so, and else where that has gone well lately.
func (p *Proxy) isEarly(t policy.Target, d policy.Decision) bool {
	if d.Rule != nil && (d.Rule.Wait || d.Rule.Early) {
		return d.Rule.Early
	}
	return p.proven.has(t.HostPort())
}

func isDirect(d policy.Decision) bool { return d.Rule != nil && d.Rule.Via == "direct" }

func directOnLoss(d policy.Decision) bool { return d.Rule != nil && d.Rule.OnRelayLoss == "direct" }

// refuse ends a call that was decided here.
func (p *Proxy) refuse(c *call, flow *flow, r *policy.Refusal) {
	r.Flow = flow.ID
	c.answer.refuse(c.conn, r)
	p.logRefusal("call refused", flow.From, flow.Target, r)
	p.journal.add(flow.refused(r))
	p.bye(c.conn)
}

// fail ends a call that was allowed and cannot be. The relay knows of it, or is lost.
func (p *Proxy) fail(c *call, flow *flow, r *policy.Refusal) {
	if r.Flow == "" {
		r.Flow = flow.ID
	}
	c.answer.refuse(c.conn, r)
	p.logRefusal("call failed", flow.From, flow.Target, r)
	p.bye(c.conn)
}

func (p *Proxy) logRefusal(what, from, target string, r *policy.Refusal) {
	if !p.denials.first(string(r.Cause) + " " + target) {
		p.log.Debug(what, "from", from, "target", target, "cause", r.Cause, "flow", r.Flow)
		return
	}
	args := []any{"from", from, "target", target, "cause", r.Cause, "reason", r.Message, "flow", r.Flow}
	if r.Where != "" {
		args = append(args, "rule", r.Where)
	}
	if r.Suggestion != "" {
		args = append(args, "suggestion", r.Suggestion)
	}
	p.log.Warn(what, args...)
}

func (p *Proxy) openTunnel(ctx context.Context, c *call, flow *flow, snap *snapshot, early bool) (*protocol.Stream, error) {
	e := &protocol.EgressOpen{Flow: flow.ID, Early: early, From: c.from, Traceparent: c.trace}
	if snap != nil {
		e.Serial = snap.policy().Serial
	}
	return p.openStream(ctx, protocol.Open{Kind: protocol.KindEgress, Addr: c.target.HostPort(), Egress: e})
}

// lost serves a call for which there is no tunnel to the relay.
func (p *Proxy) lost(ctx context.Context, c *call, flow *flow, snap *snapshot, d policy.Decision, why error) {
	if snap != nil && directOnLoss(d) {
		p.directTunnel(ctx, c, flow, snap, d)
		return
	}
	r := lostRefusal(why)
	p.fail(c, flow, r)
	p.journal.add(flow.ended(r.Cause))
}

// lostRefusal says that the relay cannot be reached.
func lostRefusal(why error) *policy.Refusal {
	message := "the relay cannot be reached: no tunnel is open"
	if protocol.CodeOf(why) == protocol.CodeUnsupported {
		message = "this relay does not carry outbound calls"
	}
	r := policy.NewRefusal(policy.RelayLost, message)
	return r
}

// earlyTunnel answers the app at once. What the relay says comes too late for an
// answer: a refusal resets the connection.
func (p *Proxy) earlyTunnel(ctx context.Context, c *call, flow *flow, snap *snapshot, d policy.Decision) {
	s, err := p.openTunnel(ctx, c, flow, snap, true)
	if err != nil {
		p.lost(ctx, c, flow, snap, d, err)
		return
	}
	p.carry(c, s, flow, true)
}

// waitTunnel answers the app when the relay has: for calls where the app must see
// whether they work, and while there is no policy.
func (p *Proxy) waitTunnel(ctx context.Context, c *call, flow *flow, snap *snapshot, d policy.Decision) {
	var s *protocol.Stream
	for attempt := 1; ; attempt++ {
		var err error
		if s, err = p.openTunnel(ctx, c, flow, snap, false); err != nil {
			p.lost(ctx, c, flow, snap, d, err)
			return
		}
		limit, cancel := context.WithTimeout(ctx, replyTime)
		err = s.AwaitReply(limit)
		cancel()
		if err == nil {
			break
		}
		s.Close()
		if attempt == 1 && isElsewhere(err) {
			continue // another tunnel may take it
		}
		p.proven.note(flow.Target, false)
		if r := replyRefusal(err); r.Cause != policy.RelayLost {
			p.fail(c, flow, r)
		} else {
			p.lost(ctx, c, flow, snap, d, err)
		}
		return
	}
	p.proven.note(flow.Target, true)
	p.carry(c, s, flow, false)
}

// isElsewhere reports whether a stream was refused for no reason but that this tunnel
// takes none.
func isElsewhere(err error) bool {
	switch protocol.CodeOf(err) {
	case protocol.CodeDraining, protocol.CodeLimit, protocol.CodeShutdown:
		return true
	}
	return false
}

// replyRefusal is the relay's refusal in err, or what err amounts to.
func replyRefusal(err error) *policy.Refusal {
	var e *protocol.Error
	if !errors.As(err, &e) {
		if errors.Is(err, context.DeadlineExceeded) {
			return policy.NewRefusal(policy.DialTimeout, "the relay did not answer in time")
		}
		return policy.NewRefusal(policy.RelayLost, "the tunnel to the relay was lost")
	}
	if r := new(policy.Refusal); len(e.Detail) > 0 && json.Unmarshal(e.Detail, r) == nil && r.Cause != "" {
		return r
	}
	switch e.Code {
	case protocol.CodeForbidden:
		return policy.NewRefusal(policy.Denied, "the relay refuses the call")
	case protocol.CodeUnsupported:
		return policy.NewRefusal(policy.RelayLost, "this relay does not carry outbound calls")
	case protocol.CodeDraining, protocol.CodeLimit, protocol.CodeShutdown:
		return policy.NewRefusal(policy.Unavailable, "the relay takes no more calls at the moment")
	}
	return policy.NewRefusal(policy.RelayLost, "the tunnel to the relay was lost")
}

// carry tells the app that it is connected, and has a goroutine of its own move bytes
// until both directions have ended: what was needed to come so far is not kept for the
// life of the tunnel, nor is the stack that it took.
func (p *Proxy) carry(c *call, s *protocol.Stream, flow *flow, early bool) {
	if c.answer.connected(c.conn) != nil {
		s.Close()
		p.forget(c.conn)
		return
	}
	if len(c.early) > 0 {
		// It fits into the window of a new stream, so it does not wait. When it fails
		// the reader learns why.
		s.Write(c.early)
	}
	k := &carried{proxy: p, early: early, id: flow.ID, from: flow.From, target: flow.Target}
	k.stream, k.app.Conn = s, c.conn
	p.serving.Go(k.serve)
}

// carried is a tunnel through the relay.
type carried struct {
	splice
	proxy            *Proxy
	early            bool // the app was told before the relay had decided
	id, from, target string
}

func (k *carried) serve() {
	k.run()
	k.proxy.forget(k.app.Conn)
	if k.early {
		k.tell()
	}
}

// tell logs why the relay refused a call that the app took for connected.
func (k *carried) tell() {
	// The reader has seen the Reply, if any came; this does not wait.
	err := k.stream.AwaitReply(context.Background())
	if err == nil {
		k.proxy.proven.note(k.target, true)
		return
	}
	if refused := (*protocol.Error)(nil); errors.As(err, &refused) && refused.Unsent {
		r := replyRefusal(err)
		r.Flow = k.id
		k.proxy.proven.note(k.target, false)
		k.proxy.logRefusal("call refused by the relay after the app was told that it is connected; its connection was reset", k.from, k.target, r)
	}
}

// appConn is a connection of the app. It is reset when it is closed, unless both
// directions have ended before: a cut answer must not look like a whole one.
type appConn struct {
	net.Conn
	read, written atomic.Bool // this direction has ended
}

func (a *appConn) Read(b []byte) (int, error) {
	n, err := a.Conn.Read(b)
	if isEnd(err) {
		a.read.Store(true)
	}
	return n, err
}

// CloseWrite ends the direction towards the app.
func (a *appConn) CloseWrite() error {
	half, ok := a.Conn.(interface{ CloseWrite() error })
	if !ok {
		return a.Conn.Close()
	}
	a.written.Store(true)
	return half.CloseWrite()
}

// Close ends the connection.
func (a *appConn) Close() error {
	if !a.read.Load() || !a.written.Load() {
		cut(a.Conn)
		return nil
	}
	return a.Conn.Close()
}
