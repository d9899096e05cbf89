package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/api"
	"github.com/posternhq/postern/protocol/policy"
	"github.com/posternhq/postern/relay"
)

// Now is 13:00 in these tests.
func TestWhatIsAskedAboutCallsReachesThoseWhoKnow(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	for _, test := range []struct{ token, path, asked string }{
		{"shop", "/egress/explain?url=https://u@a.example/x&method=PUT&instance=web.1", `explain shop "web.1" https://u@a.example/x "PUT"`},
		{"admin", "/egress/explain?url=tcp://a:1&app=other", `explain other "" tcp://a:1 ""`},
		{"shop", "/egress/flows", `recent "shop" "" "" 100`},
		{"admin", "/egress/flows?target=a.example:443&verdict=deny&limit=7", `recent "" "a.example:443" "deny" 7`},
		{"adminshop", "/egress/flows", `recent "shop" "" "" 100`},
		{"shop", "/egress/targets", "targets shop"},
		{"admin", "/egress/targets", "targets "},
		{"admin", "/egress/targets?app=other", "targets other"},
		{"shop", "/egress/usage", "usage shop since 2026-02-28T13:00:00Z"},
		{"admin", "/egress/usage?since=2026-01-31T12:00:00Z", "usage  since 2026-01-31T12:00:00Z"},
		{"shop", "/egress/learn", "learn shop since 2026-02-22T13:00:00Z"},
		{"admin", "/egress/learn?app=other&since=2026-01-31T12:00:00Z", "learn other since 2026-01-31T12:00:00Z"},
		{"shop", "/egress/status", "status shop"},
		{"admin", "/egress/status", "status "},
		{"shop", "/egress/orders", "orders all=false"},
		{"admin", "/egress/orders?all=1", "orders all=true"},
		{"admin", "/manifest", "running"},
		{"admin", "/manifest/versions", "versions 100"},
		{"admin", "/manifest/versions?limit=3", "versions 3"},
		{"admin", "/manifest/versions/12", "version 12"},
		{"admin", "/audit", "audit  100"},
		{"admin", "/audit?app=shop&limit=5", "audit shop 5"},
		{"adminshop", "/audit", "audit shop 100"},
	} {
		got := d.call(test.token, "GET", test.path, "")
		if asked := d.egress.last(); got.status != 200 || asked != test.asked {
			t.Errorf("%s %s: %d %s, asked %s, want %s", test.token, test.path, got.status, got.body, asked, test.asked)
		}
		if strings.Contains(got.body, "null") {
			t.Errorf("%s %s: a list is null: %s", test.token, test.path, got.body)
		}
	}
}

func TestVerbsSayWhoAsked(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	for _, test := range []struct{ token, path, body, asked string }{
		{"admin", "/manifest/apply", `{"source":"version: 1\n","note":"why","base":7,"no_canary":true}`,
			`apply by tok_admin (admin): "version: 1\n" note="why" base=7 canary=false since=0`},
		{"admin", "/manifest/diff", `{"source":"version: 1","since_ms":86400000}`,
			`diff "version: 1" note="" base=0 canary=true since=86400000`},
		{"admin", "/manifest/rollback", `{"to":3,"note":"it broke"}`, "rollback by tok_admin (admin): to 3, it broke"},
		{"admin", "/manifest/promote", "", "promote by tok_admin (admin)"},
		{"admin", "/egress/orders", `{"kind":"deny","what":"198.51.100.0/24","for_ms":1,"reason":"a leak"}`,
			"order by tok_admin (admin): {Kind:deny App: What:198.51.100.0/24 ForMS:1 Reason:a leak Owner:}"},
		{"admin", "/egress/orders", `{"kind":"deny","what":"app:other","for_ms":1,"reason":"a leak"}`,
			"order by tok_admin (admin): {Kind:deny App: What:app:other ForMS:1 Reason:a leak Owner:}"},
		{"adminshop", "/egress/orders", `{"kind":"allow","what":"https://a.example","for_ms":9,"reason":"r","owner":"ops"}`,
			"order by tok_adminshop (admin): {Kind:allow App:shop What:https://a.example ForMS:9 Reason:r Owner:ops}"},
		{"admin", "/egress/orders/den_other/end", "", "end by tok_admin (admin): den_other"},
		{"adminshop", "/egress/orders/den_shop/end", "", "end by tok_adminshop (admin): den_shop"},
	} {
		got := d.call(test.token, "POST", test.path, test.body)
		if asked := d.egress.last(); got.status != 200 || asked != test.asked {
			t.Errorf("%s %s: %d %s, asked %s, want %s", test.token, test.path, got.status, got.body, asked, test.asked)
		}
	}
}

