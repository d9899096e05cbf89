package protocol

import (
	"io"
	"math"
	"net"
	"os"
	"sync"
	"time"
)

// chunk is the most one frame carries, so that streams take turns: a short
// answer waits for a few chunks of a bulk transfer, never for a whole window.
const chunk = 64 << 10

// muxStream is one stream of a mux. One goroutine reads while others write;
// writers take turns.
type muxStream struct {
	m  *mux
	id uint32
	// urgent frames do not wait for room in the connection's buffer. Set before
	// the stream is used; for the control stream.
	urgent bool
	// notify, when set, is called with mu held when there is something to read.
	// It must not wait. Set before the receiver runs; for the control stream.
	notify func()

	wmu sync.Mutex // held by a writer from its first frame to its last

	mu       sync.Mutex
	readable sync.Cond // of mu: bytes, an end or a deadline came
	writable sync.Cond // of mu: window, an end or a deadline came

	// Receiving; guarded by mu.
	in       recvBuffer
	want     []byte    // a blocked Read's buffer: deliver fills it directly
	got      int       // how much of want is filled
	allowed  uint32    // what the peer may still send
	granted  uint32    // the size the window is kept at
	consumed uint32    // read since the last update
	since    time.Time // of the last update
	grown    int       // taken from the budget
	eof      bool      // the peer's FIN has come
	told     bool      // it stands in the mux's ready list
	held     int       // taken from unread
	crowded  bool      // there was no room for what came; it is being reset

	// Sending; guarded by mu.
	credit   uint32 // what we may still send
	accepted bool   // the peer opened it: the first frame carries ACK, not SYN
	started  bool   // the first frame has been handed to the connection
	sending  bool   // a writer is handing a frame to the connection
	fin      bool   // our FIN has been handed over

	// The end; guarded by mu.
	closed    bool   // Reset was called here
	closeCode Code   // with what
	rstSent   bool   // the peer was told
	resetCode *Error // the peer's reset, or the loss of the session
	rd, wd    deadline
	forgotten bool // the stream was given back to the mux
}

func newMuxStream(m *mux, id uint32) *muxStream {
	s := &muxStream{m: m, id: id, allowed: initialWindow, granted: initialWindow, credit: initialWindow}
	s.readable.L, s.writable.L = &s.mu, &s.mu
	return s
}

// Read gives what has arrived, also before a reset; then io.EOF, the reset as an
// *Error, or net.ErrClosed after a Reset of our own.
func (s *muxStream) Read(p []byte) (int, error) {
	s.mu.Lock()
	n, err := s.readLocked(p)
	update := s.updateLocked(n)
	s.mu.Unlock()
	if update > 0 {
		s.m.conn.writeControl(newHeader(typeWindow, 0, s.id, update))
	}
	return n, err
}

func (s *muxStream) readLocked(p []byte) (int, error) {
	for {
		switch {
		case s.closed:
			return 0, net.ErrClosed
		case s.in.len() > 0:
			n := s.in.read(p)
			s.unbufferedLocked(n)
			return n, nil
		case s.resetCode != nil:
			return 0, s.resetCode
		case s.eof:
			return 0, io.EOF
		case s.rd.passed():
			return 0, os.ErrDeadlineExceeded
		case len(p) == 0:
			return 0, nil
		}
		s.want, s.got = p, 0
		s.readable.Wait()
		n := s.got
		s.want, s.got = nil, 0
		if n > 0 {
			return n, nil
		}
	}
}

// updateLocked counts n bytes as read and returns by how much the peer's window
// is to grow now, 0 for not yet. Half a window is given back at a time. When it
// was used up within two round trips, and the reader keeps up, the window is
// what limits the stream: it doubles.
func (s *muxStream) updateLocked(n int) uint32 {
	s.consumed += uint32(n)
	if s.consumed < s.granted/2 || s.eof || s.closed || s.resetCode != nil {
		return 0
	}
	now := time.Now()
	delta := s.consumed
	if rtt := time.Duration(s.m.rtt.Load()); rtt > 0 && !s.since.IsZero() && now.Sub(s.since) < 2*rtt &&
		s.in.len() < int(s.granted/4) && s.growLocked() {
		delta += s.granted / 2
	}
	s.consumed, s.since = 0, now
	s.allowed += delta
	return delta
}

// On a path of less than a millisecond, a MiB is more than what is under
// way; a larger window would only be filled when the reader stalls.
const (
	nearPath   = time.Millisecond
	nearWindow = 1 << 20
)

// growLocked doubles the window if the limits allow it.
func (s *muxStream) growLocked() bool {
	more, limit := s.granted, s.m.maxWindow
	if time.Duration(s.m.rtt.Load()) < nearPath {
		limit = min(limit, nearWindow)
	}
	if more > limit/2 {
		return false
	}
	if s.m.budget != nil {
		if !s.m.budget.Reserve(int(more)) {
			return false
		}
		s.grown += int(more)
	}
	s.granted += more
	return true
}

