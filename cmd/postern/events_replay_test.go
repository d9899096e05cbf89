package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/posternhq/postern/protocol/api"
)

// replaying makes r's replays go through states, one for each look at them.
func (r *relayAPI) replaying(planned int, states ...api.Replay) {
	sample := someEvents()[3:]
	r.on("POST /replays", api.Replay{ID: "rpl_1", App: "shop", State: "planned", Planned: planned, Sample: sample[:min(planned, 2)]})
	r.on("POST /replays/{id}/start", api.Replay{ID: "rpl_1", State: "running", Planned: planned})
	r.on("POST /replays/{id}/cancel", api.Replay{ID: "rpl_1", State: "cancelled", Planned: planned})
	var looks atomic.Int32
	r.handle("GET /replays/{id}", func(w http.ResponseWriter, _ *http.Request) {
		s := states[min(int(looks.Add(1)), len(states))-1]
		s.ID, s.Planned = "rpl_1", planned
		answer(w, s)
	})
}

func TestReplayShowsThePlanAsksAndWaits(t *testing.T) {
	r := newRelayAPI(t)
	states := []api.Replay{
		{State: "running", Made: 3, Done: 1, Rate: 10},
		{State: "running", Made: 40, Done: 38, Dead: 1, Rate: 10},
		{State: "done", Made: 100, Done: 98, Dead: 1},
		{State: "done", Made: 100, Done: 98, Dead: 2},
	}
	var all strings.Builder
	for _, test := range []struct {
		name, typed, args string
		terminal          bool
		planned           int
		states            []api.Replay
		code              int
		want              []string // requests after the plan
	}{
		{"at a terminal, with dead ones", "y\n", "--endpoint stripe --state dead --since 1d --rate 10/s", true, 100, states, 1,
			[]string{"start", "get", "get", "get", "get"}},
		{"said no", "n\n", "--state dead", true, 100, states, 1, []string{"cancel"}},
		{"said nothing", "\n", "--state dead", true, 100, states, 1, []string{"cancel"}},
		{"the end of the input", "", "--state dead", true, 100, states, 1, []string{"cancel"}},
		{"elsewhere", "", "evt_1 --yes", false, 1, []api.Replay{{State: "done", Made: 1, Done: 1}}, 0, []string{"start", "get"}},
		{"as JSON", "", "--state dead --yes --json", false, 100, states, 1, []string{"start", "get", "get", "get", "get"}},
		{"detached", "", "--state dead --yes --detach", false, 100, states, 0, []string{"start"}},
		{"nothing that matches", "", "--state dead --yes", false, 0, states, 0, []string{"cancel"}},
		{"events that are gone", "", "evt_1 evt_2 --yes", false, 0, states, 1, []string{"cancel"}},
		{"one that is gone", "", "evt_1 evt_2 --yes --destination audit", false, 1, []api.Replay{{State: "done", Made: 1, Done: 1}}, 0, []string{"start", "get"}},
	} {
		r.replaying(test.planned, test.states...)
		before := len(r.said())
		d := newDesk()
		if test.terminal {
			d.terminal(100, test.typed)
		}
		code, err := d.replayQuickly(t, strings.Fields(test.args)...)
		if code != test.code {
			t.Errorf("%s: %d, %v; want %d", test.name, code, err, test.code)
		}
		var did []string
		for _, said := range r.said()[before+1:] {
			word := said[strings.LastIndexByte(said, '/')+1:]
			did = append(did, strings.Replace(word, "rpl_1", "get", 1))
		}
		if !slices.Equal(did, test.want) {
			t.Errorf("%s: did %q, want %q", test.name, did, test.want)
		}
		errs := strings.ReplaceAll(strings.ReplaceAll(d.stderr.String(), "\r", "\n"), "\x1b[K", "")
		fmt.Fprintf(&all, "== %s: replay %s\n%s-- on standard error\n%s\n", test.name, test.args, d.stdout, errs)
		if err != nil {
			fmt.Fprintf(&all, "postern: %v\n", err)
		}
	}
	golden(t, "replay.txt", all.String())
}

// replayQuickly is run, without the pauses.
func (d *desk) replayQuickly(t *testing.T, args ...string) (int, error) {
	t.Helper()
	d.pause = func(time.Duration) <-chan time.Time {
		now := make(chan time.Time, 1)
		now <- noon
		return now
	}
	return d.run(t, append([]string{"replay"}, args...)...)
}

