package tunnel

import (
	"sync"
	"sync/atomic"
)

// budget is an app's memory account. It implements protocol.Budget, for what
// windows grow by; a stream's first window is taken and given back by the
// registry.
type budget struct {
	mu    sync.Mutex
	used  int64 // guarded by mu
	grown int64 // guarded by mu; the part of used that windows have grown by
	limit int64
}

// growthShare is which part of its memory an app's windows may grow into. A
// window does not shrink again, and clients that stop reading after a fast start
// leave theirs full: were it not for the share, a hundred of them would hold
// their largest windows.
const growthShare = 16

// Reserve takes n bytes for a window that grows.
func (b *budget) Reserve(n int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.grown+int64(n) > b.limit/growthShare || b.used+int64(n) > b.limit {
		return false
	}
	b.used += int64(n)
	b.grown += int64(n)
	return true
}

// Release gives back what Reserve took.
func (b *budget) Release(n int) {
	b.mu.Lock()
	b.used -= int64(n)
	b.grown -= int64(n)
	b.mu.Unlock()
}

// openStream takes a stream's first window.
func (b *budget) openStream() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.used+streamCost > b.limit {
		return false
	}
	b.used += streamCost
	return true
}

// closeStream gives back what openStream took.
func (b *budget) closeStream() {
	b.mu.Lock()
	b.used -= streamCost
	b.mu.Unlock()
}

// unread bounds what is buffered of the streams that an app's agents open. It
// implements protocol.Budget, and is asked for every piece that arrives before it
// is read.
type unread struct {
	used  atomic.Int64
	limit int64
}

// unreadShare is which part of an app's memory that may be.
const unreadShare = 8

// Reserve takes room for n bytes.
func (u *unread) Reserve(n int) bool {
	if u.used.Add(int64(n)) > u.limit {
		u.used.Add(-int64(n))
		return false
	}
	return true
}

// Release gives back what Reserve took.
func (u *unread) Release(n int) { u.used.Add(-int64(n)) }
