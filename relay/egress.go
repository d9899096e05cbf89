package relay

import (
	"context"
	"time"

	"github.com/posternhq/postern/protocol/policy"
)

// Egress is what the manifest says of one app's calls to the outside.
type Egress struct {
	Declared bool // apps.<app>.egress is there; otherwise all calls are refused
	Mode     policy.Mode
	SNI      policy.SNIMode
	Allow    []policy.Rule
	Deny     []policy.Deny
	Limits   policy.Limits
}

// GlobalEgress is the manifest's egress section: what holds for all apps.
type GlobalEgress struct {
	Deny    []policy.Deny
	Holes   []policy.Hole
	Quotas  []policy.Quota
	Tests   []EgressTest
	Rollout Rollout
}

// EgressTest is a call of the manifest's own, judged whenever the manifest is read.
type EgressTest struct {
	App    AppID
	Target string // https://…, http://…, tcp://…
	Allow  bool   // what is expected
	Line   int

	place place // for the reader's own messages
}

// Rollout is how a new version of the manifest comes into force for calls. Zero: at
// once, for all.
type Rollout struct {
	Canary   float64       // share of the instances that get it first, above 0 to 1
	For      time.Duration // how long only they have it
	DenyRate float64       // it is rolled back when their share of refusals grows by this factor; 0: never
}

// ManifestStatus says what became of a version of the manifest.
type ManifestStatus string

// The states.
const (
	ManifestRunning    ManifestStatus = "running"     // in force; one at a time
	ManifestCanary     ManifestStatus = "canary"      // in force for a share of the instances; at most one
	ManifestReplaced   ManifestStatus = "replaced"    // a later version took over
	ManifestRolledBack ManifestStatus = "rolled_back" // taken back
)

// ManifestVersion is one text of the manifest that was applied.
type ManifestVersion struct {
	Number int64 // 1, 2, 3 …, given by the store
	Source []byte
	SHA256 string // of Source, hex

	Origin    string // file, api, rollback
	AppliedAt time.Time
	AppliedBy string // token's id and scope, or "file"
	Base      int64  // the version that was running then; 0: none

	Status  ManifestStatus
	EndedAt time.Time // when it stopped to run; zero while it does
	Note    string    // why it was taken back, or what its author says

	// Signature is the relay's own, by the key with KeyID, over Number, SHA256, Origin,
	// AppliedAt and AppliedBy.
	Signature string
	KeyID     string
}

// OrderKind is what an Order does.
type OrderKind string

// The kinds.
const (
	OrderDeny  OrderKind = "deny"  // an emergency deny: beats every allow, cuts live calls
	OrderAllow OrderKind = "allow" // an exception: one more line of an app's allow list, for a time
)

// Order changes what may leave, at once and for a time, besides the manifest.
type Order struct {
	ID     string // den_… or exc_…
	Kind   OrderKind
	App    AppID  // "": all apps; of OrderAllow never
	What   string // OrderDeny: a host pattern, an address or CIDR, or app:NAME; OrderAllow: a target such as https://api.example.com
	Reason string
	Owner  string // who is asked about it
	By     string // whose token made it

	CreatedAt time.Time
	Until     time.Time
	EndedAt   time.Time // ended before its time; zero: not
}

// Live reports whether o is in force at now.
func (o Order) Live(now time.Time) bool { return o.EndedAt.IsZero() && now.Before(o.Until) }

// AuditEntry says who did what.
type AuditEntry struct {
	ID      string // aud_…
	At      time.Time
	By      string // token's id and scope, "file", or "relay" for what happens by itself
	App     AppID  // "": the relay
	Action  string // manifest.apply, manifest.rollback, egress.deny, …
	Subject string // version 7, den_…
	Detail  string // one sentence, never a secret
}

// FlowSum adds up the calls of one app to one destination with one outcome in one
// hour.
type FlowSum struct {
	App     AppID
	Hour    time.Time // its beginning
	Form    policy.Form
	Target  string // host:port
	Method  string // of requests; "" of tunnels
	Verdict string // allow, report, deny
	Rule    string // which line decided

	Count       int64
	Failed      int64 // of the allowed ones: no answer came
	Up, Down    int64 // bytes
	First, Last time.Time
}

// EgressTarget is a host and port that an app has called.
type EgressTarget struct {
	App         AppID
	Target      string // host:port
	First, Last time.Time
}

// MaxFlowSums is how many sums one answer of Flows has at most.
const MaxFlowSums = 100_000

// FlowFilter selects sums. Zero fields select everything.
type FlowFilter struct {
	App   AppID
	Since time.Time // hours that end after it
	Until time.Time // hours that begin before it
	Limit int       // default and at most MaxFlowSums
}

// EgressStore keeps versions of the manifest, orders, what was called, and who did
// what.
type EgressStore interface {
	// AddManifest stores v with the next number, which it returns, and in the same
	// transaction gives the versions in ended the status and time that they have there.
	AddManifest(ctx context.Context, v ManifestVersion, ended ...ManifestVersion) (int64, error)
	// UpdateManifests changes Status, EndedAt, Note, Signature and KeyID of each, all or
	// none; NotFound when one is not there.
	UpdateManifests(ctx context.Context, versions ...ManifestVersion) error
	// Manifest gets one; NotFound when there is none.
	Manifest(ctx context.Context, number int64) (ManifestVersion, error)
	// Manifests lists the newest, newest first, without Source; limit 0 is 100.
	Manifests(ctx context.Context, limit int) ([]ManifestVersion, error)

	CreateOrder(ctx context.Context, o Order) error
	// EndOrder ends a live one; NotFound when there is none, Conflict when it is over.
	EndOrder(ctx context.Context, id string, now time.Time) (Order, error)
	// Orders lists those in force at now, or the newest 1000 when all is set, newest
	// first.
	Orders(ctx context.Context, now time.Time, all bool) ([]Order, error)

	// AddFlows adds the sums to what is stored, in one transaction, and returns the
	// targets of allowed calls that are new.
	AddFlows(ctx context.Context, sums []FlowSum) ([]EgressTarget, error)
	// Flows lists sums by app, target and hour.
	Flows(ctx context.Context, f FlowFilter) ([]FlowSum, error)
	// EgressTargets lists what app has ever called and was allowed to, by app and
	// target; "" is all apps.
	EgressTargets(ctx context.Context, app AppID) ([]EgressTarget, error)
	// ExpireFlows deletes sums of hours before then, at most limit, and returns how many.
	ExpireFlows(ctx context.Context, before time.Time, limit int) (int, error)

	AddAudit(ctx context.Context, e AuditEntry) error
	// Audit lists the newest first; app "" is all; limit 0 is 100, at most 1000.
	Audit(ctx context.Context, app AppID, limit int) ([]AuditEntry, error)
}
