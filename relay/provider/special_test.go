package provider

import (
	"crypto"
	"crypto/ed25519"
	"crypto/sha1"
	"crypto/sha256"
	"fmt"
	"hash/crc32"
	"net/http"
	"strings"
	"testing"

	"github.com/posternhq/postern/relay"
)

// What only one of the senders does.

func TestATokenOfMailgunIsForOneBody(t *testing.T) {
	t.Parallel()
	rules := testRules()
	s := sampleOf("mailgun")
	ep, in := s.make(0, "")
	first := rules.Verify(t.Context(), ep, in)
	if !first.OK {
		t.Fatalf("verdict %+v", first)
	}
	if again := rules.Verify(t.Context(), ep, in); again != first {
		t.Errorf("the same again, as Mailgun's retry: %+v", again)
	}
	forged := in
	forged.Body = []byte(strings.Replace(string(in.Body), "delivered", "complained", 1))
	wantRefusal(t, "the same signature for another body", rules.Verify(t.Context(), ep, forged))
	other := ep
	other.Name = "y"
	if v := rules.Verify(t.Context(), other, forged); !v.OK {
		t.Errorf("at another endpoint: %+v", v)
	}
	rules = testRules()
	rules.Explain(ep, forged)
	if v := rules.Verify(t.Context(), ep, in); !v.OK {
		t.Errorf("after Explain has seen another body: %+v", v)
	}
}

func TestMailgunsForms(t *testing.T) {
	t.Parallel()
	sign := fmt.Sprintf("%x", sum(sha256.New, twoSecrets[0].Reveal(), "1750000000tok"))
	in := relay.Incoming{Method: "POST", ReceivedAt: sampleTime, Header: headers("Content-Type", "application/x-www-form-urlencoded"),
		Body: []byte("recipient=a%40b.c&timestamp=1750000000&token=tok&signature=" + sign)}
	ep := relay.Endpoint{Provider: "mailgun", Secrets: twoSecrets}
	if v := testRules().Verify(t.Context(), ep, in); !v.OK || v.DedupeKey != "tok" {
		t.Errorf("verdict %+v", v)
	}
	in.Body = append(in.Body, "&token=tok2"...)
	wantRefusal(t, "two tokens", testRules().Verify(t.Context(), ep, in))

	part := func(head, value string) string {
		return "--b\r\nContent-Disposition: form-data; " + head + "\r\n\r\n" + value + "\r\n"
	}
	mail := part(`name="body-plain"`, strings.Repeat("x", 5000)) + part(`name="token"; filename="a"`, "other") +
		part(`name="timestamp"`, "1750000000") + part(`name="token"`, "tok") + part(`name="signature"`, sign)
	in.Header = headers("Content-Type", "multipart/form-data; boundary=b")
	in.Body = []byte(mail + "--b--\r\n")
	if v := testRules().Verify(t.Context(), ep, in); !v.OK || v.DedupeKey != "tok" {
		t.Errorf("a mail with an attachment: verdict %+v", v)
	}
	for _, body := range []string{mail, mail + part(`name="token"`, "tok") + "--b--\r\n", "", strings.Repeat(part(`name="x"`, ""), maxItems) + string(in.Body)} {
		in.Body = []byte(body)
		wantRefusal(t, "a form that is cut off, or has two tokens, or no end", testRules().Verify(t.Context(), ep, in))
	}
}

func TestTheTokensRememberedAreBounded(t *testing.T) {
	t.Parallel()
	tokens := newTokens()
	for i := range maxTokens + 10 {
		if !tokens.admit(relay.Endpoint{}, fmt.Sprint(i), []byte("a")) {
			t.Fatalf("token %d is refused", i)
		}
	}
	if len(tokens.bodies) != maxTokens || len(tokens.order) != maxTokens {
		t.Errorf("%d tokens", len(tokens.bodies))
	}
	if tokens.admit(relay.Endpoint{}, "10", []byte("b")) || !tokens.admit(relay.Endpoint{}, "9", []byte("b")) {
		t.Error("not the oldest are forgotten")
	}
}

