package protocol

import (
	"cmp"
	"context"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Limits of a session.
const (
	handshakeTimeout = 10 * time.Second // from the upgrade to Welcome, and from SYN to Open
	controlTimeout   = 20 * time.Second // one control message may wait this long for its window
	closeTimeout     = time.Second      // for the last words of Close
	maxGrace         = time.Hour        // the longest drain a peer may announce
	// DefaultHeartbeat holds through routers that cut idle connections after
	// 55 s, with one beat to spare.
	DefaultHeartbeat = 20 * time.Second
	missedBeats      = 2
	beatJitter       = 0.2
)

// Config is what both ends of a session may set. The zero value is ready.
type Config struct {
	// MaxStreams is how many streams the peer may have open here; more are
	// reset. Default 1024.
	MaxStreams int
	// MaxWindow is how far a stream's receive window may grow from 256 KiB when
	// the reader keeps up and the round trip is long, in bytes. Default 4 MiB.
	MaxWindow int
	// Budget, when set, is asked before a window grows. Sessions of one app
	// share one.
	Budget Budget
	// Unread, when set, bounds what is buffered of the streams that the peer opens:
	// each may send a whole window before anybody reads, and nobody here asked for it.
	// A stream whose bytes find no room is reset with CodeLimit.
	Unread Budget
	Logger *slog.Logger // default: discard
}

// Budget bounds how much memory receive windows may claim beyond the 256 KiB
// each stream starts with. Both methods are safe for concurrent use and fast.
type Budget interface {
	Reserve(bytes int) bool
	Release(bytes int)
}

// Session is one authenticated, multiplexed connection between an agent and a
// relay. Make one with Dial or Accept, then call Run.
type Session struct {
	// Fixed after the handshake.
	hello   Hello
	welcome Welcome
	client  bool // this end dialed
	conn    *wsConn
	mux     *mux
	control *muxStream
	log     *slog.Logger

	controlMu sync.Mutex // held while a control message is written

	openMu   sync.RWMutex // held for reading while a stream is opened
	draining bool         // guarded by openMu; the peer takes no new streams

	handler Handler        // set by Run
	running sync.WaitGroup // serveStream and handleControlData; Add by the receiver only

	controlState atomic.Int32 // see wakeControl

	mu      sync.Mutex
	active  int           // guarded by mu; streams the peer opened that are being served
	idle    chan struct{} // guarded by mu; closed when active reaches 0, nil when nobody waits
	end     *Error        // guarded by mu; why the session ended, first reason wins
	drained chan struct{} // closed when the peer answered our drain
	once    sync.Once     // closes drained

	pingID   uint64    // owned by beat
	missed   int       // owned by beat
	lastSeen time.Time // owned by beat
}

// Handler is what Run calls. Stream is called in a goroutine of its own for
// each stream the peer opened; Run waits for all of them. The others are called
// one at a time, must not block, and may be nil.
type Handler struct {
	Stream  func(ctx context.Context, s *Stream)
	Drain   func(Drain) // the peer is going to end; it has stopped taking new streams
	Suspect func()      // one heartbeat went unanswered
	// State: the agent says how its app is. Before the first call it is as
	// Hello().State has it.
	State func(state AppState, why string)
}

// Drain announces the end of a session.
type Drain struct {
	Reason    string
	Grace     time.Duration // how long the sender stays for work in flight
	Reconnect time.Duration // wait this long before dialing again
}

// newSession starts the multiplexer on conn. The caller runs the handshake.
func newSession(conn *wsConn, client bool, cfg Config) *Session {
	s := &Session{client: client, conn: conn, log: cfg.Logger, drained: make(chan struct{})}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	incoming := cmp.Or(max(cfg.MaxStreams, 0), 1024)
	if !client {
		incoming++ // the control stream is the agent's
	}
	s.mux = newMux(conn, client, incoming, uint32(cmp.Or(max(cfg.MaxWindow, 0), 4<<20)), cfg.Budget)
	s.mux.unread = cfg.Unread
	return s
}

// Hello is what the agent said; Welcome what the relay answered.
func (s *Session) Hello() Hello     { return s.hello }
func (s *Session) Welcome() Welcome { return s.welcome }

// Has reports whether both ends have feature f.
func (s *Session) Has(f Feature) bool { return slices.Contains(s.welcome.Features, f) }

// RemoteAddr is the peer's address as the socket shows it.
func (s *Session) RemoteAddr() net.Addr { return s.conn.RemoteAddr() }

// Quiet is how long ago the last byte arrived.
func (s *Session) Quiet() time.Duration { return s.conn.quiet(time.Now()) }

// Done is closed when the session has ended, for whatever reason.
func (s *Session) Done() <-chan struct{} { return s.mux.done }

// Open starts a stream to the peer. It returns before the peer has answered;
// see Stream. It fails with Unsent set when the session is over or the peer is
// draining.
func (s *Session) Open(ctx context.Context, o Open) (*Stream, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	first, err := appendFrame(nil, o)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.openMu.RLock()
	defer s.openMu.RUnlock()
	if s.draining {
		return nil, &Error{Code: CodeDraining, Message: "the peer takes no new streams", Unsent: true}
	}
	y, err := s.mux.open()
	if err != nil {
		return nil, &Error{Code: cmp.Or(CodeOf(err), CodeReset), Message: "tunnel lost", Err: s.lostErr(err), Unsent: true}
	}
	st := &Stream{mux: y, sess: s, open: o}
	// The Open is queued before a drain can be answered: the peer must not take a
	// stream that is about to begin for none, and hang up. It is not waited for.
	y.urgent = true
	_, err = y.Write(first)
	y.urgent = false
	if err != nil {
		st.Close()
		return nil, &Error{Code: cmp.Or(CodeOf(err), CodeReset), Message: "tunnel lost", Err: s.lostErr(err), Unsent: true}
	}
	return st, nil
}

// Run serves the session until it ends and returns why. Nothing is received
// before it is called. It owns every goroutine
// of the session and returns when all are gone, handlers included. Ending ctx
// closes the session at once.
func (s *Session) Run(ctx context.Context, h Handler) error {
	stop := context.AfterFunc(ctx, func() { s.shut(&Error{Code: CodeShutdown, Message: "session stopped", Err: ctx.Err()}) })
	defer stop()
	streams, cancel := context.WithCancel(ctx)
	defer cancel()
	s.handler = h
	s.control.watch(s.wakeControl)
	s.mux.ping()
	beats := s.startBeats(h)
	err := s.mux.run(func(y *muxStream) {
		// Streams that are opened and reset at once do not count as open, but
		// whoever serves them takes a moment to notice.
		if s.Active() >= 2*s.mux.maxIncoming {
			y.Reset(CodeLimit)
			return
		}
		s.begin()
		s.running.Go(func() { s.serveStream(streams, h, y) })
	})
	beats.stop()
	cancel()
	s.running.Wait() // also for the peer's last words, which say why
	s.shut(&Error{Code: CodeReset, Message: "connection lost", Err: err})
	return s.endReason()
}

// serveStream reads the Open of one stream and hands it over.
func (s *Session) serveStream(ctx context.Context, h Handler, y *muxStream) {
	st := &Stream{mux: y, sess: s, replied: true}
	st.counts.Store(true)
	defer st.Aside()
	y.setReadDeadline(time.Now().Add(handshakeTimeout))
	body, err := readFrame(y, nil)
	if err != nil {
		st.Reset(CodeBadMessage)
		return
	}
	y.setReadDeadline(time.Time{})
	if st.open, err = DecodeOpen(body); err != nil {
		st.Refuse(CodeBadMessage, err.Error())
		return
	}
	if h.Stream == nil {
		st.Refuse(CodeUnsupported, "this end serves no streams")
		return
	}
	h.Stream(ctx, st)
}

func (s *Session) begin() {
	s.mu.Lock()
	s.active++
	s.mu.Unlock()
}

func (s *Session) finish() {
	s.mu.Lock()
	s.active--
	if s.active == 0 && s.idle != nil {
		close(s.idle)
		s.idle = nil
	}
	s.mu.Unlock()
}

// Active is how many of the peer's streams are being served here.
func (s *Session) Active() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.active
}

