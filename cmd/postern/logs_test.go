package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/api"
)

// newLogsAPI is a relay with the routes that are about instances.
func newLogsAPI(t *testing.T) *relayAPI {
	r := newRelayAPI(t)
	for _, name := range []string{"POSTERN_LOGS_FOLLOW", "POSTERN_LOGS_LINES", "POSTERN_LOGS_LAST_WORDS"} {
		t.Setenv(name, "")
	}
	return r
}

func init() {
	parameters["GET /logs"] = "app instance lines follow"
	parameters["GET /lastwords"] = "app instance limit"
	parameters["GET /instances"] = "app"
}

// runVerb runs a verb that is about an app, as the program does.
func (d *desk) runVerb(t *testing.T, v eventVerb, args ...string) (code int, err error) {
	t.Helper()
	code, err = appVerb(t.Context(), d.console, v, args)
	switch {
	case errors.Is(err, errHelp):
		return exitOK, nil
	case errors.As(err, new(usageError)):
		return exitUsage, err
	case err != nil:
		return max(code, exitFailed), err
	}
	return code, nil
}

// followingLogs runs postern logs -f until the test calls stop.
func (d *desk) followingLogs(t *testing.T, args ...string) (stop func() (int, error)) {
	t.Helper()
	return d.until(t, "logs -f", func() (int, error) {
		return d.runVerb(t, logsVerb, append([]string{"-f"}, args...)...)
	})
}

func sse(kind string, v any) string {
	data, _ := json.Marshal(v)
	return fmt.Sprintf("event: %s\ndata: %s\n\n", kind, data)
}

func logLine(instance, boot, stream string, n int, text string) string {
	return sse("line", api.LogLine{Instance: instance, BootID: boot,
		Line: protocol.Line{At: noon.Add(time.Duration(n) * time.Millisecond), Stream: stream, Text: text}})
}

func logNotice(kind, instance, boot, why string) string {
	return sse(kind, api.LogNotice{Kind: kind, Instance: instance, BootID: boot, Why: why, Release: "v42"})
}

// says answers a route with a whole stream.
func (r *relayAPI) says(texts ...string) {
	r.handle("GET /logs", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, "retry: 2000\n\n: still here\n\n"+strings.Join(texts, ""))
	})
}

// someWords are the ends of two instances.
func someWords() api.LastWordsList {
	first := api.LastWords{
		ID: "lw_2", App: "shop", Instance: "web.1", BootID: "boot-1", Platform: "heroku", Process: "web", Release: "v42", Commit: "0123456789abcdef",
		StartedAt: noon.Add(-3 * time.Hour), EndedAt: noon.Add(-5 * time.Minute),
		Exit:   &protocol.Exit{Code: 137, Signal: "SIGKILL", Reason: "killed"},
		Reason: "killed by SIGKILL; out of memory, it seems; memory was at 505 MiB of 512 MiB", Limit: 512 << 20,
		Lines: []protocol.Line{
			{At: noon.Add(-5*time.Minute - time.Second), Stream: "stdout", Text: "GET / 200"},
			{At: noon.Add(-5 * time.Minute), Stream: "stderr", Text: "heap out of memory\x1b]0;pwned\x07"},
		},
		Sockets: []protocol.Socket{
			{PID: 7, State: "ESTABLISHED", Local: "10.0.0.2:1", Remote: "10.0.0.9:5432"}, {PID: 7, State: "LISTEN", Local: "0.0.0.0:3000"},
			{PID: 7, State: "ESTABLISHED", Local: "10.0.0.2:2", Remote: "10.0.0.9:5432"}, {PID: 7, State: "CLOSE_WAIT", Local: "10.0.0.2:3", Remote: "10.0.0.8:80"},
		},
		Findings: []protocol.Finding{{Code: "PORT12", Severity: protocol.SeverityError, Cause: "the app was lost after its boot", Evidence: "exit 137", Fix: "give it more memory"}},
	}
	for n := range 60 {
		first.Memory = append(first.Memory, api.MemoryPoint{At: noon.Add(time.Duration(n-65) * time.Minute), RSS: int64(n+1) * 8 << 20})
	}
	second := api.LastWords{ID: "lw_1", App: "shop", Instance: "worker.1", EndedAt: noon.Add(-26 * time.Hour), Reason: "the agent was lost\x1b[2J"}
	return api.LastWordsList{LastWords: []api.LastWords{first, second}}
}

