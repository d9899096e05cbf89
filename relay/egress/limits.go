package egress

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/posternhq/postern/protocol/policy"
	"github.com/posternhq/postern/relay"
)

// limiter keeps every app to its limits: its own, those of the rule that lets a call
// through, and what the app leaves to others of a shared quota. All instances of an
// app count together, tunnels as well as requests.
//
// What was used belongs to an app and to what a rule lets through, not to a version of
// the policy: a new version of the manifest does not begin anew, unless it changes the
// numbers themselves.
type limiter struct {
	max int // tunnels, of all apps

	mu      sync.Mutex
	tunnels int                 // guarded by mu; open, of all apps
	meters  map[meterKey]*meter // guarded by mu
	quotas  map[string]*quota   // guarded by mu; each guards itself
}

// meterKey is an app, or one of its rules.
type meterKey struct {
	app  relay.AppID
	rule string // "": the app's own limits
}

// meter is what one meterKey uses; guarded by limiter.mu.
type meter struct {
	rates   map[rateKey]*rate.Limiter
	tunnels int // open now
	hour    *hourSum
	used    time.Time
}

// rateKey is one bucket. A changed number is another bucket.
type rateKey struct {
	connects bool // of new tunnels; false: of requests and new tunnels
	perSec   float64
	burst    int
}

func newLimiter(maxTunnels int) *limiter {
	return &limiter{max: maxTunnels, meters: map[meterKey]*meter{}, quotas: map[string]*quota{}}
}

// lease is what a call has taken. The zero value has taken nothing. upload is for one
// goroutine; release for whoever ends the call.
type lease struct {
	from   *limiter
	uses   [2]use // of the app, of the rule
	tunnel bool
	sent   int64 // owned by upload
}

// use is one meter with the limits by which it is read.
type use struct {
	meter  *meter // nil: no limits
	limits policy.Limits
	where  string // which line says so
	what   string // whose limit it is, in words
}

// admit takes what a call needs, or says which limit is reached. It waits only for a
// quota, at most as long as that says, and not longer than ctx lasts. length is what a
// request says of its body; -1: nothing.
func (l *limiter) admit(ctx context.Context, app relay.AppID, p *policy.Policy, d policy.Decision, form policy.Form, length int64) (lease, *policy.Refusal) {
	taken := lease{from: l, tunnel: form == policy.Tunnel}
	quotaName := ""
	taken.uses[0] = use{limits: p.Limits, where: "apps." + string(app) + ".egress.limits", what: "app " + string(app)}
	if d.Rule != nil {
		quotaName = d.Rule.Quota
		taken.uses[1] = use{limits: d.Rule.Limits, where: d.Rule.Where, what: ruleName(d.Rule)}
	}
	now := time.Now()
	undo, refused := l.take(&taken, app, d.Rule, length, now)
	if refused != nil {
		return lease{}, refused
	}
	if q := quotaOf(p, quotaName); q != nil {
		if refused := l.quota(*q).take(ctx, app, *q); refused != nil {
			undo()
			taken.release()
			return lease{}, refused
		}
	}
	return taken, nil
}

// take is the part of admit that does not wait. undo gives the tokens back.
func (l *limiter) take(taken *lease, app relay.AppID, rule *policy.Rule, length int64, now time.Time) (undo func(), refused *policy.Refusal) {
	undo = func() {}
	l.mu.Lock()
	defer l.mu.Unlock()
	if taken.tunnel && l.tunnels >= l.max {
		return undo, tooMany("egress", "the relay", l.max)
	}
	for i := range taken.uses {
		u := &taken.uses[i]
		if u.where == "" || u.limits == (policy.Limits{}) && !taken.tunnel {
			continue
		}
		key := meterKey{app: app}
		if i == 1 {
			key.rule = ruleName(rule)
		}
		u.meter = l.meterLocked(key, now)
		if refused := u.check(taken.tunnel, length, now); refused != nil {
			return undo, refused
		}
	}
	var got []*rate.Reservation
	undo = func() {
		for _, r := range got {
			r.CancelAt(now)
		}
	}
	for _, u := range taken.uses {
		if u.meter == nil {
			continue
		}
		for _, key := range u.rates(taken.tunnel) {
			r := u.meter.bucket(key).ReserveN(now, 1)
			if wait := r.DelayFrom(now); !r.OK() || wait > 0 {
				r.CancelAt(now)
				undo()
				return undo, tooFast(u, key, wait)
			}
			got = append(got, r)
		}
	}
	if taken.tunnel {
		l.tunnels++
		for _, u := range taken.uses {
			if u.meter != nil {
				u.meter.tunnels++
			}
		}
	}
	return undo, nil
}

func (l *limiter) meterLocked(key meterKey, now time.Time) *meter {
	m := l.meters[key]
	if m == nil {
		m = &meter{}
		l.meters[key] = m
	}
	m.used = now
	return m
}

// check looks at what is not counted in tokens.
func (u *use) check(tunnel bool, length int64, now time.Time) *policy.Refusal {
	switch {
	case tunnel && u.limits.Tunnels > 0 && u.meter.tunnels >= u.limits.Tunnels:
		return tooMany(u.where, u.what, u.limits.Tunnels)
	case u.limits.UploadBytes > 0 && length > u.limits.UploadBytes:
		return tooLarge(u)
	case u.limits.UploadHour > 0:
		free := u.limits.UploadHour - u.meter.hours().sum(now)
		if free <= 0 || length > free {
			return tooMuch(u, u.meter.hours().wait(now, u.limits.UploadHour, max(length, 1)))
		}
	}
	return nil
}

