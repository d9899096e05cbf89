package egress

import (
	"cmp"
	"context"
	"crypto/x509"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/posternhq/postern/protocol/outbound"
	"github.com/posternhq/postern/protocol/policy"
	"github.com/posternhq/postern/relay"
)

// Store keeps what Egress adds up.
type Store interface {
	AddFlows(ctx context.Context, sums []relay.FlowSum) ([]relay.EgressTarget, error)
	ExpireFlows(ctx context.Context, before time.Time, limit int) (int, error)
	Flows(ctx context.Context, f relay.FlowFilter) ([]relay.FlowSum, error)
	EgressTargets(ctx context.Context, app relay.AppID) ([]relay.EgressTarget, error)
}

// Config is what New needs.
type Config struct {
	// Policy is what an instance of an app may call now; never nil. It gives the same
	// pointer until the policy changes. Required.
	Policy func(app relay.AppID, instance string) *policy.Compiled
	// Observe is told how each call was judged, and by which version of the manifest.
	// Default: nobody is.
	Observe func(app relay.AppID, version int64, denied bool)
	Dialer  *outbound.Dialer // required
	Store   Store            // default: nothing is kept
	// Team is an app's cost centre. Default: none.
	Team func(relay.AppID) string
	// Pseudonym names this relay in Via and Proxy-Status, a token of RFC 9110. Default
	// "postern".
	Pseudonym  string
	MaxTunnels int              // open at once, of all apps together; default 20000
	Logger     *slog.Logger     // default: discards
	Now        func() time.Time // the clock that policies expire by; default time.Now

	// RootCAs verify the hosts of requests that a rule upgrades to TLS. Default: the
	// system's.
	RootCAs *x509.CertPool

	// Times that tests shorten.
	drain  time.Duration // of silence, once one direction of a tunnel has ended
	answer time.Duration // until the head of an answer comes
}

// Times of a call.
const (
	drainTime  = time.Minute
	answerTime = 5 * time.Minute
)

// Egress carries the calls of all apps to the outside. Make one with New; Run keeps
// its books.
type Egress struct {
	cfg    Config
	log    *slog.Logger
	ledger *ledger
	limits *limiter
	pools  *pools
	server *http.Server
	proxy  http.Handler // forwards a request that was let through

	draining atomic.Bool

	mu      sync.Mutex
	calls   map[*call]struct{} // guarded by mu; in flight
	started int64              // guarded by mu; = logged + len(calls) at every moment
	logged  int64              // guarded by mu
	ended   chan struct{}      // guarded by mu; closed when a call ends; nil when nobody waits
}

// New returns an Egress that carries calls at once. It starts nothing: until Run is
// called, sums are not stored.
func New(cfg Config) *Egress {
	if cfg.Policy == nil || cfg.Dialer == nil {
		panic("egress: Config needs Policy and Dialer")
	}
	cfg.Pseudonym = cmp.Or(cfg.Pseudonym, "postern")
	cfg.MaxTunnels = cmp.Or(cfg.MaxTunnels, 20000)
	cfg.drain = cmp.Or(cfg.drain, drainTime)
	cfg.answer = cmp.Or(cfg.answer, answerTime)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Observe == nil {
		cfg.Observe = func(relay.AppID, int64, bool) {}
	}
	if cfg.Team == nil {
		cfg.Team = func(relay.AppID) string { return "" }
	}
	e := &Egress{cfg: cfg, log: cfg.Logger, calls: map[*call]struct{}{}}
	e.ledger = newLedger(e)
	e.limits = newLimiter(cfg.MaxTunnels)
	e.pools = newPools(e)
	e.server = e.newServer()
	e.proxy = e.newProxy()
	return e
}

// Times of Run.
const (
	flushEvery  = time.Second
	tidyEvery   = time.Minute
	expireEvery = time.Hour
	// keepSums is how long hourly sums are kept. The history of the manifest and the
	// learning of rules look back this far at most.
	keepSums    = 40 * 24 * time.Hour
	expireSteps = 1000
	storeTime   = 10 * time.Second // for one word with the store
)

// Run stores what was added up, every second, and gives back what nobody uses any
// more. It returns nil after ctx has ended and the last sums are stored.
func (e *Egress) Run(ctx context.Context) error {
	flush, tidy, expire := time.NewTicker(flushEvery), time.NewTicker(tidyEvery), time.NewTicker(expireEvery)
	defer flush.Stop()
	defer tidy.Stop()
	defer expire.Stop()
	for {
		select {
		case <-flush.C:
			e.ledger.flush(ctx)
		case <-tidy.C:
			now := time.Now()
			e.limits.tidy(now)
			e.pools.tidy(now)
			e.ledger.tidy(now)
		case <-expire.C:
			e.expire(ctx)
		case <-ctx.Done():
			e.ledger.flush(context.WithoutCancel(ctx))
			e.pools.close()
			return nil
		}
	}
}

// expire deletes old sums in steps, so that the store is never busy with it for long.
func (e *Egress) expire(ctx context.Context) {
	if e.cfg.Store == nil {
		return
	}
	for ctx.Err() == nil {
		step, cancel := context.WithTimeout(ctx, storeTime)
		n, err := e.cfg.Store.ExpireFlows(step, e.cfg.Now().Add(-keepSums), expireSteps)
		cancel()
		if err != nil {
			e.log.Warn("old sums of calls cannot be deleted", "err", err)
			return
		}
		if n < expireSteps {
			return
		}
	}
}

// Drain refuses new calls from now on and waits until requests in flight have been
// answered, and then until tunnels have ended, or ctx does. What is left then ends
// with its session.
func (e *Egress) Drain(ctx context.Context) error {
	e.draining.Store(true)
	e.server.SetKeepAlivesEnabled(false)
	for _, form := range []policy.Form{policy.Request, policy.Tunnel} {
		if err := e.waitNone(ctx, form); err != nil {
			return err
		}
	}
	return nil
}

// waitNone waits until no call of that form is in flight.
func (e *Egress) waitNone(ctx context.Context, form policy.Form) error {
	for {
		left := 0
		e.mu.Lock()
		for c := range e.calls {
			if c.form == form {
				left++
			}
		}
		if left > 0 && e.ended == nil {
			e.ended = make(chan struct{})
		}
		ended := e.ended
		e.mu.Unlock()
		if left == 0 {
			return nil
		}
		select {
		case <-ended:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Counts has started = logged + inFlight at every moment: no call ends without its
// line in the log.
func (e *Egress) Counts() (started, logged, inFlight int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.started, e.logged, int64(len(e.calls))
}

// enter and leave keep the register of calls in flight. leave comes after the last
// line of the log was written.
func (e *Egress) enter(c *call) {
	e.mu.Lock()
	e.calls[c] = struct{}{}
	e.started++
	e.mu.Unlock()
}

func (e *Egress) leave(c *call) {
	e.mu.Lock()
	delete(e.calls, c)
	e.logged++
	if e.ended != nil {
		close(e.ended)
		e.ended = nil
	}
	e.mu.Unlock()
}

// inFlight is a copy of the register.
func (e *Egress) inFlight() []*call {
	e.mu.Lock()
	defer e.mu.Unlock()
	calls := make([]*call, 0, len(e.calls))
	for c := range e.calls {
		calls = append(calls, c)
	}
	return calls
}
