package sdk

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	paddle "github.com/PaddleHQ/paddle-go-sdk/v4"
	"github.com/bwmarrin/discordgo"
	"github.com/google/go-github/v84/github"
	"github.com/mailgun/mailgun-go/v4"
	"github.com/sendgrid/sendgrid-go/helpers/eventwebhook"
	"github.com/slack-go/slack"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"github.com/stripe/stripe-go/v85/webhook"
	svix "github.com/svix/svix-webhooks/go"
	twilio "github.com/twilio/twilio-go/client"

	"github.com/posternhq/postern/relay"
)

// peer is one sender's library.
type peer struct {
	name     string
	provider string
	secret   relay.Secret
	other    relay.Secret // of the same form
	body     string
	url      string
	id, kind string

	// sign makes a webhook: by the library where it can, and by hand where it only
	// verifies. Some sign inside the body.
	sign func(secret relay.Secret, at time.Time, url, body string) (http.Header, string)
	// verify is the library's own verdict; nil accepts.
	verify func(secret relay.Secret, h http.Header, url, body string) error

	ages      bool // the library refuses what is old
	uncovered bool // the body is not signed
}

var errRefused = errors.New("the library refuses it")

func refusedUnless(ok bool) error {
	if ok {
		return nil
	}
	return errRefused
}

func sum(h func() hash.Hash, key, text string) []byte {
	mac := hmac.New(h, []byte(key))
	mac.Write([]byte(text))
	return mac.Sum(nil)
}

func headers(pairs ...string) http.Header {
	h := http.Header{}
	for i := 0; i < len(pairs); i += 2 {
		h.Set(pairs[i], pairs[i+1])
	}
	return h
}

func request(h http.Header, body string) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body))
	r.Header = h.Clone()
	return r
}

func unix(t time.Time) string { return strconv.FormatInt(t.Unix(), 10) }

func peers() []peer {
	return []peer{stripePeer(), githubPeer(), githubFormPeer(), slackPeer(), twilioPeer(), twilioJSONPeer(),
		standardPeer(), svixPeer(), sendgridPeer(), paddlePeer(), mailgunPeer(), discordPeer()}
}

func stripePeer() peer {
	return peer{
		name: "stripe", provider: "stripe", secret: "whsec_one", other: "whsec_two",
		body: `{"id":"evt_1","object":"event","type":"charge.succeeded"}`, id: "evt_1", kind: "charge.succeeded", ages: true,
		sign: func(secret relay.Secret, at time.Time, _, body string) (http.Header, string) {
			signed := webhook.GenerateTestSignedPayload(&webhook.UnsignedPayload{Payload: []byte(body), Secret: secret.Reveal(), Timestamp: at})
			return headers("Stripe-Signature", signed.Header), string(signed.Payload)
		},
		verify: func(secret relay.Secret, h http.Header, _, body string) error {
			return webhook.ValidatePayload([]byte(body), h.Get("Stripe-Signature"), secret.Reveal())
		},
	}
}

func githubPeer() peer {
	return peer{
		name: "github", provider: "github", secret: "one", other: "two", body: `{"zen":"é \u00e9 <1>"}`, id: "guid", kind: "ping",
		sign: func(secret relay.Secret, _ time.Time, _, body string) (http.Header, string) {
			return headers("Content-Type", "application/json", github.EventTypeHeader, "ping", github.DeliveryIDHeader, "guid",
				github.SHA256SignatureHeader, "sha256="+hex.EncodeToString(sum(sha256.New, secret.Reveal(), body)),
				github.SHA1SignatureHeader, "sha1="+hex.EncodeToString(sum(sha1.New, secret.Reveal(), body))), body
		},
		verify: func(secret relay.Secret, h http.Header, _, body string) error {
			// The old header too: some apps still read it.
			if err := github.ValidateSignature(h.Get(github.SHA1SignatureHeader), []byte(body), []byte(secret.Reveal())); err != nil {
				return err
			}
			return github.ValidateSignature(h.Get(github.SHA256SignatureHeader), []byte(body), []byte(secret.Reveal()))
		},
	}
}

func githubFormPeer() peer {
	p := githubPeer()
	p.name, p.body = "github with a form", "payload="+url.QueryEscape(`{"zen":"a 1"}`)
	sign := p.sign
	p.sign = func(secret relay.Secret, at time.Time, u, body string) (http.Header, string) {
		h, body := sign(secret, at, u, body)
		h.Set("Content-Type", "application/x-www-form-urlencoded")
		return h, body
	}
	p.verify = func(secret relay.Secret, h http.Header, _, body string) error {
		_, err := github.ValidatePayload(request(h, body), []byte(secret.Reveal()))
		return err
	}
	return p
}

