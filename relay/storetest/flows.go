package storetest

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/posternhq/postern/relay"
)

func flowTests() []test {
	return slices.Concat(flowSumTests(), targetTests(), flowListTests(), flowExpiryTests())
}

func flowSumTests() []test {
	return []test{
		{"an empty store has no flows", func(f *fixture) {
			f.wantFlows(relay.FlowFilter{})
			f.wantFlows(relay.FlowFilter{App: app})
			f.wantTargets(app)
			f.addFlows(nil)
		}},
		{"a sum comes back as it was", func(f *fixture) {
			want := newFlow("a.example:443", "allow")
			want.Method, want.Failed = "POST", 2
			f.addFlows([]relay.FlowSum{want}, "shop a.example:443")
			got, err := f.store.Flows(f.ctx, relay.FlowFilter{})
			f.must(err)
			wantEqual(f, "flows", got, []relay.FlowSum{want})
		}},
		{"sums of the same calls add up, in one call and over several", func(f *fixture) {
			early, late := newFlow("a.example:443", "allow"), newFlow("a.example:443", "allow")
			early.First, late.Last = start().Add(-time.Minute), later(time.Minute)
			late.Failed = 1
			f.addFlows([]relay.FlowSum{newFlow("a.example:443", "allow"), late}, "shop a.example:443")
			f.addFlows([]relay.FlowSum{early})
			f.addFlows([]relay.FlowSum{newFlow("a.example:443", "allow")})
			want := newFlow("a.example:443", "allow")
			want.Count, want.Failed, want.Up, want.Down = 4*want.Count, 1, 4*want.Up, 4*want.Down
			want.First, want.Last = early.First, late.Last
			got, err := f.store.Flows(f.ctx, relay.FlowFilter{})
			f.must(err)
			wantEqual(f, "flows", got, []relay.FlowSum{want})
		}},
		{"sums that differ in what they are of are apart", func(f *fixture) {
			one := newFlow("a.example:443", "allow")
			sums := []relay.FlowSum{one}
			for _, change := range []func(*relay.FlowSum){
				func(s *relay.FlowSum) { s.App = "other" },
				func(s *relay.FlowSum) { s.Hour = s.Hour.Add(time.Hour) },
				func(s *relay.FlowSum) { s.Form = "request" },
				func(s *relay.FlowSum) { s.Target = "a.example:444" },
				func(s *relay.FlowSum) { s.Method = "GET" },
				func(s *relay.FlowSum) { s.Verdict = "deny" },
				func(s *relay.FlowSum) { s.Rule = "default" },
			} {
				other := one
				change(&other)
				sums = append(sums, other)
			}
			_, err := f.store.AddFlows(f.ctx, sums)
			f.must(err)
			got, err := f.store.Flows(f.ctx, relay.FlowFilter{})
			f.must(err)
			wantEqual(f, "sums", len(got), len(sums))
			for _, s := range got {
				if !slices.Contains(sums, s) {
					f.Errorf("%+v was not added", s)
				}
			}
		}},
		{"nothing is lost when several add at once", func(f *fixture) {
			const callers, each, targets = 6, 20, 5
			var all sync.WaitGroup
			var mu sync.Mutex
			told := make(map[string]int) // guarded by mu
			for range callers {
				all.Go(func() {
					for i := range each {
						fresh, err := f.store.AddFlows(f.ctx, []relay.FlowSum{newFlow(fmt.Sprint(i%targets, ".example:443"), "allow")})
						if err != nil {
							f.Error(err)
							return
						}
						mu.Lock()
						for _, t := range fresh {
							told[t.Target]++
						}
						mu.Unlock()
					}
				})
			}
			all.Wait()
			got, err := f.store.Flows(f.ctx, relay.FlowFilter{})
			f.must(err)
			wantEqual(f, "sums", len(got), targets)
			for _, s := range got {
				if s.Count != callers*each/targets*newFlow("", "").Count || told[s.Target] != 1 {
					f.Errorf("%s has %d calls and was new %d times", s.Target, s.Count, told[s.Target])
				}
			}
		}},
	}
}

