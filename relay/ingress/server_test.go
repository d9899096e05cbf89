package ingress

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/relay"
)

// front is a Server with everything behind it replaced by something that
// remembers.
type front struct {
	t        *testing.T
	server   *Server
	manifest *relay.Manifest
	inbox    *inbox
	answer   func(*http.Request) (*http.Response, error) // the app's

	mu   sync.Mutex
	seen []*http.Request // guarded by mu; what reached an app
}

func newFront(t *testing.T, change func(*Config, *relay.Manifest)) *front {
	t.Helper()
	f := &front{t: t, inbox: &inbox{receipt: relay.Receipt{ID: "evt_1"}, verdict: relay.Verdict{OK: true}}, answer: func(*http.Request) (*http.Response, error) { return response(200, "from the app"), nil }}
	f.manifest = &relay.Manifest{Apps: map[relay.AppID]relay.App{
		"shop": {ID: "shop", Ingress: relay.Ingress{Hosts: []string{"shop.example.com"}}, Endpoints: map[string]relay.Endpoint{
			"stripe": {App: "shop", Name: "stripe", Mode: relay.ModeStore, MaxBody: 1000},
			"live":   {App: "shop", Name: "live", Mode: relay.ModeSync, MaxBody: 1000},
		}},
	}}
	cfg := Config{
		Directory: directory{f.manifest}, Inbox: f.inbox, Apps: f,
		Own: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusTeapot)
			io.WriteString(w, "own "+RequestID(r))
		}),
		PublicURL:  &url.URL{Scheme: "https", Host: "relay.apps.test:8443"},
		AppsDomain: "apps.test",
	}
	if change != nil {
		change(&cfg, f.manifest)
	}
	f.server = New(cfg)
	return f
}

// RoundTrip is the way to the apps.
func (f *front) RoundTrip(r *http.Request) (*http.Response, error) {
	f.mu.Lock()
	f.seen = append(f.seen, r)
	f.mu.Unlock()
	return f.answer(r)
}

// do sends r and returns the answer.
func (f *front) do(r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	f.server.ServeHTTP(w, r)
	return w
}

// app is the one request that reached an app.
func (f *front) app() *http.Request {
	f.t.Helper()
	if len(f.seen) != 1 {
		f.t.Fatalf("%d requests reached an app, want one", len(f.seen))
	}
	return f.seen[0]
}

func response(status int, body string) *http.Response {
	return &http.Response{StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body))}
}

type directory struct{ *relay.Manifest }

func (d directory) App(id relay.AppID) (relay.App, bool) {
	if id == "sleepy" { // known from the store
		return relay.App{ID: id}, true
	}
	return d.Manifest.App(id)
}

// inbox remembers what it is given and answers as it is told.
type inbox struct {
	err      error // of Receive and Check
	receipt  relay.Receipt
	answer   *relay.Answer // of Receive
	verdict  relay.Verdict // of Check
	withheld int           // the status that is not for the sender
	full     error         // of Admit
	received []relay.Incoming
	recorded []relay.Attempt
}

func (b *inbox) Receive(_ context.Context, _ relay.Endpoint, in relay.Incoming) (relay.Receipt, *relay.Answer, error) {
	b.received = append(b.received, in)
	return b.receipt, b.answer, b.err
}

func (b *inbox) Check(_ context.Context, _ relay.Endpoint, in relay.Incoming) (relay.Verdict, error) {
	b.received = append(b.received, in)
	return b.verdict, b.err
}

func (b *inbox) Admit(context.Context, relay.Endpoint, int64) error { return b.full }

func (b *inbox) Withheld(_ relay.Endpoint, status int) bool { return status == b.withheld }

func (b *inbox) Draft(ep relay.Endpoint, in relay.Incoming, _ relay.Verdict) relay.Lease {
	return relay.Lease{Event: relay.Event{ID: "evt_sync", App: ep.App, Method: in.Method, Body: in.Body}}
}

func (b *inbox) Request(ctx context.Context, ep relay.Endpoint, l relay.Lease) (*http.Request, error) {
	return http.NewRequestWithContext(ctx, l.Event.Method, "http://"+string(ep.App)+"/webhooks", strings.NewReader(string(l.Event.Body)))
}

func (b *inbox) RecordSync(_ context.Context, _ relay.Lease, a relay.Attempt) (relay.Receipt, error) {
	b.recorded = append(b.recorded, a)
	return relay.Receipt{}, nil
}

