package provider

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/relay"
)

// What holds for every provider, over the samples.

func testRules() *Rules {
	return New(Config{Fetch: func(_ context.Context, url string) ([]byte, error) {
		if url == snsCert || url == paypalPath {
			return keys.pem, nil
		}
		return nil, errors.New("nothing there")
	}})
}

// make makes the webhook of s under its n-th secret, as it arrives at the time
// it was sent.
func (s *sample) make(n int, body string) (relay.Endpoint, relay.Incoming) {
	ep := s.ep
	ep.App, ep.Name, ep.Provider, ep.Secrets = "shop", "x", s.row(), s.secrets
	var secret relay.Secret
	if len(s.secrets) > 0 {
		secret = s.secrets[n]
	}
	url := s.url
	if url == "" {
		url = sampleURL
	}
	h, body := s.sign(secret, sampleTime, url, body)
	return ep, relay.Incoming{Method: "POST", PublicURL: url, Header: h, Body: []byte(body), ReceivedAt: sampleTime}
}

func forEachSample(t *testing.T, test func(t *testing.T, s sample)) {
	t.Helper()
	for _, s := range samples() {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			test(t, s)
		})
	}
}

func wantRefusal(t *testing.T, what string, v relay.Verdict) {
	t.Helper()
	if v.OK || v.Verified || v.Reason == "" || v.DedupeKey != "" {
		t.Errorf("%s: verdict %+v, want a refusal", what, v)
	}
}

func TestThereIsASampleOfEveryProvider(t *testing.T) {
	t.Parallel()
	seen := []string{"none"}
	for _, s := range samples() {
		seen = append(seen, s.row())
	}
	for _, name := range allNames() {
		if !slices.Contains(seen, name) {
			t.Errorf("%s has none", name)
		}
	}
}

func TestAGoodWebhookIsAccepted(t *testing.T) {
	t.Parallel()
	forEachSample(t, func(t *testing.T, s sample) {
		for n := range max(1, len(s.secrets)) {
			ep, in := s.make(n, s.body)
			v := testRules().Verify(t.Context(), ep, in)
			if !v.OK || !v.Verified || v.Reason != "" || v.Answer != nil {
				t.Fatalf("secret %d: verdict %+v", n, v)
			}
			id := s.id
			if prefix, _, hashed := strings.Cut(id, "_"); hashed && (prefix == "batch" || prefix == "body") {
				id = v.DedupeKey
				if !strings.HasPrefix(id, prefix+"_") || len(id) != len(prefix)+65 {
					t.Errorf("dedupe key %q", id)
				}
			}
			if v.DedupeKey != id || v.Type != s.kind || s.stamped && !v.SentAt.Equal(sampleTime) {
				t.Errorf("verdict %+v, want key %q and type %q", v, s.id, s.kind)
			}
			if again := testRules().Verify(t.Context(), ep, in); again != v {
				t.Errorf("a second time: %+v, first %+v", again, v)
			}
		}
	})
}

func TestATamperedWebhookIsRefused(t *testing.T) {
	t.Parallel()
	forEachSample(t, func(t *testing.T, s sample) {
		if s.uncovered {
			t.Skip("this sender does not sign its body")
		}
		ep, in := s.make(0, s.body)
		body := in.Body
		for i := range body {
			changed := slices.Clone(body)
			changed[i] ^= 0x20
			in.Body = changed
			if v := testRules().Verify(t.Context(), ep, in); v.OK && !sameMeaning(s, string(changed), string(body)) {
				t.Fatalf("accepted with byte %d changed: %q", i, changed)
			}
		}
		for _, changed := range []string{"", string(body) + " ", string(body[1:]), string(body[:len(body)-1])} {
			in.Body = []byte(changed)
			if v := testRules().Verify(t.Context(), ep, in); v.OK && !sameMeaning(s, changed, string(body)) {
				t.Errorf("accepted with body %q", changed)
			}
		}
	})
}

// sameMeaning is for the senders that sign what a body says and not its bytes:
// messages of SNS and the forms of Twilio.
func sameMeaning(s sample, a, b string) bool {
	switch s.row() {
	case "sns":
		return strings.TrimSpace(a) == strings.TrimSpace(b)
	case "twilio":
		x, err := url.ParseQuery(a)
		y, _ := url.ParseQuery(b)
		return err == nil && x.Encode() == y.Encode()
	}
	return false
}

func TestAnotherSecretRefuses(t *testing.T) {
	t.Parallel()
	forEachSample(t, func(t *testing.T, s sample) {
		if len(s.secrets) == 0 {
			t.Skip("this sender works with certificates")
		}
		ep, in := s.make(0, s.body)
		for _, secrets := range [][]relay.Secret{{s.secrets[1]}, {"a third one"}, nil, {""}} {
			ep.Secrets = secrets
			wantRefusal(t, "other secrets", testRules().Verify(t.Context(), ep, in))
		}
	})
}

