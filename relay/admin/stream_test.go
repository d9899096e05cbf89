package admin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/posternhq/postern/protocol/api"
	"github.com/posternhq/postern/relay"
)

// patience is how long a test waits for what must come.
const patience = 10 * time.Second

// message is one of the stream; a comment has a kind of ":".
type message struct {
	kind, id string
	notice   api.Notice
}

// tail is a reader of the stream.
type tail struct {
	t      *testing.T
	header http.Header
	ch     chan message // closed at the end
	stop   func()
}

// follow opens a stream; header has names and values in turn.
func (d *desk) follow(token, query string, header ...string) *tail {
	d.t.Helper()
	ctx, cancel := context.WithCancel(d.t.Context())
	r, _ := http.NewRequestWithContext(ctx, "GET", d.url+Prefix+"/events/stream?"+query, nil)
	r.Header.Set("Authorization", "Bearer "+token)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		d.t.Fatal(err)
	}
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		body, _ := io.ReadAll(resp.Body)
		d.t.Fatalf("%d %v %s", resp.StatusCode, resp.Header, body)
	}
	out := &tail{t: d.t, header: resp.Header, ch: make(chan message, 1000), stop: cancel}
	d.t.Cleanup(cancel)
	go out.read(resp.Body)
	return out
}

func (out *tail) read(body io.ReadCloser) {
	defer close(out.ch)
	defer body.Close()
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, 1<<20)
	var m message
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ": ")
		switch name {
		case "event":
			m.kind = value
		case "id":
			m.id = value
		case "data":
			dec := json.NewDecoder(strings.NewReader(value))
			dec.DisallowUnknownFields()
			if err := dec.Decode(&m.notice); err != nil && lines.Scan() { // else it was cut
				out.t.Error(err)
			}
		case "":
			if value != "" {
				m.kind = ":"
			}
			if m.kind != "" || m.id != "" {
				out.ch <- m
			}
			m = message{}
		}
	}
}

// next is the next message that is no comment.
func (out *tail) next() message {
	out.t.Helper()
	for {
		select {
		case m, ok := <-out.ch:
			if !ok {
				out.t.Fatal("the stream has ended")
			}
			if m.kind != ":" {
				return m
			}
		case <-time.After(patience):
			out.t.Fatal("nothing came")
		}
	}
}

// events reads until the event with the id, and gives all ids.
func (out *tail) events(last relay.EventID) []string {
	out.t.Helper()
	var ids []string
	for {
		m := out.next()
		if m.kind == "received" || m.kind == "refused" {
			ids = append(ids, m.notice.Event.ID)
			if m.notice.Event.ID == string(last) {
				return ids
			}
		}
	}
}

// ended waits for the end.
func (out *tail) ended() {
	out.t.Helper()
	for {
		select {
		case _, ok := <-out.ch:
			if !ok {
				return
			}
		case <-time.After(patience):
			out.t.Fatal("the stream goes on")
		}
	}
}

func TestTheStreamShowsWhatHappens(t *testing.T) {
	t.Parallel()
	d := stocked(t)
	out, all := d.follow("shop", "bodies=1"), d.follow("admin", "")
	if m := out.next(); m.kind != "" || m.id != "evt_shop_0003" {
		t.Errorf("the place to begin: %+v", m)
	}
	received, refused := event(5, "shop", "stripe", `{"id":5}`), event(6, "shop", "stripe", "x")
	refused.Refusal = "no secret matches"
	foreign := event(7, "other", "stripe", "{}")
	d.inbox.receive(received, foreign, refused)

	m := out.next()
	if m.kind != "received" || m.id != "evt_shop_0005" || m.notice.Kind != "received" || m.notice.Event.Body.Text != `{"id":5}` || len(m.notice.Event.Header) != 2 {
		t.Errorf("%+v", m)
	}
	if m = out.next(); m.kind != "refused" || m.id != "evt_shop_0006" || m.notice.Event.Refusal != "no secret matches" {
		t.Errorf("%+v", m)
	}
	delivery := relay.Delivery{ID: "dlv_5", Event: received.ID, State: relay.DeliveryDone, Attempt: 1}
	received.Body = nil
	d.inbox.notify(relay.Notice{Kind: relay.NoticeAttempt, At: noon, Event: received, Delivery: &delivery,
		Attempt: &relay.Attempt{Delivery: "dlv_5", Number: 1, Status: 200, Body: []byte("thanks")}})
	if m = out.next(); m.kind != "attempt" || m.id != "" || m.notice.Delivery.State != "done" || m.notice.Attempt.Body.Text != "thanks" || m.notice.Event.ID != "evt_shop_0005" {
		t.Errorf("%+v", m)
	}
	var bare []string
	for range 4 { // the place to begin is the first
		m := all.next()
		if m.notice.Event != nil {
			bare = append(bare, m.notice.Event.ID)
			if m.notice.Event.Body != nil || m.notice.Event.Header != nil {
				t.Errorf("not asked for: %+v", m.notice.Event)
			}
		}
	}
	if want := []string{"evt_shop_0005", "evt_other_0007", "evt_shop_0006"}; !slices.Equal(bare, want) {
		t.Errorf("an administrator sees %v, want %v", bare, want)
	}
}

