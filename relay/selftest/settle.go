package selftest

import (
	"context"
	"time"
)

// aftermath is how long silence must last when nothing is missing: repeats, and
// events that nobody was promised, are judged too.
const aftermath = 1500 * time.Millisecond

// Settle waits until every acknowledged event was taken and the app is left
// alone, or until nothing was delivered for quiet. refresh, when set, is called
// before each look at the ledger. The error is that of refresh or of ctx; what is
// missing is for Check to find.
func Settle(ctx context.Context, l *Ledger, quiet time.Duration, refresh func() error) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	seen, since := -1, time.Now()
	for {
		if refresh != nil {
			if err := refresh(); err != nil {
				return err
			}
		}
		if n := l.Counts().Deliveries; n != seen {
			seen, since = n, time.Now()
		}
		still := time.Since(since)
		if l.Waiting() == 0 && still >= aftermath || still >= quiet {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
