package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/protocol/api"
)

// someEvents are one of each kind, newest first.
func someEvents() []api.Event {
	at := func(ago time.Duration) time.Time { return noon.Add(-ago) }
	next := noon.Add(29 * time.Second)
	event := func(n int, ago time.Duration, endpoint, kind, state string) api.Event {
		return api.Event{
			ID: fmt.Sprintf("evt_06fg3v9k2w00000000000000%02d", n), App: "shop", Endpoint: endpoint, ReceivedAt: at(ago),
			Method: "POST", RemoteIP: "203.0.113.9", Type: kind, Verified: state != "refused", BodySize: 1234, State: state,
		}
	}
	list := []api.Event{
		event(6, 2*time.Second, "stripe", "invoice.paid", "ready"),
		event(5, time.Minute, "github", "push", "done"),
		event(4, time.Hour, "stripe", "", "refused"),
		event(3, 26*time.Hour, "stripe", "customer.subscription.trial_will_end", "dead"),
		event(2, 40*24*time.Hour, "a-rather-long-endpoint", "x\x1b]0;title\a\u202eb", "cancelled"),
		event(1, 365*24*time.Hour, "stripe", "invoice.paid", "leased"),
	}
	list[0].Deliveries = []api.Delivery{{ID: "dlv_06", Event: list[0].ID, Trigger: "live", State: "ready", Attempts: 1, LastStatus: 503, NextAt: &next}}
	list[1].Deliveries = []api.Delivery{{ID: "dlv_05", Event: list[1].ID, Trigger: "live", State: "done", Attempts: 1, LastStatus: 200}}
	list[2].Refusal = "the signature does not match; it would match with the secret of the endpoint github"
	list[3].Deliveries = []api.Delivery{
		{ID: "dlv_03", Event: list[3].ID, Trigger: "live", State: "done", Attempts: 2, LastStatus: 200},
		{ID: "dlv_03b", Event: list[3].ID, Destination: "audit", Trigger: "live", State: "dead", Attempts: 11, LastError: "the app was silent for 30s"},
	}
	list[4].Deliveries = []api.Delivery{{ID: "dlv_02", State: "cancelled"}}
	list[5].Deliveries = []api.Delivery{{ID: "dlv_01", State: "leased"}}
	return list
}

func TestHelpOfEveryVerb(t *testing.T) {
	d := newDesk()
	if code, err := d.run(t, "--help"); code != 0 {
		t.Fatal(code, err)
	}
	text := d.stdout.String()
	for _, v := range eventVerbs() {
		d := newDesk()
		if code, err := d.run(t, v.name, "--help"); code != 0 {
			t.Fatal(v.name, code, err)
		}
		text += "\n$ postern events " + v.name + " --help\n" + d.stdout.String()
	}
	golden(t, "help.txt", text)
	for i, l := range strings.Split(text, "\n") {
		if n := len([]rune(l)); n > 100 {
			t.Errorf("line %d has %d columns: %s", i+1, n, l)
		}
	}
}

func TestEveryFlagHasItsVariable(t *testing.T) {
	newRelayAPI(t)
	for _, v := range eventVerbs() {
		f := newEventFlags(v)
		for _, name := range slices.Sorted(maps.Keys(f.env)) {
			if f.Lookup(name) == nil {
				t.Errorf("%s: %s has a variable and is no flag", v.name, name)
			}
		}
	}
	r := newRelayAPI(t)
	r.on("GET /events", api.EventList{})
	t.Setenv("POSTERN_APP", "shop")
	for name, value := range map[string]string{"ENDPOINT": "stripe", "TYPE": "invoice.*", "STATE": "dead", "SINCE": "1h", "UNTIL": "1m", "TEXT": "a b", "LIMIT": "7"} {
		t.Setenv("POSTERN_EVENTS_"+name, value)
	}
	t.Setenv("POSTERN_JSON", "true")
	d := newDesk()
	if code, err := d.run(t, "list", "--type", "push"); code != 0 {
		t.Fatal(code, err)
	}
	want := "GET /events?app=shop&endpoint=stripe&limit=7&since=2026-11-21T11%3A00%3A00Z&state=dead&text=a+b&type=push&until=2026-11-21T11%3A59%3A00Z"
	if got := r.said(); !slices.Equal(got, []string{want}) || d.stdout.String() != "[]\n" {
		t.Errorf("asked %q, printed %q", got, d.stdout)
	}
	t.Setenv("POSTERN_EVENTS_LIMIT", "many")
	if code, err := newDesk().run(t, "list"); code != exitUsage || !strings.Contains(err.Error(), `POSTERN_EVENTS_LIMIT="many": expected a number`) {
		t.Errorf("%d, %v", code, err)
	}
}

