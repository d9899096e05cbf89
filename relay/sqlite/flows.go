package sqlite

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/posternhq/postern/protocol/policy"
	"github.com/posternhq/postern/relay"
)

const (
	addFlow = `INSERT INTO flow_sum (hour, app, target, form, method, verdict, rule, calls, failed, up, down, first_at, last_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (hour, app, target, form, method, verdict, rule) DO UPDATE SET
			calls = calls + excluded.calls, failed = failed + excluded.failed,
			up = up + excluded.up, down = down + excluded.down,
			first_at = min(first_at, excluded.first_at), last_at = max(last_at, excluded.last_at)`
	touchTarget = `UPDATE egress_target SET first_at = min(first_at, ?), last_at = max(last_at, ?) WHERE app = ? AND target = ?`
	addTarget   = `INSERT INTO egress_target (first_at, last_at, app, target) VALUES (?, ?, ?, ?)`

	flowKey     = `hour, app, target, form, method, verdict, rule`
	flowColumns = `f.hour, f.app, f.target, f.form, f.method, f.verdict, f.rule,
		f.calls, f.failed, f.up, f.down, f.first_at, f.last_at`
	selectFlows = `SELECT ` + flowColumns + ` FROM flow_sum f WHERE f.hour >= ? AND f.hour < ?
		ORDER BY f.app, f.target, f.hour, f.form, f.method, f.verdict, f.rule LIMIT ?`
	// From one hour that there is to the next, and of each only the app's rows.
	selectFlowsOfApp = `WITH RECURSIVE h(hour) AS (
			SELECT min(hour) FROM flow_sum WHERE hour >= ?
			UNION ALL SELECT (SELECT min(hour) FROM flow_sum WHERE hour > h.hour) FROM h WHERE h.hour < ?)
		SELECT ` + flowColumns + ` FROM h CROSS JOIN flow_sum f ON f.hour = h.hour AND f.app = ?
		WHERE h.hour < ?
		ORDER BY f.target, f.hour, f.form, f.method, f.verdict, f.rule LIMIT ?`
	expireFlows = `DELETE FROM flow_sum WHERE (` + flowKey + `) IN
		(SELECT ` + flowKey + ` FROM flow_sum WHERE hour < ? ORDER BY ` + flowKey + ` LIMIT ?)`

	selectTargets      = `SELECT app, target, first_at, last_at FROM egress_target ORDER BY app, target`
	selectTargetsOfApp = `SELECT app, target, first_at, last_at FROM egress_target WHERE app = ? ORDER BY target`
)

// maxFlows bounds what Flows lists.
const maxFlows = relay.MaxFlowSums

