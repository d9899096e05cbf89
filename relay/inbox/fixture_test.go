package inbox

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/posternhq/postern/relay"
)

// fixture is an inbox between a store in memory and an app that is a function.
// It lives inside a synctest bubble, so its time stands still while anything
// has something to do, and settle is a signal instead of a sleep.
type fixture struct {
	t     *testing.T
	store *memStore
	inbox *Inbox
	log   *syncBuffer
	start time.Time

	mu        sync.Mutex
	ep        relay.Endpoint
	known     bool
	connected bool
	app       func(*http.Request) (*http.Response, error)
	calls     []call
	elsewhere func(*http.Request) (*http.Response, error) // the destinations that are URLs
	copies    []call                                      // what reached them

	stop   context.CancelFunc
	result chan error
}

// call is one request that reached the app.
type call struct {
	at   time.Duration // since the fixture's start
	r    *http.Request
	body string
}

const testApp, testEndpoint = relay.AppID("shop"), "stripe"

// newFixture makes a fixture whose app answers 200 and whose agent is connected.
// Nothing runs yet. Random is one half, so that jitter changes nothing.
func newFixture(t *testing.T, change ...func(*Config)) *fixture {
	f := &fixture{
		t: t, store: newMemStore(), log: &syncBuffer{}, start: time.Now(),
		known: true, connected: true, app: answer(200), elsewhere: answer(200),
		ep: relay.Endpoint{
			App: testApp, Name: testEndpoint, Provider: "stripe", Mode: relay.ModeStore,
			Path: "/webhooks/stripe", MaxInFlight: 8, Retry: relay.DefaultRetry,
		},
	}
	cfg := Config{
		Store: f.store, Node: "node-1", App: f, URLs: urls{f},
		Verify:   verifyByHeader,
		Endpoint: f.endpoint,
		Connected: func(app relay.AppID) bool {
			f.mu.Lock()
			defer f.mu.Unlock()
			return app == testApp && f.connected
		},
		Random: func() float64 { return 0.5 },
		Logger: slog.New(slog.NewTextHandler(f.log, nil)),
	}
	for _, c := range change {
		c(&cfg)
	}
	f.inbox = New(cfg)
	return f
}

// verifyByHeader stands in for a provider: the header Signature must be "good".
func verifyByHeader(_ context.Context, _ relay.Endpoint, in relay.Incoming) relay.Verdict {
	if got := in.Header.Get("Signature"); got != "good" {
		return relay.Verdict{Reason: "the header Signature is not good"}
	}
	return relay.Verdict{OK: true, Verified: true, DedupeKey: in.Header.Get("Dedupe"), Type: "test"}
}

func (f *fixture) endpoint(app relay.AppID, name string) (relay.Endpoint, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ep, f.known && app == f.ep.App && name == f.ep.Name
}

// set changes the world while holding the lock.
func (f *fixture) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// RoundTrip is the app.
func (f *fixture) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	f.calls = append(f.calls, call{time.Since(f.start), r, string(body)})
	app := f.app
	f.mu.Unlock()
	return app(r)
}

// urls is everything that is not the app.
type urls struct{ f *fixture }

func (u urls) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	f := u.f
	f.mu.Lock()
	f.copies = append(f.copies, call{time.Since(f.start), r, string(body)})
	answer := f.elsewhere
	f.mu.Unlock()
	return answer(r)
}

func (f *fixture) copyList() []call {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]call(nil), f.copies...)
}

func (f *fixture) callList() []call {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]call(nil), f.calls...)
}

// bodies lists what reached the app, in order.
func (f *fixture) bodies() string {
	var all []string
	for _, c := range f.callList() {
		all = append(all, c.body)
	}
	return strings.Join(all, " ")
}

// run starts the worker. The test ends it with halt.
func (f *fixture) run() {
	f.t.Helper()
	ctx, stop := context.WithCancel(f.t.Context())
	f.stop, f.result = stop, make(chan error, 1)
	go f.runWorker(ctx)
	f.settle()
}

func (f *fixture) runWorker(ctx context.Context) { f.result <- f.inbox.Run(ctx) }