func TestWrongUsageIsExitCode2AndSaysWhatIsRight(t *testing.T) {
	newRelayAPI(t)
	for args, want := range map[string]string{
		"":                                       "which one? postern events list",
		"lost":                                   `there is no command "events lost"; see postern events --help`,
		"list --stat dead":                       "there is no flag --stat; did you mean --state?; see postern events list --help",
		"list --bogus":                           "there is no flag --bogus; see postern events list --help",
		"list --limit":                           "--limit needs a value",
		"list --limit 0":                         `--limit "0": expected a number from 1 to 100000`,
		"list --state asleep":                    `--state "asleep": expected ready, leased, done, dead, cancelled`,
		"list --state refused":                   "list them with --refused",
		"list --state dead --refused":            "a refused event has no deliveries",
		"list --since yesterday":                 `--since "yesterday": expected how long ago (1h, 7d)`,
		"list --since 1h --until 2h":             "is not before --until",
		"list evt_1":                             `events list takes no arguments, got "evt_1"`,
		"list --json=maybe":                      `--json "maybe"`,
		"list --log-level loud":                  `--log-level "loud"`,
		"show":                                   "which event? postern events show evt_…",
		"show evt_1 evt_2":                       `takes one event, got "evt_2" besides`,
		"show ../replays":                        `"../replays" is not an id; expected evt_…`,
		"show dlv_1":                             `"dlv_1" is not an id; expected evt_…`,
		"show evt_1 --body --json":               "exclude one another",
		"tail evt_1":                             "takes no arguments",
		"tail --bodies":                          "--bodies is for --json",
		"tail --secret-env X":                    "--secret-env is for --forward",
		"tail --forward web":                     `--forward: "web" is not an address`,
		"tail --forward 0":                       "expected 1 to 65535",
		"tail --forward ftp://x":                 "is not an address; expected 3000 or http://127.0.0.1:3000/path",
		"tail --forward http://x/?a=b":           "the event has its own query",
		"tail --forward 1 --secret-env UNSET_XY": "the variable UNSET_XY is not set",
		"replay":                                 "which events? postern events replay evt_…",
		"replay --yes":                           "which events?",
		"replay evt_1":                           "--yes replays without asking",
		"replay evt_1 --state dead --yes":        "either ids or a selection, not both",
		"replay dlv_1 --yes":                     `"dlv_1" is not an id`,
		"replay evt_1 --rate fast":               `--rate "fast": expected 10/s, 100/m or 1000/h`,
		"replay evt_1 --rate 0":                  "expected 10/s",
		"replay evt_1 --rate 10/d":               "expected 10/s",
		"replay evt_1 --rate NaN":                "expected 10/s",
		"replay evt_1 --watch rpl_1":             "it selects no events",
		"replay --watch evt_1":                   `"evt_1" is not an id; expected rpl_…`,
		"export evt_1":                           "as what? --as curl",
		"export evt_1 --as pdf":                  `--as "pdf": expected curl, har or go`,
		"export evt_1 --as curl --target x":      "expected http://host/path",
		"requeue":                                "which one?",
		"requeue rpl_1":                          "expected evt_… or dlv_…",
		"cancel x":                               "expected evt_… or dlv_… or rpl_…",
	} {
		t.Run(args, func(t *testing.T) {
			code, err := newDesk().run(t, strings.Fields(args)...)
			if code != exitUsage || err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("code %d, %v; want %q", code, err, want)
			}
		})
	}
}

