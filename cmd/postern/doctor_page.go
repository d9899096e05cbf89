package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/posternhq/postern/agent"
	"github.com/posternhq/postern/agent/platform"
	"github.com/posternhq/postern/protocol"
)

// doctorPage is the report as people read it.
type doctorPage struct {
	*console
	m         platform.Mimicry
	r         *agent.Rehearsal
	rehearsed bool // the app was run for it, and stopped
	b         strings.Builder
}

func (p *doctorPage) write() {
	for _, f := range p.r.Findings {
		p.finding(f)
	}
	p.start()
	if p.rehearsed {
		p.end()
	}
	p.sum()
	p.out.Write([]byte(p.b.String()))
}

// finding is a line for the mistake, and one each for what proves it and mends it.
func (p *doctorPage) finding(f protocol.Finding) {
	color := map[protocol.Severity]string{protocol.SeverityError: red, protocol.SeverityWarning: yellow}[f.Severity]
	p.row(paint(p.color, bold, line(f.Code)), paint(p.color, color, fmt.Sprintf("%-8s", line(string(f.Severity)))), f.Cause, color)
	p.row("", "seen", f.Evidence, plain)
	fix := f.Fix
	if f.Framework != "" && slices.Contains(frameworkCodes, f.Code) {
		fix = f.Framework + ": " + fix
	}
	p.row("", "fix", fix, green)
	p.row("", "more", doctorDocs+"#"+strings.ToLower(f.Code), dim)
	p.b.WriteByte('\n')
}

// frameworkCodes are those whose fix is in the app's own code or its command; the
// others are mended at the platform.
var frameworkCodes = []string{"PORT02", "PORT03", "PORT04", "PORT05", "PORT13", "PORT14", "PORT15", "EGR01", "EGR02", "EGR04"}

// doctorIndent is where the texts begin: behind a code and a word.
const doctorIndent = len("PORT00  warning   ")

// row is one text behind its code and its word.
func (p *doctorPage) row(code, word, text, color string) {
	if text == "" {
		return
	}
	if code == "" {
		code = "      "
	}
	lines := []string{line(text)}
	if w := p.width() - doctorIndent; p.width() > 0 && w >= 20 && color != dim {
		lines = wrap(line(text), w)
	}
	for i := range lines {
		lines[i] = paint(p.color, color, lines[i])
	}
	fmt.Fprintf(&p.b, "%s  %-8s  %s\n", code, word, strings.Join(lines, "\n"+strings.Repeat(" ", doctorIndent)))
}

// start says whether and when the app was ready.
func (p *doctorPage) start() {
	boot := time.Duration(p.r.BootMS) * time.Millisecond
	switch {
	case p.r.Ready && !p.rehearsed:
		p.good("ready on port %d", p.r.Port)
	case p.r.Ready:
		p.good("ready after %s on port %d", seconds(boot), p.r.Port)
	case p.r.Exit != nil && !p.r.Exit.Asked:
		p.bad("%s after %s, before it was ready on port %d", p.exit(), seconds(boot), p.r.Port)
	case !p.rehearsed:
		p.bad("not ready%s", p.onPort())
	default:
		p.bad("not ready after %s on port %d", seconds(boot), p.r.Port)
	}
	if p.rehearsed && !p.r.Ready && p.r.StopSignal != "" {
		p.plainly("%s would say: %s", p.m.Says, p.m.BootFailure)
	}
}

func (p *doctorPage) onPort() string {
	if p.r.Port == 0 {
		return ""
	}
	return fmt.Sprintf(" on port %d", p.r.Port)
}

// exit is how the app ended by itself.
func (p *doctorPage) exit() string {
	if reason := line(p.r.Exit.Reason); reason != "" {
		return reason
	}
	return fmt.Sprintf("exited with code %d", p.r.Exit.Code)
}

// end says how the app took being told to stop.
func (p *doctorPage) end() {
	took := time.Duration(p.r.StopMS) * time.Millisecond
	switch {
	case p.r.StopSignal == "": // it had ended by itself
	case p.r.Obeyed && p.r.Untrapped:
		p.good("stopped in %s after %s, which it does not handle: open requests are cut", seconds(took), p.r.StopSignal)
	case p.r.Obeyed:
		p.good("stopped in %s after %s", seconds(took), p.r.StopSignal)
	case took <= p.m.Grace:
		p.bad("killed %s after %s, without having been told", seconds(took), p.r.StopSignal)
	case p.r.Exit != nil && p.r.Exit.Signal == "SIGKILL":
		p.bad("still running %s after %s; %s waits %s", seconds(took), p.r.StopSignal, p.m.Says, seconds(p.m.Grace))
	default:
		p.bad("stopped in %s after %s; %s waits %s", seconds(took), p.r.StopSignal, p.m.Says, seconds(p.m.Grace))
	}
}

// sum is the last line.
func (p *doctorPage) sum() {
	var errors, warnings int
	for _, f := range p.r.Findings {
		switch f.Severity {
		case protocol.SeverityError:
			errors++
		case protocol.SeverityWarning:
			warnings++
		}
	}
	switch {
	case errors+warnings > 0:
		p.plainly("%s, %s", count(errors, "error"), count(warnings, "warning"))
	case p.rehearsed && p.r.Ready:
		p.plainly("nothing to fix: it would come up on %s", p.m.Says)
	case p.r.Ready:
		p.plainly("nothing to fix")
	}
}

func (p *doctorPage) good(format string, args ...any)    { p.mark(green, "✓", format, args...) }
func (p *doctorPage) bad(format string, args ...any)     { p.mark(red, "✗", format, args...) }
func (p *doctorPage) plainly(format string, args ...any) { p.mark(plain, " ", format, args...) }

func (p *doctorPage) mark(color, mark, format string, args ...any) {
	fmt.Fprintf(&p.b, "%s %s\n", paint(p.color, color, mark), fmt.Sprintf(format, args...))
}

// seconds is d as the report has times: 0.8 s.
func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }
