package main

import (
	"fmt"
	"slices"
)

// observation is one value of one run.
type observation struct {
	Run    int     `json:"run"`
	Value  float64 `json:"value"`
	Errors int64   `json:"errors,omitempty"`
}

// results collects what the runs bring.
type results struct {
	observed map[string]map[string][]observation // by metric id and target
	failures []string                            // what could not be measured, or was with errors
	leftOut  map[string]string                   // reason by group; not a failure
}

func newResults() *results {
	return &results{observed: map[string]map[string][]observation{}, leftOut: map[string]string{}}
}

// add files a sample.
func (r *results) add(run int, m measure, target string, s sample) {
	r.file(run, target, s.values, s.errors)
	r.file(run, targetBaseline, s.baselines, s.errors)
	if s.errors > 0 {
		r.fail("run %d, %s, %s: %d errors, the first: %s", run, m.name, target, s.errors, s.firstError)
	}
}

func (r *results) file(run int, target string, values map[string]float64, errors int64) {
	for id, value := range values {
		if r.observed[id] == nil {
			r.observed[id] = map[string][]observation{}
		}
		r.observed[id][target] = append(r.observed[id][target], observation{run, value, errors})
	}
}

func (r *results) fail(format string, args ...any) {
	r.failures = append(r.failures, fmt.Sprintf(format, args...))
}

// summary is one target's value in one row.
type summary struct {
	Median float64       `json:"median"`
	Errors int64         `json:"errors,omitempty"`
	Runs   []observation `json:"runs"`
}

func (r *results) summary(id, target string) (summary, bool) {
	runs := r.observed[id][target]
	if len(runs) == 0 {
		return summary{}, false
	}
	s := summary{Runs: runs}
	var values []float64
	for _, o := range runs {
		values = append(values, o.Value)
		s.Errors += o.Errors
	}
	s.Median = median(values)
	return s, true
}

// ratios are postern/against of each run that has both. Values of one run were
// taken right after one another, so their ratio suffers least from drift.
func (r *results) ratios(id, against string) []float64 {
	var all []float64
	for _, ours := range r.observed[id][targetPostern] {
		for _, theirs := range r.observed[id][against] {
			if ours.Run == theirs.Run && theirs.Value > 0 {
				all = append(all, ours.Value/theirs.Value)
			}
		}
	}
	return all
}

// median is the middle value, or the mean of the two middle ones.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	if n == 0 {
		return 0
	}
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}