func TestFlagsMayStandAnywhere(t *testing.T) {
	newRelayAPI(t)
	for _, args := range []string{"--json evt_1 --raw", "evt_1 --json --raw", "--raw --json evt_1", "--raw --json -- evt_1"} {
		f := newEventFlags(showVerb)
		raw := f.yes("raw", "")
		f.asJSON("")
		if err := f.parse(io.Discard, strings.Fields(args)); err != nil || !*raw || !*f.json || !slices.Equal(f.args, []string{"evt_1"}) {
			t.Errorf("%s: %v, raw %v, json %v, %q", args, err, *raw, *f.json, f.args)
		}
	}
	f := newEventFlags(showVerb)
	if err := f.parse(io.Discard, []string{"--", "evt_1", "--json"}); err != nil || !slices.Equal(f.args, []string{"evt_1", "--json"}) {
		t.Errorf("behind --: %q, %v", f.args, err)
	}
}

func TestNothingThatSteersATerminalIsPrinted(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"plain, Zoë 日本 ✓": "plain, Zoë 日本 ✓", "\xff\xfeé": `\xff\xfeé`, "\ufffd": "\ufffd", "a\nb": `a\nb`, "\x00\x1b\x7f": `\x00\x1b\x7f`,
		"\u202e\u200b\u009b": `\u202e\u200b\u009b`,
	} {
		if got := line(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if got := printable("a\n\tb\r", "\n\t"); got != "a\n\tb\\r" {
		t.Errorf("with line breaks: %q", got)
	}
}

func TestMoments(t *testing.T) {
	t.Parallel()
	berlin := time.FixedZone("CET", 3600)
	for in, want := range map[string]string{
		"1h": "2026-11-21T11:00:00Z", "90s": "2026-11-21T11:58:30Z", "7d": "2026-11-14T12:00:00Z", "0s": "2026-11-21T12:00:00Z",
		"1.5d": "2026-11-20T00:00:00Z", "2026-11-20": "2026-11-19T23:00:00Z", "2026-11-20 10:30": "2026-11-20T09:30:00Z",
		"2026-11-20T10:30:01": "2026-11-20T09:30:01Z", "2026-11-20T10:30:01Z": "2026-11-20T10:30:01Z",
		"2026-11-20T10:30:01+02:00": "2026-11-20T08:30:01Z", "36500d": "",
		"": "", "-1h": "", "d": "", "1": "", "1w": "", "20261120": "", "99999999999d": "", "now": "",
	} {
		got, err := when(in, noon, berlin)
		if (err != nil) != (want == "") || err == nil && got.UTC().Format(time.RFC3339) != want {
			t.Errorf("%q: %v, %v; want %s", in, got.UTC(), err, want)
		}
	}
}

func TestListFitsTheTerminal(t *testing.T) {
	r := newRelayAPI(t)
	r.on("GET /events", api.EventList{Events: someEvents()})
	var all strings.Builder
	for _, width := range []int{0, 160, 120, 100, 80, 60} {
		d := newDesk()
		if width > 0 {
			d.terminal(width, "")
		}
		if code, err := d.run(t, "list"); code != 0 {
			t.Fatal(code, err)
		}
		fmt.Fprintf(&all, "== %d columns\n%s", width, d.stdout)
		for l := range strings.Lines(d.stdout.String()) {
			if n := len([]rune(strings.TrimSuffix(l, "\n"))); width > 60 && n > width {
				t.Errorf("%d columns where there are %d: %s", n, width, l)
			}
			if strings.ContainsAny(l, "\x1b\a\u202e") {
				t.Errorf("a line that steers the terminal: %q", l)
			}
		}
	}
	golden(t, "list.txt", all.String())
}

func TestColoursAreForTerminals(t *testing.T) {
	r := newRelayAPI(t)
	r.on("GET /events", api.EventList{Events: someEvents()})
	d := newDesk().terminal(160, "")
	d.color = true
	d.run(t, "list")
	if !strings.Contains(d.stdout.String(), "\x1b[31mdead\x1b[0m") || !strings.Contains(d.stdout.String(), "\x1b[32mdone\x1b[0m") {
		t.Errorf("no colours: %q", d.stdout)
	}
	// With the colours taken out, it is the same table.
	coloured := d.stdout.String()
	for _, c := range []string{red, green, yellow, cyan, dim} {
		coloured = strings.ReplaceAll(coloured, "\x1b["+c+"m", "")
	}
	plainly := newDesk().terminal(160, "")
	plainly.run(t, "list")
	if got := strings.ReplaceAll(coloured, "\x1b[0m", ""); got != plainly.stdout.String() {
		t.Errorf("colours move the columns:\n%s%s", got, plainly.stdout)
	}
}

func TestListAsksForPages(t *testing.T) {
	r := newRelayAPI(t)
	r.handle("GET /events", func(w http.ResponseWriter, req *http.Request) {
		q := req.URL.Query()
		from, _ := strconv.Atoi(strings.TrimPrefix(q.Get("before"), "evt_"))
		limit, _ := strconv.Atoi(q.Get("limit"))
		list := api.EventList{Events: []api.Event{}}
		// A page may have fewer than were asked for, even none, and not be the last.
		for i := from; i < from+min(limit, 300) && i < 1234; i++ {
			if from != 300 {
				list.Events = append(list.Events, api.Event{ID: "evt_" + strconv.Itoa(i)})
			}
		}
		if from+300 < 1234 {
			list.Next = "evt_" + strconv.Itoa(from+min(limit, 300))
		}
		answer(w, list)
	})
	for limit, want := range map[int]int{10: 10, 500: 500, 934: 934, 100000: 934} {
		d := newDesk()
		if code, err := d.run(t, "list", "--json", "--limit", strconv.Itoa(limit)); code != 0 {
			t.Fatal(code, err)
		}
		var got []api.Event
		if err := json.Unmarshal([]byte(d.stdout.String()), &got); err != nil || len(got) != want {
			t.Errorf("--limit %d: %d events, %v; want %d", limit, len(got), err, want)
		}
	}
	d := newDesk().terminal(80, "")
	d.run(t, "list", "--limit", "10")
	if !strings.Contains(d.stderr.String(), "--limit 100 shows them") {
		t.Errorf("said %q", d.stderr)
	}
}

func TestListOfNothing(t *testing.T) {
	r := newRelayAPI(t)
	r.on("GET /events", api.EventList{})
	for args, want := range map[string]string{"list": "no events yet\n", "list --refused": "no events match\n", "list --type x": "no events match\n"} {
		d := newDesk()
		if code, err := d.run(t, strings.Fields(args)...); code != 0 || d.stdout.String() != "" || d.stderr.String() != want {
			t.Errorf("%s: %d, %v, %q, %q", args, code, err, d.stdout, d.stderr)
		}
	}
}

// "postern events list | head -1" is no failure.
func TestReaderThatHasSeenEnough(t *testing.T) {
	r := newRelayAPI(t)
	r.on("GET /events", api.EventList{Events: someEvents()})
	d := newDesk()
	read, write := io.Pipe()
	read.Close()
	d.out = &output{w: write}
	if code, err := d.run(t, "list"); code != 0 || err != nil {
		t.Errorf("%d, %v", code, err)
	}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip("no /dev/full here")
	}
	defer full.Close()
	d = newDesk()
	d.out = &output{w: full}
	if code, err := d.run(t, "list"); code != exitFailed || err == nil {
		t.Errorf("on a full disk: %d, %v", code, err)
	}
}