func TestLogsArePrinted(t *testing.T) {
	r := newLogsAPI(t)
	missed := sse("line", api.LogLine{Instance: "worker.12", BootID: "b2", Line: protocol.Line{At: noon, Stream: "stderr", Text: "after a gap", Missed: 12, Cut: true}})
	r.says(logNotice("open", "web.1", "b1", ""), logNotice("open", "worker.12", "b2", ""),
		logLine("web.1", "b1", "stdout", -86400_000, "yesterday"),
		logLine("web.1", "b1", "stdout", 1, "started"), missed, logLine("web.1", "b1", "postern", 3, "ready"),
		logLine("web.1", "b1", "later", 4, "of a newer agent"), "event: later\ndata: {}\n\n", "event: line\ndata: no JSON\n\n",
		logNotice("unreadable", "web.2", "b3", "its agent gives no logs"), logNotice("limit", "", "", "there are more"), logNotice("end", "", "", ""))
	d := newDesk()
	if code, err := d.runVerb(t, logsVerb, "shop/web.1", "-n", "50"); code != 0 || err != nil {
		t.Errorf("%d, %v", code, err)
	}
	golden(t, "logs.txt", d.stdout.String()+"-- on standard error\n"+d.stderr.String())
	if got := r.said(); !slices.Equal(got, []string{"GET /logs?app=shop&instance=web.1&lines=50"}) {
		t.Errorf("asked %q", got)
	}
}

func TestLogsAsJSONLines(t *testing.T) {
	r := newLogsAPI(t)
	r.says(logNotice("open", "web.1", "b1", ""), logLine("web.1", "b1", "stdout", 1, "a\u009b31m\u202e<b>"), logNotice("end", "", "", ""))
	d := newDesk()
	if code, err := d.runVerb(t, logsVerb, "--json"); code != 0 || err != nil {
		t.Errorf("%d, %v", code, err)
	}
	var l api.LogLine
	if err := json.Unmarshal([]byte(d.stdout.String()), &l); err != nil || l.Text != "a\u009b31m\u202e<b>" || l.Instance != "web.1" || strings.Count(d.stdout.String(), "\n") != 1 {
		t.Errorf("%v, %s", err, d.stdout)
	}
	if strings.ContainsFunc(strings.TrimSpace(d.stdout.String()), func(r rune) bool { return !unicode.IsGraphic(r) }) {
		t.Errorf("a terminal would be steered: %q", d.stdout)
	}
	if got := r.said(); !slices.Equal(got, []string{"GET /logs?lines=200"}) {
		t.Errorf("asked %q", got)
	}
}

// When nothing runs, what ran last is what somebody wants to know about.
func TestLogsOfAnAppThatIsDead(t *testing.T) {
	r := newLogsAPI(t)
	r.says(logNotice("none", "", "", "no agent of the app shop is connected"), logNotice("end", "", "", ""))
	r.on("GET /lastwords", someWords())
	d := newDesk()
	if code, err := d.runVerb(t, logsVerb, "shop"); code != 0 || err != nil {
		t.Errorf("%d, %v", code, err)
	}
	golden(t, "logs-dead.txt", d.stdout.String()+"-- on standard error\n"+d.stderr.String())
	if got := r.said(); !slices.Equal(got, []string{"GET /logs?app=shop&lines=200", "GET /lastwords?app=shop&limit=1"}) {
		t.Errorf("asked %q", got)
	}

	r.on("GET /lastwords", api.LastWordsList{})
	d = newDesk()
	if code, err := d.runVerb(t, logsVerb, "shop"); code != 1 || err == nil || !strings.Contains(err.Error(), "no agent of shop is connected") {
		t.Errorf("with nothing to show: %d, %v", code, err)
	}
}

