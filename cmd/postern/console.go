package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"
)

// console is where a command meets its user: the three streams, what is known of
// the terminal behind them, the clock and the interrupts. Tests make their own.
type console struct {
	in   io.Reader
	out  *output // results
	errs *output // all that is said besides

	inTerminal, outTerminal, errTerminal bool

	color, errColor bool       // of out, and of errs
	width           func() int // columns of out's terminal; 0: there is none
	errWidth        func() int // the same of errs

	now        func() time.Time
	pause      func(time.Duration) <-chan time.Time // time.After
	zone       *time.Location                       // of the times that people read
	interrupts <-chan os.Signal                     // Ctrl-C and SIGTERM
}

// newConsole is the process's own.
func newConsole(interrupts <-chan os.Signal) *console {
	width := func(f *os.File) func() int { return func() int { return terminalWidth(f) } }
	c := &console{
		in: os.Stdin, out: &output{w: os.Stdout}, errs: &output{w: os.Stderr},
		inTerminal: isTerminal(os.Stdin), outTerminal: isTerminal(os.Stdout), errTerminal: isTerminal(os.Stderr),
		width: width(os.Stdout), errWidth: width(os.Stderr),
		now: time.Now, pause: time.After, zone: time.Local, interrupts: interrupts,
	}
	// https://no-color.org
	colors := os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	c.color, c.errColor = colors && c.outTerminal, colors && c.errTerminal
	return c
}

// say writes one line for the user that is no result.
func (c *console) say(format string, args ...any) { fmt.Fprintf(c.errs, format+"\n", args...) }

// output is a writer that remembers its first error, after which it writes no
// more: the reader has gone, and whoever writes on asks Err when it suits.
type output struct {
	mu  sync.Mutex
	w   io.Writer
	err error
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err != nil {
		return 0, o.err
	}
	n, err := o.w.Write(p)
	o.err = err
	return n, err
}

// Err is why writing ended; nil while it goes on.
func (o *output) Err() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

// gone reports whether the reader of o closed it, as head does when it has seen
// enough. That is no failure.
func (o *output) gone() bool {
	err := o.Err()
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, io.ErrClosedPipe)
}

// The colours, as a terminal's own palette has them.
const (
	plain  = ""
	red    = "31"
	green  = "32"
	yellow = "33"
	cyan   = "36"
	dim    = "2"
	bold   = "1"
)

// paint is text in color where colours are on.
func paint(on bool, color, text string) string {
	if !on || color == plain || text == "" {
		return text
	}
	return "\x1b[" + color + "m" + text + "\x1b[0m"
}

// printable is s with all that could steer a terminal, or hide in it, written
// out: what is in an event comes from anybody. keep are control characters to
// leave as they are.
func printable(s, keep string) string {
	harmless := func(r rune) bool { return unicode.IsGraphic(r) || strings.ContainsRune(keep, r) }
	if utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool { return !harmless(r) }) < 0 {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case harmless(r):
			b.WriteRune(r)
		default:
			quoted := strconv.QuoteRuneToASCII(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		}
		i += n
	}
	return b.String()
}

// line is s as one printable line.
func line(s string) string { return printable(s, "") }

// shorten is s in at most width columns, with an ellipsis where it was cut.
func shorten(s string, width int) string {
	if utf8.RuneCountInString(s) <= width {
		return s
	}
	if width < 1 {
		return ""
	}
	runes := []rune(s)
	return string(runes[:width-1]) + "…"
}

// count is "1 event" or "2 events".
func count(n int, noun string) string {
	switch {
	case n == 1:
		return "1 " + noun
	case strings.HasSuffix(noun, "y"):
		noun = strings.TrimSuffix(noun, "y") + "ie"
	}
	return strconv.Itoa(n) + " " + noun + "s"
}

// size is n bytes as people say it.
func size(n int64) string {
	switch {
	case n < 1000:
		return fmt.Sprintf("%d B", n)
	case n < 1000*1000:
		return fmt.Sprintf("%.1f kB", float64(n)/1000)
	}
	return fmt.Sprintf("%.1f MB", float64(n)/1000/1000)
}

// span is d as people say it: one unit, or two where that matters.
func span(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%dms", max(d.Milliseconds(), 0))
	case d < 10*time.Second:
		return strings.Replace(fmt.Sprintf("%.1fs", d.Seconds()), ".0s", "s", 1)
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return units(d, time.Minute, "m", time.Second, "s")
	case d < 48*time.Hour:
		return units(d, time.Hour, "h", time.Minute, "m")
	}
	return units(d, 24*time.Hour, "d", time.Hour, "h")
}

// units is d in two units, or in one where the other is nothing.
func units(d, big time.Duration, bigName string, small time.Duration, smallName string) string {
	text := fmt.Sprintf("%d%s", d/big, bigName)
	if rest := d % big / small; rest > 0 {
		text += fmt.Sprintf("%d%s", rest, smallName)
	}
	return text
}
