package provider

import (
	"crypto/ed25519"
	"encoding/hex"
	"net/http"

	"github.com/posternhq/postern/relay"
)

const (
	discordSignature = "X-Signature-Ed25519" // hex
	discordTimestamp = "X-Signature-Timestamp"
)

// verifyDiscord checks Ed25519 over timestamp + body. The endpoint's secret is
// the application's public key in hex.
//
// Discord sends bad signatures on purpose and removes an address that does not
// answer them 401; so a refusal here must never come after an acceptance.
func verifyDiscord(r request) relay.Verdict {
	value, problem := single(r.in.Header, discordSignature)
	if problem != "" {
		return refuse("%s", problem)
	}
	stamp, problem := single(r.in.Header, discordTimestamp)
	if problem != "" {
		return refuse("%s", problem)
	}
	signature, err := hex.DecodeString(value)
	if err != nil || len(signature) != ed25519.SignatureSize {
		return refuse("the header %s is malformed", discordSignature)
	}
	message := append([]byte(stamp), r.in.Body...)
	tried, matched := 0, false
	for _, secret := range r.ep.Secrets {
		key, err := hex.DecodeString(secret.Reveal())
		if err != nil || len(key) != ed25519.PublicKeySize {
			continue
		}
		tried++
		if ed25519.Verify(key, message, signature) {
			matched = true
		}
	}
	switch {
	case tried == 0:
		return refuse("the endpoint has no public key to check with: its secret should be 64 hex digits")
	case !matched:
		return refuse("no public key matches the signature (%d tried)", tried)
	}
	return dated(r, stamp, discordTimestamp)
}

// dated is the verdict for a good signature over a time in seconds. These
// senders have no rule for its age, and their libraries check none; the endpoint
// may have one.
func dated(r request, stamp, header string) relay.Verdict {
	sentAt, ok := seconds.parse(stamp)
	if r.ep.Tolerance > 0 {
		if !ok {
			return refuse("the timestamp in %s is malformed", header)
		}
		if problem := judgeAge(sentAt, r.in.ReceivedAt, r.ep.Tolerance, false); problem != "" {
			return refuse("%s", problem)
		}
	}
	if !ok {
		return relay.Verdict{OK: true, Verified: true}
	}
	return relay.Verdict{OK: true, Verified: true, SentAt: sentAt}
}

// welcomeDiscord answers the pings of both kinds of address: those for
// interactions, and those for events.
func welcomeDiscord(r request) (*relay.Answer, string) {
	f := scan(r.in.Body, "type", "event.type")
	switch kind := f.number("type"); {
	case kind == "0":
		return answer(http.StatusNoContent, "", ""), ""
	case kind == "1" && f.text("event.type") == "": // an event is of type 1 too
		return answer(http.StatusOK, "application/json", `{"type":1}`), ""
	}
	return nil, ""
}

// interactions are Discord's names for their types.
var interactions = map[string]string{
	"2": "application_command", "3": "message_component", "4": "autocomplete", "5": "modal_submit",
}

func aboutDiscord(r request) about {
	f := scan(r.in.Body, "id", "type", "event.type", "event.timestamp")
	if kind := f.text("event.type"); kind != "" {
		a := about{kind: kind}
		if f.text("event.timestamp") != "" {
			a.id = bodyKey(r.in.Body)
		}
		return a
	}
	return about{id: f.text("id"), kind: interactions[f.number("type")]}
}