func TestWhatIsWrongWithAQuestionAboutCalls(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.egress.orders = []api.Order{{ID: "den_all", What: "a.example"}, {ID: "den_app", What: "app:other"}}
	long := strings.Repeat("x", maxText+1)
	order := func(change string) string {
		fields := map[string]any{"kind": "deny", "what": "a.example", "for_ms": 1000, "reason": "r"}
		if err := json.Unmarshal([]byte(change), &fields); err != nil {
			t.Fatal(err)
		}
		body, _ := json.Marshal(fields)
		return string(body)
	}
	for _, test := range []struct {
		name, token, method, path, body string
		status                          int
	}{
		{"explain for no app", "admin", "GET", "/egress/explain?url=https://a", "", 400},
		{"explain for an app that is not there", "admin", "GET", "/egress/explain?url=https://a&app=gone", "", 404},
		{"explain what", "shop", "GET", "/egress/explain", "", 400},
		{"a verdict that there is not", "shop", "GET", "/egress/flows?verdict=maybe", "", 400},
		{"too many flows", "shop", "GET", "/egress/flows?limit=1001", "", 400},
		{"flows of an app that is not there", "admin", "GET", "/egress/flows?app=gone", "", 404},
		{"a stream of an app that is not there", "admin", "GET", "/egress/flows/stream?app=gone", "", 404},
		{"usage since the future", "shop", "GET", "/egress/usage?since=2026-03-01T13:00:01Z", "", 400},
		{"learn for no app", "admin", "GET", "/egress/learn", "", 400},
		{"learn since when", "shop", "GET", "/egress/learn?since=7d", "", 400},
		{"the status of an app that is not there", "admin", "GET", "/egress/status?app=gone", "", 404},
		{"the orders of an app", "shop", "GET", "/egress/orders?app=shop", "", 400},
		{"the audit of an app that is not there", "admin", "GET", "/audit?app=gone", "", 404},
		{"too much audit", "admin", "GET", "/audit?limit=1001", "", 400},

		{"a kind of order that there is not", "admin", "POST", "/egress/orders", order(`{"kind":"maybe"}`), 400},
		{"an order about nothing", "admin", "POST", "/egress/orders", order(`{"what":""}`), 400},
		{"an order about app:", "admin", "POST", "/egress/orders", order(`{"what":"app:"}`), 400},
		{"an order about no app", "admin", "POST", "/egress/orders", order(`{"what":"app:SHOP"}`), 400},
		{"an order about an app that is not there", "admin", "POST", "/egress/orders", order(`{"what":"app:gone"}`), 404},
		{"an order for an app that is not there", "admin", "POST", "/egress/orders", order(`{"app":"gone"}`), 404},
		{"an order for no time", "admin", "POST", "/egress/orders", order(`{"for_ms":0}`), 400},
		{"an order for negative time", "admin", "POST", "/egress/orders", order(`{"for_ms":-1}`), 400},
		{"an order for too long", "admin", "POST", "/egress/orders", order(`{"for_ms":9223372036854775807}`), 400},
		{"too long a reason", "admin", "POST", "/egress/orders", order(`{"reason":"` + long + `"}`), 400},
		{"a reason on two lines", "admin", "POST", "/egress/orders", order(`{"reason":"a\nb"}`), 400},
		{"an unknown field of an order", "admin", "POST", "/egress/orders", order(`{"force":true}`), 400},
		{"another app's order by an administrator of one", "adminshop", "POST", "/egress/orders", order(`{"app":"other"}`), 403},
		{"a deny of another app by an administrator of one", "adminshop", "POST", "/egress/orders", order(`{"what":"app:other"}`), 403},
		{"the end of an order for all by an administrator of one", "adminshop", "POST", "/egress/orders/den_all/end", "", 404},
		{"the end of another app's deny by an administrator of one", "adminshop", "POST", "/egress/orders/den_app/end", "", 404},
		{"the end of an order with a body", "admin", "POST", "/egress/orders/den_all/end", "{}", 400},

		{"the manifest for an administrator of one", "adminshop", "GET", "/manifest", "", 403},
		{"its versions", "adminshop", "GET", "/manifest/versions", "", 403},
		{"one of them", "adminshop", "GET", "/manifest/versions/1", "", 403},
		{"a change of it", "adminshop", "POST", "/manifest/apply", `{"source":"a"}`, 403},
		{"a look at a change", "adminshop", "POST", "/manifest/diff", `{"source":"a"}`, 403},
		{"a step back", "adminshop", "POST", "/manifest/rollback", `{}`, 403},
		{"a step on", "adminshop", "POST", "/manifest/promote", "", 403},
		{"version 0", "admin", "GET", "/manifest/versions/0", "", 404},
		{"no version", "admin", "GET", "/manifest/versions/latest", "", 404},
		{"too many versions", "admin", "GET", "/manifest/versions?limit=0", "", 400},
		{"an unknown field of a manifest", "admin", "POST", "/manifest/apply", `{"source":"a","force":true}`, 400},
		{"a manifest that is no text", "admin", "POST", "/manifest/apply", `{"source":{}}`, 400},
		{"nothing to apply", "admin", "POST", "/manifest/apply", "", 400},
		{"a negative base", "admin", "POST", "/manifest/apply", `{"source":"a","base":-1}`, 400},
		{"too long a note", "admin", "POST", "/manifest/apply", `{"source":"a","note":"` + long + `"}`, 400},
		{"a diff of the future", "admin", "POST", "/manifest/diff", `{"source":"a","since_ms":-1}`, 400},
		{"a diff of for ever", "admin", "POST", "/manifest/diff", `{"source":"a","since_ms":9223372036854775807}`, 400},
		{"a rollback to a negative version", "admin", "POST", "/manifest/rollback", `{"to":-1}`, 400},
		{"a rollback with a note on two lines", "admin", "POST", "/manifest/rollback", `{"note":"a\u0000"}`, 400},
		{"a rollback without a body", "admin", "POST", "/manifest/rollback", "", 400},
		{"a promotion with a body", "admin", "POST", "/manifest/promote", "{}", 400},
	} {
		got := d.call(test.token, test.method, test.path, test.body)
		if got.status != test.status || got.code() == "" {
			t.Errorf("%s: %d %s, want %d", test.name, got.status, got.body, test.status)
		}
		if asked := d.egress.last(); asked != "" && !strings.HasPrefix(asked, "orders") {
			t.Errorf("%s: was asked: %s", test.name, asked)
		}
	}
}