func TestReplayAsksForWhatTheFlagsSay(t *testing.T) {
	r := newRelayAPI(t)
	since, until := noon.Add(-time.Hour), noon.Add(-time.Minute)
	for args, want := range map[string]api.ReplayRequest{
		"evt_1 evt_2": {Events: []string{"evt_1", "evt_2"}},
		"--endpoint e --type t.* --state dead,cancelled --since 1h --until 1m --text x --destination audit --rate 90/m --app shop": {
			App: "shop", Endpoint: "e", Type: "t.*", States: []string{"dead", "cancelled"}, Since: &since, Until: &until, Text: "x", Destination: "audit", Rate: 1.5},
		"--all": {All: true},
	} {
		r.replaying(1, api.Replay{State: "done", Made: 1, Done: 1})
		if code, err := newDesk().replayQuickly(t, append(strings.Fields(args), "--yes")...); code != 0 {
			t.Fatal(code, err)
		}
		var got json.RawMessage
		for i, said := range r.said() {
			if said == "POST /replays" {
				got = json.RawMessage(r.bodies[i])
			}
		}
		wanted, _ := json.Marshal(want)
		if string(got) != string(wanted) {
			t.Errorf("%s: asked for %s, want %s", args, got, wanted)
		}
	}
}

// The first Ctrl-C cancels at the relay, waits for what is on its way, and says
// what was delivered already.
func TestInterruptCancelsAReplay(t *testing.T) {
	r := newRelayAPI(t)
	d := newDesk()
	r.replaying(100)
	cancelled := api.Replay{ID: "rpl_1", State: "cancelled", Planned: 100, Made: 12, Done: 9, Cancelled: 2}
	r.handle("GET /replays/{id}", func(w http.ResponseWriter, _ *http.Request) {
		d.interrupts <- os.Interrupt
		answer(w, api.Replay{ID: "rpl_1", State: "running", Planned: 100, Made: 12, Done: 9})
	})
	r.handle("POST /replays/{id}/cancel", func(w http.ResponseWriter, _ *http.Request) {
		ended := cancelled
		ended.Done++
		r.on("GET /replays/{id}", ended)
		answer(w, cancelled)
	})
	code, err := d.run(t, "replay", "--state", "dead", "--yes")
	if code != 1 || err != nil {
		t.Errorf("%d, %v", code, err)
	}
	if !strings.HasSuffix(d.stdout.String(), "rpl_1 cancelled: 10 delivered, 2 cancelled, 88 not begun\n") {
		t.Errorf("said %q and %q", d.stdout, d.stderr)
	}
}

func TestSecondInterruptDoesNotWait(t *testing.T) {
	r := newRelayAPI(t)
	d := newDesk()
	r.replaying(100, api.Replay{State: "running", Made: 12, Done: 9})
	r.handle("POST /replays/{id}/cancel", func(w http.ResponseWriter, _ *http.Request) {
		d.interrupts <- os.Interrupt
		answer(w, api.Replay{ID: "rpl_1", State: "cancelled", Planned: 100, Made: 12, Done: 9})
	})
	r.handle("POST /replays/{id}/start", func(w http.ResponseWriter, _ *http.Request) {
		d.interrupts <- os.Interrupt
		answer(w, api.Replay{ID: "rpl_1", State: "running", Planned: 100})
	})
	code, err := d.run(t, "replay", "--state", "dead", "--yes")
	if code != 1 || err == nil || !strings.Contains(err.Error(), "the replay rpl_1 was cancelled; deliveries on their way may still end") {
		t.Errorf("%d, %v", code, err)
	}
}

func TestReplayThatCannotBeCancelledGoesOn(t *testing.T) {
	r := newRelayAPI(t)
	d := newDesk()
	r.replaying(100, api.Replay{State: "running"})
	r.handle("POST /replays/{id}/cancel", func(w http.ResponseWriter, _ *http.Request) { refuse(w, 503, "unavailable", "the store is down") })
	r.handle("POST /replays/{id}/start", func(w http.ResponseWriter, _ *http.Request) {
		d.interrupts <- os.Interrupt
		answer(w, api.Replay{ID: "rpl_1", State: "running", Planned: 100})
	})
	code, err := d.run(t, "replay", "--state", "dead", "--yes")
	if code != 1 || err == nil || !strings.Contains(err.Error(), "the replay rpl_1 goes on, it could not be cancelled: the store is down") {
		t.Errorf("%d, %v", code, err)
	}
}

func TestReplayOutlivesARestartOfTheRelay(t *testing.T) {
	r := newRelayAPI(t)
	r.replaying(2)
	var looks atomic.Int32
	r.handle("GET /replays/{id}", func(w http.ResponseWriter, _ *http.Request) {
		if looks.Add(1) < 4 {
			refuse(w, 503, "draining", "the relay is stopping")
			return
		}
		answer(w, api.Replay{ID: "rpl_1", State: "done", Planned: 2, Made: 2, Done: 2})
	})
	d := newDesk()
	if code, err := d.replayQuickly(t, "--state", "dead", "--yes"); code != 0 {
		t.Error(code, err)
	}
	if got := d.stderr.String(); got != "lost the relay (the relay is stopping (request req_1)); trying again\n" {
		t.Errorf("said %q", got)
	}
	// For good it is not waited for.
	r.handle("GET /replays/{id}", func(w http.ResponseWriter, _ *http.Request) { refuse(w, 503, "draining", "the relay is stopping") })
	d = newDesk()
	clock := noon
	d.now = func() time.Time { clock = clock.Add(time.Second); return clock }
	code, err := d.replayQuickly(t, "--state", "dead", "--yes")
	if code != 1 || err == nil || !strings.Contains(err.Error(), "the replay rpl_1 may go on at the relay, but: the relay is stopping") {
		t.Errorf("%d, %v", code, err)
	}
}

