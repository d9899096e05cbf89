package ingress

import (
	"cmp"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/relay"
)

const hook = "http://relay.apps.test:8443/hooks/shop/"

func TestRestOfATargetIsWhatFollowsTheEndpoint(t *testing.T) {
	for target, want := range map[string]string{
		"/hooks/shop/stripe":            "",
		"/hooks/shop/stripe/":           "/",
		"/hooks/shop/stripe?a=b":        "?a=b",
		"/hooks/shop/stripe/?a=b":       "/?a=b",
		"/hooks/shop/stripe/x/y":        "/x/y",
		"/hooks/shop/stripe/x/?a=/b/c":  "/x/?a=/b/c",
		"/hooks/shop/stripe?a=/b/c":     "?a=/b/c",
		"/hooks/shop/stripe/a%2Fb/%3f?": "/a%2Fb/%3f?",
		"/hooks/shop/stripe//x":         "//x",
		"/hooks/shop/stripe/../x":       "/../x",
	} {
		if got := restOf(target); got != want {
			t.Errorf("restOf(%q) = %q, want %q", target, got, want)
		}
	}
}

func TestStoredWebhookIsAnsweredWithItsEvent(t *testing.T) {
	for _, test := range []struct {
		name    string
		receipt relay.Receipt
		body    string
	}{
		{"the first time", relay.Receipt{ID: "evt_1"}, `{"id":"evt_1"}` + "\n"},
		{"again", relay.Receipt{ID: "evt_1", Duplicate: true}, `{"id":"evt_1","duplicate":true}` + "\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFront(t, nil)
			f.inbox.receipt = test.receipt
			w := f.do(httptest.NewRequest("POST", hook+"stripe", strings.NewReader("{}")))
			h := w.Header()
			if w.Code != 202 || w.Body.String() != test.body || h.Get("Content-Type") != "application/json" {
				t.Errorf("answered %d %q as %s", w.Code, w.Body, h.Get("Content-Type"))
			}
			if got := h.Get(protocol.HeaderEventID); got != "evt_1" {
				t.Errorf("%s is %q", protocol.HeaderEventID, got)
			}
			if len(f.seen) != 0 {
				t.Error("the sender waited for the app")
			}
		})
	}
}

func TestInboxGetsTheSendersOwnBytes(t *testing.T) {
	f := newFront(t, nil)
	r := httptest.NewRequest("POST", hook+"stripe/a%2Fb?x=%20", strings.NewReader("\x00 body\r\n"))
	r.RequestURI = "/hooks/shop/stripe/a%2Fb?x=%20"
	r.RemoteAddr = "203.0.113.9:4000"
	r.Header["Stripe-Signature"] = []string{"t=1", "v1=2"}
	r.Header.Set("Postern-Verified", "true")
	if w := f.do(r); w.Code != 202 {
		t.Fatalf("answered %d %s", w.Code, w.Body)
	}
	in := f.inbox.received[0]
	if in.Method != "POST" || in.Target != "/a%2Fb?x=%20" || string(in.Body) != "\x00 body\r\n" {
		t.Errorf("the inbox got %s %s %q", in.Method, in.Target, in.Body)
	}
	if want := "https://relay.apps.test:8443/hooks/shop/stripe/a%2Fb?x=%20"; in.PublicURL != want {
		t.Errorf("public URL %s, want %s", in.PublicURL, want)
	}
	if in.RemoteIP != "203.0.113.9" || in.ReceivedAt.IsZero() {
		t.Errorf("from %s at %v", in.RemoteIP, in.ReceivedAt)
	}
	if got := strings.Join(in.Header["Stripe-Signature"], "|"); got != "t=1|v1=2" {
		t.Errorf("signature header %q", got)
	}
	if in.Header.Get("Postern-Verified") != "" {
		t.Error("the sender's Postern-Verified came through")
	}
}