func TestARelayWithoutPoliciesHasNoneOfTheirRoutes(t *testing.T) {
	t.Parallel()
	d := newDesk(t, func(c *Config) { c.Policies, c.Calls = nil, nil })
	for _, row := range calls {
		method, path, _ := strings.Cut(row.route, " ")
		if !strings.HasPrefix(path, "/egress") && !strings.HasPrefix(path, "/manifest") && path != "/audit" {
			continue
		}
		token := row.token
		if token == "" {
			token = "shop"
		}
		if got := d.call(token, method, fill(row.path, row.ids[0]), row.body); got.status != 404 || got.code() != "not_found" {
			t.Errorf("%s: %d %s", row.route, got.status, got.body)
		}
	}
}

func TestEverythingWrongWithAManifestIsInTheAnswer(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	problems := relay.ManifestErrors{
		{File: "/etc/postern/manifest.yaml", Line: 3, Column: 5, Message: `expected a list, found "<b>"`},
		{File: "/etc/postern/manifest.yaml", Line: 9, Column: 1, Message: "unknown key"},
	}
	want := []api.ManifestProblem{{Line: 3, Column: 5, Message: `expected a list, found "<b>"`}, {Line: 9, Column: 1, Message: "unknown key"}}
	for _, test := range []struct {
		name    string
		err     error
		message string
	}{
		{"bare", problems, `the manifest is not valid: line 3, column 5: expected a list, found "<b>", and 1 more`},
		{"wrapped", fmt.Errorf("parse: %w", problems), `the manifest is not valid: line 3, column 5: expected a list, found "<b>", and 1 more`},
		{"with a code", &relay.Error{Code: relay.Invalid, Message: "no", Err: problems}, "no"},
	} {
		d.egress.fail(test.err)
		for _, verb := range []string{"apply", "diff"} {
			got := d.call("admin", "POST", "/manifest/"+verb, `{"source":"a"}`)
			var answer api.ErrorAnswer
			if err := json.Unmarshal([]byte(got.body), &answer); err != nil {
				t.Fatal(err)
			}
			e := answer.Error
			if got.status != 400 || e.Code != "invalid" || e.Message != test.message || fmt.Sprint(e.Errors) != fmt.Sprint(want) ||
				e.RequestID != got.header.Get(protocol.HeaderRequestID) || got.header.Get("Content-Type") != "application/json" ||
				strings.Contains(got.body, "/etc") {
				t.Errorf("%s, %s: %d %v %s", test.name, verb, got.status, got.header, got.body)
			}
		}
	}
	// What else may go wrong stays as it is.
	d.egress.fail(relay.Errorf(relay.Conflict, "version 8 runs"))
	if got := d.call("admin", "POST", "/manifest/apply", `{"source":"a","base":7}`); got.status != 409 || strings.Contains(got.body, "errors") {
		t.Errorf("a conflict: %d %s", got.status, got.body)
	}
	d.egress.fail(relay.ManifestErrors{})
	if got := d.call("admin", "POST", "/manifest/apply", `{"source":"a"}`); got.status != 503 {
		t.Errorf("no problem: %d %s", got.status, got.body)
	}
}

