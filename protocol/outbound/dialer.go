package outbound

import (
	"cmp"
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/posternhq/postern/protocol/policy"
)

// Dialer connects to targets that were judged. The zero value is ready; it is not
// copied after its first use.
type Dialer struct {
	Resolver Resolver      // default: System, without a cache
	Timeout  time.Duration // of the lookup and all attempts together; default 10 s
	Delay    time.Duration // before the next address is tried as well; default 250 ms (RFC 8305, section 8)
	// DialAddr opens one connection; default: a net.Dialer. It returns soon after its
	// context has ended.
	DialAddr func(ctx context.Context, a netip.AddrPort) (net.Conn, error)

	families families
}

// maxAttempts is how many addresses of one name are tried at most. The name's owner
// decides how many there are.
const maxAttempts = 12

// Dial looks t's name up once, has c check every address, and connects to one of
// those that passed. What Compiled.Decide says of t the caller has asked before, and
// CheckEmergency it asks after: the policy may have changed since c.
//
// The error is a *policy.Refusal, also when ctx ends.
func (d *Dialer) Dial(ctx context.Context, c *policy.Compiled, t policy.Target) (*Conn, error) {
	outer := ctx
	ctx, cancel := context.WithTimeout(ctx, d.timeout())
	defer cancel()
	start := time.Now()
	addrs, err := d.resolve(ctx, outer, c, t)
	if err != nil {
		return nil, err
	}
	looked := time.Now()
	won, failures := d.race(ctx, d.families.order(addrs, looked), t.Port)
	if won.conn == nil {
		return nil, d.dialRefusal(outer, t, failures)
	}
	conn := &Conn{Conn: won.conn, Addr: won.addr, Dial: time.Since(looked)}
	if !t.Addr.IsValid() {
		conn.DNS = looked.Sub(start)
	}
	return conn, nil
}

// Resolve does the first half of Dial: it returns the addresses that Dial would try
// now. They are not for dialing: each Dial looks up and checks anew.
func (d *Dialer) Resolve(ctx context.Context, c *policy.Compiled, t policy.Target) ([]netip.Addr, error) {
	inner, cancel := context.WithTimeout(ctx, d.timeout())
	defer cancel()
	return d.resolve(inner, ctx, c, t)
}

func (d *Dialer) timeout() time.Duration { return cmp.Or(d.Timeout, 10*time.Second) }

// resolve returns the addresses of t that c lets through, at least one. outer is the
// caller's own context.
func (d *Dialer) resolve(ctx, outer context.Context, c *policy.Compiled, t policy.Target) ([]netip.Addr, error) {
	found := []netip.Addr{t.Addr}
	if !t.Addr.IsValid() {
		resolver := d.Resolver
		if resolver == nil {
			resolver = System()
		}
		answer, err := resolver.Lookup(ctx, t.Host)
		if err != nil || len(answer.Addrs) == 0 {
			return nil, lookupRefusal(outer, t, err)
		}
		found = answer.Addrs
	}
	now := time.Now()
	passed := make([]netip.Addr, 0, len(found))
	var refused policy.Decision
	for _, a := range found {
		decision := c.CheckAddr(t, a, now)
		if decision.Allow {
			passed = append(passed, a)
		} else if refused.Cause == "" || graver(decision.Cause, refused.Cause) {
			refused = decision
		}
	}
	if len(passed) == 0 {
		return nil, refused.Refusal(c, policy.Call{Target: t})
	}
	return passed, nil
}

// graver reports whether a says more than b about why all addresses were refused.
func graver(a, b policy.Cause) bool {
	weight := func(c policy.Cause) int {
		switch c {
		case policy.Emergency:
			return 2
		case policy.Loop:
			return 1
		}
		return 0
	}
	return weight(a) > weight(b)
}

type judgedKey struct{}

// judged is what DialContext dials.
type judged struct {
	compiled *policy.Compiled
	target   policy.Target
}

// WithTarget returns a context that tells DialContext where to: t, judged under c.
func WithTarget(ctx context.Context, c *policy.Compiled, t policy.Target) context.Context {
	return context.WithValue(ctx, judgedKey{}, judged{c, t})
}

// DialContext is Dial for the field of that name of an http.Transport. It reads the
// target from the request's context (WithTarget); addr must be that target, as
// Target.HostPort writes it, or nothing is dialed.
//
// A transport may use the connection for another request to the same host and port:
// apps do not share transports.
func (d *Dialer) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	j, ok := ctx.Value(judgedKey{}).(judged)
	if !ok || network != "tcp" || j.target.HostPort() != addr {
		return nil, errNotJudged
	}
	conn, err := d.Dial(ctx, j.compiled, j.target)
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// errNotJudged is a programmer's mistake: what was judged is not what is dialed.
var errNotJudged = errors.New("outbound: this address was not judged for the request")
