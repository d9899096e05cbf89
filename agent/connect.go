package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/posternhq/postern/protocol"
)

// backoff is how long to wait between attempts: full jitter (a uniform draw
// below a growing bound), so that many agents do not come back in step. The
// bound starts small, because a relay that restarts is back within seconds, and
// is allowed to grow with the time it has been away.
func backoff(attempt int, away time.Duration, random float64) time.Duration {
	const base = 100 * time.Millisecond
	limit := time.Second
	switch {
	case away > 10*time.Minute:
		limit = 30 * time.Second
	case away > time.Minute:
		limit = 5 * time.Second
	}
	if grown := base << min(attempt, 12); grown < limit {
		limit = grown
	}
	return time.Duration(random * float64(limit))
}

// connect dials until there is a session. Nil, nil means that ctx ended or the
// agent stops; an error means that no attempt will ever succeed.
func (a *Agent) connect(ctx context.Context, n int) (*protocol.Session, error) {
	// A stop ends an attempt that is under way: it may be waiting for a network
	// that swallows everything. But not at once: the relay may have taken the
	// session already and be sending.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer a.onStop(func() { time.AfterFunc(stopDial, cancel) })()
	since := time.Now()
	for attempt := 0; ; attempt++ {
		sess, err := a.dial(ctx, n)
		if err == nil {
			return sess, nil
		}
		if ctx.Err() != nil || a.isStopping() {
			return nil, nil
		}
		var refused *protocol.HandshakeError
		if errors.As(err, &refused) && refused.Permanent() {
			return nil, fmt.Errorf("%w: %w", ErrGivenUp, err)
		}
		wait := backoff(attempt, time.Since(since), rand.Float64())
		// A relay that drains is replaced within seconds: its Retry-After is for
		// webhook senders.
		if refused != nil && refused.Reason != "draining" {
			wait = max(wait, min(refused.RetryAfter, 30*time.Second))
		}
		a.logFailure(n, attempt, err, wait)
		if !a.pause(ctx, wait) {
			return nil, nil
		}
	}
}

// logFailure says the first failure aloud, and then again each time the number
// of attempts has doubled: a relay that is away for a day is not a full disk.
func (a *Agent) logFailure(n, attempt int, err error, wait time.Duration) {
	what := "relay not reached, trying again"
	if errors.As(err, new(*protocol.HandshakeError)) {
		what = "relay refused the tunnel, trying again"
	}
	level := slog.LevelDebug
	if attempt&(attempt+1) == 0 && n == 0 {
		level = slog.LevelWarn
	}
	a.log.Log(context.Background(), level, what, "err", err, "attempt", attempt+1, "tunnel", n, "wait", wait.Round(time.Millisecond))
}

func (a *Agent) dial(ctx context.Context, n int) (*protocol.Session, error) {
	hello := a.cfg.Hello
	hello.Tunnel, hello.Tunnels = n, a.cfg.Tunnels
	a.mu.Lock()
	hello.State = a.state
	a.mu.Unlock()
	return protocol.Dial(ctx, protocol.DialConfig{
		Config: protocol.Config{Logger: a.log},
		URL:    a.cfg.Relay, Token: a.cfg.Token, Hello: hello, Env: a.cfg.Env, TLS: a.cfg.TLS,
	})
}

// stopDial is how long an attempt may still take once the agent stops.
const stopDial = 2 * time.Second

// onStop calls f when the agent stops, until the func it returns is called.
func (a *Agent) onStop(f func()) (forget func()) {
	over := make(chan struct{})
	go func() {
		select {
		case <-a.stop:
			f()
		case <-over:
		}
	}()
	return func() { close(over) }
}

// pause waits; false when ctx ended or the agent stops.
func (a *Agent) pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
	case <-a.stop:
	}
	return false
}
