package provider

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"hash"
	"hash/crc32"
	"math/big"
	"net/http"
	"strings"
	"time"

	"github.com/posternhq/postern/relay"
)

// The schemes written a second time, as their senders' documents say, without
// anything of the code under test. Each sample is a webhook of one provider.

// sample is how one provider's webhooks are made.
type sample struct {
	name     string // of the sample; that of the provider when provider is ""
	provider string
	ep       relay.Endpoint
	secrets  []relay.Secret // two that are good
	body     string
	url      string

	// sign makes the headers and, for those that sign inside it, the body.
	sign func(secret relay.Secret, at time.Time, url, body string) (http.Header, string)

	id, kind  string
	header    string        // carries the signature; "" when the body does
	stamped   bool          // a time is signed
	tolerance time.Duration // the provider's own
	pastOnly  bool
	uncovered bool // the body is not signed
	noEmpty   bool // an empty body is no webhook
}

const sampleURL = "https://relay.example/hooks/shop/x?a=1&b=2"

var sampleTime = time.Unix(1_750_000_000, 0).UTC()

func (s *sample) row() string {
	if s.provider != "" {
		return s.provider
	}
	return s.name
}

func sum(h func() hash.Hash, key string, parts ...string) []byte {
	mac := hmac.New(h, []byte(key))
	for _, part := range parts {
		mac.Write([]byte(part))
	}
	return mac.Sum(nil)
}

var (
	b64  = base64.StdEncoding.EncodeToString
	hexs = hex.EncodeToString
)

func headers(pairs ...string) http.Header {
	h := http.Header{}
	for i := 0; i < len(pairs); i += 2 {
		h.Add(pairs[i], pairs[i+1])
	}
	return h
}

func unix(t time.Time) string   { return fmt.Sprint(t.Unix()) }
func unixMs(t time.Time) string { return fmt.Sprint(t.UnixMilli()) }

// bodySigner is for senders that sign the body alone.
func bodySigner(header, prefix string, h func() hash.Hash, enc func([]byte) string, more ...string) func(relay.Secret, time.Time, string, string) (http.Header, string) {
	return func(secret relay.Secret, _ time.Time, _, body string) (http.Header, string) {
		all := headers(more...)
		all.Set(header, prefix+enc(sum(h, secret.Reveal(), body)))
		return all, body
	}
}

func standardSigner(name string, more ...string) func(relay.Secret, time.Time, string, string) (http.Header, string) {
	return func(secret relay.Secret, at time.Time, _, body string) (http.Header, string) {
		key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret.Reveal(), "whsec_"))
		if err != nil {
			panic(err)
		}
		h := headers(more...)
		h.Set(name+"-Id", "msg_1")
		h.Set(name+"-Timestamp", unix(at))
		h.Set(name+"-Signature", "v1,"+b64(sum(sha256.New, string(key), "msg_1.", unix(at), ".", body)))
		return h, body
	}
}

var twoSecrets = []relay.Secret{"first secret", "second secret"}

var twoStandard = []relay.Secret{
	relay.Secret("whsec_" + b64([]byte("0123456789abcdefghijklmnop"))),
	relay.Secret(b64([]byte("another key of enough bytes"))),
}

func samples() []sample {
	return append(append(bodySamples(), stampedSamples()...), keySamples()...)
}

