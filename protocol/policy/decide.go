package policy

import (
	"net/netip"
	"time"
)

// advice is which edit of the manifest would let a refused call through.
type advice uint8

const (
	noAdvice     advice = iota
	adviceDeny          // none should: a deny line decided
	adviceAllow         // a line of the allow list
	adviceScheme        // the same, or the call in another way
	adviceRules         // a method and path on the line that names the host
	adviceTell          // the app's egress section
	adviceName          // a line with this very name, and a hole for its address
	adviceHole          // a hole for the address
)

// Decide says whether a call may go on to the lookup of its name, in this order, the
// first that refuses or allows wins:
//
//	emergency      an emergency deny of the host, the address, or the whole app
//	addresses      of a literal address: CheckAddr
//	names          this machine, and names that only some inner network knows
//	deny           a deny line with the host
//	undeclared     the manifest says nothing of the app's calls
//	allow          the first line that fits, see Rule
//	mode           enforce refuses, report and open let through
//
// An allow line with exactly the name of a host of an inner network gets it past
// names, to the rules about addresses; nothing gets localhost past them.
//
// It takes at most 10 µs with 100 000 lines, and allocates only to explain a refusal.
func (c *Compiled) Decide(call Call, now time.Time) Decision {
	t := call.Target
	if t.Port == 0 || t.Addr.IsValid() == (t.Host != "") {
		return Decision{Cause: BadTarget, Where: "default", Reason: "the call has no target"}
	}
	if e := c.emergency.host(t, now); e != nil {
		return emergency(e)
	}
	if t.Addr.IsValid() {
		if d := c.CheckAddr(t, t.Addr, now); !d.Allow {
			return d
		}
	} else if d := c.checkName(call, now); !d.Allow {
		return d
	}
	if l := c.deny.host(t, now); l != nil {
		return denied(l, t.Name()+" is denied")
	}
	if !c.policy.Declared {
		return Decision{Cause: Undeclared, Where: "default", advice: adviceTell,
			Reason: "the manifest does not say which calls the app " + c.policy.App + " may make"}
	}
	rule, near := c.findRule(call, now)
	if rule != nil {
		return c.byRule(rule, t)
	}
	return c.byMode(call, near)
}

// checkName refuses names that are not for the outside.
func (c *Compiled) checkName(call Call, now time.Time) Decision {
	host := call.Target.Host
	if isLoopbackName(host) {
		return Decision{Cause: Denied, Where: "names", Reason: host + " is this machine, and never looked up"}
	}
	if !isInnerName(host) {
		return Decision{Allow: true}
	}
	if rule, _ := c.findRule(call, now); rule != nil && rule.namesExactly(host) {
		return Decision{Allow: true}
	}
	return Decision{Cause: Denied, Where: "names", advice: adviceName,
		Reason: host + " is a name of an inner network, and not looked up unless a line names exactly it"}
}

// namesExactly reports whether the line has this name, and not a pattern.
func (r *Rule) namesExactly(host string) bool {
	if r.Host == host {
		return true
	}
	p, err := ParsePattern(r.Host)
	return err == nil && p == host
}

// findRule returns the first line that fits the call, or else one that names its host
// and port, if there is any.
func (c *Compiled) findRule(call Call, now time.Time) (rule, near *Rule) {
	path := call.Path
	if path == "" {
		path = "/"
	}
	ambiguous := call.Target.Form == Request && ambiguousPath(path) != ""
	nearest := none
	i := c.allow.find(call.Target, call.Target.Port, func(i int32) bool {
		r := &c.policy.Allow[i]
		if !live(r.Expires, now) {
			return false
		}
		if r.takes(call.Target.Form) && r.fits(call, path, ambiguous) {
			return true
		}
		nearest = min(nearest, i)
		return false
	})
	if i != none {
		return &c.policy.Allow[i], nil
	}
	if nearest != none {
		return nil, &c.policy.Allow[nearest]
	}
	return nil, nil
}

// takes reports whether calls of this form are what the line is about. A tunnel to the
// port of an http line would hide from it what is requested.
func (r *Rule) takes(f Form) bool {
	if f == Request {
		return r.Scheme == HTTP
	}
	return f == Tunnel && (r.Scheme == HTTPS || r.Scheme == TCP)
}

// fits reports whether one of the line's rules about requests fits. Those of tunnels
// nobody sees.
func (r *Rule) fits(call Call, path string, ambiguous bool) bool {
	if len(r.HTTP) == 0 || call.Target.Form != Request {
		return true
	}
	for i := range r.HTTP {
		if r.HTTP[i].fits(call.Method, path, ambiguous) {
			return true
		}
	}
	return false
}

// byRule is the decision by the line that fits.
func (c *Compiled) byRule(r *Rule, t Target) Decision {
	d := Decision{Where: r.Where, Line: r.Line, Rule: r}
	if r.Intercept || t.Form == Tunnel && len(r.HTTP) > 0 {
		d.Cause = Denied
		d.Reason = "the line for " + r.Host + " needs the TLS to be opened, which this version does not do"
		return d
	}
	d.Allow, d.Reason = true, "a line of the allow list names it"
	if t.Form != Tunnel {
		return d
	}
	d.SNI = SNIOff
	if r.Scheme == HTTPS {
		d.SNI = c.sni
		d.TLS = c.mode == Enforce
	}
	return d
}

