package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/posternhq/postern/protocol/api"
)

// notice is n as the stream has it, resumable behind id.
func notice(id string, n api.Notice) string {
	data, _ := json.Marshal(n)
	return fmt.Sprintf("event: %s\nid: %s\ndata: %s\n\n", n.Kind, id, data)
}

// received is an event that has just come in, with its body.
func received(n int) api.Notice {
	e := api.EventDetail{Event: someEvents()[0], Header: [][2]string{{"Content-Type", "text/plain"}}, Body: &api.Body{Text: fmt.Sprintf("body %d", n)}}
	e.ID, e.Deliveries = fmt.Sprintf("evt_%d", n), nil
	return api.Notice{Kind: "received", At: noon.Add(time.Duration(n) * time.Second), Event: &e}
}

// stream is a relay's stream: it sends each text that is put into it, and ends
// when it is closed.
func (r *relayAPI) stream(texts <-chan string) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.WriteHeader(200)
		http.NewResponseController(w).Flush()
		for {
			select {
			case text, ok := <-texts:
				if !ok {
					return
				}
				io.WriteString(w, text)
				http.NewResponseController(w).Flush()
			case <-req.Context().Done():
				return
			}
		}
	}
}

// following runs tail until the test calls stop, which returns how it ended.
func (d *desk) following(t *testing.T, args ...string) (stop func() (int, error)) {
	t.Helper()
	return d.until(t, "tail", func() (int, error) {
		return d.run(t, append([]string{"tail"}, args...)...)
	})
}

// until runs a verb until the test calls stop, which returns how it ended.
func (d *desk) until(t *testing.T, what string, run func() (int, error)) (stop func() (int, error)) {
	t.Helper()
	type result struct {
		code int
		err  error
	}
	ended := make(chan result, 1)
	go func() {
		code, err := run()
		ended <- result{code, err}
	}()
	return func() (int, error) {
		d.interrupts <- os.Interrupt
		select {
		case r := <-ended:
			return r.code, r.err
		case <-time.After(10 * time.Second):
			t.Fatal(what + " does not end")
			return 0, nil
		}
	}
}

func TestTailShowsWhatHappens(t *testing.T) {
	r := newRelayAPI(t)
	texts := make(chan string, 100)
	r.handle("GET /events/stream", r.stream(texts))
	next := noon.Add(5 * time.Second)
	refused := api.Notice{Kind: "refused", At: noon, Event: &api.EventDetail{Event: someEvents()[2]}}
	attempt := func(state, outcome string, status, number int, why string) api.Notice {
		n := api.Notice{Kind: "attempt", At: noon, Event: &api.EventDetail{Event: someEvents()[0]}}
		n.Delivery = &api.Delivery{State: state, Trigger: "live"}
		n.Attempt = &api.Attempt{Number: number, Millis: 12, Outcome: outcome, Status: status, Error: why, Instance: "web.1"}
		return n
	}
	again := attempt("ready", "rejected", 500, 1, "")
	again.Delivery.NextAt = &next
	audit := attempt("dead", "timeout", 0, 11, "the app was silent for 30s")
	audit.Delivery.Destination = "audit"
	replayed := attempt("done", "done", 204, 2, "")
	replayed.Delivery.Trigger = "replay"
	for _, text := range []string{
		": here\n\n", notice("1", received(1)), notice("2", refused), notice("3", attempt("done", "done", 200, 1, "")),
		notice("4", again), notice("5", audit), notice("6", replayed),
		"event: attempt\ndata: {\"kind\":\"attempt\"}\n\n", "event: later\ndata: {\"kind\":\"later\",\"event\":{}}\n\n", "data: no JSON\n\n",
		notice("7", received(7)),
	} {
		texts <- text
	}
	d := newDesk().terminal(120, "")
	stop := d.following(t, "--endpoint", "stripe", "--filter", "type=invoice.*")
	d.stdout.wait(t, "evt_7")
	if code, err := stop(); code != 0 || err != nil {
		t.Errorf("Ctrl-C: %d, %v", code, err)
	}
	golden(t, "tail.txt", d.stdout.String()+"-- on standard error\n"+d.stderr.String())
	if got := r.said(); !slices.Equal(got, []string{"GET /events/stream?endpoint=stripe&filter=type%3Dinvoice.%2A"}) {
		t.Errorf("asked %q", got)
	}
	if got := r.requests[0].Header.Get("Accept"); got != "text/event-stream" {
		t.Errorf("Accept: %q", got)
	}
}

