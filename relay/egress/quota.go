package egress

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/posternhq/postern/protocol/policy"
	"github.com/posternhq/postern/relay"
)

// quota is what a partner lets all apps have together: one bucket. Who finds it empty
// waits for a turn, and the turns go round the apps that wait, so that an app that
// asks for more gets what the others leave. Where calls may not wait, share does the
// same by counting.
type quota struct {
	mu      sync.Mutex
	rps     float64                   // guarded by mu
	burst   float64                   // guarded by mu
	tokens  float64                   // guarded by mu; as of at
	at      time.Time                 // guarded by mu
	waiting map[relay.AppID][]*ticket // guarded by mu; the oldest first, never an empty list
	turns   []relay.AppID             // guarded by mu; the keys of waiting, whose turn is next first
	timer   *time.Timer               // guarded by mu; grants; nil: not yet needed
	share   share                     // guarded by mu
}

// ticket is one call that waits.
type ticket struct {
	granted chan struct{} // closed with mu held
	done    bool          // guarded by quota.mu; granted, or given up
}

func newQuota(q policy.Quota, now time.Time) *quota {
	n := &quota{at: now, waiting: map[relay.AppID][]*ticket{}}
	n.setLocked(q)
	n.tokens = n.burst
	return n
}

// setLocked takes over the numbers of a policy, which may be newer than the last.
func (q *quota) setLocked(of policy.Quota) {
	q.rps = max(of.RPS, 1e-6)
	q.burst = float64(of.Burst)
	if of.Burst <= 0 {
		q.burst = max(math.Floor(of.RPS), 1)
	}
	q.tokens = min(q.tokens, q.burst)
}

func (q *quota) refillLocked(now time.Time) {
	if passed := now.Sub(q.at).Seconds(); passed > 0 {
		q.tokens = min(q.burst, q.tokens+passed*q.rps)
		q.at = now
	}
}

// take takes one call of app out of the quota. It waits for of.Wait at most, and not
// at all when it can be known that this would not do.
func (q *quota) take(ctx context.Context, app relay.AppID, of policy.Quota) *policy.Refusal {
	now := time.Now()
	q.mu.Lock()
	q.refillLocked(now)
	q.setLocked(of)
	fair := of.Wait > 0 || q.share.ask(app, now, q.rps, q.burst)
	if q.tokens >= 1 && len(q.turns) == 0 && fair {
		q.tokens--
		q.share.give(app)
		q.mu.Unlock()
		return nil
	}
	eta := q.etaLocked(app)
	if !fair {
		eta = max(eta, q.share.wait(app, q.rps))
	}
	if of.Wait <= 0 || eta > of.Wait {
		q.mu.Unlock()
		return exhausted(of, eta)
	}
	t := &ticket{granted: make(chan struct{})}
	if len(q.waiting[app]) == 0 {
		q.turns = append(q.turns, app)
	}
	q.waiting[app] = append(q.waiting[app], t)
	q.armLocked()
	q.mu.Unlock()

	timer := time.NewTimer(of.Wait)
	defer timer.Stop()
	select {
	case <-t.granted:
		return nil
	case <-timer.C:
	case <-ctx.Done():
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if t.done { // granted in this very moment
		if ctx.Err() == nil {
			return nil
		}
		q.tokens = min(q.tokens+1, q.burst)
	} else {
		q.leaveLocked(app, t)
	}
	if ctx.Err() != nil {
		return policy.NewRefusal(policy.Cut, "the call was given up while it waited for its turn")
	}
	q.refillLocked(time.Now())
	return exhausted(of, q.etaLocked(app))
}

// etaLocked is when one more call of app would have its turn, if nobody else came.
func (q *quota) etaLocked(app relay.AppID) time.Duration {
	own := len(q.waiting[app])
	ahead := own
	for other, tickets := range q.waiting {
		if other != app {
			ahead += min(len(tickets), own+1) // that many turns before ours
		}
	}
	missing := float64(ahead) + 1 - q.tokens
	return time.Duration(max(missing, 0) / q.rps * float64(time.Second))
}

// leaveLocked takes a ticket out of its line.
func (q *quota) leaveLocked(app relay.AppID, t *ticket) {
	t.done = true
	q.waiting[app] = slices.DeleteFunc(q.waiting[app], func(other *ticket) bool { return other == t })
	if len(q.waiting[app]) == 0 {
		delete(q.waiting, app)
		q.turns = slices.DeleteFunc(q.turns, func(other relay.AppID) bool { return other == app })
	}
}

// armLocked has grant called when there is a token for whoever is next.
func (q *quota) armLocked() {
	wait := time.Duration(math.Ceil(max(1-q.tokens, 0) / q.rps * float64(time.Second)))
	if q.timer == nil {
		q.timer = time.AfterFunc(wait, q.grant)
		return
	}
	q.timer.Reset(wait)
}

// grant gives the tokens that there are to the apps in turn. It runs in the timer's
// goroutine.
func (q *quota) grant() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.refillLocked(time.Now())
	for q.tokens >= 1-1e-9 && len(q.turns) > 0 {
		app := q.turns[0]
		q.turns = q.turns[1:]
		t := q.waiting[app][0]
		if q.waiting[app] = q.waiting[app][1:]; len(q.waiting[app]) == 0 {
			delete(q.waiting, app)
		} else {
			q.turns = append(q.turns, app)
		}
		q.tokens = max(q.tokens-1, 0)
		t.done = true
		close(t.granted)
	}
	if len(q.turns) > 0 {
		q.armLocked()
	}
}

