package policy

import (
	"net/netip"
	"time"
)

// Mode is what becomes of a call that no line allows.
type Mode string

// The modes. None relaxes the rules about addresses, nor any deny.
const (
	Enforce Mode = "enforce" // refused
	Report  Mode = "report"  // let through, and reported
	Open    Mode = "open"    // let through
)

// SNIMode is which name a TLS hello in a tunnel to a host must have.
type SNIMode string

// The modes.
const (
	SNIMatch       SNIMode = "match"       // the name that was judged
	SNIAllowlisted SNIMode = "allowlisted" // that, or another that the app may call over TLS on the same port
	SNIOff         SNIMode = "off"         // it is not looked at
)

// Scheme is what a rule of the allow list lets through.
type Scheme string

// The schemes.
const (
	HTTPS Scheme = "https" // a tunnel that begins with a TLS hello
	HTTP  Scheme = "http"  // a request in clear
	TCP   Scheme = "tcp"   // a tunnel of whatever bytes
)

// Policy is what one app may do, complete: nobody has to look anywhere else to decide.
// It travels as JSON to the app's agents. It is made by the relay and never changed.
type Policy struct {
	App string `json:"app"`
	// Version is the number of the manifest it was made from; 0 without one. Serial
	// grows with every change of whatever is in it, across restarts.
	Version int64 `json:"version"`
	Serial  int64 `json:"serial"`
	// Declared is false for an app of whose calls the manifest says nothing: all are
	// refused.
	Declared bool    `json:"declared"`
	Mode     Mode    `json:"mode"`
	SNI      SNIMode `json:"sni,omitempty"` // "" is SNIMatch

	Emergency []Deny       `json:"emergency,omitempty"` // beat everything, end by themselves
	Deny      []Deny       `json:"deny,omitempty"`      // the relay's for all apps, and the app's own
	Allow     []Rule       `json:"allow,omitempty"`     // the first that fits decides
	Holes     []Hole       `json:"holes,omitempty"`     // in the rules about addresses
	Own       []netip.Addr `json:"own,omitempty"`       // the relay's addresses
	Limits    Limits       `json:"limits"`
	Quotas    []Quota      `json:"quotas,omitempty"` // those that some app shares
}

// Deny refuses names, addresses, or a whole app.
type Deny struct {
	ID    string `json:"id,omitempty"`   // of an emergency deny
	Where string `json:"where"`          // egress.deny.hosts[2], or emergency den_…
	Line  int    `json:"line,omitempty"` // in the manifest
	// One of these three.
	Host  string       `json:"host,omitempty"` // a pattern, see Rule.Host; any port and scheme
	Port  uint16       `json:"port,omitempty"` // of Host; 0: any
	Range netip.Prefix `json:"range,omitzero"` // addresses, looked up or literal
	All   bool         `json:"all,omitempty"`  // whatever this app calls

	Until  time.Time `json:"until,omitzero"` // zero: for good
	Reason string    `json:"reason,omitempty"`
}

// Rule is one line of an allow list.
type Rule struct {
	Where string `json:"where"`          // apps.shop.egress.allow[3], or exception exc_…
	Line  int    `json:"line,omitempty"` // in the manifest

	Scheme Scheme `json:"scheme"`
	// Host is a name, an address, or a pattern of whole labels: a * at the beginning
	// stands for one or more labels, one further inside for exactly one.
	Host string `json:"host"`
	Port uint16 `json:"port"`

	HTTP []HTTPRule `json:"http,omitempty"` // of requests that are seen: one must fit; none: all do

	Via         string `json:"via,omitempty"`           // "direct": the agent dials; "" is the relay
	OnRelayLoss string `json:"on_relay_loss,omitempty"` // "direct": the agent dials while there is no relay; "" refuses
	Upgrade     bool   `json:"upgrade,omitempty"`       // of http: the relay speaks TLS to the host
	Wait        bool   `json:"wait,omitempty"`          // the client is always answered after the dial
	Early       bool   `json:"early,omitempty"`         // the client is always answered before the dial; neither: where it has gone well lately
	// Intercept needs what this version does not do: calls that such a line decides
	// are refused.
	Intercept bool `json:"intercept,omitempty"`

	Expires time.Time `json:"expires,omitzero"` // the line is without effect from then on
	Owner   string    `json:"owner,omitempty"`  // who is asked about it
	Limits  Limits    `json:"limits"`
	Quota   string    `json:"quota,omitempty"` // name of a Quota that calls take from
}

// HTTPRule fits requests with one of the methods and one of the paths; an empty list
// fits all. A path ends in /** for all below it; * stands for one whole segment.
type HTTPRule struct {
	Methods []string `json:"methods,omitempty"`
	Paths   []string `json:"paths,omitempty"`
}

// Hole lets addresses through that the rules about addresses refuse.
type Hole struct {
	Where  string       `json:"where"`
	Line   int          `json:"line,omitempty"`
	Range  netip.Prefix `json:"range"`
	Ports  []uint16     `json:"ports"` // at least one
	Reason string       `json:"reason,omitempty"`
}

// Limits bound calls, of an app or of what one rule allows. Zero is without limit.
type Limits struct {
	RPS         float64 `json:"rps,omitempty"`             // requests and new tunnels a second
	Burst       int     `json:"burst,omitempty"`           // of RPS at once; default the larger of RPS and 1
	Connects    float64 `json:"connects,omitempty"`        // new tunnels a second
	Tunnels     int     `json:"tunnels,omitempty"`         // open at once, over all instances
	UploadBytes int64   `json:"upload_bytes,omitempty"`    // of one request or tunnel
	UploadHour  int64   `json:"upload_per_hour,omitempty"` // bytes, in any sixty minutes
}

// Quota is what a partner lets all apps have together. It is shared fairly: an app
// that asks for more gets what others leave.
type Quota struct {
	Name  string        `json:"name"`
	RPS   float64       `json:"rps"`
	Burst int           `json:"burst,omitempty"`
	Wait  time.Duration `json:"wait,omitempty"` // how long a call may wait for its turn
}