func bodySamples() []sample {
	return []sample{
		{name: "github", secrets: twoSecrets, body: `{"zen":"x"}`, header: "X-Hub-Signature-256",
			sign: bodySigner("X-Hub-Signature-256", "sha256=", sha256.New, hexs, "X-GitHub-Delivery", "guid-1", "X-GitHub-Event", "ping"),
			id:   "guid-1", kind: "ping"},
		{name: "a github form", provider: "github", secrets: twoSecrets, body: `payload=%7B%22zen%22%3A%22x+y%22%7D`, header: "X-Hub-Signature-256",
			sign: bodySigner("X-Hub-Signature-256", "sha256=", sha256.New, hexs, "Content-Type", "application/x-www-form-urlencoded", "X-GitHub-Delivery", "guid-2", "X-GitHub-Event", "push"),
			id:   "guid-2", kind: "push"},
		{name: "meta", secrets: twoSecrets, body: `{"object":"page","entry":[]}`, header: "X-Hub-Signature-256",
			sign: bodySigner("X-Hub-Signature-256", "sha256=", sha256.New, hexs), kind: "page"},
		{name: "bitbucket", secrets: twoSecrets, body: `{"push":{}}`, header: "X-Hub-Signature",
			sign: bodySigner("X-Hub-Signature", "sha256=", sha256.New, hexs, "X-Request-UUID", "u-1", "X-Event-Key", "repo:push", "X-Attempt-Number", "1"),
			id:   "u-1", kind: "repo:push"},
		{name: "intercom", secrets: twoSecrets, body: `{"id":"notif_1","topic":"ping","created_at":1750000000}`, header: "X-Hub-Signature",
			sign: bodySigner("X-Hub-Signature", "sha1=", sha1.New, hexs), id: "notif_1", kind: "ping"},
		{name: "shopify", secrets: twoSecrets, body: `{"order":1}`, header: "X-Shopify-Hmac-Sha256",
			sign: bodySigner("X-Shopify-Hmac-Sha256", "", sha256.New, b64, "X-Shopify-Webhook-Id", "w-1", "X-Shopify-Event-Id", "e-1", "X-Shopify-Topic", "orders/create"),
			id:   "w-1", kind: "orders/create"},
		{name: "dropbox", secrets: twoSecrets, body: `{"list_folder":{"accounts":["x"]}}`, header: "X-Dropbox-Signature",
			sign: bodySigner("X-Dropbox-Signature", "", sha256.New, hexs)},
		{name: "typeform", secrets: twoSecrets, body: `{"event_id":"ev1","event_type":"form_response"}`, header: "Typeform-Signature",
			sign: bodySigner("Typeform-Signature", "sha256=", sha256.New, b64), id: "ev1", kind: "form_response"},
		{name: "square", secrets: twoSecrets, url: sampleURL, body: `{"event_id":"sq1","type":"payment.created","created_at":"2025-06-15T15:06:40Z"}`, header: "X-Square-Hmacsha256-Signature",
			sign: func(secret relay.Secret, _ time.Time, url, body string) (http.Header, string) {
				return headers("X-Square-Hmacsha256-Signature", b64(sum(sha256.New, secret.Reveal(), url, body)), "X-Square-Signature", "old"), body
			}, id: "sq1", kind: "payment.created"},
		{name: "twilio", secrets: twoSecrets, url: sampleURL, body: "To=%2B1+555&From=b&MessageSid=SM1&MessageStatus=sent&To=%2B0", header: "X-Twilio-Signature",
			sign: func(secret relay.Secret, _ time.Time, url, body string) (http.Header, string) {
				text := url
				if body != "" {
					text += "Fromb" + "MessageSidSM1" + "MessageStatussent" + "To+0To+1 555"
				}
				return headers("Content-Type", "application/x-www-form-urlencoded; charset=utf-8", "X-Twilio-Signature", b64(sum(sha1.New, secret.Reveal(), text))), body
			}, id: "SM1.MessageStatus.sent", kind: "MessageStatus.sent"},
		{name: "gitlab", secrets: twoSecrets, body: `{"object_kind":"push"}`, header: "X-Gitlab-Token", uncovered: true,
			sign: func(secret relay.Secret, _ time.Time, _, body string) (http.Header, string) {
				return headers("X-Gitlab-Token", secret.Reveal(), "Idempotency-Key", "k1", "X-Gitlab-Event", "Push Hook"), body
			}, id: "k1", kind: "Push Hook"},
		{name: "graph", secrets: twoSecrets, body: "", uncovered: true, noEmpty: true,
			sign: func(secret relay.Secret, _ time.Time, _, _ string) (http.Header, string) {
				return headers("Content-Type", "application/json"), fmt.Sprintf(`{"value":[{"id":"n1","changeType":"updated","clientState":%q},{"id":"n2","changeType":"updated","clientState":%[1]q}]}`, secret.Reveal())
			}, id: "batch_7e3ca4fbff8a1eb4f9f6de25ffe2a27cf7bd6e5a9a9d6dfbb4b9c2fbd08bd1b0", kind: "updated"},
		{name: "hmac", secrets: twoSecrets, body: `{"x":1}`, url: sampleURL, header: "X-Acme-Sig", stamped: true, tolerance: 300 * time.Second,
			ep: relay.Endpoint{HMAC: &relay.HMACScheme{Header: "X-Acme-Sig", Prefix: "s=", Separator: ",", Algorithm: "sha512", Encoding: "base64url",
				Signed: "{method} {path} {url}|{timestamp}|{unknown}{id}|{body}", TimestampHeader: "X-Acme-Time", TimestampUnit: "ms", IDHeader: "X-Acme-Id", TypeHeader: "X-Acme-Type"}},
			sign: func(secret relay.Secret, at time.Time, url, body string) (http.Header, string) {
				_, path, _ := strings.Cut(strings.TrimPrefix(url, "https://"), "/")
				path, _, _ = strings.Cut(path, "?")
				mac := sum(sha512.New, secret.Reveal(), "POST /", path, " ", url, "|", unixMs(at), "|{unknown}i1|", body)
				return headers("X-Acme-Sig", "s="+base64.URLEncoding.EncodeToString(mac), "X-Acme-Time", unixMs(at), "X-Acme-Id", "i1", "X-Acme-Type", "t1"), body
			}, id: "i1", kind: "t1"},
	}
}

