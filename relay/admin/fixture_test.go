package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/relay"
)

// fakeStore has what the API reads, in memory. What it does not have panics.
type fakeStore struct {
	relay.EventStore

	mu         sync.Mutex
	events     []relay.Event // in the order they were committed
	deliveries []relay.Delivery
	attempts   []relay.Attempt
	replays    []relay.Replay
	lastWords  []relay.LastWords // newest first
	fail       error             // of every call
}

func (s *fakeStore) lock() (func(), error) {
	s.mu.Lock()
	return s.mu.Unlock, s.fail
}

func (s *fakeStore) add(events ...relay.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, events...)
}

func (s *fakeStore) Event(_ context.Context, id relay.EventID) (relay.Event, error) {
	unlock, err := s.lock()
	defer unlock()
	if i := s.index(id); err == nil && i >= 0 {
		return s.events[i], nil
	}
	return relay.Event{}, found(err)
}

func found(err error) error {
	if err == nil {
		err = relay.Errorf(relay.NotFound, "there is none")
	}
	return err
}

func (s *fakeStore) index(id relay.EventID) int {
	return slices.IndexFunc(s.events, func(e relay.Event) bool { return e.ID == id })
}

func (s *fakeStore) Events(_ context.Context, f relay.EventFilter) ([]relay.Listed, error) {
	unlock, err := s.lock()
	defer unlock()
	if err != nil {
		return nil, err
	}
	if f.Limit == 0 {
		f.Limit = 100
	}
	if f.Limit > 1000 {
		panic("a page of more than 1000 events")
	}
	from, to := 0, len(s.events)
	if f.After != "" {
		if from = s.index(f.After) + 1; from == 0 {
			return nil, found(nil)
		}
	}
	if f.Before != "" {
		if to = s.index(f.Before); to < 0 {
			return nil, found(nil)
		}
	}
	var list []relay.Listed
	for _, e := range s.events[from:to] {
		if s.selects(f, e) {
			l := relay.Listed{Event: e, Deliveries: s.deliveriesOf(e.ID)}
			l.Event.Body = nil
			list = append(list, l)
		}
	}
	if f.After == "" {
		slices.Reverse(list)
	}
	return list[:min(f.Limit, len(list))], nil
}

func (s *fakeStore) selects(f relay.EventFilter, e relay.Event) bool {
	var header strings.Builder
	for _, field := range e.Header {
		header.WriteString(field.Name + ": " + field.Value + "\n")
	}
	prefix, wild := strings.CutSuffix(f.Type, "*")
	return (f.App == "" || f.App == e.App) && (f.Endpoint == "" || f.Endpoint == e.Endpoint) &&
		(f.IDs == nil || slices.Contains(f.IDs, e.ID)) &&
		(f.Type == "" || f.Type == e.Type || wild && strings.HasPrefix(e.Type, prefix)) &&
		(f.Refused == nil || *f.Refused == (e.Refusal != "")) &&
		(f.Since.IsZero() || !e.ReceivedAt.Before(f.Since)) && (f.Until.IsZero() || e.ReceivedAt.Before(f.Until)) &&
		(f.States == nil || slices.ContainsFunc(s.deliveriesOf(e.ID), func(d relay.Delivery) bool { return slices.Contains(f.States, d.State) })) &&
		(f.Text == "" || strings.Contains(header.String()+e.Target+e.Type+e.DedupeKey+string(e.Body), f.Text))
}

func (s *fakeStore) CountEvents(ctx context.Context, f relay.EventFilter) (int, error) {
	f.Limit = 1000
	list, err := s.Events(ctx, f)
	return len(list), err
}

func (s *fakeStore) deliveriesOf(id relay.EventID) []relay.Delivery {
	var list []relay.Delivery
	for _, d := range s.deliveries {
		if d.Event == id {
			list = append(list, d)
		}
	}
	return list
}

func (s *fakeStore) Delivery(_ context.Context, id relay.DeliveryID) (relay.Delivery, error) {
	unlock, err := s.lock()
	defer unlock()
	for _, d := range s.deliveries {
		if err == nil && d.ID == id {
			return d, nil
		}
	}
	return relay.Delivery{}, found(err)
}

