package provider

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/relay"
)

const (
	stripeSecret = "whsec_test_secret"
	stripeBody   = `{"id":"evt_test_webhook","object":"event","type":"charge.succeeded"}`
)

var stripeTime = time.Unix(1_700_000_000, 0)

// signStripe is Stripe's scheme written a second time, for the tests.
func signStripe(secret, t, body string) string {
	mac := hmac.New(sha256.New, []byte(secret))
	fmt.Fprintf(mac, "%s.%s", t, body)
	return hex.EncodeToString(mac.Sum(nil))
}

// A fixed vector, computed with `openssl dgst -sha256 -hmac`, so that the tests
// do not only compare this file with the other one.
func TestStripeFixedVector(t *testing.T) {
	t.Parallel()
	const want = "256315adcbec6e27c4db46fd5ce257278fe155645695bfaea6ff0e9ae45e7721"
	if got := signStripe(stripeSecret, "1700000000", stripeBody); got != want {
		t.Fatalf("the test's own signature is %s", got)
	}
	v := verifyStripe(hook{
		Header: http.Header{"Stripe-Signature": {"t=1700000000,v1=" + want}}, Body: []byte(stripeBody),
		Secrets: []relay.Secret{stripeSecret}, ReceivedAt: stripeTime,
	})
	if !v.OK || !v.Verified || v.DedupeKey != "evt_test_webhook" || v.Type != "charge.succeeded" || !v.SentAt.Equal(stripeTime) {
		t.Errorf("verdict %+v", v)
	}
}

func TestStripe(t *testing.T) {
	t.Parallel()
	good := signStripe(stripeSecret, "1700000000", stripeBody)
	old := signStripe("whsec_old", "1700000000", stripeBody)
	both := []relay.Secret{"whsec_old", stripeSecret}
	for _, tt := range []struct {
		name    string
		header  []string
		body    string
		secrets []relay.Secret
		at      time.Duration // arrival after the timestamp
		reason  string        // "" means OK
	}{
		{"good", []string{"t=1700000000,v1=" + good}, stripeBody, both, 0, ""},
		{"upper-case hex", []string{"t=1700000000,v1=" + strings.ToUpper(good)}, stripeBody, both, 0, ""},
		{"v0 beside it", []string{"t=1700000000,v1=" + good + ",v0=abc"}, stripeBody, both, 0, ""},
		{"signature first", []string{"v1=" + good + ",t=1700000000"}, stripeBody, both, 0, ""},
		{"rolling: two signatures, the second is ours", []string{"t=1700000000,v1=" + strings.Repeat("00", 32) + ",v1=" + good}, stripeBody, both, 0, ""},
		{"rolling: one of ours is the old secret", []string{"t=1700000000,v1=" + old}, stripeBody, both, 0, ""},
		{"a broken signature beside a good one", []string{"t=1700000000,v1=zz,v1=" + good}, stripeBody, both, 0, ""},
		{"at the edge of the tolerance", []string{"t=1700000000,v1=" + good}, stripeBody, both, 300 * time.Second, ""},
		{"from the future", []string{"t=1700000000,v1=" + good}, stripeBody, both, -24 * time.Hour, ""},

		{"too old", []string{"t=1700000000,v1=" + good}, stripeBody, both, 712 * time.Second, "the timestamp is too old by 412s"},
		{"just too old", []string{"t=1700000000,v1=" + good}, stripeBody, both, 300*time.Second + time.Millisecond, "the timestamp is too old by 1s"},
		{"tampered body", []string{"t=1700000000,v1=" + good}, stripeBody + " ", both, 0, "no secret matches the signature (2 tried)"},
		{"tampered timestamp", []string{"t=1700000001,v1=" + good}, stripeBody, both, 0, "no secret matches the signature (2 tried)"},
		{"another secret", []string{"t=1700000000,v1=" + good}, stripeBody, []relay.Secret{"whsec_other"}, 0, "no secret matches the signature (1 tried)"},
		{"the secret without its prefix", []string{"t=1700000000,v1=" + good}, stripeBody, []relay.Secret{"test_secret"}, 0, "no secret matches the signature (1 tried)"},
		{"a short signature", []string{"t=1700000000,v1=" + good[:62]}, stripeBody, both, 0, "no secret matches the signature (2 tried)"},
		{"no secret", []string{"t=1700000000,v1=" + good}, stripeBody, nil, 0, "the endpoint has no secret to check with"},
		{"no header", nil, stripeBody, both, 0, "the header Stripe-Signature is missing"},
		{"empty header", []string{""}, stripeBody, both, 0, "the header Stripe-Signature is empty"},
		{"two headers", []string{"t=1700000000,v1=" + good, "t=1700000000,v1=" + good}, stripeBody, both, 0, "the header Stripe-Signature is there 2 times"},
		{"not pairs", []string{"hello"}, stripeBody, both, 0, "the header Stripe-Signature is malformed"},
		{"a trailing comma", []string{"t=1700000000,v1=" + good + ","}, stripeBody, both, 0, "the header Stripe-Signature is malformed"},
		{"no timestamp", []string{"v1=" + good}, stripeBody, both, 0, "the header Stripe-Signature has no timestamp"},
		{"two timestamps", []string{"t=1700000000,t=1800000000,v1=" + good}, stripeBody, both, 0, "the header Stripe-Signature has more than one timestamp"},
		{"a timestamp with a sign", []string{"t=+1700000000,v1=" + good}, stripeBody, both, 0, "the timestamp in Stripe-Signature is malformed"},
		{"a timestamp beyond all calendars", []string{"t=9223372036854775807,v1=" + good}, stripeBody, both, 0, "the timestamp in Stripe-Signature is malformed"},
		{"an empty timestamp", []string{"t=,v1=" + good}, stripeBody, both, 0, "the timestamp in Stripe-Signature is malformed"},
		{"no v1", []string{"t=1700000000,v0=" + good}, stripeBody, both, 0, "the header Stripe-Signature has no v1 signature"},
		{"an empty v1", []string{"t=1700000000,v1="}, stripeBody, both, 0, "the header Stripe-Signature has no v1 signature"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := http.Header{}
			if tt.header != nil {
				h["Stripe-Signature"] = tt.header
			}
			v := verifyStripe(hook{
				Header: h, Body: []byte(tt.body), Secrets: tt.secrets,
				ReceivedAt: stripeTime.Add(tt.at),
			})
			if v.Reason != tt.reason || v.OK != (tt.reason == "") || v.Verified != v.OK {
				t.Errorf("verdict %+v, want reason %q", v, tt.reason)
			}
		})
	}
}

