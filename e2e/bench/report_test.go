package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestMedianIsTheMiddle(t *testing.T) {
	t.Parallel()
	for want, values := range map[float64][]float64{0: nil, 7: {7}, 2: {1, 3}, 3: {9, 3, 1}, 5: {100, 5, 1, 6, 2}} {
		if got := median(values); got != want {
			t.Errorf("median of %v is %v", values, got)
		}
	}
}

func TestBarsAreJudged(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name         string
		id           string
		ours, theirs float64
		errors       int64
		want         string
	}{
		{"rate at its bar", "small.64.rps", 1500, 1000, 0, verdictReached},
		{"rate below its bar", "small.64.rps", 1490, 1000, 0, verdictMissed},
		{"rate with errors", "small.64.rps", 3000, 1000, 1, verdictErrors},
		{"CPU at its bar", "small.64.cpu", 0.65, 1, 0, verdictReached},
		{"CPU above its bar", "small.64.cpu", 0.66, 1, 0, verdictMissed},
		{"download", "bulk.download.1", 70, 100, 0, verdictReached},
		{"download too slow", "bulk.download.1", 69, 100, 0, verdictMissed},
		{"upload", "bulk.upload.1", 60, 100, 0, verdictReached},
		{"upload too slow", "bulk.upload.1", 59, 100, 0, verdictMissed},
		{"p99 four times the two hops'", "mixed.download.p99", 400, 100, 0, verdictReached},
		{"p99 more than that", "mixed.upload.p99", 401, 100, 0, verdictMissed},
		{"stalled downloads", "memory.stalled32.hop1", 64, 1, 0, verdictReached},
		{"stalled downloads held in memory", "memory.stalled32.hop1", 65, 100, 0, verdictMissed},
		{"idle agent", "memory.idle.hop2", 20, 1, 0, verdictReached},
		{"fat idle agent", "memory.idle.hop2", 21, 100, 0, verdictMissed},
		{"relay per agent", "agents.each", 40, 0, 0, verdictReached},
		{"relay per agent too much", "agents.each", 41, 0, 0, verdictMissed},
		{"CPU time too short to compare", "small.64.cpu", 0.1, 0, 0, verdictNotMeasured},
		{"a row without a bar", "small.1.rps", 1, 100, 0, ""},
	}
	for _, c := range cases {
		r := newResults()
		r.add(1, measure{}, targetPostern, sample{values: map[string]float64{c.id: c.ours}, errors: c.errors})
		r.add(1, measure{}, targetProxy2, sample{values: map[string]float64{c.id: c.theirs}})
		if got := newRow(options{Targets: allTargets}, metricByID(t, c.id), r).Verdict; got != c.want {
			t.Errorf("%s: %q instead of %q", c.name, got, c.want)
		}
	}
}

func TestTheInboxIsJudgedByItsOwnBaselines(t *testing.T) {
	t.Parallel()
	cases := []struct {
		id           string
		ours, theirs float64
		want         string
	}{
		{"inbox.accepts.commits", 1500, 1000, verdictReached},
		{"inbox.accepts.commits", 1490, 1000, verdictMissed},
		{"inbox.accepts.handler", 200, 1000, verdictReached},
		{"inbox.accepts.handler", 199, 1000, verdictMissed},
		{"inbox.paced.p50", 1200, 200, verdictReached},
		{"inbox.paced.p50", 1201, 200, verdictMissed},
		{"inbox.both", 334, 1000, verdictReached},
		{"inbox.both", 333, 1000, verdictMissed},
		{"inbox.flat.accept", 130, 100, verdictReached},
		{"inbox.flat.accept", 131, 100, verdictMissed},
		{"inbox.flat.due", 131, 100, verdictMissed},
		{"inbox.flat.later", 131, 100, verdictMissed},
		{"inbox.both", 1, 0, verdictNotMeasured},
	}
	for _, c := range cases {
		r, s := newResults(), newSample()
		s.compare(c.id, c.ours, c.theirs)
		r.add(1, measure{}, targetPostern, s)
		r.add(1, measure{}, targetProxy2, sample{values: map[string]float64{c.id: 1}}) // must not matter
		o := options{Targets: []string{targetPostern}}
		line := newRow(o, metricByID(t, c.id), r)
		if line.Verdict != c.want {
			t.Errorf("%s, %v to %v: %q instead of %q", c.id, c.ours, c.theirs, line.Verdict, c.want)
		}
	}
	s := newSample(loadResult{Errors: 1, FirstError: "status 503"})
	s.compare("inbox.both", 500, 1000)
	r := newResults()
	r.add(1, measure{}, targetPostern, s)
	if got := newRow(options{Targets: []string{targetPostern}}, metricByID(t, "inbox.both"), r).Verdict; got != verdictErrors {
		t.Errorf("a faulty sample: %q", got)
	}
	if got := newRow(options{Targets: []string{targetDirect}}, metricByID(t, "inbox.both"), newResults()).Verdict; got != verdictNotAsked {
		t.Errorf("without postern among the targets: %q", got)
	}
}