// rates are the buckets that a call takes from.
func (u *use) rates(tunnel bool) []rateKey {
	var keys []rateKey
	if u.limits.RPS > 0 {
		burst := u.limits.Burst
		if burst <= 0 {
			burst = int(max(u.limits.RPS, 1))
		}
		keys = append(keys, rateKey{perSec: u.limits.RPS, burst: burst})
	}
	if tunnel && u.limits.Connects > 0 {
		keys = append(keys, rateKey{connects: true, perSec: u.limits.Connects, burst: int(max(u.limits.Connects, 1))})
	}
	return keys
}

func (m *meter) bucket(key rateKey) *rate.Limiter {
	b := m.rates[key]
	if b == nil {
		if len(m.rates) >= maxBuckets { // the numbers were changed often
			m.rates = nil
		}
		if m.rates == nil {
			m.rates = map[rateKey]*rate.Limiter{}
		}
		b = rate.NewLimiter(rate.Limit(key.perSec), key.burst)
		m.rates[key] = b
	}
	return b
}

const maxBuckets = 16

func (m *meter) hours() *hourSum {
	if m.hour == nil {
		m.hour = &hourSum{}
	}
	return m.hour
}

// upload takes n more bytes that the app sends, or says which limit they would break.
func (t *lease) upload(n int) *policy.Refusal {
	if t.from == nil {
		return nil
	}
	t.sent += int64(n)
	hourly := false
	for i := range t.uses {
		u := &t.uses[i]
		if u.limits.UploadBytes > 0 && t.sent > u.limits.UploadBytes {
			return tooLarge(u)
		}
		hourly = hourly || u.limits.UploadHour > 0
	}
	if !hourly {
		return nil
	}
	now := time.Now()
	t.from.mu.Lock()
	defer t.from.mu.Unlock()
	for i := range t.uses {
		u := &t.uses[i]
		if u.limits.UploadHour > 0 && u.meter.hours().sum(now)+int64(n) > u.limits.UploadHour {
			return tooMuch(u, u.meter.hours().wait(now, u.limits.UploadHour, int64(n)))
		}
	}
	for i := range t.uses {
		if u := &t.uses[i]; u.limits.UploadHour > 0 {
			u.meter.hours().add(now, int64(n))
			u.meter.used = now
		}
	}
	return nil
}

// release gives back a tunnel's place.
func (t *lease) release() {
	if t.from == nil || !t.tunnel {
		return
	}
	l := t.from
	l.mu.Lock()
	defer l.mu.Unlock()
	t.tunnel = false
	l.tunnels--
	for _, u := range t.uses {
		if u.meter != nil {
			u.meter.tunnels--
		}
	}
}

// tidy forgets what was not used for longer than anything counts.
func (l *limiter) tidy(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, m := range l.meters {
		if m.tunnels == 0 && now.Sub(m.used) > 2*time.Hour {
			delete(l.meters, key)
		}
	}
	for name, q := range l.quotas {
		if q.unused(now) {
			delete(l.quotas, name)
		}
	}
}

// open is how many tunnels are open.
func (l *limiter) open() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tunnels
}

func (l *limiter) quota(q policy.Quota) *quota {
	l.mu.Lock()
	defer l.mu.Unlock()
	of := l.quotas[q.Name]
	if of == nil {
		of = newQuota(q, time.Now())
		l.quotas[q.Name] = of
	}
	return of
}

func quotaOf(p *policy.Policy, name string) *policy.Quota {
	if name == "" {
		return nil
	}
	for i := range p.Quotas {
		if p.Quotas[i].Name == name {
			return &p.Quotas[i]
		}
	}
	return nil
}

// ruleName is what a rule lets through: it stays the same when lines move.
func ruleName(r *policy.Rule) string {
	return fmt.Sprintf("%s://%s:%d", r.Scheme, r.Host, r.Port)
}

func tooMany(where, what string, limit int) *policy.Refusal {
	r := policy.NewRefusal(policy.TooMany, fmt.Sprintf("%s has %d tunnels open, as many as it may", what, limit))
	r.Where, r.RetryAfter = where, 1
	return r
}

func tooFast(u use, key rateKey, wait time.Duration) *policy.Refusal {
	of := "calls"
	if key.connects {
		of = "new tunnels"
	}
	r := policy.NewRefusal(policy.RateLimited, fmt.Sprintf("more than %g %s a second of %s", key.perSec, of, u.what))
	r.Where, r.RetryAfter = u.where, seconds(wait)
	return r
}

func tooLarge(u *use) *policy.Refusal {
	r := policy.NewRefusal(policy.TooLarge, fmt.Sprintf("more than %d bytes are sent in one call of %s", u.limits.UploadBytes, u.what))
	r.Where = u.where
	return r
}

func tooMuch(u *use, wait time.Duration) *policy.Refusal {
	r := policy.NewRefusal(policy.RateLimited, fmt.Sprintf("more than %d bytes are sent in an hour by %s", u.limits.UploadHour, u.what))
	r.Where, r.RetryAfter = u.where, seconds(wait)
	return r
}

// seconds is d for Retry-After: whole seconds, not too early, at least one.
func seconds(d time.Duration) int {
	return int(min(max(math.Ceil(d.Seconds()), 1), 24*3600))
}