// byMode is the decision where no line fits. near is a line that almost does.
func (c *Compiled) byMode(call Call, near *Rule) Decision {
	if c.mode == Open {
		return c.looked(Decision{Allow: true, Where: "mode", Reason: "mode: open"}, call.Target)
	}
	d := Decision{Cause: Denied, Where: "default", advice: adviceAllow}
	t := call.Target
	switch {
	case near == nil && t.Form == Request:
		d.Reason = "no line allows http://" + t.HostPort()
	case near == nil:
		d.Reason = "no line allows a tunnel to " + t.HostPort()
	case !near.takes(t.Form) && t.Form == Request:
		d.Where, d.Line, d.advice = near.Where, near.Line, adviceScheme
		d.Reason = "the line for " + near.Host + " allows " + string(near.Scheme) + "://, not http://"
	case !near.takes(t.Form):
		d.Where, d.Line, d.advice = near.Where, near.Line, adviceScheme
		d.Reason = "the line for " + near.Host + " allows requests with http://, not tunnels, which would hide them"
	default:
		d.Where, d.Line, d.advice = near.Where, near.Line, adviceRules
		if why := ambiguousPath(call.Path); why != "" {
			d.advice = noAdvice
			d.Reason = "the path is ambiguous, so that no rule for paths can fit: it " + why
		} else {
			d.Reason = "the line for " + near.Host + " has no rule for this method and path"
		}
	}
	if c.mode == Report {
		return c.looked(Decision{Allow: true, Would: true, Where: "mode", Reason: d.Reason}, t)
	}
	return d
}

// looked has the hello of a tunnel looked at, where there is one.
func (c *Compiled) looked(d Decision, t Target) Decision {
	if t.Form == Tunnel {
		d.SNI = c.sni
	}
	return d
}

// CheckAddr says whether the address of a target may be dialed: one of those that its
// name was looked up to, or itself. In this order: emergency denies, deny lines, the
// relay's own addresses, holes, the classes of addresses (Class). An address of the
// relay's own is let through by a hole for that very address only: a hole for a whole
// network is not meant for the relay in it. The mode does not
// matter. A mapped address is judged, and to be dialed, as IPv4.
func (c *Compiled) CheckAddr(t Target, a netip.Addr, now time.Time) Decision {
	a = a.Unmap()
	bare := a.WithZone("")
	if e := c.emergency.addr(bare, t.Port, now); e != nil {
		return emergency(e)
	}
	if l := c.deny.addr(bare, t.Port, now); l != nil {
		d := denied(l, a.String()+" is in a range that is denied")
		d.Cause = Prohibited
		return d
	}
	hole := c.hole(a, t.Port, c.own[bare])
	if c.own[bare] && hole == nil {
		return Decision{Cause: Loop, Where: "addresses", Reason: a.String() + " is the relay itself"}
	}
	if hole != nil {
		// What a hole leads to behind a translator has to be allowed as well.
		if inner := embedded(a); inner.IsValid() {
			if d := c.CheckAddr(t, inner, now); !d.Allow {
				return d
			}
		}
		return Decision{Allow: true, Where: hole.Where, Line: hole.Line, Reason: "a hole for its range and port"}
	}
	if name, sensible := classify(a); name != "" {
		d := Decision{Cause: Prohibited, Where: "addresses", Reason: a.String() + " is not a public address: " + name}
		if sensible {
			d.advice, d.addr = adviceHole, a
		}
		return d
	}
	return Decision{Allow: true, Where: "addresses", Reason: "a public address"}
}

// hole is the first hole with the address and port; with exact, for that address only.
func (c *Compiled) hole(a netip.Addr, port uint16, exact bool) *Hole {
	i := c.holes.find(a, func(i int32) bool {
		if exact && !c.policy.Holes[i].Range.IsSingleIP() {
			return false
		}
		for _, p := range c.policy.Holes[i].Ports {
			if p == port {
				return true
			}
		}
		return false
	})
	if i == none || a.Zone() != "" {
		return nil
	}
	return &c.policy.Holes[i]
}

// CheckEmergency says whether an emergency deny covers a call that is open already, by
// the name it was judged by or by the address that was dialed, which may be invalid
// when none was yet. It allows everything else.
func (c *Compiled) CheckEmergency(t Target, dialed netip.Addr, now time.Time) Decision {
	if e := c.emergency.host(t, now); e != nil {
		return emergency(e)
	}
	for _, a := range [...]netip.Addr{t.Addr, dialed} {
		if !a.IsValid() {
			continue
		}
		if e := c.emergency.addr(a.Unmap().WithZone(""), t.Port, now); e != nil {
			return emergency(e)
		}
	}
	return Decision{Allow: true}
}

// emergency is the decision by an emergency deny.
func emergency(e *Deny) Decision {
	d := denied(e, "an emergency deny is in force until "+e.Until.UTC().Format(time.RFC3339))
	d.Cause = Emergency
	return d
}

// denied is the decision by a deny line.
func denied(l *Deny, what string) Decision {
	if l.Reason != "" {
		what += ": " + l.Reason
	}
	return Decision{Cause: Denied, Where: l.Where, Line: l.Line, Reason: what, advice: adviceDeny}
}
