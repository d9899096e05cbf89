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

// row is one metric over all targets. Ratio is postern/proxy2 of the medians;
// RatioFrom and RatioTo are the extremes over single runs.
type row struct {
	ID        string             `json:"id"`
	Title     string             `json:"title"`
	Unit      string             `json:"unit"`
	Values    map[string]summary `json:"values"`
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
	for _, m := range metrics() {
		if slices.Contains(o.Only, m.group) {
			rep.Rows = append(rep.Rows, newRow(o, m, r))
		}
	}
	return rep
}

func newRow(o options, m metric, r *results) row {
	line := row{ID: m.id, Title: m.title, Unit: m.unit, Values: map[string]summary{}}
	for _, target := range o.Targets {
		if s, ok := r.summary(m.id, target); ok {
			line.Values[target] = s
		}
	}
	theirs := line.Values[targetProxy2].Median
	if ratios := r.ratios(m.id); len(ratios) > 0 && theirs > 0 {
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
	needed := []string{targetPostern, targetProxy2}
	if b.absolute {
		needed = needed[:1]
	}
	for _, target := range needed {
		if !slices.Contains(o.Targets, target) {
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
	if !b.absolute && line.Values[targetProxy2].Median <= 0 {
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

// cells are the row as text, in the order of heads.
func (line row) cells(o options) []string {
	cells := []string{line.Title, line.Unit}
	for _, target := range o.Targets {
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

func heads(o options) []string {
	all := append([]string{"measure", "unit"}, o.Targets...)
	return append(all, "postern/proxy2", "over runs", "required", "")
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
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, strings.Join(heads(rep.Options), "\t"))
	for _, line := range rep.Rows {
		fmt.Fprintln(table, strings.Join(line.cells(rep.Options), "\t"))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(out, "\nmedian of %d; ! = with errors; took %s\n", rep.Options.Runs, rep.Took)
	for _, failure := range rep.Failures {
		fmt.Fprintln(out, "FAILED:", failure)
	}
	return nil
}

// markdown writes the table for the documentation.
func (rep report) markdown(out io.Writer) {
	fmt.Fprintf(out, "Measured %s. %s. %s.\n\n", rep.Date.Format(time.DateOnly), rep.Machine, rep.Options)
	columns := heads(rep.Options)
	fmt.Fprintf(out, "| %s |\n|%s\n", strings.Join(columns, " | "), strings.Repeat("---|", len(columns)))
	for _, line := range rep.Rows {
		cells := line.cells(rep.Options)
		cells[0] = strings.TrimSpace(cells[0])
		fmt.Fprintf(out, "| %s |\n", strings.Join(cells, " | "))
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
