package relay

import "time"

// Mode says who answers a webhook's sender.
type Mode string

// The modes of an endpoint.
const (
	ModeStore  Mode = "store"  // verify, commit, 202; the app gets it later
	ModeSync   Mode = "sync"   // the app's own answer, or an error if it gave none
	ModeHybrid Mode = "hybrid" // commit, try the app live until the deadline, else 202
)

// Endpoint is one webhook address of an app: /hooks/<app>/<name>.
type Endpoint struct {
	App      AppID
	Name     string // 1 to 63 of a-z 0-9 - _
	Provider string // a row of relay/provider's table
	Secrets  []Secret
	Mode     Mode
	Path     string // on the app; begins with "/"

	// What only some providers have.
	HMAC        *HMACScheme   // provider "hmac": how its sender signs; nil otherwise
	VerifyToken Secret        // Meta: what hub.verify_token must be
	WebhookID   string        // PayPal: the id that its signatures cover
	Tolerance   time.Duration // how old a signed timestamp may be on arrival; 0: the provider's own rule

	OrderBy     string        // JSON pointer into the body; empty: no order is kept
	MaxInFlight int           // deliveries at the app at once; at least 1
	Rate        float64       // deliveries a second; 0: no limit
	Retry       RetryPolicy   // when to try again
	Breaker     Breaker       // when to leave a failing app alone
	Deadline    time.Duration // hybrid: how long the sender may be kept waiting; 0: the provider's, less a margin
	Resign      bool          // sign deliveries anew, with the time they are sent at
	MaxBody     int64         // bytes; larger bodies are answered 413

	// AllowUnsubscribe passes on, in the modes sync and hybrid, also those of the
	// app's answers that make this provider drop the subscription.
	AllowUnsubscribe bool

	Destinations []Destination // who else gets the events
	Redact       Redaction     // what people do not see of them
	Retention    Retention
}

// Destination finds where d goes. The app itself is the destination "", made
// of the endpoint's own limits; false means that the manifest has it no more.
func (e *Endpoint) Destination(name string) (Destination, bool) {
	if name == "" {
		return Destination{
			MaxInFlight: e.MaxInFlight, Rate: e.Rate, Retry: e.Retry, Breaker: e.Breaker, Resign: e.Resign,
		}, true
	}
	for _, d := range e.Destinations {
		if d.Name == name {
			return d, true
		}
	}
	return Destination{}, false
}

// Destination is where an endpoint's events go: to its app (Name ""), or to a
// URL besides. It never influences what the sender is answered.
type Destination struct {
	Name   string    // unique within its endpoint, written as an endpoint's name is
	URL    string    // http or https; "" is the app
	Filter Filter    // which events
	Redact Redaction // what of them it does not get
	Resign bool      // sign anew; after a redaction the sender's signature cannot hold

	MaxInFlight int // at least 1
	Rate        float64
	Retry       RetryPolicy
	Breaker     Breaker
}

// Breaker leaves an app alone that fails every time: after Failures counted
// failures in a row nothing is delivered for Pause, then one delivery probes.
// Each failed probe doubles the pause, up to MaxBreakerPause.
type Breaker struct {
	Failures int           // 0: no breaker
	Pause    time.Duration // the first pause
}

// DefaultBreaker opens after ten failures in a row, for half a minute at first.
var DefaultBreaker = Breaker{Failures: 10, Pause: 30 * time.Second}

// MaxBreakerPause bounds how long a breaker stays open before it probes again.
const MaxBreakerPause = 10 * time.Minute

// HMACScheme is how the sender of a "hmac" endpoint signs. Templates are filled
// byte by byte: {body}, {timestamp}, {id}, {method}, {url}, {path}; all else in
// them stands for itself.
type HMACScheme struct {
	Header    string // has the signature
	Prefix    string // in front of it: "sha256="; may be empty
	Separator string // between several signatures in one header; "" means one
	Algorithm string // sha1, sha256, sha384 or sha512
	Encoding  string // hex, base64 or base64url
	KeyFormat string // raw, hex or base64: how a secret becomes a key
	Signed    string // template of what is signed; "{body}" when empty

	TimestampHeader string // has the time of sending; "": none
	TimestampUnit   string // s, ms or rfc3339
	IDHeader        string // has the dedupe key; "": none
	TypeHeader      string // has the event's type; "": none
}

// Retention is how long an endpoint's events are kept.
type Retention struct {
	Bodies time.Duration // bodies and the app's answers; not before the deliveries are finished
	Events time.Duration // everything
}

// DefaultRetention is a week for bodies and a month for the rest.
var DefaultRetention = Retention{Bodies: 7 * 24 * time.Hour, Events: 30 * 24 * time.Hour}

// Defaults of an Endpoint, applied by the manifest reader.
const (
	DefaultMaxInFlight = 8
	DefaultMaxBody     = 26 << 20 // GitHub sends up to 25 MB
)

// ProviderFacts is what the relay must know of a sender besides its signature.
type ProviderFacts struct {
	Name        string        // as manifests write it
	NeedsSecret bool          // an endpoint without a secret would refuse everything
	Mode        Mode          // of an endpoint that names none
	Deadline    time.Duration // the sender gives up waiting for an answer then; 0: not known
	SignsURL    bool          // the signature covers the public URL
	Resigns     bool          // the scheme can be signed anew with the same secret
	Drops       []int         // answers that make it drop or disable the subscription
	Accepted    int           // the answer for a stored webhook; 0: 202
}

// Answer is a whole HTTP answer.
type Answer struct {
	Status int
	Header []Field
	Body   []byte
}