func TestTailAsJSONLines(t *testing.T) {
	r := newRelayAPI(t)
	texts := make(chan string, 2)
	r.handle("GET /events/stream", r.stream(texts))
	data, _ := json.MarshalIndent(received(1), "", "  ")
	texts <- "data: " + strings.ReplaceAll(string(data), "\n", "\ndata: ") + "\n\n"
	d := newDesk()
	stop := d.following(t, "--json", "--bodies")
	d.stdout.wait(t, "\n")
	if code, err := stop(); code != 0 || err != nil {
		t.Errorf("Ctrl-C: %d, %v", code, err)
	}
	var got api.Notice
	if err := json.Unmarshal([]byte(d.stdout.String()), &got); err != nil || strings.Count(d.stdout.String(), "\n") != 1 || got.Event.Body.Text != "body 1" {
		t.Errorf("%v, %q", err, d.stdout)
	}
	if got := r.said(); !slices.Equal(got, []string{"GET /events/stream?bodies=1"}) {
		t.Errorf("asked %q", got)
	}
}

// A relay that is started anew: the stream breaks, for a while nobody answers, or
// a proxy does, and then it goes on behind the last event.
func TestTailSurvivesARestartOfTheRelay(t *testing.T) {
	r := newRelayAPI(t)
	var calls atomic.Int32
	texts := make(chan string, 1)
	r.handle("GET /events/stream", func(w http.ResponseWriter, req *http.Request) {
		switch calls.Add(1) {
		case 1:
			w.Header().Set("Content-Type", "text/event-stream")
			io.WriteString(w, notice("cursor-1", received(1))+"id: cursor-2\ndata: half")
		case 2:
			http.Error(w, "no relay", http.StatusBadGateway)
		case 3:
			w.Header().Set("Retry-After", "5")
			http.Error(w, "starting", http.StatusServiceUnavailable)
		case 4:
			http.NotFound(w, req)
		default:
			r.stream(texts)(w, req)
		}
	})
	d := newDesk()
	var waits []time.Duration
	followed := &tail{header: http.Header{}, query: url.Values{}, again: again{c: d.console, wait: func(ctx context.Context, wait time.Duration) error {
		waits = append(waits, wait)
		return ctx.Err()
	}}}
	var err error
	if followed.client, err = newEventFlagsParsed(t).apiFor(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- followed.run(ctx) }()
	texts <- notice("cursor-9", received(9))
	d.stdout.wait(t, "evt_9")
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if got := d.stderr.String(); got != "lost the relay (it closed the stream); trying again\nconnected again\n" {
		t.Errorf("said %q", got)
	}
	for i, req := range r.requests {
		want := map[bool]string{true: "", false: "cursor-1"}[i == 0]
		if got := req.Header.Get("Last-Event-ID"); got != want {
			t.Errorf("request %d resumes behind %q, want %q", i+1, got, want)
		}
	}
	for i, wait := range waits {
		around := reconnectLeast << i
		if i != 2 && (wait < around/2 || wait > around*3/2) {
			t.Errorf("wait %d is %v; around %v was expected", i+1, wait, around)
		}
	}
	if len(waits) != 4 || waits[2] != 5*time.Second {
		t.Errorf("waits %v, of which the third was asked to be five seconds", waits)
	}
}

// Where the last event is not kept any more, there is nothing to go on behind.
func TestTailAfterALongTime(t *testing.T) {
	r := newRelayAPI(t)
	texts := make(chan string, 1)
	r.handle("GET /events/stream", func(w http.ResponseWriter, req *http.Request) {
		if req.Header.Get("Last-Event-ID") == "" {
			r.stream(texts)(w, req)
			return
		}
		w.WriteHeader(404)
		io.WriteString(w, `{"error":{"code":"not_found","reason":"event_gone","message":"gone"}}`)
	})
	d := newDesk()
	followed := &tail{again: again{c: d.console, opened: true, wait: sleep}, header: http.Header{}, query: url.Values{}, lastID: "evt_0"}
	var err error
	if followed.client, err = newEventFlagsParsed(t).apiFor(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- followed.run(ctx) }()
	texts <- notice("9", received(9))
	d.stdout.wait(t, "evt_9")
	cancel()
	<-ended
	if !strings.Contains(d.stderr.String(), "postern events list has what was missed") {
		t.Errorf("said %q", d.stderr)
	}
}