// oneEvent is a whole event, with all there is to show.
func oneEvent() api.EventDetail {
	e := api.EventDetail{Event: someEvents()[3]}
	e.Target, e.PublicURL = "/x?a=b", "https://relay.example.com/hooks/shop/stripe/x?a=b"
	e.DedupeKey, e.ExpiresAt = "evt_1PabcD", noon.Add(29*24*time.Hour)
	e.Header = [][2]string{{"Content-Type", "application/json"}, {"Stripe-Signature", "t=1,v1=[redacted]"}, {"X-Odd", "a\x1b[31mb"}}
	e.Body = &api.Body{Text: `{"id":"evt_1PabcD","amount":10.50,"name":"Zoë \u001b[31m","items":[1,2],"url":"a<b"}`}
	e.BodySize = int64(len(e.Body.Text))
	e.Deliveries = append(e.Deliveries, api.Delivery{ID: "dlv_09", Trigger: "replay", Replay: "rpl_01", State: "cancelled"})
	e.Attempts = []api.Attempt{
		{Delivery: "dlv_03", Number: 1, StartedAt: e.ReceivedAt.Add(3 * time.Millisecond), Millis: 41, Instance: "web.1", Outcome: "rejected", Status: 500,
			Header: [][2]string{{"Content-Type", "text/plain"}}, Body: &api.Body{Text: "no such customer\r\n\x1b[2J" + strings.Repeat("at line\n", 40)}},
		{Delivery: "dlv_03b", Number: 1, StartedAt: e.ReceivedAt.Add(4 * time.Millisecond), Millis: 30000, Outcome: "timeout", Error: "the app was silent for 30s"},
		{Delivery: "dlv_03", Number: 2, StartedAt: e.ReceivedAt.Add(5 * time.Second), Millis: 12, Instance: "web.1", Outcome: "done", Status: 200, Body: &api.Body{}},
	}
	return e
}

