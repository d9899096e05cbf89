package egress

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/posternhq/postern/protocol"
)

const (
	// journalSize is how many records wait for the relay; older ones make room.
	journalSize = 2048
	// journalRetry is how long to wait after a stream that failed.
	journalRetry = 2 * time.Second
	// journalWrite is how long the relay may leave one record standing.
	journalWrite = 10 * time.Second
	// journalLast is how long the last records may take when the proxy stops.
	journalLast = 500 * time.Millisecond
)

// journal keeps the records of calls that the relay has not seen until it has them. A
// record that was written to a stream that breaks may be lost.
type journal struct {
	open func(context.Context, protocol.Open) (*protocol.Stream, error)
	log  *slog.Logger
	wake chan struct{} // has one when there is something to send

	mu      sync.Mutex
	waiting []protocol.Flow // guarded by mu; oldest first
	dropped int             // guarded by mu; since it was last told
}

func newJournal(open func(context.Context, protocol.Open) (*protocol.Stream, error), log *slog.Logger) *journal {
	return &journal{open: open, log: log, wake: make(chan struct{}, 1)}
}

// add records f. It does not wait.
func (j *journal) add(f protocol.Flow) {
	j.mu.Lock()
	if len(j.waiting) >= journalSize {
		j.waiting = j.waiting[1:]
		j.dropped++
	}
	j.waiting = append(j.waiting, f)
	j.mu.Unlock()
	select {
	case j.wake <- struct{}{}:
	default: // the sender has not looked yet
	}
}

// run sends what there is until ctx ends.
func (j *journal) run(ctx context.Context) {
	var s *protocol.Stream
	defer func() {
		if s != nil {
			s.SetWriteDeadline(time.Now().Add(journalLast))
			j.send(s)
			s.CloseWrite()
		}
	}()
	for {
		select {
		case <-j.wake:
		case <-ctx.Done():
			return
		}
		for j.has() {
			if s == nil {
				s = j.connect(ctx)
			}
			if s != nil && j.send(s) {
				break
			}
			if s != nil {
				s.Close()
				s = nil
			}
			select {
			case <-time.After(journalRetry):
			case <-ctx.Done():
				return
			}
		}
	}
}

func (j *journal) has() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.waiting) > 0
}

// connect opens a stream of records; nil when there is none to be had.
func (j *journal) connect(ctx context.Context) *protocol.Stream {
	ctx, cancel := context.WithTimeout(ctx, replyTime)
	defer cancel()
	s, err := j.open(ctx, protocol.Open{Kind: protocol.KindFlows})
	if err == nil {
		if err = s.AwaitReply(ctx); err == nil {
			go discard(s)
			return s
		}
		s.Close()
	}
	j.log.Debug("records of calls wait for the relay", "err", err)
	return nil
}

// discard reads what the relay says, which is nothing, and so learns of its end: the
// writer must not take a stream that is over for one that takes records.
func discard(s *protocol.Stream) {
	io.Copy(io.Discard, s)
	s.Close()
}

// send sends all that waits; false when the stream failed.
func (j *journal) send(s *protocol.Stream) bool {
	for {
		j.mu.Lock()
		if j.dropped > 0 {
			j.log.Warn("records of calls dropped: too many waited for the relay", "records", j.dropped)
			j.dropped = 0
		}
		if len(j.waiting) == 0 {
			j.waiting = nil
			j.mu.Unlock()
			return true
		}
		f := j.waiting[0]
		j.waiting = j.waiting[1:]
		j.mu.Unlock()
		s.SetWriteDeadline(time.Now().Add(journalWrite))
		if protocol.WriteMessage(s, f) != nil {
			j.putBack(f)
			return false
		}
	}
}

// putBack is for a record that was not sent.
func (j *journal) putBack(f protocol.Flow) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.waiting) >= journalSize {
		j.dropped++
		return
	}
	j.waiting = append([]protocol.Flow{f}, j.waiting...)
}