func slackPeer() peer {
	return peer{
		name: "slack", provider: "slack", secret: "one", other: "two", ages: true,
		body: `{"type":"event_callback","event_id":"Ev1","event":{"type":"app_mention"}}`, id: "Ev1", kind: "app_mention",
		sign: func(secret relay.Secret, at time.Time, _, body string) (http.Header, string) {
			return headers("X-Slack-Request-Timestamp", unix(at),
				"X-Slack-Signature", "v0="+hex.EncodeToString(sum(sha256.New, secret.Reveal(), "v0:"+unix(at)+":"+body))), body
		},
		verify: func(secret relay.Secret, h http.Header, _, body string) error {
			v, err := slack.NewSecretsVerifier(h, secret.Reveal())
			if err != nil {
				return err
			}
			v.Write([]byte(body))
			return v.Ensure()
		},
	}
}

func twilioPeer() peer {
	return peer{
		name: "twilio", provider: "twilio", secret: "one", other: "two", url: "https://relay.example/hooks/shop/sms?a=1",
		body: "To=%2B1555&From=x+y&MessageSid=SM1&MessageStatus=sent&Body=", id: "SM1.MessageStatus.sent", kind: "MessageStatus.sent",
		sign: func(secret relay.Secret, _ time.Time, u, body string) (http.Header, string) {
			form, err := url.ParseQuery(body)
			if err != nil {
				panic(err)
			}
			names := make([]string, 0, len(form))
			for name := range form {
				names = append(names, name)
			}
			slices.Sort(names)
			text := u
			for _, name := range names {
				text += name + form.Get(name)
			}
			return headers("Content-Type", "application/x-www-form-urlencoded",
				"X-Twilio-Signature", base64.StdEncoding.EncodeToString(sum(sha1.New, secret.Reveal(), text))), body
		},
		verify: func(secret relay.Secret, h http.Header, u, body string) error {
			v := twilio.NewRequestValidator(secret.Reveal())
			return refusedUnless(v.ValidateBody(u, []byte(body), h.Get("X-Twilio-Signature")))
		},
	}
}

func twilioJSONPeer() peer {
	p := twilioPeer()
	p.name, p.body, p.id, p.kind = "twilio with JSON", `{"a":"b1"}`, "", ""
	digest := sha256.Sum256([]byte(p.body))
	p.url = "https://relay.example/hooks/shop/sms?bodySHA256=" + hex.EncodeToString(digest[:])
	p.sign = func(secret relay.Secret, _ time.Time, u, body string) (http.Header, string) {
		return headers("Content-Type", "application/json",
			"X-Twilio-Signature", base64.StdEncoding.EncodeToString(sum(sha1.New, secret.Reveal(), u))), body
	}
	return p
}

const (
	keyOne = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
	keyTwo = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
)

func standardPeer() peer {
	return peer{
		name: "standard", provider: "standard", secret: keyOne, other: keyTwo, body: `{"type":"a.b","n":1}`, id: "msg_1", kind: "a.b", ages: true,
		sign: func(secret relay.Secret, at time.Time, _, body string) (http.Header, string) {
			wh, err := standardwebhooks.NewWebhook(secret.Reveal())
			if err != nil {
				panic(err)
			}
			signature, err := wh.Sign("msg_1", at, []byte(body))
			if err != nil {
				panic(err)
			}
			return headers("webhook-id", "msg_1", "webhook-timestamp", unix(at), "webhook-signature", signature), body
		},
		verify: func(secret relay.Secret, h http.Header, _, body string) error {
			wh, err := standardwebhooks.NewWebhook(secret.Reveal())
			if err != nil {
				return err
			}
			return wh.Verify([]byte(body), h)
		},
	}
}

func svixPeer() peer {
	return peer{
		name: "svix", provider: "svix", secret: keyOne, other: keyTwo, body: `{"type":"a.b","n":1}`, id: "msg_1", kind: "a.b", ages: true,
		sign: func(secret relay.Secret, at time.Time, _, body string) (http.Header, string) {
			wh, err := svix.NewWebhook(secret.Reveal())
			if err != nil {
				panic(err)
			}
			signature, err := wh.Sign("msg_1", at, []byte(body))
			if err != nil {
				panic(err)
			}
			return headers("svix-id", "msg_1", "svix-timestamp", unix(at), "svix-signature", signature), body
		},
		verify: func(secret relay.Secret, h http.Header, _, body string) error {
			wh, err := svix.NewWebhook(secret.Reveal())
			if err != nil {
				return err
			}
			return wh.Verify([]byte(body), h)
		},
	}
}

