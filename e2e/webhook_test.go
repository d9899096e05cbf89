package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-github/v84/github"
	"github.com/stripe/stripe-go/v85/webhook"

	"github.com/posternhq/postern/e2e/rig"
)

func TestMain(m *testing.M) { os.Exit(rig.Main(m)) }

func TestASignedWebhookReachesTheAppUnchangedAndVerifiesThere(t *testing.T) {
	t.Parallel()
	r := startWebhookRelay(t)
	app := newCollector()
	app.answer = func(w http.ResponseWriter, _ arrival) {
		w.Header().Set("X-App", "was here")
		w.WriteHeader(http.StatusCreated)
		io.WriteString(w, "the app's own words")
	}
	r.StartRun(rig.AppCommand(t, rig.Serve(t, app)), rig.AgentConfig{})
	client := r.Client()

	for _, test := range []struct {
		endpoint, path string
		sync           bool
		hook           hook
		verify         func(arrival) error
	}{
		{"stripe", "/webhooks/stripe", false, signStripe("evt_1", stripeNew, time.Now()), verifyStripe(stripeNew)},
		{"stripe-sync", "/webhooks/stripe", true, signStripe("evt_2", stripeNew, time.Now()), verifyStripe(stripeNew)},
		{"github", "/webhooks/github", false, signGitHub("7b0d6d60-0001"), verifyGitHub},
		{"github-sync", "/webhooks/github", true, signGitHub("7b0d6d60-0002"), verifyGitHub},
	} {
		t.Run(test.endpoint, func(t *testing.T) {
			// What the sender claims about us must not reach the app.
			test.hook.header["Postern-Verified"] = []string{"perhaps"}
			test.hook.header["postern-Attempt"] = []string{"99"}
			test.hook.header["Postern-Made-Up"] = []string{"x"}
			before := time.Now()
			resp, body := post(t, client, r.HookURL("shop", test.endpoint), test.hook)
			id := resp.Header.Get("Postern-Event-Id")
			if test.sync {
				if resp.StatusCode != http.StatusCreated || string(body) != "the app's own words" || resp.Header.Get("X-App") != "was here" {
					t.Errorf("answer %s %q, expected the app's own", resp.Status, body)
				}
			} else {
				id = wantAccepted(t, resp, body)
			}
			got := app.next(t)
			if err := test.verify(got); err != nil {
				t.Errorf("the provider's own library refuses what arrived: %v", err)
			}
			if !bytes.Equal(got.body, test.hook.body) {
				t.Errorf("body %q, sent %q", got.body, test.hook.body)
			}
			if got.method != http.MethodPost || got.target != test.path || got.host != r.Addr {
				t.Errorf("request %s %s for %s", got.method, got.target, got.host)
			}
			checkDeliveryHeaders(t, r, got, test.endpoint, id, before)
			checkSendersHeaders(t, got.header, test.hook.header)
		})
	}
}

// verifyStripe checks an arrival as an app with Stripe's library does.
func verifyStripe(secret string) func(arrival) error {
	return func(a arrival) error {
		_, err := webhook.ConstructEvent(a.body, a.header.Get("Stripe-Signature"), secret)
		return err
	}
}

// verifyGitHub checks an arrival as an app with go-github does.
func verifyGitHub(a arrival) error {
	req, err := http.NewRequest(a.method, "http://app"+a.target, bytes.NewReader(a.body))
	if err != nil {
		return err
	}
	req.Header = a.header
	_, err = github.ValidatePayload(req, []byte(githubSecret))
	return err
}

