package policies

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/protocol/api"
	"github.com/posternhq/postern/protocol/policy"
	"github.com/posternhq/postern/relay"
)

// sum is a recorded call of shop, made in the hour before the last.
func sum(form policy.Form, target, verdict string, count int64) relay.FlowSum {
	hour := time.Now().UTC().Truncate(time.Hour)
	return relay.FlowSum{App: "shop", Hour: hour, Form: form, Target: target, Verdict: verdict, Count: count,
		First: hour.Add(time.Second), Last: hour.Add(time.Minute)}
}

func TestADiffShowsLinesAndWhatWouldFlip(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.apply(text("", "https://api.a.test", "https://api.b.test", "http://plain.test"))
	get, put := sum(policy.Request, "plain.test:80", "allow", 4), sum(policy.Request, "plain.test:80", "allow", 2)
	get.Method, put.Method = "GET", "PUT"
	later := sum(policy.Tunnel, "api.b.test:443", "allow", 5)
	later.Last = later.Last.Add(30 * time.Minute)
	old := sum(policy.Tunnel, "api.b.test:443", "allow", 1000)
	old.Hour = old.Hour.Add(-48 * time.Hour)
	other := sum(policy.Tunnel, "api.c.test:443", "deny", 9)
	other.App = "unknown"
	b.store.sums = []relay.FlowSum{
		sum(policy.Tunnel, "api.a.test:443", "allow", 100), sum(policy.Tunnel, "api.b.test:443", "allow", 7), later, old, get, put,
		sum(policy.Tunnel, "api.c.test:443", "deny", 3), sum(policy.Tunnel, `"what nobody can read"`, "deny", 1), other,
	}
	rules := "{host: 'http://plain.test', rules: [{methods: [GET]}]}"
	got, err := b.Diff(t.Context(), api.ManifestRequest{
		Source: text("", "https://api.a.test", rules, "https://api.c.test"), SinceMS: 24 * 3600_000})
	if err != nil {
		t.Fatal(err)
	}
	wantLines := `--- version 1
+++ candidate
@@ -4,5 +4,5 @@
     egress:
       allow:
         - https://api.a.test
-        - https://api.b.test
-        - http://plain.test
+        - {host: 'http://plain.test', rules: [{methods: [GET]}]}
+        - https://api.c.test`
	if lines := strings.Join(got.Lines, "\n"); lines != wantLines {
		t.Errorf("lines:\n%s\nwant\n%s", lines, wantLines)
	}
	if got.Base != 1 || got.Calls != 100+7+5+4+2+3 {
		t.Errorf("base %d, %d calls", got.Base, got.Calls)
	}
	var flips []string
	for _, f := range got.Flips {
		flips = append(flips, fmt.Sprintf("%s %s%s: %s → %s, %d", f.App, f.Method, f.Target, f.From, f.To, f.Calls))
	}
	want := "shop https://api.b.test: allow → deny, 12\nshop PUThttp://plain.test: allow → deny, 2\nshop https://api.c.test: deny → allow, 3"
	if s := strings.Join(flips, "\n"); s != want {
		t.Fatalf("flips:\n%s\nwant\n%s", s, want)
	}
	if !got.Flips[0].LastSeen.Equal(later.Last) || got.Flips[0].Reason == "" {
		t.Errorf("first flip: %+v", got.Flips[0])
	}
	if f := got.Flips[2]; f.Rule != "apps.shop.egress.allow[2]" || f.Line != 8 {
		t.Errorf("last flip: %+v", f)
	}
	b.wantStatuses("1 running")
}

func TestADiffWithErrorsAndForAnotherVersion(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.apply(text("", "https://api.a.test"))
	var problems relay.ManifestErrors
	if _, err := b.Diff(t.Context(), api.ManifestRequest{Source: "version: 3\n"}); !errors.As(err, &problems) {
		t.Errorf("got %v, want ManifestErrors", err)
	}
	if _, err := b.Diff(t.Context(), api.ManifestRequest{Source: text(""), Base: 7}); relay.CodeOf(err) != relay.Conflict {
		t.Errorf("got %v, want conflict", err)
	}
	same, err := b.Diff(t.Context(), api.ManifestRequest{Source: text("", "https://api.a.test"), SinceMS: 1000})
	if err != nil || len(same.Lines) != 0 || len(same.Flips) != 0 {
		t.Errorf("the same text: %+v, %v", same, err)
	}
}

