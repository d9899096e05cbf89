package admin

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/protocol/api"
	"github.com/posternhq/postern/relay"
)

func TestAReplayIsPlannedFirst(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	for n := range 20 {
		endpoint := []string{"stripe", "hiding"}[n%2]
		d.store.add(event(n, "shop", endpoint, "{}"))
	}
	now, no := d.now, false
	for _, test := range []struct {
		body    string
		planned int
		filter  relay.EventFilter
	}{
		{`{"all":true}`, 20, relay.EventFilter{App: "shop", Until: now, Refused: &no}},
		{`{"endpoint":"stripe","type":"invoice.*"}`, 10, relay.EventFilter{App: "shop", Endpoint: "stripe", Type: "invoice.*", Until: now, Refused: &no}},
		{`{"states":["dead","dead"]}`, 0, relay.EventFilter{App: "shop", States: []relay.DeliveryState{relay.DeliveryDead}, Destination: new(""), Until: now, Refused: &no}},
		{`{"since":"2026-03-01T12:00:05Z","until":"2026-03-01T12:00:08Z"}`, 3, relay.EventFilter{App: "shop", Since: noon.Add(5e9), Until: noon.Add(8e9), Refused: &no}},
		{`{"until":"2099-03-01T12:00:08Z"}`, 20, relay.EventFilter{App: "shop", Until: now, Refused: &no}},
		{`{"events":["evt_shop_0001","evt_shop_0003","evt_shop_0001"],"rate":5}`, 2,
			relay.EventFilter{App: "shop", IDs: []relay.EventID{"evt_shop_0001", "evt_shop_0003"}, Refused: &no}},
		{`{"endpoint":"stripe","destination":"audit","until":"2026-03-01T12:00:01Z"}`, 1,
			relay.EventFilter{App: "shop", Endpoint: "stripe", Until: noon.Add(1e9), Refused: &no}},
	} {
		var r api.Replay
		d.call("shop", "POST", "/replays", test.body).decode(t, &r)
		if r.State != "planned" || r.Planned != test.planned || len(r.Sample) != min(5, test.planned) || r.By != "tok_shop" || r.App != "shop" {
			t.Errorf("%s: %+v", test.body, r)
		}
		stored := d.store.replays[len(d.store.replays)-1]
		if !reflect.DeepEqual(stored.Filter, test.filter) || stored.Rate != r.Rate || stored.Destination != r.Destination || stored.Planned != r.Planned {
			t.Errorf("%s: stored %+v, want the filter %+v", test.body, stored, test.filter)
		}
	}
	var r api.Replay // an administrator's, whose app the events say
	d.call("admin", "POST", "/replays", `{"events":["evt_shop_0001"]}`).decode(t, &r)
	if r.App != "shop" || r.By != "tok_admin" || r.Planned != 1 {
		t.Errorf("%+v", r)
	}
	d.call("admin", "POST", "/replays", `{"app":"shop","all":true}`).decode(t, &r)
	if r.Planned != 20 {
		t.Errorf("%+v", r)
	}
}

func TestAReplayThatMakesNoSense(t *testing.T) {
	t.Parallel()
	d := stocked(t)
	many := `"` + strings.Repeat(`a","`, 10)
	for n := range maxReplayEvents {
		many += fmt.Sprintf(`%d","`, n)
	}
	many += `z"`
	for _, test := range []struct {
		token, body string
		status      int
		says        string
	}{
		{"shop", `{}`, 400, "say what to deliver again"},
		{"shop", `{"app":"shop","rate":1}`, 400, "say what to deliver again"},
		{"shop", `{"all":true,"type":"x"}`, 400, "either"},
		{"shop", `{"events":["evt_shop_0001"],"type":"x"}`, 400, "either"},
		{"shop", `{"all":true,"rate":-1}`, 400, "rate"},
		{"shop", `{"all":true,"rate":0.001}`, 400, "rate"},
		{"shop", `{"all":true,"rate":1e9}`, 400, "rate"},
		{"shop", `{"states":["refused"]}`, 400, "refused"},
		{"shop", `{"states":["lost"]}`, 400, "lost"},
		{"shop", `{"since":"2026-03-01T12:00:05Z","until":"2026-03-01T12:00:05Z"}`, 400, "before until"},
		{"shop", `{"since":"2099-03-01T12:00:05Z"}`, 400, "before until"},
		{"shop", `{"endpoint":"nowhere"}`, 400, "no endpoint"},
		{"shop", `{"endpoint":"stripe","destination":"nowhere"}`, 400, "no destination"},
		{"shop", `{"all":true,"destination":"audit"}`, 400, "say which endpoint"},
		{"shop", `{"events":["evt_shop_0002"],"destination":"audit"}`, 400, "no destination"},
		{"shop", `{"events":["evt_none"]}`, 404, "evt_none"},
		{"shop", `{"events":["%"]}`, 404, "there is no event"},
		{"shop", `{"events":["evt_shop_0003"]}`, 400, "was refused"},
		{"shop", `{"events":[` + many + `]}`, 400, "at most 1000"},
		{"shop", `{"type":"` + strings.Repeat("x", maxText+1) + `"}`, 400, "at most"},
		{"admin", `{"all":true}`, 400, "which app"},
		{"admin", `{"events":["evt_shop_0001","evt_other_0004"]}`, 400, "several apps"},
		{"admin", `{"app":"other","events":["evt_shop_0001"]}`, 404, "evt_shop_0001"},
	} {
		if got := d.call(test.token, "POST", "/replays", test.body); got.status != test.status || !strings.Contains(got.body, test.says) {
			t.Errorf("%.80s: %d %s, want %d %q", test.body, got.status, got.body, test.status, test.says)
		}
	}
	if len(d.store.replays) != 2 {
		t.Errorf("%d replays are stored, want the 2 there were", len(d.store.replays))
	}
}