func (s *fakeStore) Deliveries(_ context.Context, id relay.EventID) ([]relay.Delivery, error) {
	unlock, err := s.lock()
	defer unlock()
	return s.deliveriesOf(id), err
}

func (s *fakeStore) Attempts(_ context.Context, id relay.DeliveryID) ([]relay.Attempt, error) {
	unlock, err := s.lock()
	defer unlock()
	var list []relay.Attempt
	for _, a := range s.attempts {
		if a.Delivery == id {
			list = append(list, a)
		}
	}
	return list, err
}

func (s *fakeStore) CreateReplay(_ context.Context, r relay.Replay) error {
	unlock, err := s.lock()
	defer unlock()
	s.replays = append(s.replays, r)
	return err
}

func (s *fakeStore) Replay(_ context.Context, id relay.ReplayID) (relay.Replay, error) {
	unlock, err := s.lock()
	defer unlock()
	for _, r := range s.replays {
		if err == nil && r.ID == id {
			return r, nil
		}
	}
	return relay.Replay{}, found(err)
}

func (s *fakeStore) Replays(_ context.Context, app relay.AppID) ([]relay.Replay, error) {
	unlock, err := s.lock()
	defer unlock()
	var list []relay.Replay
	for _, r := range slices.Backward(s.replays) {
		if app == "" || r.App == app {
			list = append(list, r)
		}
	}
	return list, err
}

func (s *fakeStore) SaveLastWords(context.Context, relay.LastWords) error {
	panic("the API saves none")
}

func (s *fakeStore) LastWords(_ context.Context, f relay.LastWordsFilter) ([]relay.LastWords, error) {
	unlock, err := s.lock()
	defer unlock()
	var list []relay.LastWords
	for _, w := range s.lastWords {
		if (f.App == "" || f.App == w.App) && (f.Instance == "" || f.Instance == w.Instance) {
			list = append(list, w)
		}
	}
	return list[:min(len(list), cmp.Or(f.Limit, 20))], err
}

// fakeInbox changes the fakeStore and sends notices by hand.
type fakeInbox struct {
	store *fakeStore

	mu      sync.Mutex
	readers map[chan relay.Notice]relay.AppID
	came    chan struct{} // one for each subscription
}

func (b *fakeInbox) Subscribe(app relay.AppID) (<-chan relay.Notice, func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	ch := make(chan relay.Notice, 16)
	b.readers[ch] = app
	b.came <- struct{}{}
	return ch, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.readers, ch)
	}
}

func (b *fakeInbox) subscribed() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.readers)
}

// notify loses the notice where a reader is slow, as the inbox does.
func (b *fakeInbox) notify(n relay.Notice) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for ch, app := range b.readers {
		if app == "" || app == n.Event.App {
			select {
			case ch <- n:
			default:
			}
		}
	}
}

// receive stores events and tells of each.
func (b *fakeInbox) receive(events ...relay.Event) {
	b.store.add(events...)
	for _, e := range events {
		kind := relay.NoticeReceived
		if e.Refusal != "" {
			kind = relay.NoticeRefused
		}
		b.notify(relay.Notice{Kind: kind, At: e.ReceivedAt, Event: e})
	}
}

func (b *fakeInbox) StartReplay(_ context.Context, id relay.ReplayID) (relay.Replay, error) {
	return b.turn(id, relay.ReplayPlanned, relay.ReplayRunning)
}

func (b *fakeInbox) CancelReplay(_ context.Context, id relay.ReplayID) (relay.Replay, error) {
	return b.turn(id, relay.ReplayRunning, relay.ReplayCancelled)
}

func (b *fakeInbox) turn(id relay.ReplayID, from, to relay.ReplayState) (relay.Replay, error) {
	b.store.mu.Lock()
	defer b.store.mu.Unlock()
	for i := range b.store.replays {
		if r := &b.store.replays[i]; r.ID == id && r.State == from {
			r.State = to
			return *r, nil
		}
	}
	return relay.Replay{}, relay.Errorf(relay.Conflict, "the replay is not %s", from)
}