func metricByID(t *testing.T, id string) metric {
	t.Helper()
	all := metrics(fullSizes)
	i := slices.IndexFunc(all, func(m metric) bool { return m.id == id })
	if i < 0 {
		t.Fatalf("no metric %s", id)
	}
	return all[i]
}

func TestMissingValuesAreNotJudged(t *testing.T) {
	t.Parallel()
	m := metricByID(t, "small.64.rps")
	if got := newRow(options{Targets: allTargets}, m, newResults()).Verdict; got != verdictNotMeasured {
		t.Errorf("without values: %q", got)
	}
	if got := newRow(options{Targets: []string{targetDirect}}, m, newResults()).Verdict; got != verdictNotAsked {
		t.Errorf("without postern among the targets: %q", got)
	}
}

func TestRatiosPairTheRuns(t *testing.T) {
	t.Parallel()
	r := newResults()
	for run, values := range [][2]float64{{10, 5}, {30, 10}, {20, 20}} {
		r.add(run, measure{}, targetPostern, sample{values: map[string]float64{"small.64.rps": values[0]}})
		r.add(run, measure{}, targetProxy2, sample{values: map[string]float64{"small.64.rps": values[1]}})
	}
	line := newRow(options{Targets: allTargets}, metricByID(t, "small.64.rps"), r)
	if line.Ratio != 2 || line.RatioFrom != 1 || line.RatioTo != 3 {
		t.Errorf("%v from %v to %v", line.Ratio, line.RatioFrom, line.RatioTo)
	}
}

func TestErrorsAreShownInEveryForm(t *testing.T) {
	t.Parallel()
	o := options{Runs: 1, Targets: allTargets, Only: allGroups}
	r := newResults()
	r.add(1, measure{name: "small requests"}, targetPostern,
		sample{values: map[string]float64{"small.64.rps": 1234}, errors: 3, firstError: "status 502 instead of 200"})
	rep := newReport(o, thisMachine(""), r, time.Now())
	if rep.complete() {
		t.Error("complete with errors")
	}
	dir := t.TempDir()
	jsonPath, mdPath := filepath.Join(dir, "a.json"), filepath.Join(dir, "a.md")
	if err := rep.write(jsonPath, mdPath); err != nil {
		t.Fatal(err)
	}
	var table bytes.Buffer
	if err := rep.print(&table); err != nil {
		t.Fatal(err)
	}
	forms := map[string]string{"table": table.String(), "Markdown": read(t, mdPath)}
	for form, text := range forms {
		for _, want := range []string{"1234 !", verdictErrors, "3 errors", "status 502"} {
			if !strings.Contains(text, want) {
				t.Errorf("%s without %q:\n%s", form, want, text)
			}
		}
	}
	var back report
	if err := json.Unmarshal([]byte(read(t, jsonPath)), &back); err != nil || len(back.Failures) != 1 || len(back.Rows) != len(metrics(fullSizes)) {
		t.Errorf("JSON: %v, %+v", err, back.Failures)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestOptionsAreChecked(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"-only", "big"}, {"-targets", "proxy3"}, {"-runs", "0"}, {"-window", "0s"}, {"stray"}, {"-nonsense"},
		{"-cpuprofile", "x", "-targets", "direct"},
	} {
		var stderr bytes.Buffer
		if code := run(t.Context(), args, &bytes.Buffer{}, &stderr); code != 2 || stderr.Len() == 0 {
			t.Errorf("%v: exit code %d, %q", args, code, &stderr)
		}
	}
}