// unused reports whether nothing is known that a new quota would not know.
func (q *quota) unused(now time.Time) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.refillLocked(now)
	return len(q.turns) == 0 && q.tokens >= q.burst && now.Sub(q.share.begun) > time.Hour
}

// exhausted refuses a call for which there is nothing left in time.
func exhausted(q policy.Quota, eta time.Duration) *policy.Refusal {
	message := fmt.Sprintf("the quota %s of %g calls a second is used up", q.Name, q.RPS)
	if q.Wait > 0 {
		message += fmt.Sprintf(", and a turn would take longer than %v", q.Wait)
	}
	r := policy.NewRefusal(policy.RateLimited, message)
	r.Where, r.RetryAfter = "egress.quotas."+q.Name, seconds(eta)
	return r
}

// share divides a quota among apps whose calls do not wait. It counts in windows what
// each app asks for. As long as that is more than there is, every app has a bucket of
// its own besides, which fills at the rate that it may have such that nobody gets more
// while somebody who asked for less did not get it all (max-min fairness).
type share struct {
	begun  time.Time // of the window
	window time.Duration
	last   map[relay.AppID]float64 // calls asked for in the window before
	asked  map[relay.AppID]float64 // in this one
	credit map[relay.AppID]float64 // calls that an app may make; as of at
	at     time.Time
}

// ask counts a call and reports whether it is within what app may have.
func (s *share) ask(app relay.AppID, now time.Time, rps, burst float64) bool {
	if s.asked == nil || now.Sub(s.begun) >= s.window {
		s.turn(now, rps)
	}
	s.asked[app]++
	demand := make([]float64, 0, len(s.asked)+len(s.last))
	for other, n := range s.asked {
		demand = append(demand, max(n, s.last[other]))
	}
	for other, n := range s.last {
		if s.asked[other] == 0 {
			demand = append(demand, n)
		}
	}
	passed := now.Sub(s.at).Seconds()
	s.at = now
	if len(demand) == 1 {
		return true
	}
	room := rps * s.window.Seconds()
	most := level(demand, room)
	if math.IsInf(most, 1) {
		return true
	}
	each := most / s.window.Seconds() // calls a second
	for other := range s.asked {
		credit, known := s.credit[other]
		if !known {
			credit = 1
		}
		s.credit[other] = min(credit+passed*each, max(burst*most/room, 1))
	}
	return s.credit[app] >= 1
}

// give takes the call that was asked for out of what app may have.
func (s *share) give(app relay.AppID) {
	if credit, ok := s.credit[app]; ok {
		s.credit[app] = max(credit-1, 0)
	}
}

// wait is how long it takes until app may have one more call.
func (s *share) wait(app relay.AppID, rps float64) time.Duration {
	each := rps / float64(max(len(s.asked), len(s.last), 1)) // at least
	return time.Duration(max(1-s.credit[app], 0) / each * float64(time.Second))
}

// turn begins a window. It is long enough for several calls.
func (s *share) turn(now time.Time, rps float64) {
	s.last = s.asked
	if now.Sub(s.begun) >= 2*s.window {
		s.last = nil // nobody asked meanwhile
	}
	s.asked = map[relay.AppID]float64{}
	for app := range s.credit {
		if s.last[app] == 0 {
			delete(s.credit, app)
		}
	}
	if s.credit == nil {
		s.credit = map[relay.AppID]float64{}
	}
	s.begun = now
	s.window = time.Duration(max(1, 4/rps) * float64(time.Second))
}

// level is the most that one of these may have when room is divided among them, and
// nobody gets more than it asks for.
func level(demand []float64, room float64) float64 {
	slices.Sort(demand)
	for i, d := range demand {
		equal := room / float64(len(demand)-i)
		if d >= equal {
			return equal
		}
		room -= d
	}
	return math.Inf(1) // there is enough for all
}