func (b *fakeInbox) Requeue(_ context.Context, id relay.DeliveryID) (relay.Delivery, error) {
	return b.change(id, relay.DeliveryDead, relay.DeliveryReady)
}

func (b *fakeInbox) CancelDelivery(_ context.Context, id relay.DeliveryID) (relay.Delivery, error) {
	return b.change(id, relay.DeliveryReady, relay.DeliveryCancelled)
}

func (b *fakeInbox) change(id relay.DeliveryID, from, to relay.DeliveryState) (relay.Delivery, error) {
	b.store.mu.Lock()
	defer b.store.mu.Unlock()
	for i := range b.store.deliveries {
		if d := &b.store.deliveries[i]; d.ID == id && d.State == from {
			d.State = to
			return *d, nil
		}
	}
	return relay.Delivery{}, relay.Errorf(relay.Conflict, "the delivery is not %s", from)
}

// fakeAgents are connected instances made by hand.
type fakeAgents struct {
	mu    sync.Mutex
	list  []relay.Instance
	serve map[string]func(protocol.LogQuery, net.Conn) // by boot id; nil: its agent gives no logs
	conns sync.WaitGroup
}

func (a *fakeAgents) Instances(app relay.AppID) []relay.Instance {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(a.list), func(i relay.Instance) bool { return app != "" && i.App != app })
}

func (a *fakeAgents) OpenInstance(ctx context.Context, app relay.AppID, instance, boot string, o protocol.Open) (net.Conn, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	serve := a.serve[boot]
	switch {
	case !slices.ContainsFunc(a.list, func(i relay.Instance) bool { return i.App == app && i.Name == instance && i.BootID == boot }):
		return nil, relay.Errorf(relay.NotFound, "the instance is not connected")
	case o.Kind != protocol.KindLogs || o.Logs == nil:
		return nil, relay.Errorf(relay.Invalid, "opened with %+v", o)
	case serve == nil:
		return nil, relay.Errorf(relay.AppRefused, "app shop does not accept connections")
	}
	ours, theirs := net.Pipe()
	a.conns.Go(func() {
		defer theirs.Close()
		serve(*o.Logs, theirs)
	})
	return ours, nil
}

// connect adds an instance of shop, whose logs serve gives.
func (a *fakeAgents) connect(app relay.AppID, name, boot string, serve func(protocol.LogQuery, net.Conn)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.list = append(a.list, relay.Instance{App: app, Name: name, BootID: boot, Release: "v42", Since: noon, Tunnels: 2, State: protocol.StateReady})
	a.serve[boot] = serve
}

func (a *fakeAgents) disconnect(boot string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.list = slices.DeleteFunc(a.list, func(i relay.Instance) bool { return i.BootID == boot })
}

// noon is the time at which everything in the tests begins.
var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// The tokens of the tests.
var tokens = map[string]relay.Principal{
	"shop":      {Token: "tok_shop", App: "shop", Scope: relay.ScopeDeveloper},
	"other":     {Token: "tok_other", App: "other", Scope: relay.ScopeDeveloper},
	"agent":     {Token: "tok_agent", App: "shop", Scope: relay.ScopeAgent},
	"admin":     {Token: "tok_admin", Scope: relay.ScopeAdmin},
	"adminshop": {Token: "tok_adminshop", App: "shop", Scope: relay.ScopeAdmin},
}

// desk is an API with everything behind it.
type desk struct {
	t       *testing.T
	store   *fakeStore
	inbox   *fakeInbox
	agents  *fakeAgents
	egress  *fakeEgress
	api     *Server
	url     string
	mu      sync.Mutex
	now     time.Time
	revoked bool
	eps     map[string]relay.Endpoint
}

