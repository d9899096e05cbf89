// Package agent is the program beside the app: it dials the relay, keeps several
// tunnels open whatever the network does, and hands what comes through them to
// the app.
//
//	Agent.Run
//	  tell (one goroutine)                  how the app is, on every session
//	  keep (one goroutine per tunnel number)
//	    connect → protocol.Dial          on failure: full jitter, slower the longer it lasts
//	    serve   → Session.Run            forward.Serve for each stream
//	    …until it ends, is suspected dead, or the relay drains: connect again,
//	    the old session goes on beside the new one until it ends by itself
//	Agent.Drain   tell the relay; it sends nothing new
//	Agent.Close   after the app has finished: the tunnel goes last
//
// It never ends the app: a relay that cannot be reached, a token that was
// revoked, a network that is broken are lines in the log.
package agent

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/posternhq/postern/agent/forward"
	"github.com/posternhq/postern/protocol"
)

// DefaultTunnels is how many sessions an agent holds: one lost packet, or one
// large transfer, does not stall the rest.
const DefaultTunnels = 2

// Config is what an Agent needs. Relay, Token and Target are required.
type Config struct {
	Relay   string // the relay's URL
	Token   string
	Target  string         // the app, host:port
	Hello   protocol.Hello // who we are, and the app's state at first; Tunnel and Tunnels are filled in here
	Tunnels int            // default DefaultTunnels, at most protocol.MaxTunnels
	Env     func(string) string
	TLS     *tls.Config // default: the system's roots
	// Streams serve what is not for the app itself, by kind.
	Streams map[protocol.Kind]func(context.Context, *protocol.Stream)
	// Outlet is the app's way out, nil for none. It goes through this agent's tunnels.
	Outlet *Outlet
	// Opened is called when a tunnel has been opened; it must not wait.
	Opened func()
	// Refused is called when the app does not accept a connection; it must not wait.
	Refused func()
	Logger  *slog.Logger // default: discard
}

// Agent keeps the tunnels of one app instance.
type Agent struct {
	cfg     Config
	forward *forward.Forwarder
	log     *slog.Logger
	ready   chan struct{} // closed when the first tunnel is open
	once    sync.Once     // closes ready

	mu       sync.Mutex
	sessions map[*protocol.Session]*sync.Mutex // guarded by mu; the running ones, each with what is held while its state is told
	welcome  protocol.Welcome                  // guarded by mu; the latest
	state    protocol.AppState                 // guarded by mu
	why      string                            // guarded by mu; of state
	stopping bool                              // guarded by mu; Drain or Close was called
	stop     chan struct{}                     // closed when stopping is set

	changed chan struct{} // has one when state has changed
}

// New makes an Agent that does nothing until Run.
func New(cfg Config) *Agent {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.Tunnels = min(cmp.Or(cfg.Tunnels, DefaultTunnels), protocol.MaxTunnels)
	f := forward.New(cfg.Target, cfg.Logger)
	f.Refused = cfg.Refused
	if cfg.Outlet != nil {
		cfg.Streams = maps.Clone(cfg.Streams)
		if cfg.Streams == nil {
			cfg.Streams = map[protocol.Kind]func(context.Context, *protocol.Stream){}
		}
		cfg.Streams[protocol.KindPolicy] = cfg.Outlet.ServePolicy
	}
	a := &Agent{
		cfg: cfg, log: cfg.Logger, state: cfg.Hello.State,
		forward:  f,
		ready:    make(chan struct{}),
		sessions: map[*protocol.Session]*sync.Mutex{},
		stop:     make(chan struct{}),
		changed:  make(chan struct{}, 1),
	}
	if cfg.Outlet != nil {
		cfg.Outlet.agent.Store(a)
	}
	return a
}

// Ready is closed when the first tunnel is open.
func (a *Agent) Ready() <-chan struct{} { return a.ready }

// URL is where the relay says the app is reached, "" before Ready.
func (a *Agent) URL() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.welcome.URL
}

// ErrGivenUp is what Run returns when the relay said that this token will never
// be good again.
var ErrGivenUp = errors.New("the relay will not accept this token again")

// Run keeps the tunnels until ctx ends, Close is called (nil), or the token is
// refused for good (ErrGivenUp). Everything it started is gone when it returns.
func (a *Agent) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	errs := make(chan error, a.cfg.Tunnels)
	var keeping, telling sync.WaitGroup
	telling.Go(func() { a.tell(ctx) })
	defer telling.Wait()
	defer cancel()
	for n := range a.cfg.Tunnels {
		keeping.Go(func() {
			if err := a.keep(ctx, n); err != nil {
				errs <- err
				cancel() // the token is the same for all
			}
		})
	}
	keeping.Wait()
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}

