package protocol

import (
	"encoding/binary"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// The multiplexer speaks yamux, version 0, and interoperates with
// hashicorp/yamux; both directions are tested. It is our own because the
// libraries' way of sending is what limits a tunnel: they hand every frame to a
// goroutine, which hands it to the connection, and each hand-over costs more
// than the copy of the bytes. Here the writer of a stream appends its frame to
// the connection's buffer and, when nobody is sending, sends it itself.
//
//	muxStream.Write → wsConn.writeFrame → sendGathered    the caller's goroutine
//	mux.run → wsConn.next → muxStream.deliver             one goroutine per session
//
// Where yamux leaves room: SYN and ACK travel on the first frame that carries
// something; a reset is a window update with RST whose length is the code; a
// reader gets what arrived before a reset, and the reset after it.
//
// Lock order: muxStream.mu, then wsConn.mu. mux.mu is never held together with
// another.

// frame types and flags (yamux, spec.md).
const (
	typeData   = 0
	typeWindow = 1 // length: by how much the receiver's window grows; with RST: the code
	typePing   = 2 // length: an opaque number
	typeGoAway = 3 // length: 0 normal, else an error

	flagSYN = 1
	flagACK = 2
	flagFIN = 4
	flagRST = 8

	headerSize    = 12
	initialWindow = 256 << 10 // what a stream may receive before the first update
	maxFrameData  = 16 << 20  // no window is larger, so no frame can be
)

// header is a frame's first bytes: version, type, flags, stream, length.
type header [headerSize]byte

func newHeader(typ byte, flags uint16, id, length uint32) (h header) {
	h[1] = typ
	binary.BigEndian.PutUint16(h[2:], flags)
	binary.BigEndian.PutUint32(h[4:], id)
	binary.BigEndian.PutUint32(h[8:], length)
	return h
}

func (h header) version() byte  { return h[0] }
func (h header) typ() byte      { return h[1] }
func (h header) flags() uint16  { return binary.BigEndian.Uint16(h[2:]) }
func (h header) stream() uint32 { return binary.BigEndian.Uint32(h[4:]) }
func (h header) length() uint32 { return binary.BigEndian.Uint32(h[8:]) }

// mux carries streams over one wsConn.
type mux struct {
	conn        *wsConn
	client      bool // opens odd streams
	maxIncoming int
	maxWindow   uint32
	budget      Budget // nil: no limit
	unread      Budget // nil: no limit; set before anything is received

	done     chan struct{} // closed when the session is over
	received chan struct{} // closed when run has returned

	// serve takes the peer's streams; it must not wait. Owned by the receiver;
	// nil before run.
	serve   func(*muxStream)
	pending []*muxStream // owned by the receiver; opened before run
	ready   []*muxStream // owned by the receiver; have bytes that nobody was told of

	rtt atomic.Int64 // the shortest round trip seen, in nanoseconds; 0 until measured

	mu       sync.Mutex
	streams  map[uint32]*muxStream // guarded by mu
	nextID   uint32                // guarded by mu
	incoming int                   // guarded by mu; streams the peer opened
	running  bool                  // guarded by mu; run was called
	away     bool                  // guarded by mu; the peer takes no new streams
	err      error                 // guarded by mu; why it is over, nil before
	pingID   uint32                // guarded by mu
	pingAt   time.Time             // guarded by mu; zero when no ping is out
}

// newMux starts nothing: somebody has to receive. During the handshake that is
// whoever waits for a message (see pump), afterwards run. An idle session costs
// one goroutine.
func newMux(conn *wsConn, client bool, maxIncoming int, maxWindow uint32, budget Budget) *mux {
	m := &mux{
		conn: conn, client: client, maxIncoming: maxIncoming, maxWindow: maxWindow, budget: budget,
		done: make(chan struct{}), received: make(chan struct{}),
		streams: map[uint32]*muxStream{}, nextID: 2,
	}
	if client {
		m.nextID = 1
	}
	conn.reader.idle = m.wakeReaders
	return m
}

// wakeReaders tells the streams' readers what has arrived. It runs when all that
// came with one read from the socket is delivered: to wake a reader costs as much
// as to copy its bytes, so each is woken once.
func (m *mux) wakeReaders() {
	for i, s := range m.ready {
		s.wakeReader()
		m.ready[i] = nil
	}
	m.ready = m.ready[:0]
	if cap(m.ready) > maxReadyKept {
		m.ready = nil
	}
}

// maxReadyKept is how long a list an idle session keeps.
const maxReadyKept = 16

// pump reads a stream by receiving for it. Only before run.
type pump struct {
	m *mux
	s *muxStream
}

func (p pump) Read(b []byte) (int, error) {
	for p.s.waits() {
		if err := p.m.receiveFrame(); err != nil {
			p.m.end(p.m.conn.cause(err))
		}
	}
	return p.s.Read(b)
}

// accept waits for the first stream that the peer opens. Only before run.
func (m *mux) accept() (*muxStream, error) {
	for len(m.pending) == 0 {
		if err := m.receiveFrame(); err != nil {
			return nil, m.conn.cause(err)
		}
	}
	s := m.pending[0]
	m.pending = m.pending[1:]
	return s, nil
}

// open makes a stream. Nothing is sent before its first byte.
func (m *mux) open() (*muxStream, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.err != nil:
		return nil, m.err
	case m.away:
		return nil, Errorf(CodeDraining, "the peer takes no new streams")
	case m.nextID > 1<<32-3:
		return nil, Errorf(CodeLimit, "the session has used up its stream numbers")
	}
	s := newMuxStream(m, m.nextID)
	m.nextID += 2
	m.streams[s.id] = s
	return s, nil
}

