package egress

import (
	"context"
	"encoding/json"
	"errors"
	"io"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/outbound"
	"github.com/posternhq/postern/protocol/policy"
	"github.com/posternhq/postern/relay"
)

// ServeTunnel carries a stream of protocol.KindEgress to the address that its Open
// names, for an instance of app. It returns when the tunnel is over. Who the app is
// the caller knows from the session; nothing that the stream says changes it.
func (e *Egress) ServeTunnel(ctx context.Context, app relay.AppID, instance string, s *protocol.Stream) {
	var how protocol.EgressOpen
	if s.Open().Egress != nil {
		how = *s.Open().Egress
	}
	flow := protocol.Flow{ID: how.Flow, From: "connect"}
	if how.From == "socks" || how.From == "forward" {
		flow.From = how.From
	}
	if validTraceparent(how.Traceparent) {
		flow.Traceparent = how.Traceparent
	}
	c := e.begin(app, instance, policy.Tunnel, flow)
	t := &tunnel{e: e, call: c, stream: s, early: how.Early}
	t.serve(ctx, s.Open().Addr)
}

// tunnel is one ServeTunnel.
//
//	serve
//	├─ policy.ParseTunnel, call.judge          refused: the Reply says why
//	├─ connect                                 the gate beside the dial, when the app was told early
//	│  ├─ Dialer.Dial (goroutine), call.dialed
//	│  └─ outbound.ReadFirst, check            not a byte has gone up by now
//	├─ Stream.Accept                           connected
//	├─ outbound.ReadFirst, check               when the app waited for that; refused: a reset
//	└─ splice                                  two directions, until both have ended
type tunnel struct {
	e        *Egress
	call     *call
	stream   *protocol.Stream
	early    bool // the app believes that it is connected
	accepted bool
	conn     *outbound.Conn // owned by serve once connect has returned
}

func (t *tunnel) serve(ctx context.Context, addr string) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := t.call
	c.onCut(cancel)
	target, err := policy.ParseTunnel(addr)
	if err != nil {
		c.edit(func(f *protocol.Flow) { f.Target = unreadable(addr) })
		t.refuse(policy.NewRefusal(policy.BadTarget, err.Error()))
		return
	}
	if r := c.judge(ctx, policy.Call{Target: target}, -1); r != nil {
		t.refuse(r)
		return
	}
	first, r := t.connect(ctx)
	if r != nil {
		t.refuse(r)
		return
	}
	conn, stream := t.conn, t.stream
	c.onCut(func() {
		cancel()
		abort(conn)
		stream.Reset(resetCode(c.cutFor()))
	})
	sp := &splice{c: c, stream: stream, conn: conn}
	switch {
	case t.need() == outbound.TLSOptional:
		// The server may be the first to speak: its bytes do not wait for the client's.
		sp.gate = func() ([]byte, *policy.Refusal) { return t.first(ctx, outbound.TLSOptional) }
		c.settle()
	default:
		c.settle()
		if r := sp.begin(first); r != nil {
			c.cut(r)
		}
	}
	sp.run()
	c.finish(nil)
}

// need is what is known beforehand of the tunnel's first bytes.
func (t *tunnel) need() outbound.Need { return outbound.NeedOf(t.call.decision) }