// keep holds tunnel n open. It returns an error only when it will never be
// again; otherwise when ctx ends or the agent stops, after its sessions have.
func (a *Agent) keep(ctx context.Context, n int) error {
	var running sync.WaitGroup
	defer running.Wait()
	for {
		sess, err := a.connect(ctx, n)
		if err != nil {
			return err
		}
		if sess == nil {
			return nil
		}
		next := make(chan time.Duration, 1)
		running.Go(func() { a.serve(ctx, sess, next) })
		select {
		case wait := <-next:
			if !a.pause(ctx, wait) {
				return nil
			}
		case <-a.stop:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// serve runs one session. It asks for the next one, once, on next: with how long
// to wait first.
func (a *Agent) serve(ctx context.Context, sess *protocol.Session, next chan<- time.Duration) {
	welcome := sess.Welcome()
	log := a.log.With("session", welcome.Session, "tunnel", sess.Hello().Tunnel)
	if !a.add(sess) {
		a.decline(ctx, sess)
		return
	}
	defer a.remove(sess)
	ask := func(wait time.Duration) {
		select {
		case next <- wait:
		default: // asked already
		}
	}
	log.Info("tunnel open", "relay", welcome.Node)
	a.say(sess) // it may have changed since the hello
	if a.cfg.Outlet != nil {
		a.cfg.Outlet.opened()
	}
	if a.cfg.Opened != nil {
		a.cfg.Opened()
	}
	err := sess.Run(ctx, protocol.Handler{
		Stream: a.serveStream,
		Drain: func(d protocol.Drain) {
			log.Info("relay drains", "reason", d.Reason, "reconnect", d.Reconnect)
			ask(d.Reconnect)
		},
		Suspect: func() {
			log.Warn("relay is silent, opening another tunnel beside this one")
			ask(0)
		},
	})
	if a.isStopping() || ctx.Err() != nil {
		log.Info("tunnel closed")
		return
	}
	if protocol.CodeOf(err) == protocol.CodeReplaced {
		log.Info("tunnel closed, a newer one is in its place")
	} else {
		log.Warn("tunnel lost", "err", err)
	}
	ask(time.Duration(welcome.SlotMS) * time.Millisecond)
}

// serveStream gives a stream to whoever serves its kind.
func (a *Agent) serveStream(ctx context.Context, s *protocol.Stream) {
	if serve := a.cfg.Streams[s.Kind()]; serve != nil {
		s.Aside() // no stop waits for somebody who looks
		serve(ctx, s)
		return
	}
	a.forward.Serve(ctx, s)
}

// SetState tells the relay how the app is, now and on every later tunnel. It does
// not wait for it.
func (a *Agent) SetState(state protocol.AppState, why string) {
	a.mu.Lock()
	changed := a.state != state || a.why != why
	a.state, a.why = state, why
	a.mu.Unlock()
	if changed {
		select {
		case a.changed <- struct{}{}:
		default: // whoever tells has not looked yet
		}
	}
}

// tell says each new state on all tunnels until ctx ends. One that is stuck does
// not hold up the others.
func (a *Agent) tell(ctx context.Context) {
	var saying sync.WaitGroup
	defer saying.Wait()
	for {
		select {
		case <-a.changed:
		case <-ctx.Done():
			return
		}
		for _, s := range a.running(false) {
			saying.Go(func() { a.say(s) })
		}
	}
}

// say tells the relay at the other end of sess how the app is at this moment.
func (a *Agent) say(sess *protocol.Session) {
	a.mu.Lock()
	turn := a.sessions[sess]
	a.mu.Unlock()
	if turn == nil {
		return // it has ended
	}
	turn.Lock() // so that the last word is the latest one
	defer turn.Unlock()
	a.mu.Lock()
	state, why := a.state, a.why
	a.mu.Unlock()
	if err := sess.SetState(state, why); err != nil {
		a.log.Debug("state not sent", "session", sess.Welcome().Session, "err", err)
	}
}

// SetTarget sends what is for the app to another address from now on.
func (a *Agent) SetTarget(target string) { a.forward.SetTarget(target) }

// ErrNoTunnel is what Open returns while there is none.
var ErrNoTunnel = errors.New("no tunnel to the relay is open")

// Open starts a stream to the relay on one of the tunnels whose relay has need,
// and waits until it is accepted. Without such a tunnel it is ErrNoTunnel, or an
// error of code unsupported_kind when there are others.
func (a *Agent) Open(ctx context.Context, need protocol.Feature, o protocol.Open) (*protocol.Stream, error) {
	err := ErrNoTunnel
	for _, s := range a.running(false) {
		if !s.Has(need) {
			err = protocol.Errorf(protocol.CodeUnsupported, "the relay does not know streams of kind %s", o.Kind)
			continue
		}
		st, failed := s.Open(ctx, o)
		if failed == nil {
			if failed = st.AwaitReply(ctx); failed == nil {
				return st, nil
			}
			st.Close()
		}
		if err = failed; ctx.Err() != nil {
			break
		}
	}
	return nil, err
}

// Start is Open without waiting for the relay's answer: it comes with the first Read.
// Which of several tunnels it takes is left to chance, so that one large transfer
// does not stall the rest.
func (a *Agent) Start(ctx context.Context, need protocol.Feature, o protocol.Open) (*protocol.Stream, error) {
	err := ErrNoTunnel
	for _, s := range a.running(false) { // in the order of a map, which is none
		if !s.Has(need) {
			err = protocol.Errorf(protocol.CodeUnsupported, "the relay does not know streams of kind %s", o.Kind)
			continue
		}
		st, failed := s.Open(ctx, o)
		if failed == nil {
			return st, nil
		}
		if err = failed; ctx.Err() != nil {
			break
		}
	}
	return nil, err
}

// declineTime bounds how long a session that came too late is served.
const declineTime = 5 * time.Second

// decline ends a session that was opened while the agent stops. The relay counts
// on it since its welcome, so what it has sent already is served.
func (a *Agent) decline(ctx context.Context, sess *protocol.Session) {
	over := make(chan struct{})
	go func() {
		defer close(over)
		sess.Run(ctx, protocol.Handler{Stream: a.serveStream})
	}()
	limit, cancel := context.WithTimeout(ctx, declineTime)
	defer cancel()
	if sess.Drain(limit, protocol.Drain{Reason: "agent stops"}) == nil {
		sess.WaitIdle(limit)
	}
	sess.Close(protocol.CodeShutdown, "agent stopped")
	<-over
}

// add counts s as running; false when the agent stops: Drain and Close would not
// know of it.
func (a *Agent) add(s *protocol.Session) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stopping {
		return false
	}
	a.sessions[s] = &sync.Mutex{}
	a.welcome = s.Welcome()
	a.once.Do(func() { close(a.ready) })
	return true
}

func (a *Agent) remove(s *protocol.Session) {
	a.mu.Lock()
	delete(a.sessions, s)
	a.mu.Unlock()
}

// connected reports whether a tunnel is open.
func (a *Agent) connected() bool { return len(a.running(false)) > 0 }

func (a *Agent) isStopping() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.stopping
}

// running is a copy of the running sessions; with stop, no new ones follow.
func (a *Agent) running(stop bool) []*protocol.Session {
	a.mu.Lock()
	defer a.mu.Unlock()
	if stop && !a.stopping {
		a.stopping = true
		close(a.stop)
	}
	var all []*protocol.Session
	for s := range a.sessions {
		all = append(all, s)
	}
	return all
}

// Drain tells the relay that this agent is going to stop and waits until it has
// promised to send nothing new on any tunnel, or ctx ends. What is in flight
// goes on, for grace at most as far as the relay knows. No new tunnels are
// opened after it.
func (a *Agent) Drain(ctx context.Context, reason string, grace time.Duration) error {
	var told sync.WaitGroup
	var mu sync.Mutex
	var first error
	for _, s := range a.running(true) {
		told.Go(func() {
			if err := s.Drain(ctx, protocol.Drain{Reason: reason, Grace: grace}); err != nil {
				mu.Lock()
				first = cmp.Or(first, err)
				mu.Unlock()
			}
		})
	}
	told.Wait()
	return first
}

// WaitIdle waits until nothing is in flight, or ctx ends.
func (a *Agent) WaitIdle(ctx context.Context) error {
	for _, s := range a.running(false) {
		if err := s.WaitIdle(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Close ends all tunnels; Run returns.
func (a *Agent) Close() {
	var closing sync.WaitGroup
	for _, s := range a.running(true) {
		closing.Go(func() { s.Close(protocol.CodeShutdown, "agent stopped") })
	}
	closing.Wait()
}
