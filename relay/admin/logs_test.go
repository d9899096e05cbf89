package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/api"
	"github.com/posternhq/postern/relay"
)

// saidOf is one message of a stream of logs in short: "line web.1 text", "open
// web.1", "none".
func saidOf(t *testing.T, kind, data string) string {
	dec := json.NewDecoder(strings.NewReader(data))
	dec.DisallowUnknownFields()
	if kind == api.LogLineEvent {
		var l api.LogLine
		if err := dec.Decode(&l); err != nil {
			t.Error(err)
		}
		if _, offset := l.At.Zone(); offset != 0 {
			t.Errorf("a time that is not UTC: %s", data)
		}
		return "line " + l.Instance + " " + l.Text
	}
	var n api.LogNotice
	if err := dec.Decode(&n); err != nil || n.Kind != kind {
		t.Errorf("%v in %s of the kind %s", err, data, kind)
	}
	if n.Why != "" {
		n.Why = ": " + n.Why
	}
	return strings.TrimSpace(kind+" "+n.Instance) + n.Why
}

// logTail is a reader of a stream of logs.
type logTail struct {
	t    *testing.T
	ch   chan string // closed at the end
	stop func()
}

func (d *desk) logs(token, query string) *logTail {
	d.t.Helper()
	ctx, cancel := context.WithCancel(d.t.Context())
	d.t.Cleanup(cancel)
	r, _ := http.NewRequestWithContext(ctx, "GET", d.url+Prefix+"/logs?"+query, nil)
	r.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		d.t.Fatal(err)
	}
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		body, _ := io.ReadAll(resp.Body)
		d.t.Fatalf("%d %s", resp.StatusCode, body)
	}
	out := &logTail{t: d.t, ch: make(chan string, 1000), stop: cancel}
	go out.read(resp.Body)
	return out
}

func (out *logTail) read(body io.ReadCloser) {
	defer close(out.ch)
	defer body.Close()
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, 1<<20)
	var kind, data string
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ": ")
		switch {
		case name == "event":
			kind = value
		case name == "data":
			data = value
		case name == "" && value == "" && data != "": // else it was cut
			out.ch <- saidOf(out.t, kind, data)
			data = ""
		}
	}
}

// wants reads exactly these messages.
func (out *logTail) wants(want ...string) {
	out.t.Helper()
	for i, w := range want {
		select {
		case got, ok := <-out.ch:
			if !ok || got != w {
				out.t.Fatalf("message %d is %q, want %q", i+1, got, w)
			}
		case <-time.After(patience):
			out.t.Fatalf("message %d, %q, does not come", i+1, w)
		}
	}
}

// ended wants the end of the stream.
func (out *logTail) ended() {
	out.t.Helper()
	select {
	case got, ok := <-out.ch:
		if ok {
			out.t.Fatalf("%q comes, want the end", got)
		}
	case <-time.After(patience):
		out.t.Fatal("the stream does not end")
	}
}

// at is a line, n milliseconds after noon.
func at(n int, text string) protocol.Line {
	return protocol.Line{At: noon.Add(time.Duration(n) * time.Millisecond), Stream: "stdout", Text: text}
}

// gives serves lines, and then what follow sends, until it is closed.
func gives(follow <-chan protocol.Line, lines ...protocol.Line) func(protocol.LogQuery, net.Conn) {
	return func(q protocol.LogQuery, conn net.Conn) {
		protocol.WriteReport(conn, protocol.Report{Lines: lines[max(len(lines)-q.Lines, 0):]})
		for q.Follow && follow != nil {
			line, ok := <-follow
			if !ok || protocol.WriteReport(conn, protocol.Report{Lines: []protocol.Line{line}}) != nil {
				return
			}
		}
	}
}

func TestLogsOfSeveralInstancesAreMergedByTime(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.agents.connect("shop", "web.1", "boot-1", gives(nil, at(0, "old"), at(1, "a"), at(4, "d"), at(5, "e")))
	d.agents.connect("shop", "web.2", "boot-2", gives(nil, at(2, "b"), at(3, "c"), at(6, "f")))
	d.agents.connect("other", "web.1", "boot-3", gives(nil, at(2, "secret")))
	out := d.logs("shop", "lines=3")
	var opened []string
	for range 2 {
		opened = append(opened, <-out.ch)
	}
	if slices.Sort(opened); !slices.Equal(opened, []string{"open web.1", "open web.2"}) {
		t.Errorf("%q", opened)
	}
	out.wants("line web.1 a", "line web.2 b", "line web.2 c", "line web.1 d", "line web.1 e", "line web.2 f", "end")
	out.ended()

	out = d.logs("admin", "app=shop&instance=web.2&lines=1")
	out.wants("open web.2", "line web.2 f", "end")
	d.agents.conns.Wait()
}

