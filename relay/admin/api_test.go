package admin

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/posternhq/postern/relay"
)

// stocked is a desk with three events of shop, one of other, and what belongs to
// them.
func stocked(t *testing.T, change ...func(*Config)) *desk {
	d := newDesk(t, change...)
	first := event(1, "shop", "stripe", `{"id":1}`)
	second := event(2, "shop", "hiding", `{"card":"4242","note":"plain"}`)
	third := event(3, "shop", "stripe", `{"id":3}`)
	third.Refusal, third.Verified, third.Type = "no secret matches", false, ""
	fourth := event(4, "other", "stripe", `{"id":4}`)
	d.store.add(first, second, third, fourth)
	d.store.deliveries = []relay.Delivery{
		{ID: "dlv_1", Event: first.ID, App: "shop", Endpoint: "stripe", State: relay.DeliveryDead, Attempt: 2, LastStatus: 500},
		{ID: "dlv_2", Event: second.ID, App: "shop", Endpoint: "hiding", State: relay.DeliveryReady, NextAt: noon},
		{ID: "dlv_4", Event: fourth.ID, App: "other", Endpoint: "stripe", State: relay.DeliveryDead},
	}
	d.store.attempts = []relay.Attempt{
		{Delivery: "dlv_1", Number: 2, StartedAt: noon.Add(9 * time.Second), EndedAt: noon.Add(9500 * time.Millisecond),
			Outcome: relay.OutcomeRejected, Status: 500, Header: []relay.Field{{Name: "Content-Type", Value: "text/plain"}}, Body: []byte("broken\xff")},
		{Delivery: "dlv_1", Number: 1, StartedAt: noon, EndedAt: noon.Add(time.Second), Outcome: relay.OutcomeTimeout},
		{Delivery: "dlv_2", Number: 1, StartedAt: noon, EndedAt: noon, Outcome: relay.OutcomeRejected, Status: 400, Body: []byte(`{"card":"4242"}`)},
	}
	d.store.replays = []relay.Replay{
		{ID: "rpl_1", App: "shop", By: "tok_shop", CreatedAt: noon, State: relay.ReplayPlanned, Planned: 2},
		{ID: "rpl_4", App: "other", State: relay.ReplayPlanned},
	}
	return d
}

