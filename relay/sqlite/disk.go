package sqlite

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/posternhq/postern/relay"
)

// diskAge is how long a look at the file system counts.
const diskAge = time.Second

// disk refuses events before the disk is full: SQLite needs room to delete rows,
// and so does whoever has to make some.
type disk struct {
	dir string
	min int64 // bytes that must be left; negative: any number

	mu     sync.Mutex
	looked time.Time
	free   int64
}

// room is nil when size bytes may be added. A file system that cannot be asked
// is not full.
func (d *disk) room(size int64) error { return d.check(size, true) }

// check is room, and notes that the bytes will be added when take is set.
func (d *disk) check(size int64, take bool) error {
	if d.min < 0 {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if now := time.Now(); now.Sub(d.looked) >= diskAge {
		free, err := freeBytes(d.dir)
		if err != nil {
			return nil
		}
		d.looked, d.free = now, free
	}
	if d.free-size < d.min {
		return &relay.Error{Code: relay.Unavailable, Reason: "disk_full",
			Message: "the relay's disk is nearly full", Err: errNearlyFull}
	}
	if take {
		d.free -= size
	}
	return nil
}

// Room implements relay.EventStore.
func (s *Store) Room(_ context.Context, size int64) error { return s.disk.check(size, false) }

var errNearlyFull = errors.New("the file system has less free than the store may leave")