// forget drops a finished stream.
func (m *mux) forget(s *muxStream) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.streams[s.id] != s {
		return
	}
	delete(m.streams, s.id)
	if m.isIncoming(s.id) {
		m.incoming--
	}
}

// isIncoming reports whether the peer opens streams with this number.
func (m *mux) isIncoming(id uint32) bool { return (id%2 == 1) != m.client }

// close ends the session and every stream, and waits for the receiver if there
// is one. The first reason is kept.
func (m *mux) close(why error) {
	m.end(why)
	m.conn.Close()
	if m.isRunning() {
		<-m.received
	}
}

func (m *mux) isRunning() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.running
}

// end is close without waiting, for the receiver itself.
func (m *mux) end(why error) {
	m.mu.Lock()
	if m.err != nil {
		m.mu.Unlock()
		return
	}
	m.err = why
	streams := m.streams
	m.streams = map[uint32]*muxStream{}
	m.mu.Unlock()
	close(m.done)
	for _, s := range streams {
		s.lose()
	}
}

// ping measures the round trip; windows grow by it.
func (m *mux) ping() {
	m.mu.Lock()
	m.pingID++
	id := m.pingID
	m.pingAt = time.Now()
	m.mu.Unlock()
	m.conn.appendFrame(newHeader(typePing, flagSYN, 0, id), nil)
}

// run receives until the connection ends, handing the peer's streams to serve.
// It waits for nothing but the connection: whatever it has to send is appended
// and sent by others.
func (m *mux) run(serve func(*muxStream)) error {
	m.mu.Lock()
	m.running = true
	m.mu.Unlock()
	defer close(m.received)
	m.serve = serve
	for _, s := range m.pending {
		serve(s)
	}
	m.pending = nil
	for {
		if err := m.receiveFrame(); err != nil {
			err = m.conn.cause(err)
			m.end(err)
			m.conn.fail(err)
			return err
		}
	}
}

