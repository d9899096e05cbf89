package egress

import (
	"context"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/policy"
	"github.com/posternhq/postern/relay"
)

// Bounds of sums in memory.
const (
	maxTargets = 1000  // of one app in one hour; the others are added up as "other"
	maxSums    = 50000 // that wait for a store that does not answer
	maxKnown   = 10000 // targets of an app that are remembered here
	other      = "other"
)

// sumKey is what is added up together.
type sumKey struct {
	app                           relay.AppID
	hour                          int64 // Unix time of its beginning
	form                          policy.Form
	target, method, verdict, rule string
}

// sums waits to be stored. Its methods are called with the ledger's lock held.
type sums struct {
	waiting map[sumKey]*relay.FlowSum
	hour    int64 // that targets are counted of
	targets map[relay.AppID]map[string]struct{}
	lost    int64 // calls that are in no sum, because the store did not answer for long
}

func newSums() sums {
	return sums{waiting: map[sumKey]*relay.FlowSum{}, targets: map[relay.AppID]map[string]struct{}{}}
}

// sumOf is one call as a sum.
func sumOf(app relay.AppID, f *protocol.Flow, now time.Time) relay.FlowSum {
	s := relay.FlowSum{
		App: app, Hour: now.UTC().Truncate(time.Hour), Form: policy.Form(f.Form), Target: f.Target,
		Method: knownMethod(f.Method), Verdict: f.Verdict, Rule: f.Rule,
		Count: 1, Up: f.Up, Down: f.Down, First: now, Last: now,
	}
	if f.Verdict != denied && f.Cause != "" && f.Status == 0 && f.Down == 0 {
		s.Failed = 1
	}
	return s
}

// knownMethod bounds how many methods there are.
func knownMethod(m string) string {
	switch m {
	case "", "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE":
		return m
	}
	return other
}

// addLocked adds one sum to the others. What agents report of rules is not known to
// be bounded, and counts as a target of its own.
func (s *sums) addLocked(add relay.FlowSum, reported bool) {
	hour := add.Hour.Unix()
	if hour != s.hour {
		s.hour, s.targets = hour, map[relay.AppID]map[string]struct{}{}
	}
	seen := s.targets[add.App]
	if seen == nil {
		seen = map[string]struct{}{}
		s.targets[add.App] = seen
	}
	key := add.Target
	if reported {
		key += " " + add.Rule
	}
	if _, ok := seen[key]; ok {
	} else if len(seen) < maxTargets {
		seen[key] = struct{}{}
	} else if add.Target = other; reported {
		add.Rule = other
	}
	s.mergeLocked(add)
}

func (s *sums) mergeLocked(add relay.FlowSum) {
	key := sumKey{add.App, add.Hour.Unix(), add.Form, add.Target, add.Method, add.Verdict, add.Rule}
	sum := s.waiting[key]
	if sum == nil {
		if len(s.waiting) >= maxSums {
			s.lost += add.Count
			return
		}
		s.waiting[key] = &add
		return
	}
	sum.Count += add.Count
	sum.Failed += add.Failed
	sum.Up += add.Up
	sum.Down += add.Down
	if add.First.Before(sum.First) {
		sum.First = add.First
	}
	if add.Last.After(sum.Last) {
		sum.Last = add.Last
	}
}

// book adds to the sums what c has moved since the last time, and the call itself once
// count is set.
func (l *ledger) book(c *call, count bool) {
	c.mu.Lock()
	flow := c.flow
	c.mu.Unlock()
	up, down := c.up.Load(), c.down.Load()
	l.mu.Lock()
	defer l.mu.Unlock()
	sum := sumOf(c.app, &flow, l.e.cfg.Now())
	sum.Up, sum.Down = up-c.bookedUp, down-c.bookedDn
	if counted := c.counted.Load(); counted || !count {
		sum.Count, sum.Failed = 0, 0
		if sum.Up == 0 && sum.Down == 0 {
			return
		}
	}
	if count {
		c.counted.Store(true)
	}
	c.bookedUp, c.bookedDn = up, down
	l.sums.addLocked(sum, false)
	l.metrics.bytesLocked(c.app, flow.Rule, sum.Up, sum.Down)
}