func TestASignatureHeaderIsThereOnceAndWhole(t *testing.T) {
	t.Parallel()
	forEachSample(t, func(t *testing.T, s sample) {
		if s.header == "" {
			t.Skip("this sender signs inside the body")
		}
		ep, in := s.make(0, s.body)
		good := in.Header.Get(s.header)
		if good == "" {
			t.Fatalf("the sample has no header %s", s.header)
		}
		for _, values := range [][]string{
			nil, {}, {""}, {good, good}, {"", good}, {" "}, {good[:len(good)/2]}, {good + "0"}, {"x" + good},
			{"garbage"}, {strings.Repeat("=,;", 5000)}, {"\xff\xfe"}, {good[1:]},
		} {
			h := in.Header.Clone()
			h[http.CanonicalHeaderKey(s.header)] = values
			changed := in
			changed.Header = h
			v := testRules().Verify(t.Context(), ep, changed)
			wantRefusal(t, strings.Join(values, "|")[:min(60, len(strings.Join(values, "|")))], v)
		}
	})
}

// Every header that is signed must be there once; which of two an app's library
// reads is anybody's guess.
func TestTwoTimestampsAreRefused(t *testing.T) {
	t.Parallel()
	forEachSample(t, func(t *testing.T, s sample) {
		ep, in := s.make(0, s.body)
		for name, values := range in.Header {
			if !strings.Contains(name, "Time") && name != "Webhook-Id" && name != "Svix-Id" {
				continue
			}
			changed := in
			changed.Header = in.Header.Clone()
			changed.Header[name] = []string{values[0], values[0]}
			wantRefusal(t, "two of "+name, testRules().Verify(t.Context(), ep, changed))
			changed.Header = in.Header.Clone()
			changed.Header.Set(name, values[0]+"1")
			wantRefusal(t, "another "+name, testRules().Verify(t.Context(), ep, changed))
			delete(changed.Header, name)
			wantRefusal(t, "no "+name, testRules().Verify(t.Context(), ep, changed))
		}
	})
}

func TestStaleWebhooksAreRefused(t *testing.T) {
	t.Parallel()
	forEachSample(t, func(t *testing.T, s sample) {
		if !s.stamped {
			t.Skip("this sender signs no time")
		}
		for _, tt := range []struct {
			own, after time.Duration
			ok         bool
		}{
			{0, s.tolerance, true},
			{0, s.tolerance + time.Second, s.tolerance == 0},
			{0, -s.tolerance, true},
			{0, -s.tolerance - time.Second, s.tolerance == 0 || s.pastOnly},
			{0, 1000 * time.Hour, s.tolerance == 0},
			{time.Hour, time.Hour, true},
			{time.Hour, time.Hour + time.Second, false},
			{time.Hour, -time.Hour - time.Second, s.pastOnly},
			{2 * time.Second, 3 * time.Second, false},
		} {
			ep, in := s.make(0, s.body)
			ep.Tolerance, in.ReceivedAt = tt.own, sampleTime.Add(tt.after)
			v := testRules().Verify(t.Context(), ep, in)
			if v.OK != tt.ok {
				t.Errorf("tolerance %v, %v after: verdict %+v", tt.own, tt.after, v)
			}
			if !v.OK && !strings.HasPrefix(v.Reason, "the timestamp is ") {
				t.Errorf("reason %q", v.Reason)
			}
		}
		ep, in := s.make(0, s.body)
		if in.ReceivedAt = (time.Time{}); s.tolerance > 0 {
			wantRefusal(t, "without a time of arrival", testRules().Verify(t.Context(), ep, in))
		}
	})
}

func TestAnEmptyBodyIsChecked(t *testing.T) {
	t.Parallel()
	forEachSample(t, func(t *testing.T, s sample) {
		ep, in := s.make(0, s.body)
		in.Body = nil
		if v := testRules().Verify(t.Context(), ep, in); !s.uncovered || s.noEmpty {
			wantRefusal(t, "the body taken away", v)
		}
		if s.noEmpty {
			return
		}
		ep, in = s.make(0, "")
		if v := testRules().Verify(t.Context(), ep, in); !v.OK || !v.Verified {
			t.Errorf("an empty body that is signed: %+v", v)
		}
	})
}

