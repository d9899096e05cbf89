package provider

import (
	"testing"
	"time"

	"github.com/posternhq/postern/relay"
)

// What the senders themselves have published: in their documents, or in the
// tests of their libraries.

func TestPublishedVectors(t *testing.T) {
	t.Parallel()
	const (
		twilioURL  = "https://mycompany.com/myapp.php?foo=1&bar=2"
		twilioForm = "Digits=1234&CallSid=CA1234567890ABCDE&To=%2B18005551212&Caller=%2B14158675309&From=%2B14158675309&ReasonConferenceEnded=test&Reason=Participant"
		twilioHash = "0a1ff7634d9ab3b95db5c9a2dfe9416e41502b283a80c7cf19632632f96e6620"
		twilioJSON = `{"property": "value", "boolean": true}`
		squareBody = `{"merchant_id":"MLEFBHHSJGVHD","type":"webhooks.test_notification","event_id":"ac3ac95b-f97d-458c-a6e6-18981597e05f","created_at":"2022-07-13T20:30:59.037339943Z","data":{"type":"webhooks","id":"bc368e64-01aa-407e-b46e-3231809b1129"}}`
		sendgrid   = `[{"email":"hello@world.com","event":"dropped","reason":"Bounced Address","sg_event_id":"ZHJvcC0xMDk5NDkxOS1MUnpYbF9OSFN0T0doUTRrb2ZTbV9BLTA","sg_message_id":"LRzXl_NHStOGhQ4kofSm_A.filterdrecv-p3mdw1-756b745b58-kmzbl-18-5F5FC76C-9.0","smtp-id":"<LRzXl_NHStOGhQ4kofSm_A@ismtpd0039p1iad1.sendgrid.net>","timestamp":1600112492}]`
		slackBody  = "token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c"
		slackEvent = `{"token":"aF5ynEYQH0dFN9imlgcADxDB","team_id":"XXXXXXXXX","api_app_id":"YYYYYYYYY","event":{"type":"app_mention","user":"AAAAAAAAA","text":"<@EEEEEEEEE> hello world","client_msg_id":"477cc591-ch73-a14z-4db8-g0cd76321bec","ts":"1531431954.000073","channel":"TTTTTTTTT","event_ts":"1531431954.000073"},"type":"event_callback","event_id":"TvBP7LRED7","event_time":1531431954,"authed_users":["EEEEEEEEE"]}`
	)
	form := []string{"Content-Type", "application/x-www-form-urlencoded"}
	for _, tt := range []struct {
		name, provider, secret, url, body string
		header                            []string
		at                                int64
		kind                              string
	}{
		{"Twilio, a form", "twilio", "12345", twilioURL, twilioForm, append(form, "X-Twilio-Signature", "vOEb5UThFn24KEfnOFLQY2AE5FY="), 0, ""},
		{"Twilio, we know a port", "twilio", "12345", "https://mycompany.com:1234/myapp.php?foo=1&bar=2", twilioForm, append(form, "X-Twilio-Signature", "vOEb5UThFn24KEfnOFLQY2AE5FY="), 0, ""},
		{"Twilio, http", "twilio", "12345", "http://mycompany.com/myapp.php?foo=1&bar=2", twilioForm, append(form, "X-Twilio-Signature", "n2xBNyzSW7rfYStDtOFiFMv7qNo="), 0, ""},
		{"Twilio, JSON", "twilio", "12345", twilioURL + "&bodySHA256=" + twilioHash, twilioJSON, []string{"Content-Type", "application/json", "X-Twilio-Signature", "a9nBmqA0ju/hNViExpshrM61xv4="}, 0, ""},
		{"Twilio, JSON and only that parameter", "twilio", "12345", "https://mycompany.com/myapp.php?bodySHA256=" + twilioHash, twilioJSON, []string{"X-Twilio-Signature", "y77kIzt2vzLz71DgmJGsen2scGs="}, 0, ""},
		{"Twilio, a short form", "twilio", "12345", twilioURL, "property=value&boolean=true", []string{"X-Twilio-Signature", "NBdBDr/T/lgjI+tlgpXjKZQZs/k="}, 0, ""},
		{"Square", "square", "Ibxx_5AKakO-3qeNVR61Dw", "https://webhook.site/679a4f3a-dcfa-49ee-bac5-9d0edad886b9", squareBody, []string{"X-Square-Hmacsha256-Signature", "GF4YkrJgGBDZ9NIYbNXBnMzqb2HoL4RW/S6vkZ9/2N4="}, 0, "webhooks.test_notification"},
		{"Square, unescaped", "square", "signature-key", "https://webhook.site/webhooks", `{"data":{"type":"webhooks","id":"fake_id"}}`, []string{"X-Square-Hmacsha256-Signature", "W3FlCNk5IA3ZQ2LHTWoajvzfaDu/OwY2tNHIHC3IUOA="}, 0, ""},
		{"Square, escaped", "square", "signature-key", "https://webhook.site/webhooks", `{"data":{"type":"webhooks","id":">id<"}}`, []string{"X-Square-Hmacsha256-Signature", "Cxt7+aTi4rKgcA0bC4g9EHdVtLSDWdqccmL5MvihU4U="}, 0, ""},
		{"SendGrid", "sendgrid", "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE83T4O/n84iotIvIW4mdBgQ/7dAfSmpqIM8kF9mN1flpVKS3GRqe62gw+2fNNRaINXvVpiglSI8eNEc6wEA3F+g==", "", sendgrid + "\r\n",
			[]string{"X-Twilio-Email-Event-Webhook-Timestamp", "1600112502", "X-Twilio-Email-Event-Webhook-Signature", "MEUCIGHQVtGj+Y3LkG9fLcxf3qfI10QysgDWmMOVmxG0u6ZUAiEAyBiXDWzM+uOe5W0JuG+luQAbPIqHh89M15TluLtEZtM="}, 1600112502, "dropped"},
		{"Standard Webhooks", "standard", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "", `{"test": 2432232314}`,
			[]string{"webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek", "webhook-timestamp", "1614265330", "webhook-signature", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="}, 1614265330, ""},
		{"Svix", "svix", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "", `{"test": 2432232314}`,
			[]string{"svix-id", "msg_p5jXN8AQM9LWM0D4loKWxJek", "svix-timestamp", "1614265330", "svix-signature", "v1,bm9ldHUjKzFob2VudXRob2VodWUzMjRvdWVvdW9ldQo= v2,MzJsNDk4MzI0K2VvdSMjMTEjQEBAQDEyMzMzMzEyMwo= v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="}, 1614265330, ""},
		{"Slack, a command", "slack", "8f742231b10e8888abcd99yyyzzz85a5", "", slackBody, append(form, "X-Slack-Request-Timestamp", "1531420618", "X-Slack-Signature", "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503"), 1531420618, "slash_command"},
		{"Slack, an event", "slack", "e6b19c573432dcc6b075501d51b51bb8", "", slackEvent, []string{"X-Slack-Request-Timestamp", "1531431954", "X-Slack-Signature", "v0=adada4ed31709aef585c2580ca3267678c6a8eaeb7e0c1aca3ee57b656886b2c"}, 1531431954, "app_mention"},
		{"GitHub", "github", "It's a Secret to Everybody", "", "Hello, World!", []string{"X-Hub-Signature-256", "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"}, 0, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ep := relay.Endpoint{Provider: tt.provider, Secrets: []relay.Secret{relay.Secret(tt.secret)}}
			in := relay.Incoming{Method: "POST", PublicURL: tt.url, Header: headers(tt.header...), Body: []byte(tt.body), ReceivedAt: time.Unix(tt.at, 0)}
			v := New(Config{}).Verify(t.Context(), ep, in)
			if !v.OK || !v.Verified || v.Type != tt.kind {
				t.Errorf("verdict %+v", v)
			}
			in.Body = append([]byte(tt.body), 'x')
			wantRefusal(t, "a byte more", New(Config{}).Verify(t.Context(), ep, in))
			if tt.provider == "sendgrid" {
				in.Body = []byte(sendgrid)
				wantRefusal(t, "without the line end", New(Config{}).Verify(t.Context(), ep, in))
			}
		})
	}
}

// HubSpot's documents have these for its versions 1 and 2, which anybody can
// extend who has seen one.
func TestHubSpotsOldVersionsAreRefused(t *testing.T) {
	t.Parallel()
	ep := relay.Endpoint{Provider: "hubspot", Secrets: []relay.Secret{"yyyyyyyy-yyyy-yyyy-yyyy-yyyyyyyyyyyy"}}
	v := New(Config{}).Verify(t.Context(), ep, relay.Incoming{
		Method: "POST", PublicURL: "https://www.example.com/webhook_uri", Body: []byte(`{"example_field":"example_value"}`),
		Header: headers("X-HubSpot-Signature-Version", "v2", "X-HubSpot-Signature", "9569219f8ba981ffa6f6f16aa0f48637d35d728c7e4d93d0d52efaa512af7900"),
	})
	wantRefusal(t, "version 2", v)
}