// flush stores the sums. What the store does not take waits for the next time.
func (l *ledger) flush(ctx context.Context) {
	l.flushing.Lock()
	defer l.flushing.Unlock()
	for _, c := range l.e.inFlight() {
		if c.counted.Load() {
			l.book(c, false)
		}
	}
	l.mu.Lock()
	waiting := l.sums.waiting
	if len(waiting) > 0 {
		l.sums.waiting = map[sumKey]*relay.FlowSum{}
	}
	l.mu.Unlock()
	if len(waiting) == 0 || l.e.cfg.Store == nil {
		return
	}
	batch := make([]relay.FlowSum, 0, len(waiting))
	for _, s := range waiting {
		batch = append(batch, *s)
	}
	ctx, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	fresh, err := l.e.cfg.Store.AddFlows(ctx, batch)
	if err != nil {
		l.e.log.Warn("sums of calls cannot be stored; they are kept for the next time", "sums", len(batch), "err", err)
		l.mu.Lock()
		for _, s := range batch {
			l.sums.mergeLocked(s)
		}
		l.mu.Unlock()
		return
	}
	for _, t := range fresh {
		if t.Target != other {
			l.announce(t.App, t.Target, true)
		}
	}
}

// known is the targets that an app has ever called, as far as they are remembered
// here. The store knows them all.
type known struct {
	loaded  bool // the store's are in
	targets map[string]struct{}
}

// loadTime is how long the first call of an app waits to learn whether its target is
// new. When the store does not say so in time, the next flush will.
const loadTime = 200 * time.Millisecond

// isFresh reports whether app calls target for the first time ever, as far as that is
// known at once, and announces it.
func (l *ledger) isFresh(app relay.AppID, target string) bool {
	l.mu.Lock()
	k := l.known[app]
	first := k == nil
	if first {
		k = &known{targets: map[string]struct{}{}}
		l.known[app] = k
	}
	_, seen := k.targets[target]
	loaded, full := k.loaded, len(k.targets) >= maxKnown
	l.mu.Unlock()
	if first {
		loaded, seen = l.load(app, k, target)
	}
	if seen || !loaded || full {
		return false
	}
	return l.announce(app, target, false)
}

// load gets an app's targets from the store.
func (l *ledger) load(app relay.AppID, k *known, target string) (loaded, seen bool) {
	if l.e.cfg.Store == nil {
		return false, false
	}
	ctx, cancel := context.WithTimeout(context.Background(), loadTime)
	defer cancel()
	targets, err := l.e.cfg.Store.EgressTargets(ctx, app)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		delete(l.known, app) // the next call tries again
		return false, false
	}
	for _, t := range targets {
		if len(k.targets) < maxKnown {
			k.targets[t.Target] = struct{}{}
		}
	}
	k.loaded = true
	_, seen = k.targets[target]
	return true, seen
}

// announce says, once, that app has called target for the first time. marks: the
// records of the call are marked as well, because its first line could not say so.
func (l *ledger) announce(app relay.AppID, target string, marks bool) bool {
	l.mu.Lock()
	k := l.known[app]
	if k == nil {
		k = &known{targets: map[string]struct{}{}}
		l.known[app] = k
	}
	if _, ok := k.targets[target]; ok {
		l.mu.Unlock()
		return false
	}
	if len(k.targets) < maxKnown {
		k.targets[target] = struct{}{}
	}
	if r := l.recent[app]; marks && r != nil {
		for _, f := range r.records {
			if f.Target == target && f.Verdict != denied {
				f.Fresh = true
			}
		}
	}
	l.metrics.fresh++
	l.mu.Unlock()
	l.e.log.Info("egress to a new target", "app", app, "target", target)
	return true
}