// Each row of the table has a call that works, and a record of each kind that
// is there, of another app, and not there.
var calls = []struct {
	route string // of the table
	path  string // that works for shop; %s is a record
	body  string
	ids   [3]string // shop's, other's, nobody's
	token string    // whose call works; default shop
}{
	{"GET /events", "/events", "", [3]string{}, ""},
	{"GET /events/stream", "/events/stream", "", [3]string{}, ""},
	{"GET /events/{id}", "/events/%s", "", [3]string{"evt_shop_0001", "evt_other_0004", "evt_none"}, ""},
	{"GET /events/{id}/export", "/events/%s/export?as=curl", "", [3]string{"evt_shop_0001", "evt_other_0004", "evt_none"}, ""},
	{"POST /replays", "/replays", `{"states":["dead"]}`, [3]string{}, ""},
	{"GET /replays", "/replays", "", [3]string{}, ""},
	{"GET /replays/{id}", "/replays/%s", "", [3]string{"rpl_1", "rpl_4", "rpl_none"}, ""},
	{"POST /replays/{id}/start", "/replays/%s/start", "", [3]string{"rpl_1", "rpl_4", "rpl_none"}, ""},
	{"POST /replays/{id}/cancel", "/replays/%s/cancel", "", [3]string{"rpl_1", "rpl_4", "rpl_none"}, ""},
	{"POST /deliveries/{id}/requeue", "/deliveries/%s/requeue", "", [3]string{"dlv_1", "dlv_4", "dlv_none"}, ""},
	{"POST /deliveries/{id}/cancel", "/deliveries/%s/cancel", "", [3]string{"dlv_2", "dlv_4", "dlv_none"}, ""},
	{"GET /instances", "/instances", "", [3]string{}, ""},
	{"GET /logs", "/logs", "", [3]string{}, ""},
	{"GET /lastwords", "/lastwords", "", [3]string{}, ""},
	{"GET /egress/explain", "/egress/explain?url=https://a.example", "", [3]string{}, ""},
	{"GET /egress/flows", "/egress/flows", "", [3]string{}, ""},
	{"GET /egress/flows/stream", "/egress/flows/stream", "", [3]string{}, ""},
	{"GET /egress/targets", "/egress/targets", "", [3]string{}, ""},
	{"GET /egress/usage", "/egress/usage", "", [3]string{}, ""},
	{"GET /egress/learn", "/egress/learn", "", [3]string{}, ""},
	{"GET /egress/status", "/egress/status", "", [3]string{}, ""},
	{"GET /egress/orders", "/egress/orders", "", [3]string{}, ""},
	{"POST /egress/orders", "/egress/orders", `{"kind":"deny","what":"a.example","for_ms":60000,"reason":"a leak"}`, [3]string{}, "admin"},
	{"POST /egress/orders/{id}/end", "/egress/orders/%s/end", "", [3]string{"den_shop", "den_other", "den_none"}, "adminshop"},
	{"GET /manifest", "/manifest", "", [3]string{}, "admin"},
	{"GET /manifest/versions", "/manifest/versions", "", [3]string{}, "admin"},
	{"GET /manifest/versions/{id}", "/manifest/versions/1", "", [3]string{}, "admin"},
	{"POST /manifest/apply", "/manifest/apply", `{"source":"version: 1"}`, [3]string{}, "admin"},
	{"POST /manifest/diff", "/manifest/diff", `{"source":"version: 1"}`, [3]string{}, "admin"},
	{"POST /manifest/rollback", "/manifest/rollback", `{}`, [3]string{}, "admin"},
	{"POST /manifest/promote", "/manifest/promote", "", [3]string{}, "admin"},
	{"GET /audit", "/audit", "", [3]string{}, "adminshop"},
}

func fill(path, id string) string {
	if strings.Contains(path, "%s") {
		return fmt.Sprintf(path, id)
	}
	return path
}

type question struct {
	name, token, path, body string
	status                  int
	code                    string
}