func newEventFlagsParsed(t *testing.T) *eventFlags {
	f := newEventFlags(tailVerb)
	if err := f.parse(io.Discard, nil); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestTailEndsWhereTryingAgainIsOfNoUse(t *testing.T) {
	r := newRelayAPI(t)
	for _, test := range []struct {
		name   string
		handle http.HandlerFunc
		want   string
	}{
		{"a token that is refused", func(w http.ResponseWriter, _ *http.Request) { refuse(w, 401, "", "revoked") }, "refuses the token: revoked"},
		{"no such app", func(w http.ResponseWriter, _ *http.Request) { refuse(w, 404, "", "there is no app till") }, "there is no app till"},
		{"a wrong filter", func(w http.ResponseWriter, _ *http.Request) { refuse(w, 400, "", "expected type=") }, "expected type="},
		{"a page", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			io.WriteString(w, "<html>")
		}, "answered with text/html where"},
	} {
		r.handle("GET /events/stream", test.handle)
		if code, err := newDesk().run(t, "tail"); code != 1 || err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %d, %v; want %q", test.name, code, err, test.want)
		}
	}
	t.Setenv("POSTERN_RELAY", "http://127.0.0.1:1")
	if code, err := newDesk().run(t, "tail"); code != 1 || err == nil || !strings.Contains(err.Error(), "cannot be reached") {
		t.Errorf("nobody there: %d, %v", code, err)
	}
}

// A connection that died without a word is noticed, and replaced without one.
func TestSilenceIsNoticed(t *testing.T) {
	t.Parallel()
	read, write := io.Pipe()
	cut := make(chan struct{})
	w := &watched{r: read, limit: time.Millisecond, cut: func() { close(cut); write.CloseWithError(errSilent) }}
	if _, err := w.Read(make([]byte, 1)); !errors.Is(err, errSilent) {
		t.Error(err)
	}
	<-cut
}

// localApp records what is handed to it.
type localApp struct {
	*httptest.Server
	mu    sync.Mutex
	got   []*http.Request
	raw   []string
	reply func(w http.ResponseWriter, r *http.Request)
}

func newLocalApp(t *testing.T) *localApp {
	a := &localApp{}
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		a.mu.Lock()
		a.got, a.raw = append(a.got, r), append(a.raw, string(body))
		reply := a.reply
		a.mu.Unlock()
		if reply != nil {
			reply(w, r)
		}
	}))
	t.Cleanup(a.Close)
	return a
}