func TestStandardWebhooksWithEd25519(t *testing.T) {
	t.Parallel()
	const body = `{"type":"a"}`
	public := func(i int) relay.Secret {
		return relay.Secret("whpk_" + b64(keys.ed[i].Public().(ed25519.PublicKey)))
	}
	signature := "v1a," + b64(ed25519.Sign(keys.ed[0], []byte("msg_1.1750000000."+body)))
	in := relay.Incoming{Method: "POST", Body: []byte(body), ReceivedAt: sampleTime,
		Header: headers("webhook-id", "msg_1", "webhook-timestamp", "1750000000", "webhook-signature", "v1,AAAA "+signature)}
	for _, tt := range []struct {
		secrets []relay.Secret
		ok      bool
	}{
		{[]relay.Secret{public(0)}, true},
		{[]relay.Secret{public(1), twoStandard[0], public(0)}, true},
		{[]relay.Secret{public(1)}, false},
		{[]relay.Secret{twoStandard[0]}, false},
		{[]relay.Secret{"whpk_"}, false},
		{nil, false},
	} {
		ep := relay.Endpoint{Provider: "standard", Secrets: tt.secrets}
		v := testRules().Verify(t.Context(), ep, in)
		if v.OK != tt.ok || tt.ok && (v.DedupeKey != "msg_1" || v.Type != "a") {
			t.Errorf("%d secrets: verdict %+v", len(tt.secrets), v)
		}
		if _, err := testRules().Resign(ep, eventOf(in), "https://x/", sampleTime); (err == nil) != (len(tt.secrets) == 3 || len(tt.secrets) == 1 && tt.secrets[0] == twoStandard[0]) {
			t.Errorf("%d secrets: resigning: %v", len(tt.secrets), err)
		}
	}
	// A public key is known to everybody, so it must never serve as a shared one.
	key := public(0)
	mac := b64(sum(sha256.New, string(keys.ed[0].Public().(ed25519.PublicKey)), "msg_1.1750000000.", body))
	in.Header.Set("webhook-signature", "v1,"+mac)
	wantRefusal(t, "HMAC under a public key", testRules().Verify(t.Context(), relay.Endpoint{Provider: "standard", Secrets: []relay.Secret{key}}, in))
}

// GitLab's better check must not be skipped by leaving the plain token.
func TestGitLabsSignatureIsNotSkipped(t *testing.T) {
	t.Parallel()
	s := sampleOf("gitlab with a signing token")
	ep, in := s.make(0, s.body)
	ep.Secrets = append([]relay.Secret{"plain"}, ep.Secrets...)
	in.Header.Set(gitlabToken, "plain")
	if v := testRules().Verify(t.Context(), ep, in); !v.OK {
		t.Fatalf("verdict %+v", v)
	}
	in.Body = []byte("{}")
	wantRefusal(t, "a bad signature beside a good token", testRules().Verify(t.Context(), ep, in))
}

func TestTwiliosParameters(t *testing.T) {
	t.Parallel()
	const url = "https://relay.example/x"
	ep := relay.Endpoint{Provider: "twilio", Secrets: []relay.Secret{"s"}}
	for _, tt := range []struct {
		name, body, signed, contentType string
		ok                              bool
	}{
		{"repeated names, each value counts", "b=2&a=3&b=1&b=2", "a3b1b2", "", true},
		{"the first value alone does not", "b=2&b=1", "b2", "", false},
		{"upper case before lower", "b=1&B=2", "B2b1", "", true},
		{"an empty value", "a=&b", "ab", "", true},
		{"no form and no hash", `{"a":1}`, `{"a":1}`, "application/json", false},
		{"no well-formed form", "a=%zz", "", "", false},
		{"no body", "", "", "", true},
	} {
		h := headers("X-Twilio-Signature", b64(sum(sha1.New, "s", url, tt.signed)))
		if tt.contentType != "" {
			h.Set("Content-Type", tt.contentType)
		}
		v := testRules().Verify(t.Context(), ep, relay.Incoming{Method: "POST", PublicURL: url, Header: h, Body: []byte(tt.body)})
		if v.OK != tt.ok {
			t.Errorf("%s: verdict %+v", tt.name, v)
		}
	}
	const get = url + "?MessageSid=SM1&SmsStatus=received"
	v := testRules().Verify(t.Context(), ep, relay.Incoming{Method: "GET", PublicURL: get, Header: headers("X-Twilio-Signature", b64(sum(sha1.New, "s", get)))})
	if !v.OK || v.DedupeKey != "SM1.SmsStatus.received" {
		t.Errorf("GET: verdict %+v", v)
	}
}

