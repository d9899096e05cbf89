package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/api"
)

var tailVerb = eventVerb{
	name: "tail", about: "events and attempts as they happen, until Ctrl-C", usage: "[flags]",
	examples: `postern events tail --endpoint stripe
postern events tail --forward 3000 --filter 'type=invoice.*'
postern events tail --forward http://127.0.0.1:3000/dev/hooks --secret-env MY_WHSEC
postern events tail --json | jq -r 'select(.kind == "refused").event.refusal'`,
	notes: `--forward hands each received event to a local app besides: the sender's own
method, headers and body, signed anew, to the path that the app itself gets it
at, or to the one given. The sender, the app and its deliveries notice nothing of
it. What the local app misses is not sent again.`,
	run: tailEvents,
}

// silence is how long the relay may say nothing on a stream; it sends comments to show
// that it is there.
const silence = 90 * time.Second

// tail follows the relay's stream.
type tail struct {
	again
	client *apiClient
	query  url.Values
	header http.Header
	json   bool
	bodies bool       // with json: headers and bodies too
	local  *forwarder // nil: nothing is forwarded

	lastID  string
	working sync.WaitGroup

	mu     sync.Mutex // guards the fields below, and keeps lines whole
	widths [3]int     // of the columns so far
}

// tailEvents is postern events tail.
func tailEvents(ctx context.Context, c *console, v eventVerb, args []string) (int, error) {
	f := newEventFlags(v)
	endpoint := f.str("endpoint", "only of this endpoint, by its `NAME`")
	filter := f.str("filter", "only events that `TERMS` select: type=invoice.* /data/object/currency=usd header:X-Tenant=acme")
	forward := f.str("forward", "hand each received event to this local app: a port, or a `URL`")
	secretEnv := f.str("secret-env", "sign forwarded events with the secret in the environment variable `NAME`; default: with the endpoint's own")
	bodies := f.yes("bodies", "with --json: headers and bodies too")
	f.asJSON("print JSON lines, as the API's stream has them")
	if err := f.parse(c.out, args); err != nil {
		return exitUsage, err
	}
	if err := f.none(); err != nil {
		return exitUsage, err
	}
	t := &tail{again: again{c: c, wait: sleep}, json: *f.json, bodies: *bodies, query: url.Values{}, header: http.Header{"Accept": {"text/event-stream"}}}
	for name, value := range map[string]string{"endpoint": *endpoint, "filter": *filter} {
		if value != "" {
			t.query.Set(name, value)
		}
	}
	switch {
	case *bodies && !*f.json:
		return exitUsage, usagef("--bodies is for --json; postern events show prints one event with its body")
	case *forward == "" && *secretEnv != "":
		return exitUsage, usagef("--secret-env is for --forward")
	case *forward != "":
		if err := t.forwardTo(*forward, *secretEnv); err != nil {
			return exitUsage, err
		}
	}
	if *bodies || *forward != "" {
		t.query.Set("bodies", "1")
	}
	var err error
	if t.client, err = f.apiFor(); err != nil {
		return exitUsage, err
	}
	ctx, stop := c.interruptible(ctx)
	defer stop()
	defer t.working.Wait()
	if err := t.run(ctx); !errors.Is(err, context.Canceled) {
		return exitFailed, err
	}
	return exitOK, nil
}

// forwardTo prepares t to hand events on.
func (t *tail) forwardTo(target, secretEnv string) error {
	u, err := localURL(target)
	if err != nil {
		return usagef("--forward: %w", err)
	}
	t.local = newForwarder(u, t.c.now)
	t.query.Set("resign", "1")
	t.query.Set("url", u.String()) // some signatures cover it
	if secretEnv == "" {
		return nil
	}
	secret := os.Getenv(secretEnv)
	if secret == "" {
		return usagef("--secret-env: the variable %s is not set", secretEnv)
	}
	if strings.ContainsFunc(secret, func(r rune) bool { return r < ' ' || r > '~' }) {
		return usagef("--secret-env: what %s has is not printable ASCII", secretEnv)
	}
	t.header.Set(protocol.HeaderResignSecret, secret)
	return nil
}

// run follows the stream until ctx ends, the reader of the lines has gone, or
// trying again is of no use.
func (t *tail) run(ctx context.Context) error {
	return t.keep(ctx, t.follow, func(refused *refusedError) bool {
		gone := refused.reason == "event_gone" && t.lastID != ""
		if gone {
			t.lastID = ""
			t.c.say("too much time has passed to go on where it broke; postern events list has what was missed")
		}
		return gone
	})
}

// sleep waits for d, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func firstLine(err error) string {
	text, _, _ := strings.Cut(err.Error(), "\n")
	return text
}

// errSilent is the end of a stream on which nothing came for a long time. That
// it is opened again is nothing to tell anybody.
var errSilent = errors.New("the relay said nothing for a long time")