// Write sends p in chunks, waiting for the peer's window. It returns when the
// bytes are with the connection.
func (s *muxStream) Write(p []byte) (int, error) {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	for sent := 0; ; {
		n, flags, err := s.claim(len(p) - sent)
		if err != nil {
			return sent, err
		}
		h := newHeader(typeData, flags, s.id, uint32(n))
		if s.urgent {
			err = s.m.conn.appendFrame(h, p[sent:sent+n])
		} else {
			err = s.m.conn.writeFrame(h, p[sent:sent+n])
		}
		s.handedOver()
		if err != nil {
			return sent, s.lost(err)
		}
		if sent += n; sent == len(p) {
			return sent, nil
		}
	}
}

// claim takes window for one frame of at most n bytes and says what flags it
// carries. The caller hands the frame over and then calls handedOver.
func (s *muxStream) claim(n int) (int, uint16, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.closed, s.fin:
			return 0, 0, net.ErrClosed
		case s.resetCode != nil:
			return 0, 0, s.resetCode
		case s.wd.passed():
			return 0, 0, os.ErrDeadlineExceeded
		}
		if s.credit > 0 || n == 0 {
			break
		}
		s.writable.Wait()
	}
	n = min(n, chunk, int(s.credit))
	s.credit -= uint32(n)
	s.sending = true
	return n, s.firstLocked(), nil
}

// firstLocked is the flag of the stream's first frame, 0 later.
func (s *muxStream) firstLocked() uint16 {
	switch {
	case s.started:
		return 0
	case s.accepted:
		s.started = true
		return flagACK
	}
	s.started = true
	return flagSYN
}

// handedOver ends what claim began. A Reset that came in between could not tell
// the peer itself: its frame might have overtaken the one that opens the stream.
func (s *muxStream) handedOver() {
	s.mu.Lock()
	s.sending = false
	s.sendResetLocked()
	s.mu.Unlock()
}

func (s *muxStream) sendResetLocked() {
	if s.closed && !s.rstSent && !s.sending && (s.started || s.accepted) {
		s.rstSent = true
		s.m.conn.appendFrame(newHeader(typeWindow, flagRST, s.id, s.closeCode.number()), nil)
	}
}

// CloseWrite sends FIN after everything written so far.
func (s *muxStream) CloseWrite() error {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	s.mu.Lock()
	switch {
	case s.closed:
		s.mu.Unlock()
		return net.ErrClosed
	case s.resetCode != nil:
		defer s.mu.Unlock()
		return s.resetCode
	case s.fin:
		s.mu.Unlock()
		return nil
	}
	s.fin, s.sending = true, true
	flags := s.firstLocked() | flagFIN
	s.mu.Unlock()
	err := s.m.conn.writeFrame(newHeader(typeWindow, flags, s.id, 0), nil)
	s.handedOver()
	s.finish()
	if err != nil {
		return s.lost(err)
	}
	return nil
}

// Reset ends both directions at once. The peer is told, unless both had ended.
func (s *muxStream) Reset(code Code) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	over := s.resetCode != nil || s.fin && s.eof
	s.closed, s.closeCode, s.rstSent = true, code, over
	s.unbufferedLocked(s.in.len())
	s.in.release()
	s.sendResetLocked()
	s.readable.Broadcast()
	s.writable.Broadcast()
	s.rd.stop()
	s.wd.stop()
	s.mu.Unlock()
	s.finish()
	return nil
}

// finish gives the stream back to the mux once no frame for it is expected.
func (s *muxStream) finish() {
	s.mu.Lock()
	over := s.closed || s.resetCode != nil || s.fin && s.eof
	first := over && !s.forgotten
	grown := s.grown
	if first {
		s.forgotten, s.grown = true, 0
	}
	s.mu.Unlock()
	if !first {
		return
	}
	s.m.forget(s)
	if grown > 0 {
		s.m.budget.Release(grown)
	}
}

// lost is the session's end as this stream's error.
func (s *muxStream) lost(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	if s.resetCode != nil {
		return s.resetCode
	}
	return &Error{Code: CodeReset, Message: "tunnel lost", Err: err}
}

// lose ends the stream because the session is over.
func (s *muxStream) lose() {
	s.m.mu.Lock()
	err := s.m.err
	s.m.mu.Unlock()
	s.mu.Lock()
	s.notify = nil // whoever would be told ends with the session, and may be gone already
	s.mu.Unlock()
	s.endWith(&Error{Code: CodeReset, Message: "tunnel lost", Err: err})
}

func (s *muxStream) endWith(e *Error) {
	s.mu.Lock()
	if s.resetCode == nil && !(s.fin && s.eof) {
		s.resetCode = e
	}
	s.wakeReaderLocked()
	s.writable.Broadcast()
	s.rd.stop() // nobody waits any more, and a timer would keep the whole session in memory
	s.wd.stop()
	s.mu.Unlock()
	s.finish()
}

