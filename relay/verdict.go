package relay

import (
	"net/http"
	"time"
)

// Incoming is a webhook as the ingress read it, before anybody trusts it.
type Incoming struct {
	Method     string
	Target     string      // path after /hooks/<app>/<endpoint> with the query, as sent: "", "/..." or "?..."
	PublicURL  string      // the whole URL the sender used
	Header     http.Header // as net/http parsed it; nobody changes it
	Body       []byte      // the sender's own bytes; nobody changes them
	RemoteIP   string
	ReceivedAt time.Time // tolerances are measured against this, not against the clock
}

// Verdict is what a provider's rules say about one Incoming.
type Verdict struct {
	OK       bool   // the webhook may be accepted
	Verified bool   // a signature was checked and holds; implies OK
	Reason   string // why it is not OK: one plain sentence, free of the sender's bytes

	// Answer, when set, is what the sender wants to hear of the relay itself: the
	// request is a handshake and no event. It may come with OK false, where the
	// sender tests that it is refused.
	Answer *Answer
	// Handshake says that the request is one, also when it failed and has no Answer.
	Handshake bool

	SentAt    time.Time // the provider's own timestamp, zero when it has none
	DedupeKey string    // the provider's delivery id, "" when it has none
	Type      string    // the provider's event type, "" when it has none
}