// wantRefusal fails unless w is a refusal in JSON with this status and code.
func wantRefusal(t *testing.T, w *httptest.ResponseRecorder, status int, code relay.Code) {
	t.Helper()
	var got struct {
		Error struct {
			Code      relay.Code `json:"code"`
			Message   string     `json:"message"`
			RequestID string     `json:"request_id"`
		} `json:"error"`
	}
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		t.Fatalf("answer %d %q: %v", w.Code, w.Body, err)
	}
	if w.Code != status || got.Error.Code != code || got.Error.Message == "" {
		t.Errorf("answered %d %s, want %d %s", w.Code, w.Body, status, code)
	}
	if id := got.Error.RequestID; !strings.HasPrefix(id, "req_") || w.Header().Get(protocol.HeaderRequestID) != id {
		t.Errorf("request id %q in the body, %q in the header", id, w.Header().Get(protocol.HeaderRequestID))
	}
	retry := w.Header().Get("Retry-After")
	if again := status == 503 || status == 429; again != (retry != "") {
		t.Errorf("%d with Retry-After %q", status, retry)
	}
}

func TestHostDecidesWhoseRequestItIs(t *testing.T) {
	f := newFront(t, nil)
	for _, test := range []struct{ name, host, app string }{
		{"under the apps' domain", "shop.apps.test", "shop"},
		{"with a port", "shop.apps.test:8443", "shop"},
		{"with an empty port", "shop.apps.test:", "shop"},
		{"with a trailing dot", "shop.apps.test.", "shop"},
		{"with a trailing dot and a port", "shop.apps.test.:80", "shop"},
		{"in capitals", "SHOP.Apps.TEST", "shop"},
		{"known from the store only", "sleepy.apps.test", "sleepy"},
		{"named by the manifest", "shop.example.com", "shop"},
		{"named by the manifest, spelled differently", "Shop.Example.COM.:443", "shop"},
		{"of nobody", "other.apps.test", "404"},
		{"of no app, as no label may be", "a_b.apps.test", "404"},
		{"two labels below the domain", "www.shop.apps.test", "404"},
		{"a lone dot before the domain", ".apps.test", "404"},
		{"ours", "relay.apps.test:8443", "own"},
		{"ours on another port", "relay.apps.test", "own"},
		{"the apps' domain itself", "apps.test", "own"},
		{"one that only ends like the domain", "shopapps.test", "own"},
		{"below a manifest's host", "www.shop.example.com", "own"},
		{"an address", "192.0.2.7:8080", "own"},
		{"an IPv6 address", "[2001:db8::1]:8080", "own"},
		{"an IPv6 address without a port", "[2001:db8::1]", "own"},
		{"whatever a health check says", "health.internal", "own"},
		{"nothing", "", "own"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f.seen = nil
			r := httptest.NewRequest("GET", "/hooks/shop/stripe/../x", nil)
			r.Host = test.host
			if test.app == "own" {
				r = httptest.NewRequest("GET", "/", nil)
				r.Host = test.host
			}
			w := f.do(r)
			switch test.app {
			case "404":
				wantRefusal(t, w, 404, relay.NotFound)
			case "own":
				if w.Code != http.StatusTeapot || len(f.seen) != 0 {
					t.Errorf("answered %d %q, want the relay's own answer", w.Code, w.Body)
				}
				if !strings.HasPrefix(w.Body.String(), "own req_") {
					t.Errorf("own routes have no request id: %q", w.Body)
				}
			default:
				if w.Code != 200 || w.Body.String() != "from the app" || f.app().URL.Host != test.app {
					t.Errorf("answered %d %q, want app %s", w.Code, w.Body, test.app)
				}
				if f.app().Host != test.host {
					t.Errorf("the app saw Host %q, want it as sent", f.app().Host)
				}
			}
		})
	}
}

// The relay's own name counts before the apps', even where an app is called so.
func TestPublicNameUnderTheAppsDomainIsOurs(t *testing.T) {
	f := newFront(t, func(_ *Config, m *relay.Manifest) { m.Apps["relay"] = relay.App{ID: "relay"} })
	r := httptest.NewRequest("GET", "/", nil)
	r.Host = "relay.apps.test"
	if w := f.do(r); w.Code != http.StatusTeapot {
		t.Errorf("answered %d %q, want the relay's own answer", w.Code, w.Body)
	}
}

