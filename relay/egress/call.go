package egress

import (
	"context"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/policy"
	"github.com/posternhq/postern/relay"
)

// Verdicts of a protocol.Flow.
const (
	allowed  = "allow"
	reported = "report" // let through, and enforce would have refused it
	denied   = "deny"
)

// call is one call in flight: what was judged, what the log says of it, and how it is
// ended from outside.
//
//	begin      it counts as started, and Cut sees it
//	judge      the policy, then the limits; the first line of the log
//	dialed     the address is known; once more the emergency denies
//	settle     it has reached what it was for; it is counted in the sums
//	finish     the last line of the log; it counts as logged
type call struct {
	e        *Egress
	app      relay.AppID
	instance string
	form     policy.Form
	begun    time.Time // of the monotonic clock

	// Set by judge, before anybody else but Cut knows of the call.
	policy   *policy.Compiled
	what     policy.Call
	decision policy.Decision
	lease    lease

	up, down  atomic.Int64 // bytes so far
	firstByte atomic.Int64 // nanoseconds from begun to the first byte of the answer

	mu     sync.Mutex
	flow   protocol.Flow   // guarded by mu; what the log says
	target policy.Target   // guarded by mu; zero until it is parsed
	via    policy.Target   // guarded by mu; where an upgraded request really goes; else zero
	addr   netip.AddrPort  // guarded by mu; zero until it is dialed
	why    *policy.Refusal // guarded by mu; why it was cut; nil: it was not
	abort  func()          // guarded by mu; ends what goes on; may be called by anybody
	isOver bool            // guarded by mu

	// Owned by the ledger.
	record             *protocol.Flow
	counted            atomic.Bool
	bookedUp, bookedDn int64
}

// begin registers a call. flow has what is known before anything is judged. Whoever
// begins a call finishes it.
func (e *Egress) begin(app relay.AppID, instance string, form policy.Form, flow protocol.Flow) *call {
	now := e.cfg.Now()
	if !validFlowID(flow.ID) {
		flow.ID = relay.NewFlowID(now)
	}
	flow.App, flow.Instance, flow.Team = string(app), instance, e.cfg.Team(app)
	flow.Form, flow.Via, flow.Verdict, flow.StartedAt = string(form), "relay", denied, now
	c := &call{e: e, app: app, instance: instance, form: form, begun: time.Now(), flow: flow}
	e.enter(c)
	return c
}

// onCut says how the call is ended from outside. If it has been already, that is done
// at once.
func (c *call) onCut(abort func()) {
	c.mu.Lock()
	c.abort = abort
	cut := c.why != nil
	c.mu.Unlock()
	if cut {
		abort()
	}
}

// cut ends the call because of r. It reports whether this was what ended it.
func (c *call) cut(r *policy.Refusal) bool {
	c.mu.Lock()
	first := c.why == nil && !c.isOver
	if first {
		c.why = r
	}
	abort := c.abort
	c.mu.Unlock()
	if first && abort != nil {
		abort()
	}
	return first
}

// cutFor is why the call was cut; nil: it was not.
func (c *call) cutFor() *policy.Refusal {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.why
}

// judge decides whether the call may go on: the policy, then the limits. It writes
// the first line of the log when it may. length is what a request says of its body;
// -1: nothing.
//
// The target is registered before the policy is asked, and the policy asked again
// after everything that took time: an emergency deny comes either in time to be
// obeyed here, or finds the call in the register.
func (c *call) judge(ctx context.Context, what policy.Call, length int64) *policy.Refusal {
	e := c.e
	c.mu.Lock()
	c.target = what.Target
	c.flow.Target = what.Target.HostPort()
	c.flow.Method, c.flow.Path = what.Method, clip(what.Path, maxPath)
	c.mu.Unlock()
	if e.draining.Load() {
		r := policy.NewRefusal(policy.Unavailable, "the relay is stopping")
		r.RetryAfter = 1
		return r
	}
	c.policy, c.what = e.cfg.Policy(c.app, c.instance), what
	c.decision = c.policy.Decide(what, e.cfg.Now())
	p, d := c.policy.Policy(), c.decision
	c.mu.Lock()
	c.flow.Version, c.flow.Serial = p.Version, p.Serial
	c.flow.Rule, c.flow.Reason = d.Where, d.Reason
	c.flow.Policy = milliseconds(time.Since(c.begun))
	c.mu.Unlock()
	if !d.Allow {
		return d.Refusal(c.policy, what)
	}
	var refused *policy.Refusal
	if c.lease, refused = e.limits.admit(ctx, c.app, p, d, c.form, length); refused != nil {
		if why := c.cutFor(); why != nil {
			return why // it waited for its turn in a quota
		}
		return refused
	}
	if r := c.stillAllowed(); r != nil {
		return r
	}
	c.mu.Lock()
	c.flow.Verdict = allowed
	if d.Would {
		c.flow.Verdict = reported
	}
	c.mu.Unlock()
	e.ledger.decided(c)
	return nil
}