// AddFlows implements relay.EgressStore. The sums go in by the order of their key,
// which is the order of the rows on the disk.
func (s *Store) AddFlows(ctx context.Context, sums []relay.FlowSum) (fresh []relay.EgressTarget, err error) {
	if len(sums) == 0 {
		return nil, nil
	}
	sums = slices.Clone(sums)
	slices.SortFunc(sums, func(a, b relay.FlowSum) int {
		return cmp.Or(a.Hour.Compare(b.Hour), cmp.Compare(a.App, b.App), cmp.Compare(a.Target, b.Target))
	})
	targets := allowedTargets(sums)
	err = s.write(ctx, "add flows", func(t *tx) error {
		fresh = nil
		for _, f := range sums {
			if _, err := t.exec(addFlow, hourOf(f.Hour), f.App, f.Target, f.Form, f.Method, f.Verdict, f.Rule,
				f.Count, f.Failed, f.Up, f.Down, f.First.UnixMicro(), f.Last.UnixMicro()); err != nil {
				return err
			}
		}
		for _, g := range targets {
			isNew, err := t.touch(g)
			if err != nil {
				return err
			}
			if isNew {
				fresh = append(fresh, g)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return fresh, nil
}

// allowedTargets are those of the calls that were let through, by app and target.
// Their times are as the store keeps them.
func allowedTargets(sums []relay.FlowSum) []relay.EgressTarget {
	var all []relay.EgressTarget
	for _, f := range sums {
		if f.Verdict == verdictAllow || f.Verdict == verdictReport {
			all = append(all, relay.EgressTarget{App: f.App, Target: f.Target,
				First: time.UnixMicro(f.First.UnixMicro()).UTC(), Last: time.UnixMicro(f.Last.UnixMicro()).UTC()})
		}
	}
	slices.SortFunc(all, func(a, b relay.EgressTarget) int {
		return cmp.Or(cmp.Compare(a.App, b.App), cmp.Compare(a.Target, b.Target))
	})
	var merged []relay.EgressTarget
	for _, g := range all {
		if n := len(merged); n > 0 && merged[n-1].App == g.App && merged[n-1].Target == g.Target {
			last := &merged[n-1]
			if g.First.Before(last.First) {
				last.First = g.First
			}
			if g.Last.After(last.Last) {
				last.Last = g.Last
			}
			continue
		}
		merged = append(merged, g)
	}
	return merged
}

// The verdicts that let a call through.
const (
	verdictAllow  = "allow"
	verdictReport = "report"
)

// touch notes that g was called, and reports whether that is new.
func (t *tx) touch(g relay.EgressTarget) (isNew bool, err error) {
	args := []any{g.First.UnixMicro(), g.Last.UnixMicro(), g.App, g.Target}
	res, err := t.exec(touchTarget, args...)
	if err != nil || res.changed > 0 {
		return false, err
	}
	_, err = t.exec(addTarget, args...)
	return err == nil, err
}

// Flows implements relay.EgressStore.
func (s *Store) Flows(ctx context.Context, f relay.FlowFilter) (all []relay.FlowSum, err error) {
	query, args := flowsQuery(f)
	err = s.read(ctx, "list flows", func(c *conn) error {
		all, err = list(ctx, c, scanFlow, query, args...)
		return err
	})
	return all, err
}

// flowsQuery is the query that f is, and its arguments.
func flowsQuery(f relay.FlowFilter) (string, []any) {
	from, to := int64(-1<<62), int64(1<<62)
	if !f.Since.IsZero() {
		from = hourOf(f.Since)
	}
	if !f.Until.IsZero() {
		to = hourOf(f.Until.Add(time.Hour - time.Nanosecond))
	}
	limit := maxFlows
	if f.Limit > 0 {
		limit = min(f.Limit, maxFlows)
	}
	if f.App == "" {
		return selectFlows, []any{from, to, limit}
	}
	return selectFlowsOfApp, []any{from, to, f.App, to, limit}
}

// ExpireFlows implements relay.EgressStore. An hour is before a time when it has
// ended by then.
func (s *Store) ExpireFlows(ctx context.Context, before time.Time, limit int) (n int, err error) {
	if limit <= 0 {
		return 0, nil
	}
	err = s.write(ctx, "expire flows", func(t *tx) error {
		res, err := t.exec(expireFlows, hourOf(before), limit)
		if n = int(res.changed); err != nil || n == 0 {
			return err
		}
		return t.vacuum()
	})
	if err != nil {
		return 0, err
	}
	return n, nil
}

// EgressTargets implements relay.EgressStore; app "" is all.
func (s *Store) EgressTargets(ctx context.Context, app relay.AppID) (all []relay.EgressTarget, err error) {
	query, args := selectTargets, []any(nil)
	if app != "" {
		query, args = selectTargetsOfApp, []any{app}
	}
	err = s.read(ctx, "list targets", func(c *conn) error {
		all, err = list(ctx, c, scanTarget, query, args...)
		return err
	})
	return all, err
}

func scanFlow(r *row) relay.FlowSum {
	return relay.FlowSum{
		Hour: time.Unix(r.int()*3600, 0).UTC(), App: relay.AppID(r.str()), Target: r.str(), Form: policy.Form(r.str()),
		Method: r.str(), Verdict: r.str(), Rule: r.str(),
		Count: r.int(), Failed: r.int(), Up: r.int(), Down: r.int(), First: r.time(), Last: r.time(),
	}
}

func scanTarget(r *row) relay.EgressTarget {
	return relay.EgressTarget{App: relay.AppID(r.str()), Target: r.str(), First: r.time(), Last: r.time()}
}

// hourOf is the number of t's hour since 1970.
func hourOf(t time.Time) int64 {
	s := t.Unix()
	h := s / 3600
	if s%3600 < 0 {
		h--
	}
	return h
}
