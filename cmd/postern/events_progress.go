package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/posternhq/postern/protocol/api"
)

// progress shows how far a replay is: a bar that is drawn anew at a terminal,
// now and then a line elsewhere, a JSON line for each change with --json.
type progress struct {
	c     *console
	json  bool
	last  string    // what was shown
	moved time.Time // when something changed last
	said  time.Time // when the last line was written, where there is no bar
	hint  bool      // the user was told why it may stand still
	shown bool      // a bar is on the screen
}

const (
	progressEvery = 5 * time.Second  // between lines where there is no bar
	stillAfter    = 15 * time.Second // without change, the user wants to know why
)

func newProgress(c *console, json bool) *progress {
	return &progress{c: c, json: json, moved: c.now(), said: c.now()}
}

// update shows p.
func (g *progress) update(p api.Replay) {
	now := g.c.now()
	ended := p.Done + p.Dead + p.Cancelled
	text := fmt.Sprintf("%s %d %d %d %d", p.State, p.Made, p.Done, p.Dead, p.Cancelled)
	changed := text != g.last
	if changed {
		g.last, g.moved = text, now
	}
	if g.json {
		if changed {
			g.c.printJSONLine(p)
		}
		return
	}
	if !changed && !g.hint && now.Sub(g.moved) >= stillAfter && !finished(p) {
		g.hint = true
		g.clear()
		g.c.say("%s: the app is not connected, is slow, or fails and is tried again on its schedule;\n"+
			"postern events tail shows which. Ctrl-C cancels the rest; --detach would have left it to the relay.", waiting(p))
	}
	switch {
	case g.c.errTerminal:
		fmt.Fprint(g.c.errs, "\r"+g.bar(p, ended)+"\x1b[K")
		g.shown = true
	case changed && now.Sub(g.said) >= progressEvery && !finished(p):
		g.said = now
		g.c.say("%d of %d: %s", ended, p.Planned, tally(p))
	}
}

// waiting says what is still to come.
func waiting(p api.Replay) string {
	open := p.Planned - p.Done - p.Dead - p.Cancelled
	if open == 1 {
		return "1 delivery still waits"
	}
	return count(open, "delivery") + " still wait"
}

// tally is what came of the deliveries so far.
func tally(p api.Replay) string {
	text := fmt.Sprintf("%d delivered", p.Done)
	if open := p.Made - p.Done - p.Dead - p.Cancelled; open > 0 {
		text += fmt.Sprintf(", %d waiting", open)
	}
	if p.Dead > 0 {
		text += fmt.Sprintf(", %d dead", p.Dead)
	}
	if p.Cancelled > 0 {
		text += fmt.Sprintf(", %d cancelled", p.Cancelled)
	}
	return text
}

// bar is one line that fits the terminal.
func (g *progress) bar(p api.Replay, ended int) string {
	text := fmt.Sprintf(" %d of %d  %s", ended, p.Planned, tally(p))
	if left := p.Planned - p.Made; p.Rate > 0 && left > 0 && p.State == "running" {
		text += ", about " + span(time.Duration(float64(left)/p.Rate*float64(time.Second))) + " left"
	}
	width := g.c.errWidth()
	cells := min(width-len([]rune(text))-1, 30)
	if cells < 5 {
		return shorten(strings.TrimSpace(text), max(width-1, 1))
	}
	full := cells
	if p.Planned > 0 {
		full = min(cells*ended/p.Planned, cells)
	}
	return paint(g.c.errColor, green, strings.Repeat("█", full)) + paint(g.c.errColor, dim, strings.Repeat("░", cells-full)) + text
}

// clear takes the bar away, for a line to stand in its place.
func (g *progress) clear() {
	if g.shown {
		fmt.Fprint(g.c.errs, "\r\x1b[K")
		g.shown = false
	}
}
