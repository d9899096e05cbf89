package egress

import (
	"sync"
	"time"
)

// proven remembers where tunnels have led to lately. A call there is told that it is
// connected before the relay has dialed, which saves a round trip; a call to anywhere
// else waits, so that the app sees a dial's error as an error, and not as a connection
// that breaks.
type proven struct {
	mu    sync.Mutex
	until map[string]time.Time // guarded by mu; by host:port; at most provenTargets
}

const (
	provenFor     = 10 * time.Minute
	provenTargets = 4096
)

func newProven() *proven { return &proven{until: map[string]time.Time{}} }

func (p *proven) has(target string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Now().Before(p.until[target])
}

// note says how a call ended that the relay has decided: reached, or refused.
func (p *proven) note(target string, reached bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !reached {
		delete(p.until, target)
		return
	}
	if len(p.until) >= provenTargets {
		clear(p.until) // each costs its next caller one round trip
	}
	p.until[target] = time.Now().Add(provenFor)
}
