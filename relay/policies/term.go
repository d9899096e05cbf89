package policies

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/posternhq/postern/relay"
)

// term is something that lets calls through for a time: an exception, or a line of an
// allow list with expires.
type term struct {
	app         relay.AppID
	key         string // what it is known by: the order's id, or the line's place and end
	what, owner string
	from, until time.Time
}

// warnFrom is a day before the end, or a tenth of the whole time where that is less.
func (t term) warnFrom() time.Time {
	return t.until.Add(-min(24*time.Hour, t.until.Sub(t.from)/10))
}

// warning is one sentence, or "" when there is nothing to be said at now.
func (t term) warning(now time.Time) string {
	verb := "ends"
	switch {
	case !now.Before(t.until):
		verb = "has ended"
	case now.Before(t.warnFrom()):
		return ""
	}
	s := fmt.Sprintf("app %s: %s for %s %s at %s", t.app, t.key, t.what, verb, t.until.UTC().Format(time.RFC3339))
	if t.owner != "" {
		s += ", owner " + t.owner
	}
	return s
}

func orderTerm(o relay.Order) term {
	return term{app: o.App, key: o.ID, what: o.What, owner: o.Owner, from: o.CreatedAt, until: o.Until}
}

// findTerms lists the lines of e that end. A line that was there before with the same
// end counts from then: that the text was applied again gives nobody more time.
func (e *edition) findTerms(before *edition) []term {
	type line struct {
		app   relay.AppID
		what  string
		until int64
	}
	known := map[line]time.Time{}
	if before != nil {
		for _, t := range before.terms {
			known[line{t.app, t.what, t.until.UnixNano()}] = t.from
		}
	}
	var terms []term
	for _, app := range e.apps() {
		for _, rule := range e.manifest.Apps[app].Egress.Allow {
			if rule.Expires.IsZero() {
				continue
			}
			t := term{app: app, what: ruleText(rule), owner: rule.Owner, from: e.version.AppliedAt, until: rule.Expires}
			t.key = rule.Where + " (" + rule.Expires.UTC().Format(time.RFC3339) + ")"
			if from, ok := known[line{app, t.what, t.until.UnixNano()}]; ok {
				t.from = from
			}
			terms = append(terms, t)
		}
	}
	return terms
}

// findTerms lists all that s has, those of exceptions that have ended a short time ago
// among them.
func (s *state) findTerms() []term {
	all := slices.Clone(s.running.terms)
	for _, o := range slices.Concat(s.orders, s.past) {
		if o.Kind == relay.OrderAllow {
			all = append(all, orderTerm(o))
		}
	}
	return all
}

// warnings are what s has to say at now of what ends; app "" is all.
func (s *state) warnings(app relay.AppID, now time.Time) []string {
	var all []string
	for _, t := range s.terms {
		if app != "" && t.app != app {
			continue
		}
		if w := t.warning(now); w != "" {
			all = append(all, w)
		}
	}
	return all
}

// warn announces, once each, what ends soon and what has ended. The caller has the turn.
func (p *Policies) warn(ctx context.Context, st *state, now time.Time) {
	keys := make(map[string]bool, len(st.terms))
	for _, t := range st.terms {
		keys[t.key] = true
		said, action := p.warned, didWarn
		if !now.Before(t.until) {
			said, action = p.ended, didExpire
		}
		if said[t.key] {
			continue
		}
		if w := t.warning(now); w != "" {
			said[t.key] = true
			p.cfg.Logger.Warn("allowed calls end", "app", string(t.app), "what", t.what, "owner", t.owner, "until", t.until, "subject", t.key)
			p.audit(ctx, byRelay, t.app, action, t.key, w)
		}
	}
	for _, said := range []map[string]bool{p.warned, p.ended} {
		maps.DeleteFunc(said, func(key string, _ bool) bool { return !keys[key] })
	}
}