func TestClientIsWhoThePeerOrItsTrustedProxySays(t *testing.T) {
	trust := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32")}
	for _, test := range []struct {
		name      string
		peer      string
		for_      []string
		proto     string
		client    string
		forwarded string
		scheme    string
	}{
		{"a stranger with nothing", "192.0.2.1:4000", nil, "", "192.0.2.1", "192.0.2.1", "http"},
		{"a stranger who claims to be somebody", "192.0.2.1:4000", []string{"203.0.113.9"}, "https", "192.0.2.1", "192.0.2.1", "http"},
		{"a proxy that says nothing", "10.0.0.1:4000", nil, "", "10.0.0.1", "10.0.0.1", "http"},
		{"a proxy that names its client", "10.0.0.1:4000", []string{"203.0.113.9"}, "https", "203.0.113.9", "203.0.113.9, 10.0.0.1", "https"},
		{"a client that spoofs in front of a proxy", "10.0.0.1:4000", []string{"1.2.3.4, 203.0.113.9"}, "", "203.0.113.9", "203.0.113.9, 10.0.0.1", "http"},
		{"a client that spoofs a trusted address", "10.0.0.1:4000", []string{"10.9.9.9, 203.0.113.9"}, "", "203.0.113.9", "203.0.113.9, 10.0.0.1", "http"},
		{"a chain of trusted proxies", "10.0.0.1:4000", []string{"1.2.3.4, 203.0.113.9, 10.0.0.2"}, "", "203.0.113.9", "203.0.113.9, 10.0.0.2, 10.0.0.1", "http"},
		{"a chain over several lines", "10.0.0.1:4000", []string{"203.0.113.9", "10.0.0.2"}, "", "203.0.113.9", "203.0.113.9, 10.0.0.2, 10.0.0.1", "http"},
		{"rubbish in the chain ends it", "10.0.0.1:4000", []string{"203.0.113.9, unknown, 10.0.0.2"}, "", "10.0.0.2", "10.0.0.2, 10.0.0.1", "http"},
		{"a scheme that is none", "10.0.0.1:4000", []string{"203.0.113.9"}, "gopher", "203.0.113.9", "203.0.113.9, 10.0.0.1", "http"},
		{"a proxy over IPv6", "[2001:db8::1]:4000", []string{"2606:4700::1"}, "", "2606:4700::1", "2606:4700::1, 2001:db8::1", "http"},
		{"a proxy on a mapped address", "[::ffff:10.0.0.1]:4000", []string{"::ffff:203.0.113.9"}, "", "203.0.113.9", "203.0.113.9, 10.0.0.1", "http"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFront(t, func(c *Config, m *relay.Manifest) {
				c.TrustedProxies = trust
				app := m.Apps["shop"]
				app.Ingress.AllowIPs = []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr(test.client), netip.MustParseAddr(test.client).BitLen())}
				m.Apps["shop"] = app
			})
			r := httptest.NewRequest("GET", "/", nil)
			r.Host, r.RemoteAddr = "shop.apps.test", test.peer
			r.Header["X-Forwarded-For"] = test.for_
			if test.proto != "" {
				r.Header.Set("X-Forwarded-Proto", test.proto)
			}
			r.Header.Set("X-Forwarded-Host", "spoofed.example")
			r.Header.Set("Forwarded", "for=1.2.3.4")
			if w := f.do(r); w.Code != 200 {
				t.Fatalf("the app's list of addresses was asked about another one: %d %s", w.Code, w.Body)
			}
			h := f.app().Header
			for name, want := range map[string]string{
				"X-Forwarded-For": test.forwarded, "X-Forwarded-Proto": test.scheme, "X-Forwarded-Host": "shop.apps.test", "Forwarded": "",
			} {
				if got := strings.Join(h.Values(name), "|"); got != want {
					t.Errorf("the app sees %s %q, want %q", name, got, want)
				}
			}
		})
	}
}

func TestOnlyTheRelaySaysPosternHeaders(t *testing.T) {
	f := newFront(t, nil)
	r := httptest.NewRequest("GET", "/", nil)
	r.Host = "shop.apps.test"
	spoofed := []string{"Postern-Verified", "postern-event-id", "POSTERN-X", "Postern_Verified", "postern_event-id", "Postern-Request-Id", "X_Forwarded_For", "X-Forwarded_Proto"}
	for _, name := range spoofed {
		r.Header[name] = []string{"spoofed"}
	}
	for _, name := range []string{"X-Postern-Color", "Posternal", "X_Custom"} {
		r.Header[name] = []string{"kept"}
	}
	f.do(r)
	h := f.app().Header
	for _, name := range spoofed {
		if v := strings.Join(h[name], ""); v == "spoofed" {
			t.Errorf("%s came through", name)
		}
	}
	for _, name := range []string{"X-Postern-Color", "Posternal", "X_Custom"} {
		if v := strings.Join(h[name], ""); v != "kept" {
			t.Errorf("%s is %q, want it kept", name, v)
		}
	}
	if id := h.Get(protocol.HeaderRequestID); !strings.HasPrefix(id, "req_") {
		t.Errorf("the app sees request id %q", id)
	}
}

