package policy

import (
	"net/netip"
	"time"
)

// Compiled is a Policy ready to decide by. It is never changed, and many may use it at
// once.
type Compiled struct {
	policy    *Policy
	mode      Mode    // Enforce when the policy has none that is known
	sni       SNIMode // SNIMatch when the policy has none that is known
	emergency denies
	deny      denies
	allow     *index
	holes     *ranges
	own       map[netip.Addr]bool
}

// Compile makes p ready. p must not be changed afterwards. Hosts that ParsePattern
// refuses are never found; nil is a policy that declares nothing.
func Compile(p *Policy) *Compiled {
	if p == nil {
		p = &Policy{}
	}
	c := &Compiled{
		policy:    p,
		mode:      Enforce,
		sni:       SNIMatch,
		emergency: newDenies(p.Emergency),
		deny:      newDenies(p.Deny),
		own:       make(map[netip.Addr]bool, len(p.Own)),
	}
	if p.Mode == Report || p.Mode == Open {
		c.mode = p.Mode
	}
	if p.SNI == SNIAllowlisted || p.SNI == SNIOff {
		c.sni = p.SNI
	}
	for _, a := range p.Own {
		c.own[a.Unmap().WithZone("")] = true
	}
	c.allow = newIndex(len(p.Allow), func(i int) (string, uint16, bool) {
		host, err := ParsePattern(p.Allow[i].Host)
		return host, p.Allow[i].Port, err == nil
	})
	c.holes = newRanges(len(p.Holes), func(i int) (netip.Prefix, bool) { return p.Holes[i].Range, true })
	return c
}

// Policy is what c was made from; it must not be changed.
func (c *Compiled) Policy() *Policy { return c.policy }

// denies is one list of Deny.
type denies struct {
	list  []Deny
	all   []int32 // lines that deny whatever there is
	hosts *index
	// ranges has the hosts that are addresses besides: what is denied as a literal is
	// denied behind a name.
	ranges *ranges
}

func newDenies(list []Deny) denies {
	d := denies{list: list}
	for i := range list {
		if list[i].All || list[i].Host == "*" {
			d.all = append(d.all, int32(i))
		}
	}
	d.hosts = newIndex(len(list), func(i int) (string, uint16, bool) {
		host, err := ParsePattern(list[i].Host)
		return host, list[i].Port, err == nil
	})
	d.ranges = newRanges(len(list), func(i int) (netip.Prefix, bool) {
		if list[i].Range.IsValid() {
			return list[i].Range, true
		}
		host, err := ParsePattern(list[i].Host)
		if err != nil {
			return netip.Prefix{}, false
		}
		a := patternAddr(host)
		return netip.PrefixFrom(a, a.BitLen()), a.IsValid()
	})
	return d
}

// live reports whether a line with this end is in force.
func live(end, now time.Time) bool { return end.IsZero() || now.Before(end) }

// everything is the line that denies all there is, nil for none.
func (d *denies) everything(now time.Time) *Deny {
	for _, i := range d.all {
		if live(d.list[i].Until, now) {
			return &d.list[i]
		}
	}
	return nil
}

// host is the first line that denies the target as it is named.
func (d *denies) host(t Target, now time.Time) *Deny {
	if len(d.list) == 0 {
		return nil
	}
	if e := d.everything(now); e != nil {
		return e
	}
	fit := func(i int32) bool { return live(d.list[i].Until, now) }
	i := min(d.hosts.find(t, t.Port, fit), d.hosts.find(t, 0, fit))
	if i == none {
		return nil
	}
	return &d.list[i]
}

// addr is the first line that denies an address at a port. a is unmapped.
func (d *denies) addr(a netip.Addr, port uint16, now time.Time) *Deny {
	i := d.ranges.find(a, func(i int32) bool {
		l := &d.list[i]
		return live(l.Until, now) && (l.Port == 0 || l.Port == port || l.Range.IsValid())
	})
	if i == none {
		return nil
	}
	return &d.list[i]
}