// An order that is in force decides about both, so that it hides what no text can
// change.
func TestADiffKnowsTheOrders(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.apply(text("", "https://api.a.test"))
	b.store.sums = []relay.FlowSum{sum(policy.Tunnel, "api.a.test:443", "deny", 3), sum(policy.Tunnel, "api.b.test:443", "deny", 3)}
	b.order(api.OrderRequest{Kind: "deny", What: "api.b.test"})
	b.order(api.OrderRequest{Kind: "allow", App: "shop", What: "api.a.test"})
	got, err := b.Diff(t.Context(), api.ManifestRequest{Source: text("", "https://api.b.test"), SinceMS: 3600_000})
	if err != nil || len(got.Flips) != 0 {
		t.Errorf("got %+v, %v, want no flips", got.Flips, err)
	}
}

func TestLineDiff(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, x, y, want string }{
		{"equal", "a\nb\n", "a\nb\n", ""},
		{"from nothing", "", "a\nb\n", "@@ -0,0 +1,2 @@|+a|+b"},
		{"to nothing", "a\nb\n", "", "@@ -1,2 +0,0 @@|-a|-b"},
		{"one of many", "1\n2\n3\n4\n5\n6\n7\n8\n9\n", "1\n2\n3\n4\nx\n6\n7\n8\n9\n", "@@ -2,7 +2,7 @@| 2| 3| 4|-5|+x| 6| 7| 8"},
		{"the first", "1\n2\n3\n4\n5\n", "x\n2\n3\n4\n5\n", "@@ -1,4 +1,4 @@|-1|+x| 2| 3| 4"},
		{"one more at the end", "1\n2\n3\n4\n5\n", "1\n2\n3\n4\n5\n6\n", "@@ -3,3 +3,4 @@| 3| 4| 5|+6"},
		{"two far apart", "1\n2\n3\n4\n5\n6\n7\n8\n9\n", "x\n2\n3\n4\n5\n6\n7\n8\ny\n",
			"@@ -1,4 +1,4 @@|-1|+x| 2| 3| 4|@@ -6,4 +6,4 @@| 6| 7| 8|-9|+y"},
		{"two close together", "1\n2\n3\n4\n5\n6\n7\n8\n", "x\n2\n3\n4\n5\n6\n7\ny\n", "@@ -1,8 +1,8 @@|-1|+x| 2| 3| 4| 5| 6| 7|-8|+y"},
		{"lines that are there twice", "a\na\nb\n", "a\nb\n", "@@ -1,3 +1,2 @@|-a| a| b"},
		{"nothing in common", "a\n", "b\n", "@@ -1,1 +1,1 @@|-a|+b"},
	}
	for _, tt := range tests {
		if got := strings.Join(lineDiff(tt.x, tt.y), "|"); got != tt.want {
			t.Errorf("%s:\n got %s\nwant %s", tt.name, got, tt.want)
		}
	}
}

// patch makes of x what the diff says.
func patch(x string, diff []string) (string, error) {
	lines, out, at := splitLines(x), []string(nil), 0
	for _, line := range diff {
		if strings.HasPrefix(line, "@@") {
			var start, n, start2, n2 int
			if _, err := fmt.Sscanf(line, "@@ -%d,%d +%d,%d @@", &start, &n, &start2, &n2); err != nil {
				return "", err
			}
			if n > 0 {
				start--
			}
			out, at = append(out, lines[at:start]...), start
			continue
		}
		if line[0] != '+' {
			if at >= len(lines) || lines[at] != line[1:] {
				return "", fmt.Errorf("line %d is not %q", at+1, line[1:])
			}
			at++
		}
		if line[0] != '-' {
			out = append(out, line[1:])
		}
	}
	out = append(out, lines[at:]...)
	return strings.Join(out, "\n"), nil
}

func TestALineDiffMakesOneTextOfTheOther(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	random := func() string {
		lines := make([]string, r.IntN(40))
		for i := range lines {
			lines[i] = fmt.Sprint(r.IntN(25))
		}
		return strings.Join(lines, "\n")
	}
	for range 5000 {
		x, y := random(), random()
		if r.IntN(2) == 0 { // an edit of x
			lines := splitLines(x)
			for i := range lines {
				if r.IntN(8) == 0 {
					lines[i] = "new"
				}
			}
			y = strings.Join(lines, "\n")
		}
		got, err := patch(x, lineDiff(x, y))
		if err != nil || got != y {
			t.Fatalf("%q to %q: %q\ngot %q, %v", x, y, lineDiff(x, y), got, err)
		}
	}
}

func TestALargeDiffIsQuickAndCut(t *testing.T) {
	t.Parallel()
	var x, y strings.Builder
	for i := range 100_000 {
		fmt.Fprintf(&x, "line %d\n", i)
		fmt.Fprintf(&y, "line %d\n", i*7)
	}
	got := lineDiff(x.String(), y.String())
	if len(got) != maxDiffLines+1 || !strings.HasPrefix(got[maxDiffLines], "… ") {
		t.Errorf("%d lines, the last is %q", len(got), got[len(got)-1])
	}
}