// A plan by a text takes what it found by name, for what hides something.
func TestAReplayByText(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.now = noon.Add(24 * time.Hour)
	for n := range 1500 { // more than the store lists at once
		d.store.add(event(n, "shop", "stripe", `{"customer":"cus_1"}`))
	}
	d.eps["shop/plain"] = relay.Endpoint{App: "shop", Name: "plain"}
	d.call("shop", "POST", "/replays", `{"text":"cus_1","endpoint":"stripe"}`)
	d.call("shop", "POST", "/replays", `{"text":"cus_1","endpoint":"plain"}`)
	if f := d.store.replays[0].Filter; len(f.IDs) != 1500 || f.Text != "" {
		t.Errorf("%d ids, text %q", len(f.IDs), f.Text)
	}
	if f := d.store.replays[1].Filter; f.IDs != nil || f.Text != "cus_1" {
		t.Errorf("%+v", f)
	}
	for n := range maxTextEvents {
		d.store.add(event(n+1500, "shop", "stripe", `{"customer":"cus_1"}`))
	}
	if got := d.call("shop", "POST", "/replays", `{"text":"cus_1"}`); got.status != 400 || !strings.Contains(got.body, "narrow") {
		t.Errorf("%d %s", got.status, got.body)
	}
}

func TestAReplayIsStartedSeenAndCancelled(t *testing.T) {
	t.Parallel()
	d := stocked(t)
	var r api.Replay
	for _, step := range []struct{ method, path, state string }{
		{"GET", "/replays/rpl_1", "planned"}, {"POST", "/replays/rpl_1/start", "running"},
		{"GET", "/replays/rpl_1", "running"}, {"POST", "/replays/rpl_1/cancel", "cancelled"},
	} {
		if d.call("shop", step.method, step.path, "").decode(t, &r); r.State != step.state || r.ID != "rpl_1" {
			t.Errorf("%s %s: %+v", step.method, step.path, r)
		}
	}
	if got := d.call("shop", "POST", "/replays/rpl_1/start", ""); got.status != 409 {
		t.Errorf("%d %s", got.status, got.body)
	}
	for token, want := range map[string]string{"shop": "rpl_1", "admin": "rpl_4 rpl_1"} {
		var l api.ReplayList
		d.call(token, "GET", "/replays", "").decode(t, &l)
		var ids []string
		for _, r := range l.Replays {
			ids = append(ids, r.ID)
		}
		if strings.Join(ids, " ") != want {
			t.Errorf("%s sees %v", token, ids)
		}
	}
}

func TestADeliveryIsChanged(t *testing.T) {
	t.Parallel()
	d := stocked(t)
	var v api.Delivery
	d.call("shop", "POST", "/deliveries/dlv_1/requeue", "").decode(t, &v)
	if v.ID != "dlv_1" || v.State != "ready" || v.Event != "evt_shop_0001" || v.Attempts != 2 {
		t.Errorf("%+v", v)
	}
	d.call("admin", "POST", "/deliveries/dlv_1/cancel", "").decode(t, &v)
	if v.State != "cancelled" {
		t.Errorf("%+v", v)
	}
	if got := d.call("shop", "POST", "/deliveries/dlv_1/cancel", ""); got.status != 409 || got.code() != "conflict" {
		t.Errorf("%d %s", got.status, got.body)
	}
}