func TestWebhookThatIsNotTakenIsRefused(t *testing.T) {
	for _, test := range []struct {
		name, method, path string
		body               io.Reader
		err                error // the inbox's
		status             int
		code               relay.Code
	}{
		{"for an unknown app", "POST", "../shoe/stripe", nil, nil, 404, relay.NotFound},
		{"for an unknown endpoint", "POST", "paypal", nil, nil, 404, relay.NotFound},
		{"for an unknown endpoint with more behind it", "POST", "paypal/x", nil, nil, 404, relay.NotFound},
		{"sent with GET", "GET", "stripe", nil, nil, 405, relay.BadMethod},
		{"sent with HEAD", "HEAD", "stripe", nil, nil, 405, relay.BadMethod},
		{"sent with OPTIONS", "OPTIONS", "stripe/x", nil, nil, 405, relay.BadMethod},
		{"too long", "POST", "stripe", strings.NewReader(strings.Repeat("x", 1001)), nil, 413, relay.TooLarge},
		{"too long, without a length", "POST", "stripe", struct{ io.Reader }{strings.NewReader(strings.Repeat("x", 1001))}, nil, 413, relay.TooLarge},
		{"too long for a sync endpoint", "POST", "live", strings.NewReader(strings.Repeat("x", 1001)), nil, 413, relay.TooLarge},
		{"cut off", "POST", "stripe", cutBody{}, nil, 400, relay.Invalid},
		{"with a bad signature", "POST", "stripe", nil, relay.Errorf(relay.BadSignature, "the signature is wrong"), 401, relay.BadSignature},
		{"with a bad signature, for a sync endpoint", "POST", "live", nil, relay.Errorf(relay.BadSignature, "the signature is wrong"), 401, relay.BadSignature},
		{"while the store is down", "POST", "stripe", nil, &relay.Error{Code: relay.Unavailable, Message: "not stored", Err: errors.New("disk full")}, 503, relay.Unavailable},
		{"by a fault of ours", "POST", "stripe", nil, errors.New("disk full"), 500, "internal"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFront(t, nil)
			f.inbox.err = test.err
			path := "/hooks/shop/" + test.path
			if rest, up := strings.CutPrefix(test.path, "../"); up {
				path = "/hooks/" + rest
			}
			w := f.do(httptest.NewRequest(test.method, "http://relay.apps.test"+path, test.body))
			wantRefusal(t, w, test.status, test.code)
			if test.err == nil && test.status != 405 && len(f.inbox.received) != 0 {
				t.Error("the inbox was given it")
			}
			if len(f.seen) != 0 {
				t.Error("it reached the app")
			}
			if allow := w.Header().Get("Allow"); (allow == "POST") != (test.status == 405) {
				t.Errorf("%d with Allow %q", test.status, allow)
			}
			if strings.Contains(w.Body.String(), "disk full") {
				t.Errorf("the answer shows the inside: %s", w.Body)
			}
		})
	}
}

// cutBody breaks off in the middle.
type cutBody struct{}

func (cutBody) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestBodyOfExactlyTheLimitIsTaken(t *testing.T) {
	f := newFront(t, nil)
	if w := f.do(httptest.NewRequest("POST", hook+"stripe", strings.NewReader(strings.Repeat("x", 1000)))); w.Code != 202 {
		t.Errorf("answered %d %s", w.Code, w.Body)
	}
}

func TestSyncWebhookIsAnsweredByTheAppAndRecorded(t *testing.T) {
	for _, test := range []struct {
		name    string
		status  int
		outcome relay.Outcome
	}{
		{"taken", 201, relay.OutcomeDone},
		{"refused", 422, relay.OutcomeRejected},
		{"redirected", 302, relay.OutcomeRejected},
		{"failed", 500, relay.OutcomeRejected},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFront(t, nil)
			f.answer = func(*http.Request) (*http.Response, error) {
				resp := response(test.status, "the app's words")
				resp.Header.Set("X-App", "yes")
				resp.Header.Set("Connection", "X-Hop")
				resp.Header.Set("X-Hop", "only for you")
				return resp, nil
			}
			w := f.do(httptest.NewRequest("GET", hook+"live", nil)) // handshakes of some providers are GETs
			h := w.Header()
			if w.Code != test.status || w.Body.String() != "the app's words" || h.Get("X-App") != "yes" {
				t.Errorf("answered %d %q %v", w.Code, w.Body, h)
			}
			if h.Get("X-Hop") != "" || h.Get("Connection") != "" {
				t.Errorf("hop-by-hop headers came through: %v", h)
			}
			if got := h.Get(protocol.HeaderEventID); got != "evt_sync" {
				t.Errorf("%s is %q", protocol.HeaderEventID, got)
			}
			if len(f.inbox.recorded) != 1 {
				t.Fatalf("%d attempts recorded, want one", len(f.inbox.recorded))
			}
			a := f.inbox.recorded[0]
			if a.Status != test.status || a.Outcome != test.outcome || string(a.Body) != "the app's words" || a.Error != "" {
				t.Errorf("recorded %+v", a)
			}
			if a.StartedAt.IsZero() || a.EndedAt.Before(a.StartedAt) {
				t.Errorf("recorded from %v to %v", a.StartedAt, a.EndedAt)
			}
		})
	}
}