// Somebody who comes back gets what was missed once, and then what is new.
func TestTheStreamResumes(t *testing.T) {
	t.Parallel()
	d := stocked(t)
	out := d.follow("shop", "")
	d.inbox.receive(event(10, "shop", "stripe", "{}"))
	last := out.next()
	for last.id != "evt_shop_0010" {
		last = out.next()
	}
	out.stop()
	var want []string
	for n := 11; n < 300; n++ { // more than a page
		e := event(n, "shop", "stripe", "{}")
		d.store.add(e)
		want = append(want, string(e.ID))
	}
	out = d.follow("shop", "", "Last-Event-ID", last.id)
	final := event(300, "shop", "stripe", "{}")
	d.inbox.receive(final)
	want = append(want, string(final.ID))
	if got := out.events(final.ID); !slices.Equal(got, want) {
		t.Errorf("got %d from %s to %s, want %d", len(got), got[0], got[len(got)-1], len(want))
	}
	for _, id := range []string{"evt_gone", "%%%"} {
		r, _ := http.NewRequest("GET", d.url+Prefix+"/events/stream", nil)
		r.Header.Set("Last-Event-ID", id)
		if got := d.send("shop", r); got.status != 404 || !strings.Contains(got.body, "event_gone") {
			t.Errorf("behind %s: %d %s", id, got.status, got.body)
		}
	}
}

// Events are committed and noticed by several goroutines, and slow readers lose
// notices: none of it makes a gap, a repeat or a change of order. The reader
// breaks off and resumes over and over.
func TestTheStreamHasNoGapsAndNoRepeats(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.api.heartbeat = 20 * time.Millisecond
	const total = 600
	first := event(0, "shop", "stripe", "{}")
	d.store.add(first)
	go func() {
		var group sync.WaitGroup
		for worker := range 3 {
			group.Go(func() {
				for n := worker + 1; n <= total; n += 3 {
					e := event(n, "shop", "stripe", "{}")
					d.store.add(e)
					if n%5 != 0 { // every fifth notice is lost
						d.inbox.notify(relay.Notice{Kind: relay.NoticeReceived, Event: e})
					}
				}
			})
		}
		group.Wait()
	}()
	var got []string
	last := string(first.ID)
	for len(got) < total {
		out := d.follow("shop", "", "Last-Event-ID", last)
		for range 97 {
			m := out.next()
			if m.notice.Event != nil {
				got = append(got, m.id)
			}
			if m.id != "" {
				last = m.id
			}
			if len(got) == total {
				break
			}
		}
		out.stop()
	}
	d.store.mu.Lock()
	defer d.store.mu.Unlock()
	for i, e := range d.store.events[1:] {
		if got[i] != string(e.ID) {
			t.Fatalf("number %d is %s, want %s", i, got[i], e.ID)
		}
	}
}

// An app without any event has no place to begin, and its first ones are all new.
func TestTheStreamBeginsWithNothing(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	out := d.follow("shop", "")
	a, b := event(1, "shop", "stripe", "{}"), event(2, "shop", "stripe", "{}")
	d.store.add(a)
	d.inbox.receive(b)
	if got := out.events(b.ID); !slices.Equal(got, []string{string(a.ID), string(b.ID)}) {
		t.Errorf("%v", got)
	}
	// Retention takes all there is while the stream is quiet.
	d.store.mu.Lock()
	d.store.events = nil
	d.store.mu.Unlock()
	c := event(3, "shop", "stripe", "{}")
	d.inbox.receive(c)
	if got := out.events(c.ID); len(got) != 1 {
		t.Errorf("%v", got)
	}
}