func TestLastWordsOnRequest(t *testing.T) {
	r := newLogsAPI(t)
	r.on("GET /lastwords", someWords())
	d := newDesk().terminal(100, "")
	if code, err := d.runVerb(t, logsVerb, "--last-words", "-n=1", "shop/web.1"); code != 0 || err != nil {
		t.Errorf("%d, %v", code, err)
	}
	if out := d.stdout.String(); strings.Contains(out, "GET /") || !strings.Contains(out, `heap out of memory\x1b]0;pwned\a`) {
		t.Errorf("lines: %q", out)
	}
	if said := d.stderr.String(); !strings.Contains(said, "before that\n  Nov 20 10:00  shop/worker.1  the agent was lost\\x1b[2J\n") {
		t.Errorf("said %q", said)
	}
	d = newDesk()
	if code, err := d.runVerb(t, logsVerb, "--last-words", "--json"); code != 0 || err != nil {
		t.Errorf("%d, %v", code, err)
	}
	var all []api.LastWords
	if err := json.Unmarshal([]byte(d.stdout.String()), &all); err != nil || len(all) != 2 || all[0].Exit.Code != 137 || strings.Contains(d.stdout.String(), "\x1b") {
		t.Errorf("%v in %s", err, d.stdout)
	}
	if got := r.said(); !slices.Equal(got, []string{"GET /lastwords?app=shop&instance=web.1&limit=20", "GET /lastwords?limit=20"}) {
		t.Errorf("asked %q", got)
	}
	r.on("GET /lastwords", api.LastWordsList{})
	if code, err := newDesk().runVerb(t, logsVerb, "--last-words"); code != 1 || err == nil {
		t.Errorf("none: %d, %v", code, err)
	}
}

// A relay that is started anew, while somebody follows: what was shown is not
// shown again, and what was missed is.
func TestLogsFollowThroughARestartOfTheRelay(t *testing.T) {
	r := newLogsAPI(t)
	var calls atomic.Int32
	texts := make(chan string, 10)
	r.handle("GET /logs", func(w http.ResponseWriter, req *http.Request) {
		switch calls.Add(1) {
		case 1:
			w.Header().Set("Content-Type", "text/event-stream")
			io.WriteString(w, logNotice("open", "web.1", "b1", "")+logLine("web.1", "b1", "stdout", 1, "one")+logLine("web.1", "b1", "stdout", 2, "two")+"event: line\ndata: half")
		case 2:
			http.Error(w, "no relay", http.StatusBadGateway)
		case 3:
			http.NotFound(w, req)
		default:
			r.stream(texts)(w, req)
		}
	})
	d := newDesk()
	f := newAppFlags(logsVerb)
	if err := f.parse(io.Discard, nil); err != nil {
		t.Fatal(err)
	}
	client, err := f.apiFor()
	if err != nil {
		t.Fatal(err)
	}
	reader := newLogReader(d.console, client, "", 1, true, false)
	var waits int
	reader.wait = func(ctx context.Context, _ time.Duration) error { waits++; return ctx.Err() }
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := reader.run(ctx)
		ended <- err
	}()
	texts <- logNotice("none", "", "", "no agent") + logNotice("open", "web.1", "b1", "") + logLine("web.1", "b1", "stdout", 1, "one") +
		logLine("web.1", "b1", "stdout", 2, "two") + logLine("web.1", "b1", "stdout", 3, "three") + logLine("web.1", "b2", "stdout", 1, "another boot")
	d.stdout.wait(t, "another boot")
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	want := "12:00:00.001 web.1 | one\n12:00:00.002 web.1 | two\n12:00:00.003 web.1 | three\n12:00:00.001 web.1 | another boot\n"
	if got := d.stdout.String(); got != want {
		t.Errorf("printed\n%swant\n%s", got, want)
	}
	if got := d.stderr.String(); got != "lost the relay (it closed the stream); trying again\nconnected again\n-- no agent of shop is connected; waiting for one\n" {
		t.Errorf("said %q", got)
	}
	// The first time as many as were asked for, and then what may have been missed.
	if got, want := r.said(), []string{"GET /logs?follow=1&lines=1", "GET /logs?follow=1&lines=200", "GET /logs?follow=1&lines=200", "GET /logs?follow=1&lines=200"}; !slices.Equal(got, want) {
		t.Errorf("asked %q, want %q", got, want)
	}
	if waits != 3 {
		t.Errorf("%d waits", waits)
	}
}

