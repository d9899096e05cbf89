package policies

import (
	"context"
	"slices"
	"time"

	"github.com/posternhq/postern/relay"
)

const (
	canaryEvery = time.Second // how often a canary's refusals are looked at
	ownEvery    = 10 * time.Second
	// patience is for how long what the store did not take is left alone.
	patience = 5 * time.Second
)

// Run ends orders when their time is over, promotes canaries or takes them back, warns
// of what ends, and notices when the relay's own addresses change, until ctx ends; then
// it returns nil.
//
// Nothing of it is needed to decide about a call at the right moment: what has ended is
// without effect by itself, whenever Run comes to tidy it up.
func (p *Policies) Run(ctx context.Context) error {
	own := time.NewTicker(ownEvery)
	defer own.Stop()
	turn := time.NewTicker(slot)
	defer turn.Stop()
	due := time.NewTimer(0)
	defer due.Stop()
	st := p.state.Load()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-own.C:
			p.lookAtOwn(ctx) // and at the rest, should the clock have been set
		case <-turn.C:
			for _, h := range p.history.all() {
				h.turn()
			}
			continue
		case <-st.over: // something else may be due
		case <-due.C:
		}
		// Before looking: what changes while Run looks makes it look again.
		st = p.state.Load()
		now := p.cfg.Now()
		next := min(p.lookAtCanary(ctx, now), p.lookAtTerms(ctx, now))
		due.Reset(max(next, time.Millisecond))
	}
}

// lookAtOwn tells everybody when the relay's addresses have changed.
func (p *Policies) lookAtOwn(ctx context.Context) {
	if slices.Equal(p.cfg.Own(), p.state.Load().own) || p.take(ctx) != nil {
		return
	}
	defer p.give()
	p.change(func(*state) {})
}

// idle is how long Run sleeps when nothing is due.
const idle = 24 * time.Hour

// lookAtCanary promotes the canary or takes it back, if it is time, and returns when to
// look again.
func (p *Policies) lookAtCanary(ctx context.Context, now time.Time) time.Duration {
	st := p.state.Load()
	switch {
	case st.canary == nil:
		return idle
	case st.trial.step() == "" && now.Before(st.trial.until):
		return min(canaryEvery, st.trial.until.Sub(now))
	case p.take(ctx) != nil:
		return idle // ctx is over
	}
	defer p.give()
	if st = p.state.Load(); st.canary == nil {
		return idle // somebody was faster
	}
	why := st.trial.step()
	if why == "" && now.Before(st.trial.until) {
		return canaryEvery
	}
	if err := p.endCanary(ctx, why); err != nil {
		p.cfg.Logger.Error("canary cannot be ended", "version", st.canary.version.Number, "refusals", why, "error", err)
		return patience
	}
	return idle
}

// endCanary takes the canary back for a reason, or else promotes it. The caller has the
// turn.
func (p *Policies) endCanary(ctx context.Context, why string) error {
	if why == "" {
		_, err := p.promote(ctx, byRelay, "its time as a canary is over")
		return err
	}
	number := p.state.Load().canary.version.Number
	if err := p.takeBack(ctx, byRelay, why); err != nil {
		return err
	}
	p.takenBack.Add(1)
	p.cfg.Logger.Warn("canary was taken back", "version", number, "reason", why)
	return nil
}

// lookAtTerms ends what is over and warns of what will be. It returns when to look
// again, should nothing change before.
func (p *Policies) lookAtTerms(ctx context.Context, now time.Time) time.Duration {
	if p.take(ctx) != nil {
		return idle // ctx is over
	}
	defer p.give()
	st := p.state.Load()
	over := func(o relay.Order) bool { return !o.Live(now) }
	old := func(o relay.Order) bool { return !mentioned(o, now) }
	ended := slices.DeleteFunc(slices.Clone(st.orders), func(o relay.Order) bool { return !over(o) })
	if len(ended) > 0 || slices.ContainsFunc(st.past, old) {
		left := slices.DeleteFunc(slices.Clone(st.orders), over)
		past := slices.DeleteFunc(slices.Concat(st.past, ended), old)
		st = p.change(func(next *state) { next.orders, next.past = left, past })
	}
	for _, o := range ended {
		if o.Kind == relay.OrderDeny { // of an exception warn tells
			p.audit(ctx, byRelay, o.App, didExpire, o.ID, o.What)
		}
	}
	p.warn(ctx, st, now)
	return st.due(now).Sub(now)
}

// due is the next moment after now at which something ends, or has to be warned of.
func (s *state) due(now time.Time) time.Time {
	next := now.Add(idle)
	at := func(t time.Time) {
		if t.After(now) && t.Before(next) {
			next = t
		}
	}
	for _, t := range s.terms {
		at(t.warnFrom())
		at(t.until)
	}
	for _, o := range s.orders {
		at(o.Until)
	}
	for _, o := range s.past {
		at(o.Until.Add(mentionTime))
	}
	return next
}
