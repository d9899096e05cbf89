package provider

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/posternhq/postern/relay"
)

func header(a *relay.Answer, name string) string {
	for _, f := range a.Header {
		if strings.EqualFold(f.Name, name) {
			return f.Value
		}
	}
	return ""
}

func wantAnswer(t *testing.T, v relay.Verdict, status int, contentType, body string) {
	t.Helper()
	if !v.OK || v.Reason != "" || v.Answer == nil || v.DedupeKey != "" {
		t.Fatalf("verdict %+v, want an answer", v)
	}
	a := v.Answer
	if a.Status != status || string(a.Body) != body || !strings.HasPrefix(header(a, "Content-Type"), contentType) {
		t.Errorf("answer %d %q %q", a.Status, a.Header, a.Body)
	}
	if len(a.Body) > 0 && header(a, "X-Content-Type-Options") != "nosniff" {
		t.Error("a browser may guess the type of what was repeated")
	}
}

func TestHandshakesThatNobodySigns(t *testing.T) {
	t.Parallel()
	meta := relay.Endpoint{Provider: "meta", Secrets: twoSecrets, VerifyToken: "verify me"}
	const subscribe = "?hub.mode=subscribe&hub.challenge=1158201444&hub.verify_token=verify+me"
	for _, tt := range []struct {
		name         string
		ep           relay.Endpoint
		method       string
		target       string
		status       int // 0: refused
		kind, answer string
	}{
		{"meta", meta, "GET", subscribe, 200, "text/plain", "1158201444"},
		{"meta with another token", meta, "GET", strings.Replace(subscribe, "+me", "+you", 1), 0, "", ""},
		{"meta without a token", meta, "GET", "?hub.mode=subscribe&hub.challenge=1", 0, "", ""},
		{"meta with two tokens", meta, "GET", subscribe + "&hub.verify_token=x", 0, "", ""},
		{"meta to an endpoint without a token", relay.Endpoint{Provider: "meta", Secrets: twoSecrets}, "GET", strings.Replace(subscribe, "verify+me", "", 1), 0, "", ""},
		{"meta unsubscribing", meta, "GET", strings.Replace(subscribe, "mode=sub", "mode=unsub", 1), 0, "", ""},
		{"meta without a challenge", meta, "GET", "?hub.mode=subscribe&hub.verify_token=verify+me", 0, "", ""},
		{"meta by POST", meta, "POST", subscribe, 0, "", ""},
		{"graph", relay.Endpoint{Provider: "graph"}, "POST", "/x?validationToken=Validation%3A+a%2Bb%20%3Cc%3E", 200, "text/plain", "Validation: a+b <c>"},
		{"graph by GET", relay.Endpoint{Provider: "graph"}, "GET", "?validationToken=a", 0, "", ""},
		{"graph with an endless token", relay.Endpoint{Provider: "graph"}, "POST", "?validationToken=" + strings.Repeat("a", maxChallenge+1), 0, "", ""},
		{"dropbox", relay.Endpoint{Provider: "dropbox"}, "GET", "?challenge=abc%20d", 200, "text/plain", "abc d"},
		{"dropbox without one", relay.Endpoint{Provider: "dropbox"}, "GET", "?challenge=", 0, "", ""},
		{"dropbox with two", relay.Endpoint{Provider: "dropbox"}, "GET", "?challenge=a&challenge=b", 0, "", ""},
		{"dropbox by POST", relay.Endpoint{Provider: "dropbox", Secrets: twoSecrets}, "POST", "?challenge=abc", 0, "", ""},
		{"intercom", relay.Endpoint{Provider: "intercom"}, "HEAD", "", 200, "", ""},
		{"intercom by GET", relay.Endpoint{Provider: "intercom"}, "GET", "", 0, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			v := New(Config{}).Verify(t.Context(), tt.ep, relay.Incoming{
				Method: tt.method, Target: tt.target, PublicURL: "https://relay.example/hooks/shop/x" + tt.target,
				Header: http.Header{}, ReceivedAt: sampleTime,
			})
			if tt.status == 0 {
				wantRefusal(t, tt.name, v)
				if v.Answer != nil {
					t.Errorf("answer %+v", v.Answer)
				}
				return
			}
			wantAnswer(t, v, tt.status, tt.kind, tt.answer)
		})
	}
}

