package policies

import (
	"fmt"
	"slices"
	"strings"
)

// diffContext is how many equal lines surround a change.
const diffContext = 3

// maxDiffLines is how much of a diff is shown.
const maxDiffLines = 20_000

// lineDiff is the unified diff of two texts, without the names of files; nil when they
// are equal. It anchors on lines that are in both texts exactly once, in the longest
// common order of them, and extends from there: not always the shortest diff, but a
// readable one, in O(n log n).
func lineDiff(before, after string) []string {
	if before == after {
		return nil
	}
	d := differ{x: splitLines(before), y: splitLines(after)}
	for _, m := range anchors(d.x, d.y) {
		if m.x < d.at.x {
			continue // a match before has grown over it
		}
		start, end := m, m
		for start.x > d.at.x && start.y > d.at.y && d.x[start.x-1] == d.y[start.y-1] {
			start.x--
			start.y--
		}
		for end.x < len(d.x) && end.y < len(d.y) && d.x[end.x] == d.y[end.y] {
			end.x++
			end.y++
		}
		d.changed(start)
		d.equal(end)
	}
	d.changed(pair{len(d.x), len(d.y)})
	d.emit()
	if len(d.out) > maxDiffLines {
		more := len(d.out) - maxDiffLines
		d.out = append(slices.Clip(d.out[:maxDiffLines]), fmt.Sprintf("… %d more lines", more))
	}
	return d.out
}

func splitLines(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(s, "\n"), "\n")
}

// pair is a line of each text.
type pair struct{ x, y int }

// differ gathers hunks.
type differ struct {
	x, y []string
	at   pair // up to here, both are dealt with

	out   []string
	hunk  []string // the one being gathered; empty: none
	start pair     // of hunk
	ended pair     // of hunk, behind its last line
}

// changed deals with the lines up to end, none of which is in both.
func (d *differ) changed(end pair) {
	if d.at == end {
		return
	}
	if len(d.hunk) == 0 {
		n := min(diffContext, d.at.x, d.at.y)
		d.start = pair{d.at.x - n, d.at.y - n}
		for _, line := range d.x[d.start.x:d.at.x] {
			d.hunk = append(d.hunk, " "+line)
		}
	}
	for _, line := range d.x[d.at.x:end.x] {
		d.hunk = append(d.hunk, "-"+line)
	}
	for _, line := range d.y[d.at.y:end.y] {
		d.hunk = append(d.hunk, "+"+line)
	}
	d.at, d.ended = end, end
}

// equal deals with the lines up to end, which are the same in both. A hunk goes on over
// a few of them, when something comes behind.
func (d *differ) equal(end pair) {
	n := end.x - d.at.x
	if len(d.hunk) > 0 {
		show := n
		if n > 2*diffContext || end.x == len(d.x) && end.y == len(d.y) {
			show = min(n, diffContext)
		}
		for _, line := range d.x[d.at.x : d.at.x+show] {
			d.hunk = append(d.hunk, " "+line)
		}
		d.ended = pair{d.at.x + show, d.at.y + show}
		if show < n {
			d.emit()
		}
	}
	d.at = end
}

// emit ends the hunk.
func (d *differ) emit() {
	if len(d.hunk) == 0 {
		return
	}
	d.out = append(d.out, fmt.Sprintf("@@ -%s +%s @@", span(d.start.x, d.ended.x), span(d.start.y, d.ended.y)))
	d.out = append(d.out, d.hunk...)
	d.hunk = nil
}

// span is a range of lines as a hunk's head has it: from 1, or the line before when it
// is empty.
func span(start, end int) string {
	if end == start {
		return fmt.Sprintf("%d,0", start)
	}
	return fmt.Sprintf("%d,%d", start+1, end-start)
}

// anchors are the pairs of lines that are in x once and in y once, as many of them as
// come in the same order in both.
func anchors(x, y []string) []pair {
	type seen struct{ x, y, inX, inY int }
	lines := make(map[string]*seen, len(x))
	at := func(line string) *seen {
		s := lines[line]
		if s == nil {
			s = &seen{}
			lines[line] = s
		}
		return s
	}
	for i, line := range x {
		s := at(line)
		s.x, s.inX = i, s.inX+1
	}
	for i, line := range y {
		s := at(line)
		s.y, s.inY = i, s.inY+1
	}
	var unique []pair // by x
	for i, line := range x {
		if s := lines[line]; s.inX == 1 && s.inY == 1 {
			unique = append(unique, pair{i, s.y})
		}
	}
	return ascending(unique)
}

// ascending is the longest part of pairs, which ascend in x, that ascends in y as well.
func ascending(pairs []pair) []pair {
	var tails []int // tails[n]: the pair with the least y that ends a run of n+1
	before := make([]int, len(pairs))
	for i, p := range pairs {
		n, _ := slices.BinarySearchFunc(tails, p.y, func(t, y int) int { return pairs[t].y - y })
		before[i] = -1
		if n > 0 {
			before[i] = tails[n-1]
		}
		if n == len(tails) {
			tails = append(tails, i)
		} else {
			tails[n] = i
		}
	}
	run := make([]pair, len(tails))
	if len(tails) == 0 {
		return run
	}
	for n, i := len(tails)-1, tails[len(tails)-1]; n >= 0; n, i = n-1, before[i] {
		run[n] = pairs[i]
	}
	return run
}
