package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/api"
)

// mostEarlier is how many ends are listed besides the latest.
const mostEarlier = 19

// lastWords asks how instances ended, newest first.
func (c *apiClient) lastWords(ctx context.Context, instance string, limit int) ([]api.LastWords, error) {
	query := url.Values{"limit": {strconv.Itoa(limit)}}
	if instance != "" {
		query.Set("instance", instance)
	}
	list := api.LastWordsList{}
	err := c.call(ctx, apiRequest{path: []string{"lastwords"}, query: query, ofApp: true}, &list, maxAnswer)
	return list.LastWords, err
}

// showLastWords is postern logs --last-words.
func (c *apiClient) showLastWords(ctx context.Context, at *console, instance string, lines int, asJSON bool) (int, error) {
	all, err := c.lastWords(ctx, instance, mostEarlier+1)
	if err != nil {
		return exitFailed, err
	}
	if asJSON {
		return exitOK, at.printData(append([]api.LastWords{}, all...), true)
	}
	r := newLogReader(at, c, instance, lines, false, false)
	if len(all) == 0 {
		return exitFailed, errors.New("the relay knows of no end of an instance" + of(r.whose()))
	}
	r.printLastWords(&all[0], lines)
	if len(all) == 1 {
		return exitOK, nil
	}
	at.say("\nbefore that")
	for _, w := range all[1:] {
		at.say("  %s  %s  %s", at.clock(w.EndedAt), line(w.App+"/"+w.Instance), line(w.Reason))
	}
	return exitOK, nil
}

func of(whose string) string {
	if whose == "" {
		return ""
	}
	return " of " + whose
}

// printLastWords prints how an instance ended to standard error, and its last lines,
// at most n of them, to standard output.
func (r *logReader) printLastWords(w *api.LastWords, n int) {
	r.c.say("%s", r.c.obituary(w))
	for _, l := range w.Lines[max(len(w.Lines)-n, 0):] {
		r.printLine(&api.LogLine{Instance: w.Instance, BootID: w.BootID, Line: l})
	}
}

// obituary is all about w but its lines.
func (c *console) obituary(w *api.LastWords) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s ended %s ago, at %s", paint(c.errColor, bold, line(w.App+"/"+w.Instance)),
		c.ago(w.EndedAt), w.EndedAt.In(c.zone).Format("2006-01-02 15:04:05 MST"))
	var about []string
	for _, fact := range []string{w.Platform, w.Process, label("release ", w.Release), label("commit ", shorten(w.Commit, 12)), w.Region} {
		if fact != "" {
			about = append(about, line(fact))
		}
	}
	if up := w.EndedAt.Sub(w.StartedAt); up > 0 && !w.StartedAt.IsZero() {
		about = append(about, "seen for "+span(up))
	}
	if len(about) > 0 {
		b.WriteString(" (" + strings.Join(about, ", ") + ")")
	}
	b.WriteByte('\n')
	color := red
	if e := w.Exit; e != nil && e.Asked && e.Code != 137 {
		color = plain
	}
	fact := func(name, text string) { fmt.Fprintf(&b, "  %-8s %s\n", name, text) }
	fact("how", paint(c.errColor, color, line(w.Reason)))
	fact("exit", exitWords(w.Exit))
	if curve := memoryWords(w); curve != "" {
		fact("memory", curve)
	}
	if sockets := socketWords(w.Sockets); sockets != "" {
		fact("sockets", sockets)
	}
	for _, f := range w.Findings {
		fact("finding", paint(c.errColor, severityColor(f.Severity), findingWords(f)))
		if f.Fix != "" {
			fact("", "fix: "+line(f.Fix))
		}
	}
	return strings.TrimSuffix(b.String(), "\n")
}

func label(name, value string) string {
	if value == "" {
		return ""
	}
	return name + value
}

// exitWords is what the agent said of the app's end.
func exitWords(e *protocol.Exit) string {
	if e == nil {
		return "the agent could not say"
	}
	text := "code " + strconv.Itoa(e.Code)
	if e.Signal != "" {
		text += ", " + line(e.Signal)
	}
	if e.Asked {
		text += ", a stop was under way"
	}
	return text
}