func TestSyncWebhookWithoutAnAnswerIsRefusedAndRecorded(t *testing.T) {
	for _, test := range []struct {
		err    error
		status int
		code   relay.Code
	}{
		{relay.Errorf(relay.NoAgent, "no agent"), 503, relay.NoAgent},
		{relay.Errorf(relay.AppTimeout, "silent"), 504, relay.AppTimeout},
		{relay.Errorf(relay.AppReset, "lost"), 502, relay.AppReset},
	} {
		t.Run(string(test.code), func(t *testing.T) {
			f := newFront(t, nil)
			f.answer = func(*http.Request) (*http.Response, error) { return nil, test.err }
			w := f.do(httptest.NewRequest("POST", hook+"live", strings.NewReader("{}")))
			wantRefusal(t, w, test.status, test.code)
			if got := w.Header().Get(protocol.HeaderEventID); got != "evt_sync" {
				t.Errorf("%s is %q", protocol.HeaderEventID, got)
			}
			if len(f.inbox.recorded) != 1 {
				t.Fatalf("%d attempts recorded, want one", len(f.inbox.recorded))
			}
			if a := f.inbox.recorded[0]; a.Status != 0 || a.Outcome == relay.OutcomeDone || a.Error == "" {
				t.Errorf("recorded %+v", a)
			}
		})
	}
}

func TestSyncAnswerThatIsCutIsAbortedAndRecordedAsUnknown(t *testing.T) {
	f := newFront(t, nil)
	f.answer = func(*http.Request) (*http.Response, error) {
		resp := response(200, "")
		resp.Body = io.NopCloser(io.MultiReader(strings.NewReader("half"), cutBody{}))
		return resp, nil
	}
	web := httptest.NewUnstartedServer(f.server)
	web.Config.ConnContext = ConnContext
	web.Start()
	defer web.Close()
	r, _ := http.NewRequest("POST", web.URL+"/hooks/shop/live", strings.NewReader("{}"))
	resp, err := http.DefaultClient.Do(r)
	if err == nil {
		_, err = io.ReadAll(resp.Body)
		resp.Body.Close()
	}
	if err == nil {
		t.Error("a cut answer ended like a whole one")
	}
	web.Close() // waits for the handler
	if len(f.inbox.recorded) != 1 {
		t.Fatalf("%d attempts recorded, want one", len(f.inbox.recorded))
	}
	if a := f.inbox.recorded[0]; a.Outcome != relay.OutcomeUnknown || string(a.Body) != "half" || a.Error == "" {
		t.Errorf("recorded %+v", a)
	}
}

func TestRecordKeepsTheFirstBytesOfALongAnswerAndTheSenderAllOfThem(t *testing.T) {
	f := newFront(t, nil)
	long := strings.Repeat("x", maxKept+1000)
	f.answer = func(*http.Request) (*http.Response, error) { return response(200, long), nil }
	w := f.do(httptest.NewRequest("POST", hook+"live", nil))
	if w.Body.String() != long {
		t.Errorf("the sender got %d of %d bytes", w.Body.Len(), len(long))
	}
	if n := len(f.inbox.recorded[0].Body); n != maxKept {
		t.Errorf("%d bytes recorded, want %d", n, maxKept)
	}
}