// The same questions to every route, so that a new one cannot forget one.
func TestEveryRouteKeepsItsDoor(t *testing.T) {
	t.Parallel()
	var tested []string
	for _, row := range calls {
		tested = append(tested, row.route)
		method, _, _ := strings.Cut(row.route, " ")
		t.Run(row.route, func(t *testing.T) {
			t.Parallel()
			d := stocked(t)
			path := fill(row.path, row.ids[0])
			join := "?"
			if strings.Contains(path, "?") {
				join = "&"
			}
			token := cmp.Or(row.token, "shop")
			size := maxBody
			if takes := rowOf(t, row.route).takes; takes != nil {
				size = int(bodyLimit(takes()))
			}
			large := `{"text":"` + strings.Repeat("x", size) + `"}`
			tests := []question{
				{"no token", "", path, row.body, 401, "unauthorized"},
				{"an agent's token", "agent", path, row.body, 403, "forbidden"},
				{"an unknown parameter", token, path + join + "colour=red", row.body, 400, "invalid"},
				{"half a percent sign", token, path + join + "app=%zz", row.body, 400, "invalid"},
				{"too long a query", token, path + join + "app=" + strings.Repeat("x", maxQuery), row.body, 400, "invalid"},
			}
			if token != "shop" {
				tests = append(tests, question{"a developer's token", "shop", path, row.body, 403, "forbidden"})
			}
			if row.ids[0] != "" {
				for _, token := range slices.Compact([]string{token, "adminshop"}) {
					tests = append(tests, question{"another app's record for " + token, token, fill(row.path, row.ids[1]), row.body, 404, "not_found"})
				}
				for _, id := range []string{row.ids[2], "a%2Fb", "%00", strings.Repeat("e", 300)} {
					tests = append(tests, question{"nobody's record " + id[:min(9, len(id))], token, fill(row.path, id), row.body, 404, "not_found"})
				}
			}
			if method == http.MethodPost {
				tests = append(tests, question{"too large a body", token, path, large, 413, "too_large"})
			}
			for _, test := range tests {
				got := d.call(test.token, method, test.path, test.body)
				if got.status != test.status || got.code() != test.code {
					t.Errorf("%s: %d %s, want %d %s", test.name, got.status, got.body, test.status, test.code)
				}
				if got.header.Get("Cache-Control") != "no-store" || got.header.Get("Postern-Request-Id") == "" || !strings.Contains(got.body, got.header.Get("Postern-Request-Id")) {
					t.Errorf("%s: headers %v", test.name, got.header)
				}
			}
			if got := d.call(token, http.MethodDelete, path, ""); got.status != 405 || !strings.Contains(got.header.Get("Allow"), method) {
				t.Errorf("DELETE: %d %v", got.status, got.header)
			}
			if !strings.HasSuffix(row.route, "/stream") { // has no end
				got := d.call(token, method, path, row.body)
				if row.route == "POST /replays/{id}/cancel" { // a planned one, for the fake
					if got.status != 409 || got.code() != "conflict" {
						t.Errorf("works: %d %s", got.status, got.body)
					}
				} else if got.status != 200 || got.header.Get("Cache-Control") != "no-store" {
					t.Errorf("works: %d %s", got.status, got.body)
				} else if gives := rowOf(t, row.route).gives; gives != nil {
					got.decode(t, reflect.New(reflect.TypeOf(gives)).Interface())
				} else if got.header.Get("Content-Type") == "application/json" {
					t.Errorf("the table does not say that it gives JSON")
				}
			}
			d.store.fail = errors.New("disk on fire")
			if got := d.call(token, method, path, row.body); got.status != 503 || got.code() != "unavailable" || strings.Contains(got.body, "fire") {
				t.Errorf("store down: %d %s", got.status, got.body)
			}
		})
	}
	for _, row := range routes {
		if !slices.Contains(tested, row.method+" "+row.path) {
			t.Errorf("%s %s is not tested", row.method, row.path)
		}
	}
}

func rowOf(t *testing.T, name string) route {
	i := slices.IndexFunc(routes, func(r route) bool { return r.method+" "+r.path == name })
	if i < 0 {
		t.Fatalf("%s is not in the table", name)
	}
	return routes[i]
}

// The comment of protocol/api and the table are one contract.
func TestTheTableIsWhatTheProtocolSays(t *testing.T) {
	t.Parallel()
	var source []byte
	for _, name := range []string{"api.go", "egress.go"} {
		text, err := os.ReadFile("../../protocol/api/" + name)
		if err != nil {
			t.Fatal(err)
		}
		source = append(source, text...)
	}
	var said []string
	line := regexp.MustCompile(`(?m)^//\s+(GET|POST|PUT|PATCH|DELETE)\s+/api/v1(\S+)\s+(.*)$`)
	for _, m := range line.FindAllStringSubmatch(string(source), -1) {
		tail, whose := strings.CutSuffix(m[3], "administrators")
		_, tail, _ = strings.Cut(tail, "?")
		words := regexp.MustCompile(`[a-z]+`).FindAllString(regexp.MustCompile(`=\S+`).ReplaceAllString(tail, ""), -1)
		slices.Sort(words)
		said = append(said, fmt.Sprint(m[1], " ", m[2], " ", strings.Join(words, " "), " ", whose))
	}
	var done []string
	for _, r := range routes {
		if r.about == "" || !strings.HasSuffix(r.about, ".") || len(r.scopes) == 0 {
			t.Errorf("%s %s does not say what it is for, and whose", r.method, r.path)
		}
		var words []string
		for _, p := range r.params {
			if p.about == "" {
				t.Errorf("%s %s: the parameter %s is not explained", r.method, r.path, p.name)
			}
			words = append(words, p.name)
		}
		slices.Sort(words)
		whose := !slices.Contains(r.scopes, relay.ScopeDeveloper)
		done = append(done, fmt.Sprint(r.method, " ", r.path, " ", strings.Join(words, " "), " ", whose))
	}
	slices.Sort(said)
	slices.Sort(done)
	if !slices.Equal(said, done) {
		t.Errorf("protocol/api says\n%s\nthe table has\n%s", strings.Join(said, "\n"), strings.Join(done, "\n"))
	}
}

