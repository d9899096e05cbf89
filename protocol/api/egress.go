package api

import (
	"time"

	"github.com/posternhq/postern/protocol"
)

// The routes of calls to the outside, and of the manifest that says what may leave:
//
//	GET  /api/v1/egress/explain            → Explanation    ?app url method instance
//	GET  /api/v1/egress/flows              → FlowList       ?app target verdict limit
//	GET  /api/v1/egress/flows/stream       → server-sent events, each a protocol.Flow   ?app
//	GET  /api/v1/egress/targets            → TargetList     ?app
//	GET  /api/v1/egress/usage              → UsageList      ?app since
//	GET  /api/v1/egress/learn              → Learned        ?app since
//	GET  /api/v1/egress/status             → EgressStatus   ?app
//	GET  /api/v1/egress/orders             → OrderList      ?all
//	POST /api/v1/egress/orders             OrderRequest → Order      administrators
//	POST /api/v1/egress/orders/{id}/end    → Order                   administrators
//	GET  /api/v1/manifest                  → ManifestVersion with source            administrators
//	GET  /api/v1/manifest/versions         → ManifestList   ?limit                  administrators
//	GET  /api/v1/manifest/versions/{id}    → ManifestVersion with source            administrators
//	POST /api/v1/manifest/apply            ManifestRequest → ManifestVersion        administrators
//	POST /api/v1/manifest/diff             ManifestRequest → ManifestDiff           administrators
//	POST /api/v1/manifest/rollback         RollbackRequest → ManifestVersion        administrators
//	POST /api/v1/manifest/promote          → ManifestVersion                        administrators
//	GET  /api/v1/audit                     → AuditList      ?app limit              administrators
//
// What is for administrators no developer's token may. An administrator's that names
// one app makes and ends orders of that app only, reads its audit, and does not reach
// the manifest, which is all apps'. A developer sees the orders of the own app and
// those that hold for all. Without since, usage is that of a day, and learn looks at a
// week. A relay without policies answers all of these with 404.
//
// The stream has a comment every 15 s and ends with its token. It cannot be resumed,
// and what a slow reader does not take is lost.
//
// A text with mistakes is 400 with the code invalid, and all of them in
// ErrorAnswer.Error.Errors.

// Explanation says what would become of a call, and which line decides.
type Explanation struct {
	App     string `json:"app"`
	URL     string `json:"url"`
	Method  string `json:"method,omitempty"`
	Verdict string `json:"verdict"` // allow, report, deny
	Cause   string `json:"cause,omitempty"`
	Status  int    `json:"status,omitempty"` // that the app would get when it is refused
	Rule    string `json:"rule"`             // which line decides: apps.shop.egress.allow[3], default, addresses …
	Line    int    `json:"line,omitempty"`   // of the manifest
	Text    string `json:"text,omitempty"`   // that line
	Reason  string `json:"reason"`
	Via     string `json:"via,omitempty"`           // relay, direct
	OnLoss  string `json:"on_relay_loss,omitempty"` // direct, closed
	Version int64  `json:"version"`
	Mode    string `json:"mode"`
	// Suggestion is an edit of the manifest that would allow it; "" when it is allowed,
	// or when no edit should.
	Suggestion string `json:"suggestion,omitempty"`
	// Addresses are what the name leads to, each with what is said of it. A name that
	// is refused is not looked up.
	Addresses []ExplainedAddress `json:"addresses,omitempty"`
	DNSError  string             `json:"dns_error,omitempty"`
}

// ExplainedAddress is one address of a name.
type ExplainedAddress struct {
	Address string `json:"address"`
	Allowed bool   `json:"allowed"`
	Reason  string `json:"reason,omitempty"`
}

// FlowList is the latest calls, newest first.
type FlowList struct {
	Flows []protocol.Flow `json:"flows"`
}

// FlowEvent is the SSE event name of a protocol.Flow.
const FlowEvent = "flow"

// Target is a host and port that an app has called.
type Target struct {
	App       string    `json:"app"`
	Target    string    `json:"target"`
	FirstSeen time.Time `json:"first_seen"`
	LastSeen  time.Time `json:"last_seen"`
}

// TargetList is what was ever called, by app and target.
type TargetList struct {
	Targets []Target `json:"targets"`
}

// Usage adds up the calls of one app to one target by one rule.
type Usage struct {
	App     string `json:"app"`
	Team    string `json:"team,omitempty"`
	Target  string `json:"target"`
	Rule    string `json:"rule"`
	Verdict string `json:"verdict"`
	Calls   int64  `json:"calls"`
	Failed  int64  `json:"failed,omitempty"`
	Up      int64  `json:"up"`   // bytes
	Down    int64  `json:"down"` // bytes
}

// UsageList has the largest first.
type UsageList struct {
	Since      time.Time `json:"since"`
	Usage      []Usage   `json:"usage"`
	Incomplete bool      `json:"incomplete,omitempty"` // there were more records than are looked at
}

// Learned is the smallest allow list for what an app has called.
type Learned struct {
	App   string        `json:"app"`
	Since time.Time     `json:"since"`
	Rules []LearnedRule `json:"rules"`
	YAML  string        `json:"yaml"` // the rules as the manifest has them
	// Incomplete is set when there were more records than are looked at.
	Incomplete bool `json:"incomplete,omitempty"`
}

// LearnedRule is one line of it.
type LearnedRule struct {
	Target    string    `json:"target"` // https://…, http://…, tcp://…
	FirstSeen time.Time `json:"first_seen"`
	LastSeen  time.Time `json:"last_seen"`
	Calls     int64     `json:"calls"`
	Allowed   bool      `json:"allowed"` // by the running version already
}