func TestSyncAnswerThatIsAnUpgradeIsRefused(t *testing.T) {
	f := newFront(t, nil)
	f.answer = func(*http.Request) (*http.Response, error) { return response(101, ""), nil }
	wantRefusal(t, f.do(httptest.NewRequest("POST", hook+"live", nil)), 502, relay.AppReset)
	if len(f.inbox.recorded) != 1 || f.inbox.recorded[0].Outcome != relay.OutcomeRejected {
		t.Errorf("recorded %+v", f.inbox.recorded)
	}
}

func TestWhatTheInboxAnswersIsPassedOn(t *testing.T) {
	f := newFront(t, nil)
	f.inbox.receipt = relay.Receipt{ID: "evt_7"}
	f.inbox.answer = &relay.Answer{Status: 418, Body: []byte("the app's own"),
		Header: []relay.Field{{Name: "Set-Cookie", Value: "a"}, {Name: "Set-Cookie", Value: "b"}}}
	w := f.do(httptest.NewRequest("POST", hook+"stripe", strings.NewReader("{}")))
	if w.Code != 418 || w.Body.String() != "the app's own" || len(w.Header()["Set-Cookie"]) != 2 {
		t.Errorf("answered %d %q %v", w.Code, w.Body, w.Header())
	}
	if got := w.Header().Get(protocol.HeaderEventID); got != "evt_7" {
		t.Errorf("%s is %q", protocol.HeaderEventID, got)
	}
}

func TestHandshakesAreAnsweredAndAreNoEvents(t *testing.T) {
	hello := &relay.Answer{Status: 200, Body: []byte("hello"), Header: []relay.Field{{Name: "Content-Type", Value: "text/plain"}}}
	for _, test := range []struct{ method, endpoint string }{
		{"POST", "stripe"}, {"GET", "stripe"}, {"HEAD", "stripe"}, {"POST", "live"}, {"GET", "live"},
	} {
		t.Run(test.method+" "+test.endpoint, func(t *testing.T) {
			f := newFront(t, nil)
			f.inbox.receipt, f.inbox.answer = relay.Receipt{}, hello
			f.inbox.verdict = relay.Verdict{OK: true, Answer: hello}
			w := f.do(httptest.NewRequest(test.method, hook+test.endpoint, nil))
			if w.Code != 200 || w.Body.String() != "hello" || w.Header().Get("Content-Type") != "text/plain" {
				t.Errorf("answered %d %q %v", w.Code, w.Body, w.Header())
			}
			if id := w.Header().Get(protocol.HeaderEventID); id != "" || len(f.inbox.recorded) != 0 || len(f.seen) != 0 {
				t.Errorf("event %q, %d recorded, %d at the app", id, len(f.inbox.recorded), len(f.seen))
			}
		})
	}
}

func TestRequestThatIsNeitherEventNorHandshakeIsToldWhy(t *testing.T) {
	f := newFront(t, nil)
	f.inbox.verdict = relay.Verdict{Reason: "the verify token differs"}
	f.inbox.err = relay.Errorf(relay.BadSignature, "the verify token differs")
	w := f.do(httptest.NewRequest("GET", hook+"stripe?hub.mode=subscribe", nil))
	wantRefusal(t, w, 405, relay.BadMethod)
	if !strings.Contains(w.Body.String(), "the verify token differs") {
		t.Errorf("answered %s", w.Body)
	}
	f.inbox.verdict.Handshake = true
	wantRefusal(t, f.do(httptest.NewRequest("GET", hook+"stripe?hub.mode=subscribe", nil)), 401, relay.BadSignature)
}

func TestAnswerThatWouldEndTheSubscriptionIsNotPassedOn(t *testing.T) {
	f := newFront(t, nil)
	f.inbox.withheld = 410
	f.answer = func(*http.Request) (*http.Response, error) { return response(410, "gone"), nil }
	w := f.do(httptest.NewRequest("POST", hook+"live", strings.NewReader("{}")))
	wantRefusal(t, w, 502, relay.AppRejected)
	if len(f.inbox.recorded) != 1 || f.inbox.recorded[0].Status != 410 || f.inbox.recorded[0].Outcome != relay.OutcomeRejected {
		t.Errorf("recorded %+v", f.inbox.recorded)
	}
}