// Twilio asks again and again what a call should do next, in requests that are
// the same but for what the caller did. Taking them for one would hang it up.
func TestStepsOfACallAreNotTakenForOne(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]string{
		"CallSid=CA1&CallStatus=in-progress&Digits=1":            "",
		"CallSid=CA1&CallStatus=completed&SequenceNumber=3":      "CA1.CallStatus.completed.3",
		"MessageSid=SM1&MessageStatus=delivered&SmsStatus=other": "SM1.MessageStatus.delivered",
		"MessageSid=SM1": "",
	} {
		r := request{in: relay.Incoming{Body: []byte(body), Header: headers("Content-Type", "application/x-www-form-urlencoded")}}
		if got := aboutTwilio(r).id; got != want {
			t.Errorf("%s: id %q, want %q", body, got, want)
		}
		r.in.Header.Set("I-Twilio-Idempotency-Token", "tok")
		if got := aboutTwilio(r).id; got != "tok" {
			t.Errorf("%s: id %q with a token", body, got)
		}
	}
}

func TestTwilioPorts(t *testing.T) {
	t.Parallel()
	for u, want := range map[string]string{
		"https://a.example/x?y=:1": "https://a.example:443/x?y=:1",
		"http://a.example":         "http://a.example:80",
		"https://a.example:8443/x": "https://a.example/x",
		"https://[::1]:8443/x":     "https://[::1]/x",
		"https://[::1]?x":          "https://[::1]:443?x",
		"no URL":                   "",
	} {
		got := twilioURLs(u)
		if got[0] != u || want == "" && len(got) != 1 || want != "" && (len(got) != 2 || got[1] != want) {
			t.Errorf("twilioURLs(%q) = %q", u, got)
		}
	}
}

// An id names what is repeated. It must be the same for a retry, and another
// for everything else: taking two events for one loses one.
func TestIdsOfBatches(t *testing.T) {
	t.Parallel()
	id := func(provider, body string) string {
		return lookup(provider).about(request{in: relay.Incoming{Body: []byte(body), Header: http.Header{}}}).id
	}
	for _, tt := range []struct {
		provider, a, b string
		same, none     bool
	}{
		{"hubspot", `[{"eventId":1,"attemptNumber":0}]`, `[{"eventId":1,"attemptNumber":1}]`, true, false},
		{"hubspot", `[{"eventId":1,"objectId":1}]`, `[{"eventId":1,"objectId":2}]`, false, false},
		{"hubspot", `[{"eventId":1}]`, `[{"eventId":1},{"eventId":2}]`, false, false},
		{"hubspot", `[{"eventId":1},{}]`, `[]`, true, true},
		{"sendgrid", `[{"sg_event_id":"a"},{"sg_event_id":"b"}]`, `[{"sg_event_id":"ab"}]`, false, false},
		{"sendgrid", `[{"sg_event_id":"a","x":1}]`, "[{\"sg_event_id\":\"a\"}]\r\n", true, false},
		{"sendgrid", `[{"sg_event_id":""}]`, `{}`, true, true},
		{"sendgrid", `[{"sg_event_id":null}]`, `[` + strings.Repeat(`{},`, maxItems) + `{}]`, true, true},
		{"graph", `{"value":[{"subscriptionId":"s","resource":"r"}]}`, `x`, true, true},
		{"graph", `{"value":[{"id":"a"}]}`, `{"value":[{"id":"b"}]}`, false, false},
		{"zoom", `{"event":"a"}`, `{"event_ts":"1"}`, true, true},
		{"zoom", `{"event_ts":1,"x":1}`, `{"event_ts":1,"x":2}`, false, false},
	} {
		a, b := id(tt.provider, tt.a), id(tt.provider, tt.b)
		if (a == b) != tt.same || (a == "") != tt.none {
			t.Errorf("%s: %s has %q, %s has %q", tt.provider, tt.a, a, tt.b, b)
		}
	}
}

