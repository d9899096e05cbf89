package instances

import (
	"fmt"
	"hash/maphash"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/relay"
)

// What a record holds at most. Sockets and findings come in one message each, so
// protocol.MaxFrame bounds them.
const (
	maxLines  = 200
	maxText   = 64 << 10 // bytes of all lines together
	maxPoints = 120      // of the memory curve
	maxReason = 512      // bytes of an exit's sentence
	maxName   = 32       // bytes of a stream's or a signal's name

	pointsApart = time.Second // samples that come faster become one
)

// key tells an instance from all others.
type key struct {
	app      relay.AppID
	instance string
	boot     string
}

// record is what is known of one boot of an instance. Tracker.mu guards it.
type record struct {
	key
	hello   protocol.Hello
	started time.Time // of its first stream
	heard   time.Time // when the last message came

	serving *server   // the stream that feeds it; nil while there is none
	lost    time.Time // since when there is none
	leaving bool      // it was draining when its stream ended

	lines  []protocol.Line // oldest first
	text   int             // bytes of lines
	memory []relay.MemoryPoint
	vitals *protocol.Vitals // replaced whole, never changed

	findings []protocol.Finding // replaced whole, never changed
}

// add takes one report in, except its exit. now is the relay's.
func (r *record) add(rep protocol.Report, again *resent, now time.Time) {
	r.heard = now
	for _, l := range rep.Lines {
		if l = tidyLine(l, now); !again.has(l) {
			r.addLine(l)
		}
	}
	if v := rep.Vitals; v != nil {
		v.At = tidyTime(v.At, now)
		v.RSS, v.Limit = max(v.RSS, 0), max(v.Limit, 0)
		r.vitals = v
		r.addPoint(relay.MemoryPoint{At: now, RSS: v.RSS})
	}
	if f := rep.Findings; f != nil {
		r.findings = f.List
	}
}

func (r *record) addLine(l protocol.Line) {
	r.lines = append(r.lines, l)
	r.text += len(l.Text)
	drop := 0
	for len(r.lines)-drop > maxLines || r.text > maxText {
		r.text -= len(r.lines[drop].Text)
		drop++
	}
	r.lines = slices.Delete(r.lines, 0, drop)
}

// addPoint adds to the curve. A full one is thinned where it is oldest: of each
// two points the higher one stays, so that peaks do.
func (r *record) addPoint(p relay.MemoryPoint) {
	if n := len(r.memory); n > 0 && p.At.Sub(r.memory[n-1].At) < pointsApart {
		r.memory[n-1].RSS = max(r.memory[n-1].RSS, p.RSS)
		return
	}
	r.memory = append(r.memory, p)
	if len(r.memory) <= maxPoints {
		return
	}
	const half = maxPoints / 2
	for i := range half / 2 {
		a, b := r.memory[2*i], r.memory[2*i+1]
		if b.RSS > a.RSS {
			a = b
		}
		r.memory[i] = a
	}
	r.memory = slices.Delete(r.memory, half/2, half)
}

// resent finds lines that a stream which was opened again brings once more: an
// agent begins with what it keeps.
type resent struct {
	until  time.Time       // lines later than this one are new
	oldest time.Time       // lines before it were there and are forgotten
	there  map[uint64]bool // hashes of the others
	seed   maphash.Seed
}

// resentOf is what r has already; nil when that is nothing.
func resentOf(r *record) *resent {
	if len(r.lines) == 0 {
		return nil
	}
	a := &resent{oldest: r.lines[0].At, until: r.lines[0].At, there: make(map[uint64]bool, len(r.lines)), seed: maphash.MakeSeed()}
	for _, l := range r.lines {
		a.there[a.hash(l)] = true
		if l.At.After(a.until) {
			a.until = l.At
		}
		if l.At.Before(a.oldest) {
			a.oldest = l.At
		}
	}
	return a
}

func (a *resent) has(l protocol.Line) bool {
	if a == nil || l.At.After(a.until) {
		return false
	}
	return l.At.Before(a.oldest) || a.there[a.hash(l)]
}

// hash is equal for two copies of a line.
func (a *resent) hash(l protocol.Line) uint64 {
	return maphash.String(a.seed, fmt.Sprintf("%d %s %s", l.At.UnixNano(), l.Stream, l.Text))
}

// tidyLine is l with nothing in it that cannot be stored or shown later.
func tidyLine(l protocol.Line, now time.Time) protocol.Line {
	l.At, l.Stream, l.Missed = tidyTime(l.At, now), tidyStream(l.Stream), max(l.Missed, 0)
	return l
}

// tidyStream is one of the names there are.
func tidyStream(name string) string {
	switch name {
	case "stdout", "stderr", "postern":
		return name
	}
	return "other"
}

// tidyTime is the agent's word for when something was, unless it cannot be true.
// JSON has no years beyond 9999, and an agent must not choose what comes first.
func tidyTime(at, now time.Time) time.Time {
	at = at.UTC()
	if at.Year() < 2000 || at.After(now.Add(24*time.Hour)) {
		return now.UTC()
	}
	return at
}

// clip is s in at most n bytes.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
