package egress

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/outbound"
	"github.com/posternhq/postern/protocol/policy"
)

// A direction that is idle is parked in a read into a small buffer: most tunnels are
// quiet most of the time, and there are thousands. A read that fills it is followed
// by reads into a large one, until nothing came for parkAfter.
const (
	smallBuffer = 512
	largeBuffer = 64 << 10
	parkAfter   = time.Second
)

var (
	smallBuffers = sync.Pool{New: func() any { return new([smallBuffer]byte) }}
	largeBuffers = sync.Pool{New: func() any { return new([largeBuffer]byte) }}
)

// lender is the buffer of one direction. The zero value has none; give it back with
// put.
type lender struct {
	small *[smallBuffer]byte
	large *[largeBuffer]byte
	armed time.Time // when a deadline was set for the large one; zero: none is
}

func (l *lender) get() []byte {
	switch {
	case l.large != nil:
		return l.large[:]
	case l.small == nil:
		l.small = smallBuffers.Get().(*[smallBuffer]byte)
	}
	return l.small[:]
}

func (l *lender) put() {
	if l.small != nil {
		smallBuffers.Put(l.small)
	}
	if l.large != nil {
		largeBuffers.Put(l.large)
	}
	l.small, l.large = nil, nil
}

// deadlined is what bytes are read from.
type deadlined interface {
	io.Reader
	SetReadDeadline(t time.Time) error
}

// read reads what comes next from r. The slice is good until the next call. It has
// r's read deadline for itself.
func (l *lender) read(r deadlined) ([]byte, error) {
	for {
		buf := l.get()
		n, err := r.Read(buf)
		if n == 0 && errors.Is(err, os.ErrDeadlineExceeded) && !l.armed.IsZero() {
			l.put()
			l.armed = time.Time{}
			r.SetReadDeadline(time.Time{})
			continue
		}
		data := buf[:n]
		switch full := n == len(buf); {
		case full && l.large == nil:
			l.large = largeBuffers.Get().(*[largeBuffer]byte)
			// What was read stays in the small one until the next read, which is into
			// the large one.
		case !full && l.large != nil && err == nil:
			if now := time.Now(); now.Sub(l.armed) > parkAfter/2 {
				l.armed = now
				r.SetReadDeadline(now.Add(parkAfter))
			}
		}
		return data, err
	}
}

// splice joins an app's stream and the connection to its destination until both
// directions have ended.
//
//	up    stream → conn   end: conn.CloseWrite     stream reset: conn is cut
//	down  conn → stream   end: stream.CloseWrite   conn cut: stream is reset
//	conn takes no more bytes: down goes on, because an answer may be on its way
//	already; what the stream still brings is thrown away
//	one direction has ended, and the other is silent for Config.drain: both are cut
//	more is uploaded than allowed, or Cut: both are cut
type splice struct {
	c      *call
	stream *protocol.Stream
	conn   *outbound.Conn
	// gate reads and checks the client's first bytes in up; nil: that was done.
	gate func() ([]byte, *policy.Refusal)

	mu       sync.Mutex
	half     *time.Timer // guarded by mu; runs once one direction has ended
	upOver   bool        // guarded by mu; the app's end has come
	downOver bool        // guarded by mu; down has returned
	over     bool        // guarded by mu; both have
	broken   bool        // guarded by mu; conn refused bytes
}

// run returns when both directions have ended and both ends are closed. It runs down
// itself and waits for up.
func (s *splice) run() {
	done := make(chan struct{})
	go s.up(done)
	s.down()
	s.mu.Lock()
	s.downOver = true
	watched := s.upOver
	s.mu.Unlock()
	if watched {
		s.stream.Close() // both have ended; wakes up
	}
	<-done
	s.mu.Lock()
	s.over = true
	if s.half != nil {
		s.half.Stop()
	}
	s.mu.Unlock()
	s.conn.Close()
	s.stream.Close()
}