// checkDeliveryHeaders checks what the contract says of the relay's own headers.
func checkDeliveryHeaders(t *testing.T, r *rig.Relay, got arrival, endpoint, event string, before time.Time) {
	t.Helper()
	for name, want := range map[string]string{
		"Postern-Event-Id":    "^" + regexp.QuoteMeta(event) + "$",
		"Postern-Delivery-Id": `^dlv_[0-9a-z]{20,}$`,
		"Postern-Attempt":     `^1$`,
		"Postern-Endpoint":    "^" + endpoint + "$",
		"Postern-Verified":    `^true$`,
		"Idempotency-Key":     `^\S+$`,
		"Traceparent":         `^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`,
		"X-Forwarded-For":     `^127\.0\.0\.1$`,
		"X-Forwarded-Proto":   `^http$`,
		"X-Forwarded-Host":    "^" + regexp.QuoteMeta(r.Addr) + "$",
		"Content-Length":      "^" + strconv.Itoa(len(got.body)) + "$",
	} {
		values := got.header.Values(name)
		if len(values) != 1 || !regexp.MustCompile(want).MatchString(values[0]) {
			t.Errorf("the app got %s: %q, expected one that matches %s", name, values, want)
		}
	}
	at, err := time.Parse(time.RFC3339Nano, got.header.Get("Postern-Received-At"))
	if err != nil || at.Before(before.Add(-time.Second)) || at.After(time.Now().Add(time.Second)) {
		t.Errorf("Postern-Received-At: %q", got.header.Get("Postern-Received-At"))
	}
	if got.header.Get("Postern-Made-Up") != "" {
		t.Error("a Postern- header of the sender's reached the app")
	}
}

// checkSendersHeaders checks that the provider's own headers arrived as sent.
func checkSendersHeaders(t *testing.T, got, sent http.Header) {
	t.Helper()
	for name, values := range sent {
		if strings.HasPrefix(strings.ToLower(name), "postern-") {
			continue
		}
		if strings.Join(got.Values(name), "\x00") != strings.Join(values, "\x00") {
			t.Errorf("%s: %q, sent %q", name, got.Values(name), values)
		}
	}
}

func TestAWebhookThatDoesNotVerifyIsRefusedAndNeverDelivered(t *testing.T) {
	t.Parallel()
	r := startWebhookRelay(t)
	app := newCollector()
	r.StartAgent(rig.Serve(t, app), rig.AgentConfig{})
	client := r.Client()

	tampered := signStripe("evt_tampered", stripeNew, time.Now())
	tampered.body = bytes.Replace(tampered.body, []byte("1.00"), []byte("9.00"), 1)
	unsigned := signStripe("evt_unsigned", stripeNew, time.Now())
	unsigned.header.Del("Stripe-Signature")
	twice := signStripe("evt_twice", stripeNew, time.Now())
	twice.header["Stripe-Signature"] = append([]string{"t=1,v1=00"}, twice.header["Stripe-Signature"]...)
	tamperedGitHub := signGitHub("7b0d6d60-1000")
	tamperedGitHub.body = append(tamperedGitHub.body, '\n')
	sha1Only := signGitHub("7b0d6d60-1001")
	sha1Only.header.Del("X-Hub-Signature-256")
	sha1Only.header.Set("X-Hub-Signature", "sha1=7d38cdd689735b008b3c702edd92eea23791c5f6")

	for _, test := range []struct {
		name, provider string
		hook           hook
	}{
		{"Stripe, tampered body", "stripe", tampered},
		{"Stripe, no signature", "stripe", unsigned},
		{"Stripe, two signature headers", "stripe", twice},
		{"Stripe, another's secret", "stripe", signStripe("evt_other", "whsec_of_somebody_else", time.Now())},
		{"Stripe, ten minutes old", "stripe", signStripe("evt_stale", stripeNew, time.Now().Add(-10*time.Minute))},
		{"GitHub, tampered body", "github", tamperedGitHub},
		{"GitHub, the weak signature only", "github", sha1Only},
	} {
		for _, mode := range []string{"", "-sync"} {
			t.Run(test.name+mode, func(t *testing.T) {
				resp, body := post(t, client, r.HookURL("shop", test.provider+mode), test.hook)
				wantRefusal(t, resp, body, http.StatusUnauthorized, "bad_signature")
			})
		}
	}
	// A good one comes through, and nothing of the above did before it.
	good := signStripe("evt_good", stripeNew, time.Now())
	resp, body := post(t, client, r.HookURL("shop", "stripe"), good)
	id := wantAccepted(t, resp, body)
	if got := app.next(t); got.header.Get("Postern-Event-Id") != id {
		t.Errorf("the app got %s %q", got.target, got.body)
	}
	if n := len(app.got); n > 0 {
		t.Errorf("the app got %d more requests", n)
	}
}

