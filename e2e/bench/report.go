package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// The verdicts of rows with a bar.
const (
	verdictReached     = "ok"
	verdictMissed      = "MISSED"
	verdictErrors      = "ERRORS"
	verdictNotMeasured = "not measured"
	verdictNotAsked    = "" // postern or proxy2 was not among the targets
)

// report is a finished bench, as it is printed and written.
type report struct {
	Date     time.Time `json:"date"`
	Took     string    `json:"took"`
	Machine  machine   `json:"machine"`
	Options  options   `json:"options"`
	Rows     []row     `json:"rows"`
	Failures []string  `json:"failures"`
}

// row is one metric over all targets. Ratio is that of the medians, of postern to
// Against; RatioFrom and RatioTo are the extremes over single runs.
type row struct {
	ID        string             `json:"id"`
	Title     string             `json:"title"`
	Unit      string             `json:"unit"`
	Values    map[string]summary `json:"values"`
	Against   string             `json:"against"`
	Ratio     float64            `json:"ratio,omitempty"`
	RatioFrom float64            `json:"ratio_from,omitempty"`
	RatioTo   float64            `json:"ratio_to,omitempty"`
	Bar       string             `json:"bar,omitempty"`
	Verdict   string             `json:"verdict,omitempty"`
	Note      string             `json:"note,omitempty"`
}

func newReport(o options, m machine, r *results, began time.Time) report {
	rep := report{Date: began.UTC().Truncate(time.Second), Took: time.Since(began).Round(time.Second).String(),
		Machine: m, Options: o, Failures: r.failures}
	for _, m := range metrics(o.Inbox) {
		if slices.Contains(o.Only, m.group) {
			rep.Rows = append(rep.Rows, newRow(o, m, r))
		}
	}
	return rep
}

func newRow(o options, m metric, r *results) row {
	line := row{ID: m.id, Title: m.title, Unit: m.unit, Against: m.against(), Values: map[string]summary{}}
	for _, target := range append(slices.Clone(o.Targets), targetBaseline) {
		if s, ok := r.summary(m.id, target); ok {
			line.Values[target] = s
		}
	}
	theirs := line.Values[line.Against].Median
	if ratios := r.ratios(m.id, line.Against); len(ratios) > 0 && theirs > 0 {
		line.Ratio = line.Values[targetPostern].Median / theirs
		line.RatioFrom, line.RatioTo = slices.Min(ratios), slices.Max(ratios)
	}
	if m.bar != nil {
		line.Bar = m.bar.text
		line.Verdict = line.verdict(o, m.bar)
	}
	if reason := r.leftOut[m.group]; reason != "" && len(line.Values) == 0 {
		line.Verdict, line.Note = verdictNotMeasured, reason
	}
	return line
}

// verdict judges the row. A value with errors behind it is not judged.
func (line row) verdict(o options, b *bar) string {
	needed := []string{targetPostern, line.Against}
	if b.absolute {
		needed = needed[:1]
	}
	for _, target := range needed {
		if target != targetBaseline && !slices.Contains(o.Targets, target) {
			return verdictNotAsked
		}
		s, ok := line.Values[target]
		if !ok {
			return verdictNotMeasured
		}
		if s.Errors > 0 {
			return verdictErrors
		}
	}
	if !b.absolute && line.Values[line.Against].Median <= 0 {
		return verdictNotMeasured // CPU time below one tick has no ratio
	}
	value := line.Ratio
	if b.absolute {
		value = line.Values[targetPostern].Median
	}
	if b.reached(value) {
		return verdictReached
	}
	return verdictMissed
}

// complete tells whether everything that was asked for was measured. A missed
// bar is a measurement like any other, and a row with a note was left out.
func (rep report) complete() bool {
	for _, line := range rep.Rows {
		if line.Verdict == verdictNotMeasured && line.Note == "" {
			return false
		}
	}
	return len(rep.Failures) == 0
}

// table is a part of the report whose rows are compared with the same target.
type table struct {
	targets []string // columns
	against string
	rows    []row
}

// tables are the parts that have rows.
func (rep report) tables() []table {
	all := []table{
		{targets: rep.Options.Targets, against: targetProxy2},
		{targets: []string{targetPostern, targetBaseline}, against: targetBaseline},
	}
	for i := range all {
		for _, line := range rep.Rows {
			if line.Against == all[i].against {
				all[i].rows = append(all[i].rows, line)
			}
		}
	}
	return slices.DeleteFunc(all, func(t table) bool { return len(t.rows) == 0 })
}

// cells are the row as text, in the order of heads.
func (line row) cells(targets []string) []string {
	cells := []string{line.Title, line.Unit}
	for _, target := range targets {
		s, ok := line.Values[target]
		switch {
		case !ok:
			cells = append(cells, "-")
		case s.Errors > 0:
			cells = append(cells, number(s.Median)+" !")
		default:
			cells = append(cells, number(s.Median))
		}
	}
	ratio, between := "-", "-"
	if line.Ratio > 0 {
		ratio = fmt.Sprintf("%.2fx", line.Ratio)
		between = fmt.Sprintf("%.2f-%.2f", line.RatioFrom, line.RatioTo)
	}
	verdict := line.Verdict
	if line.Note != "" {
		verdict += ": " + line.Note
	}
	return append(cells, ratio, between, line.Bar, verdict)
}

func (t table) heads() []string {
	all := append([]string{"measure", "unit"}, t.targets...)
	return append(all, "postern/"+t.against, "over runs", "required", "")
}

// number prints three or more significant digits and no exponent.
func number(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	case v >= 1:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

// print writes the table for a terminal.
func (rep report) print(out io.Writer) error {
	fmt.Fprintf(out, "\n%s\n%s\n\n", rep.Machine, rep.Options)
	for _, t := range rep.tables() {
		text := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(text, strings.Join(t.heads(), "\t"))
		for _, line := range t.rows {
			fmt.Fprintln(text, strings.Join(line.cells(t.targets), "\t"))
		}
		fmt.Fprintln(text)
		if err := text.Flush(); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "median of %d; ! = with errors; took %s\n", rep.Options.Runs, rep.Took)
	for _, failure := range rep.Failures {
		fmt.Fprintln(out, "FAILED:", failure)
	}
	return nil
}

// markdown writes the table for the documentation.
func (rep report) markdown(out io.Writer) {
	fmt.Fprintf(out, "Measured %s. %s. %s.\n\n", rep.Date.Format(time.DateOnly), rep.Machine, rep.Options)
	for i, t := range rep.tables() {
		if i > 0 {
			fmt.Fprintln(out)
		}
		columns := t.heads()
		fmt.Fprintf(out, "| %s |\n|%s\n", strings.Join(columns, " | "), strings.Repeat("---|", len(columns)))
		for _, line := range t.rows {
			cells := line.cells(t.targets)
			cells[0] = strings.TrimSpace(cells[0])
			fmt.Fprintf(out, "| %s |\n", strings.Join(cells, " | "))
		}
	}
	for _, failure := range rep.Failures {
		fmt.Fprintf(out, "\nFailed: %s\n", strings.ReplaceAll(failure, "\n", " "))
	}
}

// write fills the files that were asked for.
func (rep report) write(jsonPath, markdownPath string) error {
	if jsonPath != "" {
		text, err := json.MarshalIndent(rep, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(jsonPath, append(text, '\n'), 0o644); err != nil {
			return err
		}
	}
	if markdownPath != "" {
		var text strings.Builder
		rep.markdown(&text)
		return os.WriteFile(markdownPath, []byte(text.String()), 0o644)
	}
	return nil
}