func TestAppsAccessRulesAreKept(t *testing.T) {
	office := []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2606:4700::/32")}
	dev := &relay.BasicAuth{User: "dev", Password: "s3cret"}
	for _, test := range []struct {
		name           string
		rules          relay.Ingress
		peer           string
		user, password string
		status         int
		code           relay.Code
	}{
		{"everybody, without rules", relay.Ingress{}, "192.0.2.1:1", "", "", 200, ""},
		{"an address of the list", relay.Ingress{AllowIPs: office}, "203.0.113.7:1", "", "", 200, ""},
		{"an IPv6 address of the list", relay.Ingress{AllowIPs: office}, "[2606:4700::7]:1", "", "", 200, ""},
		{"an address beside the list", relay.Ingress{AllowIPs: office}, "203.0.114.7:1", "", "", 403, relay.Forbidden},
		{"a peer without an address", relay.Ingress{AllowIPs: office}, "@", "", "", 403, relay.Forbidden},
		{"the right password", relay.Ingress{Basic: dev}, "192.0.2.1:1", "dev", "s3cret", 200, ""},
		{"no password", relay.Ingress{Basic: dev}, "192.0.2.1:1", "", "", 401, relay.Unauthorized},
		{"a wrong password", relay.Ingress{Basic: dev}, "192.0.2.1:1", "dev", "s3cre", 401, relay.Unauthorized},
		{"a wrong user", relay.Ingress{Basic: dev}, "192.0.2.1:1", "de", "s3cret", 401, relay.Unauthorized},
		{"the printed form of a secret", relay.Ingress{Basic: dev}, "192.0.2.1:1", "dev", "[secret]", 401, relay.Unauthorized},
		{"the right password from a wrong address", relay.Ingress{AllowIPs: office, Basic: dev}, "192.0.2.1:1", "dev", "s3cret", 403, relay.Forbidden},
		{"both right", relay.Ingress{AllowIPs: office, Basic: dev}, "203.0.113.7:1", "dev", "s3cret", 200, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFront(t, func(_ *Config, m *relay.Manifest) { m.Apps["shop"] = relay.App{ID: "shop", Ingress: test.rules} })
			r := httptest.NewRequest("GET", "/", nil)
			r.Host, r.RemoteAddr = "shop.apps.test", test.peer
			if test.user != "" {
				r.SetBasicAuth(test.user, test.password)
			}
			w := f.do(r)
			if test.status == 200 {
				if got := f.app().Header.Get("Authorization"); w.Code != 200 || got != "" {
					t.Errorf("answered %d, the app saw Authorization %q", w.Code, got)
				}
				return
			}
			wantRefusal(t, w, test.status, test.code)
			if len(f.seen) != 0 {
				t.Error("the request reached the app")
			}
			if asks := w.Header().Get("WWW-Authenticate") != ""; asks != (test.status == 401) {
				t.Errorf("%d with WWW-Authenticate %q", w.Code, w.Header().Get("WWW-Authenticate"))
			}
		})
	}
}

// An app that checks Authorization by itself must get it.
func TestAuthorizationOfAnAppWithoutAPasswordPasses(t *testing.T) {
	f := newFront(t, nil)
	r := httptest.NewRequest("GET", "/", nil)
	r.Host = "shop.apps.test"
	r.Header.Set("Authorization", "Bearer x")
	f.do(r)
	if got := f.app().Header.Get("Authorization"); got != "Bearer x" {
		t.Errorf("the app saw Authorization %q", got)
	}
}

// An app behind a password still takes webhooks: those are verified in their own
// way, and come to our host.
func TestAccessRulesDoNotConcernWebhooks(t *testing.T) {
	f := newFront(t, func(_ *Config, m *relay.Manifest) {
		app := m.Apps["shop"]
		app.Ingress.Basic = &relay.BasicAuth{User: "dev", Password: "s3cret"}
		m.Apps["shop"] = app
	})
	if w := f.do(httptest.NewRequest("POST", "http://relay.apps.test/hooks/shop/stripe", nil)); w.Code != http.StatusAccepted {
		t.Errorf("answered %d %s", w.Code, w.Body)
	}
}

