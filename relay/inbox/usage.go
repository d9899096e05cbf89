package inbox

import (
	"context"
	"sync"

	"github.com/posternhq/postern/relay"
)

// usage is what the apps have in the store: what it said when it was last asked,
// and what was accepted since. The zero value has nothing.
type usage struct {
	mu     sync.Mutex
	stored map[relay.AppID]relay.Usage
	asked  map[relay.AppID]relay.Usage // accepted before the store was asked that has not answered yet
	since  map[relay.AppID]relay.Usage // accepted after
}

// change lets what do something to what app has since the store was asked.
func (u *usage) change(app relay.AppID, what func(*relay.Usage)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.since == nil {
		u.since = make(map[relay.AppID]relay.Usage)
	}
	s := u.since[app]
	what(&s)
	u.since[app] = s
}

// add notes that e was accepted.
func (u *usage) add(e relay.NewEvent) {
	u.change(e.Event.App, func(s *relay.Usage) {
		s.Bytes += int64(len(e.Event.Body))
		for _, d := range e.Deliveries {
			if d.State == relay.DeliveryReady || d.State == relay.DeliveryLeased {
				s.Waiting++
			}
		}
	})
}

// wait notes that n more of app's deliveries wait, or fewer.
func (u *usage) wait(app relay.AppID, n int) {
	u.change(app, func(s *relay.Usage) { s.Waiting += n })
}

// over reports whether app has used up q.
func (u *usage) over(app relay.AppID, q relay.Quota) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	var bytes, waiting = int64(0), 0
	for _, s := range []relay.Usage{u.stored[app], u.asked[app], u.since[app]} {
		bytes, waiting = bytes+s.Bytes, waiting+s.Waiting
	}
	return q.Bytes > 0 && bytes >= q.Bytes || q.Waiting > 0 && waiting >= q.Waiting
}

// admit refuses what app has no room for. The sender tries again, and by then
// something may have been delivered or deleted.
func (b *Inbox) admit(app relay.AppID) error {
	if b.cfg.Quota == nil || !b.usage.over(app, b.cfg.Quota(app)) {
		return nil
	}
	return &relay.Error{
		Code: relay.Unavailable, Reason: "quota", Message: "the app's share of the store is used up",
	}
}

// measure asks the store what the apps have in it. What is accepted while it is
// asked may count twice until the next time, which errs on the safe side.
func (b *Inbox) measure(ctx context.Context) error {
	u := &b.usage
	u.mu.Lock()
	u.asked, u.since = u.since, nil
	u.mu.Unlock()
	all, err := b.cfg.Store.Usage(ctx)
	if err != nil {
		for app, s := range u.asked { // nobody else changes it
			u.change(app, func(now *relay.Usage) { now.Bytes, now.Waiting = now.Bytes+s.Bytes, now.Waiting+s.Waiting })
		}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.asked = nil
	if err != nil {
		return err
	}
	u.stored = make(map[relay.AppID]relay.Usage, len(all))
	for _, s := range all {
		u.stored[s.App] = s
	}
	return nil
}