func TestAManifestMayBeAsLongAsOneMayBe(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	for _, test := range []struct {
		verb   string
		text   string
		size   int
		status int
	}{
		{"apply", "x", relay.MaxManifestSize, 200},
		{"apply", "\\u0001", relay.MaxManifestSize, 200}, // the longest that JSON makes of a byte
		{"apply", "x", relay.MaxManifestSize + 1, 413},
		{"diff", "x", relay.MaxManifestSize, 200},
		{"diff", "x", relay.MaxManifestSize + 1, 413},
	} {
		got := d.call("admin", "POST", "/manifest/"+test.verb, `{"source":"`+strings.Repeat(test.text, test.size)+`"}`)
		if got.status != test.status || test.status == 200 && d.egress.text != test.size {
			t.Errorf("%s of %d %q: %d %.200s, %d came", test.verb, test.size, test.text, got.status, got.body, d.egress.text)
		}
	}
}

func TestATokenOfOneAppSeesItsOrdersAndThoseForAll(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.egress.orders = []api.Order{
		{ID: "den_1", App: "other", What: "a.example"}, {ID: "den_2", What: "b.example"}, {ID: "den_3", What: "app:other"},
		{ID: "den_4", What: "app:shop"}, {ID: "exc_5", App: "shop", What: "https://c.example"}, {ID: "exc_6", App: "other", What: "https://c.example"},
	}
	for token, want := range map[string]string{
		"shop": "den_2 den_4 exc_5", "adminshop": "den_2 den_4 exc_5", "other": "den_1 den_2 den_3 exc_6",
		"admin": "den_1 den_2 den_3 den_4 exc_5 exc_6",
	} {
		var list api.OrderList
		d.call(token, "GET", "/egress/orders", "").decode(t, &list)
		var got []string
		for _, o := range list.Orders {
			got = append(got, o.ID)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s sees %v, want %s", token, got, want)
		}
	}
}

func TestOnlyWhoSeesTheWholeRelaySeesItsCounts(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	for token, want := range map[string][3]int64{"shop": {}, "adminshop": {}, "admin": {30, 20, 10}} {
		var s api.EgressStatus
		d.call(token, "GET", "/egress/status", "").decode(t, &s)
		if got := [3]int64{s.Started, s.Logged, s.InFlight}; got != want || s.Serial != 5 {
			t.Errorf("%s sees %+v", token, s)
		}
	}
}

func TestATargetThatCannotBeReadIsTheCallersMistake(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.egress.fail(fmt.Errorf("explain: %w", &policy.TargetError{Reason: "the port is missing"}))
	if got := d.call("shop", "GET", "/egress/explain?url=tcp://a", ""); got.status != 400 || !strings.Contains(got.body, "url: the port is missing") {
		t.Errorf("%d %s", got.status, got.body)
	}
}

// Agents say when their calls began, and JSON has no year 20000.
func TestAFlowOfAnImpossibleTimeIsShown(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.egress.flows = []protocol.Flow{{ID: "flo_1", App: "shop", StartedAt: noon.AddDate(20000, 0, 0)}, {ID: "flo_2", StartedAt: noon}}
	var list api.FlowList
	d.call("shop", "GET", "/egress/flows", "").decode(t, &list)
	if len(list.Flows) != 2 || !list.Flows[0].StartedAt.IsZero() || !list.Flows[1].StartedAt.Equal(noon) {
		t.Errorf("%+v", list)
	}
}

