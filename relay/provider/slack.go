package provider

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/posternhq/postern/relay"
)

// slackScheme signs "v0:" + timestamp + ":" + body.
var slackScheme = scheme{
	header: "X-Slack-Signature", prefix: "v0=", hash: sha256.New, encoding: inHex,
	signed: "v0:{timestamp}:{body}", stampHeader: "X-Slack-Request-Timestamp",
	unit: seconds, tolerance: 300 * time.Second,
}

// welcomeSlack echoes the challenge that Slack sends when the address is entered.
func welcomeSlack(r request) (*relay.Answer, string) {
	f := scan(r.in.Body, "type", "challenge")
	if f.text("type") != "url_verification" {
		return nil, ""
	}
	return echo(f.text("challenge"))
}

// aboutSlack knows events, which are JSON, and commands and interactions, which
// are forms and have no id: Slack sends those once.
func aboutSlack(r request) about {
	if isForm(r.in.Header) {
		form, err := url.ParseQuery(string(r.in.Body))
		if payload, ok := one(form, "payload"); err == nil && ok {
			return about{kind: scan([]byte(payload), "type").text("type")}
		}
		if form.Has("command") {
			return about{kind: "slash_command"}
		}
		return about{}
	}
	f := scan(r.in.Body, "event_id", "type", "event.type")
	kind := f.text("event.type")
	if kind == "" {
		kind = f.text("type")
	}
	return about{id: f.text("event_id"), kind: kind}
}

// zoomScheme is Slack's with other headers. Zoom names no tolerance; this is
// the usual one.
var zoomScheme = scheme{
	header: "X-Zm-Signature", prefix: "v0=", hash: sha256.New, encoding: inHex,
	signed: "v0:{timestamp}:{body}", stampHeader: "X-Zm-Request-Timestamp",
	unit: seconds, tolerance: 300 * time.Second,
}

// welcomeZoom proves that we have the secret, when the address is entered and
// every 72 hours after. Only a request that is signed gets this: whoever may
// choose what we sign could have us sign an event.
func welcomeZoom(r request) (*relay.Answer, string) {
	f := scan(r.in.Body, "event", "payload.plainToken")
	if f.text("event") != "endpoint.url_validation" {
		return nil, ""
	}
	c, problem := zoomScheme.read(r.in)
	if problem != "" {
		return nil, problem
	}
	secret, problem := zoomScheme.match(r, c)
	if problem != "" {
		return nil, problem
	}
	token := f.text("payload.plainToken")
	mac := hmac.New(sha256.New, []byte(secret.Reveal()))
	mac.Write([]byte(token))
	body, err := json.Marshal(map[string]string{
		"plainToken": token, "encryptedToken": hex.EncodeToString(mac.Sum(nil)),
	})
	if err != nil || len(token) > maxChallenge {
		return nil, "the challenge of the handshake is malformed"
	}
	return answer(http.StatusOK, "application/json", string(body)), ""
}

// aboutZoom takes the body for the id: Zoom sends none.
func aboutZoom(r request) about {
	f := scan(r.in.Body, "event", "event_ts")
	a := about{kind: f.text("event")}
	if f.number("event_ts") != "" {
		a.id = bodyKey(r.in.Body)
	}
	return a
}

// isForm reports whether the body is application/x-www-form-urlencoded.
func isForm(h http.Header) bool {
	kind, _, _ := strings.Cut(h.Get("Content-Type"), ";")
	return strings.EqualFold(strings.TrimSpace(kind), "application/x-www-form-urlencoded")
}