func TestBothSecretsOfARotationAreGood(t *testing.T) {
	t.Parallel()
	r := startWebhookRelay(t)
	app := newCollector()
	r.StartAgent(rig.Serve(t, app), rig.AgentConfig{})
	for _, secret := range []string{stripeOld, stripeNew} {
		for _, endpoint := range []string{"stripe", "stripe-sync"} {
			resp, body := post(t, r.Client(), r.HookURL("shop", endpoint), signStripe("evt_"+endpoint+secret, secret, time.Now()))
			if resp.StatusCode/100 != 2 {
				t.Errorf("%s, %s…: %s %s", endpoint, secret[:14], resp.Status, body)
				continue
			}
			if err := verifyStripe(secret)(app.next(t)); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestWhatIsNotThereIsA404InJSON(t *testing.T) {
	t.Parallel()
	r := startWebhookRelay(t)
	for _, url := range []string{
		r.HookURL("nobody", "stripe"),
		r.HookURL("shop", "nothing"),
		r.HookURL("shop", ""),
		r.HookURL("SHOP", "stripe"),
		r.HookURL("shop", "%2e%2e"),
		r.URL + "/hooks",
		r.URL + "/nothing/here",
		"http://nobody.localhost:" + r.Port + "/",
		"http://a.b.localhost:" + r.Port + "/",
		"http://-.localhost:" + r.Port + "/",
	} {
		resp, body := post(t, r.Client(), url, signStripe("evt_x", stripeNew, time.Now()))
		t.Run(url[len("http://"):], func(t *testing.T) { wantRefusal(t, resp, body, http.StatusNotFound, "not_found") })
	}
}

func TestABodyOverTheLimitIsRefusedAndNotStored(t *testing.T) {
	t.Parallel()
	r := startWebhookRelay(t)
	app := newCollector()
	r.StartAgent(rig.Serve(t, app), rig.AgentConfig{})
	const limit = 4 << 10
	for _, endpoint := range []string{"plain", "plain-sync"} {
		url := r.HookURL("shop", endpoint)
		resp, body := post(t, r.Client(), url, plain(strings.Repeat("x", limit+1)))
		wantRefusal(t, resp, body, http.StatusRequestEntityTooLarge, "too_large")

		// A body without a length, far longer than the limit: the answer must not
		// wait for its end.
		endless, w := io.Pipe()
		defer w.Close()
		go func() {
			for chunk := bytes.Repeat([]byte("y"), 1024); ; {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		}()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, io.NopCloser(endless))
		if err != nil {
			t.Fatal(err)
		}
		resp, body = do(t, r.Client(), req)
		wantRefusal(t, resp, body, http.StatusRequestEntityTooLarge, "too_large")
		endless.Close()

		// The limit itself is allowed, and is the only thing that arrives.
		resp, body = post(t, r.Client(), url, plain(strings.Repeat("z", limit)))
		if resp.StatusCode/100 != 2 {
			t.Errorf("%s: a body of exactly the limit: %s %s", endpoint, resp.Status, body)
			continue
		}
		if got := app.next(t); len(got.body) != limit || got.body[0] != 'z' {
			t.Errorf("%s: the app got %d bytes of %.1q", endpoint, len(got.body), got.body)
		}
	}
}

func TestASyncSenderGetsTheAppsOwnAnswer(t *testing.T) {
	t.Parallel()
	r := startWebhookRelay(t)
	app := newCollector()
	large := bytes.Repeat([]byte("0123456789abcdef"), 20<<10)
	app.answer = func(w http.ResponseWriter, a arrival) {
		h := w.Header()
		h["Set-Cookie"] = []string{"a=1", "b=2"}
		h.Set("X-Exact", "Ünïcode\tand tabs")
		h.Set("Connection", "X-Hop")
		h.Set("X-Hop", "for the relay only")
		switch string(a.body) {
		case "teapot":
			h.Set("Content-Type", "text/tea")
			w.WriteHeader(http.StatusTeapot)
			w.Write(large)
		case "moved":
			h.Set("Location", "https://elsewhere.example/")
			w.WriteHeader(http.StatusPermanentRedirect)
		case "nothing":
			w.WriteHeader(http.StatusNoContent)
		case "broken":
			w.WriteHeader(http.StatusInternalServerError)
			io.WriteString(w, "sorry")
		}
	}
	r.StartAgent(rig.Serve(t, app), rig.AgentConfig{})
	for _, test := range []struct {
		say    string
		status int
		body   string
	}{
		{"teapot", http.StatusTeapot, string(large)},
		{"moved", http.StatusPermanentRedirect, ""},
		{"nothing", http.StatusNoContent, ""},
		{"broken", http.StatusInternalServerError, "sorry"},
	} {
		resp, body := post(t, r.Client(), r.HookURL("shop", "plain-sync"), plain(test.say))
		if resp.StatusCode != test.status || string(body) != test.body {
			t.Errorf("%s: %s, %d bytes", test.say, resp.Status, len(body))
		}
		if !eventID.MatchString(resp.Header.Get("Postern-Event-Id")) {
			t.Errorf("%s: Postern-Event-Id %q", test.say, resp.Header.Get("Postern-Event-Id"))
		}
		if got := resp.Header.Values("Set-Cookie"); len(got) != 2 || got[0] != "a=1" || got[1] != "b=2" {
			t.Errorf("%s: cookies %q", test.say, got)
		}
		if got := resp.Header.Get("X-Exact"); got != "Ünïcode\tand tabs" {
			t.Errorf("%s: header %q", test.say, got)
		}
		if resp.Header.Get("X-Hop") != "" {
			t.Errorf("%s: a header of the app's connection came through", test.say)
		}
		app.next(t)
	}
	// The sender, not the relay, tries a failed one again.
	if n := len(app.got); n > 0 {
		t.Errorf("the app got %d more requests", n)
	}
}

func TestASyncSenderWithoutAnAgentIsToldToComeBack(t *testing.T) {
	t.Parallel()
	r := startWebhookRelay(t)
	resp, body := post(t, r.Client(), r.HookURL("shop", "plain-sync"), plain("hello"))
	wantRefusal(t, resp, body, http.StatusServiceUnavailable, "no_agent")
	if !eventID.MatchString(resp.Header.Get("Postern-Event-Id")) {
		t.Errorf("Postern-Event-Id %q", resp.Header.Get("Postern-Event-Id"))
	}
}

func TestADuplicateIsAcknowledgedAndDeliveredOnce(t *testing.T) {
	t.Parallel()
	r := startWebhookRelay(t)
	app := newCollector()
	r.StartAgent(rig.Serve(t, app), rig.AgentConfig{})
	for provider, hook := range map[string]hook{
		"stripe": signStripe("evt_same", stripeNew, time.Now()),
		"github": signGitHub("7b0d6d60-2000"),
	} {
		ids := map[string]int{}
		var mu sync.Mutex
		var senders sync.WaitGroup
		// A provider that got no answer in time sends again while the first is
		// still under way.
		for range 8 {
			senders.Go(func() {
				resp, body := post(t, r.Client(), r.HookURL("shop", provider), hook)
				mu.Lock()
				defer mu.Unlock()
				ids[wantAccepted(t, resp, body)]++
			})
		}
		senders.Wait()
		if len(ids) != 1 {
			t.Errorf("%s: one event was given the ids %v", provider, ids)
		}
		first := app.next(t)
		if ids[first.header.Get("Postern-Event-Id")] == 0 {
			t.Errorf("%s: the app got event %s", provider, first.header.Get("Postern-Event-Id"))
		}
		// Another event behind them, of the same lane: what was queued before it
		// would come before it.
		resp, body := post(t, r.Client(), r.HookURL("shop", "plain"), plain(provider))
		last := wantAccepted(t, resp, body)
		if got := app.next(t); got.header.Get("Postern-Event-Id") != last {
			t.Errorf("%s: delivered twice", provider)
		}
	}
}

func TestADeliveryThatFailsIsTriedAgain(t *testing.T) {
	t.Parallel()
	r := startWebhookRelay(t)
	app := newCollector()
	app.answer = func(w http.ResponseWriter, a arrival) {
		if a.header.Get("Postern-Attempt") != "3" {
			w.WriteHeader(http.StatusInternalServerError)
		}
	}
	r.StartAgent(rig.Serve(t, app), rig.AgentConfig{})
	resp, body := post(t, r.Client(), r.HookURL("shop", "plain"), plain("again and again"))
	id := wantAccepted(t, resp, body)
	var first arrival
	for attempt := 1; attempt <= 3; attempt++ {
		got := app.next(t)
		if attempt == 1 {
			first = got
		}
		if got.header.Get("Postern-Attempt") != strconv.Itoa(attempt) || string(got.body) != "again and again" {
			t.Errorf("attempt %d came as %q with %q", attempt, got.header.Get("Postern-Attempt"), got.body)
		}
		for _, same := range []string{"Postern-Event-Id", "Postern-Delivery-Id", "Idempotency-Key", "Postern-Received-At"} {
			if got.header.Get(same) != first.header.Get(same) {
				t.Errorf("attempt %d has another %s", attempt, same)
			}
		}
		if got.header.Get("Postern-Event-Id") != id || got.header.Get("Postern-Verified") != "false" {
			t.Errorf("attempt %d: event %s, verified %s", attempt, got.header.Get("Postern-Event-Id"), got.header.Get("Postern-Verified"))
		}
	}
	// It is done with: the next arrival is another event.
	resp, body = post(t, r.Client(), r.HookURL("shop", "plain"), plain("next"))
	next := wantAccepted(t, resp, body)
	if got := app.next(t); got.header.Get("Postern-Event-Id") != next {
		t.Errorf("after the app's 200 it got attempt %s of %q", got.header.Get("Postern-Attempt"), got.body)
	}
}

func TestEqualKeysKeepTheirOrderWhenOneFails(t *testing.T) {
	t.Parallel()
	r := startWebhookRelay(t)
	app := newCollector()
	app.answer = func(w http.ResponseWriter, a arrival) {
		if strings.Contains(string(a.body), `"n":0`) && a.header.Get("Postern-Attempt") == "1" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}
	r.StartAgent(rig.Serve(t, app), rig.AgentConfig{})
	const events = 6
	for n := range events {
		resp, body := post(t, r.Client(), r.HookURL("shop", "ordered"), plain(fmt.Sprintf(`{"account":"a","n":%d}`, n)))
		wantAccepted(t, resp, body)
	}
	var order []string
	for range events + 1 { // the first one twice
		got := app.next(t)
		order = append(order, string(got.body[len(got.body)-2]))
	}
	if got := strings.Join(order, ""); got != "0012345" {
		t.Errorf("delivered in the order %s", got)
	}
}

func TestTheRestOfThePathAndTheQueryReachTheAppAsSent(t *testing.T) {
	t.Parallel()
	r := startWebhookRelay(t)
	app := newCollector()
	r.StartAgent(rig.Serve(t, app), rig.AgentConfig{})
	for _, rest := range []string{"", "/", "/a/b", "?x=1&y=%20", "/caf%C3%A9/%2F?q=a+b", "//double", "?"} {
		for _, endpoint := range []string{"plain", "plain-sync"} {
			raw := "POST /hooks/shop/" + endpoint + rest + " HTTP/1.1\r\nHost: " + r.Addr +
				"\r\nContent-Length: 2\r\nConnection: close\r\nIdempotency-Key: the sender's\r\ntraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\nok"
			if answer := exchange(t, r, raw); !strings.HasPrefix(answer, "HTTP/1.1 20") {
				t.Errorf("%s%s: %q", endpoint, rest, answer)
				continue
			}
			got := app.next(t)
			if got.target != "/webhooks/"+endpoint+rest {
				t.Errorf("%s%s arrived as %s", endpoint, rest, got.target)
			}
			if got.header.Get("Idempotency-Key") != "the sender's" || !strings.HasPrefix(got.header.Get("Traceparent"), "00-0af7651916cd43dd") {
				t.Errorf("%s%s: the sender's own headers were replaced: %v", endpoint, rest, got.header)
			}
		}
	}
	for _, rest := range []string{"/../admin", "/..%2fadmin", "/%2e%2e/admin", "/a/../../admin"} {
		raw := "POST /hooks/shop/plain" + rest + " HTTP/1.1\r\nHost: " + r.Addr + "\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
		if answer := exchange(t, r, raw); !strings.HasPrefix(answer, "HTTP/1.1 4") {
			t.Errorf("%s leads out of the endpoint's path and was answered %q", rest, answer)
		}
	}
}

// exchange sends raw bytes to the public listener and returns all it answers,
// until it closes the connection.
func exchange(t *testing.T, r *rig.Relay, raw string) string {
	t.Helper()
	conn := r.Dial(t, 10*time.Second)
	defer conn.Close()
	if _, err := io.WriteString(conn, raw); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		t.Errorf("read the answer: %v after %q", err, answer)
	}
	return string(answer)
}

func TestAWebhookThatComesWhileNoAgentIsThereIsDeliveredWhenOneComes(t *testing.T) {
	t.Parallel()
	r := startWebhookRelay(t)
	hook := signStripe("evt_early", stripeNew, time.Now())
	resp, body := post(t, r.Client(), r.HookURL("shop", "stripe"), hook)
	id := wantAccepted(t, resp, body)
	app := newCollector()
	r.StartRun(rig.AppCommand(t, rig.Serve(t, app)), rig.AgentConfig{})
	got := app.next(t)
	if got.header.Get("Postern-Event-Id") != id || !bytes.Equal(got.body, hook.body) {
		t.Errorf("the app got %s with %q", got.header.Get("Postern-Event-Id"), got.body)
	}
	// Waiting for an agent is not the app's failure.
	if got.header.Get("Postern-Attempt") != "1" {
		t.Errorf("it came as attempt %s", got.header.Get("Postern-Attempt"))
	}
}

func TestAcknowledgedWebhooksSurviveTheRelaysDeath(t *testing.T) {
	t.Parallel()
	r := startWebhookRelay(t)
	const events = 12
	want := map[string]string{}
	for n := range events {
		hook := signStripe("evt_kept_"+strconv.Itoa(n), stripeNew, time.Now())
		resp, body := post(t, r.Client(), r.HookURL("shop", "stripe"), hook)
		want[wantAccepted(t, resp, body)] = string(hook.body)
		if n == events/2 {
			r.Stop()
			r.Restart()
		}
	}
	r.Kill() // right behind the last 202
	r.Restart()
	app := newCollector()
	r.StartAgent(rig.Serve(t, app), rig.AgentConfig{})
	for range events {
		got := app.next(t)
		id := got.header.Get("Postern-Event-Id")
		if body, ok := want[id]; !ok || body != string(got.body) {
			t.Errorf("the app got event %s with %q", id, got.body)
		}
		delete(want, id)
	}
	// Duplicates are still known.
	resp, body := post(t, r.Client(), r.HookURL("shop", "stripe"), signStripe("evt_kept_0", stripeNew, time.Now()))
	wantAccepted(t, resp, body)
	resp, body = post(t, r.Client(), r.HookURL("shop", "stripe"), signStripe("evt_last", stripeNew, time.Now()))
	last := wantAccepted(t, resp, body)
	if got := app.next(t); got.header.Get("Postern-Event-Id") != last {
		t.Errorf("delivered again: %q", got.body)
	}
}

func TestWebhooksAreSentWithPOST(t *testing.T) {
	t.Parallel()
	r := startWebhookRelay(t)
	for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodOptions} {
		req, err := http.NewRequestWithContext(t.Context(), method, r.HookURL("shop", "plain"), nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, body := do(t, r.Client(), req)
		if resp.StatusCode != http.StatusMethodNotAllowed || resp.Header.Get("Allow") != http.MethodPost {
			t.Errorf("%s: %s, Allow %q: %s", method, resp.Status, resp.Header.Get("Allow"), body)
		}
	}
}
