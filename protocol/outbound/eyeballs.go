package outbound

import (
	"cmp"
	"context"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"
)

// Happy Eyeballs, RFC 8305: the addresses are tried one after the other with a short
// delay between them, the families in turns, and the first connection wins.

// attempt is how one address came out.
type attempt struct {
	addr netip.AddrPort
	conn net.Conn // nil: err says why
	err  error
}

// race connects to one of addrs. The losers are gone when it returns. Without a
// winner it returns the attempts that failed, at least one.
func (d *Dialer) race(ctx context.Context, addrs []netip.Addr, port uint16) (won attempt, failures []attempt) {
	if len(addrs) == 1 {
		only := d.try(ctx, netip.AddrPortFrom(addrs[0], port))
		if only.conn == nil {
			return attempt{}, []attempt{only}
		}
		return only, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan attempt, len(addrs))
	next, running := 0, 0
	delay := cmp.Or(d.Delay, 250*time.Millisecond)
	timer := time.NewTimer(delay)
	defer timer.Stop()
	start := func() {
		go d.compete(ctx, netip.AddrPortFrom(addrs[next], port), results)
		next, running = next+1, running+1
		timer.Reset(delay)
	}
	start()
	for {
		var more <-chan time.Time
		if next < len(addrs) {
			more = timer.C
		}
		select {
		case <-more:
			start()
		case got := <-results:
			running--
			if got.conn != nil {
				cancel()
				d.families.won(got.addr.Addr(), addrs[:next], len(failures), time.Now())
				closeLosers(results, running)
				return got, nil
			}
			failures = append(failures, got)
			if next < len(addrs) && ctx.Err() == nil {
				start()
			} else if running == 0 {
				return attempt{}, failures
			}
		}
	}
}

// closeLosers waits for the attempts that are still running, and closes those that
// came just too late.
func closeLosers(results <-chan attempt, running int) {
	for range running {
		if late := <-results; late.conn != nil {
			late.conn.Close()
		}
	}
}

// compete is one attempt of a race; results has room for all of them.
func (d *Dialer) compete(ctx context.Context, a netip.AddrPort, results chan<- attempt) {
	results <- d.try(ctx, a)
}

func (d *Dialer) try(ctx context.Context, a netip.AddrPort) attempt {
	dial := d.DialAddr
	if dial == nil {
		dial = dialTCP
	}
	conn, err := dial(ctx, a)
	if err != nil {
		return attempt{addr: a, err: err}
	}
	return attempt{addr: a, conn: conn}
}

// dialTCP opens a connection without Nagle's delay, which is the default, and with
// probes that find out within two minutes that the other end is gone.
func dialTCP(ctx context.Context, a netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: 45 * time.Second, Interval: 15 * time.Second, Count: 5,
	}}
	conn, err := d.DialContext(ctx, "tcp", a.String())
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// families remembers whether IPv6 works from here. Where it is silently lost, every
// connection would wait for the delay: after a few that did, IPv4 goes first for a
// while (RFC 6555, section 4.2, advises about ten minutes).
type families struct {
	lost   atomic.Int32 // races in a row that IPv6 lost without an answer
	fourth atomic.Int64 // Unix time until which IPv4 goes first
}

const (
	lostInARow = 3
	fourFirst  = 10 * time.Minute
)

// order puts addrs in the order in which they are tried: in turns, IPv6 first, each
// once, at most maxAttempts.
func (f *families) order(addrs []netip.Addr, now time.Time) []netip.Addr {
	if len(addrs) == 1 {
		return addrs
	}
	var four, six []netip.Addr
	for _, a := range addrs {
		switch {
		case is4(a) && len(four) < maxAttempts && !slices.Contains(four, a):
			four = append(four, a)
		case !is4(a) && len(six) < maxAttempts && !slices.Contains(six, a):
			six = append(six, a)
		}
	}
	first, second := six, four
	if now.Unix() < f.fourth.Load() {
		first, second = four, six
	}
	ordered := make([]netip.Addr, 0, len(addrs))
	for i := range max(len(first), len(second)) {
		if i < len(first) {
			ordered = append(ordered, first[i])
		}
		if i < len(second) {
			ordered = append(ordered, second[i])
		}
	}
	return ordered[:min(len(ordered), maxAttempts)]
}

// won learns from a race: winner was first of those that were tried, of which failed
// had failed before.
func (f *families) won(winner netip.Addr, tried []netip.Addr, failed int, now time.Time) {
	switch {
	case !is4(winner):
		f.lost.Store(0)
	case !is4(tried[0]) && failed == 0 && len(tried) > 1:
		if f.lost.Add(1) >= lostInARow {
			f.lost.Store(0)
			f.fourth.Store(now.Add(fourFirst).Unix())
		}
	}
}

func is4(a netip.Addr) bool { return a.Is4() || a.Is4In6() }