func TestTheStreamIsFiltered(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.api.heartbeat = 20 * time.Millisecond
	usd := d.follow("shop", "filter=/currency%3Dusd&endpoint=stripe")
	card := d.follow("shop", "filter=/card%3D4242")
	eur, dollars, elsewhere := event(1, "shop", "stripe", `{"currency":"eur"}`), event(2, "shop", "stripe", `{"currency":"usd"}`), event(3, "shop", "hiding", `{"currency":"usd","card":"4242"}`)
	open := event(4, "shop", "stripe", `{"card":"4242","currency":"usd"}`)
	d.inbox.receive(eur, dollars, elsewhere)
	for _, e := range []relay.Event{eur, dollars} { // the body of an attempt's event is in the store
		e.Body = nil
		d.inbox.notify(relay.Notice{Kind: relay.NoticeAttempt, Event: e, Delivery: &relay.Delivery{ID: "dlv"}, Attempt: &relay.Attempt{}})
	}
	var got []string
	for {
		m := usd.next()
		if m.kind == "attempt" {
			d.inbox.receive(open)
		}
		if m.kind != "" {
			got = append(got, m.kind+" "+m.notice.Event.ID)
		}
		if m.notice.Event != nil && m.notice.Event.ID == string(open.ID) {
			break
		}
	}
	if want := []string{"received evt_shop_0002", "attempt evt_shop_0002", "received evt_shop_0004"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if ids := card.events(open.ID); len(ids) != 1 {
		t.Errorf("found by what is hidden: %v", ids)
	}
	if got := d.call("shop", "GET", "/events/stream?filter=%3D%3D", ""); got.status != 400 || !strings.Contains(got.body, "filter") {
		t.Errorf("a bad filter: %d %s", got.status, got.body)
	}
	// What does not match moves the place to resume at.
	d.inbox.receive(event(5, "shop", "stripe", `{"currency":"eur"}`))
	for m := usd.next(); m.id != "evt_shop_0005"; m = usd.next() {
		if m.kind == "received" {
			t.Fatalf("%+v", m)
		}
	}
}

// Many refusals at once are not all stored.
func TestTheStreamShowsRefusalsThatAreNotKept(t *testing.T) {
	t.Parallel()
	d := stocked(t)
	out := d.follow("shop", "bodies=1")
	e := event(50, "shop", "stripe", "xx")
	e.Body, e.Refusal = nil, "no secret matches"
	d.inbox.notify(relay.Notice{Kind: relay.NoticeRefused, Event: e})
	old, _ := d.store.Event(t.Context(), "evt_shop_0003") // was listed before
	d.inbox.notify(relay.Notice{Kind: relay.NoticeRefused, Event: old})
	out.next()
	if m := out.next(); m.kind != "refused" || m.id != "" || m.notice.Event.ID != "evt_shop_0050" || m.notice.Event.BodyNote != noteRefused {
		t.Errorf("%+v", m)
	}
	d.inbox.receive(event(51, "shop", "stripe", "{}"))
	if m := out.next(); m.id != "evt_shop_0051" {
		t.Errorf("%+v", m)
	}
}

func TestTheStreamSignsAnew(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var log bytes.Buffer
	d := newDesk(t, func(c *Config) {
		c.Logger = slog.New(slog.NewTextHandler(lockedWriter{&mu, &log}, &slog.HandlerOptions{Level: slog.LevelDebug}))
		c.Resign = func(ep relay.Endpoint, e relay.Event, url string, now time.Time) ([]relay.Field, error) {
			if ep.Name == "plain" {
				return []relay.Field{{Name: "X-Token", Value: ep.Secrets[0].Reveal()}}, nil
			}
			if string(e.Body) == "fail" {
				return nil, fmt.Errorf("cannot")
			}
			mark := "own"
			if ep.Secrets[0] == "whsec_mine" {
				mark = "mine"
			}
			return []relay.Field{{Name: "Signature", Value: fmt.Sprint(mark, " ", url, " ", string(e.Body), " ", now.Unix())}}, nil
		}
	})
	d.eps["shop/plain"] = relay.Endpoint{App: "shop", Name: "plain", Secrets: []relay.Secret{"the-token"}}
	d.eps["shop/hiding"] = relay.Endpoint{App: "shop", Name: "hiding", Path: "/h", Secrets: []relay.Secret{"whsec_hiding"}, Redact: relay.Redaction{Body: []string{"/card"}}}
	own := d.follow("shop", "resign=1")
	mine := d.follow("shop", "url=http://localhost:3000", "Postern-Resign-Secret", "whsec_mine")
	none := d.follow("shop", "")
	refused := event(5, "shop", "stripe", "{}")
	refused.Refusal = "no"
	d.inbox.receive(event(1, "shop", "stripe", "{}"), event(2, "shop", "hiding", `{"card":"4242"}`), event(3, "shop", "plain", "{}"), event(4, "shop", "stripe", "fail"), refused)
	now := d.now.Unix()
	for _, test := range []struct {
		out  *tail
		want []string
	}{
		{own, []string{fmt.Sprint("own https://relay.example/hooks/shop/stripe/sub?x=1 {} ", now),
			fmt.Sprint(`own https://relay.example/hooks/shop/hiding/sub?x=1 {"card":"[redacted]"} `, now), "", "", ""}},
		{mine, []string{fmt.Sprint("mine http://localhost:3000/webhooks/stripe/sub?x=1 {} ", now),
			fmt.Sprint(`mine http://localhost:3000/h/sub?x=1 {"card":"[redacted]"} `, now), "whsec_mine", "", ""}},
		{none, []string{"", "", "", "", ""}},
	} {
		for i, want := range test.want {
			got := ""
			if r := test.out.next().notice.Resigned; len(r) > 0 {
				got = r[0][1]
			}
			if got != want {
				t.Errorf("event %d: %q, want %q", i+1, got, want)
			}
		}
	}
	mine.stop()
	d.inbox.gone(t, 2)
	mu.Lock()
	if strings.Contains(log.String(), "whsec") || !strings.Contains(log.String(), "not signed anew") {
		t.Errorf("log: %s", &log)
	}
	mu.Unlock()
	r, _ := http.NewRequest("GET", d.url+Prefix+"/events/stream", nil)
	r.Header.Set("Postern-Resign-Secret", strings.Repeat("x", maxSecret+1))
	if got := d.send("shop", r); got.status != 400 || strings.Contains(got.body, "xxx") {
		t.Errorf("a long secret: %d %s", got.status, got.body)
	}
}

// gone waits until n readers are left.
func (b *fakeInbox) gone(t *testing.T, n int) {
	t.Helper()
	for end := time.Now().Add(patience); b.subscribed() != n; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d readers, want %d", b.subscribed(), n)
		}
	}
}