func TestLogsWithoutAnAgent(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	out := d.logs("shop", "")
	out.wants("none: no agent of the app shop is connected", "end")
	out.ended()
	d.agents.connect("shop", "web.1", "boot-1", gives(nil))
	out = d.logs("shop", "instance=web.9")
	out.wants(`none: no agent of the instance "web.9" is connected`, "end")
	for _, test := range []struct {
		token, query string
		status       int
	}{
		{"admin", "", 400}, {"admin", "app=nobody", 404}, {"admin", "app=SHOP", 400}, {"shop", "lines=-1", 400},
		{"shop", "lines=1000000", 400}, {"shop", "follow=perhaps", 400},
	} {
		if got := d.call(test.token, "GET", "/logs?"+test.query, ""); got.status != test.status {
			t.Errorf("%s %q: %d %s", test.token, test.query, got.status, got.body)
		}
	}
}

// Instances come and go while a stream follows.
func TestLogsFollow(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	out := d.logs("shop", "follow=1")
	out.wants("none: no agent of the app shop is connected")
	live := make(chan protocol.Line)
	d.agents.connect("shop", "web.1", "boot-1", gives(live, at(0, "old")))
	out.wants("open web.1", "line web.1 old")
	live <- at(1, "new")
	out.wants("line web.1 new")
	d.agents.connect("shop", "web.2", "boot-2", nil)
	out.wants("unreadable web.2: its agent gives no logs: it is of an earlier version, or keeps none (POSTERN_NO_LOGS)")
	d.agents.disconnect("boot-1")
	close(live)
	d.agents.disconnect("boot-2")
	gone := []string{<-out.ch, <-out.ch}
	slices.Sort(gone)
	if want := []string{"gone web.1: the instance has ended, or its agent was lost", "gone web.2: the instance has ended, or its agent was lost"}; !slices.Equal(gone, want) {
		t.Errorf("%q", gone)
	}
	out.wants("none: no agent of the app shop is connected")
	d.agents.connect("shop", "web.1", "boot-9", gives(nil, at(9, "again")))
	out.wants("open web.1", "line web.1 again")
	out.stop()
	d.agents.conns.Wait()
}

// A tunnel that breaks takes its streams along; the instance is read again, and
// no line is shown twice.
func TestLogsGoOnAfterABrokenStream(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	var opened atomic.Int32
	d.agents.connect("shop", "web.1", "boot-1", func(q protocol.LogQuery, conn net.Conn) {
		all := []protocol.Line{at(1, "a"), at(2, "b"), at(3, "c"), at(4, "d")}
		if opened.Add(1) == 1 {
			protocol.WriteReport(conn, protocol.Report{Lines: all[:2]})
			return
		}
		if q.Lines < 2 {
			t.Errorf("asks for %d lines after a break", q.Lines)
		}
		protocol.WriteReport(conn, protocol.Report{Lines: all})
		io.Copy(io.Discard, conn)
	})
	out := d.logs("shop", "follow=1&lines=0")
	out.wants("open web.1", "line web.1 a", "line web.1 b", "line web.1 c", "line web.1 d")
	out.stop()
	d.agents.conns.Wait()
}

