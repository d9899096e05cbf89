package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/posternhq/postern/protocol/api"
)

var replayVerb = eventVerb{
	name: "replay", about: "deliver events once more, each by a new delivery", usage: "[flags] [ID…]",
	examples: `postern events replay evt_06fg3v9k2w
postern events replay --endpoint stripe --state dead --since 1d --rate 10/s
postern events replay --type 'invoice.*' --since 2026-11-20 --until 2026-11-21 --yes --json
postern events replay --watch rpl_06fg41yd3c`,
	notes: `It shows the plan and asks before it delivers anything. Ctrl-C cancels what was
not delivered yet, except with --watch, where it only stops looking. The exit code
is 1 when a delivery ended dead, or the replay was cancelled.`,
	run: replayEvents,
}

// replayRun is one replay on its way.
type replayRun struct {
	c      *console
	client *apiClient
	json   bool
	ask    bool // before it starts
	detach bool
	// watching says that somebody else started it: an interrupt leaves it alone.
	watching bool
	where    string // "the app", or a destination
}

// The rates that the relay takes, in deliveries a second.
const rateLeast, rateMost = 0.01, 10000

// How often a replay is looked at, and how long the relay may be away meanwhile.
const (
	replayEvery    = 500 * time.Millisecond
	replayLook     = 5 * time.Second // for one look
	replayPatience = 2 * time.Minute
)

var errNotReplayed = errors.New("nothing was replayed")

// replayEvents is postern events replay.
func replayEvents(ctx context.Context, c *console, v eventVerb, args []string) (int, error) {
	f := newEventFlags(v)
	s := f.selection(c)
	destination := f.str("destination", "deliver to this destination of the endpoint, by its `NAME`, and not to the app")
	var perSecond float64
	f.value("rate", "at most this many deliveries: `10/s`, 100/m; default: as fast as they go", func(v string) (err error) {
		perSecond, err = rate(v)
		return err
	})
	all := f.yes("all", "every event of the app")
	yes := f.yes("yes", "do not ask")
	detach := f.yes("detach", "start it and leave it to the relay")
	watch := f.str("watch", "show how far the replay `ID` is, and wait for its end")
	f.asJSON("print JSON lines: the plan, what changes, the end")
	if err := f.parse(c.out, args); err != nil {
		return exitUsage, err
	}
	req := s.replay()
	req.All = *all
	req.App, req.Events, req.Destination, req.Rate = *f.app, f.args, *destination, perSecond
	if err := checkReplay(c, f, s, *watch, *yes, *all); err != nil {
		return exitUsage, err
	}
	client, err := f.apiFor()
	if err != nil {
		return exitUsage, err
	}
	r := &replayRun{
		c: c, client: client, json: *f.json,
		ask: !*yes, detach: *detach, where: receiver(*destination),
	}
	if *watch != "" {
		now, err := r.get(ctx, *watch)
		if err != nil {
			return exitFailed, err
		}
		if now.State == "planned" {
			return exitFailed, fmt.Errorf("the replay %s was planned and never started", now.ID)
		}
		r.watching = true
		return r.follow(ctx, now)
	}
	return r.plan(ctx, req)
}

// checkReplay refuses what cannot be meant.
func checkReplay(c *console, f *eventFlags, s *selection, watch string, yes, all bool) error {
	if err := s.check(); err != nil {
		return err
	}
	if watch != "" {
		if len(f.args) > 0 || !s.empty() || all {
			return usagef("--watch is for a replay that was started; it selects no events")
		}
		return checkID(watch, "rpl_")
	}
	for _, id := range f.args {
		if err := checkID(id, "evt_"); err != nil {
			return err
		}
	}
	switch {
	case len(f.args) > 0 && !s.empty():
		return usagef("either ids or a selection, not both: %s and flags such as --since", f.args[0])
	case all && (len(f.args) > 0 || !s.empty()):
		return usagef("--all is every event; it goes with no ids and no flags such as --since")
	case len(f.args) == 0 && s.empty() && !all:
		return usagef("which events? postern events replay evt_…, or --endpoint, --type, --state, --since, --until, --text, or --all")
	case !yes && !c.inTerminal:
		return usagef("this is no terminal to ask at: --yes replays without asking")
	}
	return nil
}