// What the sender wrote must not come back in what we say: it would be in logs
// and on people's screens.
func TestReasonsAreFreeOfTheSendersBytes(t *testing.T) {
	t.Parallel()
	const mark = "EVIL"
	forEachSample(t, func(t *testing.T, s sample) {
		ep, good := s.make(0, s.body)
		for name := range good.Header {
			in := good
			in.Header = good.Header.Clone()
			in.Header.Set(name, mark)
			in.Method, in.PublicURL, in.Target = mark, "https://"+mark, "?"+mark+"="+mark
			in.Body = []byte(`{"Type":"` + mark + `","signature":{"timestamp":"` + mark + `"},"` + mark + `":1}`)
			rules := testRules()
			if v := rules.Verify(t.Context(), ep, in); strings.Contains(v.Reason, mark) {
				t.Errorf("%s: reason %q", name, v.Reason)
			}
			if text := rules.Explain(ep, in); strings.Contains(text, mark) {
				t.Errorf("%s: explanation %q", name, text)
			}
		}
	})
}

func TestAWebhookOfTheURLIsBoundToIt(t *testing.T) {
	t.Parallel()
	forEachSample(t, func(t *testing.T, s sample) {
		if !Facts(s.row()).SignsURL {
			t.Skip("this sender does not sign the URL")
		}
		ep, in := s.make(0, s.body)
		for _, u := range []string{"", "http" + in.PublicURL[5:], in.PublicURL + "/", in.PublicURL + "&c=3", strings.Replace(in.PublicURL, "relay", "Relay", 1), strings.Replace(in.PublicURL, "?", "/?", 1)} {
			changed := in
			changed.PublicURL = u
			wantRefusal(t, u, testRules().Verify(t.Context(), ep, changed))
		}
	})
}

// Delivered hours later, a webhook that was signed anew passes as if it were
// fresh, under the secret that it came with and no other.
func TestResign(t *testing.T) {
	t.Parallel()
	const appURL = "https://app.example/webhooks/x?z=%2F1"
	later := sampleTime.Add(10 * time.Hour)
	forEachSample(t, func(t *testing.T, s sample) {
		for n := range max(1, len(s.secrets)) {
			ep, in := s.make(n, s.body)
			for _, redacted := range []bool{false, true} {
				e := eventOf(in)
				if redacted {
					e.Body = []byte(`{"redacted":true}`)
				}
				fields, err := testRules().Resign(ep, e, appURL, later)
				if !Facts(s.row()).Resigns {
					if err == nil || strings.Contains(err.Error(), "\n") {
						t.Fatalf("fields %v and error %v, want an error", fields, err)
					}
					continue
				}
				if s.row() == "twilio" && redacted {
					e.Body, _ = []byte("From=x"), 0
					fields, err = testRules().Resign(ep, e, appURL, later)
				}
				if err != nil {
					t.Fatal(err)
				}
				out := in
				out.Header, out.Body, out.PublicURL, out.ReceivedAt = in.Header.Clone(), e.Body, appURL, later
				for _, f := range fields {
					out.Header.Set(f.Name, f.Value)
				}
				app := ep
				if !redacted {
					app.Secrets = []relay.Secret{s.secrets[n]}
				}
				if v := testRules().Verify(t.Context(), app, out); !v.OK || s.stamped && !v.SentAt.Equal(later) {
					t.Errorf("secret %d, redacted %v: verdict %+v of %v", n, redacted, v, fields)
				}
				app.Secrets = []relay.Secret{"none of them"}
				wantRefusal(t, "another secret", testRules().Verify(t.Context(), app, out))
			}
		}
	})
}

func eventOf(in relay.Incoming) relay.Event {
	e := relay.Event{Method: in.Method, Target: in.Target, PublicURL: in.PublicURL, Body: in.Body, ReceivedAt: in.ReceivedAt}
	for name, values := range in.Header {
		for _, value := range values {
			e.Header = append(e.Header, relay.Field{Name: name, Value: value})
		}
	}
	return e
}

// Senders whose header takes several signatures sign with every secret, so that
// an app passes whichever of them it has already.
func TestResignSignsWithEverySecret(t *testing.T) {
	t.Parallel()
	forEachSample(t, func(t *testing.T, s sample) {
		if s.row() != "stripe" && s.row() != "standard" && s.row() != "svix" {
			t.Skip("one signature")
		}
		ep, in := s.make(0, s.body)
		fields, err := testRules().Resign(ep, eventOf(in), "https://app.example/", sampleTime.Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		in.Header, in.ReceivedAt = in.Header.Clone(), sampleTime.Add(time.Hour)
		for _, f := range fields {
			in.Header.Set(f.Name, f.Value)
		}
		for _, secret := range s.secrets {
			ep.Secrets = []relay.Secret{secret}
			if v := testRules().Verify(t.Context(), ep, in); !v.OK {
				t.Errorf("verdict %+v of %v", v, fields)
			}
		}
	})
}