func newDesk(t *testing.T, change ...func(*Config)) *desk {
	t.Helper()
	d := &desk{t: t, store: &fakeStore{}, now: noon.Add(time.Hour), eps: map[string]relay.Endpoint{
		"shop/stripe": {App: "shop", Name: "stripe", Provider: "stripe", Path: "/webhooks/stripe", Secrets: []relay.Secret{"whsec_production"},
			Destinations: []relay.Destination{{Name: "audit", URL: "http://audit.example"}}},
		"shop/hiding": {App: "shop", Name: "hiding", Path: "/hiding",
			Redact: relay.Redaction{Headers: []string{"X-Card"}, Body: []string{"/card"}}},
		"other/stripe": {App: "other", Name: "stripe", Path: "/"},
	}}
	d.inbox = &fakeInbox{store: d.store, readers: make(map[chan relay.Notice]relay.AppID), came: make(chan struct{}, 100)}
	d.agents = &fakeAgents{serve: make(map[string]func(protocol.LogQuery, net.Conn))}
	d.egress = newFakeEgress(d.store)
	cfg := Config{
		Store: d.store, Inbox: d.inbox, Now: d.clock, Agents: d.agents, Policies: d.egress, Calls: d.egress,
		Known: func(_ context.Context, app relay.AppID) (bool, error) {
			unlock, err := d.store.lock()
			defer unlock()
			return app == "shop" || app == "other", err
		},
		Endpoint: func(app relay.AppID, name string) (relay.Endpoint, bool) {
			ep, ok := d.eps[string(app)+"/"+name]
			return ep, ok
		},
		Authorize: func(r *http.Request) (relay.Principal, error) {
			d.mu.Lock()
			defer d.mu.Unlock()
			who, ok := tokens[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")]
			if !ok || d.revoked {
				return who, relay.Errorf(relay.Unauthorized, "the token is not valid")
			}
			return who, nil
		},
	}
	for _, f := range change {
		f(&cfg)
	}
	d.api = New(cfg)
	server := httptest.NewServer(d.api)
	t.Cleanup(func() {
		d.api.Close()
		server.Close()
	})
	d.url = server.URL
	return d
}

func (d *desk) clock() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.now
}

func (d *desk) revoke() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.revoked = true
}

// answer is what came back.
type answer struct {
	status int
	header http.Header
	body   string
}

// code is the error's, or "".
func (a answer) code() string {
	var e struct {
		Error struct{ Code string }
	}
	json.Unmarshal([]byte(a.body), &e)
	return e.Error.Code
}

// decode reads the body strictly into v.
func (a answer) decode(t *testing.T, v any) {
	t.Helper()
	if a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.body)
	}
	dec := json.NewDecoder(strings.NewReader(a.body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		t.Fatalf("%v in %s", err, a.body)
	}
}

// call sends one request as token; a body is JSON.
func (d *desk) call(token, method, path, body string) answer {
	d.t.Helper()
	r, err := http.NewRequest(method, d.url+Prefix+path, strings.NewReader(body))
	if err != nil {
		d.t.Fatal(err)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	return d.send(token, r)
}

func (d *desk) send(token string, r *http.Request) answer {
	d.t.Helper()
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := (&http.Client{Timeout: 30 * time.Second}).Do(r)
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	all, err := io.ReadAll(resp.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(all)}
}

// event makes the n-th webhook of the endpoint.
func event(n int, app relay.AppID, endpoint, body string) relay.Event {
	return relay.Event{
		ID: relay.EventID(fmt.Sprintf("evt_%s_%04d", app, n)), App: app, Endpoint: endpoint,
		ReceivedAt: noon.Add(time.Duration(n) * time.Second), Method: "POST", Target: "/sub?x=1",
		PublicURL: "https://relay.example/hooks/" + string(app) + "/" + endpoint + "/sub?x=1",
		Header:    []relay.Field{{Name: "Content-Type", Value: "application/json"}, {Name: "X-Card", Value: "4242"}},
		Body:      []byte(body), BodySize: int64(len(body)), RemoteIP: "192.0.2.1",
		Type: "invoice.paid", DedupeKey: fmt.Sprint("key", n), Verified: true, ExpiresAt: noon.Add(720 * time.Hour),
	}
}

func nobody(*http.Request) (relay.Principal, error) {
	return relay.Principal{}, relay.Errorf(relay.Unauthorized, "nobody may")
}