func stampedSamples() []sample {
	return []sample{
		{name: "stripe", secrets: twoSecrets, body: `{"id":"evt_1","type":"charge.succeeded"}`, header: "Stripe-Signature",
			stamped: true, tolerance: 300 * time.Second, pastOnly: true, id: "evt_1", kind: "charge.succeeded",
			sign: func(secret relay.Secret, at time.Time, _, body string) (http.Header, string) {
				return headers("Stripe-Signature", "t="+unix(at)+",v1="+hexs(sum(sha256.New, secret.Reveal(), unix(at), ".", body))), body
			}},
		{name: "paddle", secrets: twoSecrets, body: `{"event_id":"evt_p","event_type":"transaction.paid","notification_id":"ntf"}`, header: "Paddle-Signature",
			stamped: true, tolerance: 5 * time.Second, id: "evt_p", kind: "transaction.paid",
			sign: func(secret relay.Secret, at time.Time, _, body string) (http.Header, string) {
				return headers("Paddle-Signature", "ts="+unix(at)+";h1="+hexs(sum(sha256.New, "other", body))+";h1="+hexs(sum(sha256.New, secret.Reveal(), unix(at), ":", body))), body
			}},
		{name: "slack", secrets: twoSecrets, body: `{"event_id":"Ev1","type":"event_callback","event":{"type":"app_mention"}}`, header: "X-Slack-Signature",
			stamped: true, tolerance: 300 * time.Second, id: "Ev1", kind: "app_mention",
			sign: func(secret relay.Secret, at time.Time, _, body string) (http.Header, string) {
				return headers("X-Slack-Request-Timestamp", unix(at), "X-Slack-Signature", "v0="+hexs(sum(sha256.New, secret.Reveal(), "v0:", unix(at), ":", body))), body
			}},
		{name: "zoom", secrets: twoSecrets, body: `{"event":"meeting.started","event_ts":1750000000123,"payload":{}}`, header: "X-Zm-Signature",
			stamped: true, tolerance: 300 * time.Second, id: "body_84e2c3a3f8e7ae5b1a9fca0d8eeee6f36e2fdb8b22a2d7c92a1cfca1ac5b6c0e", kind: "meeting.started",
			sign: func(secret relay.Secret, at time.Time, _, body string) (http.Header, string) {
				return headers("X-Zm-Request-Timestamp", unix(at), "X-Zm-Signature", "v0="+hexs(sum(sha256.New, secret.Reveal(), "v0:", unix(at), ":", body))), body
			}},
		{name: "linear", secrets: twoSecrets, header: "Linear-Signature", stamped: true, tolerance: 60 * time.Second,
			id: "d-1", kind: "Issue.create", noEmpty: true,
			sign: func(secret relay.Secret, at time.Time, _, _ string) (http.Header, string) {
				body := `{"action":"create","type":"Issue","webhookTimestamp":` + unixMs(at) + `}`
				return headers("Linear-Delivery", "d-1", "Linear-Event", "Issue", "Linear-Signature", hexs(sum(sha256.New, secret.Reveal(), body))), body
			}},
		{name: "hubspot", secrets: twoSecrets, url: "https://relay.example/hooks/shop/x?a=%3A%2f%40%21%24%27%28%29%2A%2C%3B%3f%26%20", header: "X-Hubspot-Signature-V3",
			stamped: true, tolerance: 300 * time.Second, pastOnly: true, kind: "contact.creation",
			body: `[{"eventId":1,"subscriptionId":12345,"portalId":62515,"occurredAt":1564113600000,"subscriptionType":"contact.creation","attemptNumber":0,"objectId":123}]`,
			id:   "batch_4d7d3ce0cda2b1bba9a0eb44d1f50ee61cb3c58dc0fd1db0f0a9a2a3c6dca0a2",
			sign: func(secret relay.Secret, at time.Time, url, body string) (http.Header, string) {
				url = strings.NewReplacer("?a=%3A%2f%40%21%24%27%28%29%2A%2C%3B%3f%26%20", "?a=:/@!$'()*,;?%26%20").Replace(url)
				return headers("X-HubSpot-Signature-Version", "v1", "X-HubSpot-Signature", "old", "X-HubSpot-Request-Timestamp", unixMs(at),
					"X-HubSpot-Signature-v3", b64(sum(sha256.New, secret.Reveal(), "POST", url, body, unixMs(at)))), body
			}},
		{name: "standard", secrets: twoStandard, body: `{"type":"a.b"}`, header: "Webhook-Signature", stamped: true, tolerance: 300 * time.Second,
			sign: standardSigner("Webhook"), id: "msg_1", kind: "a.b"},
		{name: "svix", secrets: twoStandard, body: `{"type":"a.b"}`, header: "Svix-Signature", stamped: true, tolerance: 300 * time.Second,
			sign: standardSigner("Svix"), id: "msg_1", kind: "a.b"},
		{name: "svix with the standard's headers", provider: "svix", secrets: twoStandard, body: `{"type":"a.b"}`, header: "Webhook-Signature",
			stamped: true, tolerance: 300 * time.Second, sign: standardSigner("Webhook"), id: "msg_1", kind: "a.b"},
		{name: "gitlab with a signing token", provider: "gitlab", body: `{"object_kind":"push"}`, header: "Webhook-Signature",
			secrets: []relay.Secret{twoStandard[0], "whsec_" + twoStandard[1]},
			stamped: true, tolerance: 300 * time.Second, sign: standardSigner("Webhook", "Idempotency-Key", "msg_1", "X-Gitlab-Event", "Push Hook"), id: "msg_1", kind: "Push Hook"},
		{name: "mailgun", secrets: twoSecrets, stamped: true, uncovered: true, noEmpty: true, id: "ev-1", kind: "delivered",
			sign: func(secret relay.Secret, at time.Time, _, _ string) (http.Header, string) {
				return headers("Content-Type", "application/json"), fmt.Sprintf(`{"signature":{"timestamp":"%s","token":"tok","signature":"%x"},"event-data":{"id":"ev-1","event":"delivered"}}`,
					unix(at), sum(sha256.New, secret.Reveal(), unix(at), "tok"))
			}},
	}
}