func paddlePeer() peer {
	return peer{
		name: "paddle", provider: "paddle", secret: "pdl_one", other: "pdl_two", ages: true,
		body: `{"event_id":"evt_1","event_type":"transaction.paid"}`, id: "evt_1", kind: "transaction.paid",
		sign: func(secret relay.Secret, at time.Time, _, body string) (http.Header, string) {
			return headers("Paddle-Signature", "ts="+unix(at)+";h1="+hex.EncodeToString(sum(sha256.New, secret.Reveal(), unix(at)+":"+body))), body
		},
		verify: func(secret relay.Secret, h http.Header, _, body string) error {
			v := paddle.NewWebhookVerifier(secret.Reveal(), paddle.VerifierWithTimestampTolerance(5*time.Second))
			ok, err := v.Verify(request(h, body))
			return errors.Join(err, refusedUnless(ok))
		},
	}
}

func mailgunPeer() peer {
	return peer{
		name: "mailgun", provider: "mailgun", secret: "one", other: "two", id: "ev-1", kind: "delivered", uncovered: true,
		sign: func(secret relay.Secret, at time.Time, _, _ string) (http.Header, string) {
			return headers("Content-Type", "application/json"), fmt.Sprintf(
				`{"signature":{"timestamp":"%s","token":"tok","signature":"%x"},"event-data":{"id":"ev-1","event":"delivered"}}`,
				unix(at), sum(sha256.New, secret.Reveal(), unix(at)+"tok"))
		},
		verify: func(secret relay.Secret, _ http.Header, _, body string) error {
			var payload mailgun.WebhookPayload
			if err := json.Unmarshal([]byte(body), &payload); err != nil {
				return err
			}
			mg := mailgun.NewMailgun("example.com", "key")
			mg.SetWebhookSigningKey(secret.Reveal())
			ok, err := mg.VerifyWebhookSignature(payload.Signature)
			return errors.Join(err, refusedUnless(ok))
		},
	}
}

func sendgridPeer() peer {
	private := map[relay.Secret]*ecdsa.PrivateKey{}
	var public []relay.Secret
	for range 2 {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			panic(err)
		}
		der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
		if err != nil {
			panic(err)
		}
		secret := relay.Secret(base64.StdEncoding.EncodeToString(der))
		public, private[secret] = append(public, secret), key
	}
	return peer{
		name: "sendgrid", provider: "sendgrid", secret: public[0], other: public[1], kind: "open",
		body: `[{"event":"open","sg_event_id":"a1"}]` + "\r\n",
		sign: func(secret relay.Secret, at time.Time, _, body string) (http.Header, string) {
			digest := sha256.Sum256([]byte(unix(at) + body))
			signature, err := ecdsa.SignASN1(rand.Reader, private[secret], digest[:])
			if err != nil {
				panic(err)
			}
			return headers(eventwebhook.TimestampHTTPHeader, unix(at),
				eventwebhook.VerificationHTTPHeader, base64.StdEncoding.EncodeToString(signature)), body
		},
		verify: func(secret relay.Secret, h http.Header, _, body string) error {
			key, err := eventwebhook.ConvertPublicKeyBase64ToECDSA(secret.Reveal())
			if err != nil {
				return err
			}
			ok, err := eventwebhook.VerifySignature(key, []byte(body), h.Get(eventwebhook.VerificationHTTPHeader), h.Get(eventwebhook.TimestampHTTPHeader))
			return errors.Join(err, refusedUnless(ok))
		},
	}
}

func discordPeer() peer {
	private := map[relay.Secret]ed25519.PrivateKey{}
	var public []relay.Secret
	for i := range 2 {
		key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{byte(i)}, ed25519.SeedSize))
		secret := relay.Secret(hex.EncodeToString(key.Public().(ed25519.PublicKey)))
		public, private[secret] = append(public, secret), key
	}
	return peer{
		name: "discord", provider: "discord", secret: public[0], other: public[1], body: `{"id":"1","type":2}`, id: "1", kind: "application_command",
		sign: func(secret relay.Secret, at time.Time, _, body string) (http.Header, string) {
			return headers("X-Signature-Timestamp", unix(at),
				"X-Signature-Ed25519", hex.EncodeToString(ed25519.Sign(private[secret], []byte(unix(at)+body)))), body
		},
		verify: func(secret relay.Secret, h http.Header, _, body string) error {
			key, err := hex.DecodeString(secret.Reveal())
			if err != nil {
				return err
			}
			return refusedUnless(discordgo.VerifyInteraction(request(h, body), key))
		},
	}
}