func TestDeclaredSchemes(t *testing.T) {
	t.Parallel()
	const body = `{"a":1}`
	hexKey := relay.Secret("00ff10")
	for _, tt := range []struct {
		name   string
		scheme *relay.HMACScheme
		secret relay.Secret
		header []string
		ok     bool
	}{
		{"the least", &relay.HMACScheme{Header: "X-Sig"}, "s", []string{"X-Sig", hexs(sum(sha256.New, "s", body))}, true},
		{"sha1 in base64 with a prefix", &relay.HMACScheme{Header: "X-Sig", Prefix: "p ", Algorithm: "sha1", Encoding: "base64"}, "s", []string{"X-Sig", "p " + b64(sum(sha1.New, "s", body))}, true},
		{"a key in hex", &relay.HMACScheme{Header: "X-Sig", KeyFormat: "hex"}, hexKey, []string{"X-Sig", hexs(sum(sha256.New, "\x00\xff\x10", body))}, true},
		{"a key in base64", &relay.HMACScheme{Header: "X-Sig", KeyFormat: "base64"}, "AP8Q", []string{"X-Sig", hexs(sum(sha256.New, "\x00\xff\x10", body))}, true},
		{"a key that is not in hex", &relay.HMACScheme{Header: "X-Sig", KeyFormat: "hex"}, "zz", []string{"X-Sig", hexs(sum(sha256.New, "", body))}, false},
		{"one of several signatures", &relay.HMACScheme{Header: "X-Sig", Separator: ",", Prefix: "v1="}, "s", []string{"X-Sig", "v0=00, v1=zz, v1=" + hexs(sum(sha256.New, "s", body))}, true},
		{"several without a separator", &relay.HMACScheme{Header: "X-Sig"}, "s", []string{"X-Sig", "00," + hexs(sum(sha256.New, "s", body))}, false},
		{"braces that mean nothing", &relay.HMACScheme{Header: "X-Sig", Signed: "{{body}}{x{body"}, "s", []string{"X-Sig", hexs(sum(sha256.New, "s", "{", body, "}{x{body"))}, true},
		{"what is filled in is not a template", &relay.HMACScheme{Header: "X-Sig", Signed: "{id}|{body}", IDHeader: "X-Id"}, "s", []string{"X-Id", "{body}", "X-Sig", hexs(sum(sha256.New, "s", "{body}|", body))}, true},
		{"an id that is signed and missing", &relay.HMACScheme{Header: "X-Sig", Signed: "{id}|{body}", IDHeader: "X-Id"}, "s", []string{"X-Sig", hexs(sum(sha256.New, "s", "|", body))}, false},
		{"an id that is not signed and missing", &relay.HMACScheme{Header: "X-Sig", IDHeader: "X-Id"}, "s", []string{"X-Sig", hexs(sum(sha256.New, "s", body))}, true},
		{"a fresh RFC 3339 time", &relay.HMACScheme{Header: "X-Sig", Signed: "{timestamp}{body}", TimestampHeader: "X-T", TimestampUnit: "rfc3339"}, "s", []string{"X-T", "2025-06-15T17:06:40+02:00", "X-Sig", hexs(sum(sha256.New, "s", "2025-06-15T17:06:40+02:00", body))}, true},
		{"a stale time", &relay.HMACScheme{Header: "X-Sig", Signed: "{timestamp}{body}", TimestampHeader: "X-T"}, "s", []string{"X-T", "1749999699", "X-Sig", hexs(sum(sha256.New, "s", "1749999699", body))}, false},
		{"no scheme", nil, "s", []string{"X-Sig", hexs(sum(sha256.New, "s", body))}, false},
		{"no header", &relay.HMACScheme{}, "s", []string{"X-Sig", hexs(sum(sha256.New, "s", body))}, false},
		{"md5", &relay.HMACScheme{Header: "X-Sig", Algorithm: "md5"}, "s", []string{"X-Sig", "00"}, false},
		{"an unknown unit", &relay.HMACScheme{Header: "X-Sig", TimestampUnit: "ns"}, "s", []string{"X-Sig", hexs(sum(sha256.New, "s", body))}, false},
		{"a time without a header", &relay.HMACScheme{Header: "X-Sig", Signed: "{timestamp}{body}"}, "s", []string{"X-Sig", hexs(sum(sha256.New, "s", body))}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ep := relay.Endpoint{Provider: "hmac", Secrets: []relay.Secret{tt.secret}, HMAC: tt.scheme}
			v := testRules().Verify(t.Context(), ep, relay.Incoming{Method: "POST", Header: headers(tt.header...), Body: []byte(body), ReceivedAt: sampleTime})
			if v.OK != tt.ok || v.OK == (v.Reason != "") {
				t.Errorf("verdict %+v", v)
			}
		})
	}
}

