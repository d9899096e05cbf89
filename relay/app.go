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

	// PublicURL is where the app's own platform serves it. When no agent is
	// connected, the relay requests it once, which wakes an app that sleeps. "" for
	// none.
	PublicURL string

	Ingress   Ingress
	Endpoints map[string]Endpoint // by name; from the manifest only
	Quota     Quota
	Egress    Egress
}

// Quota bounds what one app may keep in the store. Over it, webhooks are
// answered 503 and their senders try again.
type Quota struct {
	Bytes   int64 // of bodies; 0: no limit
	Waiting int   // unfinished deliveries; 0: no limit
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
