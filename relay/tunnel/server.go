package tunnel

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/relay"
)

// ServerConfig is what a Server needs. Registry and Authorize are required.
type ServerConfig struct {
	Registry *Registry
	// Authorize checks the request's token and returns whose tunnel it is. Its
	// *relay.Error is the answer.
	Authorize func(*http.Request) (relay.Principal, error)
	// Revoked is asked once a tunnel is registered: its token may have been
	// revoked during the handshake. Nil: never.
	Revoked func(relay.TokenID) bool
	// Known is told about the app before its first tunnel counts, so that the
	// app stays known when it is gone. Nil: nobody is.
	Known func(context.Context, relay.AppID) error
	// Stream serves what agents open towards the relay. Nil: refused.
	Stream func(context.Context, *Tunnel, *protocol.Stream)

	// Opened is called, in a goroutine of its own, when a tunnel is registered; ctx ends
	// with its session. Nil: nobody is told.
	Opened func(context.Context, *Tunnel)

	// AppURL is where an app is reached from outside, for its agents to show.
	// Nil: they are not told.
	AppURL    func(relay.AppID) string
	Node      string
	Heartbeat time.Duration // default protocol.DefaultHeartbeat
	MaxWindow int           // see protocol.Config
	Logger    *slog.Logger  // default: discard
}

// Server accepts agents. It is the http.Handler of protocol.TunnelPath.
type Server struct {
	cfg      ServerConfig
	ctx      context.Context // ends with Close
	cancel   context.CancelFunc
	sessions atomic.Int64 // counts, for session names and slots

	mu      sync.Mutex
	closed  bool           // guarded by mu; no session is started any more
	running sync.WaitGroup // Add under mu while not closed
}

// NewServer makes a Server; Close ends it.
func NewServer(cfg ServerConfig) *Server {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.Heartbeat = cmp.Or(cfg.Heartbeat, protocol.DefaultHeartbeat)
	s := &Server{cfg: cfg}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// maxStreams is how many streams an agent may have open on one session. Each is a call
// of the app to the outside; what they may buffer is bounded for all together.
const maxStreams = 16 << 10

// Slots spread the agents that lose their relay without warning: agent n waits
// n times slotStep, within slotSpread.
const (
	slotStep   = 2 * time.Millisecond
	slotSpread = 500 * time.Millisecond
)

// ServeHTTP takes one agent's upgrade request over. It returns once the session
// is running, so that an idle tunnel does not hold the request's memory.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id := relay.NewRequestID(time.Now())
	who, err := s.cfg.Authorize(r)
	if err == nil && s.cfg.Known != nil {
		if err = s.cfg.Known(r.Context(), who.App); err != nil {
			err = &relay.Error{Code: relay.Unavailable, Message: "the relay's store does not answer", Err: err}
		}
	}
	if err == nil && !s.start() {
		err = relay.Errorf(relay.Draining, "the relay is stopping; try again")
	}
	if err != nil {
		level := slog.LevelWarn
		if r.Header.Get("Authorization") == "" {
			level = slog.LevelDebug // somebody's browser, or a scanner
		}
		s.cfg.Logger.Log(r.Context(), level, "tunnel refused", "request_id", id, "remote", r.RemoteAddr, "err", err)
		relay.WriteError(w, id, err)
		return
	}
	windows, unread := s.cfg.Registry.accountsOf(who.App)
	sess, err := protocol.Accept(w, r, protocol.AcceptConfig{
		Config: protocol.Config{
			MaxStreams: maxStreams, MaxWindow: s.cfg.MaxWindow,
			Budget: windows, Unread: unread, Logger: s.cfg.Logger,
		},
		Welcome: func(protocol.Hello) (protocol.Welcome, error) { return s.welcome(who.App), nil },
	})
	if err != nil {
		s.running.Done()
		s.cfg.Logger.Warn("tunnel handshake failed", "request_id", id, "app", who.App, "remote", r.RemoteAddr, "err", err)
		return
	}
	go s.run(sess, who)
}

// start counts a session as running; false when the server is closed.
func (s *Server) start() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.running.Add(1)
	}
	return !s.closed
}

func (s *Server) welcome(app relay.AppID) protocol.Welcome {
	n := s.sessions.Add(1)
	slot := time.Duration(n) * slotStep % slotSpread
	w := protocol.Welcome{
		Session: relay.NewSessionID(time.Now()), Node: s.cfg.Node,
		HeartbeatMS: s.cfg.Heartbeat.Milliseconds(), SlotMS: slot.Milliseconds(),
	}
	if s.cfg.AppURL != nil {
		w.URL = s.cfg.AppURL(app)
	}
	return w
}

// run is one tunnel's life.
func (s *Server) run(sess *protocol.Session, who relay.Principal) {
	defer s.running.Done()
	t := newTunnel(who, sess)
	// Made when something is to be said: a thousand idle tunnels would keep it.
	log := func() *slog.Logger {
		return s.cfg.Logger.With("app", t.app, "instance", t.Instance(), "session", sess.Welcome().Session)
	}
	older, ok := s.cfg.Registry.add(t)
	if !ok {
		sess.Close(protocol.CodeShutdown, "the relay is stopping")
		return
	}
	if older > 0 {
		log().Info("tunnel replaces older ones of the same instance", "older", older)
	}
	if s.cfg.Revoked != nil && s.cfg.Revoked(t.token) {
		s.cfg.Registry.CloseTokens(s.cfg.Revoked)
	}
	log().Info("tunnel open", "remote", sess.RemoteAddr().String(), "tunnel", sess.Hello().Tunnel, "agent", sess.Hello().Agent)
	h := protocol.Handler{
		Drain: func(d protocol.Drain) {
			t.advance(draining)
			s.cfg.Registry.wake(t.app)
			log().Info("agent drains", "reason", d.Reason, "grace", d.Grace)
		},
	}
	h.State = func(state protocol.AppState, why string) {
		level := slog.LevelDebug
		if was, _ := t.AppState(); was != state {
			level = slog.LevelInfo
		}
		log().Log(context.Background(), level, "app is "+string(state), "why", why)
		s.cfg.Registry.setAppState(t, state, why)
	}
	if s.cfg.Stream != nil {
		h.Stream = func(ctx context.Context, st *protocol.Stream) { s.cfg.Stream(ctx, t, st) }
	}
	var told sync.WaitGroup
	live, over := context.WithCancel(s.ctx)
	if s.cfg.Opened != nil {
		told.Go(func() { s.cfg.Opened(live, t) })
	}
	err := sess.Run(s.ctx, h)
	over()
	s.cfg.Registry.remove(t)
	told.Wait()
	if errors.Is(err, protocol.ErrClosedByPeer) {
		log().Info("tunnel closed by the agent", "err", err)
	} else {
		log().Warn("tunnel lost", "err", err, "after", time.Since(t.since).Round(time.Millisecond))
	}
}

// Close ends every session and waits for them. Tell the agents first, see
// Registry.Drain.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cfg.Registry.Close()
	s.cancel()
	s.running.Wait()
}
