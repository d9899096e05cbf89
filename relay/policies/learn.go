package policies

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/posternhq/postern/protocol/api"
	"github.com/posternhq/postern/protocol/policy"
	"github.com/posternhq/postern/relay"
)

// Learn proposes the smallest allow list for what app has called since then: a line for
// each host and port, whether the call was let through or not. Tunnels to port 443 are
// https://, requests http://, other tunnels tcp://. What a deny line or an emergency
// deny refuses is never proposed, nor what the rules about names and addresses refuse.
func (p *Policies) Learn(ctx context.Context, app relay.AppID, since time.Time) (api.Learned, error) {
	if err := app.Validate(); err != nil {
		return api.Learned{}, relay.Errorf(relay.Invalid, "expected the name of an app")
	}
	sums, err := p.cfg.Store.Flows(ctx, relay.FlowFilter{App: app, Since: since})
	if err != nil {
		return api.Learned{}, fmt.Errorf("list recorded calls: %w", err)
	}
	l := newLesson(p.state.Load(), app, p.cfg.Now())
	for _, sum := range sums {
		l.add(sum)
	}
	out := api.Learned{App: string(app), Since: since, Rules: []api.LearnedRule{}, Incomplete: len(sums) >= relay.MaxFlowSums}
	var yaml strings.Builder
	fmt.Fprintf(&yaml, "# What %s called from %s to %s. Look at each line before you keep it.\n", app,
		since.UTC().Format(time.DateOnly), p.now().Format(time.DateOnly))
	fmt.Fprintf(&yaml, "apps:\n  %s:\n    egress:\n      mode: enforce\n      allow:", app)
	known := l.known()
	if len(known) == 0 {
		yaml.WriteString(" []")
	}
	for _, k := range known {
		out.Rules = append(out.Rules, k.rule)
		fmt.Fprintf(&yaml, "\n        - %s  # %s", k.rule.Target, k.comment())
	}
	yaml.WriteString("\n")
	out.YAML = yaml.String()
	return out, nil
}

// lesson gathers what one app has called.
type lesson struct {
	now     time.Time
	running *policy.Compiled
	// bare lets through whatever no deny and no rule about names and addresses refuses.
	bare  *policy.Compiled
	calls map[string]*learned
}

// learned is one line.
type learned struct {
	rule    api.LearnedRule
	by      string // the line that allows it already
	refused bool   // every time so far
	lost    bool   // no call had an answer
	barred  bool   // by where its name led, every time
}

func newLesson(s *state, app relay.AppID, now time.Time) *lesson {
	return &lesson{
		now:     now,
		running: compiledOf(s.running, app, s, nil),
		bare: compiledOf(s.running, app, s, func(full *policy.Policy) {
			full.Declared, full.Mode, full.Allow = true, policy.Open, nil
		}),
		calls: map[string]*learned{},
	}
}

func (l *lesson) add(sum relay.FlowSum) {
	call, ok := callOf(sum)
	if !ok || sum.Count == 0 {
		return
	}
	decided := l.running.Decide(call, l.now)
	// A line can let through what bare refuses: a name of an inner network.
	if !decided.Allow && !l.bare.Decide(call, l.now).Allow {
		return
	}
	target := callText(call)
	k := l.calls[target]
	if k == nil {
		k = &learned{rule: api.LearnedRule{Target: target, FirstSeen: sum.First, LastSeen: sum.Last}, refused: true, lost: true, barred: true}
		l.calls[target] = k
	}
	k.rule.Calls += sum.Count
	if sum.First.Before(k.rule.FirstSeen) {
		k.rule.FirstSeen = sum.First
	}
	if sum.Last.After(k.rule.LastSeen) {
		k.rule.LastSeen = sum.Last
	}
	if decided.Allow && decided.Rule != nil {
		k.rule.Allowed, k.by = true, decided.Where
	}
	denied := sum.Verdict == "deny"
	k.refused = k.refused && denied
	k.lost = k.lost && !denied && sum.Failed == sum.Count
	k.barred = k.barred && denied && barring(sum.Rule)
}

// barring reports whether a recorded rule is one that no line of an allow list gets
// past: a rule about addresses, or a deny of a range that the name led into.
func barring(rule string) bool {
	return rule == "addresses" || strings.HasPrefix(rule, "emergency ") ||
		strings.HasPrefix(rule, "egress.deny.") || strings.Contains(rule, ".egress.deny[")
}

// known are the lines to propose, by target.
func (l *lesson) known() []*learned {
	var all []*learned
	for _, k := range l.calls {
		if !k.barred {
			all = append(all, k)
		}
	}
	slices.SortFunc(all, func(a, b *learned) int { return strings.Compare(a.rule.Target, b.rule.Target) })
	return all
}

func (k *learned) comment() string {
	calls := "calls"
	if k.rule.Calls == 1 {
		calls = "call"
	}
	s := fmt.Sprintf("%d %s, first %s, last %s", k.rule.Calls, calls, k.rule.FirstSeen.UTC().Format(time.DateOnly), k.rule.LastSeen.UTC().Format(time.DateOnly))
	switch {
	case k.rule.Allowed:
		s += ", allowed by " + k.by
	case k.refused:
		s += ", refused so far"
	case k.lost:
		s += ", never answered"
	}
	return s
}