func TestAnotherAppIsForbidden(t *testing.T) {
	t.Parallel()
	d := stocked(t)
	for _, test := range []struct {
		name, token, method, path, body string
		status                          int
	}{
		{"events of another app", "shop", "GET", "/events?app=other", "", 403},
		{"its stream", "shop", "GET", "/events/stream?app=other", "", 403},
		{"its replays", "shop", "GET", "/replays?app=other", "", 403},
		{"its instances", "shop", "GET", "/instances?app=other", "", 403},
		{"its logs", "shop", "GET", "/logs?app=other", "", 403},
		{"what it calls", "shop", "GET", "/egress/flows?app=other", "", 403},
		{"its calls from now on", "shop", "GET", "/egress/flows/stream?app=other", "", 403},
		{"what it may call", "shop", "GET", "/egress/explain?url=https://a.example&app=other", "", 403},
		{"what it ever called", "shop", "GET", "/egress/targets?app=other", "", 403},
		{"how much it calls", "shop", "GET", "/egress/usage?app=other", "", 403},
		{"what it should be allowed", "shop", "GET", "/egress/learn?app=other", "", 403},
		{"its policy", "shop", "GET", "/egress/status?app=other", "", 403},
		{"who did what to it, for an administrator of one", "adminshop", "GET", "/audit?app=other", "", 403},
		{"its last words", "shop", "GET", "/lastwords?app=other", "", 403},
		{"the logs of another app for an administrator of one", "adminshop", "GET", "/logs?app=other", "", 403},
		{"a replay of it", "shop", "POST", "/replays", `{"app":"other","all":true}`, 403},
		{"an administrator of one app", "adminshop", "GET", "/events?app=other", "", 403},
		{"an administrator of all", "admin", "GET", "/events?app=other", "", 200},
		{"the own one by name", "shop", "GET", "/events?app=shop", "", 200},
		{"no name of an app", "shop", "GET", "/events?app=SHOP", "", 400},
		{"another app's event in a replay", "shop", "POST", "/replays", `{"events":["evt_other_0004"]}`, 404},
	} {
		if got := d.call(test.token, test.method, test.path, test.body); got.status != test.status {
			t.Errorf("%s: %d %s, want %d", test.name, got.status, got.body, test.status)
		}
	}
}

func TestBodiesAreReadStrictly(t *testing.T) {
	t.Parallel()
	d := stocked(t)
	for _, test := range []struct{ name, contentType, body, says string }{
		{"an unknown field", "application/json", `{"colour":1,"all":true}`, `\"colour\"`},
		{"a wrong type", "application/json", `{"rate":"fast"}`, `\"rate\" does not take a string`},
		{"a wrong type inside", "application/json", `{"events":[1]}`, `\"events`},
		{"no JSON", "application/json", `{"all":`, "well-formed"},
		{"a bad time", "application/json", `{"since":"yesterday"}`, "a time is not like"},
		{"two objects", "application/json", `{"all":true} {}`, "behind"},
		{"null", "application/json", `null`, "JSON object"},
		{"a list", "application/json", `[]`, "JSON object"},
		{"nothing", "application/json", ``, "JSON object"},
		{"a form", "application/x-www-form-urlencoded", `all=true`, "Content-Type"},
		{"another charset", "application/json; charset=latin1", `{"all":true}`, "Content-Type"},
		{"no type", "", `{"all":true}`, "Content-Type"},
		{"what it should be", "application/json; charset=UTF-8", `{"all":true}`, ""},
	} {
		r, _ := http.NewRequest("POST", d.url+Prefix+"/replays", strings.NewReader(test.body))
		r.Header.Set("Content-Type", test.contentType)
		got := d.send("shop", r)
		if test.says == "" && got.status == 200 {
			continue
		}
		if got.status != 400 || !strings.Contains(got.body, test.says) || test.says == "" {
			t.Errorf("%s: %d %s, want %q", test.name, got.status, got.body, test.says)
		}
	}
	if got := d.call("shop", "POST", "/replays/rpl_1/start", "{}"); got.status != 400 {
		t.Errorf("a body where none is taken: %d %s", got.status, got.body)
	}
}

