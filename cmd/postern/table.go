package main

import (
	"io"
	"strings"
	"unicode/utf8"
)

// column is one column of a table.
type column struct {
	title string
	min   int  // a narrow terminal may shorten it to this; 0: never
	drop  int  // what a still narrower one leaves out first has the highest number; 0: never
	right bool // set to the right, as numbers are
}

// cell is one text of a table, and its colour.
type cell struct{ text, color string }

// table is rows below titles. It is as wide as its contents where nobody says
// how wide it may be.
type table struct {
	columns []column
	rows    [][]cell
}

// gap is between two columns.
const gap = "  "

func (t *table) add(cells ...cell) { t.rows = append(t.rows, cells) }

// write prints t in at most width columns; 0 is without limit.
func (t *table) write(w io.Writer, width int, color bool) {
	widths := t.fit(width)
	head := make([]cell, len(t.columns))
	for i, c := range t.columns {
		head[i] = cell{c.title, dim}
	}
	var b strings.Builder
	for _, row := range append([][]cell{head}, t.rows...) {
		t.writeRow(&b, row, widths, color)
	}
	io.WriteString(w, b.String())
}

// fit finds how wide each column is; -1 is one that is left out.
func (t *table) fit(width int) []int {
	widths := make([]int, len(t.columns))
	for i, c := range t.columns {
		widths[i] = utf8.RuneCountInString(c.title)
		for _, row := range t.rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i].text))
		}
	}
	for width > 0 && total(widths) > width {
		if !t.narrow(widths, total(widths)-width) && !t.leaveOut(widths) {
			break
		}
	}
	return widths
}

func total(widths []int) int {
	sum := -len(gap)
	for _, w := range widths {
		if w >= 0 {
			sum += w + len(gap)
		}
	}
	return sum
}

// narrow takes one column of excess from the widest column that may be
// shortened; false when there is none.
func (t *table) narrow(widths []int, excess int) bool {
	widest, room := -1, 0
	for i, c := range t.columns {
		if c.min > 0 && widths[i] > c.min && widths[i] > room {
			widest, room = i, widths[i]
		}
	}
	if widest < 0 || excess < 1 {
		return false
	}
	widths[widest]--
	return true
}

// leaveOut drops the column that is missed least; false when none may go. What
// was shortened for it gets its room back by the next fit, so all start anew.
func (t *table) leaveOut(widths []int) bool {
	least := -1
	for i, c := range t.columns {
		if c.drop > 0 && widths[i] >= 0 && (least < 0 || c.drop > t.columns[least].drop) {
			least = i
		}
	}
	if least < 0 {
		return false
	}
	for i, c := range t.columns {
		if widths[i] < 0 {
			continue
		}
		widths[i] = utf8.RuneCountInString(c.title)
		for _, row := range t.rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i].text))
		}
	}
	widths[least] = -1
	return true
}

func (t *table) writeRow(b *strings.Builder, row []cell, widths []int, color bool) {
	var space string // before the next text; none at the end of the line
	first := true
	for i, c := range row {
		if widths[i] < 0 {
			continue
		}
		if !first {
			space += gap
		}
		first = false
		text := shorten(c.text, widths[i])
		pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(text))
		if t.columns[i].right {
			space, pad = space+pad, ""
		}
		if text != "" {
			b.WriteString(space + paint(color, c.color, text))
			space = ""
		}
		space += pad
	}
	b.WriteByte('\n')
}
