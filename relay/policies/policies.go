package policies

import (
	"context"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/posternhq/postern/protocol/policy"
	"github.com/posternhq/postern/relay"
)

// Store is what is needed of a relay.EgressStore.
type Store interface {
	AddManifest(ctx context.Context, v relay.ManifestVersion, ended ...relay.ManifestVersion) (int64, error)
	UpdateManifests(ctx context.Context, versions ...relay.ManifestVersion) error
	Manifest(ctx context.Context, number int64) (relay.ManifestVersion, error)
	Manifests(ctx context.Context, limit int) ([]relay.ManifestVersion, error)
	CreateOrder(ctx context.Context, o relay.Order) error
	EndOrder(ctx context.Context, id string, now time.Time) (relay.Order, error)
	Orders(ctx context.Context, now time.Time, all bool) ([]relay.Order, error)
	Flows(ctx context.Context, f relay.FlowFilter) ([]relay.FlowSum, error)
	AddAudit(ctx context.Context, e relay.AuditEntry) error
	Audit(ctx context.Context, app relay.AppID, limit int) ([]relay.AuditEntry, error)
}

// Config is what Policies need. Store and Parse are required.
type Config struct {
	Store Store
	// Parse reads a text of the manifest with the node's options. Its error is a
	// relay.ManifestErrors.
	Parse func(source []byte) (*relay.Manifest, error)
	// Apply puts a whole manifest in force elsewhere in the node. It is called by one
	// goroutine at a time and must not call back. Default: nothing.
	Apply func(*relay.Manifest)
	// Own are the relay's own addresses; asked at every change and every 10 s. Default:
	// none.
	Own func() []netip.Addr
	// Sign signs a version's text; see SigningText. Default: versions are not signed.
	Sign func(text []byte) (signature, keyID string, err error)
	// Agents are the connected instances. Default: those that Serve serves.
	Agents func() []relay.Instance
	// Cut ends live calls that an emergency deny covers and returns how many. Default:
	// none.
	Cut func() int

	Now    func() time.Time // default time.Now
	Logger *slog.Logger     // default discards
}

// Policies are the policies in force. Make them with New, call Load, then Run. All
// methods but Load and Run are safe for concurrent use.
type Policies struct {
	cfg Config

	state   atomic.Pointer[state] // never nil; stored by change alone
	history shelf[*history]       // refusals of late, by app
	roster  roster                // the agents that Serve serves

	// turn is held, by having put into it, while something is changed: changes come one
	// after the other, each durable before the next begins. What follows belongs to its
	// holder.
	turn   chan struct{}
	file   string          // SHA-256 of the text that the file had last; "": none is known
	warned map[string]bool // by term.key: its end was announced
	ended  map[string]bool // by term.key: it was said that it has ended

	changes, promoted, rolledBack, takenBack atomic.Int64 // for WriteMetrics
}

// New makes Policies under which nothing is declared, and starts nothing. It panics
// when a required field of cfg is missing.
func New(cfg Config) *Policies {
	if cfg.Store == nil || cfg.Parse == nil {
		panic("policies: Config lacks a required field")
	}
	if cfg.Apply == nil {
		cfg.Apply = func(*relay.Manifest) {}
	}
	if cfg.Own == nil {
		cfg.Own = func() []netip.Addr { return nil }
	}
	if cfg.Agents == nil {
		cfg.Agents = func() []relay.Instance { return nil }
	}
	if cfg.Cut == nil {
		cfg.Cut = func() int { return 0 }
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	p := &Policies{cfg: cfg, turn: make(chan struct{}, 1), warned: map[string]bool{}, ended: map[string]bool{}}
	first := &state{running: &edition{}, own: cfg.Own(), over: make(chan struct{})}
	first.stable = newTable(first.running, first, nil)
	p.state.Store(first)
	return p
}

// Of is the policy that decides about the calls of one instance of app. It is never
// nil. It takes no lock and allocates nothing, but for the first call of an app after a
// change, which compiles.
func (p *Policies) Of(app relay.AppID, instance string) *policy.Compiled {
	return p.state.Load().entry(app, instance).policy()
}

// take waits for the turn to change something.
func (p *Policies) take(ctx context.Context) error {
	select {
	case p.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return &relay.Error{Code: relay.Unavailable, Message: "another change is being made", Err: ctx.Err()}
	}
}

func (p *Policies) give() { <-p.turn }

// finishTime is how long a change may take once it has begun.
const finishTime = 15 * time.Second

// finish is a context for a change that has begun: that its author hangs up must not
// leave half of it.
func finish(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), finishTime)
}

// now has the resolution that stores keep, so that what is signed can be verified.
func (p *Policies) now() time.Time { return p.cfg.Now().UTC().Truncate(time.Millisecond) }