// rate reads "10/s", "10", "100/m" or "1000/h" as deliveries a second.
func rate(s string) (float64, error) {
	number, unit, _ := strings.Cut(s, "/")
	seconds := map[string]float64{"": 1, "s": 1, "m": 60, "h": 3600}[unit]
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || seconds == 0 || !(n/seconds >= rateLeast && n/seconds <= rateMost) {
		return 0, errors.New("expected 10/s, 100/m or 1000/h, from 0.01/s to 10000/s")
	}
	return n / seconds, nil
}

// plan asks the relay what would be replayed, and then the user.
func (r *replayRun) plan(ctx context.Context, req api.ReplayRequest) (int, error) {
	var p api.Replay
	asking, stop := r.c.interruptible(ctx)
	err := r.client.call(asking, apiRequest{method: http.MethodPost, path: []string{"replays"}, body: req}, &p, maxAnswer)
	interrupted := stop()
	if err != nil {
		return exitFailed, err
	}
	if interrupted {
		r.act(ctx, p.ID, "cancel")
		return exitFailed, errNotReplayed
	}
	if r.json {
		r.c.printJSONLine(p)
	} else {
		r.showPlan(p, req)
	}
	if p.Planned == 0 {
		r.act(ctx, p.ID, "cancel")
		if len(req.Events) > 0 {
			return exitFailed, errors.New("nothing to replay: none of these events is there with its body")
		}
		return exitOK, nil
	}
	if r.ask {
		if err := r.confirm(p); err != nil {
			r.act(ctx, p.ID, "cancel")
			return exitFailed, err
		}
	}
	now, err := r.act(ctx, p.ID, "start")
	if err != nil {
		return exitFailed, fmt.Errorf("the replay %s could not be started: %w", p.ID, err)
	}
	if r.detach {
		if r.json {
			return exitOK, r.c.printJSONLine(now)
		}
		fmt.Fprintf(r.c.out, "started %s; postern events replay --watch %[1]s shows how far it is\n", line(now.ID))
		return exitOK, nil
	}
	return r.follow(ctx, now)
}

// showPlan says what would happen.
func (r *replayRun) showPlan(p api.Replay, req api.ReplayRequest) {
	c := r.c
	if p.Planned == 0 {
		if len(req.Events) == 0 {
			c.say("no event matches, or none has its body any more")
		}
		return
	}
	text := fmt.Sprintf("%s to deliver to %s once more", count(p.Planned, "event"), r.where)
	if req.Rate > 0 {
		took := time.Duration(float64(p.Planned) / req.Rate * float64(time.Second))
		text += fmt.Sprintf(", in about %s", span(took))
	}
	fmt.Fprintln(c.out, text+":")
	c.eventTable(p.Sample).write(c.out, c.width(), c.color)
	if rest := p.Planned - len(p.Sample); rest > 0 && len(p.Sample) > 0 {
		fmt.Fprintf(c.out, "… and %d more\n", rest)
	}
	if missing := len(req.Events) - p.Planned; missing > 0 {
		c.say("%s left out: not there any more, or without a body", count(missing, "event"))
	}
}

// confirm asks the user; nil is yes.
func (r *replayRun) confirm(p api.Replay) error {
	fmt.Fprintf(r.c.errs, "Deliver %s again? [y/N] ", map[bool]string{true: "it", false: "them"}[p.Planned == 1])
	answer := make(chan string, 1)
	// Reading a terminal cannot be ended; the process ends it.
	go func() { answer <- readLine(r.c.in) }()
	select {
	case a := <-answer:
		if !strings.HasSuffix(a, "\n") { // the end of the input: nothing ended the line
			r.c.say("")
		}
		if a = strings.ToLower(strings.TrimSpace(a)); a == "y" || a == "yes" {
			return nil
		}
		return errNotReplayed
	case <-r.c.interrupts:
		r.c.say("")
		return errNotReplayed
	}
}

