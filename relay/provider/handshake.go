package provider

import (
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
	"unicode/utf8"

	"github.com/posternhq/postern/relay"
)

// maxChallenge bounds what a handshake may have us repeat.
const maxChallenge = 4096

// answer makes an answer to a handshake. Browsers are told not to guess its
// type: what it repeats was written by whoever asked.
func answer(status int, contentType, body string) *relay.Answer {
	a := &relay.Answer{Status: status}
	if contentType != "" {
		a.Header = []relay.Field{
			{Name: "Content-Type", Value: contentType},
			{Name: "X-Content-Type-Options", Value: "nosniff"},
			{Name: "Cache-Control", Value: "no-store"},
		}
		a.Body = []byte(body)
	}
	return a
}

// echo repeats a challenge as text.
func echo(challenge string) (*relay.Answer, string) {
	if challenge == "" || len(challenge) > maxChallenge || !utf8.ValidString(challenge) {
		return nil, "the challenge of the handshake is malformed"
	}
	return answer(http.StatusOK, "text/plain; charset=utf-8", challenge), ""
}

// later is for trouble of our own: the sender is to try again soon.
func later(reason string) relay.Verdict {
	a := answer(http.StatusServiceUnavailable, "application/json",
		`{"error":{"code":"unavailable","message":"the webhook could not be checked just now"}}`+"\n")
	a.Header = append(a.Header, relay.Field{Name: "Retry-After", Value: "5"})
	return relay.Verdict{Reason: reason, Answer: a}
}

// same compares two secrets in a time that tells neither their contents nor
// their lengths.
func same(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}

// isOneOf reports whether value is one of the secrets. All of them are compared.
func isOneOf(value string, secrets []relay.Secret) bool {
	matched := false
	for _, secret := range secrets {
		if secret != "" && same(value, secret.Reveal()) {
			matched = true
		}
	}
	return matched
}

// greetMeta answers the subscription of Facebook, Instagram and WhatsApp.
func greetMeta(r request) (*relay.Answer, string) {
	if r.in.Method != http.MethodGet {
		return nil, ""
	}
	q := query(r.in)
	if mode, ok := one(q, "hub.mode"); !ok || mode != "subscribe" {
		return nil, ""
	}
	token, ok := one(q, "hub.verify_token")
	switch {
	case r.ep.VerifyToken == "":
		return nil, "the endpoint has no verify token, so the subscription cannot be confirmed"
	case !ok || !same(token, r.ep.VerifyToken.Reveal()):
		return nil, "the verify token of the subscription is not the endpoint's"
	}
	challenge, _ := one(q, "hub.challenge")
	return echo(challenge)
}

// greetDropbox answers the check of a new address.
func greetDropbox(r request) (*relay.Answer, string) {
	challenge, ok := one(query(r.in), "challenge")
	if r.in.Method != http.MethodGet || !ok {
		return nil, ""
	}
	return echo(challenge)
}

// greetIntercom answers the check of a new address.
func greetIntercom(r request) (*relay.Answer, string) {
	if r.in.Method != http.MethodHead {
		return nil, ""
	}
	return answer(http.StatusOK, "", ""), ""
}