func TestLearn(t *testing.T) {
	t.Parallel()
	b := newBench(t, nil)
	b.apply(text(`      deny: ["*.evil.test"]
egress:
  deny: {ranges: [198.51.100.0/24]}
  allow_ranges: [{range: 10.1.2.3/32, ports: [5432]}]
`, "https://api.known.test", "tcp://10.1.2.3:5432", "https://wiki.corp"))
	request := sum(policy.Request, "plain.test:80", "allow", 2)
	early := sum(policy.Tunnel, "api.new.test:443", "deny", 1)
	early.Hour, early.First = early.Hour.Add(-24*time.Hour), early.First.Add(-24*time.Hour)
	inner := sum(policy.Tunnel, "rebind.test:443", "deny", 4)
	inner.Rule = "addresses"
	range1, range2 := sum(policy.Tunnel, "led1.test:443", "deny", 4), sum(policy.Tunnel, "led2.test:443", "deny", 4)
	range1.Rule, range2.Rule = "egress.deny.ranges[0]", "apps.shop.egress.deny[1]"
	lost := sum(policy.Tunnel, "gone.test:443", "allow", 3)
	lost.Failed = 3
	b.store.sums = []relay.FlowSum{
		sum(policy.Tunnel, "api.known.test:443", "allow", 10), sum(policy.Tunnel, "api.new.test:443", "deny", 4), early, request, lost, inner, range1, range2,
		sum(policy.Request, "plain.test:8080", "report", 1), sum(policy.Tunnel, "db.test:5432", "deny", 1), sum(policy.Tunnel, "api.new.test:8443", "deny", 1),
		sum(policy.Tunnel, "10.1.2.3:5432", "allow", 6), sum(policy.Tunnel, "wiki.corp:443", "allow", 1),
		// None of these is for a list.
		sum(policy.Tunnel, "x.evil.test:443", "deny", 1), sum(policy.Tunnel, "api.cut.test:443", "deny", 1), sum(policy.Tunnel, "198.51.100.7:443", "deny", 1),
		sum(policy.Tunnel, "10.9.9.9:443", "deny", 1), sum(policy.Tunnel, "169.254.169.254:80", "deny", 1), sum(policy.Tunnel, "localhost:443", "deny", 1),
		sum(policy.Tunnel, "db.internal:5432", "deny", 1), sum(policy.Tunnel, `"bad`, "deny", 1),
	}
	b.order(api.OrderRequest{Kind: "deny", What: "api.cut.test"})
	got, err := b.Learn(t.Context(), "shop", time.Now().Add(-72*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	var rules []string
	for _, r := range got.Rules {
		rules = append(rules, fmt.Sprintf("%s %d %v", r.Target, r.Calls, r.Allowed))
	}
	want := `http://plain.test 2 false
http://plain.test:8080 1 false
https://api.known.test 10 true
https://api.new.test 5 false
https://gone.test 3 false
https://wiki.corp 1 true
tcp://10.1.2.3:5432 6 true
tcp://api.new.test:8443 1 false
tcp://db.test:5432 1 false`
	if s := strings.Join(rules, "\n"); s != want {
		t.Errorf("rules:\n%s\nwant\n%s", s, want)
	}
	if r := got.Rules[3]; !r.FirstSeen.Equal(early.First) || !r.LastSeen.Equal(request.Last) {
		t.Errorf("https://api.new.test: first %v, last %v", r.FirstSeen, r.LastSeen)
	}
	for _, comment := range []string{"https://api.known.test  # 10 calls, ", "allowed by apps.shop.egress.allow[0]", "refused so far", "never answered", "# 1 call, first "} {
		if !strings.Contains(got.YAML, comment) {
			t.Errorf("the YAML lacks %q:\n%s", comment, got.YAML)
		}
	}
	// It is a manifest when the version is put in front, and lets through what was learned.
	m, err := parseText([]byte("version: 1\n" + got.YAML))
	if err != nil {
		t.Fatalf("the YAML cannot be read: %v\n%s", err, got.YAML)
	}
	if n := len(m.Apps["shop"].Egress.Allow); n != len(got.Rules) {
		t.Errorf("the YAML has %d lines, want %d", n, len(got.Rules))
	}

	// Of an app of which nothing is said or known.
	none, err := b.Learn(t.Context(), "blog", time.Now().Add(-time.Hour))
	if err != nil || len(none.Rules) != 0 {
		t.Errorf("nothing: %+v, %v", none, err)
	}
	if _, err := parseText([]byte("version: 1\n" + none.YAML)); err != nil {
		t.Errorf("the YAML for nothing cannot be read: %v\n%s", err, none.YAML)
	}
}