func targetTests() []test {
	return []test{
		{"a target is new once, by app, host and port", func(f *fixture) {
			f.addFlows([]relay.FlowSum{newFlow("b.example:443", "allow"), newFlow("a.example:443", "report")},
				"shop a.example:443", "shop b.example:443")
			f.addFlows([]relay.FlowSum{newFlow("a.example:443", "allow"), newFlow("b.example:80", "allow")}, "shop b.example:80")
			other := newFlow("a.example:443", "allow")
			other.App = "other"
			f.addFlows([]relay.FlowSum{other}, "other a.example:443")
			other.Hour, other.Rule = other.Hour.Add(time.Hour), "another"
			f.addFlows([]relay.FlowSum{other})
		}},
		{"what was refused is no target, until it is allowed", func(f *fixture) {
			f.addFlows([]relay.FlowSum{newFlow("a.example:443", "deny")})
			f.wantTargets(app)
			f.addFlows([]relay.FlowSum{newFlow("a.example:443", "deny"), newFlow("a.example:443", "allow")}, "shop a.example:443")
			f.wantTargets(app, "shop a.example:443")
		}},
		{"a target that comes twice in one call is new once, with the times of both", func(f *fixture) {
			one, two := newFlow("a.example:443", "allow"), newFlow("a.example:443", "report")
			one.Last, two.First = later(time.Hour), start().Add(-time.Hour)
			fresh, err := f.store.AddFlows(f.ctx, []relay.FlowSum{one, two})
			f.must(err)
			want := []relay.EgressTarget{{App: app, Target: "a.example:443", First: two.First, Last: one.Last}}
			wantEqual(f, "new targets", fresh, want)
			got, err := f.store.EgressTargets(f.ctx, app)
			f.must(err)
			wantEqual(f, "targets", got, want)
		}},
		{"targets are listed by name, with the first and the last time", func(f *fixture) {
			for _, d := range []time.Duration{time.Minute, 3 * time.Minute, 2 * time.Minute} {
				s := newFlow("b.example:443", "allow")
				s.First, s.Last = later(d), later(d)
				_, err := f.store.AddFlows(f.ctx, []relay.FlowSum{s, newFlow("a.example:443", "report")})
				f.must(err)
			}
			denied := newFlow("b.example:443", "deny")
			denied.Last = later(time.Hour)
			f.addFlows([]relay.FlowSum{denied})
			got, err := f.store.EgressTargets(f.ctx, app)
			f.must(err)
			a := newFlow("a.example:443", "report")
			wantEqual(f, "targets", got, []relay.EgressTarget{
				{App: app, Target: "a.example:443", First: a.First, Last: a.Last},
				{App: app, Target: "b.example:443", First: later(time.Minute), Last: later(3 * time.Minute)},
			})
		}},
		{"targets are one app's, or all for no app", func(f *fixture) {
			other := newFlow("a.example:443", "allow")
			other.App = "other"
			f.addFlows([]relay.FlowSum{other, newFlow("z.example:443", "allow")}, "other a.example:443", "shop z.example:443")
			f.wantTargets("other", "other a.example:443")
			f.wantTargets(app, "shop z.example:443")
			f.wantTargets("nobody")
			f.wantTargets("", "other a.example:443", "shop z.example:443")
		}},
	}
}

func flowListTests() []test {
	return []test{
		{"flows are listed by app, target and hour", func(f *fixture) {
			f.addHours("shop", "b.example:443", 2, 0, 1)
			f.addHours("shop", "a.example:443", 1, 0)
			f.addHours("other", "z.example:443", 5)
			shop := []string{"shop a.example:443 0", "shop a.example:443 1", "shop b.example:443 0", "shop b.example:443 1", "shop b.example:443 2"}
			f.wantFlows(relay.FlowFilter{}, append([]string{"other z.example:443 5"}, shop...)...)
			f.wantFlows(relay.FlowFilter{App: app}, shop...)
			f.wantFlows(relay.FlowFilter{App: app, Limit: 3}, shop[:3]...)
			f.wantFlows(relay.FlowFilter{Limit: 2}, "other z.example:443 5", shop[0])
			f.wantFlows(relay.FlowFilter{App: "nobody"})
		}},
		{"since and until select the hours that they touch", func(f *fixture) {
			f.addHours("shop", "a.example:443", 0, 1, 2, 3)
			f.addHours("other", "a.example:443", 7)
			for _, tt := range []struct {
				since, until time.Time
				want         string
			}{
				{since: hour(1), want: "123"},
				{since: hour(1).Add(-1), want: "0123"},
				{since: hour(1).Add(time.Hour - 1), want: "123"},
				{since: hour(9)},
				{until: hour(2), want: "01"},
				{until: hour(2).Add(1), want: "012"},
				{until: hour(0)},
				{since: hour(1).Add(time.Minute), until: hour(2).Add(time.Minute), want: "12"},
				{since: hour(2), until: hour(2)},
				{since: hour(2), until: hour(1)},
				{since: hour(-1000), until: hour(1000), want: "0123"},
			} {
				var want []string
				for _, h := range tt.want {
					want = append(want, "shop a.example:443 "+string(h))
				}
				f.wantFlows(relay.FlowFilter{App: app, Since: tt.since, Until: tt.until}, want...)
				if tt.until.IsZero() || tt.until.After(hour(7)) { // then the other app's, too
					if !tt.since.After(hour(8).Add(-1)) {
						want = append([]string{"other a.example:443 7"}, want...)
					}
				}
				f.wantFlows(relay.FlowFilter{Since: tt.since, Until: tt.until}, want...)
			}
		}},
	}
}

