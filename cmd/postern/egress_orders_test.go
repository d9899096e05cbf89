package main

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/protocol/api"
)

func someOrders() api.OrderList {
	return api.OrderList{Orders: []api.Order{
		{ID: "den_03", Kind: "deny", What: "*.evil.example", Reason: "key leaked\x1b[2J", By: "tok_1 (admin)", CreatedAt: noon.Add(-time.Minute), Until: noon.Add(59 * time.Minute), Live: true},
		{ID: "exc_02", Kind: "allow", App: "shop", What: "https://api.new.example", Reason: "trial", Owner: "ann", By: "tok_1 (admin)", CreatedAt: noon.Add(-time.Hour), Until: noon.Add(23 * time.Hour), Live: true},
		{ID: "den_02", Kind: "deny", App: "blog", What: "app:blog", Reason: "compromised", By: "tok_2 (admin)", CreatedAt: noon.Add(-3 * time.Hour), Until: noon.Add(-time.Hour)},
		{ID: "den_01", Kind: "deny", What: "198.51.100.0/24", Reason: "botnet", By: "tok_2 (admin)", CreatedAt: noon.Add(-26 * time.Hour), Until: noon.Add(26 * time.Hour), EndedAt: noon.Add(-25 * time.Hour)},
	}}
}

// made answers an order as the relay does, and keeps what was asked.
func (r *relayAPI) made(o api.Order) {
	r.on("POST /egress/orders", o)
}

func (r *relayAPI) lastBody(t *testing.T, v any) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	dec := json.NewDecoder(strings.NewReader(r.bodies[len(r.bodies)-1]))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		t.Errorf("body %q: %v", r.bodies[len(r.bodies)-1], err)
	}
}

func TestDeny(t *testing.T) {
	r := newCallsAPI(t)
	t.Setenv("POSTERN_APP", "shop") // must not narrow what is an emergency for all
	o := someOrders().Orders[0]
	for cut, want := range map[int]string{
		0: "den_03: calls of all apps to *.evil.example are refused for 1h, until 2026-11-21 12:59:00 UTC; none was under way\n",
		1: "1 that was under way was cut\n", 12: "12 that were under way were cut\n",
	} {
		o.Cut = cut
		r.made(o)
		d := newDesk().terminal(80, "")
		if code, err := d.verb(t, "egress", "deny", "*.evil.example", "--for", "1h", "--reason", " key leaked "); code != 0 || err != nil {
			t.Fatal(code, err)
		}
		if got := d.stdout.String(); !strings.HasSuffix(got, want) {
			t.Errorf("printed %q, want %q", got, want)
		}
		if got := d.stderr.String(); got != "to end it before: postern egress deny --end den_03\n" {
			t.Errorf("said %q", got)
		}
	}
	var req api.OrderRequest
	r.lastBody(t, &req)
	if req != (api.OrderRequest{Kind: "deny", What: "*.evil.example", ForMS: 3600_000, Reason: "key leaked"}) {
		t.Errorf("asked for %+v", req)
	}
	for args, want := range map[string]string{
		"app:shop --for 1d --reason x":                         `{"kind":"deny","what":"app:shop","for_ms":86400000,"reason":"x"}`,
		"--app shop a.example --for 30m --reason x":            `{"kind":"deny","app":"shop","what":"a.example","for_ms":1800000,"reason":"x"}`,
		"198.51.100.0/24 --for 1h --reason x --json":           `{"kind":"deny","what":"198.51.100.0/24","for_ms":3600000,"reason":"x"}`,
		"2001:db8::1 --for=1h --reason=x":                      `{"kind":"deny","what":"2001:db8::1","for_ms":3600000,"reason":"x"}`,
		"api.evil.example:8443 --for 1h --reason x --app=blog": `{"kind":"deny","app":"blog","what":"api.evil.example:8443","for_ms":3600000,"reason":"x"}`,
	} {
		if code, err := newDesk().verb(t, append([]string{"egress", "deny"}, strings.Fields(args)...)...); code != 0 {
			t.Errorf("%s: %d, %v", args, code, err)
		}
		if got := r.bodies[len(r.bodies)-1]; got != want {
			t.Errorf("%s: asked for %s, want %s", args, got, want)
		}
	}
}