func TestSlackEchoesItsChallengeOnceVerified(t *testing.T) {
	t.Parallel()
	const body = `{"token":"x","challenge":"3eZbrw1aB","type":"url_verification"}`
	s := sampleOf("slack")
	ep, in := s.make(1, body)
	wantAnswer(t, testRules().Verify(t.Context(), ep, in), 200, "text/plain", "3eZbrw1aB")
	ep.Secrets = twoSecrets[:1]
	if v := testRules().Verify(t.Context(), ep, in); v.OK || v.Answer != nil {
		t.Errorf("answered under another secret: %+v", v)
	}
}

func sampleOf(name string) sample {
	for _, s := range samples() {
		if s.name == name {
			return s
		}
	}
	panic("no sample " + name)
}

// The answer to Zoom's handshake is an HMAC of a text that the caller chooses. If
// it were given to anybody, anybody could have an event signed.
func TestZoomIsAnsweredOnlyWhenItSigns(t *testing.T) {
	t.Parallel()
	const body = `{"event":"endpoint.url_validation","event_ts":1,"payload":{"plainToken":"v0:1:{}"}}`
	s := sampleOf("zoom")
	for n := range twoSecrets {
		ep, in := s.make(n, body)
		want := fmt.Sprintf(`{"encryptedToken":"%x","plainToken":"v0:1:{}"}`, sum(sha256.New, twoSecrets[n].Reveal(), "v0:1:{}"))
		wantAnswer(t, testRules().Verify(t.Context(), ep, in), 200, "application/json", want)
		in.Header.Set("X-Zm-Request-Timestamp", "1750000001")
		if v := testRules().Verify(t.Context(), ep, in); v.OK || v.Answer != nil {
			t.Errorf("answered an unsigned one: %+v", v)
		}
	}
}

func TestDiscordsPings(t *testing.T) {
	t.Parallel()
	s := sampleOf("discord")
	for _, tt := range []struct {
		body   string
		status int // 0: an event
		answer string
	}{
		{`{"id":"1","type":1,"token":"t","version":1}`, 200, `{"type":1}`},
		{`{"version":1,"application_id":"1","type":0}`, 204, ""},
		{`{"version":1,"application_id":"1","type":1,"event":{"type":"ENTITLEMENT_CREATE","timestamp":"2024-10-18T14:42:53.064834","data":{}}}`, 0, ""},
		{`{"id":"1","type":2}`, 0, ""},
	} {
		ep, in := s.make(0, tt.body)
		v := testRules().Verify(t.Context(), ep, in)
		if tt.status == 0 {
			if !v.OK || v.Answer != nil || v.DedupeKey == "" || v.Type == "" {
				t.Errorf("%s: verdict %+v", tt.body, v)
			}
		} else {
			wantAnswer(t, v, tt.status, "", tt.answer)
		}
		// Discord's own probe: the same with a signature that is wrong.
		in.Header.Set(discordSignature, hexs(ed25519.Sign(keys.ed[1], []byte("x"))))
		ep.Secrets = ep.Secrets[:1]
		if v := testRules().Verify(t.Context(), ep, in); v.OK || v.Answer != nil {
			t.Errorf("%s with a bad signature: %+v, want a plain refusal, which is 401", tt.body, v)
		}
	}
}

const snsConfirm = "https://sns.us-east-1.amazonaws.com/?Action=ConfirmSubscription&Token=tok"

// snsSubscription is signed by SNS, wherever it asks us to go.
func snsSubscription(subscribeURL, cert string) relay.Incoming {
	const stamp = "2025-06-15T15:06:40.000Z"
	text := "Message\nm\nMessageId\ni\nSubscribeURL\n" + subscribeURL + "\nTimestamp\n" + stamp + "\nToken\ntok\nTopicArn\narn\nType\nSubscriptionConfirmation\n"
	return relay.Incoming{Method: "POST", ReceivedAt: sampleTime, Header: http.Header{}, Body: fmt.Appendf(nil,
		`{"Type":"SubscriptionConfirmation","MessageId":"i","Token":"tok","TopicArn":"arn","Message":"m","SubscribeURL":%q,"Timestamp":%q,"SignatureVersion":"2","Signature":%q,"SigningCertURL":%q}`,
		subscribeURL, stamp, signRSA(crypto.SHA256, text), cert)}
}

