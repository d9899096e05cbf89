package policies

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/posternhq/postern/protocol/api"
	"github.com/posternhq/postern/protocol/policy"
	"github.com/posternhq/postern/relay"
)

const (
	maxFlips = 1000
	// maxSince is how far back recorded calls are looked at.
	maxSince = 366 * 24 * time.Hour
)

// Diff says what the text of req would change: its lines, and which of the calls that
// were recorded since req.SinceMS ago would be judged otherwise than by the running
// version. Both judge now, with the orders that are in force, by name and port; neither
// looks names up. Paths are not recorded: requests count as going to /, which a line
// with paths seldom fits.
func (p *Policies) Diff(ctx context.Context, req api.ManifestRequest) (api.ManifestDiff, error) {
	m, err := p.parse([]byte(req.Source))
	if err != nil {
		return api.ManifestDiff{}, err
	}
	if err := fits(m); err != nil {
		return api.ManifestDiff{}, err
	}
	st := p.state.Load()
	running := st.running.version
	if req.Base != 0 && req.Base != running.Number {
		return api.ManifestDiff{}, relay.Errorf(relay.Conflict, "the text was made for version %d, and version %d is running", req.Base, running.Number)
	}
	if req.SinceMS < 0 || req.SinceMS > maxSince.Milliseconds() {
		return api.ManifestDiff{}, relay.Errorf(relay.Invalid, "expected a time of at most 366 days to look back")
	}
	out := api.ManifestDiff{Base: running.Number, Lines: unified(running, req.Source), Flips: []api.Flip{}}
	if req.SinceMS == 0 {
		return out, nil
	}
	out.Since = p.now().Add(-time.Duration(req.SinceMS) * time.Millisecond)
	f := flips{state: st, candidate: &edition{manifest: m}, now: p.cfg.Now(), found: map[flipKey]*api.Flip{}}
	for _, app := range bothApps(st.running, f.candidate) {
		sums, err := p.cfg.Store.Flows(ctx, relay.FlowFilter{App: app, Since: out.Since})
		if err != nil {
			return api.ManifestDiff{}, fmt.Errorf("list recorded calls: %w", err)
		}
		f.judge(app, sums)
		out.Incomplete = out.Incomplete || len(sums) >= relay.MaxFlowSums
	}
	out.Calls, out.Flips = f.calls, f.sorted()
	return out, nil
}

func unified(running relay.ManifestVersion, source string) []string {
	lines := lineDiff(string(running.Source), source)
	if lines == nil {
		return []string{}
	}
	return append([]string{"--- " + versionName(running.Number), "+++ candidate"}, lines...)
}

// bothApps are the apps of either; of any other neither says anything, so that nothing
// can change for it.
func bothApps(a, b *edition) []relay.AppID {
	all := slices.Concat(a.apps(), b.apps())
	slices.Sort(all)
	return slices.Compact(all)
}

type flipKey struct {
	app            relay.AppID
	target, method string
	form           policy.Form
}

// flips judges recorded calls twice.
type flips struct {
	state     *state
	candidate *edition
	now       time.Time

	calls int64
	found map[flipKey]*api.Flip
}

func (f *flips) judge(app relay.AppID, sums []relay.FlowSum) {
	if len(sums) == 0 {
		return
	}
	before := compiledOf(f.state.running, app, f.state, nil)
	after := compiledOf(f.candidate, app, f.state, nil)
	for _, sum := range sums {
		call, ok := callOf(sum)
		if !ok {
			continue
		}
		f.calls += sum.Count
		was, will := before.Decide(call, f.now), after.Decide(call, f.now)
		if verdict(was) == verdict(will) {
			continue
		}
		key := flipKey{app, sum.Target, sum.Method, sum.Form}
		flip := f.found[key]
		if flip == nil {
			flip = &api.Flip{App: string(app), Target: callText(call), Method: sum.Method,
				From: verdict(was), To: verdict(will), Rule: will.Where, Line: will.Line, Reason: will.Reason}
			f.found[key] = flip
		}
		flip.Calls += sum.Count
		if sum.Last.After(flip.LastSeen) {
			flip.LastSeen = sum.Last
		}
	}
}

// sorted has first what would be refused, and the most frequent calls of that first.
func (f *flips) sorted() []api.Flip {
	all := make([]api.Flip, 0, len(f.found))
	for _, flip := range f.found {
		all = append(all, *flip)
	}
	refused := map[string]int{"deny": -1}
	slices.SortFunc(all, func(a, b api.Flip) int {
		return cmp.Or(cmp.Compare(refused[a.To], refused[b.To]), cmp.Compare(b.Calls, a.Calls), cmp.Compare(a.App, b.App),
			cmp.Compare(a.Target, b.Target), cmp.Compare(a.Method, b.Method))
	})
	return all[:min(len(all), maxFlips)]
}

func verdict(d policy.Decision) string {
	switch {
	case !d.Allow:
		return "deny"
	case d.Would:
		return "report"
	}
	return "allow"
}

// callOf is the call that was recorded; false when its target could not be read then
// either.
func callOf(sum relay.FlowSum) (policy.Call, bool) {
	t, err := policy.ParseTunnel(sum.Target)
	if err != nil {
		return policy.Call{}, false
	}
	t.Form = sum.Form
	call := policy.Call{Target: t, Method: sum.Method}
	if t.Form == policy.Request {
		call.Path = "/"
		if call.Method == "" {
			call.Method = "GET"
		}
	}
	return call, true
}

// callText is the line of an allow list that lets through a call and no other.
func callText(call policy.Call) string {
	rule := policy.Rule{Scheme: policy.TCP, Host: call.Target.Name(), Port: call.Target.Port}
	switch {
	case call.Target.Form == policy.Request:
		rule.Scheme = policy.HTTP
	case call.Target.Port == 443:
		rule.Scheme = policy.HTTPS
	}
	return ruleText(rule)
}