func TestOnlyTheAPISeesASecretToSignWith(t *testing.T) {
	for url, want := range map[string]string{
		"http://relay.apps.test/api/v1/events/stream": "whsec_mine",
		"http://relay.apps.test/else":                 "",
		"http://shop.apps.test/api/v1/events/stream":  "",
	} {
		f := newFront(t, nil)
		got := "nobody was asked"
		f.server.own = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.Header.Get(protocol.HeaderResignSecret) })
		f.answer = func(r *http.Request) (*http.Response, error) {
			got = r.Header.Get(protocol.HeaderResignSecret)
			return response(200, ""), nil
		}
		r := httptest.NewRequest("GET", url, nil)
		r.Header.Set(protocol.HeaderResignSecret, "whsec_mine")
		f.do(r)
		if got != want {
			t.Errorf("%s: %q came through, want %q", url, got, want)
		}
	}
}

func TestTargetIsWhatTheClientSpelled(t *testing.T) {
	for uri, want := range map[string]string{
		"/a|b'?x={":                 "/a|b'?x={",
		"http://relay/a|b'?x={":     "/a|b'?x={",
		"http://relay:80/a%7cb//c?": "/a%7cb//c?",
		"HTTP://relay":              "/",
		"http://relay?x=http://y/z": "/?x=http://y/z",
		"/x?u=http://other/path":    "/x?u=http://other/path",
		"*":                         "*",
	} {
		r := httptest.NewRequest("POST", "http://relay/", nil)
		r.RequestURI = uri
		if got := target(r); got != want {
			t.Errorf("target of %q = %q, want %q", uri, got, want)
		}
	}
}

func TestStoredWebhookIsAnsweredAsItsProviderLikes(t *testing.T) {
	for status, body := range map[int]string{0: `{"id":"evt_1"}` + "\n", 200: `{"id":"evt_1"}` + "\n", 204: ""} {
		f := newFront(t, func(c *Config, _ *relay.Manifest) {
			c.Facts = func(string) relay.ProviderFacts { return relay.ProviderFacts{Accepted: status} }
		})
		w := f.do(httptest.NewRequest("POST", hook+"stripe", strings.NewReader("{}")))
		if want := cmp.Or(status, 202); w.Code != want || w.Body.String() != body {
			t.Errorf("with %d: answered %d %q", status, w.Code, w.Body)
		}
	}
}

func TestSyncWebhookThatCouldNotBeRecordedDoesNotReachTheApp(t *testing.T) {
	f := newFront(t, nil)
	f.inbox.full = &relay.Error{Code: relay.Unavailable, Reason: "disk_full", Message: "the relay's disk is nearly full"}
	w := f.do(httptest.NewRequest("POST", hook+"live", strings.NewReader("{}")))
	wantRefusal(t, w, 503, relay.Unavailable)
	if len(f.seen) != 0 || !strings.Contains(w.Body.String(), `"reason":"disk_full"`) {
		t.Errorf("%d requests at the app, answered %s", len(f.seen), w.Body)
	}
}

func TestTheAppCannotSpeakForTheRelay(t *testing.T) {
	for _, endpoint := range []string{"live", "stripe"} {
		f := newFront(t, nil)
		f.inbox.answer = &relay.Answer{Status: 200, Header: []relay.Field{{Name: "Postern-Event-Id", Value: "faked"}, {Name: "postern_evil", Value: "1"}, {Name: "X-App", Value: "yes"}}}
		f.answer = func(*http.Request) (*http.Response, error) {
			resp := response(200, "<p>")
			resp.Header = http.Header{"Postern-Event-Id": {"faked"}, "Postern_evil": {"1"}, "X-App": {"yes"}}
			return resp, nil
		}
		w := f.do(httptest.NewRequest("POST", hook+endpoint, strings.NewReader("{}")))
		h := w.Header()
		if ids := h.Values(protocol.HeaderEventID); len(ids) != 1 || ids[0] == "faked" || h.Get("X-App") != "yes" {
			t.Errorf("%s: answered %v", endpoint, h)
		}
		for name := range h {
			if strings.Contains(strings.ToLower(name), "evil") {
				t.Errorf("%s: %s came through", endpoint, name)
			}
		}
		if h.Get("Content-Type") != "" {
			t.Errorf("%s: the type %q was invented", endpoint, h.Get("Content-Type"))
		}
	}
}