func TestSNSSubscriptionsAreConfirmed(t *testing.T) {
	t.Parallel()
	var fetched []string
	rules := New(Config{Fetch: func(_ context.Context, url string) ([]byte, error) {
		fetched = append(fetched, url)
		if url == snsCert {
			return keys.pem, nil
		}
		return nil, nil
	}})
	ep := relay.Endpoint{Provider: "sns"}
	wantAnswer(t, rules.Verify(t.Context(), ep, snsSubscription(snsConfirm, snsCert)), 200, "", "")
	if len(fetched) != 2 || fetched[1] != snsConfirm {
		t.Errorf("fetched %q", fetched)
	}
	for _, url := range []string{
		"https://evil.example/?x", "http://sns.us-east-1.amazonaws.com/", "https://sns.us-east-1.amazonaws.com.evil.example/",
		"https://sns.us-east-1.amazonaws.com:444/", "https://u:p@sns.us-east-1.amazonaws.com/", "https://sns.us-east-1.amazonaws.com@evil.example/",
		"https://169.254.169.254/", "", "https://xsns.us-east-1.amazonaws.com/", "https://sns.us-east-1.amazonaws.com.cn.evil/",
	} {
		fetched = nil
		wantRefusal(t, url, rules.Verify(t.Context(), ep, snsSubscription(url, snsCert)))
		if len(fetched) > 0 {
			t.Errorf("%q: fetched %q", url, fetched)
		}
	}
	ep.Secrets = []relay.Secret{"arn:other"}
	wantRefusal(t, "another topic", rules.Verify(t.Context(), ep, snsSubscription(snsConfirm, snsCert)))
	ep.Secrets = []relay.Secret{"arn:other", "arn"}
	wantAnswer(t, rules.Verify(t.Context(), ep, snsSubscription(snsConfirm, snsCert)), 200, "", "")
}

// What we cannot check just now, the sender must be able to send again.
func TestTroubleOfOurOwnIs503(t *testing.T) {
	t.Parallel()
	down := errors.New("down")
	for _, rules := range []*Rules{
		New(Config{}),
		New(Config{Fetch: func(context.Context, string) ([]byte, error) { return nil, down }}),
	} {
		for _, name := range []string{"sns", "paypal"} {
			s := sampleOf(name)
			ep, in := s.make(0, s.body)
			v := rules.Verify(t.Context(), ep, in)
			if v.OK || v.Reason == "" || v.Answer == nil || v.Answer.Status != 503 || header(v.Answer, "Retry-After") == "" {
				t.Errorf("%s: verdict %+v", name, v)
			}
		}
	}
	confirming := New(Config{Fetch: func(_ context.Context, url string) ([]byte, error) {
		if url == snsCert {
			return keys.pem, nil
		}
		return nil, down
	}})
	if v := confirming.Verify(t.Context(), relay.Endpoint{Provider: "sns"}, snsSubscription(snsConfirm, snsCert)); v.OK || v.Answer == nil || v.Answer.Status != 503 {
		t.Errorf("confirmation: verdict %+v", v)
	}
}