// expect checks a data frame against the window. Called by the receiver.
func (s *muxStream) expect(n uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n > s.allowed {
		return Errorf(CodeBadMessage, "stream %d sent %d bytes into a window of %d", s.id, n, s.allowed)
	}
	s.allowed -= n
	return nil
}

// deliver takes bytes that have arrived: into a waiting Read first, the rest into
// the buffer. Called by the receiver; p is not kept.
func (s *muxStream) deliver(p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.crowded {
		return
	}
	if s.in.len() == 0 && s.got < len(s.want) {
		n := copy(s.want[s.got:], p)
		s.got += n
		p = p[n:]
	}
	if len(p) > 0 && !s.bufferLocked(len(p)) {
		s.crowded = true
		go s.Reset(CodeLimit) // the receiver waits for nobody
		return
	}
	if len(p) > 0 {
		s.in.write(p)
	}
	if !s.told {
		s.told = true
		s.m.ready = append(s.m.ready, s)
	}
}

// bufferLocked takes room for n unread bytes of a stream that the peer opened; false
// when there is none. Streams of our own are bounded by whoever opens them, and the
// control stream is read at once.
func (s *muxStream) bufferLocked(n int) bool {
	if s.m.unread == nil || !s.accepted || s.urgent {
		return true
	}
	if !s.m.unread.Reserve(n) {
		return false
	}
	s.held += n
	return true
}

// unbufferedLocked gives back what bufferLocked took for n bytes.
func (s *muxStream) unbufferedLocked(n int) {
	if n = min(n, s.held); n > 0 {
		s.held -= n
		s.m.unread.Release(n)
	}
}

// wakeReader is wakeReaderLocked for the receiver.
func (s *muxStream) wakeReader() {
	s.mu.Lock()
	s.told = false
	s.wakeReaderLocked()
	s.mu.Unlock()
}

// wakeReaderLocked tells whoever reads that there is something to read.
func (s *muxStream) wakeReaderLocked() {
	s.readable.Broadcast()
	if s.notify != nil {
		s.notify()
	}
}

// watch sets notify, and calls it if there is something to read already.
func (s *muxStream) watch(notify func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notify = notify
	if s.in.len() > 0 || s.eof || s.resetCode != nil {
		notify()
	}
}

// waits reports whether a Read would wait.
func (s *muxStream) waits() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.in.len() == 0 && !s.eof && !s.closed && s.resetCode == nil
}

// window is a window update from the peer, with whatever flags it carries.
func (s *muxStream) window(flags uint16, n uint32) error {
	if flags&flagRST != 0 {
		code := codeFromNumber(n)
		s.endWith(&Error{Code: code, Message: "stream reset by the peer", Unsent: code == CodeStale})
		return nil
	}
	s.mu.Lock()
	if uint64(s.credit)+uint64(n) > math.MaxUint32 {
		s.mu.Unlock()
		return Errorf(CodeBadMessage, "stream %d was given a window beyond 32 bits", s.id)
	}
	s.credit += n
	if n > 0 {
		s.writable.Signal()
	}
	s.mu.Unlock()
	s.flags(flags)
	return nil
}

// awaitReset waits, at most so long, for the peer's reset or the end of the session
// behind an end that has come already; nil when none came.
func (s *muxStream) awaitReset(limit time.Duration) *Error {
	limit += 2 * time.Duration(s.m.rtt.Load())
	expired := false // guarded by mu
	timer := time.AfterFunc(limit, func() {
		s.mu.Lock()
		expired = true
		s.readable.Broadcast()
		s.mu.Unlock()
	})
	defer timer.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.resetCode == nil && !s.closed && !expired {
		s.readable.Wait()
	}
	return s.resetCode
}

// flags applies what a frame says besides its content.
func (s *muxStream) flags(flags uint16) {
	if flags&flagRST != 0 { // on a data frame there is no code
		s.endWith(&Error{Code: CodeReset, Message: "stream reset by the peer"})
		return
	}
	if flags&flagFIN != 0 {
		s.mu.Lock()
		s.eof = true
		s.wakeReaderLocked()
		s.mu.Unlock()
		s.finish()
	}
}

// fresh reports whether nothing has arrived and neither side has ended.
func (s *muxStream) fresh() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.in.len() == 0 && !s.eof && !s.fin && !s.closed && s.resetCode == nil
}

func (s *muxStream) setReadDeadline(t time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rd.set(t, &s.readable)
}

func (s *muxStream) setWriteDeadline(t time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wd.set(t, &s.writable)
}

// deadline wakes the waiters of a condition at a time. Its methods are called
// with the condition's lock held.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func (d *deadline) set(t time.Time, c *sync.Cond) {
	d.stop()
	d.at = t
	if t.IsZero() {
		return
	}
	wake := func() {
		c.L.Lock()
		c.Broadcast()
		c.L.Unlock()
	}
	if wait := time.Until(t); wait <= 0 {
		c.Broadcast()
	} else {
		d.timer = time.AfterFunc(wait, wake)
	}
}

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}