// follow opens the stream and shows what comes, until it ends.
func (t *tail) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	header := t.header.Clone()
	if t.lastID != "" {
		header.Set("Last-Event-ID", t.lastID)
	}
	res, err := t.client.open(ctx, apiRequest{path: []string{"events", "stream"}, query: t.query, header: header, ofApp: true})
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if kind, _, _ := strings.Cut(res.Header.Get("Content-Type"), ";"); kind != "text/event-stream" {
		return t.client.notAnAPI(res, nil)
	}
	if t.open() && t.c.errTerminal {
		t.c.say("%s", t.greeting())
	}
	stream := newSSEReader(&watched{r: res.Body, limit: silence, cut: func() { cancel(errSilent) }}, maxMessage)
	stream.lastID = t.lastID
	for {
		m, err := stream.next()
		t.lastID, t.retry = stream.lastID, min(stream.retry, reconnectMost)
		switch {
		case errors.Is(context.Cause(ctx), errSilent):
			return errSilent
		case err != nil && ended(err):
			return errors.New("it closed the stream")
		case err != nil:
			return err
		}
		t.show(ctx, m)
		if t.c.out.Err() != nil {
			return t.c.out.Err()
		}
	}
}

// greeting says what there is to wait for.
func (t *tail) greeting() string {
	if t.local == nil {
		return "waiting for events; Ctrl-C ends"
	}
	return "waiting for events, to hand them to " + t.local.target.String() + "; Ctrl-C ends"
}

// watched is a reader that calls cut when a Read takes longer than limit.
type watched struct {
	r     io.Reader
	limit time.Duration
	cut   func()
}

func (w *watched) Read(p []byte) (int, error) {
	timer := time.AfterFunc(w.limit, w.cut)
	defer timer.Stop()
	return w.r.Read(p)
}

// show prints one message and forwards what it brings.
func (t *tail) show(ctx context.Context, m sseMessage) {
	if m.tooLong {
		t.c.say("an event is too large to be shown here (over %s); postern events list has it", size(maxMessage))
		return
	}
	var n api.Notice
	if err := json.Unmarshal(m.data, &n); err != nil {
		t.c.say("the relay sent what this version cannot read: %v", err)
		return
	}
	if n.Event == nil || n.Kind != "received" && n.Kind != "refused" && n.Kind != "attempt" {
		return // of a newer relay
	}
	if t.json {
		t.printNotice(n)
	} else {
		t.line(n.At, t.words(&n), n.Event)
	}
	if t.local != nil && n.Kind == "received" {
		t.forward(ctx, &n)
	}
}

// printNotice prints n as JSON.
func (t *tail) printNotice(n api.Notice) {
	if !t.bodies { // forwarding has asked for them
		e := *n.Event
		e.Header, e.Body, n.Event, n.Resigned = nil, nil, &e, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.c.printJSONLine(n)
}

// words is what happened: its name, the name's colour, and the rest.
type words struct{ name, color, rest string }

func (t *tail) words(n *api.Notice) words {
	switch n.Kind {
	case "refused":
		return words{"refused", red, line(n.Event.Refusal)}
	case "received":
		return words{"received", cyan, line(n.Event.Method) + " " + size(n.Event.BodySize)}
	}
	var a api.Attempt
	var d api.Delivery
	if n.Attempt != nil {
		a = *n.Attempt
	}
	if n.Delivery != nil {
		d = *n.Delivery
	}
	// The name has the colour already.
	quiet := *t.c
	quiet.color = false
	rest := quiet.outcome(a)
	w := words{name: "failed", color: yellow}
	switch {
	case a.Outcome == "done":
		w.name, w.color = "delivered", green
	case d.State == "dead":
		w.name, w.color = "dead", red
	case d.State == "ready" && d.NextAt != nil:
		rest += ", again in " + span(max(d.NextAt.Sub(n.At), 0))
	}
	if d.Destination != "" {
		rest = line(d.Destination) + ": " + rest
	}
	if d.Trigger == "replay" {
		rest += ", replay"
	}
	if a.Number > 1 {
		rest += fmt.Sprintf(", attempt %d", a.Number)
	}
	if a.Instance != "" {
		rest += ", " + line(a.Instance)
	}
	w.rest = rest
	return w
}

// tailWidths are those of the columns before anything is in them.
var tailWidths = [3]int{len("delivered"), 8, 16}

// line prints what happened to e, in columns that grow with what they hold.
func (t *tail) line(at time.Time, w words, e *api.EventDetail) {
	t.mu.Lock()
	defer t.mu.Unlock()
	columns := []string{w.name, line(e.Endpoint), orDash(line(e.Type))}
	var b strings.Builder
	b.WriteString(at.In(t.c.zone).Format("15:04:05"))
	for i, text := range columns {
		t.widths[i] = max(t.widths[i], min(utf8.RuneCountInString(text), 30), tailWidths[i])
		pad := strings.Repeat(" ", max(t.widths[i]-utf8.RuneCountInString(text), 0))
		if i == 0 {
			text = paint(t.c.color, w.color, text)
		}
		b.WriteString(gap + text + pad)
	}
	b.WriteString(gap + line(e.ID) + gap + w.rest + "\n")
	io.WriteString(t.c.out, b.String())
}