// Whoever follows an app that is down sees why, and then what comes up.
func TestLogsFollowAnAppThatIsDown(t *testing.T) {
	r := newLogsAPI(t)
	texts := make(chan string, 10)
	r.handle("GET /logs", r.stream(texts))
	r.on("GET /lastwords", someWords())
	d := newDesk().terminal(100, "")
	stop := d.followingLogs(t, "shop")
	texts <- logNotice("none", "", "", "no agent")
	d.stderr.wait(t, "waiting for one")
	texts <- logNotice("open", "web.1", "boot-1", "") + logLine("web.1", "boot-1", "stdout", 1, "up again") + logNotice("gone", "web.1", "boot-1", "it is gone") + logNotice("none", "", "", "")
	d.stdout.wait(t, "up again")
	d.stderr.wait(t, "-- web.1: it ended: killed by SIGKILL")
	d.stderr.wait(t, "ended: killed by SIGKILL; out of memory, it seems; memory was at 505 MiB of 512 MiB\n-- no agent of shop is connected; waiting for one\n")
	if code, err := stop(); code != 0 || err != nil {
		t.Errorf("Ctrl-C: %d, %v", code, err)
	}
	if said := d.stderr.String(); strings.Count(said, "sockets") != 1 || !strings.Contains(said, "-- web.1 is connected, release v42") {
		t.Errorf("said %s", said)
	}
}

func TestLogsThatCannotBeHad(t *testing.T) {
	r := newLogsAPI(t)
	for _, test := range []struct {
		name   string
		handle http.HandlerFunc
		args   []string
		code   int
		want   string
	}{
		{"no such app", func(w http.ResponseWriter, _ *http.Request) { refuse(w, 404, "not_found", "there is no app shop") }, nil, 1, "there is no app shop"},
		{"another app's token", func(w http.ResponseWriter, _ *http.Request) { refuse(w, 403, "forbidden", "not yours") }, []string{"-f"}, 1, "not yours"},
		{"no API", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			io.WriteString(w, "<p>")
		}, nil, 1, "text/html"},
		{"a stream that is cut", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			io.WriteString(w, logNotice("open", "web.1", "b", "")+logLine("web.1", "b", "stdout", 1, "x"))
		}, nil, 1, "before all lines had come"},
		{"nothing can be read", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			io.WriteString(w, logNotice("unreadable", "web.1", "b", "no")+logNotice("end", "", "", ""))
		}, nil, 1, "no instance could be read"},
	} {
		r.handle("GET /logs", test.handle)
		if code, err := newDesk().runVerb(t, logsVerb, append(test.args, "shop")...); code != test.code || err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %d, %v", test.name, code, err)
		}
	}
}

func TestLogsMistakes(t *testing.T) {
	r := newLogsAPI(t)
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"shop", "other"}, "takes one app"}, {[]string{"Shop"}, "not the name of an app"}, {[]string{"shop/"}, "expected APP or APP/INSTANCE"},
		{[]string{"shop/a\x1bb"}, "expected APP or APP/INSTANCE"}, {[]string{"-n", "many", "shop"}, "expected a number from 0 to 10000"},
		{[]string{"-n", "-1"}, "expected a number"}, {[]string{"-f", "--last-words"}, "exclude one another"}, {[]string{"--tail"}, "no flag --tail"},
		{[]string{"--app", "../x"}, "not the name of an app"},
	} {
		if code, err := newDesk().runVerb(t, logsVerb, test.args...); code != exitUsage || err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q: %d, %v", test.args, code, err)
		}
	}
	t.Setenv("POSTERN_TOKEN", token("admin", ""))
	if code, err := newDesk().runVerb(t, logsVerb); code != exitUsage || !strings.Contains(err.Error(), "whose logs?") {
		t.Errorf("%d, %v", code, err)
	}
	if got := r.said(); len(got) > 0 {
		t.Errorf("asked %q", got)
	}
}

func TestLogsFlagsHaveVariables(t *testing.T) {
	r := newLogsAPI(t)
	r.says(logNotice("open", "web.1", "b", ""), logNotice("end", "", "", ""))
	t.Setenv("POSTERN_LOGS_LINES", "7")
	t.Setenv("POSTERN_APP", "fromenv")
	newDesk().runVerb(t, logsVerb)
	newDesk().runVerb(t, logsVerb, "-n", "9", "shop", "--app", "other")
	newDesk().runVerb(t, logsVerb, "--", "/web.1")
	t.Setenv("POSTERN_LOGS_LINES", "x")
	if code, err := newDesk().runVerb(t, logsVerb); code != exitUsage || !strings.Contains(err.Error(), "POSTERN_LOGS_LINES") {
		t.Errorf("%d, %v", code, err)
	}
	if got, want := r.said(), []string{"GET /logs?app=fromenv&lines=7", "GET /logs?app=shop&lines=9", "GET /logs?app=fromenv&instance=web.1&lines=7"}; !slices.Equal(got, want) {
		t.Errorf("asked %q, want %q", got, want)
	}
}