// readLine reads up to and with the end of a line, of at most 100 bytes; more is
// no answer.
func readLine(in io.Reader) string {
	var text []byte
	one := make([]byte, 1)
	for len(text) < 100 {
		n, err := in.Read(one)
		text = append(text, one[:n]...)
		if err != nil || n > 0 && one[0] == '\n' {
			return string(text)
		}
	}
	return ""
}

func (r *replayRun) get(ctx context.Context, id string) (api.Replay, error) {
	var now api.Replay
	err := r.client.call(ctx, apiRequest{path: []string{"replays", id}}, &now, maxAnswer)
	return now, err
}

// act starts or cancels a replay.
func (r *replayRun) act(ctx context.Context, id, what string) (api.Replay, error) {
	var now api.Replay
	err := r.client.call(ctx, apiRequest{method: http.MethodPost, path: []string{"replays", id, what}}, &now, maxAnswer)
	return now, err
}

// finished reports whether nothing more will come of p.
func finished(p api.Replay) bool {
	return (p.State == "done" || p.State == "cancelled") && p.Done+p.Dead+p.Cancelled >= p.Made
}

// follow shows how far the replay is until it is over. An interrupt cancels it.
func (r *replayRun) follow(ctx context.Context, now api.Replay) (int, error) {
	show := newProgress(r.c, r.json)
	interrupted := false
	away := time.Time{} // since when the relay is
	for {
		show.update(now)
		if finished(now) {
			break
		}
		select {
		case <-r.c.interrupts:
			show.clear()
			if r.watching {
				r.c.say("the replay goes on; postern events cancel %s ends it", now.ID)
				return exitOK, nil
			}
			if interrupted {
				return exitFailed, fmt.Errorf("the replay %s was cancelled; deliveries on their way may still end", now.ID)
			}
			interrupted = true
			r.c.say("cancelling; Ctrl-C once more does not wait for what is on its way")
			after, err := r.act(ctx, now.ID, "cancel")
			if err != nil {
				return exitFailed, fmt.Errorf("the replay %s goes on, it could not be cancelled: %w", now.ID, err)
			}
			now = after
			continue
		case <-r.c.pause(replayEvery):
		}
		// Shorter than usual: an interrupt waits for it.
		looking, cancel := context.WithTimeout(ctx, replayLook)
		next, err := r.get(looking, now.ID)
		cancel()
		switch {
		case err == nil:
			now, away = next, time.Time{}
		case !temporary(err) || !away.IsZero() && r.c.now().Sub(away) > replayPatience:
			show.clear()
			return exitFailed, fmt.Errorf("the replay %s may go on at the relay, but: %w", now.ID, err)
		case away.IsZero():
			away = r.c.now()
			show.clear()
			r.c.say("lost the relay (%s); trying again", firstLine(err))
		}
	}
	show.clear()
	return r.end(now)
}

// end says how the replay ended.
func (r *replayRun) end(p api.Replay) (int, error) {
	if !r.json {
		parts := []string{paint(r.c.color, green, fmt.Sprintf("%d delivered", p.Done))}
		part := func(n int, what, color string) {
			if n > 0 {
				parts = append(parts, paint(r.c.color, color, fmt.Sprintf("%d %s", n, what)))
			}
		}
		part(p.Dead, "dead", red)
		part(p.Cancelled, "cancelled", dim)
		part(p.Planned-p.Made, "not begun", dim)
		word := "done"
		if p.State == "cancelled" {
			word = "cancelled"
		}
		fmt.Fprintf(r.c.out, "%s %s: %s\n", line(p.ID), word, strings.Join(parts, ", "))
	}
	switch {
	case p.Dead > 0:
		r.c.say("postern events list --state dead has what failed, and postern events show why")
		return exitFailed, nil
	case p.State == "cancelled":
		return exitFailed, nil
	}
	return exitOK, nil
}
