package admin

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/protocol/api"
	"github.com/posternhq/postern/relay"
)

func (d *desk) list(token, query string) ([]string, api.EventList) {
	d.t.Helper()
	var l api.EventList
	d.call(token, "GET", "/events?"+query, "").decode(d.t, &l)
	ids := []string{}
	for _, e := range l.Events {
		ids = append(ids, strings.TrimPrefix(e.ID, "evt_"))
	}
	return ids, l
}

func TestEventsAreSelected(t *testing.T) {
	t.Parallel()
	d := stocked(t)
	for _, test := range []struct{ token, query, want string }{
		{"shop", "", "shop_0003 shop_0002 shop_0001"},
		{"admin", "", "other_0004 shop_0003 shop_0002 shop_0001"},
		{"admin", "app=other", "other_0004"},
		{"adminshop", "", "shop_0003 shop_0002 shop_0001"},
		{"shop", "endpoint=hiding", "shop_0002"},
		{"shop", "type=invoice.*", "shop_0002 shop_0001"},
		{"shop", "type=invoice", ""},
		{"shop", "state=dead", "shop_0001"},
		{"shop", "state=dead,ready", "shop_0002 shop_0001"},
		{"shop", "state=dead&state=ready", "shop_0002 shop_0001"},
		{"shop", "state=refused", "shop_0003"},
		{"shop", "refused=true", "shop_0003"},
		{"shop", "refused=0", "shop_0002 shop_0001"},
		{"shop", "since=2026-03-01T12:00:02Z", "shop_0003 shop_0002"},
		{"shop", "until=2026-03-01T13:00:02%2B01:00", "shop_0001"},
		{"shop", "before=evt_shop_0003&limit=1", "shop_0002"},
		{"shop", "text=" + url.QueryEscape(`"id":1`), "shop_0001"},
	} {
		if got, _ := d.list(test.token, test.query); strings.Join(got, " ") != test.want {
			t.Errorf("%s as %s: %v, want %s", test.query, test.token, got, test.want)
		}
	}
	for _, query := range []string{
		"state=lost", "state=", "state=dead,refused", "refused=maybe", "since=monday", "limit=0", "limit=1001", "limit=x",
		"since=2026-03-01T12:00:02Z&until=2026-03-01T12:00:02Z", "before=evt_gone", "app=shop&app=shop", "text=%00", "type=%ff", "a;b=1",
	} {
		if got := d.call("shop", "GET", "/events?"+query, ""); got.status != 400 || got.code() != "invalid" {
			t.Errorf("%s: %d %s", query, got.status, got.body)
		}
	}
}

func TestPagesFollowOneAnother(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	var want []string
	for n := range 25 {
		d.store.add(event(n, "shop", "stripe", "{}"))
		want = append([]string{fmt.Sprintf("shop_%04d", n)}, want...)
	}
	for _, limit := range []int{1, 7, 24, 25, 26, 1000} {
		var got []string
		pages := 0
		for before := ""; ; pages++ {
			ids, l := d.list("shop", fmt.Sprintf("limit=%d&before=%s", limit, before))
			if before == "" {
				ids, l = d.list("shop", fmt.Sprintf("limit=%d", limit))
			}
			got = append(got, ids...)
			if before = l.Next; before == "" {
				break
			}
		}
		if !slices.Equal(got, want) || pages != (25-1)/limit {
			t.Errorf("pages of %d: %d of them, %v", limit, pages+1, got)
		}
	}
}

func TestAnEventIsShownWithAllThatHappened(t *testing.T) {
	t.Parallel()
	d := stocked(t)
	var e api.EventDetail
	d.call("shop", "GET", "/events/evt_shop_0001", "").decode(t, &e)
	if e.State != "dead" || len(e.Deliveries) != 1 || e.Body == nil || e.Body.Text != `{"id":1}` || e.AppTarget != "/webhooks/stripe/sub?x=1" ||
		len(e.Header) != 2 || e.BodyNote != "" {
		t.Errorf("%+v", e)
	}
	if len(e.Attempts) != 2 || e.Attempts[0].Number != 1 || e.Attempts[1].Millis != 500 || string(e.Attempts[1].Body.Bytes()) != "broken\xff" {
		t.Errorf("attempts %+v", e.Attempts)
	}
	d.call("shop", "GET", "/events/evt_shop_0003", "").decode(t, &e)
	if e.State != "refused" || e.Refusal != "no secret matches" {
		t.Errorf("%+v", e)
	}
}