func TestHelpOfLogsAndStatus(t *testing.T) {
	newLogsAPI(t)
	d := newDesk()
	for _, v := range []eventVerb{logsVerb, statusVerb} {
		if code, err := d.runVerb(t, v, "--help"); code != 0 || err != nil {
			t.Errorf("%d, %v", code, err)
		}
	}
	golden(t, "logs-help.txt", d.stdout.String())
}

func TestALineCannotSteerTheTerminal(t *testing.T) {
	for _, test := range []struct{ in, plain, colored string }{
		{"plain\ttext é 漢 😀", "plain\ttext é 漢 😀", "plain\ttext é 漢 😀"},
		{"\x1b[31mred\x1b[0m", "red", "\x1b[31mred\x1b[0m\x1b[0m"},
		{"\x1b[1;4;32mok", "ok", "\x1b[1;4;32mok\x1b[0m"},
		{"\x1b[mend", "end", "\x1b[0mend\x1b[0m"},
		{"\x1b[8mhidden", "hidden", "hidden"},
		{"\x1b[30;40mblack", "black", "black"},
		{"\x1b[7;5;37;97;107mloud", "loud", "loud"},
		{"\x1b[38;5;31;32mindexed", "indexed", "\x1b[32mindexed\x1b[0m"},
		{"\x1b[48;2;31;32;33;34mrgb", "rgb", "\x1b[34mrgb\x1b[0m"},
		{"\x1b[38;5m\x1b[38m\x1b[48;2mshort", "short", "short"},
		{"\x1b[2Jclear", `\x1b[2Jclear`, `\x1b[2Jclear`},
		{"\x1b[3A\x1b[?25l", `\x1b[3A\x1b[?25l`, `\x1b[3A\x1b[?25l`},
		{"\x1b]0;title\x07", `\x1b]0;title\a`, `\x1b]0;title\a`},
		{"\x1b]8;;http://evil\x1b\\link", `\x1b]8;;http://evil\x1b\link`, `\x1b]8;;http://evil\x1b\link`},
		{"\x1b[", `\x1b[`, `\x1b[`},
		{"\x1b[31", `\x1b[31`, `\x1b[31`},
		{"\x1b[" + strings.Repeat("1;", 60) + "m", `\x1b[` + strings.Repeat("1;", 60) + "m", `\x1b[` + strings.Repeat("1;", 60) + "m"},
		{"a\rb\bc\x00d", `a\rb\bc\x00d`, `a\rb\bc\x00d`},
		{"\u009b2J\u202eevil\u200b", `\u009b2J\u202eevil\u200b`, `\u009b2J\u202eevil\u200b`},
		{"\x1b[31\x1b[2Jm", `\x1b[31\x1b[2Jm`, `\x1b[31\x1b[2Jm`},
	} {
		if got := logText(test.in, false); got != test.plain {
			t.Errorf("%q without colours: %q, want %q", test.in, got, test.plain)
		}
		if got := logText(test.in, true); got != test.colored {
			t.Errorf("%q with colours: %q, want %q", test.in, got, test.colored)
		}
	}
}

// harmless are the colours that may stay.
var harmless = regexp.MustCompile(`\x1b\[(0|1|3|4|2[234]|3[1-69]|9[1-6])(;(0|1|3|4|2[234]|3[1-69]|9[1-6]))*m`)

// Whatever an app writes: besides the few colours, nothing reaches a terminal that
// it would not print.
func FuzzLinesOnATerminal(f *testing.F) {
	f.Add("\x1b[31mred\x1b[0m \x1b[38;2;1;2;3m\x1b]0;x\x07\u009b\u202e\xff")
	f.Add("\x1b[1;\x1b[m\x1b[[31m")
	f.Fuzz(func(t *testing.T, s string) {
		for _, color := range []bool{false, true} {
			out := logText(s, color)
			if color {
				out = harmless.ReplaceAllString(out, "")
			}
			if strings.ContainsFunc(out, func(r rune) bool { return r != '\t' && !unicode.IsGraphic(r) }) {
				t.Fatalf("%q becomes %q", s, logText(s, color))
			}
		}
		data, _ := json.Marshal(s)
		made := plainJSON(string(data))
		var before, after string
		if json.Unmarshal(data, &before) != nil || json.Unmarshal([]byte(made), &after) != nil || before != after {
			t.Fatalf("%q becomes %q", data, made)
		}
	})
}
