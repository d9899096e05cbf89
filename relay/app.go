package relay

import (
	"net/netip"
	"time"

	"github.com/posternhq/postern/protocol"
)

// AppID is protocol.AppID: the name of an app is the same on the wire, in the
// store and in a host name.
type AppID = protocol.AppID

// App is what the relay knows of one app. An app exists once the manifest
// declares it, a token was made for it or an agent connected for it; it stays
// known afterwards, so that a request for a sleeping app is 503 and never 404.
type App struct {
	ID        AppID
	Team      string // cost centre and metric label; may be empty
	CreatedAt time.Time

	Ingress   Ingress
	Endpoints map[string]Endpoint // by name; from the manifest only
}

// Ingress says who may reach an app from the web, and how it is spoken to.
type Ingress struct {
	Hosts    []string       // lower-case host names besides <app>.<domain>
	AllowIPs []netip.Prefix // empty: everybody
	Basic    *BasicAuth     // nil: none
	Protocol string         // "http1" (default) or "h2c"
}

// BasicAuth is the one user and password that protects an app.
type BasicAuth struct {
	User     string
	Password Secret
}

// Secret is a resolved secret value. It prints as "[secret]" in every
// formatted and structured output, so that it cannot reach a log by accident.
type Secret string

// Reveal gives the value to the one place that needs it.
func (s Secret) Reveal() string { return string(s) }

func (s Secret) String() string               { return "[secret]" }
func (s Secret) GoString() string             { return "[secret]" }
func (s Secret) MarshalText() ([]byte, error) { return []byte("[secret]"), nil }

// Mode says who answers a webhook's sender.
type Mode string

// The modes of an endpoint.
const (
	ModeStore  Mode = "store"  // verify, commit, 202; the app gets it later
	ModeSync   Mode = "sync"   // the app's own answer, or an error if it gave none
	ModeHybrid Mode = "hybrid" // commit, try the app live, else 202
)

// Endpoint is one webhook address of an app: /hooks/<app>/<name>.
type Endpoint struct {
	App      AppID
	Name     string // 1 to 63 of a-z 0-9 - _
	Provider string // a row of relay/provider's table
	Secrets  []Secret
	Mode     Mode
	Path     string // on the app; begins with "/"

	OrderBy     string  // JSON pointer into the body; empty: no order is kept
	MaxInFlight int     // deliveries at the app at once; at least 1
	Rate        float64 // deliveries a second; 0: no limit
	Retry       RetryPolicy
	Resign      bool
	MaxBody     int64 // bytes; larger bodies are answered 413
}

// Defaults of an Endpoint, applied by the manifest reader.
const (
	DefaultMaxInFlight = 8
	DefaultMaxBody     = 26 << 20 // GitHub sends up to 25 MB
)