func TestLogsOfAgentsThatMisbehave(t *testing.T) {
	t.Parallel()
	far := time.Date(9999, 12, 31, 23, 59, 59, 0, time.FixedZone("", -23*3600))
	for _, test := range []struct {
		name  string
		serve func(protocol.LogQuery, net.Conn)
		want  []string
	}{
		{"years that JSON does not have", gives(nil, protocol.Line{At: far, Text: "far"}, protocol.Line{Text: "zero"}),
			[]string{"line web.1 far", "line web.1 zero", "end"}},
		{"bytes that steer a terminal, and SSE's own", gives(nil, at(0, "\x1b[2J\r\ndata: x\n\nevent: line")),
			[]string{"line web.1 \x1b[2J\r\ndata: x\n\nevent: line", "end"}},
		{"no report", func(_ protocol.LogQuery, conn net.Conn) { conn.Write([]byte("\x00\x03abc")) },
			[]string{"unreadable web.1: the lines broke off: the connection to its agent was lost", "end"}},
		{"an oversize report", func(_ protocol.LogQuery, conn net.Conn) { conn.Write([]byte("\xff\xff")) },
			[]string{"unreadable web.1: the lines broke off: the connection to its agent was lost", "end"}},
		{"half a report", func(_ protocol.LogQuery, conn net.Conn) { conn.Write([]byte("\x00\x09{")) },
			[]string{"unreadable web.1: the lines broke off: the connection to its agent was lost", "end"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t)
			d.agents.connect("shop", "web.1", "boot-1", test.serve)
			out := d.logs("shop", "")
			out.wants(append([]string{"open web.1"}, test.want...)...)
			out.ended()
		})
	}
}

// One whose clock is years behind, and which never stops, must not keep the others'
// lines back.
func TestLogsOfALoudInstanceDoNotHideAnother(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	loud := func(_ protocol.LogQuery, conn net.Conn) {
		for n := 0; protocol.WriteReport(conn, protocol.Report{Lines: []protocol.Line{at(n-1e9, "loud")}}) == nil; n++ {
		}
	}
	d.agents.connect("shop", "web.1", "boot-1", loud)
	d.agents.connect("shop", "web.2", "boot-2", gives(nil, at(1, "here I am")))
	out := d.logs("shop", "follow=1")
	late := time.After(patience)
	for {
		select {
		case got := <-out.ch:
			if got == "line web.2 here I am" {
				out.stop()
				d.agents.conns.Wait()
				return
			}
		case <-late:
			t.Fatal("it never comes")
		}
	}
}

