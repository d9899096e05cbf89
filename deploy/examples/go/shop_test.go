package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestWebhooksAreCheckedAndHandledOnce(t *testing.T) {
	t.Parallel()
	const stripeBody, githubBody = `{"id":"evt_1","type":"charge.succeeded"}`, `{"zen":"…"}`
	stripe := func(secret string, at time.Time) http.Header {
		stamp := fmt.Sprint(at.Unix())
		return http.Header{"Stripe-Signature": {"t=" + stamp + ",v1=00,v1=" + sign(secret, stamp+"."+stripeBody)}}
	}
	github := func(secret string) http.Header {
		return http.Header{
			"X-Hub-Signature-256": {"sha256=" + sign(secret, githubBody)},
			"X-Github-Delivery":   {"d-1"}, "X-Github-Event": {"push"},
		}
	}
	for _, test := range []struct {
		name, path, body string
		header           http.Header
		want             int
	}{
		{"stripe", "/webhooks/stripe", stripeBody, stripe("whsec_a", time.Now()), http.StatusNoContent},
		{"stripe under another secret", "/webhooks/stripe", stripeBody, stripe("whsec_b", time.Now()), http.StatusUnauthorized},
		{"stripe with another body", "/webhooks/stripe", stripeBody + " ", stripe("whsec_a", time.Now()), http.StatusUnauthorized},
		{"stripe an hour ago", "/webhooks/stripe", stripeBody, stripe("whsec_a", time.Now().Add(-time.Hour)), http.StatusUnauthorized},
		{"stripe without a signature", "/webhooks/stripe", stripeBody, http.Header{}, http.StatusUnauthorized},
		{"github", "/webhooks/github", githubBody, github("g"), http.StatusNoContent},
		{"github under another secret", "/webhooks/github", githubBody, github("h"), http.StatusUnauthorized},
		{"github without a signature", "/webhooks/github", githubBody, http.Header{}, http.StatusUnauthorized},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			app := &shop{stripeSecret: "whsec_a", githubSecret: "g"}
			handled := 0
			if test.want == http.StatusNoContent {
				handled = 1
			}
			for range 2 {
				r := httptest.NewRequest(http.MethodPost, test.path, strings.NewReader(test.body))
				r.Header = test.header
				w := httptest.NewRecorder()
				app.routes().ServeHTTP(w, r)
				if w.Code != test.want || len(app.latest) != handled {
					t.Errorf("status %d, %d handled; want %d, %d: %s", w.Code, len(app.latest), test.want, handled, w.Body)
				}
			}
		})
	}
}

// The key is the relay's or the provider's; without one the event's own id counts.
func TestTheIdempotencyKeyDecidesWhatIsTheSame(t *testing.T) {
	t.Parallel()
	app := &shop{githubSecret: "g"}
	for _, send := range []struct {
		key, id string
		handled int
	}{{"k-1", "d-1", 1}, {"k-1", "d-2", 1}, {"k-2", "d-1", 2}, {"", "d-1", 3}, {"", "d-1", 3}} {
		r := httptest.NewRequest(http.MethodPost, "/webhooks/github", strings.NewReader("{}"))
		r.Header.Set("X-Hub-Signature-256", "sha256="+sign("g", "{}"))
		r.Header.Set("X-GitHub-Delivery", send.id)
		if send.key != "" {
			r.Header.Set("Idempotency-Key", send.key)
		}
		app.routes().ServeHTTP(httptest.NewRecorder(), r)
		if len(app.latest) != send.handled {
			t.Errorf("key %q, id %q: %d handled, want %d", send.key, send.id, len(app.latest), send.handled)
		}
	}
}

func TestWithoutSecretsNothingIsAccepted(t *testing.T) {
	t.Parallel()
	r := httptest.NewRequest(http.MethodPost, "/webhooks/github", strings.NewReader("{}"))
	r.Header.Set("X-Hub-Signature-256", "sha256="+sign("", "{}"))
	w := httptest.NewRecorder()
	(&shop{}).routes().ServeHTTP(w, r)
	if w.Code != http.StatusUnauthorized {
		t.Errorf("status %d", w.Code)
	}
}

func sign(secret, message string) string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(message))
	return hex.EncodeToString(mac.Sum(nil))
}
