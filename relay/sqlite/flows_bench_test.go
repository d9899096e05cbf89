package sqlite

import (
	"fmt"
	"testing"
	"time"

	"github.com/posternhq/postern/relay"
)

// sumsOf makes a sum for each of the targets of each app in one hour.
func sumsOf(hour time.Time, apps, targets int) []relay.FlowSum {
	var sums []relay.FlowSum
	for a := range apps {
		for n := range targets {
			sums = append(sums, relay.FlowSum{App: relay.AppID(fmt.Sprint("app-", a)), Hour: hour, Form: "tunnel",
				Target: fmt.Sprintf("api-%d.partner.example:443", n), Verdict: "allow", Rule: fmt.Sprintf("apps.app-%d.egress.allow[%d]", a, n),
				Count: 10, Up: 1000, Down: 100_000, First: hour, Last: hour.Add(time.Second)})
		}
	}
	return sums
}

// BenchmarkAddFlows is what a second of a busy relay costs: three thousand sums,
// of which all are there already, behind those of a day.
func BenchmarkAddFlows(b *testing.B) {
	s := openTemp(b)
	for h := range 24 {
		if _, err := s.AddFlows(b.Context(), sumsOf(benchTime().Add(time.Duration(h)*time.Hour), 60, 50)); err != nil {
			b.Fatal(err)
		}
	}
	sums := sumsOf(benchTime().Add(24*time.Hour), 60, 50)
	for b.Loop() {
		if _, err := s.AddFlows(b.Context(), sums); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(sums)), "ns/sum")
}

// BenchmarkFlows is what the learner, the diff and the usage read: a day and a
// week, of one app and of all.
func BenchmarkFlows(b *testing.B) {
	s := openTemp(b)
	for h := range 7 * 24 {
		if _, err := s.AddFlows(b.Context(), sumsOf(benchTime().Add(time.Duration(h)*time.Hour), 60, 50)); err != nil {
			b.Fatal(err)
		}
	}
	end := benchTime().Add(7 * 24 * time.Hour)
	for _, days := range []int{1, 7} {
		for _, app := range []relay.AppID{"", "app-7"} {
			b.Run(fmt.Sprintf("days=%d,app=%s", days, app), func(b *testing.B) {
				n := 0
				for b.Loop() {
					all, err := s.Flows(b.Context(), relay.FlowFilter{App: app, Since: end.Add(-time.Duration(days) * 24 * time.Hour)})
					if err != nil {
						b.Fatal(err)
					}
					n = len(all)
				}
				b.ReportMetric(float64(n), "rows")
			})
		}
	}
}