func TestBodiesThatAreNotShownSayWhy(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	expired, empty, binary, odd := event(1, "shop", "stripe", "xx"), event(2, "shop", "stripe", ""), event(3, "shop", "stripe", "\xff\x00"), event(4, "shop", "hiding", "no json")
	expired.Body, empty.Body = nil, nil
	gone := event(5, "shop", "old", `{"a":1}`)
	refused := event(6, "shop", "stripe", "xx")
	refused.Body, refused.Refusal = nil, "no"
	binary.Header = []relay.Field{{Name: "X-Name", Value: "Andr\xe9"}}
	d.store.add(expired, empty, binary, odd, gone, refused)
	for _, test := range []struct {
		e    relay.Event
		body string // "-" for none
		note string
	}{
		{expired, "-", noteExpired}, {empty, "", ""}, {binary, "\xff\x00", ""}, {odd, "-", noteHidden}, {gone, "-", noteGone}, {refused, "-", noteRefused},
	} {
		var e api.EventDetail
		d.call("admin", "GET", "/events/"+string(test.e.ID), "").decode(t, &e)
		body := "-"
		if e.Body != nil {
			body = string(e.Body.Bytes())
		}
		if body != test.body || e.BodyNote != test.note || e.BodySize != test.e.BodySize {
			t.Errorf("%s: body %q, note %q, size %d", test.e.ID, body, e.BodyNote, e.BodySize)
		}
		if test.e.ID == binary.ID && e.Header[0][1] != "André" {
			t.Errorf("header %q", e.Header)
		}
	}
}

// Whatever is asked for, and by whom: what an endpoint hides is in no answer.
func TestHiddenValuesStayHidden(t *testing.T) {
	t.Parallel()
	d := stocked(t)
	d.store.attempts = append(d.store.attempts, relay.Attempt{Delivery: "dlv_2", Number: 2, Body: []byte("you sent 4242")})
	gone := event(7, "shop", "old", `{"card":"4242"}`)
	gone.Target, gone.PublicURL = "/?card=4242", "https://relay.example/hooks/shop/old?card=4242"
	leaky := event(8, "shop", "stripe", "{}")
	leaky.Header = []relay.Field{{Name: "X-Gitlab-Token", Value: "whsec_production"}}
	leaky.Target = "?token=whsec_production"
	leaky.PublicURL += leaky.Target
	d.store.add(gone, leaky)
	for _, token := range []string{"shop", "admin"} {
		for _, path := range []string{
			"/events/evt_shop_0002", "/events/evt_shop_0007", "/events/evt_shop_0008", "/events?limit=10",
			"/events/evt_shop_0002/export?as=curl", "/events/evt_shop_0002/export?as=har", "/events/evt_shop_0002/export?as=go",
			"/events/evt_shop_0008/export?as=curl", "/events/evt_shop_0007/export?as=har",
		} {
			got := d.call(token, "GET", path, "")
			if strings.Contains(got.body, "4242") || strings.Contains(got.body, "production") {
				t.Errorf("%s as %s: %s", path, token, got.body)
			}
			if want := 200; got.status != want && !strings.Contains(path, "0007/export") {
				t.Errorf("%s as %s: %d %s", path, token, got.status, got.body)
			}
		}
	}
	var e api.EventDetail
	if d.call("shop", "GET", "/events/evt_shop_0002", "").decode(t, &e); e.BodySize != 30 || len(e.Body.Text) == 30 {
		t.Errorf("the size is not the one it came with: %+v", e)
	}
	if got := d.call("shop", "GET", "/events/evt_shop_0002/export?as=curl", ""); !strings.Contains(got.body, "plain") {
		t.Errorf("what is not hidden is gone: %s", got.body)
	}
}

