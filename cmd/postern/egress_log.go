package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/api"
)

var callsVerb = eventVerb{
	name: "egress log", about: "the latest calls, what was decided, and how they ended", usage: "[flags]",
	examples: `postern egress log --app shop
postern egress log -f --verdict deny
postern egress log --target api.stripe.com --limit 500
postern egress log --json -f | jq -r 'select(.first_seen).target'`,
	notes: `-f is --follow and -n is --limit. The oldest call comes first. With --follow a call
is shown when it is decided and, unless it was refused, once more when it is over;
without, once. The relay keeps the latest calls in its memory; sums over longer times
are in postern egress usage.`,
	run: showCalls,
}

const (
	callsDefault = 50   // calls, without --limit
	callsMost    = 1000 // the relay's own limit
)

// showCalls is postern egress log.
func showCalls(ctx context.Context, c *console, v eventVerb, args []string) (int, error) {
	f := newCallFlags(v)
	follow := f.yes("follow", "go on with the calls from now on, until Ctrl-C")
	verdict := f.str("verdict", "only calls with this `VERDICT`: allow, report or deny")
	target := f.str("target", "only calls to this `HOST` or host:port")
	limit := f.number("limit", fmt.Sprintf("begin with the latest `N` calls, 1 to %d; default %d", callsMost, callsDefault), 1, callsMost)
	f.asJSON("print JSON lines, as the API's stream has them")
	if err := f.parse(c.out, longNames(args, map[string]string{"-f": "--follow", "-n": "--limit"})); err != nil {
		return exitUsage, err
	}
	if err := f.none(); err != nil {
		return exitUsage, err
	}
	if *verdict != "" && !slices.Contains([]string{"allow", "report", "deny"}, *verdict) {
		return exitUsage, usagef("--verdict %q: expected allow, report or deny", *verdict)
	}
	client, err := f.api()
	if err != nil {
		return exitUsage, err
	}
	l := &callLog{again: again{c: c, wait: sleep}, client: client, verdict: *verdict, target: strings.ToLower(*target), json: *f.json, seen: map[string]bool{}}
	ctx, stop := c.interruptible(ctx)
	defer stop()
	if *follow {
		if err := l.follow(ctx, int(cmp.Or(*limit, callsDefault))); !errors.Is(err, context.Canceled) {
			return exitFailed, err
		}
		return exitOK, nil
	}
	flows, err := l.latest(ctx, int(cmp.Or(*limit, callsDefault)))
	if err != nil {
		return exitFailed, err
	}
	if len(flows) == 0 && !*f.json {
		c.say("no call%s is in the relay's memory", map[bool]string{true: " of this kind"}[*verdict != "" || *target != ""])
	}
	for i := range flows {
		l.print(&flows[i], flows[i].StartedAt)
	}
	return exitOK, nil
}

// callLog prints calls. One goroutine uses it.
type callLog struct {
	again
	client  *apiClient
	verdict string // "" is all
	target  string // "" is all
	json    bool

	widths [3]int // of the columns so far

	// Of one that follows, see egress_follow.go.
	seen  map[string]bool // what was shown, by mark
	marks []string        // the same, oldest first
}

// latest asks for the latest calls, at most limit, and puts the oldest first. Of a
// call that is over, only its end is there.
func (l *callLog) latest(ctx context.Context, limit int) ([]protocol.Flow, error) {
	query := url.Values{"limit": {strconv.Itoa(limit)}}
	for name, value := range map[string]string{"verdict": l.verdict, "target": l.target} {
		if value != "" {
			query.Set(name, value)
		}
	}
	var list api.FlowList
	if err := l.client.call(ctx, apiRequest{path: []string{"egress", "flows"}, query: query, ofApp: true}, &list, maxAnswer); err != nil {
		return nil, err
	}
	over := map[string]bool{}
	for _, f := range list.Flows {
		over[f.ID] = over[f.ID] || f.Ended
	}
	flows := slices.DeleteFunc(list.Flows, func(f protocol.Flow) bool { return !f.Ended && over[f.ID] })
	slices.Reverse(flows)
	slices.SortStableFunc(flows, func(a, b protocol.Flow) int { return a.StartedAt.Compare(b.StartedAt) })
	return flows, nil
}

// matches reports whether f is one that was asked for; the stream has all.
func (l *callLog) matches(f *protocol.Flow) bool {
	if l.verdict != "" && f.Verdict != l.verdict {
		return false
	}
	if l.target == "" || f.Target == l.target {
		return true
	}
	host, _, ok := cutPort(f.Target)
	return ok && strings.Trim(host, "[]") == strings.Trim(l.target, "[]")
}

// cutPort takes host:port apart; the host keeps its brackets.
func cutPort(s string) (host, port string, ok bool) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 || strings.HasSuffix(s, "]") {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}

// callWidths are those of the columns before anything is in them.
var callWidths = [3]int{len("shop/web.1"), len("refused"), 24}

// print prints one line about f, with the time at.
func (l *callLog) print(f *protocol.Flow, at time.Time) {
	if l.json {
		l.c.printData(f, false)
		return
	}
	name, color := stageWords(f)
	who := line(f.App)
	if f.Instance != "" {
		who += "/" + line(f.Instance)
	}
	what := line(f.Target)
	if f.Method != "" {
		what = line(f.Method + " " + f.Target + f.Path)
	}
	var b strings.Builder
	b.WriteString(paint(l.c.color, dim, l.c.moment(at)))
	for i, text := range []string{who, name, what} {
		l.widths[i] = max(l.widths[i], min(utf8.RuneCountInString(text), 40), callWidths[i])
		pad := strings.Repeat(" ", max(l.widths[i]-utf8.RuneCountInString(text), 0))
		if i == 1 {
			text = paint(l.c.color, color, text)
		}
		b.WriteString(gap + text + pad)
	}
	b.WriteString(gap + l.outcome(f) + "\n")
	io.WriteString(l.c.out, b.String())
}

// stageWords is where in its life f is.
func stageWords(f *protocol.Flow) (name, color string) {
	switch {
	case f.Verdict == "deny":
		return "refused", red
	case f.Ended && f.Cause != "":
		return "failed", red
	case f.Ended:
		return "ended", plain
	case f.Verdict == "report":
		return "report", yellow
	}
	return "allowed", green
}

// outcome is what there is to say of f besides who and where.
func (l *callLog) outcome(f *protocol.Flow) string {
	var words []string
	add := func(format string, args ...any) { words = append(words, fmt.Sprintf(format, args...)) }
	if f.Ended && f.Verdict != "deny" {
		if f.Status != 0 {
			add("%d", f.Status)
		}
		add("%s", span(time.Duration(f.Duration*float64(time.Millisecond))))
		add("%s up, %s down", volume(f.Up), volume(f.Down))
		if f.Verdict == "report" {
			add("enforce would refuse it")
		}
	}
	if f.Cause != "" {
		add("%s", line(f.Cause))
	}
	if f.Reason != "" && (f.Verdict != "allow" || f.Cause != "") {
		add("%s", line(f.Reason))
	}
	if f.Rule != "" {
		add("%s", line(f.Rule))
	}
	if f.SNI != "" && f.SNI+":" != f.Target[:min(len(f.SNI)+1, len(f.Target))] {
		add("TLS for %s", line(f.SNI))
	}
	if f.ECH {
		add("encrypted hello")
	}
	if f.Via == "direct" {
		add("direct")
	}
	if f.Fresh {
		add("first seen")
	}
	return strings.Join(words, ", ")
}
