package policies

import (
	"maps"
	"sync"
	"sync/atomic"

	"github.com/posternhq/postern/relay"
)

// shelf is a map by app that is read without a lock and copied when it grows, which it
// does once for each app. The zero value is empty.
type shelf[V any] struct {
	mu sync.Mutex // held while a copy is made
	m  atomic.Pointer[map[relay.AppID]V]
}

// all is the map; not to be changed.
func (s *shelf[V]) all() map[relay.AppID]V {
	if m := s.m.Load(); m != nil {
		return *m
	}
	return nil
}

// put stores what fresh makes for app, unless somebody has been faster, and returns
// what is there then.
func (s *shelf[V]) put(app relay.AppID, fresh func() V) V {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.all()
	if v, ok := old[app]; ok {
		return v
	}
	next := make(map[relay.AppID]V, len(old)+1)
	maps.Copy(next, old)
	v := fresh()
	next[app] = v
	s.m.Store(&next)
	return v
}