func TestTargetReachesTheAppByteForByte(t *testing.T) {
	f := newFront(t, nil)
	web := httptest.NewServer(f.server)
	defer web.Close()
	for sent, want := range map[string]string{
		"/":                       "/",
		"/a%2Fb/%41?x=%20&y=+;z":  "/a%2Fb/%41?x=%20&y=+;z",
		"//double//slash/../up/.": "//double//slash/../up/.",
		"/hooks/shop/stripe":      "/hooks/shop/stripe",
		"/healthz?":               "/healthz?",
		"/ümlaut":                 "/ümlaut",
		"/a;b=c,d|e":              "/a;b=c,d|e",
		"http://shop.apps.test/absolute%2Fform?q": "/absolute%2Fform?q",
	} {
		f.seen = nil
		conn, err := net.Dial("tcp", web.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(conn, "GET "+sent+" HTTP/1.1\r\nHost: shop.apps.test\r\nConnection: close\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		conn.Close()
		if resp.StatusCode != 200 {
			t.Errorf("%s: answered %d", sent, resp.StatusCode)
			continue
		}
		if got := f.app().URL.Opaque; got != want { // the transport writes it as it is
			t.Errorf("%s: the app sees %s, want %s", sent, got, want)
		}
	}
}

func TestConnectIsNotTaken(t *testing.T) {
	f := newFront(t, nil)
	r := httptest.NewRequest("CONNECT", "shop.apps.test:443", nil)
	w := f.do(r)
	wantRefusal(t, w, 405, relay.BadMethod)
	if w.Header().Get("Connection") != "close" || len(f.seen) != 0 {
		t.Errorf("Connection %q, %d requests at the app", w.Header().Get("Connection"), len(f.seen))
	}
}

func TestRequestThatTheAppDidNotAnswerIsRefusedWithItsCode(t *testing.T) {
	for _, test := range []struct {
		err    error
		status int
		code   relay.Code
	}{
		{relay.Errorf(relay.NoAgent, "no agent"), 503, relay.NoAgent},
		{relay.Errorf(relay.Draining, "stopping"), 503, relay.Draining},
		{relay.Errorf(relay.Overloaded, "full"), 503, relay.Overloaded},
		{relay.Errorf(relay.AppRefused, "refused"), 502, relay.AppRefused},
		{relay.Errorf(relay.AppReset, "lost"), 502, relay.AppReset},
		{relay.Errorf(relay.AppTimeout, "silent"), 504, relay.AppTimeout},
		{errors.New("secret detail"), 500, "internal"},
	} {
		t.Run(string(test.code), func(t *testing.T) {
			f := newFront(t, nil)
			f.answer = func(*http.Request) (*http.Response, error) { return nil, test.err }
			r := httptest.NewRequest("GET", "/", nil)
			r.Host = "shop.apps.test"
			w := f.do(r)
			wantRefusal(t, w, test.status, test.code)
			if strings.Contains(w.Body.String(), "secret detail") {
				t.Errorf("the answer shows the inside: %s", w.Body)
			}
			if sent := f.app().Header.Get(protocol.HeaderRequestID); sent != w.Header().Get(protocol.HeaderRequestID) {
				t.Errorf("the app was told request id %s, the client %s", sent, w.Header().Get(protocol.HeaderRequestID))
			}
		})
	}
}

func TestClientThatLeftIsNotAnswered(t *testing.T) {
	f := newFront(t, nil)
	f.answer = func(*http.Request) (*http.Response, error) { return nil, context.Canceled }
	r := httptest.NewRequest("GET", "/", nil)
	r.Host = "shop.apps.test"
	w := httptest.NewRecorder()
	defer func() {
		if reason := recover(); reason != http.ErrAbortHandler {
			t.Errorf("ended with %v, want an abort", reason)
		}
		if w.Body.Len() != 0 {
			t.Errorf("answered %q", w.Body)
		}
	}()
	f.server.ServeHTTP(w, r)
}

func TestIdleLimitHasADefault(t *testing.T) {
	if got := newFront(t, nil).server.cfg.Idle; got != 5*time.Minute {
		t.Errorf("idle limit %v, want 5m", got)
	}
}
