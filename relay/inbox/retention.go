package inbox

import (
	"context"
	"time"

	"github.com/posternhq/postern/relay"
)

const (
	expireEvery = time.Minute
	expireStep  = 500 // bodies and events in one transaction
	expirePause = 20 * time.Millisecond
)

// expire deletes what is kept long enough, in small steps, until ctx ends.
func (b *Inbox) expire(ctx context.Context) {
	for ctx.Err() == nil {
		b.expireAll(ctx)
		pause(ctx, expireEvery)
	}
}

// expireAll deletes all whose time is over. It rests for as long as each step
// took, so that it never takes more than half of the store.
func (b *Inbox) expireAll(ctx context.Context) {
	var sum relay.Expired
	for ctx.Err() == nil {
		began := b.cfg.Now()
		call, cancel := context.WithTimeout(ctx, storeTimeout)
		n, err := b.cfg.Store.Expire(call, began, expireStep)
		cancel()
		if err != nil {
			if ctx.Err() == nil {
				b.cfg.Logger.Warn("old events not deleted", "error", err)
			}
			break
		}
		sum.Bodies, sum.Events, sum.GivenUp = sum.Bodies+n.Bodies, sum.Events+n.Events, sum.GivenUp+n.GivenUp
		if n.Bodies < expireStep && n.Events < expireStep {
			break
		}
		pause(ctx, max(expirePause, b.cfg.Now().Sub(began)))
	}
	if sum.Bodies > 0 || sum.Events > 0 {
		b.cfg.Logger.Info("old events deleted", "bodies", sum.Bodies, "events", sum.Events)
	}
	if sum.GivenUp > 0 {
		b.cfg.Logger.Warn("events deleted by retention that were never delivered", "deliveries", sum.GivenUp)
	}
}

// pause waits for d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