func TestShowIsReadable(t *testing.T) {
	r := newRelayAPI(t)
	e := oneEvent()
	r.on("GET /events/{id}", e)
	binary := e
	binary.Body = &api.Body{Base64: []byte(strings.Repeat("\xff\x00\x1b[31mGIF", 200))}
	gone := e
	gone.Body, gone.Attempts, gone.Deliveries = nil, nil, nil
	gone.State, gone.Verified, gone.Refusal = "refused", false, "the signature does not match: the body that was signed ended with a line break, and this one does not; a proxy in front may have taken it away"
	var all strings.Builder
	for _, test := range []struct {
		name  string
		event api.EventDetail
		width int
		args  string
	}{
		{"at a terminal", e, 80, "show evt_1"},
		{"raw", e, 80, "show evt_1 --raw"},
		{"in a pipe", e, 0, "show evt_1"},
		{"no text", binary, 80, "show evt_1"},
		{"refused, and deleted", gone, 80, "show evt_1"},
	} {
		r.on("GET /events/{id}", test.event)
		d := newDesk()
		if test.width > 0 {
			d.terminal(test.width, "")
		}
		if code, err := d.run(t, strings.Fields(test.args)...); code != 0 {
			t.Fatal(code, err)
		}
		if strings.ContainsAny(d.stdout.String(), "\x1b\a\x00\r") {
			t.Errorf("%s: it steers the terminal: %q", test.name, d.stdout)
		}
		fmt.Fprintf(&all, "== %s\n%s", test.name, d.stdout)
	}
	golden(t, "show.txt", all.String())
}

func TestBodyAloneIsTheSendersBytes(t *testing.T) {
	r := newRelayAPI(t)
	for name, want := range map[string]string{"text": "{\"a\": 1}\r\n\x1b", "binary": "\xff\x00\xfe", "empty": ""} {
		body := &api.Body{Base64: []byte(want)}
		if name == "text" {
			body = &api.Body{Text: want}
		}
		r.on("GET /events/{id}", api.EventDetail{Body: body})
		d := newDesk().terminal(80, "")
		if code, err := d.run(t, "show", "evt_1", "--body"); code != 0 || d.stdout.String() != want {
			t.Errorf("%s: %d, %v, %q", name, code, err, d.stdout)
		}
	}
	r.on("GET /events/{id}", api.EventDetail{Event: api.Event{BodySize: 12}})
	if code, err := newDesk().run(t, "show", "evt_1", "--body"); code != 1 || !strings.Contains(err.Error(), "not kept any more") {
		t.Errorf("%d, %v", code, err)
	}
}

func TestShowAsJSONIsWhatTheAPISays(t *testing.T) {
	r := newRelayAPI(t)
	want := oneEvent()
	r.on("GET /events/{id}", want)
	d := newDesk()
	if code, err := d.run(t, "show", "evt_1", "--json"); code != 0 {
		t.Fatal(code, err)
	}
	var got api.EventDetail
	if err := json.Unmarshal([]byte(d.stdout.String()), &got); err != nil || got.Body.Text != want.Body.Text || len(got.Attempts) != 3 {
		t.Errorf("%v, %s", err, d.stdout)
	}
}

func TestLongBodiesAreCut(t *testing.T) {
	c := newDesk().terminal(80, "")
	text := c.bodyText(&api.Body{Text: strings.Repeat("é", textShown)}, false)
	if !strings.HasSuffix(text, "é\n… and 65.5 kB more; --raw shows all of it") {
		t.Errorf("ends with %q", text[len(text)-80:])
	}
	if all := c.bodyText(&api.Body{Text: strings.Repeat("é", textShown)}, true); len(all) != 2*textShown {
		t.Errorf("raw has %d bytes", len(all))
	}
	dump := c.bodyText(&api.Body{Base64: make([]byte, 1<<20)}, false)
	if len(dump) > 10<<10 || !strings.HasSuffix(dump, "1.0 MB more; --body writes all of it as it is") {
		t.Errorf("a dump of %d bytes", len(dump))
	}
}

