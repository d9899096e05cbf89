package egress

import (
	"sync"
	"time"
)

// seldom keeps the log readable: an app that calls a refused host in a loop is told of
// once in a while.
type seldom struct {
	mu   sync.Mutex
	last map[string]time.Time // guarded by mu; at most seldomKeys
}

const (
	seldomEvery = time.Minute
	seldomKeys  = 512
)

func newSeldom() *seldom { return &seldom{last: map[string]time.Time{}} }

// first reports whether key has not been told of in the last minute, and counts it as
// told of now.
func (s *seldom) first(key string) bool {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if at, ok := s.last[key]; ok && now.Sub(at) < seldomEvery {
		return false
	}
	if len(s.last) >= seldomKeys {
		clear(s.last)
	}
	s.last[key] = now
	return true
}