// flowTail is a reader of the stream of flows.
type flowTail struct {
	t    *testing.T
	ch   chan string // the flows' ids, and : for a comment; closed at the end
	stop func()
}

func (d *desk) followFlows(token, query string) *flowTail {
	d.t.Helper()
	ctx, cancel := context.WithCancel(d.t.Context())
	r, _ := http.NewRequestWithContext(ctx, "GET", d.url+Prefix+"/egress/flows/stream?"+query, nil)
	r.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		d.t.Fatal(err)
	}
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		body, _ := io.ReadAll(resp.Body)
		d.t.Fatalf("%d %v %s", resp.StatusCode, resp.Header, body)
	}
	out := &flowTail{t: d.t, ch: make(chan string, 1000), stop: cancel}
	d.t.Cleanup(cancel)
	go out.read(resp.Body)
	return out
}

func (out *flowTail) read(body io.ReadCloser) {
	defer close(out.ch)
	defer body.Close()
	lines := bufio.NewScanner(body)
	kind := ""
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ": ")
		switch {
		case name == "event":
			kind = value
		case name == "data":
			var f protocol.Flow
			if err := json.Unmarshal([]byte(value), &f); err != nil && lines.Scan() || kind != api.FlowEvent {
				out.t.Errorf("%s %s: %v", kind, value, err)
			}
			out.ch <- f.ID
		case name == "" && value != "":
			out.ch <- ":"
		}
	}
}

// next is the id of the next flow; ":" when it is a comment and asked for, "" at
// the end.
func (out *flowTail) next(comments bool) string {
	out.t.Helper()
	late := time.After(patience)
	for {
		select {
		case id := <-out.ch:
			if id != ":" || comments {
				return id
			}
		case <-late:
			out.t.Fatal("nothing came")
		}
	}
}

func TestTheStreamOfFlowsShowsThoseOfTheApp(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	own, named, all := d.followFlows("shop", ""), d.followFlows("admin", "app=other"), d.followFlows("admin", "")
	d.egress.log(protocol.Flow{ID: "flo_1", App: "other"})
	d.egress.log(protocol.Flow{ID: "flo_2", App: "shop", StartedAt: noon.AddDate(20000, 0, 0)})
	d.egress.log(protocol.Flow{ID: "flo_3", App: "other"})
	for _, test := range []struct {
		name string
		out  *flowTail
		want []string
	}{
		{"the app's", own, []string{"flo_2"}},
		{"another's", named, []string{"flo_1", "flo_3"}},
		{"all", all, []string{"flo_1", "flo_2", "flo_3"}},
	} {
		for _, want := range test.want {
			if got := test.out.next(false); got != want {
				t.Errorf("%s: %s, want %s", test.name, got, want)
			}
		}
	}
}

func TestAStreamOfFlowsEnds(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*desk, *flowTail){
		"with its token":  func(d *desk, _ *flowTail) { d.revoke() },
		"with the server": func(d *desk, _ *flowTail) { d.api.Close() },
		"with the relay":  func(d *desk, _ *flowTail) { d.egress.stop() },
		"with its reader": func(_ *desk, out *flowTail) { out.stop() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t)
			d.api.heartbeat = 10 * time.Millisecond
			out := d.followFlows("shop", "")
			if got := out.next(true); got != ":" { // alive
				t.Errorf("got %q for a heartbeat", got)
			}
			end(d, out)
			if got := out.next(false); got != "" {
				t.Errorf("%s came behind the end", got)
			}
			for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
				d.api.mu.Lock()
				places := len(d.api.streams)
				d.api.mu.Unlock()
				if places == 0 && d.egress.watched() == 0 {
					return
				}
				if time.Now().After(deadline) {
					t.Fatalf("%d places and %d readers are left", places, d.egress.watched())
				}
			}
		})
	}
}

func TestStreamsOfFlowsTakePlacesToo(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	for range maxPerToken {
		d.followFlows("shop", "")
	}
	if got := d.call("shop", "GET", "/egress/flows/stream", ""); got.status != 429 {
		t.Errorf("one more: %d %s", got.status, got.body)
	}
	d.followFlows("other", "")
}