func TestExport(t *testing.T) {
	r := newRelayAPI(t)
	r.handle("GET /events/{id}/export", func(w http.ResponseWriter, req *http.Request) {
		fmt.Fprintf(w, "curl %s\n", req.URL.Query().Get("target"))
	})
	d := newDesk()
	if code, err := d.run(t, "export", "evt_1", "--as", "curl", "--target", "http://127.0.0.1:3000/a?b=c"); code != 0 || d.stdout.String() != "curl http://127.0.0.1:3000/a?b=c\n" {
		t.Errorf("%d, %v, %q", code, err, d.stdout)
	}
	want := "GET /events/evt_1/export?as=curl&target=" + url.QueryEscape("http://127.0.0.1:3000/a?b=c")
	if got := r.said(); !slices.Equal(got, []string{want}) {
		t.Errorf("asked %q", got)
	}
	file := filepath.Join(t.TempDir(), "event.sh")
	if code, err := newDesk().run(t, "export", "evt_1", "--as", "curl", "-o", file); code != 0 {
		t.Fatal(code, err)
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != "curl \n" {
		t.Errorf("%q, %v", got, err)
	}
	if info, _ := os.Stat(file); info.Mode().Perm() != 0o600 {
		t.Errorf("others may read it: %v", info.Mode())
	}
	// An answer that breaks off leaves the file as it was, and nothing beside it.
	r.handle("GET /events/{id}/export", func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Content-Length", "100")
		io.WriteString(w, "half")
	})
	if code, err := newDesk().run(t, "export", "evt_1", "--as", "curl", "-o", file); code != 1 || err == nil {
		t.Errorf("%d, %v", code, err)
	}
	if got, _ := os.ReadFile(file); string(got) != "curl \n" {
		t.Errorf("now it has %q", got)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(file), ".postern*")); len(left) > 0 {
		t.Errorf("left over: %q", left)
	}
}

func TestRequeueAndCancel(t *testing.T) {
	r := newRelayAPI(t)
	e := api.EventDetail{Event: api.Event{ID: "evt_1", Deliveries: []api.Delivery{
		{ID: "dlv_1", State: "dead"}, {ID: "dlv_2", State: "done"}, {ID: "dlv_3", State: "cancelled", Destination: "audit"}, {ID: "dlv_4", State: "ready"},
	}}}
	r.on("GET /events/{id}", e)
	act := func(state string) http.HandlerFunc {
		return func(w http.ResponseWriter, req *http.Request) {
			answer(w, api.Delivery{ID: strings.Split(req.URL.Path, "/")[4], State: state})
		}
	}
	r.handle("POST /deliveries/{id}/requeue", act("ready"))
	r.handle("POST /deliveries/{id}/cancel", act("cancelled"))
	r.on("POST /replays/{id}/cancel", api.Replay{ID: "rpl_1", State: "cancelled", Planned: 9, Made: 5, Done: 4, Cancelled: 1})
	for args, want := range map[string]string{
		"requeue evt_1":       "dlv_1  to the app  ready\ndlv_3  to the app  ready\n",
		"requeue dlv_9 dlv_8": "dlv_9  to the app  ready\ndlv_8  to the app  ready\n",
		"cancel evt_1":        "dlv_4  to the app  cancelled\n",
		"cancel rpl_1":        "rpl_1 cancelled: 4 delivered, 1 cancelled, 4 not begun\n",
	} {
		d := newDesk()
		if code, err := d.run(t, strings.Fields(args)...); code != 0 || d.stdout.String() != want {
			t.Errorf("%s: %d, %v, %q", args, code, err, d.stdout)
		}
	}
	e.Deliveries = nil
	r.on("GET /events/{id}", e)
	if code, err := newDesk().run(t, "requeue", "evt_1"); code != 1 || err.Error() != "no delivery of it is dead or cancelled" {
		t.Errorf("%d, %v", code, err)
	}
}