// A body that was changed on its way to the app needs both of GitHub's headers
// anew: an app may still read the old one.
func TestGitHubsOldHeaderIsSignedToo(t *testing.T) {
	t.Parallel()
	s := sampleOf("github")
	ep, in := s.make(1, s.body)
	in.Header.Set("X-Hub-Signature", "sha1=old")
	e := eventOf(in)
	e.Body = []byte("{}")
	fields, err := testRules().Resign(ep, e, "", sampleTime)
	want := "sha1=" + hexs(sum(sha1.New, twoSecrets[0].Reveal(), "{}"))
	if err != nil || len(fields) != 2 || fields[1] != (relay.Field{Name: "X-Hub-Signature", Value: want}) {
		t.Errorf("fields %v, error %v", fields, err)
	}
}

func TestLinearNeedsItsTime(t *testing.T) {
	t.Parallel()
	const body = `{"action":"create"}`
	in := relay.Incoming{Method: "POST", Body: []byte(body), ReceivedAt: sampleTime,
		Header: headers("Linear-Timestamp", "1750000000000", "Linear-Signature", hexs(sum(sha256.New, "s", body)))}
	wantRefusal(t, "the time only in a header", testRules().Verify(t.Context(), relay.Endpoint{Provider: "linear", Secrets: []relay.Secret{"s"}}, in))
}

func TestPayPalNeedsItsWebhookID(t *testing.T) {
	t.Parallel()
	s := sampleOf("paypal")
	ep, in := s.make(0, s.body)
	for _, id := range []string{"", "WH2"} {
		ep.WebhookID = id
		wantRefusal(t, "webhook id "+id, testRules().Verify(t.Context(), ep, in))
	}
	text := fmt.Sprintf("tid|%s||%d", in.Header.Get(paypalTime), crc32.ChecksumIEEE(in.Body))
	in.Header.Set(paypalSignature, signRSA(crypto.SHA256, text))
	ep.WebhookID = ""
	wantRefusal(t, "signed for no webhook id", testRules().Verify(t.Context(), ep, in))
}

func TestSNSMessagesAreComplete(t *testing.T) {
	t.Parallel()
	in := relay.Incoming{Method: "POST", ReceivedAt: sampleTime, Header: http.Header{}, Body: fmt.Appendf(nil,
		`{"Type":"Notification","Timestamp":"2025-06-15T15:06:40Z","TopicArn":"arn","Message":"m","SignatureVersion":"2","Signature":%q,"SigningCertURL":%q}`,
		signRSA(crypto.SHA256, "Message\nm\nTimestamp\n2025-06-15T15:06:40Z\nTopicArn\narn\nType\nNotification\n"), snsCert)}
	wantRefusal(t, "a message without an id", testRules().Verify(t.Context(), relay.Endpoint{Provider: "sns"}, in))
}

func TestAnUnknownURLIsNotAnEmptyOne(t *testing.T) {
	t.Parallel()
	in := relay.Incoming{Method: "POST", Header: headers("X-Square-HmacSha256-Signature", b64(sum(sha256.New, "s", "body"))), Body: []byte("body")}
	wantRefusal(t, "no URL", testRules().Verify(t.Context(), relay.Endpoint{Provider: "square", Secrets: []relay.Secret{"s"}}, in))
}

func TestAnEmptySecretIsNobodys(t *testing.T) {
	t.Parallel()
	if isOneOf("", []relay.Secret{""}) || !isOneOf("a", []relay.Secret{"", "a"}) || isOneOf("a", nil) {
		t.Error("isOneOf is wrong")
	}
}
