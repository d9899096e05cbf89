package main

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/api"
)

// someFlow is what is written at the decision of a call, and at its end.
func someFlow(id, target string, second int) (decided, ended protocol.Flow) {
	decided = protocol.Flow{
		ID: id, App: "shop", Instance: "web.1", Form: "tunnel", From: "connect", Target: target, Via: "relay",
		Verdict: "allow", Rule: "apps.shop.egress.allow[0]", Version: 7, StartedAt: noon.Add(time.Duration(second) * time.Second),
	}
	ended = decided
	ended.Ended, ended.Duration, ended.Up, ended.Down = true, 1234.5, 1200, 34_000
	return decided, ended
}

func refusedFlow(id, target string, second int) protocol.Flow {
	f, _ := someFlow(id, target, second)
	f.Verdict, f.Cause, f.Rule, f.Reason, f.Ended = "deny", "denied", "default", "no line allows a tunnel to it\x1b[2J", true
	return f
}

func TestLogShowsEachCallOnceAndTheOldestFirst(t *testing.T) {
	r := newCallsAPI(t)
	open, _ := someFlow("flo_1", "api.stripe.com:443", -86400)
	decided, ended := someFlow("flo_2", "api.stripe.com:443", 1)
	ended.Fresh = true
	request, _ := someFlow("flo_3", "api.partner.example:80", 2)
	request.Form, request.Method, request.Path, request.Status, request.Ended, request.Duration, request.Verdict = "request", "GET", "/v1/items", 200, true, 12, "report"
	failed, _ := someFlow("flo_4", "db.partner.example:5432", 3)
	failed.Ended, failed.Cause, failed.Reason, failed.Via = true, "connection_refused", "203.0.113.9:5432 refuses connections", "direct"
	fronted := refusedFlow("flo_5", "api.stripe.com:443", 4)
	fronted.SNI, fronted.Cause, fronted.ECH, fronted.Via = "evil.example", "sni_mismatch", true, "agent"
	r.on("GET /egress/flows", api.FlowList{Flows: []protocol.Flow{fronted, failed, ended, request, decided, open}})
	d := newDesk()
	if code, err := d.verb(t, "egress", "log", "--app", "shop", "--target", "API.stripe.com"); code != 0 || err != nil {
		t.Errorf("%d, %v", code, err)
	}
	golden(t, "egress-log.txt", d.screens())
	if got := r.said(); !slices.Equal(got, []string{"GET /egress/flows?app=shop&limit=50&target=api.stripe.com"}) {
		t.Errorf("asked %q", got)
	}

	d = newDesk()
	if code, err := d.verb(t, "egress", "log", "--json", "-n", "7"); code != 0 || err != nil {
		t.Errorf("%d, %v", code, err)
	}
	lines := strings.Split(strings.TrimSpace(d.stdout.String()), "\n")
	var last protocol.Flow
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || len(lines) != 5 || last.ID != "flo_5" {
		t.Errorf("%v in %d lines: %s", err, len(lines), d.stdout)
	}
}

func TestAnEmptyLogSaysSo(t *testing.T) {
	r := newCallsAPI(t)
	r.on("GET /egress/flows", api.FlowList{})
	for args, want := range map[string]string{
		"":                   "no call is in the relay's memory\n",
		"--verdict deny":     "no call of this kind is in the relay's memory\n",
		"--json --limit 500": "",
	} {
		d := newDesk()
		if code, err := d.verb(t, append([]string{"egress", "log"}, strings.Fields(args)...)...); code != 0 || err != nil || d.stdout.String() != "" || d.stderr.String() != want {
			t.Errorf("%q: %d, %v, %s", args, code, err, d.screens())
		}
	}
}

// followingCalls runs postern egress log -f until the test calls stop.
func (d *desk) followingCalls(t *testing.T, args ...string) (stop func() (int, error)) {
	t.Helper()
	return d.until(t, "egress log -f", func() (int, error) {
		return d.verb(t, append([]string{"egress", "log", "-f"}, args...)...)
	})
}

func TestLogFollows(t *testing.T) {
	r := newCallsAPI(t)
	texts := make(chan string, 100)
	r.handle("GET /egress/flows/stream", r.stream(texts))
	before := refusedFlow("flo_1", "a.example:443", 1)
	r.on("GET /egress/flows", api.FlowList{Flows: []protocol.Flow{before}})
	decided, ended := someFlow("flo_2", "api.stripe.com:443", 2)
	for _, text := range []string{
		"retry: 2000\n\n: still here\n\n", sse(api.FlowEvent, before), sse(api.FlowEvent, decided), "event: later\ndata: {}\n\n", "event: flow\ndata: no JSON\n\n",
		sse(api.FlowEvent, ended), sse(api.FlowEvent, decided), sse(api.FlowEvent, refusedFlow("flo_3", "b.example:443", 3)),
	} {
		texts <- text
	}
	d := newDesk()
	stop := d.followingCalls(t)
	d.stdout.wait(t, "b.example")
	if code, err := stop(); code != 0 || err != nil {
		t.Errorf("%d, %v", code, err)
	}
	golden(t, "egress-follow.txt", d.screens())
	// The stream first: what happens in between is in one of the two.
	if got := r.said(); !slices.Equal(got, []string{"GET /egress/flows/stream", "GET /egress/flows?limit=50"}) {
		t.Errorf("asked %q", got)
	}
}

