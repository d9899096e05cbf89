package egress

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/api"
	"github.com/posternhq/postern/relay"
)

// Targets lists what app has ever called and was allowed to; "" is all apps.
func (e *Egress) Targets(ctx context.Context, app relay.AppID) (api.TargetList, error) {
	var list api.TargetList
	if e.cfg.Store == nil {
		return list, nil
	}
	targets, err := e.cfg.Store.EgressTargets(ctx, app)
	if err != nil {
		return list, fmt.Errorf("list targets: %w", err)
	}
	for _, t := range targets {
		list.Targets = append(list.Targets, api.Target{
			App: string(t.App), Target: t.Target, FirstSeen: t.First, LastSeen: t.Last,
		})
	}
	return list, nil
}

// Usage adds up the calls since then by app, target, rule and verdict, the largest
// first; "" is all apps. It counts by whole hours, and up to the last second.
func (e *Egress) Usage(ctx context.Context, app relay.AppID, since time.Time) (api.UsageList, error) {
	list := api.UsageList{Since: since.UTC().Truncate(time.Hour)}
	if e.cfg.Store == nil {
		return list, nil
	}
	e.ledger.flush(ctx)
	sums, err := e.cfg.Store.Flows(ctx, relay.FlowFilter{App: app, Since: since})
	if err != nil {
		return list, fmt.Errorf("add up calls: %w", err)
	}
	list.Incomplete = len(sums) >= relay.MaxFlowSums
	type key struct{ app, target, rule, verdict string }
	places := map[key]int{}
	for _, s := range sums {
		k := key{string(s.App), s.Target, s.Rule, s.Verdict}
		i, ok := places[k]
		if !ok {
			i = len(list.Usage)
			places[k] = i
			list.Usage = append(list.Usage, api.Usage{
				App: k.app, Team: e.cfg.Team(s.App), Target: k.target, Rule: k.rule, Verdict: k.verdict,
			})
		}
		u := &list.Usage[i]
		u.Calls += s.Count
		u.Failed += s.Failed
		u.Up += s.Up
		u.Down += s.Down
	}
	slices.SortFunc(list.Usage, func(a, b api.Usage) int {
		return cmp.Or(cmp.Compare(b.Up+b.Down, a.Up+a.Down), cmp.Compare(b.Calls, a.Calls),
			cmp.Compare(a.App, b.App), cmp.Compare(a.Target, b.Target))
	})
	return list, nil
}

// isTarget reports whether a flow's target is the one asked for: a host and port, or
// a host; "" is every one.
func isTarget(target, asked string) bool {
	if asked == "" || target == asked {
		return true
	}
	i := strings.LastIndexByte(target, ':')
	return i >= 0 && strings.Trim(target[:i], "[]") == strings.Trim(asked, "[]")
}

func newestFirst(flows []protocol.Flow) {
	slices.SortStableFunc(flows, func(a, b protocol.Flow) int { return b.StartedAt.Compare(a.StartedAt) })
}

// moving says how much the calls in flight among flows have moved by now.
func (e *Egress) moving(flows []protocol.Flow) {
	going := map[string]*protocol.Flow{}
	for i := range flows {
		if !flows[i].Ended && flows[i].Via == "relay" {
			going[flows[i].ID] = &flows[i]
		}
	}
	if len(going) == 0 {
		return
	}
	for _, c := range e.inFlight() {
		c.mu.Lock()
		f := going[c.flow.ID]
		c.mu.Unlock()
		if f != nil {
			f.Up, f.Down = c.up.Load(), c.down.Load()
			f.Duration = milliseconds(time.Since(c.begun))
		}
	}
}
