package policies

import (
	"fmt"
	"io"
	"time"

	"github.com/posternhq/postern/protocol/api"
	"github.com/posternhq/postern/relay"
)

// Status is how the policies are doing: all but the counts of calls. App "" is all. An
// instance whose agent has no stream for policies is there with serial 0.
func (p *Policies) Status(app relay.AppID) api.EgressStatus {
	st := p.state.Load()
	out := api.EgressStatus{Serial: st.serial, Version: st.running.version.Number, Agents: []api.EgressAgent{},
		AppliedMS: -1, Warnings: st.warnings(app, p.cfg.Now())}
	if st.running.broken != nil {
		out.Warnings = append(out.Warnings, fmt.Sprintf("version %d of the manifest cannot be read any more; nothing is declared", out.Version))
	}
	if st.canary != nil {
		out.Canary = st.canary.version.Number
	}
	if d := p.roster.applied(st); d >= 0 {
		out.AppliedMS = milliseconds(d)
	}
	type name struct{ app, instance string }
	served := map[name]bool{}
	for _, v := range p.roster.views(app) {
		served[name{string(v.app), v.instance}] = true
		out.Agents = append(out.Agents, api.EgressAgent{App: string(v.app), Instance: v.instance, Serial: v.serial, Version: v.version,
			AppliedAt: v.at, DelayMS: milliseconds(v.delay), Error: v.problem})
	}
	for _, i := range p.cfg.Agents() {
		if n := (name{string(i.App), i.Name}); (app == "" || i.App == app) && !served[n] {
			served[n] = true
			out.Agents = append(out.Agents, api.EgressAgent{App: n.app, Instance: n.instance})
		}
	}
	return out
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// delays is a histogram of how long agents took to decide by a policy.
type delays struct {
	buckets [len(delayBounds)]int64 // each with those of at most its bound and above the one before
	count   int64
	sum     time.Duration
}

var delayBounds = [...]time.Duration{10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second, 5 * time.Second, 30 * time.Second}

func (d *delays) add(delay time.Duration) {
	d.count++
	d.sum += delay
	for i, bound := range delayBounds {
		if delay <= bound {
			d.buckets[i]++
			return
		}
	}
}

// WriteMetrics writes how the policies are doing in Prometheus' text format.
func (p *Policies) WriteMetrics(w io.Writer) {
	st := p.state.Load()
	p.roster.mu.Lock()
	delays, agents := p.roster.delays, len(p.roster.agents)
	p.roster.mu.Unlock()
	metric := func(name, kind, help string, value any) {
		fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n%s %v\n", name, help, name, kind, name, value)
	}
	canary := int64(0)
	if st.canary != nil {
		canary = st.canary.version.Number
	}
	orders := map[relay.OrderKind]int{}
	for _, o := range st.orders {
		orders[o.Kind]++
	}
	applied := p.roster.applied(st).Seconds()
	if applied < 0 {
		applied = -1
	}
	metric("postern_policy_version", "gauge", "Version of the manifest in force.", st.running.version.Number)
	metric("postern_policy_canary_version", "gauge", "Version that a share of the instances has; 0: none.", canary)
	metric("postern_policy_changed_timestamp_seconds", "gauge", "When the policies last changed.", float64(st.since.UnixMilli())/1000)
	metric("postern_policy_changes_total", "counter", "Changes of the policies since the start.", p.changes.Load())
	metric("postern_policy_promotions_total", "counter", "Canaries that were promoted.", p.promoted.Load())
	metric("postern_policy_rollbacks_total", "counter", "Versions that were taken back, by anybody.", p.rolledBack.Load())
	metric("postern_policy_auto_rollbacks_total", "counter", "Canaries that the relay took back because of their refusals.", p.takenBack.Load())
	metric("postern_policy_emergency_denies", "gauge", "Emergency denies in force.", orders[relay.OrderDeny])
	metric("postern_policy_exceptions", "gauge", "Exceptions in force.", orders[relay.OrderAllow])
	metric("postern_policy_agents", "gauge", "Agents that policies are sent to.", agents)
	metric("postern_policy_agents_behind", "gauge", "Agents that do not decide by the newest policy yet.", p.roster.behind(st))
	metric("postern_policy_applied_seconds", "gauge", "How long the last change took until every agent decided by it; -1: not all do.", applied)

	const name = "postern_policy_delay_seconds"
	fmt.Fprintf(w, "# HELP %s From a change to an agent's acknowledgement.\n# TYPE %s histogram\n", name, name)
	sum := int64(0)
	for i, bound := range delayBounds {
		sum += delays.buckets[i]
		fmt.Fprintf(w, "%s_bucket{le=\"%v\"} %d\n", name, bound.Seconds(), sum)
	}
	fmt.Fprintf(w, "%s_bucket{le=\"+Inf\"} %d\n%s_sum %v\n%s_count %d\n", name, delays.count, name, delays.sum.Seconds(), name, delays.count)
}