func TestTheStreamEnds(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	d.api.heartbeat = 5 * time.Millisecond
	quiet := d.follow("shop", "")
	for range 3 {
		if m := <-quiet.ch; m.kind != ":" {
			t.Fatalf("%+v", m)
		}
	}
	quiet.stop()
	d.inbox.gone(t, 0)

	revoked := d.follow("shop", "")
	d.revoke()
	revoked.ended()
	d.inbox.gone(t, 0)
	d.mu.Lock()
	d.revoked = false
	d.mu.Unlock()

	broken := d.follow("shop", "")
	d.store.mu.Lock()
	d.store.fail = fmt.Errorf("disk on fire")
	d.store.mu.Unlock()
	broken.ended() // and the reader comes back behind its last event
	d.store.mu.Lock()
	d.store.fail = nil
	d.store.mu.Unlock()

	var many []*tail
	for range maxPerToken {
		many = append(many, d.follow("shop", ""))
	}
	if got := d.call("shop", "GET", "/events/stream", ""); got.status != 429 {
		t.Errorf("one too many: %d %s", got.status, got.body)
	}
	d.follow("other", "").stop() // has places of its own
	d.api.Close()
	for _, out := range many {
		out.ended()
	}
	d.inbox.gone(t, 0)
	if got := d.call("shop", "GET", "/events/stream", ""); got.status != 503 || got.code() != "draining" {
		t.Errorf("after Close: %d %s", got.status, got.body)
	}
	if len(d.api.streams) != 0 {
		t.Errorf("places are still taken: %v", d.api.streams)
	}
}

// A server that stops waits for its requests; the streams must not hold it up.
func TestShutdownEndsStreamsCleanly(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	server := httptest.NewServer(d.api)
	server.Config.RegisterOnShutdown(d.api.Close)
	d.url = server.URL
	out := d.follow("shop", "")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := server.Config.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	out.ended()
}

// A reader that takes nothing is cut off at the deadline of a message, and costs
// no memory until then.
func TestASlowReaderIsCutOff(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	w := &stuckWriter{header: http.Header{}}
	r := httptest.NewRequest("GET", Prefix+"/events/stream", nil)
	r.Header.Set("Authorization", "Bearer shop")
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.api.ServeHTTP(w, r)
	}()
	<-d.inbox.came
	d.inbox.receive(event(1, "shop", "stripe", "{}"))
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("still served")
	}
	if left := time.Until(w.deadline); left <= 0 || left > writeTime {
		t.Errorf("the deadline is in %v", left)
	}
	d.inbox.gone(t, 0)
}

// stuckWriter takes the head of the answer, then fails as a connection does at
// its deadline.
type stuckWriter struct {
	header   http.Header
	deadline time.Time
	writes   int
}

func (w *stuckWriter) Header() http.Header                { return w.header }
func (w *stuckWriter) WriteHeader(int)                    {}
func (w *stuckWriter) FlushError() error                  { return nil }
func (w *stuckWriter) SetWriteDeadline(t time.Time) error { w.deadline = t; return nil }
func (w *stuckWriter) Write(p []byte) (int, error) {
	if w.writes++; w.writes > 1 {
		return 0, context.DeadlineExceeded
	}
	return len(p), nil
}