// WaitIdle waits until no stream of the peer is being served, the session ends,
// or ctx does.
func (s *Session) WaitIdle(ctx context.Context) error {
	s.mu.Lock()
	if s.active == 0 {
		s.mu.Unlock()
		return nil
	}
	if s.idle == nil {
		s.idle = make(chan struct{})
	}
	idle := s.idle
	s.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-s.Done():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Drain tells the peer that this end will stop, and waits until the peer has
// promised to open no more streams to it, the session ended, or ctx did. Work
// in flight goes on; see WaitIdle.
func (s *Session) Drain(ctx context.Context, d Drain) error {
	if !s.Has(FeatureDrain) {
		return nil
	}
	err := s.send(Control{Type: FrameDrain, Message: d.Reason,
		GraceMS: d.Grace.Milliseconds(), ReconnectMS: d.Reconnect.Milliseconds()})
	if err != nil {
		return err
	}
	select {
	case <-s.drained:
		return nil
	case <-s.Done():
		return s.endReason()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// SetState tells the relay how the app is. Of an agent only; a relay without
// FeatureState is not told and takes every app for ready.
func (s *Session) SetState(state AppState, why string) error {
	if !s.Has(FeatureState) {
		return nil
	}
	return s.send(Control{Type: FrameState, State: state, Message: why})
}

// Close ends the session: it tells the peer why, gives what is already written
// a second to leave, and resets all streams. Run returns soon after.
func (s *Session) Close(code Code, message string) error {
	s.mu.Lock()
	over := s.end != nil
	if !over {
		s.end = &Error{Code: code, Message: message}
	}
	s.mu.Unlock()
	if !over {
		s.control.setWriteDeadline(time.Now().Add(closeTimeout))
		if err := s.send(Control{Type: FrameClose, Code: code, Message: message}); err == nil {
			s.linger()
		}
	}
	s.mux.close(s.endReason())
	return nil
}

// linger gives the peer closeTimeout to read our last words and hang up; were
// we to hang up first, the end of the connection could overtake them.
func (s *Session) linger() {
	s.conn.drain(closeTimeout)
	if !s.mux.isRunning() {
		return // nobody would notice the peer's end
	}
	timer := time.NewTimer(closeTimeout)
	defer timer.Stop()
	select {
	case <-s.Done():
	case <-timer.C:
	}
}

// shut ends the session at once; the first reason given is kept.
func (s *Session) shut(why *Error) {
	s.mu.Lock()
	if s.end == nil {
		s.end = why
	}
	s.mu.Unlock()
	s.mux.close(why)
}

// endReason is why the session ended, never nil.
func (s *Session) endReason() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.end == nil {
		return &Error{Code: CodeReset, Message: "connection lost"}
	}
	return s.end
}

// lostErr is the session's own reason when it has one, else err.
func (s *Session) lostErr(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.end != nil {
		return s.end
	}
	return err
}

// jittered is d give or take beatJitter.
func jittered(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (1 - beatJitter + 2*beatJitter*rand.Float64()))
}
