package sqlite

import (
	"context"
	"sync"
	"sync/atomic"
)

// What one batch may have. Half a batch's time is the sync whatever is in it, so
// that larger ones would only make everybody wait longer.
const (
	maxBatch      = 256     // operations
	maxBatchBytes = 4 << 20 // of bodies
	othersShare   = maxBatch / 4
)

// op is one write that somebody waits for. It belongs to its caller while it
// waits in the queue and to the writer once it was taken.
type op struct {
	run    func(*tx) error // may be called again after everything it did was undone
	bytes  int64           // of bodies, roughly
	ingest bool            // goes before the others of its batch
	state  atomic.Int32
	done   chan error // has room for one
	err    error      // the writer's own note
}

// The states of an op.
const (
	opWaiting int32 = iota
	opTaken
	opWithdrawn
)

// queue is what waits for the writer.
type queue struct {
	mu     sync.Mutex
	ingest []*op
	others []*op
	closed bool
	wake   chan struct{} // has room for one
}

// do hands o to the writer and waits until it is durable, or was refused. When
// ctx ends before the writer has taken o, nothing of it happens.
func (q *queue) do(ctx context.Context, o *op) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	o.done = make(chan error, 1)
	if !q.add(o) {
		return errClosed
	}
	select {
	case err := <-o.done:
		return err
	case <-ctx.Done():
		if o.state.CompareAndSwap(opWaiting, opWithdrawn) {
			return ctx.Err()
		}
		return <-o.done
	}
}

func (q *queue) add(o *op) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false
	}
	if o.ingest {
		q.ingest = append(q.ingest, o)
	} else {
		q.others = append(q.others, o)
	}
	q.signalLocked()
	return true
}

func (q *queue) signalLocked() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// close refuses what comes from now on.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.signalLocked()
}

// look reports whether an operation waits that nobody has withdrawn, and whether
// the queue is closed.
func (q *queue) look() (waiting, closed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ingest, q.others = live(q.ingest), live(q.others)
	return len(q.ingest)+len(q.others) > 0, q.closed
}

// take moves the next batch out of the queue, ingest first. When there is more
// than a batch, a quarter of it is for the others.
func (q *queue) take() []*op {
	q.mu.Lock()
	defer q.mu.Unlock()
	room, bytes := maxBatch-min(len(q.others), othersShare), int64(0)
	var batch []*op
	q.ingest, batch = move(q.ingest, batch, room, &bytes)
	bytes = min(bytes, maxBatchBytes/2) // and so is half of the bytes
	q.others, batch = move(q.others, batch, maxBatch, &bytes)
	if len(q.ingest)+len(q.others) > 0 {
		q.signalLocked()
	}
	return batch
}

// move takes operations from the head of from until the batch has room
// operations or the bytes are too many. A batch always gets one.
func move(from, batch []*op, room int, bytes *int64) (rest, _ []*op) {
	for i, o := range from {
		if len(batch) >= room || *bytes > 0 && *bytes+o.bytes > maxBatchBytes {
			return append(from[:0], from[i:]...), batch
		}
		if o.state.CompareAndSwap(opWaiting, opTaken) {
			*bytes += o.bytes
			batch = append(batch, o)
		}
	}
	clear(from)
	return from[:0], batch
}

// live drops what was withdrawn.
func live(ops []*op) []*op {
	kept := ops[:0]
	for _, o := range ops {
		if o.state.Load() != opWithdrawn {
			kept = append(kept, o)
		}
	}
	clear(ops[len(kept):])
	return kept
}
