package egress

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/policy"
)

// snapshot is the policy that is decided by. It does not change.
type snapshot struct {
	compiled *policy.Compiled
}

func (s *snapshot) policy() *policy.Policy { return s.compiled.Policy() }

// decide judges a call as far as it can be before any lookup.
func (s *snapshot) decide(c policy.Call, now time.Time) policy.Decision {
	d := s.compiled.Decide(c, now)
	if d.Allow && c.Target.Addr.IsValid() {
		if a := s.compiled.CheckAddr(c.Target, c.Target.Addr, now); !a.Allow {
			return a
		}
	}
	return d
}

// ackTime is how long the relay may leave an acknowledgement standing.
const ackTime = 30 * time.Second

// ServePolicy is the agent's end of a stream of KindPolicy. It takes one policy after
// the other until the stream or ctx ends. Several relays, or several tunnels to one,
// may send the same ones.
func (p *Proxy) ServePolicy(ctx context.Context, s *protocol.Stream) {
	defer s.Close()
	defer context.AfterFunc(ctx, func() { s.Close() })()
	if s.Accept() != nil {
		return
	}
	for {
		// The message is read before it is understood, so that one that cannot be
		// understood does not cost the stream.
		var raw json.RawMessage
		err := protocol.ReadMessage(s, protocol.MaxPolicy, &raw)
		var unreadable *protocol.Error
		if err != nil && !(errors.As(err, &unreadable) && unreadable.Code == protocol.CodeBadMessage && unreadable.Err != nil) {
			if err != io.EOF && ctx.Err() == nil {
				p.log.Debug("stream of policies ended", "err", err)
			}
			return
		}
		ack := protocol.PolicyAck{Error: "the policy is not JSON"}
		if err == nil {
			ack = p.take(raw)
		}
		s.SetWriteDeadline(time.Now().Add(ackTime))
		if protocol.WriteMessage(s, ack) != nil {
			return
		}
	}
}

// take puts a policy in force, unless it cannot be used or a later one is.
func (p *Proxy) take(raw json.RawMessage) protocol.PolicyAck {
	p.taking.Lock()
	defer p.taking.Unlock()
	next, err := readPolicy(raw, p.cfg.App)
	if err != nil {
		var head struct {
			Serial int64 `json:"serial"`
		}
		json.Unmarshal(raw, &head)
		p.log.Error("policy cannot be used, the one before stays in force", "serial", head.Serial, "err", err)
		return protocol.PolicyAck{Serial: head.Serial, Error: err.Error()}
	}
	before := p.snapshot.Load()
	if before != nil && next.Serial <= before.policy().Serial {
		return protocol.PolicyAck{Serial: before.policy().Serial}
	}
	p.snapshot.Store(&snapshot{compiled: policy.Compile(next)})
	p.requests.renewDirect()
	ended := 0
	for _, c := range p.live.all() {
		if p.recheck(c) {
			ended++
		}
	}
	p.tell(before, next, ended)
	return protocol.PolicyAck{Serial: next.Serial}
}

// readPolicy reads a policy and checks that it is one that this version understands.
func readPolicy(raw json.RawMessage, app string) (*policy.Policy, error) {
	var next policy.Policy
	if err := json.Unmarshal(raw, &next); err != nil {
		return nil, fmt.Errorf("read the policy: %w", err)
	}
	switch next.Mode {
	case policy.Enforce, policy.Report, policy.Open:
	case "":
		if next.Declared {
			return nil, errors.New("the policy has no mode")
		}
	default:
		return nil, fmt.Errorf("the policy has mode %q, which this agent does not know", next.Mode)
	}
	if app != "" && next.App != "" && next.App != app {
		return nil, fmt.Errorf("the policy is for app %q, this is %q", next.App, app)
	}
	return &next, nil
}

// tell logs what has changed for the app.
func (p *Proxy) tell(before *snapshot, next *policy.Policy, ended int) {
	if ended > 0 {
		p.log.Warn("direct calls cut by an emergency deny", "calls", ended, "serial", next.Serial)
	}
	p.log.Debug("policy in force", "version", next.Version, "serial", next.Serial, "mode", next.Mode, "rules", len(next.Allow))
	switch {
	case !next.Declared && (before == nil || before.policy().Declared):
		p.log.Info("the manifest says nothing of this app's outbound calls, so all calls through the proxy are refused",
			"app", next.App,
			"fix", fmt.Sprintf("write in the manifest: apps: {%s: {egress: {mode: report}}}, and then the hosts it may call below egress.allow", next.App),
			"or", "start it with --no-egress, which leaves its calls alone")
	case next.Declared && before != nil && !before.policy().Declared:
		p.log.Info("the manifest now says what this app may call", "mode", next.Mode, "version", next.Version)
	case next.Declared && before == nil:
		p.log.Info("outbound calls go by the relay's policy", "mode", next.Mode, "rules", len(next.Allow), "version", next.Version)
	}
}
