package policies

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/relay"
)

const (
	maxAck     = 16 << 10 // bytes
	maxUnacked = 64       // sent policies that an agent may still acknowledge

	// pushChunk has to be taken by an agent within pushTime. Slower ones lose the
	// stream; the node opens another.
	pushChunk = 64 << 10
	pushTime  = 10 * time.Second
)

// Serve is the relay's end of a stream of protocol.KindPolicy to one agent: it sends
// the policy of that instance now and whenever it changes, and takes the
// acknowledgements. It returns, with the stream closed, when ctx or the stream ends, or
// when the agent takes nothing for 10 s; as long as the session lives, its owner should
// open another after a while. One stream for each agent is enough: open it on one of its
// sessions.
func (p *Policies) Serve(ctx context.Context, app relay.AppID, instance string, s *protocol.Stream) {
	p.serve(ctx, app, instance, s)
}

// serve
//
//	├── push    in this goroutine: the newest policy, as often as there is a newer one
//	└── listen  in one of its own: acknowledgements, until the stream is closed
func (p *Policies) serve(ctx context.Context, app relay.AppID, instance string, conn net.Conn) {
	a := p.roster.join(app, instance, p.cfg.Now())
	defer p.roster.leave(a)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Nobody is kept by an agent that neither reads nor writes.
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	var listening sync.WaitGroup
	listening.Go(func() {
		defer cancel()
		p.listen(a, conn)
	})
	err := p.push(ctx, a, conn)
	if err != nil && ctx.Err() == nil {
		p.cfg.Logger.Info("agent does not take its policy", "app", string(app), "instance", instance, "error", err)
	}
	conn.Close()
	listening.Wait()
}

// push sends until ctx ends or the agent does not take it.
func (p *Policies) push(ctx context.Context, a *agent, conn net.Conn) error {
	var sent *entry
	for {
		st := p.state.Load()
		if e := st.entry(a.app, a.instance); e != sent {
			sent = e
			if err := p.send(a, e, conn); err != nil {
				return err
			}
		}
		select {
		case <-st.over:
		case <-ctx.Done():
			return nil
		}
	}
}

// send writes one policy. One that cannot be sent at all leaves the agent with what it
// has, and shows in its status.
func (p *Policies) send(a *agent, e *entry, conn net.Conn) error {
	message, err := e.message()
	if err != nil {
		p.cfg.Logger.Error("policy cannot be sent", "app", string(a.app), "instance", a.instance, "error", err)
		p.roster.fail(a, "the policy cannot be sent: "+messageOf(err))
		return nil
	}
	p.roster.sending(a, e)
	for len(message) > 0 {
		chunk := message[:min(len(message), pushChunk)]
		if err := conn.SetWriteDeadline(time.Now().Add(pushTime)); err != nil {
			return err
		}
		n, err := conn.Write(chunk)
		if err != nil {
			return err
		}
		message = message[n:]
	}
	return nil
}

// listen takes acknowledgements until the stream ends.
func (p *Policies) listen(a *agent, conn net.Conn) {
	for {
		var ack protocol.PolicyAck
		if err := protocol.ReadMessage(conn, maxAck, &ack); err != nil {
			if !errors.Is(err, io.EOF) && protocol.CodeOf(err) == protocol.CodeBadMessage {
				p.cfg.Logger.Info("agent's acknowledgement cannot be read", "app", string(a.app), "instance", a.instance, "error", err)
			}
			return
		}
		p.roster.acked(a, ack, p.cfg.Now())
	}
}

// messageOf is what may be shown of err.
func messageOf(err error) string {
	var e *relay.Error
	if errors.As(err, &e) {
		return e.Message
	}
	return "it cannot be written"
}

// shown is a text of an agent's, made fit for logs and answers.
func shown(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > 200 {
		s = strings.ToValidUTF8(s[:200], "") + "…"
	}
	return s
}