// What stands still is explained, once.
func TestReplayThatStandsStill(t *testing.T) {
	r := newRelayAPI(t)
	states := slices.Repeat([]api.Replay{{State: "done", Made: 3, Done: 1}}, 60)
	r.replaying(3, append(states, api.Replay{State: "done", Made: 3, Done: 3})...)
	d := newDesk()
	clock := noon
	d.now = func() time.Time { clock = clock.Add(500 * time.Millisecond); return clock }
	if code, err := d.replayQuickly(t, "--state", "dead", "--yes"); code != 0 {
		t.Error(code, err)
	}
	if got := d.stderr.String(); strings.Count(got, "2 deliveries still wait: the app is not connected") != 1 {
		t.Errorf("said %q", got)
	}
}

func TestWatchOfAReplay(t *testing.T) {
	r := newRelayAPI(t)
	r.replaying(2, api.Replay{State: "running", Made: 1}, api.Replay{State: "done", Made: 2, Done: 2})
	d := newDesk()
	if code, err := d.replayQuickly(t, "--watch", "rpl_1"); code != 0 || d.stdout.String() != "rpl_1 done: 2 delivered\n" {
		t.Errorf("%d, %v, %q", code, err, d.stdout)
	}
}

// Who only watches does not end what somebody else started.
func TestInterruptLeavesAWatchedReplayAlone(t *testing.T) {
	r := newRelayAPI(t)
	d := newDesk()
	r.handle("GET /replays/{id}", func(w http.ResponseWriter, _ *http.Request) {
		if len(d.interrupts) == 0 {
			d.interrupts <- os.Interrupt
		}
		answer(w, api.Replay{ID: "rpl_1", State: "running", Planned: 100})
	})
	code, err := d.run(t, "replay", "--watch", "rpl_1")
	if code != 0 || err != nil || d.stderr.String() != "the replay goes on; postern events cancel rpl_1 ends it\n" {
		t.Errorf("%d, %v, %q", code, err, d.stderr)
	}
	for _, said := range r.said() {
		if strings.HasPrefix(said, "POST") {
			t.Errorf("did %s", said)
		}
	}
}

// An interrupt while the relay plans leaves nothing behind.
func TestInterruptOfAPlan(t *testing.T) {
	r := newRelayAPI(t)
	d := newDesk()
	r.handle("POST /replays", func(_ http.ResponseWriter, req *http.Request) {
		d.interrupts <- os.Interrupt
		<-req.Context().Done()
	})
	if code, err := d.run(t, "replay", "evt_1", "--yes"); code != 1 || err == nil || err.Error() != "interrupted" || len(r.said()) != 1 {
		t.Errorf("%d, %v, %q", code, err, r.said())
	}
	// At the question it is a no.
	r = newRelayAPI(t)
	r.replaying(1)
	d = newDesk().terminal(80, "")
	d.in = blocked{}
	d.interrupts <- os.Interrupt
	r.handle("POST /replays", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, api.Replay{ID: "rpl_1", State: "planned", Planned: 1})
	})
	code, err := d.run(t, "replay", "evt_1")
	if code != 1 || err == nil {
		t.Errorf("%d, %v", code, err)
	}
	for _, said := range r.said() {
		if strings.HasSuffix(said, "/start") {
			t.Error("it was started")
		}
	}
}

// blocked is a terminal at which nobody types.
type blocked struct{}

func (blocked) Read([]byte) (int, error) { select {} }

func TestProgressWithoutATerminalIsALineNowAndThen(t *testing.T) {
	t.Parallel()
	d := newDesk()
	clock := noon
	d.now = func() time.Time { return clock }
	g := newProgress(d.console, false)
	for made := range 20 {
		clock = clock.Add(time.Second)
		g.update(api.Replay{State: "running", Planned: 20, Made: made, Done: made})
	}
	g.update(api.Replay{State: "done", Planned: 20, Made: 20, Done: 20})
	want := "4 of 20: 4 delivered\n9 of 20: 9 delivered\n14 of 20: 14 delivered\n19 of 20: 19 delivered\n"
	if got := d.stderr.String(); got != want {
		t.Errorf("said %q, want %q", got, want)
	}
}

func TestBarFitsTheTerminal(t *testing.T) {
	t.Parallel()
	p := api.Replay{State: "running", Planned: 12345, Made: 9000, Done: 8000, Dead: 12, Cancelled: 3, Rate: 10}
	for width := 1; width < 200; width++ {
		d := newDesk().terminal(width, "")
		bar := newProgress(d.console, false).bar(p, 8015)
		if n := len([]rune(bar)); n >= max(width, 2) {
			t.Errorf("%d columns where there are %d: %s", n, width, bar)
		}
	}
}