// Anybody can compute an HMAC with an empty key.
func TestAnEmptySecretProvesNothing(t *testing.T) {
	t.Parallel()
	v := verifyStripe(hook{
		Header:  http.Header{"Stripe-Signature": {"t=1700000000,v1=" + signStripe("", "1700000000", stripeBody)}},
		Body:    []byte(stripeBody),
		Secrets: []relay.Secret{""}, ReceivedAt: stripeTime,
	})
	if v.OK || v.Reason != "the endpoint has no secret to check with" {
		t.Errorf("verdict %+v", v)
	}
}

func TestStripeWithoutATimeOfArrivalIsRefused(t *testing.T) {
	t.Parallel()
	v := verifyStripe(hook{
		Header: http.Header{"Stripe-Signature": {"t=1700000000,v1=" + signStripe(stripeSecret, "1700000000", stripeBody)}},
		Body:   []byte(stripeBody), Secrets: []relay.Secret{stripeSecret},
	})
	if v.OK {
		t.Error("accepted, although nothing says how old the timestamp is")
	}
}

func TestStripeAcceptsAnyBodyThatIsSigned(t *testing.T) {
	t.Parallel()
	for _, body := range []string{"", "not json", "\x00\xff", `{"id":7}`, `{"id":"` + strings.Repeat("x", 300) + `"}`, "[1"} {
		v := verifyStripe(hook{
			Header: http.Header{"Stripe-Signature": {"t=1700000000,v1=" + signStripe(stripeSecret, "1700000000", body)}},
			Body:   []byte(body), Secrets: []relay.Secret{stripeSecret}, ReceivedAt: stripeTime,
		})
		if !v.OK || v.DedupeKey != "" {
			t.Errorf("body %.20q: verdict %+v", body, v)
		}
	}
}

func FuzzStripeHeader(f *testing.F) {
	good := signStripe(stripeSecret, "1700000000", stripeBody)
	f.Add("t=1700000000,v1=" + good)
	f.Add("t=1700000000,v1=" + good + ",v0=1,v1=ff")
	f.Add("t=1,t=2,v1=")
	f.Add(",,==,t==,v1=v1")
	f.Fuzz(func(t *testing.T, header string) {
		sig, problem := stripeScheme.readPairs(header)
		if problem == "" && (len(sig.signatures) == 0 || fmt.Sprint(sig.sentAt.Unix()) != sig.stamp) {
			t.Errorf("readPairs(%q) = %+v", header, sig)
		}
		v := verifyStripe(hook{
			Header: http.Header{"Stripe-Signature": {header}}, Body: []byte(stripeBody),
			Secrets: []relay.Secret{stripeSecret}, ReceivedAt: stripeTime,
		})
		if v.OK == (v.Reason != "") {
			t.Errorf("verdict %+v", v)
		}
		// No header is good unless it carries the one right signature.
		if v.OK && !strings.Contains(strings.ToLower(header), signStripe(stripeSecret, sig.stamp, stripeBody)) {
			t.Errorf("%q was accepted", header)
		}
	})
}