// halt stops the worker and waits for it.
func (f *fixture) halt() {
	f.t.Helper()
	f.stop()
	if err := <-f.result; err != nil {
		f.t.Errorf("Run: %v", err)
	}
	if n := f.store.count(relay.DeliveryLeased); n != 0 {
		f.t.Errorf("%d deliveries are still leased after Run", n)
	}
}

// settle waits until nobody has anything to do at the present moment.
func (f *fixture) settle() { synctest.Wait() }

// pass lets d of the bubble's time go by.
func (f *fixture) pass(d time.Duration) {
	time.Sleep(d) // the bubble's clock, which jumps
	synctest.Wait()
}

// incoming is a good webhook with this body.
func incoming(body string) relay.Incoming {
	return relay.Incoming{
		Method: "POST", PublicURL: "https://hooks.example/hooks/shop/stripe",
		Header: http.Header{"Signature": {"good"}}, Body: []byte(body), RemoteIP: "203.0.113.9",
	}
}

// receive puts one webhook for each body into the inbox.
func (f *fixture) receive(bodies ...string) {
	f.t.Helper()
	ep, _ := f.endpoint(testApp, testEndpoint)
	for _, body := range bodies {
		if _, _, err := f.inbox.Receive(f.t.Context(), ep, incoming(body)); err != nil {
			f.t.Fatalf("Receive: %v", err)
		}
	}
	f.settle()
}

// answer is an app that answers everything with status.
func answer(status int, header ...string) func(*http.Request) (*http.Response, error) {
	return func(*http.Request) (*http.Response, error) {
		r := &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("the answer"))}
		for i := 0; i+1 < len(header); i += 2 {
			r.Header.Add(header[i], header[i+1])
		}
		return r, nil
	}
}

// refuse is an app that cannot be reached, for this reason.
func refuse(err error) func(*http.Request) (*http.Response, error) {
	return func(*http.Request) (*http.Response, error) { return nil, err }
}

// gate is an app that answers only when it is let.
type gate struct {
	mu      sync.Mutex
	waiting []chan struct{}
	most    int // most requests at once
}

func (g *gate) serve(r *http.Request) (*http.Response, error) {
	open := make(chan struct{})
	g.mu.Lock()
	g.waiting = append(g.waiting, open)
	g.most = max(g.most, len(g.waiting))
	g.mu.Unlock()
	select {
	case <-open:
		return answer(200)(r)
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
}

// open lets the n oldest requests go.
func (g *gate) open(n int) {
	g.mu.Lock()
	n = min(n, len(g.waiting))
	now := g.waiting[:n]
	g.waiting = g.waiting[n:]
	g.mu.Unlock()
	for _, c := range now {
		close(c)
	}
	synctest.Wait()
}

func (g *gate) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.waiting)
}

// syncBuffer is a log that two goroutines may use.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// flight is an attempt for l at the fixture's endpoint.
func (f *fixture) flight(l relay.Lease) *flight {
	dest, _ := f.ep.Destination(l.Delivery.Destination)
	return &flight{lease: l, ep: f.ep, dest: dest}
}

// send has the inbox receive in, in a goroutine, since the sender may have to wait.
func (f *fixture) send(ctx context.Context, in relay.Incoming) *sender {
	s := &sender{start: time.Now()}
	ep, _ := f.endpoint(testApp, testEndpoint)
	go func() {
		receipt, answer, err := f.inbox.Receive(ctx, ep, in)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.receipt, s.answer, s.err, s.took, s.done = receipt, answer, err, time.Since(s.start), true
	}()
	f.settle()
	return s
}

// sender is a webhook's sender and what it was told.
type sender struct {
	mu      sync.Mutex
	start   time.Time
	done    bool
	took    time.Duration
	receipt relay.Receipt
	answer  *relay.Answer
	err     error
}

// status is what the sender was answered: 0 nothing yet, -1 an error, 202 that it
// is stored, or the app's own.
func (s *sender) status() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !s.done:
		return 0
	case s.err != nil:
		return -1
	case s.answer == nil:
		return 202
	}
	return s.answer.Status
}
