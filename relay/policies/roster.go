package policies

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/relay"
)

// roster knows which agents are served, and which policy each of them decides by. The
// zero value is empty.
type roster struct {
	mu     sync.Mutex
	agents map[*agent]struct{} // guarded by mu
	news   chan struct{}       // guarded by mu; closed at the next acknowledgement, nil when nobody waits
	delays delays              // guarded by mu

	last    int64         // guarded by mu; the newest serial that was acknowledged
	slowest time.Duration // guarded by mu; how long that one took, of agents that were there before it
}

// agent is one stream that is served.
type agent struct {
	app      relay.AppID
	instance string
	joined   time.Time

	// Guarded by the roster's mu.
	unacked []*entry // sent, oldest first
	serial  int64    // that it decides by; 0: none yet
	version int64
	at      time.Time     // of the acknowledgement
	delay   time.Duration // from the change, or from when it joined, to that
	problem string        // why the newest is not what it decides by
	failed  int64         // serial that problem is about
}

func (r *roster) join(app relay.AppID, instance string, now time.Time) *agent {
	a := &agent{app: app, instance: instance, joined: now}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.agents == nil {
		r.agents = map[*agent]struct{}{}
	}
	r.agents[a] = struct{}{}
	return a
}

func (r *roster) leave(a *agent) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.agents, a)
	r.tellLocked()
}

// tellLocked wakes those that wait for acknowledgements.
func (r *roster) tellLocked() {
	if r.news != nil {
		close(r.news)
		r.news = nil
	}
}

// sending notes that e is on its way to a.
func (r *roster) sending(a *agent, e *entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(a.unacked) == maxUnacked {
		a.unacked = slices.Delete(a.unacked, 0, 1)
	}
	a.unacked = append(a.unacked, e)
}

// fail notes that a cannot be told what its policy is.
func (r *roster) fail(a *agent, problem string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a.problem = problem
	r.tellLocked()
}

// acked takes what a says. Serials that were not sent to it mean nothing.
func (r *roster) acked(a *agent, ack protocol.PolicyAck, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.IndexFunc(a.unacked, func(e *entry) bool { return e.serial == ack.Serial })
	if i < 0 {
		return
	}
	e := a.unacked[i]
	a.unacked = slices.Delete(a.unacked, 0, i+1)
	if a.problem, a.failed = shown(ack.Error), e.serial; a.problem != "" {
		r.tellLocked()
		return
	}
	since := e.since
	if a.joined.After(since) {
		since = a.joined
	}
	a.serial, a.version, a.at, a.delay = e.serial, e.edition.version.Number, now, max(0, now.Sub(since))
	r.delays.add(a.delay)
	if e.serial > r.last {
		r.last, r.slowest = e.serial, 0
	}
	if e.serial == r.last && !a.joined.After(e.since) {
		r.slowest = max(r.slowest, a.delay)
	}
	r.tellLocked()
}

// behind counts the agents that do not decide by what s has for them.
func (r *roster) behind(s *state) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.behindLocked(s, false)
}

// behindLocked is behind; with tried, without those that will not come to.
func (r *roster) behindLocked(s *state, tried bool) int {
	n := 0
	for a := range r.agents {
		target := s.entry(a.app, a.instance).serial
		if a.serial < target && !(tried && a.failed == target) {
			n++
		}
	}
	return n
}

// settle waits until every agent has what s has for it, for at most limit.
func (r *roster) settle(ctx context.Context, s *state, limit time.Duration) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		r.mu.Lock()
		if r.behindLocked(s, true) == 0 {
			r.mu.Unlock()
			return
		}
		if r.news == nil {
			r.news = make(chan struct{})
		}
		news := r.news
		r.mu.Unlock()
		select {
		case <-news:
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// view is what the roster has of one agent.
type view struct {
	app             relay.AppID
	instance        string
	serial, version int64
	at              time.Time
	delay           time.Duration
	problem         string
}

// views are sorted by app and instance; app "" is all.
func (r *roster) views(app relay.AppID) []view {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []view
	for a := range r.agents {
		if app == "" || a.app == app {
			all = append(all, view{a.app, a.instance, a.serial, a.version, a.at, a.delay, a.problem})
		}
	}
	slices.SortFunc(all, func(a, b view) int {
		return cmp.Or(cmp.Compare(a.app, b.app), cmp.Compare(a.instance, b.instance), cmp.Compare(b.serial, a.serial))
	})
	return all
}

// applied is how long the agents took for what s has; -1 while one of them has not got
// it.
func (r *roster) applied(s *state) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.behindLocked(s, false) > 0:
		return -1
	case r.last == s.serial:
		return r.slowest
	}
	return 0
}
