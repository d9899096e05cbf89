package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/posternhq/postern/protocol/api"
)

var diffVerb = eventVerb{
	name: "manifest diff", about: "what a new text would change: its lines, and the verdicts on recorded calls", usage: "[flags] -f FILE",
	examples: `postern manifest diff -f postern.yaml
postern manifest diff -f postern.yaml --since 7d
postern manifest diff -f postern.yaml --check || echo it would refuse what is allowed now
git show HEAD~1:postern.yaml | postern manifest diff -f -`,
	notes: `-f is --file. Nothing is applied. The calls that the relay has recorded are judged by
the new text, and those are listed whose verdict would be another.`,
	run: diffManifest,
}

// errWouldRefuse is what --check ends with.
var errWouldRefuse = errors.New("calls that are allowed now would be refused")

// diffManifest is postern manifest diff.
func diffManifest(ctx context.Context, c *console, v eventVerb, args []string) (int, error) {
	f := newManifestFlags(v)
	file := f.fileFlag()
	since := f.span("since", "judge the calls of the last `TIME`: 24h, 7d; default 24h")
	check := f.yes("check", "exit code 1 when a call that is allowed now would be refused")
	f.asJSON("print the difference as the API has it")
	if err := f.parse(c.out, longNames(args, map[string]string{"-f": "--file"})); err != nil {
		return exitUsage, err
	}
	if err := f.none(); err != nil {
		return exitUsage, err
	}
	return c.diff(ctx, f, *file, *since, *check)
}

// diff shows what the text in file would change.
func (c *console) diff(ctx context.Context, f *callFlags, file string, since time.Duration, check bool) (int, error) {
	if file == "" {
		_, err := c.readSource(f, "")
		return exitUsage, err
	}
	client, err := f.api()
	if err != nil {
		return exitUsage, err
	}
	text, err := c.readSource(f, file)
	if err != nil {
		return exitFailed, err
	}
	if since == 0 {
		since = diffDefault
	}
	var d api.ManifestDiff
	req := apiRequest{method: http.MethodPost, path: []string{"manifest", "diff"},
		body: api.ManifestRequest{Source: text.text, SinceMS: since.Milliseconds()}}
	if err := c.order(ctx, client, req, &d); err != nil {
		return exitFailed, text.explain(err)
	}
	code := exitOK
	if check && refuses(&d) {
		code, err = exitFailed, errWouldRefuse
	}
	if *f.json {
		return code, errors.Join(c.printData(d, true), err)
	}
	c.printDiff(&d, text.name)
	return code, err
}

// refuses reports whether what is allowed now would be refused.
func refuses(d *api.ManifestDiff) bool {
	for _, f := range d.Flips {
		if f.From != "deny" && f.To == "deny" {
			return true
		}
	}
	return false
}

// printDiff prints the lines and then the calls.
func (c *console) printDiff(d *api.ManifestDiff, name string) {
	if len(d.Lines) == 0 {
		c.say("%s is the text of the running version %d", name, d.Base)
	}
	for _, l := range d.Lines {
		text := printable(strings.TrimRight(l, "\n"), "\t")
		color := plain
		switch {
		case strings.HasPrefix(text, "+++"), strings.HasPrefix(text, "---"):
			color = bold
		case strings.HasPrefix(text, "+"):
			color = green
		case strings.HasPrefix(text, "-"):
			color = red
		case strings.HasPrefix(text, "@@"):
			color = cyan
		}
		fmt.Fprintln(c.out, paint(c.color, color, text))
	}
	if d.Since.IsZero() {
		return
	}
	if len(d.Lines) > 0 {
		fmt.Fprintln(c.out)
	}
	fmt.Fprintf(c.out, "%s since %s: %s\n", count(int(d.Calls), "recorded call"), d.Since.In(c.zone).Format("2006-01-02 15:04"), flipWords(d.Flips))
	if len(d.Flips) > 0 {
		c.flipTable(d.Flips).write(c.out, c.width(), c.color)
	}
	c.sayIncomplete(d.Incomplete)
}

// flipWords says how many verdicts would be others.
func flipWords(flips []api.Flip) string {
	var refused, other int64
	for _, f := range flips {
		if f.To == "deny" {
			refused += f.Calls
		} else {
			other += f.Calls
		}
	}
	switch {
	case refused == 0 && other == 0:
		return "no verdict would change"
	case other == 0:
		return fmt.Sprintf("%d would be refused", refused)
	case refused == 0:
		return fmt.Sprintf("none would be refused, %d would be judged otherwise", other)
	}
	return fmt.Sprintf("%d would be refused, %d would be judged otherwise", refused, other)
}

func (c *console) flipTable(flips []api.Flip) *table {
	t := &table{columns: []column{
		{title: "APP", min: 5}, {title: "CALL", min: 16}, {title: "CALLS", right: true}, {title: "LAST", drop: 2},
		{title: "NOW"}, {title: "THEN"}, {title: "BY", min: 8}, {title: "WHY", min: 12, drop: 1},
	}}
	for _, f := range flips {
		call := line(f.Target)
		if f.Method != "" {
			call = line(f.Method) + " " + call
		}
		by := line(f.Rule)
		if f.Line > 0 {
			by = "line " + strconv.Itoa(f.Line) + ", " + by
		}
		t.add(cell{line(f.App), plain}, cell{call, plain}, cell{strconv.FormatInt(f.Calls, 10), plain}, cell{c.clock(f.LastSeen), plain},
			cell{line(f.From), verdictColor(f.From)}, cell{line(f.To), verdictColor(f.To)}, cell{by, plain}, cell{line(f.Reason), plain})
	}
	return t
}