// dialed notes where the call goes, and checks once more.
func (c *call) dialed(addr netip.AddrPort) *policy.Refusal {
	c.mu.Lock()
	c.addr = addr
	c.flow.Dialed = addr.String()
	c.mu.Unlock()
	return c.stillAllowed()
}

// stillAllowed is nil unless the policy has changed since the call was judged, and an
// emergency deny covers it now, or it was cut.
func (c *call) stillAllowed() *policy.Refusal {
	if why := c.cutFor(); why != nil {
		return why
	}
	if now := c.e.cfg.Policy(c.app, c.instance); now != c.policy {
		return c.emergency(now)
	}
	return nil
}

// emergency is what p's emergency denies say of the call.
func (c *call) emergency(p *policy.Compiled) *policy.Refusal {
	c.mu.Lock()
	target, via, addr := c.target, c.via, c.addr.Addr()
	c.mu.Unlock()
	now := c.e.cfg.Now()
	for _, t := range [2]policy.Target{target, via} {
		if t.Port == 0 {
			continue // not parsed yet, or not upgraded
		}
		if d := p.CheckEmergency(t, addr, now); !d.Allow {
			return d.Refusal(p, policy.Call{Target: t})
		}
	}
	return nil
}

// settle counts the call in the sums: it has reached what it was for.
func (c *call) settle() { c.e.ledger.book(c, true) }

// edit changes what the log will say.
func (c *call) edit(change func(f *protocol.Flow)) {
	c.mu.Lock()
	change(&c.flow)
	c.mu.Unlock()
}

// firstDown notes when the answer began.
func (c *call) firstDown() {
	c.firstByte.CompareAndSwap(0, int64(max(time.Since(c.begun), 1)))
}

// finish writes the last line of the log. r is why the call came to nothing, or broke
// off; nil: it did not. Only the first finish counts. What r says is completed for
// whoever answers with it.
func (c *call) finish(r *policy.Refusal) {
	c.mu.Lock()
	if c.isOver {
		c.mu.Unlock()
		return
	}
	c.isOver = true
	if c.why != nil {
		r = c.why
	}
	f := &c.flow
	if r != nil {
		r.Flow = f.ID
		f.Cause, f.Reason = string(r.Cause), r.Message
		if r.Where != "" {
			f.Rule = r.Where
		}
		if byPolicy(r.Cause) && !c.counted.Load() && f.Status == 0 {
			f.Verdict = denied // after the lookup, or at the hello
		}
	}
	f.Ended = true
	f.Duration = milliseconds(time.Since(c.begun))
	f.TTFB = milliseconds(time.Duration(c.firstByte.Load()))
	f.Up, f.Down = c.up.Load(), c.down.Load()
	c.abort = nil
	c.mu.Unlock()
	c.lease.release()
	c.e.ledger.ended(c)
	c.e.leave(c)
}

// byPolicy reports whether a refusal for cause is a verdict, and not a failure of
// what was let through.
func byPolicy(cause policy.Cause) bool {
	switch cause {
	case policy.BadTarget, policy.Denied, policy.Emergency, policy.Undeclared, policy.Prohibited,
		policy.SNIMismatch, policy.NotTLS, policy.Loop:
		return true
	}
	return false
}

func milliseconds(d time.Duration) float64 {
	return float64(d.Microseconds()) / 1000
}

// The longest texts in a line of the log.
const (
	maxPath   = 512
	maxTarget = 300
	maxText   = 512
)

// clip bounds s, and never cuts a character in two.
func clip(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "…"
}

// unreadable is how the log has a target that could not be parsed: quoted, and without
// what may be secret in it.
func unreadable(target string) string {
	if _, rest, ok := strings.Cut(target, "://"); ok {
		target = rest
	}
	if i := strings.IndexAny(target, "/?#"); i >= 0 {
		target = target[:i]
	}
	target = target[strings.LastIndexByte(target, '@')+1:]
	return strconv.Quote(clip(target, maxTarget))
}

// validFlowID reports whether an agent's name for a call can be used.
func validFlowID(id string) bool {
	const prefix, digits = "flo_", 26
	if len(id) != len(prefix)+digits || !strings.HasPrefix(id, prefix) {
		return false
	}
	for _, r := range id[len(prefix):] {
		if r < '0' || r > '9' && r < 'a' || r > 'z' {
			return false
		}
	}
	return true
}