func flowExpiryTests() []test {
	return []test{
		{"flows of hours that have ended are deleted, so many at once", func(f *fixture) {
			f.addHours("shop", "a.example:443", 0, 1, 2, 3)
			f.addHours("other", "a.example:443", 0, 1)
			expire := func(before time.Time, limit, want int) {
				f.Helper()
				n, err := f.store.ExpireFlows(f.ctx, before, limit)
				f.must(err)
				wantEqual(f, "deleted", n, want)
			}
			expire(hour(0).Add(time.Hour-1), 10, 0)
			expire(hour(2), 0, 0)
			expire(hour(2), 3, 3)
			expire(hour(2), 3, 1)
			expire(hour(2), 3, 0)
			f.wantFlows(relay.FlowFilter{}, "shop a.example:443 2", "shop a.example:443 3")
			expire(hour(100), 10, 2)
			f.wantFlows(relay.FlowFilter{})
		}},
		{"targets outlive the flows", func(f *fixture) {
			f.addFlows([]relay.FlowSum{newFlow("a.example:443", "allow")}, "shop a.example:443")
			_, err := f.store.ExpireFlows(f.ctx, later(24*time.Hour), 10)
			f.must(err)
			f.wantTargets(app, "shop a.example:443")
			f.addFlows([]relay.FlowSum{newFlow("a.example:443", "allow")})
		}},
	}
}

// newFlow is some tunnels of the app in the first hour.
func newFlow(target, verdict string) relay.FlowSum {
	return relay.FlowSum{App: app, Hour: hour(0), Form: "tunnel", Target: target, Verdict: verdict, Rule: "apps.shop.egress.allow[0]",
		Count: 3, Up: 1 << 33, Down: 5 << 33, First: start(), Last: later(time.Second)}
}

// hour is the beginning of the nth hour after that in which tests begin.
func hour(n int) time.Time { return start().Truncate(time.Hour).Add(time.Duration(n) * time.Hour) }

// addHours stores a sum of some target for each hour.
func (f *fixture) addHours(of relay.AppID, target string, hours ...int) {
	f.Helper()
	var sums []relay.FlowSum
	for _, h := range hours {
		s := newFlow(target, "allow")
		s.App, s.Hour = of, hour(h)
		sums = append(sums, s)
	}
	_, err := f.store.AddFlows(f.ctx, sums)
	f.must(err)
}

// addFlows stores sums and wants these new targets, in this order.
func (f *fixture) addFlows(sums []relay.FlowSum, want ...string) {
	f.Helper()
	fresh, err := f.store.AddFlows(f.ctx, sums)
	f.must(err)
	wantEqual(f, "new targets", targetNames(fresh), strings.Join(want, ", "))
}

func (f *fixture) wantTargets(of relay.AppID, want ...string) {
	f.Helper()
	all, err := f.store.EgressTargets(f.ctx, of)
	f.must(err)
	wantEqual(f, "targets", targetNames(all), strings.Join(want, ", "))
}

func targetNames(list []relay.EgressTarget) string {
	var names []string
	for _, t := range list {
		names = append(names, string(t.App)+" "+t.Target)
	}
	return strings.Join(names, ", ")
}

// wantFlows compares the sums, each with the number of its hour.
func (f *fixture) wantFlows(filter relay.FlowFilter, want ...string) {
	f.Helper()
	all, err := f.store.Flows(f.ctx, filter)
	f.must(err)
	var got []string
	for _, s := range all {
		got = append(got, fmt.Sprintf("%s %s %d", s.App, s.Target, s.Hour.Sub(hour(0))/time.Hour))
	}
	wantEqual(f, fmt.Sprintf("flows of %+v", filter), got, want)
}