// connect dials and says so in the Reply: what accepts is connected. With a gate it
// returns the first bytes, checked, that are to be sent before anything else. An app
// that was told early that it is connected has sent them behind the Open, so they are
// read while the dial is under way; another one sends them only after the Reply.
func (t *tunnel) connect(ctx context.Context) ([]byte, *policy.Refusal) {
	if t.need() != outbound.TLSRequired {
		return nil, t.dial(ctx)
	}
	if !t.early {
		if r := t.dial(ctx); r != nil {
			return nil, r
		}
		return t.first(ctx, outbound.TLSRequired)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	dialed := make(chan *policy.Refusal, 1)
	go func() {
		r := t.open(ctx)
		if r != nil {
			cancel() // the hello is not waited for any more
		}
		dialed <- r
	}()
	first, refused := t.first(ctx, outbound.TLSRequired)
	if refused != nil {
		cancel()
	}
	undialed := <-dialed
	switch {
	case refused != nil && (undialed == nil || refused.Cause != policy.Cut):
		return nil, refused
	case undialed != nil:
		return nil, undialed
	}
	return first, t.accept()
}

// dial is open and accept.
func (t *tunnel) dial(ctx context.Context) *policy.Refusal {
	if r := t.open(ctx); r != nil {
		return r
	}
	return t.accept()
}

// open connects to the target. t.conn is set, or the reason returned.
func (t *tunnel) open(ctx context.Context) *policy.Refusal {
	c := t.call
	conn, err := t.e.cfg.Dialer.Dial(ctx, c.policy, c.what.Target)
	if err != nil {
		if why := c.cutFor(); why != nil {
			return why
		}
		return refusalOf(err)
	}
	c.edit(func(f *protocol.Flow) { f.DNS, f.Dial = milliseconds(conn.DNS), milliseconds(conn.Dial) })
	if r := c.dialed(conn.Addr); r != nil {
		conn.Close()
		return r
	}
	t.conn = conn
	return nil
}

// accept tells the agent that the tunnel is connected.
func (t *tunnel) accept() *policy.Refusal {
	t.accepted = true
	if err := t.stream.Accept(); err != nil {
		return policy.NewRefusal(policy.Cut, "the app left before it was connected")
	}
	return nil
}

// first reads what the app sends first and checks it.
func (t *tunnel) first(ctx context.Context, need outbound.Need) ([]byte, *policy.Refusal) {
	c := t.call
	first, err := outbound.ReadFirst(ctx, t.stream, need)
	if err != nil {
		var r *policy.Refusal
		why := c.cutFor()
		switch {
		case why != nil:
			return nil, why
		case errors.As(err, &r):
			return nil, r
		case errors.Is(err, io.EOF):
			return nil, policy.NewRefusal(policy.Cut, "the app left without a word")
		}
		return nil, policy.NewRefusal(policy.Cut, "the app left before its TLS hello was complete")
	}
	if !first.TLS {
		return first.Raw, nil
	}
	c.edit(func(f *protocol.Flow) { f.SNI, f.ECH = clip(first.Hello.SNI, maxTarget), first.Hello.ECH })
	d := c.policy.CheckHello(c.decision, c.what.Target, first.Hello, t.e.cfg.Now())
	if !d.Allow {
		return nil, d.Refusal(c.policy, c.what)
	}
	if d.Would && !c.decision.Would {
		c.edit(func(f *protocol.Flow) { f.Verdict, f.Rule, f.Reason = reported, d.Where, d.Reason })
	}
	return first.Raw, nil
}

// refuse ends a tunnel that came to nothing: with the reason in the Reply, or with a
// reset after it was accepted. The line in the log comes first: the Reply may take its
// time.
func (t *tunnel) refuse(r *policy.Refusal) {
	c := t.call
	if why := c.cutFor(); why != nil {
		r = why
	}
	c.finish(r)
	if t.conn != nil {
		abort(t.conn)
	}
	code := resetCode(r)
	if t.accepted {
		t.stream.Reset(code)
		return
	}
	detail, err := json.Marshal(r)
	if err != nil {
		detail = nil
	}
	t.stream.RefuseWith(protocol.Reply{Code: code, Message: r.Message, Detail: detail})
}

// resetCode is a refusal in the words of the wire.
func resetCode(r *policy.Refusal) protocol.Code {
	if r == nil {
		return protocol.CodeCanceled
	}
	switch r.Cause {
	case policy.BadTarget:
		return protocol.CodeBadMessage
	case policy.RateLimited, policy.TooMany, policy.TooLarge:
		return protocol.CodeLimit
	case policy.DialTimeout, policy.DNSTimeout, policy.AnswerTimeout:
		return protocol.CodeTimeout
	case policy.Unavailable:
		return protocol.CodeDraining
	case policy.NoSuchName, policy.Refused, policy.Unreachable, policy.TLSFailed:
		return protocol.CodeRefused
	case policy.Cut:
		return protocol.CodeReset
	}
	return protocol.CodeForbidden
}

// refusalOf is the refusal in err's chain.
func refusalOf(err error) *policy.Refusal {
	var r *policy.Refusal
	if errors.As(err, &r) {
		return r
	}
	return policy.NewRefusal(policy.Cut, "the connection broke off before it was of use")
}
