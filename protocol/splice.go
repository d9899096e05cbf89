package protocol

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Copy buffers start small, because most streams are quiet most of the time,
// and grow while a read fills them.
const (
	smallCopy = 4 << 10
	largeCopy = 64 << 10
)

var (
	smallCopies = sync.Pool{New: func() any { return new([smallCopy]byte) }}
	largeCopies = sync.Pool{New: func() any { return new([largeCopy]byte) }}
)

func lendCopyBuffer(size int) []byte {
	if size <= smallCopy {
		return smallCopies.Get().(*[smallCopy]byte)[:]
	}
	return largeCopies.Get().(*[largeCopy]byte)[:]
}

func returnCopyBuffer(b []byte) {
	if cap(b) >= largeCopy {
		largeCopies.Put((*[largeCopy]byte)(b[:largeCopy]))
		return
	}
	smallCopies.Put((*[smallCopy]byte)(b[:smallCopy]))
}

// CopyError says which end of a copy failed.
type CopyError struct {
	Read bool // the source failed; false: the destination did
	Err  error
}

func (e *CopyError) Error() string { return e.Err.Error() }
func (e *CopyError) Unwrap() error { return e.Err }

// Copy moves bytes from src to dst as they come until src ends (nil) or an end
// fails (*CopyError). moved, when not nil, is advanced by every chunk.
func Copy(dst io.Writer, src io.Reader, moved *atomic.Int64) error {
	buf := lendCopyBuffer(smallCopy)
	defer func() { returnCopyBuffer(buf) }()
	for short := 0; ; {
		n, err := src.Read(buf)
		if n > 0 {
			if _, werr := dst.Write(buf[:n]); werr != nil {
				return &CopyError{Err: werr}
			}
			if moved != nil {
				moved.Add(int64(n))
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return &CopyError{Read: true, Err: err}
		}
		buf, short = resizeCopy(buf, n, short)
	}
}

// resizeCopy picks the buffer for the next read: the large one after a full
// read, the small one after several that hardly used the large one.
func resizeCopy(buf []byte, n, short int) ([]byte, int) {
	switch {
	case len(buf) == smallCopy && n == smallCopy:
		returnCopyBuffer(buf)
		return lendCopyBuffer(largeCopy), 0
	case len(buf) == largeCopy && n <= smallCopy/2:
		if short++; short < 4 {
			return buf, short
		}
		returnCopyBuffer(buf)
		return lendCopyBuffer(smallCopy), 0
	}
	return buf, 0
}

// Splice joins a stream and the connection behind it until both directions have
// ended, and closes both.
//
//	stream → conn   end: conn.CloseWrite         stream reset: conn is cut
//	conn → stream   end: stream.CloseWrite       conn cut: stream is reset
//	conn takes no more bytes: the other direction goes on, because an answer may
//	be on its way already; what the stream still brings is thrown away
//
// It returns the bytes moved to and from conn.
func Splice(s *Stream, conn net.Conn) (to, from int64) {
	return (&splice{stream: s, conn: conn, done: make(chan struct{})}).run()
}

// SpliceRequests is Splice for a conn behind which requests are answered in turn. A
// server closes connections that lie idle, and all of them when it stops, while the
// next request may be on its way. Once conn has ended while no byte was written to
// it since the last one it brought, it owes no answer, and what the stream still
// brings is not written any more: the stream is reset with CodeStale, and the opener
// may send the request elsewhere. The same goes for a request that was written while
// the end of conn was on its way, when taken proves that it was not taken. taken may
// be nil.
func SpliceRequests(s *Stream, conn net.Conn, taken Taken) (to, from int64) {
	t := &turns{taken: taken}
	if taken != nil {
		t.base, _ = taken()
	}
	return (&splice{stream: s, conn: conn, done: make(chan struct{}), turns: t}).run()
}

// Taken tells how many bytes the other end of a connection has acknowledged, and
// whether the connection is gone: no more will be. What was not acknowledged by then
// has reached nobody.
type Taken func() (bytes int64, gone bool)

func (sp *splice) run() (to, from int64) {
	s, conn := sp.stream, sp.conn
	go sp.toConn()
	sp.toStream()
	<-sp.done
	conn.Close()
	s.Close()
	return sp.sent.Load(), sp.received.Load()
}

// splice is one Splice under way.
type splice struct {
	stream         *Stream
	conn           net.Conn
	sent, received atomic.Int64
	broken         atomic.Bool   // conn refused bytes
	done           chan struct{} // closed when toConn has returned
	turns          *turns        // nil: bytes without a meaning
}

// turns knows whose turn it is on a connection of requests and answers.
type turns struct {
	mu       sync.Mutex
	owed     bool // guarded by mu; bytes were written since the last that were read
	ended    bool // guarded by mu; the connection has ended while it owed nothing
	upgraded bool // guarded by mu; there are no turns any more (RFC 9110, section 7.8)

	taken   Taken // nil: nobody can tell
	base    int64 // what taken said at first: some systems count the handshake
	written int64 // guarded by mu; bytes so far
	before  int64 // guarded by mu; of them, those before the request that is owed an answer

	// Owned by toStream: the search for the answer that upgrades.
	left   int            // bytes of this answer that are still searched
	tail   [markTail]byte // the last ones that were, for a mark that came in two reads
	tailed int            // how many of them there are
}

// upgradeMark is in the head of an answer after which both ends speak whenever they
// like. An answer that has it elsewhere only loses the benefit of turns.
const upgradeMark = "HTTP/1.1 101"

// markTail is how much of a mark can lie in an earlier read.
const markTail = len(upgradeMark) - 1

// searchUpgrade is how much of an answer is searched: interim ones may come first.
const searchUpgrade = 4 << 10

// search looks for the mark in the next bytes of an answer. It runs for every answer
// and keeps nothing on the heap.
func (t *turns) search(p []byte) bool {
	p = p[:min(len(p), t.left)]
	t.left -= len(p)
	var buf [2 * markTail]byte
	seam := append(buf[:0], t.tail[:t.tailed]...)
	seam = append(seam, p[:min(len(p), markTail)]...)
	found := bytes.Contains(p, []byte(upgradeMark)) || bytes.Contains(seam, []byte(upgradeMark))
	if len(p) >= markTail {
		seam = p
	}
	t.tailed = copy(t.tail[:], seam[max(0, len(seam)-markTail):])
	return found
}

var errStale = errors.New("the connection has ended before this")

// asking is the conn as toConn writes to it, answering as toStream reads from it.
type (
	asking    struct{ *splice }
	answering struct{ *splice }
)

func (a asking) Write(p []byte) (int, error) {
	a.turns.mu.Lock()
	if a.turns.ended {
		a.turns.mu.Unlock()
		return 0, errStale
	}
	if !a.turns.owed {
		a.turns.owed, a.turns.before = true, a.turns.written
	}
	a.turns.mu.Unlock()
	n, err := a.conn.Write(p)
	a.turns.mu.Lock()
	a.turns.written += int64(n)
	a.turns.mu.Unlock()
	return n, err
}

// goneTime is how long it may take until a connection that has ended is known to be
// gone: the answer of the other end's kernel to the bytes that came too late.
const goneTime = 100 * time.Millisecond

// untaken reports whether it is certain, now that the connection has ended, that
// nothing of the request that is owed an answer was taken.
func (t *turns) untaken() bool {
	t.mu.Lock()
	owed, before := t.owed && !t.upgraded, t.before
	t.mu.Unlock()
	if !owed || t.taken == nil {
		return false
	}
	for wait := time.Millisecond; wait < goneTime; wait *= 2 {
		if bytes, gone := t.taken(); gone {
			return bytes == t.base+before
		}
		time.Sleep(wait)
	}
	return false
}

func (a answering) Read(p []byte) (int, error) {
	n, err := a.conn.Read(p)
	if n == 0 && err == nil {
		return n, err
	}
	t := a.turns
	t.mu.Lock()
	if n > 0 && !t.upgraded {
		if t.owed {
			t.left, t.tailed = searchUpgrade, 0
		}
		t.owed = false
		t.upgraded = t.left > 0 && t.search(p[:n])
	}
	if err == io.EOF && !t.owed && !t.upgraded {
		t.ended = true
	}
	t.mu.Unlock()
	return n, err
}

// toConn moves the stream's bytes to conn.
func (sp *splice) toConn() {
	defer close(sp.done)
	var to io.Writer = sp.conn
	if sp.turns != nil {
		to = asking{sp}
	}
	err := Copy(to, sp.stream, &sp.sent)
	var failed *CopyError
	switch {
	case errors.Is(err, errStale):
		sp.stream.Reset(CodeStale)
	case err == nil:
		closeWrite(sp.conn)
	case errors.As(err, &failed) && !failed.Read:
		sp.broken.Store(true)
		sp.stream.discard()
	default:
		// The opener has gone: whatever is behind conn shall notice, also when
		// it would take a half-close for a pause.
		cut(sp.conn)
	}
}

// toStream moves conn's bytes to the stream.
func (sp *splice) toStream() {
	var from io.Reader = sp.conn
	if sp.turns != nil {
		from = answering{sp}
	}
	err := Copy(sp.stream, from, &sp.received)
	var failed *CopyError
	switch {
	case err == nil && sp.turns != nil && sp.turns.untaken():
		sp.stream.Reset(CodeStale)
	case err == nil && !sp.broken.Load():
		sp.stream.CloseWrite()
	case errors.As(err, &failed) && !failed.Read:
		sp.conn.Close() // the stream is over; unblocks toConn
	case errors.Is(err, net.ErrClosed):
		// toConn cut it
	default:
		// Also an end after broken: the kernel reports a reset once, and when the
		// writer has had it the reader is told of an end that was none.
		sp.stream.Reset(CodeReset)
	}
}

// closeWrite ends the direction towards conn, or conn when it has none.
func closeWrite(conn net.Conn) {
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
		return
	}
	conn.Close()
}

// cut closes conn so that its other end sees an abort and not an end, where
// that can be told (TCP: RST instead of FIN).
func cut(conn net.Conn) {
	if tcp, ok := conn.(interface{ SetLinger(sec int) error }); ok {
		tcp.SetLinger(0)
	}
	conn.Close()
}
