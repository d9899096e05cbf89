package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/api"
)

// nameColors are those of instances, one after the other. Red is for errors.
var nameColors = []string{cyan, green, yellow, "34", "35", "96", "92", "93"}

// widestName is where the column of names stops growing.
const widestName = 30

// printLine prints one line of an instance.
func (r *logReader) printLine(l *api.LogLine) {
	if r.json {
		r.c.printData(l, false)
		return
	}
	var b strings.Builder
	if l.Missed > 0 {
		b.WriteString(r.prefix(l, protocol.Line{Stream: "postern"}) + paint(r.c.color, yellow, count(l.Missed, "line")+" of "+line(l.Stream)+" were dropped here") + "\n")
	}
	b.WriteString(r.prefix(l, l.Line) + logText(l.Text, r.c.color))
	if l.Cut {
		b.WriteString(paint(r.c.color, dim, " …cut"))
	}
	b.WriteByte('\n')
	io.WriteString(r.c.out, b.String())
}

// prefix is when, who and which stream, up to the text.
func (r *logReader) prefix(l *api.LogLine, of protocol.Line) string {
	name := shorten(line(l.Instance), widestName)
	color := r.colors[name]
	if color == "" {
		color = nameColors[len(r.colors)%len(nameColors)]
		if len(r.colors) < maxBoots {
			r.colors[name] = color
		}
	}
	r.width = max(r.width, utf8.RuneCountInString(name))
	pad := strings.Repeat(" ", r.width-utf8.RuneCountInString(name))
	mark := paint(r.c.color, dim, "?")
	switch of.Stream {
	case "stdout":
		mark = paint(r.c.color, dim, "|")
	case "stderr":
		mark = paint(r.c.color, red, "!")
	case "postern":
		mark = paint(r.c.color, dim, "*")
	}
	return paint(r.c.color, dim, r.c.moment(l.At)) + " " + paint(r.c.color, color, name) + pad + " " + mark + " "
}

// moment is t as a line of a log has it.
func (c *console) moment(t time.Time) string {
	t, now := t.In(c.zone), c.now().In(c.zone)
	if t.Year() == now.Year() && t.YearDay() == now.YearDay() {
		return t.Format("15:04:05.000")
	}
	return t.Format("2006-01-02 15:04:05.000")
}

// logText is a line of an app as a terminal may have it. What apps write is outside
// data: everything that could move the cursor, change the title, or hide is written
// out as printable does. Colours are the one exception, where ours are on: those
// that can be read on any background stay, all others are left out, and none goes
// on behind the line.
func logText(s string, color bool) string {
	if !strings.Contains(s, "\x1b[") {
		return printable(s, "\t")
	}
	var b strings.Builder
	painted := false
	for s != "" {
		at := strings.Index(s, "\x1b[")
		if at < 0 {
			b.WriteString(printable(s, "\t"))
			break
		}
		b.WriteString(printable(s[:at], "\t"))
		codes, rest, ok := cutColor(s[at:])
		switch {
		case !ok:
			b.WriteString(`\x1b[`)
		case color:
			if kept := readable(codes); kept != "" {
				painted = true
				b.WriteString("\x1b[" + kept + "m")
			}
		}
		s = rest
	}
	if painted {
		b.WriteString("\x1b[0m")
	}
	return b.String()
}

// cutColor cuts what sets a colour (ECMA-48, SGR) off the beginning of s, which is
// \x1b[; for anything else, ok is false and only that is cut off.
func cutColor(s string) (codes, rest string, ok bool) {
	const most = 40
	body := s[len("\x1b["):]
	for i := 0; i < len(body) && i < most; i++ {
		switch c := body[i]; {
		case c == 'm':
			return body[:i], body[i+1:], true
		case c != ';' && (c < '0' || c > '9'):
			return "", body, false
		}
	}
	return "", body, false
}

// readable keeps of codes what cannot make text invisible: bold, italic, underline,
// the six colours that are neither black nor white, and their ends.
func readable(codes string) string {
	var kept []string
	list := strings.Split(codes, ";")
	for i := 0; i < len(list); i++ {
		n, err := strconv.Atoi(list[i])
		switch {
		case list[i] == "" || err == nil && n == 0:
			kept = append(kept, "0")
		case err != nil:
		case n == 38 || n == 48: // 5;N or 2;R;G;B follow, and are no codes of their own
			if i+1 < len(list) && list[i+1] == "2" {
				i += 4
			} else {
				i += 2
			}
		case n == 1 || n == 3 || n == 4 || n >= 22 && n <= 24 || n >= 31 && n <= 36 || n == 39 || n >= 91 && n <= 96:
			kept = append(kept, strconv.Itoa(n))
		}
	}
	return strings.Join(kept, ";")
}

// plainJSON is JSON with the characters in its strings escaped that could steer a
// terminal. Everything outside of strings is ASCII.
func plainJSON(s string) string {
	odd := func(r rune) bool { return r >= 0x7f && !unicode.IsGraphic(r) || r == utf8.RuneError }
	if strings.IndexFunc(s, odd) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		switch {
		case !odd(r):
			b.WriteRune(r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&b, `\u%04x\u%04x`, high, low)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}