func (m *mux) receiveFrame() error {
	var h header
	if err := m.readFull(h[:]); err != nil {
		return err
	}
	if h.version() != 0 {
		return Errorf(CodeBadMessage, "multiplexer version %d, expected 0", h.version())
	}
	switch h.typ() {
	case typeData, typeWindow:
		return m.receiveStreamFrame(h)
	case typePing:
		m.receivePing(h)
		return nil
	case typeGoAway:
		if h.length() != 0 {
			return Errorf(CodeBadMessage, "the peer ended the session with error %d", h.length())
		}
		m.mu.Lock()
		m.away = true
		m.mu.Unlock()
		return nil
	}
	return Errorf(CodeBadMessage, "multiplexer frame of type %d", h.typ())
}

// readFull fills p; a connection that ends inside a frame is io.ErrUnexpectedEOF.
func (m *mux) readFull(p []byte) error {
	for n := 0; n < len(p); {
		in, err := m.conn.next()
		if err != nil {
			if err == io.EOF && n > 0 {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		k := copy(p[n:], in)
		m.conn.advance(k)
		n += k
	}
	return nil
}

func (m *mux) receivePing(h header) {
	if h.flags()&flagSYN != 0 {
		m.conn.appendFrame(newHeader(typePing, flagACK, 0, h.length()), nil)
		return
	}
	m.mu.Lock()
	again := false
	if !m.pingAt.IsZero() && h.length() == m.pingID {
		// The shortest one is the path's own; what is longer waited in a queue,
		// and a larger window would only make that longer.
		took := max(int64(time.Since(m.pingAt)), 1)
		if best := m.rtt.Load(); best == 0 || took < best {
			m.rtt.Store(took)
		}
		m.pingAt = time.Time{}
		again = m.pingID < firstPings
	}
	m.mu.Unlock()
	if again {
		m.ping()
	}
}

// firstPings is how many round trips are measured one after another at the start:
// a single one may have met a busy processor.
const firstPings = 5

// receiveStreamFrame handles data and window updates.
func (m *mux) receiveStreamFrame(h header) error {
	s, err := m.streamOf(h)
	if err != nil {
		return err
	}
	length := h.length()
	if h.typ() == typeWindow {
		if s != nil {
			return s.window(h.flags(), length)
		}
		return nil
	}
	if length > maxFrameData {
		return Errorf(CodeBadMessage, "data frame of %d bytes", length)
	}
	if s != nil {
		if err := s.expect(length); err != nil {
			return err
		}
	}
	for length > 0 {
		in, err := m.conn.next()
		if err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		in = in[:min(len(in), int(length))]
		if s != nil {
			s.deliver(in)
		}
		m.conn.advance(len(in))
		length -= uint32(len(in))
	}
	if s != nil {
		s.flags(h.flags())
	}
	return nil
}

// streamOf finds the stream of a frame, or makes it when the frame opens one.
// Nil is a stream that is over here: the rest of it is thrown away.
func (m *mux) streamOf(h header) (*muxStream, error) {
	id := h.stream()
	m.mu.Lock()
	s := m.streams[id]
	if h.flags()&flagSYN == 0 || m.err != nil {
		m.mu.Unlock()
		return s, nil
	}
	if s != nil || id == 0 || !m.isIncoming(id) {
		m.mu.Unlock()
		return nil, Errorf(CodeBadMessage, "stream %d was opened twice, or by the wrong side", id)
	}
	// Streams that were reset before they were accepted count too: a peer must
	// not fill memory by opening and resetting.
	if m.incoming >= m.maxIncoming || len(m.pending) >= m.maxIncoming {
		m.mu.Unlock()
		m.conn.appendFrame(newHeader(typeWindow, flagRST, id, CodeLimit.number()), nil)
		return nil, nil
	}
	s = newMuxStream(m, id)
	s.accepted = true
	m.incoming++
	m.streams[id] = s
	m.mu.Unlock()
	if m.serve != nil {
		m.serve(s)
	} else {
		m.pending = append(m.pending, s)
	}
	return s, nil
}