// keys are pairs that the asymmetric samples use, two of each kind.
var keys = func() (k struct {
	ed  [2]ed25519.PrivateKey
	ec  [2]*ecdsa.PrivateKey
	rsa *rsa.PrivateKey
	pem []byte // certificate of rsa
}) {
	for i := range 2 {
		_, k.ed[i], _ = ed25519.GenerateKey(rand.Reader)
		k.ec[i], _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	k.rsa, _ = rsa.GenerateKey(rand.Reader, 2048)
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.rsa.PublicKey, k.rsa)
	if err != nil {
		panic(err)
	}
	k.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return k
}()

func edSecret(i int) relay.Secret {
	return relay.Secret(hex.EncodeToString(keys.ed[i].Public().(ed25519.PublicKey)))
}

func ecSecret(i int) relay.Secret {
	der, err := x509.MarshalPKIXPublicKey(&keys.ec[i].PublicKey)
	if err != nil {
		panic(err)
	}
	return relay.Secret(b64(der))
}

func signRSA(h crypto.Hash, text string) string {
	sum := h.New()
	sum.Write([]byte(text))
	signature, err := rsa.SignPKCS1v15(rand.Reader, keys.rsa, h, sum.Sum(nil))
	if err != nil {
		panic(err)
	}
	return b64(signature)
}