func TestCertificatesComeFromTheirSenderOnly(t *testing.T) {
	t.Parallel()
	rules := New(Config{Fetch: func(_ context.Context, url string) ([]byte, error) {
		t.Errorf("fetched %q", url)
		return keys.pem, nil
	}})
	for _, cert := range []string{
		"http" + snsCert[5:], strings.Replace(snsCert, ".pem", ".txt", 1), strings.Replace(snsCert, "amazonaws.com", "amazonaws.com.evil.example", 1),
		"https://sns.us-east-1.amazonaws.com/x?.pem", "https://evil.example/https://sns.us-east-1.amazonaws.com/x.pem",
		strings.Replace(snsCert, "https://", "https://u@", 1), strings.Replace(snsCert, ".com/", ".com:8443/", 1), "https://sns.a.amazonaws.com/x.pem", "",
		"https://sns.us-east-1.amazonaws.com\n.evil.example/x.pem",
	} {
		wantRefusal(t, cert, rules.Verify(t.Context(), relay.Endpoint{Provider: "sns"}, snsSubscription(snsConfirm, cert)))
	}
	s := sampleOf("paypal")
	for _, cert := range []string{
		"http" + paypalPath[5:], "https://paypal.com.evil.example/c", "https://evilpaypal.com/c", "https://api.paypal.com@evil.example/c",
		"https://api.paypal.com:8443/c", "https://evil.example/.paypal.com", "//api.paypal.com/c", "x",
	} {
		ep, in := s.make(0, s.body)
		in.Header.Set("Paypal-Cert-Url", cert)
		wantRefusal(t, cert, rules.Verify(t.Context(), ep, in))
	}
}

func TestCertificatesAreFetchedOnce(t *testing.T) {
	t.Parallel()
	fetches := 0
	certs := newCertificates(func(context.Context, string) ([]byte, error) { fetches++; return keys.pem, nil })
	for _, at := range []time.Duration{0, time.Hour, certificateAge - 1} {
		if key, err := certs.key(t.Context(), snsCert, sampleTime.Add(at), false); err != nil || !key.Equal(&keys.rsa.PublicKey) {
			t.Fatalf("key %v, error %v", key, err)
		}
	}
	if fetches != 1 {
		t.Errorf("%d fetches", fetches)
	}
	certs.key(t.Context(), snsCert, sampleTime.Add(certificateAge), false)
	if fetches != 2 {
		t.Errorf("%d fetches after a day", fetches)
	}
	for i := range 3 * maxCertificates {
		certs.key(t.Context(), fmt.Sprint(i), sampleTime, false)
	}
	if len(certs.entries) != maxCertificates || len(certs.order) != maxCertificates {
		t.Errorf("%d certificates kept", len(certs.entries))
	}
	if _, err := certs.key(t.Context(), "new", sampleTime, true); err == nil || fetches != 2+3*maxCertificates {
		t.Errorf("a cached one was asked for: error %v, %d fetches", err, fetches)
	}
}

func TestAFailedFetchIsTriedAgain(t *testing.T) {
	t.Parallel()
	var document []byte
	err := errors.New("down")
	certs := newCertificates(func(context.Context, string) ([]byte, error) { return document, err })
	if _, err := certs.key(t.Context(), snsCert, sampleTime, false); err == nil || errors.Is(err, errNoKey) {
		t.Fatalf("error %v", err)
	}
	err = nil
	for _, bad := range []string{"", "hello", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"} {
		document = []byte(bad)
		if _, err := certs.key(t.Context(), snsCert, sampleTime, false); !errors.Is(err, errNoKey) {
			t.Fatalf("document %q: error %v", bad, err)
		}
	}
	document = keys.pem
	if _, err := certs.key(t.Context(), snsCert, sampleTime, false); err != nil || len(certs.order) != 1 {
		t.Fatalf("error %v, %d entries", err, len(certs.order))
	}
}

// A burst of webhooks under a new certificate is one fetch, and whoever names
// many certificates does not get more connections than there are slots.
func TestFetchesAreSharedAndBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		running, most, fetches := 0, 0, 0
		certs := newCertificates(func(context.Context, string) ([]byte, error) {
			mu.Lock()
			running, fetches = running+1, fetches+1
			most = max(most, running)
			mu.Unlock()
			time.Sleep(time.Second) // of the bubble's clock
			mu.Lock()
			running--
			mu.Unlock()
			return keys.pem, nil
		})
		var all sync.WaitGroup
		for i := range 10 * maxFetches {
			all.Go(func() {
				if _, err := certs.key(t.Context(), fmt.Sprint(i%(2*maxFetches)), sampleTime, false); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if fetches != 2*maxFetches || most != maxFetches {
			t.Errorf("%d fetches, %d at once", fetches, most)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for range maxFetches {
			certs.slots <- struct{}{}
		}
		if _, err := certs.key(ctx, "another", sampleTime, false); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v of a webhook whose sender has gone", err)
		}
	})
}
