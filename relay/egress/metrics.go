package egress

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/relay"
)

// maxSeries bounds the series of one metric; the others are added up as "other".
const maxSeries = 5000

// metrics counts since the start. Its methods are called with the ledger's lock held.
type metrics struct {
	calls  map[callSeries]int64
	bytes  map[byteSeries]*[2]int64 // up, down
	phases map[string]*histogram
	fresh  int64
	direct int64 // records of agents' own calls
}

type callSeries struct{ app, form, verdict, cause string }

type byteSeries struct{ app, rule string }

// phases in the order of a call.
var phaseNames = []string{"policy", "dns", "dial", "tls", "ttfb"}

// bounds of the histograms, in seconds.
var bounds = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}

type histogram struct {
	counts [15]int64 // one more than bounds
	sum    float64
	n      int64
}

func (h *histogram) add(seconds float64) {
	i, _ := slices.BinarySearch(bounds, seconds)
	h.counts[i]++
	h.sum += seconds
	h.n++
}

func newMetrics() metrics {
	m := metrics{calls: map[callSeries]int64{}, bytes: map[byteSeries]*[2]int64{}, phases: map[string]*histogram{}}
	for _, name := range phaseNames {
		m.phases[name] = &histogram{}
	}
	return m
}

// countLocked counts a call that is over.
func (m *metrics) countLocked(f *protocol.Flow) {
	key := callSeries{f.App, f.Form, f.Verdict, f.Cause}
	if _, ok := m.calls[key]; !ok && len(m.calls) >= maxSeries {
		key = callSeries{other, f.Form, f.Verdict, ""}
	}
	m.calls[key]++
	if f.Via != "relay" {
		m.direct++
		return
	}
	for i, ms := range []float64{f.Policy, f.DNS, f.Dial, f.TLS, f.TTFB} {
		if ms > 0 {
			m.phases[phaseNames[i]].add(ms / 1000)
		}
	}
}

func (m *metrics) bytesLocked(app relay.AppID, rule string, up, down int64) {
	if up == 0 && down == 0 {
		return
	}
	key := byteSeries{string(app), rule}
	n := m.bytes[key]
	if n == nil {
		if len(m.bytes) >= maxSeries {
			key = byteSeries{other, other}
		}
		if n = m.bytes[key]; n == nil {
			n = &[2]int64{}
			m.bytes[key] = n
		}
	}
	n[0] += up
	n[1] += down
}

// WriteMetrics writes everything that is counted in Prometheus' text format. Labels
// are bounded: apps, rules and causes, never targets.
func (e *Egress) WriteMetrics(w io.Writer) {
	var b strings.Builder
	started, logged, inFlight := e.Counts()
	family(&b, "postern_egress_started_total", "counter", "Calls to the outside that began; logged + in flight at every moment.")
	fmt.Fprintf(&b, "postern_egress_started_total %d\n", started)
	family(&b, "postern_egress_logged_total", "counter", "Calls whose last line was written to the log.")
	fmt.Fprintf(&b, "postern_egress_logged_total %d\n", logged)
	family(&b, "postern_egress_in_flight", "gauge", "Calls that are not over.")
	fmt.Fprintf(&b, "postern_egress_in_flight %d\n", inFlight)
	family(&b, "postern_egress_tunnels", "gauge", "Tunnels that are open.")
	fmt.Fprintf(&b, "postern_egress_tunnels %d\n", e.limits.open())
	family(&b, "postern_egress_connections", "gauge", "Connections for requests, in use and idle.")
	fmt.Fprintf(&b, "postern_egress_connections %d\n", e.pools.open())

	l := e.ledger
	l.mu.Lock()
	defer func() {
		l.mu.Unlock()
		io.WriteString(w, b.String())
	}()
	e.writeCalls(&b, &l.metrics)
	e.writeBytes(&b, &l.metrics)
	writePhases(&b, &l.metrics)
	family(&b, "postern_egress_first_seen_total", "counter", "Targets that an app called for the first time ever.")
	fmt.Fprintf(&b, "postern_egress_first_seen_total %d\n", l.metrics.fresh)
	family(&b, "postern_egress_direct_total", "counter", "Calls that agents made themselves and reported.")
	fmt.Fprintf(&b, "postern_egress_direct_total %d\n", l.metrics.direct)
	family(&b, "postern_egress_sums_waiting", "gauge", "Sums that are not stored yet.")
	fmt.Fprintf(&b, "postern_egress_sums_waiting %d\n", len(l.sums.waiting))
	family(&b, "postern_egress_sums_lost_total", "counter", "Calls in no sum, because the store did not answer for long.")
	fmt.Fprintf(&b, "postern_egress_sums_lost_total %d\n", l.sums.lost)
}

func family(b *strings.Builder, name, kind, help string) {
	fmt.Fprintf(b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

func (e *Egress) writeCalls(b *strings.Builder, m *metrics) {
	family(b, "postern_egress_calls_total", "counter", "Calls that are over, by app, form, verdict and cause.")
	keys := slices.SortedFunc(maps.Keys(m.calls), func(x, y callSeries) int {
		return cmp.Or(cmp.Compare(x.app, y.app), cmp.Compare(x.form, y.form), cmp.Compare(x.verdict, y.verdict), cmp.Compare(x.cause, y.cause))
	})
	for _, k := range keys {
		fmt.Fprintf(b, "postern_egress_calls_total{app=%s,team=%s,form=%s,verdict=%s,cause=%s} %d\n",
			label(k.app), label(e.cfg.Team(relay.AppID(k.app))), label(k.form), label(k.verdict), label(k.cause), m.calls[k])
	}
}

func (e *Egress) writeBytes(b *strings.Builder, m *metrics) {
	family(b, "postern_egress_bytes_total", "counter", "Bytes of apps (up) and of answers (down), by app, team and rule.")
	keys := slices.SortedFunc(maps.Keys(m.bytes), func(x, y byteSeries) int {
		return cmp.Or(cmp.Compare(x.app, y.app), cmp.Compare(x.rule, y.rule))
	})
	for _, k := range keys {
		for i, direction := range []string{"up", "down"} {
			fmt.Fprintf(b, "postern_egress_bytes_total{app=%s,team=%s,rule=%s,direction=%q} %d\n",
				label(k.app), label(e.cfg.Team(relay.AppID(k.app))), label(k.rule), direction, m.bytes[k][i])
		}
	}
}

func writePhases(b *strings.Builder, m *metrics) {
	const name = "postern_egress_phase_seconds"
	family(b, name, "histogram", "How long the phases of calls took.")
	for _, phase := range phaseNames {
		h := m.phases[phase]
		below := int64(0)
		for i, bound := range bounds {
			below += h.counts[i]
			fmt.Fprintf(b, "%s_bucket{phase=%q,le=%q} %d\n", name, phase, strconv.FormatFloat(bound, 'g', -1, 64), below)
		}
		fmt.Fprintf(b, "%s_bucket{phase=%q,le=\"+Inf\"} %d\n", name, phase, h.n)
		fmt.Fprintf(b, "%s_sum{phase=%q} %g\n%s_count{phase=%q} %d\n", name, phase, h.sum, name, phase, h.n)
	}
}

// label quotes a label's value.
func label(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`).Replace(s) + `"`
}