func TestForwardIsWhatTheAppWouldGet(t *testing.T) {
	r := newRelayAPI(t)
	app := newLocalApp(t)
	texts := make(chan string, 10)
	r.handle("GET /events/stream", r.stream(texts))
	t.Setenv("MY_WHSEC", "whsec_mine")
	n := received(1)
	n.Event.Method, n.Event.Target, n.Event.PublicURL = "PUT", "/a%2Fb//c?x=1&x=%zz", "https://relay.example.com/hooks/shop/stripe/a%2Fb//c?x=1&x=%zz"
	n.Event.Body = &api.Body{Base64: []byte("\xff\x00body\r\n")}
	n.Event.Header = [][2]string{
		{"Content-Type", "application/json"}, {"Stripe-Signature", "old"}, {"stripe-signature", "older"},
		{"X-Two", "a"}, {"X-Two", "b"}, {"Content-Length", "99"}, {"Transfer-Encoding", "chunked"}, {"Connection", "close, X-Hop"}, {"X-Hop", "1"},
		{"Host", "relay.example.com"}, {"Postern-Verified", "forged"}, {"Postern_Event_Id", "forged"}, {"X-Forwarded-For", "forged"}, {"Accept-Encoding", "br"},
	}
	n.Resigned = [][2]string{{"Stripe-Signature", "t=1,v1=new"}}
	texts <- notice("1", n)
	d := newDesk()
	stop := d.following(t, "--forward", app.Listener.Addr().String(), "--secret-env", "MY_WHSEC")
	d.stdout.wait(t, "local")
	if code, err := stop(); code != 0 || err != nil {
		t.Errorf("%d, %v", code, err)
	}
	got := app.got[0]
	if got.Method != "PUT" || got.RequestURI != "/webhooks/stripe/a%2Fb//c?x=1&x=%zz" || got.Host != app.Listener.Addr().String() || app.raw[0] != "\xff\x00body\r\n" {
		t.Errorf("%s %s of %s: %q", got.Method, got.RequestURI, got.Host, app.raw[0])
	}
	if got.ContentLength != 8 {
		t.Errorf("length %d", got.ContentLength)
	}
	want := http.Header{
		"Content-Type": {"application/json"}, "Stripe-Signature": {"t=1,v1=new"}, "X-Two": {"a", "b"}, "Accept-Encoding": {"br"}, "Content-Length": {"8"},
		"Postern-Event-Id": {"evt_1"}, "Postern-Delivery-Id": {"local_1"}, "Postern-Attempt": {"1"}, "Postern-Endpoint": {"stripe"},
		"Postern-Received-At": {"2026-11-21T11:59:58Z"}, "Postern-Verified": {"true"}, "Idempotency-Key": {"evt_1"},
		"X-Forwarded-For": {"203.0.113.9"}, "X-Forwarded-Host": {app.Listener.Addr().String()}, "X-Forwarded-Proto": {"http"},
	}
	trace := got.Header.Get("Traceparent")
	got.Header.Del("Traceparent")
	if len(trace) != 55 {
		t.Errorf("traceparent %q", trace)
	}
	for name := range got.Header {
		if !slices.Equal(got.Header[name], want[name]) {
			t.Errorf("%s: %q, want %q", name, got.Header[name], want[name])
		}
	}
	if len(got.Header) != len(want) {
		t.Errorf("%d headers, want %d: %v", len(got.Header), len(want), got.Header)
	}
	if asked := r.requests[0]; asked.Header.Get("Postern-Resign-Secret") != "whsec_mine" || asked.URL.RawQuery != "bodies=1&resign=1&url="+url.QueryEscape(app.URL) {
		t.Errorf("asked %s with %q", asked.URL.RawQuery, asked.Header.Get("Postern-Resign-Secret"))
	}
}

func TestForwardGoesWhereItIsTold(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ forward, appTarget, target, want string }{
		{"3000", "", "", "http://127.0.0.1:3000/webhooks/stripe"},
		{"3000", "", "?a=b", "http://127.0.0.1:3000/webhooks/stripe?a=b"},
		{"3000", "/hooks/in/x?a=b", "/x?a=b", "http://127.0.0.1:3000/hooks/in/x?a=b"},
		{"3000/", "/hooks/in", "", "http://127.0.0.1:3000/hooks/in"},
		{":3000/dev", "/hooks/in/x", "/x", "http://127.0.0.1:3000/dev/x"},
		{"localhost:3000/dev/", "", "/x", "http://localhost:3000/dev/x"},
		{"https://dev.test/a%2Fb", "", "/%2e?", "https://dev.test/a%2Fb/%2e?"},
		{"http://[::1]:3000", "", "", "http://[::1]:3000/webhooks/stripe"},
	} {
		u, err := localURL(test.forward)
		if err != nil {
			t.Errorf("%s: %v", test.forward, err)
			continue
		}
		n := received(1)
		n.Event.Target, n.Event.AppTarget = test.target, test.appTarget
		req, err := newForwarder(u, time.Now).request(t.Context(), &n)
		if err != nil {
			t.Errorf("%s: %v", test.forward, err)
			continue
		}
		if got := req.URL.Scheme + "://" + req.URL.Host + req.URL.RequestURI(); got != test.want {
			t.Errorf("%s with %q: %s, want %s", test.forward, test.target, got, test.want)
		}
	}
}

