package policies

import (
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/posternhq/postern/relay"
)

// tally counts decisions.
type tally struct{ calls, denied atomic.Int64 }

func (t *tally) add(denied bool) {
	t.calls.Add(1)
	if denied {
		t.denied.Add(1)
	}
}

func (t *tally) count() count { return count{t.calls.Load(), t.denied.Load()} }

// count is a tally at one moment.
type count struct{ calls, denied int64 }

func (c count) rate() float64 { return float64(c.denied) / float64(max(c.calls, 1)) }

func (c count) plus(d count) count { return count{c.calls + d.calls, c.denied + d.denied} }

// history is how an app's calls fared of late: in the current slot and in the one
// before.
type history struct{ now, before tally }

// slot is how long a slot of a history lasts: what happened in the last one to two of
// them is what a canary is compared with.
const slot = 10 * time.Minute

func (h *history) count() count { return h.now.count().plus(h.before.count()) }

func (h *history) turn() {
	h.before.calls.Store(h.now.calls.Swap(0))
	h.before.denied.Store(h.now.denied.Swap(0))
}

// trial is what a canary's calls show.
type trial struct {
	until  time.Time
	factor float64 // of relay.Rollout.DenyRate; 0: it is never taken back by itself
	before map[relay.AppID]count
	apps   shelf[*cohorts]
}

// cohorts are one app's calls while the trial lasts.
type cohorts struct{ canary, stable tally }

// start puts made into next as the canary.
func (p *Policies) start(next *state, made *edition) {
	r := made.rollout()
	next.canary = made
	next.share = shareOf(r.Canary, p.cfg.Agents())
	next.trial = &trial{until: made.version.AppliedAt.Add(r.For), factor: r.DenyRate, before: map[relay.AppID]count{}}
	for app, h := range p.history.all() {
		next.trial.before[app] = h.count()
	}
}

// Observe counts one decision about a call, by the policy of a version. It may be
// called from everywhere and never waits.
func (p *Policies) Observe(app relay.AppID, version int64, denied bool) {
	st := p.state.Load()
	if t := st.trial; t != nil {
		c, ok := t.apps.all()[app]
		if !ok {
			c = t.apps.put(app, func() *cohorts { return &cohorts{} })
		}
		if version == st.canary.version.Number {
			c.canary.add(denied)
			return
		}
		c.stable.add(denied)
	}
	h, ok := p.history.all()[app]
	if !ok {
		h = p.history.put(app, func() *history { return &history{} })
	}
	h.now.add(denied)
}

// What makes a step of refusals, so that neither one refusal nor an app that is always
// refused a lot is one.
const (
	enoughCalls  = 20   // decisions, of the canary and of what it is compared with
	enoughDenied = 3    // refusals more than were to be expected
	leastRate    = 0.01 // a share of refusals below it counts as it
)

// step says why the canary should be taken back, or "".
//
// App by app, the canary's share of refusals is compared with the larger of two: that
// of the app's other instances meanwhile, and that of the app in the ten to twenty
// minutes before. Either counts with 20 decisions or more; an app with neither is not
// judged. It is a step when it is above that share (at least 1 %) times the rollout's
// factor, and at least 3 refusals more than that share explains, among at least 20
// decisions. Apps whose canaries have made fewer are judged together.
func (t *trial) step() string {
	if t == nil || t.factor <= 0 {
		return ""
	}
	var total count
	var expected float64
	apps := t.apps.all()
	for _, app := range slices.Sorted(maps.Keys(apps)) {
		canary, base := apps[app].canary.count(), t.base(app, apps[app])
		if base < 0 {
			continue
		}
		if t.isStep(canary, base*float64(canary.calls)) {
			return fmt.Sprintf("%d of %d calls of app %s were refused (%.0f %%), where %.1f %% is usual",
				canary.denied, canary.calls, app, 100*canary.rate(), 100*base)
		}
		total, expected = total.plus(canary), expected+base*float64(canary.calls)
	}
	if t.isStep(total, expected) {
		return fmt.Sprintf("%d of %d calls were refused (%.0f %%), where %.1f are usual", total.denied, total.calls, 100*total.rate(), expected)
	}
	return ""
}

// base is the share of refusals that is usual for app, -1 when too little is known.
func (t *trial) base(app relay.AppID, c *cohorts) float64 {
	base := -1.0
	for _, known := range []count{c.stable.count(), t.before[app]} {
		if known.calls >= enoughCalls {
			base = max(base, known.rate(), leastRate)
		}
	}
	return base
}

func (t *trial) isStep(c count, expected float64) bool {
	return c.calls >= enoughCalls && float64(c.denied) > t.factor*expected && float64(c.denied)-expected >= enoughDenied
}