const (
	snsCert    = "https://sns.us-east-1.amazonaws.com/SimpleNotificationService-1.pem"
	paypalPath = "https://api.sandbox.paypal.com/v1/notifications/certs/CERT-1"
)

func keySamples() []sample {
	return []sample{
		{name: "discord", secrets: []relay.Secret{edSecret(0), edSecret(1)}, body: `{"id":"123","type":2,"data":{}}`, header: "X-Signature-Ed25519",
			stamped: true, id: "123", kind: "application_command",
			sign: func(secret relay.Secret, at time.Time, _, body string) (http.Header, string) {
				key := keys.ed[0]
				if secret == edSecret(1) {
					key = keys.ed[1]
				}
				return headers("X-Signature-Timestamp", unix(at), "X-Signature-Ed25519", hexs(ed25519.Sign(key, []byte(unix(at)+body)))), body
			}},
		{name: "sendgrid", secrets: []relay.Secret{ecSecret(0), ecSecret(1)}, body: `[{"sg_event_id":"a","event":"open"},{"sg_event_id":"b","event":"open"}]` + "\r\n",
			header: sendgridSignature, stamped: true, kind: "open", id: "batch_",
			sign: func(secret relay.Secret, at time.Time, _, body string) (http.Header, string) {
				key := keys.ec[0]
				if secret == ecSecret(1) {
					key = keys.ec[1]
				}
				digest := sha256.Sum256([]byte(unix(at) + body))
				signature, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
				if err != nil {
					panic(err)
				}
				return headers(sendgridTimestamp, unix(at), sendgridSignature, b64(signature)), body
			}},
		snsSample("sns", "2", crypto.SHA256), snsSample("sns with version 1", "1", crypto.SHA1),
		{name: "paypal", ep: relay.Endpoint{WebhookID: "WH1"}, body: `{"id":"WH-1","event_type":"PAYMENT.SALE.COMPLETED"}`, header: paypalSignature,
			stamped: true, id: "WH-1", kind: "PAYMENT.SALE.COMPLETED",
			sign: func(_ relay.Secret, at time.Time, _, body string) (http.Header, string) {
				stamp := at.Format(time.RFC3339)
				text := fmt.Sprintf("tid|%s|WH1|%d", stamp, crc32.ChecksumIEEE([]byte(body)))
				return headers("PAYPAL-TRANSMISSION-ID", "tid", "PAYPAL-TRANSMISSION-TIME", stamp, "PAYPAL-TRANSMISSION-SIG", signRSA(crypto.SHA256, text),
					"PAYPAL-CERT-URL", paypalPath, "PAYPAL-AUTH-ALGO", "SHA256withRSA"), body
			}},
	}
}

func snsSample(name, version string, h crypto.Hash) sample {
	return sample{name: name, provider: "sns", stamped: true, noEmpty: true, id: "m-1", kind: "Notification",
		sign: func(_ relay.Secret, at time.Time, _, _ string) (http.Header, string) {
			stamp := at.Format("2006-01-02T15:04:05.000Z")
			text := "Message\nhello\nMessageId\nm-1\nTimestamp\n" + stamp + "\nTopicArn\narn:aws:sns:us-east-1:1:t\nType\nNotification\n"
			return headers("X-Amz-Sns-Message-Type", "Notification", "Content-Type", "text/plain; charset=UTF-8"),
				fmt.Sprintf(`{"Type":"Notification","MessageId":"m-1","TopicArn":"arn:aws:sns:us-east-1:1:t","Message":"hello","Timestamp":%q,"SignatureVersion":%q,"Signature":%q,"SigningCertURL":%q}`,
					stamp, version, signRSA(h, text), snsCert)
		}}
}
