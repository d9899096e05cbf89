package e2e

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stripe/stripe-go/v85"
	"github.com/stripe/stripe-go/v85/webhook"

	"github.com/posternhq/postern/e2e/rig"
)

const (
	stripeOld    = "whsec_the_old_secret_4f2a"
	stripeNew    = "whsec_the_new_secret_91c7"
	githubSecret = "the github secret 77d0"
)

// webhookManifest has an endpoint for each thing that is tested. The retries are
// short: how long they are in life is the product's own tests' matter.
const webhookManifest = `
version: 1
apps:
  shop:
    endpoints:
      stripe:
        provider: stripe
        secrets: [{env: STRIPE_NEW}, {env: STRIPE_OLD}]
      stripe-sync:
        provider: stripe
        secrets: [{env: STRIPE_NEW}, {env: STRIPE_OLD}]
        mode: sync
        path: /webhooks/stripe
      github:
        provider: github
        secrets: [{env: GITHUB_SECRET}]
      github-sync:
        provider: github
        secrets: [{env: GITHUB_SECRET}]
        mode: sync
        path: /webhooks/github
      plain:
        provider: none
        max_body: 4KiB
        retry: {schedule: [50ms, 50ms, 50ms]}
      plain-sync:
        provider: none
        mode: sync
        max_body: 4KiB
      ordered:
        provider: none
        order_by: /account
        retry: {schedule: [50ms, 50ms]}
`

// startWebhookRelay starts a relay with the manifest above. Its log must never
// show a secret.
func startWebhookRelay(t *testing.T, env ...string) *rig.Relay {
	t.Helper()
	r := rig.StartRelay(t, rig.RelayConfig{
		Manifest: webhookManifest,
		Env: append([]string{
			"POSTERN_PARK=300ms", "POSTERN_LOG_LEVEL=debug",
			"STRIPE_OLD=" + stripeOld, "STRIPE_NEW=" + stripeNew, "GITHUB_SECRET=" + githubSecret,
		}, env...),
	})
	t.Cleanup(func() {
		for _, secret := range []string{stripeOld, stripeNew, githubSecret} {
			if strings.Contains(r.Log.String(), secret) {
				t.Errorf("the relay's log shows the secret %s…", secret[:10])
			}
		}
	})
	return r
}

// arrival is one request as the app got it.
type arrival struct {
	header http.Header
	host   string
	target string
	method string
	body   []byte
}

// collector is an app that keeps what it gets and answers 200, or what answer
// says.
type collector struct {
	got    chan arrival
	answer func(http.ResponseWriter, arrival)
}

func newCollector() *collector { return &collector{got: make(chan arrival, 1024)} }

func (c *collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // a request that did not arrive whole is none
	}
	a := arrival{r.Header.Clone(), r.Host, r.RequestURI, r.Method, body}
	c.got <- a
	if c.answer != nil {
		c.answer(w, a)
	}
}

const deliversWithin = 15 * time.Second

func (c *collector) next(t *testing.T) arrival {
	t.Helper()
	return rig.Receive(t, deliversWithin, "delivery to the app", c.got)
}

// hook is a webhook as a provider sends it.
type hook struct {
	body   []byte
	header http.Header
}

// post sends h and returns the answer with its body read.
func post(t *testing.T, client *http.Client, url string, h hook) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, bytes.NewReader(h.body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = h.header.Clone()
	return do(t, client, req)
}

func do(t *testing.T, client *http.Client, req *http.Request) (*http.Response, []byte) {
	t.Helper()
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", req.Method, req.URL, err)
	}
	return resp, body
}

// stripePayload is an event whose bytes would not survive being parsed and
// written again.
func stripePayload(id string) []byte {
	return fmt.Appendf(nil, "{ \"id\" : %q,\r\n\t\"object\":\"event\", \"api_version\":%q,\"type\":\"charge.succeeded\",\"data\":{\"object\":{\"amount\":1.00,\"note\":\"\\u00e9 é 漢\",\"z\":1,\"a\":2}} }\n\n",
		id, stripe.APIVersion)
}

func signStripe(id, secret string, at time.Time) hook {
	p := webhook.GenerateTestSignedPayload(&webhook.UnsignedPayload{Payload: stripePayload(id), Secret: secret, Timestamp: at})
	return hook{p.Payload, http.Header{
		"Stripe-Signature": {p.Header},
		"Content-Type":     {"application/json; charset=utf-8"},
		"User-Agent":       {"Stripe/1.0 (+https://stripe.com/docs/webhooks)"},
	}}
}

// signGitHub signs as GitHub does.
func signGitHub(delivery string) hook {
	body := []byte("{\"zen\":\"Keep it  logically awesome.\",\n \"hook_id\":1e2,\"b\":1,\"a\":\"\\/\"}")
	mac := hmac.New(sha256.New, []byte(githubSecret))
	mac.Write(body)
	return hook{body, http.Header{
		"X-Hub-Signature-256": {"sha256=" + hex.EncodeToString(mac.Sum(nil))},
		"X-Github-Delivery":   {delivery},
		"X-Github-Event":      {"ping"},
		"Content-Type":        {"application/json"},
		"User-Agent":          {"GitHub-Hookshot/044aadd"},
	}}
}

// plain is an unsigned webhook.
func plain(body string) hook {
	return hook{[]byte(body), http.Header{"Content-Type": {"application/octet-stream"}}}
}

// refusal is the JSON of every refused request.
type refusal struct {
	Error struct {
		Code      string `json:"code"`
		Reason    string `json:"reason"`
		Message   string `json:"message"`
		RequestID string `json:"request_id"`
	} `json:"error"`
}

// wantRefusal checks a refusal's status, code and form.
func wantRefusal(t *testing.T, resp *http.Response, body []byte, status int, code string) refusal {
	t.Helper()
	var r refusal
	if err := json.Unmarshal(body, &r); err != nil {
		t.Errorf("%s: answer %q is not JSON: %v", resp.Status, body, err)
		return r
	}
	if resp.StatusCode != status || r.Error.Code != code {
		t.Errorf("answer %d %s, expected %d %s: %s", resp.StatusCode, r.Error.Code, status, code, body)
	}
	if r.Error.Message == "" || r.Error.RequestID == "" {
		t.Errorf("answer without message or request id: %s", body)
	}
	if ct := resp.Header.Get("Content-Type"); ct != "application/json" {
		t.Errorf("content type %q", ct)
	}
	if status == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") == "" {
		t.Errorf("503 without Retry-After")
	}
	return r
}

var eventID = regexp.MustCompile(`^evt_[0-9a-z]{20,}$`)

// wantAccepted checks a 202 and returns the event's id.
func wantAccepted(t *testing.T, resp *http.Response, body []byte) string {
	t.Helper()
	var accepted struct{ ID string }
	if err := json.Unmarshal(body, &accepted); err != nil || resp.StatusCode != http.StatusAccepted {
		t.Fatalf("answer %s: %s (%v)", resp.Status, body, err)
	}
	if !eventID.MatchString(accepted.ID) || resp.Header.Get("Postern-Event-Id") != accepted.ID {
		t.Errorf("event id %q, header %q", accepted.ID, resp.Header.Get("Postern-Event-Id"))
	}
	return accepted.ID
}