// The stream has all calls of an app; the terminal those that were asked for.
func TestLogFollowsOnlyWhatWasAskedFor(t *testing.T) {
	r := newCallsAPI(t)
	texts := make(chan string, 100)
	r.handle("GET /egress/flows/stream", r.stream(texts))
	r.on("GET /egress/flows", api.FlowList{})
	allowed, _ := someFlow("flo_1", "b.example:443", 1)
	for _, f := range []protocol.Flow{
		allowed, refusedFlow("flo_2", "a.example:443", 2), refusedFlow("flo_3", "b.example:8443", 3), refusedFlow("flo_4", "[2001:db8::1]:443", 4), refusedFlow("flo_5", "b.example:443", 5),
	} {
		texts <- sse(api.FlowEvent, f)
	}
	d := newDesk()
	stop := d.followingCalls(t, "--verdict", "deny", "--target", "b.example", "--app", "shop")
	d.stdout.wait(t, "b.example:443")
	if code, err := stop(); code != 0 || err != nil {
		t.Errorf("%d, %v", code, err)
	}
	if got := strings.Count(d.stdout.String(), "\n"); got != 2 || !strings.Contains(d.stdout.String(), "b.example:8443") {
		t.Errorf("%d lines: %s", got, d.stdout)
	}
	if got := r.said(); !slices.Equal(got, []string{"GET /egress/flows/stream?app=shop", "GET /egress/flows?app=shop&limit=50&target=b.example&verdict=deny"}) {
		t.Errorf("asked %q", got)
	}
}

// What happened while the stream was broken is shown when it is open again, and
// nothing is shown twice.
func TestLogGoesOnWhereTheStreamBroke(t *testing.T) {
	r := newCallsAPI(t)
	first := make(chan string, 10)
	decided, ended := someFlow("flo_1", "api.stripe.com:443", 1)
	old, _ := someFlow("flo_0", "old.example:443", -7200)
	opened := 0
	r.on("GET /egress/flows", api.FlowList{Flows: []protocol.Flow{decided}})
	r.handle("GET /egress/flows/stream", func(w http.ResponseWriter, req *http.Request) {
		switch opened++; opened {
		case 1:
			first <- sse(api.FlowEvent, refusedFlow("flo_2", "a.example:443", 2))
			close(first)
			r.stream(first)(w, req)
		case 2:
			refuse(w, 503, "unavailable", "draining")
		default:
			r.on("GET /egress/flows", api.FlowList{Flows: []protocol.Flow{refusedFlow("flo_3", "missed.example:443", 3), refusedFlow("flo_2", "a.example:443", 2), ended, decided, old}})
			r.stream(nil)(w, req)
		}
	})
	d := newDesk()
	client, err := newCallFlags(callsVerb).apiFor()
	if client == nil {
		// The flags have no environment yet.
		f := newCallFlags(callsVerb)
		if err = f.parse(d.out, nil); err == nil {
			client, err = f.api()
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	l := &callLog{again: again{c: d.console, wait: func(context.Context, time.Duration) error { return nil }}, client: client, seen: map[string]bool{}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.follow(ctx, 50) }()
	d.stderr.wait(t, "connected again")
	cancel()
	if err := <-done; err != context.Canceled {
		t.Errorf("ended with %v", err)
	}
	out := d.stdout.String()
	for text, want := range map[string]int{"a.example": 1, "missed.example": 1, "old.example": 0, "allowed": 1, "ended": 1} {
		if got := strings.Count(out, text); got != want {
			t.Errorf("%s is there %d times, want %d:\n%s", text, got, want, out)
		}
	}
	if said := d.stderr.String(); said != "lost the relay (it closed the stream); trying again\nconnected again\n" {
		t.Errorf("said %q", said)
	}
}

func TestLogOfARefusedTokenEnds(t *testing.T) {
	r := newCallsAPI(t)
	r.handle("GET /egress/flows/stream", func(w http.ResponseWriter, _ *http.Request) { refuse(w, 401, "unauthorized", "it has expired") })
	if code, err := newDesk().verb(t, "egress", "log", "-f"); code != exitFailed || err == nil || !strings.Contains(err.Error(), "it has expired") {
		t.Errorf("%d, %v", code, err)
	}
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("<html>")) }))
	defer page.Close()
	t.Setenv("POSTERN_RELAY", page.URL)
	if code, err := newDesk().verb(t, "egress", "log", "-f"); code != exitFailed || err == nil || !strings.Contains(err.Error(), "where JSON was expected") {
		t.Errorf("a page: %d, %v", code, err)
	}
}

func TestWhatWasShownIsForgottenInTheEnd(t *testing.T) {
	d := newDesk()
	l := &callLog{again: again{c: d.console}, seen: map[string]bool{}, json: true}
	for n := range 3 * maxMarks {
		f := refusedFlow("flo_"+string(rune('a'+n%26))+strings.Repeat("x", n%97)+time.Duration(n).String(), "a.example:443", 0)
		l.once(&f)
	}
	if len(l.seen) != len(l.marks) || len(l.seen) > maxMarks {
		t.Errorf("%d and %d marks are kept, want at most %d", len(l.seen), len(l.marks), maxMarks)
	}
}
