package auth

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/posternhq/postern/relay"
)

// loadTimeout bounds one question to the store, so that a store that hangs
// delays the next try and nothing else.
const loadTimeout = 5 * time.Second

// RevocationsConfig configures Revocations. Tokens is required.
type RevocationsConfig struct {
	Tokens relay.TokenStore
	Every  time.Duration    // between refreshes by Run; default one second
	Now    func() time.Time // default time.Now
	Logger *slog.Logger     // default slog.Default()
}

// Revocations is the set of revoked tokens that have not expired, kept in
// memory so that no check waits for the store. `token revoke` is another
// process: Run notices it within Every. While the store fails, the last known
// set stays in force.
//
// Nothing is known before the first Load or refresh has succeeded, and until
// then a Verifier accepts no token at all.
type Revocations struct {
	tokens relay.TokenStore
	every  time.Duration
	now    func() time.Time
	logger *slog.Logger

	mu      sync.Mutex
	loads   uint64                     // begun so far
	applied uint64                     // number of the load that revoked is from; 0: none yet
	revoked map[relay.TokenID]struct{} // replaced whole
	changed chan struct{}              // closed when an id is added, then replaced
}

// NewRevocations makes an empty set. It reads nothing yet.
func NewRevocations(cfg RevocationsConfig) *Revocations {
	if cfg.Tokens == nil {
		panic("auth: Revocations need Tokens")
	}
	if cfg.Every <= 0 {
		cfg.Every = time.Second
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Revocations{
		tokens:  cfg.Tokens,
		every:   cfg.Every,
		now:     cfg.Now,
		logger:  cfg.Logger,
		changed: make(chan struct{}),
	}
}

// Load reads the set from the store now. Call it before saying that the relay
// is ready, and after a revocation made in this process, which then holds when
// Load returns. On an error the last known set stays.
func (r *Revocations) Load(ctx context.Context) error {
	r.mu.Lock()
	r.loads++
	number := r.loads
	r.mu.Unlock()

	ids, err := r.tokens.RevokedTokens(ctx, r.now())
	if err != nil {
		return fmt.Errorf("read revoked tokens: %w", err)
	}
	r.apply(number, ids)
	return nil
}

// apply makes ids the set, unless a load that began later was faster: what that
// one read is newer.
func (r *Revocations) apply(number uint64, ids []relay.TokenID) {
	next := make(map[relay.TokenID]struct{}, len(ids))
	for _, id := range ids {
		next[id] = struct{}{}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if number < r.applied {
		return
	}
	grown := false
	for id := range next {
		if _, old := r.revoked[id]; !old {
			grown = true
			break
		}
	}
	r.applied, r.revoked = number, next
	if grown {
		close(r.changed)
		r.changed = make(chan struct{})
	}
}

// Run refreshes the set until ctx ends, and then returns nil. A failing store
// is logged when it begins to fail and when it is back.
func (r *Revocations) Run(ctx context.Context) error {
	ticker := time.NewTicker(r.every)
	defer ticker.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		err := r.refresh(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !failing:
			r.logger.Warn("cannot read revoked tokens, the last known ones stay in force", "error", err)
		case err == nil && failing:
			r.logger.Info("revoked tokens can be read again")
		}
		failing = err != nil
	}
}

func (r *Revocations) refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	return r.Load(ctx)
}

// Revoked reports whether the token is known to be revoked.
func (r *Revocations) Revoked(id relay.TokenID) bool {
	revoked, _ := r.check(id)
	return revoked
}

// check is Revoked, and whether anything is known at all.
func (r *Revocations) check(id relay.TokenID) (revoked, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, revoked = r.revoked[id]
	return revoked, r.applied > 0
}

// Changed returns a channel that is closed when a token is next revoked. To
// miss nothing, take the channel first and look at the tokens in use second:
//
//	for {
//		changed := revocations.Changed()
//		closeTunnelsWhere(revocations.Revoked)
//		select {
//		case <-changed:
//		case <-ctx.Done():
//			return
//		}
//	}
func (r *Revocations) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}