// A reader that takes nothing costs a bounded number of lines.
func TestLogsOfASlowReaderStayWithTheAgent(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	var taken atomic.Int64
	d.agents.connect("shop", "web.1", "boot-1", func(_ protocol.LogQuery, conn net.Conn) {
		text := strings.Repeat("x", 8000)
		for n := 0; protocol.WriteReport(conn, protocol.Report{Lines: []protocol.Line{at(n, text)}}) == nil; n++ {
			taken.Add(1)
		}
	})
	conn, err := net.Dial("tcp", strings.TrimPrefix(d.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "GET %s/logs?follow=1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer shop\r\n\r\n", Prefix)
	// Until the buffers of the connection are full, and nothing moves any more.
	for still, last, polls := 0, int64(0), 0; still < 10; polls++ {
		time.Sleep(50 * time.Millisecond)
		now := taken.Load()
		if still++; now != last || now == 0 {
			still, last = 0, now
		}
		if now > 4000 || polls > 400 {
			t.Fatalf("%d lines were taken from the agent, and it goes on", now)
		}
	}
	conn.Close()
	d.agents.conns.Wait()
}

func TestLogsEndWithTheTokenAndTheServer(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.api.heartbeat = 20 * time.Millisecond
	d.agents.connect("shop", "web.1", "boot-1", func(_ protocol.LogQuery, conn net.Conn) { io.Copy(io.Discard, conn) })
	out := d.logs("shop", "follow=1")
	out.wants("open web.1")
	d.revoke()
	out.ended()
	d.agents.conns.Wait()

	d = newDesk(t)
	d.agents.connect("shop", "web.1", "boot-1", func(_ protocol.LogQuery, conn net.Conn) { io.Copy(io.Discard, conn) })
	out = d.logs("shop", "follow=1")
	out.wants("open web.1")
	d.api.Close()
	out.ended()
	d.agents.conns.Wait()
}

func TestMoreInstancesThanOneStreamReads(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	for n := range maxLogSources + 5 {
		d.agents.connect("shop", fmt.Sprintf("web.%02d", n), fmt.Sprint("boot-", n), gives(nil))
	}
	out := d.logs("shop", "")
	counts := map[string]int{}
	for m := range out.ch {
		counts[strings.Fields(m)[0]]++
	}
	if counts["open"] != maxLogSources || counts["limit:"] != 1 || counts["end"] != 1 {
		t.Errorf("%v", counts)
	}
}

func TestInstancesAreListed(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.agents.list = []relay.Instance{
		{App: "shop", Name: "web.2", BootID: "b"}, {App: "other", Name: "web.1", BootID: "c"},
		{App: "shop", Name: "web.1", BootID: "a", Platform: "heroku", Process: "web", Release: "v42", Commit: "abc", Region: "eu", Agent: "postern/1",
			Since: noon, Tunnels: 2, Draining: true, InFlight: 3, State: protocol.StateStarting, Why: "nobody listens",
			Findings: []protocol.Finding{{Code: "PORT06", Severity: protocol.SeverityError}},
			Vitals:   &protocol.Vitals{At: time.Date(9999, 12, 31, 23, 59, 59, 0, time.FixedZone("", -3600)), RSS: 7}},
	}
	names := func(token, query string) (all []string) {
		t.Helper()
		var list api.InstanceList
		d.call(token, "GET", "/instances"+query, "").decode(t, &list)
		for _, i := range list.Instances {
			all = append(all, i.App+"/"+i.Instance)
		}
		return all
	}
	for _, test := range []struct {
		token, query string
		want         []string
	}{
		{"shop", "", []string{"shop/web.1", "shop/web.2"}},
		{"other", "", []string{"other/web.1"}},
		{"admin", "", []string{"other/web.1", "shop/web.1", "shop/web.2"}},
		{"admin", "?app=other", []string{"other/web.1"}},
	} {
		if got := names(test.token, test.query); !slices.Equal(got, test.want) {
			t.Errorf("%s %q: %q", test.token, test.query, got)
		}
	}
	body := d.call("shop", "GET", "/instances", "").body
	for _, want := range []string{`"state":"starting"`, `"why":"nobody listens"`, `"code":"PORT06"`, `"at":"0001-01-01T00:00:00Z","rss":7`, `"in_flight":3`, `"draining":true`, `"tunnels":2`} {
		if !strings.Contains(body, want) {
			t.Errorf("%s is not in %s", want, body)
		}
	}
	if got := d.call("admin", "GET", "/instances?app=nobody", ""); got.status != 404 {
		t.Errorf("no such app: %d %s", got.status, got.body)
	}
	d.agents.list = nil
	if got := d.call("shop", "GET", "/instances", ""); got.status != 200 || strings.TrimSpace(got.body) != `{"instances":[]}` {
		t.Errorf("none: %d %s", got.status, got.body)
	}
}

func TestLastWordsAreListed(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.store.lastWords = []relay.LastWords{
		{ID: "lw_3", App: "shop", Instance: "web.2", EndedAt: noon, Reason: "lost"},
		{ID: "lw_2", App: "other", Instance: "web.1", EndedAt: noon, Reason: "killed"},
		{ID: "lw_1", App: "shop", Instance: "web.1", EndedAt: noon, Reason: "killed", Exit: &protocol.Exit{Code: 137},
			Lines: []protocol.Line{at(1, "x")}, Memory: []relay.MemoryPoint{{At: noon, RSS: 5}}, Sockets: []protocol.Socket{{PID: 3}}},
	}
	ids := func(token, query string) (all []string) {
		t.Helper()
		var list api.LastWordsList
		d.call(token, "GET", "/lastwords"+query, "").decode(t, &list)
		for _, w := range list.LastWords {
			all = append(all, w.ID)
		}
		return all
	}
	for _, test := range []struct {
		token, query string
		want         []string
	}{
		{"shop", "", []string{"lw_3", "lw_1"}},
		{"shop", "?limit=1", []string{"lw_3"}},
		{"shop", "?instance=web.1", []string{"lw_1"}},
		{"other", "", []string{"lw_2"}},
		{"admin", "", []string{"lw_3", "lw_2", "lw_1"}},
	} {
		if got := ids(test.token, test.query); !slices.Equal(got, test.want) {
			t.Errorf("%s %q: %q", test.token, test.query, got)
		}
	}
	body := d.call("shop", "GET", "/lastwords", "").body
	for _, want := range []string{`"exit":null`, `"lines":[]`, `"sockets":[]`, `"memory":[{"at":"2026-03-01T12:00:00Z","rss":5}]`, `"code":137`} {
		if !strings.Contains(body, want) {
			t.Errorf("%s is not in %s", want, body)
		}
	}
}