// A search that found by what is hidden would tell it letter by letter.
func TestASearchDoesNotTellWhatIsHidden(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	for n := range 10 {
		endpoint := []string{"hiding", "old", "plain"}[n%3]
		d.store.add(event(n, "shop", endpoint, `{"card":"4242","note":"visible"}`))
	}
	d.eps["shop/plain"] = relay.Endpoint{App: "shop", Name: "plain"}
	for _, test := range []struct{ query, want string }{
		{"text=4242", "shop_0008 shop_0005 shop_0002"},
		{"text=visible", "shop_0009 shop_0008 shop_0006 shop_0005 shop_0003 shop_0002 shop_0000"},
		{"text=invoice", "shop_0009 shop_0008 shop_0007 shop_0006 shop_0005 shop_0004 shop_0003 shop_0002 shop_0001 shop_0000"},
		{"text=4242&limit=2", "shop_0008 shop_0005"},
		{"text=4242&limit=2&before=evt_shop_0005", "shop_0002"},
	} {
		got, l := d.list("shop", test.query)
		if strings.Join(got, " ") != test.want {
			t.Errorf("%s: %v, want %s", test.query, got, test.want)
		}
		if l.Next != "" && !strings.HasSuffix(test.want, strings.TrimPrefix(l.Next, "evt_")) {
			t.Errorf("%s: next is %s, which is not on the page", test.query, l.Next)
		}
	}
	var r api.Replay
	d.call("shop", "POST", "/replays", `{"text":"4242"}`).decode(t, &r)
	if r.Planned != 3 || len(r.Sample) != 3 {
		t.Errorf("a replay by what is hidden: %+v", r)
	}
	d.call("shop", "POST", "/replays", `{"text":"4242","endpoint":"hiding"}`).decode(t, &r)
	if f := d.store.replays[1].Filter; r.Planned != 0 || len(f.IDs) == 0 {
		t.Errorf("a replay of nothing: %+v with %+v", r, f)
	}
}

// A search that reads bodies stops after a while and goes on with the next page.
func TestASearchReadsSoMuch(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	for n := range 6 {
		e := event(n, "shop", "hiding", `{"note":"visible"}`)
		e.BodySize = searchBudget / 2 // as if
		d.eps["shop/hiding"] = relay.Endpoint{App: "shop", Name: "hiding", Path: "/", Redact: relay.Redaction{Headers: []string{"X-Card"}}}
		d.store.add(e)
	}
	var got []string
	pages := 0
	for before := ""; ; {
		query := "text=visible"
		if before != "" {
			query += "&before=" + before
		}
		ids, l := d.list("shop", query)
		got = append(got, ids...)
		pages++
		if before = l.Next; before == "" {
			break
		}
	}
	if len(got) != 6 || pages != 3 {
		t.Errorf("%d pages, %v", pages, got)
	}
}

func TestTheStateOfAnEvent(t *testing.T) {
	t.Parallel()
	app := func(s relay.DeliveryState) relay.Delivery { return relay.Delivery{State: s} }
	audit := relay.Delivery{State: relay.DeliveryDone, Destination: "audit"}
	for want, list := range map[string][]relay.Delivery{
		"stored":    nil,
		"done":      {app(relay.DeliveryDone), audit},
		"dead":      {app(relay.DeliveryDead), audit},
		"ready":     {app(relay.DeliveryReady), audit},
		"leased":    {app(relay.DeliveryDead), app(relay.DeliveryLeased)},
		"cancelled": {app(relay.DeliveryCancelled)},
	} {
		if got := stateOf(&relay.Event{}, list); got != want {
			t.Errorf("%v: %s, want %s", list, got, want)
		}
	}
	if got := stateOf(&relay.Event{}, []relay.Delivery{app(relay.DeliveryDead), app(relay.DeliveryDone)}); got != "done" {
		t.Errorf("mended by a replay: %s", got)
	}
}

func FuzzQuery(f *testing.F) {
	f.Add("app=shop&state=dead,ready&refused=1&since=2026-01-31T12:00:00Z&limit=5")
	f.Add("text=%ff&url=http://a/#b")
	f.Add("as=har;&app")
	params := append(slices.Clone(filterParams),
		param{name: "as", kind: kindChoice, choices: []string{"curl", "har"}}, param{name: "url", kind: kindURL})
	f.Fuzz(func(t *testing.T, raw string) {
		q, err := decodeQuery(params, raw)
		if (err == nil) == (q == nil) || err != nil && relay.CodeOf(err) != relay.Invalid {
			t.Fatalf("%v, %v", q, err)
		}
		if err != nil {
			return
		}
		values, err := url.ParseQuery(raw)
		if err != nil {
			t.Fatalf("accepted: %v", err)
		}
		for name, given := range values {
			if _, ok := q[name]; !ok || len(given) != 1 && name != "state" {
				t.Fatalf("%s is %v in %v", name, given, q)
			}
		}
		if n := q.number("limit", 1); n < 1 || n > maxPage {
			t.Fatal(n)
		}
		if u := q.text("url"); u != "" {
			if parsed, err := url.Parse(u); err != nil || parsed.Host == "" {
				t.Fatalf("%q: %v", u, err)
			}
		}
		q.words("state")
		if !q.time("since").Equal(q.time("since").In(time.UTC)) {
			t.Fatal(q)
		}
		c := &call{query: q}
		if _, err := filterOf(c); err != nil && relay.CodeOf(err) != relay.Invalid {
			t.Fatal(err)
		}
	})
}