// What the local app says, or that it says nothing, is shown and has no other
// consequence.
func TestForwardReportsAndGoesOn(t *testing.T) {
	r := newRelayAPI(t)
	app := newLocalApp(t)
	app.reply = func(w http.ResponseWriter, req *http.Request) {
		switch req.Header.Get("Postern-Event-Id") {
		case "evt_2":
			w.WriteHeader(500)
		case "evt_3":
			http.Redirect(w, req, "/elsewhere", http.StatusFound)
		case "evt_4":
			panic(http.ErrAbortHandler)
		}
	}
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	for _, test := range []struct {
		name, to string
		n        api.Notice
		want     string
	}{
		{"taken", app.URL, received(1), "local      stripe    invoice.paid      evt_1  200 in 0ms from " + app.URL + "/webhooks/stripe\n"},
		{"failed", app.URL, received(2), "500 in 0ms from"},
		{"sent elsewhere", app.URL, received(3), "302 in 0ms from"},
		{"cut off", app.URL, received(4), "evt_4  skipped: " + app.Listener.Addr().String() + ": the connection was closed without an answer"},
		{"down", closed.Addr().String(), received(5), "skipped: " + closed.Addr().String() + ": nothing listens there"},
		{"without a body", app.URL, func() api.Notice { n := received(6); n.Event.Body = nil; return n }(), "skipped: the relay sent it without its body"},
	} {
		t.Run(test.name, func(t *testing.T) {
			texts := make(chan string, 1)
			r.handle("GET /events/stream", r.stream(texts))
			d := newDesk()
			texts <- notice("1", test.n)
			stop := d.following(t, "--forward", test.to)
			d.stdout.wait(t, "local")
			if code, err := stop(); code != 0 || err != nil {
				t.Errorf("%d, %v", code, err)
			}
			if !strings.Contains(d.stdout.String(), test.want) {
				t.Errorf("said %q, want %q", d.stdout, test.want)
			}
			app.mu.Lock()
			defer app.mu.Unlock()
			if times := len(app.got); times > 1 {
				t.Errorf("the app got it %d times", times)
			}
			app.got = nil
		})
	}
}

// An app that drops a kept-alive connection gets the event once all the same:
// net/http would send it again, because it has an Idempotency-Key.
func TestForwardNeverSendsTwice(t *testing.T) {
	t.Parallel()
	app := newLocalApp(t)
	app.reply = func(_ http.ResponseWriter, req *http.Request) {
		if req.Header.Get("Postern-Event-Id") == "evt_2" {
			panic(http.ErrAbortHandler)
		}
	}
	u, err := localURL(app.URL)
	if err != nil {
		t.Fatal(err)
	}
	f := newForwarder(u, time.Now)
	for n := range 3 {
		event := received(n + 1)
		if r := f.hand(t.Context(), &event); (r.Status == 200) != (n != 1) {
			t.Errorf("event %d: %+v", n+1, r)
		}
	}
	if len(app.got) != 3 {
		t.Errorf("the app got %d requests, want 3", len(app.got))
	}
	if got := app.got[0].Header.Values("Accept-Encoding"); len(got) > 0 {
		t.Errorf("Accept-Encoding %q, which the sender never said", got)
	}
	for range forwardMost {
		f.slots <- struct{}{}
	}
	select {
	case f.slots <- struct{}{}:
		t.Errorf("there is room for more than %d", forwardMost)
	default:
	}
}

func TestForwardKeepsFewOnTheirWay(t *testing.T) {
	r := newRelayAPI(t)
	app := newLocalApp(t)
	release := make(chan struct{})
	var now, most atomic.Int32
	app.reply = func(http.ResponseWriter, *http.Request) {
		most.Store(max(most.Load(), now.Add(1)))
		<-release
		now.Add(-1)
	}
	texts := make(chan string, 100)
	r.handle("GET /events/stream", r.stream(texts))
	for n := range 3 * forwardMost {
		texts <- notice(fmt.Sprint(n), received(n))
	}
	d := newDesk()
	stop := d.following(t, "--forward", app.URL, "--json")
	// The one that finds no place is shown; those behind it wait.
	d.stdout.wait(t, fmt.Sprintf(`"evt_%d"`, forwardMost))
	close(release)
	for n := range 3 * forwardMost {
		d.stdout.wait(t, fmt.Sprintf(`"kind":"received","at":"2026-11-21T12:%02d:%02dZ"`, n/60, n%60))
	}
	late := time.After(10 * time.Second)
	for strings.Count(d.stdout.String(), `"kind":"forwarded"`) < 3*forwardMost {
		select {
		case <-d.stdout.written:
		case <-late:
			t.Fatal("not all were forwarded")
		}
	}
	if code, err := stop(); code != 0 || err != nil {
		t.Errorf("%d, %v", code, err)
	}
	if most.Load() > forwardMost {
		t.Errorf("%d at once", most.Load())
	}
	if strings.Contains(d.stdout.String(), "body 1") {
		t.Error("bodies, which nobody asked to be shown")
	}
}
