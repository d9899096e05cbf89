package main

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/api"
)

func someInstances() api.InstanceList {
	return api.InstanceList{Instances: []api.Instance{
		{App: "shop", Instance: "web.1", BootID: "b1", Platform: "heroku", Process: "web", Release: "v42", Since: noon.Add(-3 * time.Hour), Tunnels: 2,
			InFlight: 3, State: "ready", Vitals: &protocol.Vitals{RSS: 120 << 20, Limit: 512 << 20}},
		{App: "shop", Instance: "web.2", BootID: "b2", Platform: "heroku", Process: "web", Release: "v43", Since: noon.Add(-20 * time.Second),
			State: "failed", Why: "nobody listens on 46443\x1b[2J",
			Findings: []protocol.Finding{
				{Code: "PORT02", Severity: protocol.SeverityError, Cause: "the app listens on another port\x07", Evidence: "node (pid 31) on 3000"},
				{Code: "PORT18", Severity: protocol.SeverityWarning, Cause: "a shell swallows signals"},
			}},
		{App: "shop", Instance: "web.3", BootID: "b3", Since: noon.Add(-26 * time.Hour), State: "ready", Draining: true, Vitals: &protocol.Vitals{RSS: 7 << 20}},
		{App: "shop", Instance: "web.4\x1b]0;x\x07", BootID: "b4", Since: noon, State: "later\x1b"},
	}}
}

func TestStatus(t *testing.T) {
	r := newLogsAPI(t)
	r.on("GET /instances", someInstances())
	d := newDesk().terminal(120, "")
	if code, err := d.runVerb(t, statusVerb, "shop"); code != 0 || err != nil {
		t.Errorf("%d, %v", code, err)
	}
	golden(t, "status.txt", d.stdout.String()+"-- on standard error\n"+d.stderr.String())
	if got := r.said(); !slices.Equal(got, []string{"GET /instances?app=shop"}) {
		t.Errorf("asked %q", got)
	}

	d = newDesk()
	if code, err := d.runVerb(t, statusVerb, "--json"); code != 0 || err != nil {
		t.Errorf("%d, %v", code, err)
	}
	var list []api.Instance
	if err := json.Unmarshal([]byte(d.stdout.String()), &list); err != nil || len(list) != 4 || list[1].Findings[0].Code != "PORT02" {
		t.Errorf("%v in %s", err, d.stdout)
	}
}

func TestStatusOfSeveralApps(t *testing.T) {
	r := newLogsAPI(t)
	t.Setenv("POSTERN_TOKEN", token("admin", ""))
	list := someInstances()
	list.Instances[1].App = "other"
	r.on("GET /instances", list)
	d := newDesk()
	if code, err := d.runVerb(t, statusVerb); code != 0 || err != nil || !strings.Contains(d.stdout.String(), "\nother/web.2 ") || !strings.Contains(d.stdout.String(), "\nshop/web.1 ") {
		t.Errorf("%d, %v, %s", code, err, d.stdout)
	}
}

func TestStatusWhenNobodyIsConnected(t *testing.T) {
	r := newLogsAPI(t)
	r.on("GET /instances", api.InstanceList{})
	r.on("GET /lastwords", someWords())
	d := newDesk()
	code, err := d.runVerb(t, statusVerb, "shop")
	want := "no agent of shop is connected\nweb.1 ended 5m ago: killed by SIGKILL; out of memory, it seems; memory was at 505 MiB of 512 MiB\npostern logs shop has its last words"
	if code != 1 || err == nil || err.Error() != want || d.stdout.String() != "" {
		t.Errorf("%d, %v", code, err)
	}
	d = newDesk()
	if code, err := d.runVerb(t, statusVerb); code != 0 || err != nil || d.stderr.String() != want+"\n" {
		t.Errorf("of the token's app: %d, %v, %s", code, err, d.stderr)
	}
	d = newDesk()
	if code, err := d.runVerb(t, statusVerb, "--json", "shop"); code != 1 || err != nil || d.stdout.String() != "[]\n" {
		t.Errorf("as JSON: %d, %v, %q", code, err, d.stdout)
	}
	r.handle("GET /lastwords", func(w http.ResponseWriter, _ *http.Request) { refuse(w, 503, "unavailable", "no store") })
	if code, err := newDesk().runVerb(t, statusVerb, "shop"); code != 1 || err == nil || err.Error() != "no agent of shop is connected" {
		t.Errorf("without the store: %d, %v", code, err)
	}
	t.Setenv("POSTERN_TOKEN", token("admin", ""))
	d = newDesk()
	if code, err := d.runVerb(t, statusVerb); code != 0 || err != nil || d.stderr.String() != "no agent is connected\n" {
		t.Errorf("of all apps: %d, %v, %s", code, err, d.stderr)
	}
}

func TestStatusMistakes(t *testing.T) {
	newLogsAPI(t)
	for _, args := range [][]string{{"a", "b"}, {"shop/web.1"}, {"Shop"}, {"--follow"}} {
		if code, err := newDesk().runVerb(t, statusVerb, args...); code != exitUsage || err == nil {
			t.Errorf("%q: %d, %v", args, code, err)
		}
	}
	t.Setenv("POSTERN_RELAY", "")
	if code, err := newDesk().runVerb(t, statusVerb); code != exitUsage || !strings.Contains(err.Error(), "POSTERN_RELAY") {
		t.Errorf("%d, %v", code, err)
	}
}

func TestSparklines(t *testing.T) {
	points := func(values ...int64) (all []api.MemoryPoint) {
		for i, v := range values {
			all = append(all, api.MemoryPoint{At: noon.Add(time.Duration(i) * time.Second), RSS: v})
		}
		return all
	}
	for _, test := range []struct {
		points []api.MemoryPoint
		limit  int64
		want   string
	}{
		{points(0, 50, 100), 0, "▁▅█"},
		{points(0, 50, 100), 200, "▁▃▅"},
		{points(300), 200, "█"},
		{points(0, 0), 0, "▁▁"},
		{points(-5, 1<<62), 1, "▁█"},
		{[]api.MemoryPoint{{At: noon, RSS: 9}, {At: noon.Add(-time.Hour), RSS: 5}}, 0, "▁█"}, // a clock that went back
	} {
		if got := sparkline(test.points, test.limit); len([]rune(got)) > sparkWidth || got != test.want {
			t.Errorf("%v: %s, want %s", test.points, got, test.want)
		}
	}
}