// EgressStatus is how calls are doing.
type EgressStatus struct {
	// Started = Logged + InFlight at every moment.
	Started  int64 `json:"started"`
	Logged   int64 `json:"logged"`
	InFlight int64 `json:"in_flight"`

	Serial  int64         `json:"serial"`  // of the policies
	Version int64         `json:"version"` // of the running manifest
	Canary  int64         `json:"canary,omitempty"`
	Agents  []EgressAgent `json:"agents"`
	// AppliedMS is how long the last change took until every connected agent had it; -1
	// while one has not.
	AppliedMS float64  `json:"applied_ms"`
	Warnings  []string `json:"warnings,omitempty"` // exceptions that end soon, or have ended
}

// EgressAgent is one agent's session with its policy.
type EgressAgent struct {
	App       string    `json:"app"`
	Instance  string    `json:"instance"`
	Serial    int64     `json:"serial"` // that it decides by; 0: none yet
	Version   int64     `json:"version"`
	AppliedAt time.Time `json:"applied_at,omitzero"`
	DelayMS   float64   `json:"delay_ms"` // from the change to its acknowledgement
	Error     string    `json:"error,omitempty"`
}

// OrderRequest makes an emergency deny or an exception.
type OrderRequest struct {
	Kind   string `json:"kind"` // deny, allow
	App    string `json:"app,omitempty"`
	What   string `json:"what"`
	ForMS  int64  `json:"for_ms"`
	Reason string `json:"reason"`
	Owner  string `json:"owner,omitempty"`
}

// Order is an emergency deny or an exception.
type Order struct {
	ID        string    `json:"id"`
	Kind      string    `json:"kind"`
	App       string    `json:"app,omitempty"`
	What      string    `json:"what"`
	Reason    string    `json:"reason"`
	Owner     string    `json:"owner,omitempty"`
	By        string    `json:"by"`
	CreatedAt time.Time `json:"created_at"`
	Until     time.Time `json:"until"`
	EndedAt   time.Time `json:"ended_at,omitzero"`
	Live      bool      `json:"live"`
	Cut       int       `json:"cut,omitempty"` // live calls that it ended at the relay, when just made
}

// OrderList is newest first.
type OrderList struct {
	Orders []Order `json:"orders"`
}

// ManifestRequest is a text of the manifest to apply or to compare.
type ManifestRequest struct {
	Source string `json:"source"`
	Note   string `json:"note,omitempty"`
	// Base, when set, must be the running version: 409 otherwise.
	Base     int64 `json:"base,omitempty"`
	NoCanary bool  `json:"no_canary,omitempty"` // at once for all, whatever the rollout says
	SinceMS  int64 `json:"since_ms,omitempty"`  // of a diff: how far back the recorded calls go
}

// RollbackRequest goes back to a version.
type RollbackRequest struct {
	To   int64  `json:"to,omitempty"` // 0: ends a canary, else the version before the running one
	Note string `json:"note,omitempty"`
}

// ManifestVersion is one text of the manifest that was applied.
type ManifestVersion struct {
	Number    int64     `json:"number"`
	Status    string    `json:"status"` // running, canary, replaced, rolled_back
	Origin    string    `json:"origin"` // file, api, rollback
	AppliedAt time.Time `json:"applied_at"`
	AppliedBy string    `json:"applied_by"`
	Base      int64     `json:"base,omitempty"`
	EndedAt   time.Time `json:"ended_at,omitzero"`
	Note      string    `json:"note,omitempty"`
	SHA256    string    `json:"sha256"`
	Signature string    `json:"signature,omitempty"`
	KeyID     string    `json:"key_id,omitempty"`
	Source    string    `json:"source,omitempty"`
	Warnings  []string  `json:"warnings,omitempty"`
}

// ManifestList is newest first.
type ManifestList struct {
	Versions []ManifestVersion `json:"versions"`
}

// ManifestProblem is one thing that is wrong with the text of a manifest.
type ManifestProblem struct {
	Line    int    `json:"line"`   // from 1
	Column  int    `json:"column"` // from 1, in characters
	Message string `json:"message"`
}

// ManifestDiff says what a text would change.
type ManifestDiff struct {
	Base  int64     `json:"base"`  // the running version it was compared with
	Lines []string  `json:"lines"` // of a unified diff
	Since time.Time `json:"since,omitzero"`
	Calls int64     `json:"calls"` // recorded calls that were judged again
	Flips []Flip    `json:"flips"`
	// Incomplete is set when there were more records than are looked at.
	Incomplete bool `json:"incomplete,omitempty"`
}

// Flip is a recorded call whose verdict would change.
type Flip struct {
	App      string    `json:"app"`
	Target   string    `json:"target"`
	Method   string    `json:"method,omitempty"`
	Calls    int64     `json:"calls"`
	LastSeen time.Time `json:"last_seen"`
	From     string    `json:"from"` // allow, report, deny
	To       string    `json:"to"`
	Rule     string    `json:"rule"` // the line of the new text that decides
	Line     int       `json:"line,omitempty"`
	Reason   string    `json:"reason"`
}

// AuditEntry says who did what.
type AuditEntry struct {
	ID      string    `json:"id"`
	At      time.Time `json:"at"`
	By      string    `json:"by"`
	App     string    `json:"app,omitempty"`
	Action  string    `json:"action"`
	Subject string    `json:"subject,omitempty"`
	Detail  string    `json:"detail,omitempty"`
}

// AuditList is newest first.
type AuditList struct {
	Entries []AuditEntry `json:"entries"`
}
