package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"time"
)

// The pause before a stream is opened again grows from reconnectLeast to reconnectMost
// and is different for everybody.
const (
	reconnectLeast = 500 * time.Millisecond
	reconnectMost  = 15 * time.Second
)

// again opens a stream of the relay's again whenever it has ended. It has one user.
type again struct {
	c    *console
	wait func(ctx context.Context, d time.Duration) error

	retry    time.Duration // the least wait, when the relay said one
	lost     bool          // the user was told that the stream broke
	opened   bool          // it was open once,
	openedAt time.Time     // the last time then
}

// open notes that the stream is open, and says so when it was lost. It reports whether
// this is the first time.
func (a *again) open() (first bool) {
	first = !a.opened
	if a.lost {
		a.c.say("connected again")
	}
	a.opened, a.openedAt, a.lost = true, a.c.now(), false
	return first
}

// keep calls read, which reads the stream to its end, until ctx ends or the reader of
// the lines has gone (context.Canceled), or trying again is of no use. at, which may be
// nil, is asked about a refusal: true tries again at once.
func (a *again) keep(ctx context.Context, read func(context.Context) error, at func(*refusedError) bool) error {
	wait := reconnectLeast
	for {
		err := read(ctx)
		if ctx.Err() != nil || a.c.out.Err() != nil {
			return context.Canceled
		}
		var refused *refusedError
		isRefused := errors.As(err, &refused)
		if isRefused && at != nil && at(refused) {
			continue
		}
		// Behind a relay that starts anew there may be a proxy that says 404
		// for a while; a token that is refused will be refused.
		hopeless := isRefused && (refused.status == http.StatusUnauthorized || refused.status == http.StatusForbidden)
		if hopeless || !a.opened && !(isRefused && temporary(err)) {
			return err
		}
		// One that breaks as soon as it is open is not tried without end in haste.
		if !a.lost && a.c.now().Sub(a.openedAt) > reconnectMost {
			wait = max(a.retry, reconnectLeast)
		}
		if !errors.Is(err, errSilent) && !a.lost {
			a.lost = true
			a.c.say("lost the relay (%v); trying again", firstLine(err))
		}
		pause := wait/2 + rand.N(wait)
		if isRefused {
			pause = max(pause, refused.retryAfter)
		}
		if a.wait(ctx, pause) != nil {
			return context.Canceled
		}
		wait = min(wait*2, reconnectMost)
	}
}