// findingWords is a finding in one line.
func findingWords(f protocol.Finding) string {
	text := line(f.Code) + " " + line(string(f.Severity)) + ": " + line(f.Cause)
	if f.Evidence != "" {
		text += " (" + line(f.Evidence) + ")"
	}
	return text
}

func severityColor(s protocol.Severity) string {
	switch s {
	case protocol.SeverityError:
		return red
	case protocol.SeverityWarning:
		return yellow
	}
	return plain
}

// memoryWords is the curve of memory, and what it was at the end.
func memoryWords(w *api.LastWords) string {
	if len(w.Memory) == 0 {
		return ""
	}
	end := w.Memory[len(w.Memory)-1]
	var most int64
	for _, p := range w.Memory {
		most = max(most, p.RSS)
	}
	text := sparkline(w.Memory, w.Limit) + "  " + mebibytes(end.RSS)
	if w.Limit > 0 {
		text += " of " + mebibytes(w.Limit)
	}
	text += " at the end"
	if most > end.RSS {
		text += ", " + mebibytes(most) + " at most"
	}
	if over := end.At.Sub(w.Memory[0].At); over > 0 {
		text += ", over " + span(over)
	}
	return text
}

// mebibytes is n bytes of memory as platforms count it.
func mebibytes(n int64) string { return fmt.Sprintf("%d MiB", n>>20) }

// sparks are the heights of a sparkline.
var sparks = []rune("▁▂▃▄▅▆▇█")

// sparkWidth is the most columns that a sparkline has.
const sparkWidth = 40

// sparkline draws points over equal spans of time; each column is the highest point
// of its span, or as high as the one before. It ends at limit, or at the highest
// point when there is none.
func sparkline(points []api.MemoryPoint, limit int64) string {
	top := limit
	for _, p := range points {
		top = max(top, p.RSS)
	}
	first, last := points[0].At, points[len(points)-1].At
	width := min(sparkWidth, len(points))
	columns := make([]int64, width)
	for i := range columns {
		columns[i] = -1
	}
	for _, p := range points {
		at := width - 1
		if whole := last.Sub(first); whole > 0 {
			at = int(float64(width-1) * (float64(p.At.Sub(first)) / float64(whole)))
		}
		at = min(max(at, 0), width-1) // times need not be in order
		columns[at] = max(columns[at], p.RSS)
	}
	var b strings.Builder
	var before int64
	for _, v := range columns {
		if v < 0 {
			v = before
		}
		before = v
		height := 0
		if top > 0 {
			height = int(float64(v)/float64(top)*float64(len(sparks)-1) + 0.5)
		}
		b.WriteRune(sparks[min(max(height, 0), len(sparks)-1)])
	}
	return b.String()
}

// mostSockets is how many lines of sockets are shown.
const mostSockets = 8

// socketWords is the sockets: who listens where, and the connections by state and
// peer, the most frequent first.
func socketWords(sockets []protocol.Socket) string {
	type peer struct{ state, remote string }
	counts := map[peer]int{}
	var words []string
	for _, s := range sockets {
		if s.State == "LISTEN" {
			words = append(words, line(fmt.Sprintf("LISTEN %s (pid %d)", s.Local, s.PID)))
			continue
		}
		counts[peer{s.State, s.Remote}]++
	}
	slices.Sort(words)
	peers := make([]peer, 0, len(counts))
	for p := range counts {
		peers = append(peers, p)
	}
	slices.SortFunc(peers, func(a, b peer) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a.state, b.state), cmp.Compare(a.remote, b.remote))
	})
	for _, p := range peers {
		text := line(p.state + " " + p.remote)
		if n := counts[p]; n > 1 {
			text += fmt.Sprintf(" ×%d", n)
		}
		words = append(words, text)
	}
	if more := len(words) - mostSockets; more > 0 {
		words = append(words[:mostSockets], fmt.Sprintf("and %d more", more))
	}
	return strings.Join(words, ", ")
}

// ago is how long before now t was.
func (c *console) ago(t time.Time) string {
	if d := c.now().Sub(t); d >= time.Second {
		return span(d)
	}
	return "0s"
}