// up moves the app's bytes to the destination.
func (s *splice) up(done chan struct{}) {
	defer close(done)
	if s.gate != nil {
		first, r := s.gate()
		if r != nil {
			s.c.cut(r)
			return
		}
		if len(first) > 0 && !s.send(first) {
			return
		}
	}
	var l lender
	defer l.put()
	for {
		data, err := l.read(s.stream)
		if len(data) > 0 && !s.send(data) {
			return
		}
		switch {
		case err == nil:
		case err == io.EOF:
			l.put()
			s.conn.CloseWrite()
			s.ended()
			s.watch()
			return
		default:
			// The app has gone: the destination shall notice, also when it would take
			// an end for a pause.
			abort(s.conn)
			return
		}
	}
}

// watch waits, after the app's end, for the end of down or a reset: an app that has
// left shall not hold the destination until that says something.
func (s *splice) watch() {
	s.mu.Lock()
	s.upOver = true
	wait := !s.downOver
	s.mu.Unlock()
	if wait && s.stream.AwaitReset(watchTime) != nil {
		abort(s.conn)
	}
}

// watchTime is longer than any answer.
const watchTime = 7 * 24 * time.Hour

// send writes bytes of the app to the destination, if its limits allow that. It
// reports whether there may be more.
func (s *splice) send(data []byte) bool {
	if s.isBroken() {
		return true
	}
	if r := s.c.lease.upload(len(data)); r != nil {
		s.c.cut(r)
		return false
	}
	n, err := s.conn.Write(data)
	s.c.up.Add(int64(n))
	if err == nil {
		return true
	}
	if errors.Is(err, net.ErrClosed) {
		return false // down closed it, or a cut
	}
	s.mu.Lock()
	s.broken = true
	s.mu.Unlock()
	return true
}

func (s *splice) isBroken() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broken
}

// down moves the destination's bytes to the app.
func (s *splice) down() {
	var l lender
	defer l.put()
	for {
		data, err := l.read(s.conn)
		if len(data) > 0 {
			s.c.firstDown()
			if _, werr := s.stream.Write(data); werr != nil {
				s.conn.Close() // the stream is over; ends up's write
				return
			}
			s.c.down.Add(int64(len(data)))
		}
		switch {
		case err == nil:
		case err == io.EOF && !s.isBroken():
			s.stream.CloseWrite()
			s.ended()
			return
		case errors.Is(err, net.ErrClosed):
			return // up aborted it, or a cut
		default:
			// Also an end after broken: the kernel reports a reset once, and when the
			// writer has had it the reader is told of an end that was none.
			s.c.edit(func(f *protocol.Flow) {
				f.Cause, f.Reason = string(policy.Cut), "the destination broke the connection off"
			})
			s.stream.Reset(protocol.CodeReset)
			return
		}
	}
}

// ended is called at the end of a direction. The other one may go on for as long as
// it moves.
func (s *splice) ended() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.half != nil || s.over {
		return
	}
	limit := s.c.e.cfg.drain
	moved := s.c.up.Load() + s.c.down.Load()
	look := func() {
		if now := s.c.up.Load() + s.c.down.Load(); now != moved {
			moved = now
			s.mu.Lock()
			if !s.over {
				s.half.Reset(limit)
			}
			s.mu.Unlock()
			return
		}
		s.c.cut(policy.NewRefusal(policy.Cut, fmt.Sprintf("one direction had ended, and the other was silent for %v", limit)))
	}
	s.half = time.AfterFunc(limit, look)
}

// abort closes conn so that its other end sees a reset and not an end.
func abort(conn *outbound.Conn) {
	conn.SetLinger(0)
	conn.Close()
}

// begin sends the app's first bytes, which were checked already.
func (s *splice) begin(first []byte) *policy.Refusal {
	if len(first) == 0 {
		return nil
	}
	if r := s.c.lease.upload(len(first)); r != nil {
		return r
	}
	n, err := s.conn.Write(first)
	s.c.up.Add(int64(n))
	if err != nil {
		s.broken = true
	}
	return nil
}