func TestAllow(t *testing.T) {
	r := newCallsAPI(t)
	r.made(someOrders().Orders[1])
	d := newDesk()
	if code, err := d.verb(t, strings.Fields("egress allow api.new.example --app shop --for 1d --owner ann --reason trial")...); code != 0 || err != nil {
		t.Fatal(code, err)
	}
	if got := d.screens(); got != "exc_02: shop may call https://api.new.example for 24h, until 2026-11-22 11:00:00 UTC\n" {
		t.Errorf("printed %q", got)
	}
	var req api.OrderRequest
	r.lastBody(t, &req)
	if req != (api.OrderRequest{Kind: "allow", App: "shop", What: "https://api.new.example", ForMS: 86400_000, Reason: "trial", Owner: "ann"}) {
		t.Errorf("asked for %+v", req)
	}
	// The app of the token is the app that is meant.
	t.Setenv("POSTERN_TOKEN", token("admin", "shop"))
	if code, err := newDesk().verb(t, strings.Fields("egress allow tcp://db.example:5432 --for 2h --owner ann --reason repair --json")...); code != 0 || err != nil {
		t.Fatal(code, err)
	}
	r.lastBody(t, &req)
	if req.App != "shop" || req.What != "tcp://db.example:5432" {
		t.Errorf("asked for %+v", req)
	}
}

func TestOrdersAreListed(t *testing.T) {
	r := newCallsAPI(t)
	r.on("GET /egress/orders", someOrders())
	var text string
	for _, args := range []string{"deny --list --all", "allow --list", "deny --list --app blog", "deny --list --json"} {
		d := newDesk()
		if code, err := d.verb(t, append([]string{"egress"}, strings.Fields(args)...)...); code != 0 || err != nil {
			t.Errorf("%s: %d, %v", args, code, err)
		}
		text += "$ postern egress " + args + "\n" + d.screens() + "\n"
	}
	golden(t, "egress-orders.txt", text)
	if got := r.said(); !slices.Equal(got[:2], []string{"GET /egress/orders?all=true", "GET /egress/orders"}) {
		t.Errorf("asked %q", got)
	}
	r.on("GET /egress/orders", api.OrderList{})
	for args, want := range map[string]string{
		"deny --list": "no emergency deny is in force\n", "allow --list --all": "no exception is in force, and the relay knows of none before\n",
	} {
		d := newDesk()
		if code, err := d.verb(t, append([]string{"egress"}, strings.Fields(args)...)...); code != 0 || err != nil || d.stderr.String() != want {
			t.Errorf("%s: %d, %v, %s", args, code, err, d.screens())
		}
	}
}

func TestOrdersAreEnded(t *testing.T) {
	r := newCallsAPI(t)
	o := someOrders().Orders[3]
	r.on("POST /egress/orders/den_01/end", o)
	d := newDesk()
	if code, err := d.verb(t, "egress", "deny", "--end", "den_01"); code != 0 || err != nil || d.stdout.String() != "den_01 is over: calls of all apps to 198.51.100.0/24 are refused no more\n" {
		t.Errorf("%d, %v, %s", code, err, d.screens())
	}
	e := someOrders().Orders[1]
	e.ID = "exc_01"
	r.on("POST /egress/orders/exc_01/end", e)
	d = newDesk()
	if code, err := d.verb(t, "egress", "allow", "--end", "exc_01"); code != 0 || err != nil || d.stdout.String() != "exc_01 is over: shop may call https://api.new.example no more\n" {
		t.Errorf("%d, %v, %s", code, err, d.screens())
	}
	if got := r.bodies[0]; got != "" {
		t.Errorf("sent %q", got)
	}
}