func TestAPanicIsAnAnswerWithItsID(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var log bytes.Buffer
	d := newDesk(t, func(c *Config) {
		c.Logger = slog.New(slog.NewTextHandler(lockedWriter{&mu, &log}, nil))
		c.RequestID = func(*http.Request) string { return "req_given" }
		c.Admit = func(p relay.Principal) error {
			if p.Token == "tok_other" {
				return relay.Errorf(relay.RateLimited, "slowly")
			}
			panic("a mistake")
		}
	})
	got := d.call("shop", "GET", "/events", "")
	if got.status != 500 || got.code() != "internal" || !strings.Contains(got.body, "req_given") || strings.Contains(got.body, "mistake") {
		t.Errorf("%d %s", got.status, got.body)
	}
	mu.Lock()
	defer mu.Unlock()
	if !strings.Contains(log.String(), "a mistake") || !strings.Contains(log.String(), "req_given") {
		t.Errorf("log: %s", &log)
	}
	if got := d.call("other", "GET", "/events", ""); got.status != 429 || got.header.Get("Retry-After") == "" {
		t.Errorf("Admit: %d %s", got.status, got.body)
	}
}

type lockedWriter struct {
	mu *sync.Mutex
	b  *bytes.Buffer
}

func (w lockedWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

func TestWhatIsNotThere(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	for _, path := range []string{"", "/", "/event", "/events/", "/events/a/b/c"} {
		if got := d.call("shop", "GET", path, ""); got.status != 404 || got.code() != "not_found" {
			t.Errorf("%q: %d %s", path, got.status, got.body)
		}
	}
}

// A deadline of one answer must not cut a later one on the same connection:
// net/http leaves deadlines as they are.
func TestDeadlinesEndWithTheAnswer(t *testing.T) {
	t.Parallel()
	d := stocked(t)
	for _, path := range []string{"/events", "/replays"} {
		w := &deadlineWriter{ResponseRecorder: httptest.NewRecorder()}
		body := strings.NewReader(`{"all":true}`)
		method := "GET"
		if path == "/replays" {
			method = "POST"
		}
		r := httptest.NewRequest(method, Prefix+path, body)
		r.Header.Set("Authorization", "Bearer shop")
		r.Header.Set("Content-Type", "application/json")
		d.api.ServeHTTP(w, r)
		if n := len(w.write); w.Code != 200 || n < 2 || w.write[0].IsZero() || !w.write[n-1].IsZero() || !w.Flushed {
			t.Errorf("%s: %d, write deadlines %v", path, w.Code, w.write)
		}
		if n := len(w.read); method == "POST" && (n != 2 || w.read[0].IsZero() || !w.read[1].IsZero()) {
			t.Errorf("%s: read deadlines %v", path, w.read)
		}
	}
}

type deadlineWriter struct {
	*httptest.ResponseRecorder
	read, write []time.Time
}

func (w *deadlineWriter) SetReadDeadline(t time.Time) error { w.read = append(w.read, t); return nil }
func (w *deadlineWriter) SetWriteDeadline(t time.Time) error {
	w.write = append(w.write, t)
	return nil
}
