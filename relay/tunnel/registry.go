package tunnel

import (
	"cmp"
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/relay"
)

// Limits bounds what one app may use of the relay. Zero fields have defaults.
type Limits struct {
	// Memory is the most one app's streams may make the relay buffer, in bytes.
	// Each stream counts with its first window of 256 KiB, and again with what
	// the window grows by, for which there is a sixteenth at most. Default
	// 512 MiB, that is 2048 streams.
	Memory int64
	// Park is how long a request waits for an agent to come back. Default 8 s.
	Park time.Duration
	// ParkFor is for how long after the last agent left (or the relay started)
	// requests are parked at all; later ones are refused at once. Default 2 min.
	ParkFor time.Duration
	// ParkWaking is Park for an app that is being woken. Default 25 s.
	ParkWaking time.Duration
	// MaxParked is how many requests of one app may wait. Default 512.
	MaxParked int
}

func (l Limits) withDefaults() Limits {
	l.Memory = cmp.Or(l.Memory, 512<<20)
	l.Park = cmp.Or(l.Park, 8*time.Second)
	l.ParkFor = cmp.Or(l.ParkFor, 2*time.Minute)
	l.ParkWaking = cmp.Or(l.ParkWaking, 25*time.Second)
	l.MaxParked = cmp.Or(l.MaxParked, 512)
	return l
}

// streamCost is what every open stream counts against Limits.Memory: the
// receive window that the peer may fill without asking (yamux, spec.md).
const streamCost = 256 << 10

// Registry knows every tunnel of this node. All methods are safe for concurrent
// use; none does I/O while holding the lock.
type Registry struct {
	limits  Limits
	started time.Time
	// connected is called, outside the lock, when an app gets a tunnel that takes
	// work.
	connected func(relay.AppID)
	// Absent, when set, is called outside the lock for a request that finds no agent
	// of its app. True says that the app is being woken and is worth waiting for, for
	// Limits.ParkWaking. Set it before the first request.
	Absent func(relay.AppID) bool

	mu     sync.Mutex
	apps   map[relay.AppID]*appTunnels // guarded by mu; never shrinks below the known apps
	closed bool                        // guarded by mu; no more tunnels are taken
}

// appTunnels is one app's part of the registry.
type appTunnels struct {
	budget   budget
	unread   unread
	tunnels  []*Tunnel     // guarded by Registry.mu
	next     int           // guarded by Registry.mu; where the next pick starts, so that equals take turns
	waiting  chan struct{} // guarded by Registry.mu; closed when a tunnel comes; nil when nobody waits
	parked   int           // guarded by Registry.mu
	lastSeen time.Time     // guarded by Registry.mu; when the last tunnel left

	boots map[string][]string // guarded by Registry.mu; of each connected instance, oldest first
}

// isEarlierLocked reports whether a later boot of the same instance has been
// seen, and remembers this one.
func (a *appTunnels) isEarlierLocked(h protocol.Hello) bool {
	seen := a.boots[h.Instance]
	if i := slices.Index(seen, h.BootID); i >= 0 {
		return i < len(seen)-1
	}
	if a.boots == nil {
		a.boots = map[string][]string{}
	}
	a.boots[h.Instance] = append(seen, h.BootID)
	return false
}

// NewRegistry makes an empty Registry. connected may be nil.
func NewRegistry(limits Limits, connected func(relay.AppID)) *Registry {
	if connected == nil {
		connected = func(relay.AppID) {}
	}
	return &Registry{
		limits: limits.withDefaults(), started: time.Now(), connected: connected,
		apps: map[relay.AppID]*appTunnels{},
	}
}

// app returns id's part, making it when needed; the lock is held.
func (r *Registry) appLocked(id relay.AppID) *appTunnels {
	a := r.apps[id]
	if a == nil {
		a = &appTunnels{
			budget: budget{limit: r.limits.Memory}, unread: unread{limit: r.limits.Memory / unreadShare}, lastSeen: r.started,
		}
		r.apps[id] = a
	}
	return a
}

// budgetOf is the memory account of an app, for its sessions' windows.
func (r *Registry) budgetOf(id relay.AppID) *budget {
	budget, _ := r.accountsOf(id)
	return budget
}

// accountsOf are an app's memory accounts: for windows, and for what its agents send
// without being asked.
func (r *Registry) accountsOf(id relay.AppID) (*budget, *unread) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.appLocked(id)
	return &a.budget, &a.unread
}

// add registers t. Older tunnels of the same instance are replaced by it: those
// of the same boot and number are closed once idle, those of an earlier boot
// stay as a reserve until they leave by themselves. It returns how many it
// replaces; false when the registry is closed.
func (r *Registry) add(t *Tunnel) (replaces int, ok bool) {
	hello := t.sess.Hello()
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return 0, false
	}
	a := r.appLocked(t.app)
	var older []*Tunnel
	for _, old := range a.tunnels {
		h := old.sess.Hello()
		if h.Instance == hello.Instance && (h.BootID != hello.BootID || h.Tunnel == hello.Tunnel) {
			older = append(older, old)
		}
	}
	if a.isEarlierLocked(hello) {
		// A process on its way out has reconnected: it does not push its successor
		// aside.
		t.state.Store(int32(replaced))
		older = slices.DeleteFunc(older, func(o *Tunnel) bool { return o.sess.Hello().BootID != hello.BootID })
	}
	a.tunnels = append(a.tunnels, t)
	willing := t.willing()
	if willing {
		a.wakeLocked()
	} else {
		// What this one replaces may have the app ready and goes on until it is, or
		// leaves.
		older = slices.DeleteFunc(older, func(o *Tunnel) bool { return o.sess.Hello().BootID != hello.BootID })
	}
	r.mu.Unlock()
	for _, old := range older {
		old.advance(replaced)
		r.retire(old)
	}
	if willing {
		r.connected(t.app)
	}
	return len(older), true
}

// wakeLocked lets those who wait look again.
func (a *appTunnels) wakeLocked() {
	if a.waiting != nil {
		close(a.waiting)
		a.waiting = nil
	}
}

// setAppState takes the agent's word on its app. Once ready, t takes the place of
// earlier boots of its instance, as add would have had it.
func (r *Registry) setAppState(t *Tunnel, state protocol.AppState, why string) {
	hello := t.sess.Hello()
	r.mu.Lock()
	was := t.willing()
	t.says(state, why)
	became := t.willing() && !was
	a := r.appLocked(t.app)
	a.wakeLocked() // a state that failed ends the waiting too
	var older []*Tunnel
	if became && t.current() == live {
		boots := a.boots[hello.Instance]
		for _, old := range a.tunnels {
			h := old.sess.Hello()
			if h.Instance == hello.Instance && slices.Index(boots, h.BootID) < slices.Index(boots, hello.BootID) {
				older = append(older, old)
			}
		}
	}
	r.mu.Unlock()
	for _, old := range older {
		old.advance(replaced)
	}
	if became {
		r.connected(t.app)
	}
}

// remove forgets t.
func (r *Registry) remove(t *Tunnel) {
	t.advance(gone)
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.apps[t.app]
	a.tunnels = slices.DeleteFunc(a.tunnels, func(o *Tunnel) bool { return o == t })
	a.lastSeen = time.Now()
	same := func(o *Tunnel) bool { return o.Instance() == t.Instance() }
	if !slices.ContainsFunc(a.tunnels, same) {
		delete(a.boots, t.Instance())
	}
}

// pick chooses the tunnel with the least work among the willing ones that are
// not in tried; nil when there is none.
func (a *appTunnels) pickLocked(tried []*Tunnel) *Tunnel {
	var best *Tunnel
	n := len(a.tunnels)
	a.next++
	for i := range n {
		t := a.tunnels[(a.next+i)%n]
		if !t.willing() || slices.Contains(tried, t) {
			continue
		}
		if best == nil || t.current() < best.current() ||
			t.current() == best.current() && t.inFlight.Load() < best.inFlight.Load() {
			best = t
		}
	}
	return best
}

// acquire chooses a tunnel of app and counts one stream on it; the caller calls
// release. While there is none it waits, as Limits allows, unless an agent that
// was tried said that the app itself does not answer: another wait would not
// change that.
func (r *Registry) acquire(ctx context.Context, app relay.AppID, past *attempts) (*Tunnel, error) {
	var expired <-chan time.Time
	asked, waking := false, false
	for {
		r.mu.Lock()
		a := r.appLocked(app)
		if t := a.pickLocked(past.tried); t != nil {
			t.inFlight.Add(1)
			r.mu.Unlock()
			if !a.budget.openStream() {
				t.inFlight.Add(-1)
				return nil, relay.Errorf(relay.Overloaded, "app %s has as many streams open as the relay allows it", app)
			}
			return t, nil
		}
		if past.refused {
			if !r.explainedLocked(ctx, a, app, past) {
				return nil, past.err
			}
			continue
		}
		if !asked && r.Absent != nil && !a.presentLocked() {
			asked = true
			r.mu.Unlock()
			waking = r.Absent(app)
			continue // an agent may have come meanwhile
		}
		if err := r.parkLocked(a, app, waking); err != nil {
			r.mu.Unlock()
			return nil, cmp.Or(past.err, err)
		}
		came := a.waiting
		r.mu.Unlock()

		if expired == nil {
			limit := r.limits.Park
			if waking {
				limit = r.limits.ParkWaking
			}
			timer := time.NewTimer(limit)
			defer timer.Stop()
			expired = timer.C
		}
		late, err := await(ctx, came, expired)
		r.mu.Lock()
		a.parked--
		if late {
			err = a.whyNoneLocked(app)
		}
		r.mu.Unlock()
		if err != nil {
			return nil, cmp.Or(past.err, err)
		}
	}
}

// refusalTime is how long an agent may take, whose app has refused a connection, to
// say that the app stops or starts anew.
const refusalTime = 300 * time.Millisecond

// explainedLocked waits for news of an app that has refused a connection although its
// agent calls it ready. It reports whether there were any, and releases the lock in
// any case.
func (r *Registry) explainedLocked(ctx context.Context, a *appTunnels, app relay.AppID, past *attempts) bool {
	now := time.Now()
	if past.until.IsZero() {
		past.until = now.Add(refusalTime)
	}
	if !now.Before(past.until) || r.parkLocked(a, app, false) != nil {
		r.mu.Unlock()
		return false
	}
	came := a.waiting
	r.mu.Unlock()
	timer := time.NewTimer(past.until.Sub(now))
	defer timer.Stop()
	late, err := await(ctx, came, timer.C)
	r.mu.Lock()
	a.parked--
	r.mu.Unlock()
	past.refused = false // whoever is ready now may be asked
	return !late && err == nil
}

// wake lets those who wait for app look again.
func (r *Registry) wake(app relay.AppID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.appLocked(app).wakeLocked()
}

// presentLocked reports whether an agent is here that stays, whatever its app does.
func (a *appTunnels) presentLocked() bool {
	return slices.ContainsFunc(a.tunnels, (*Tunnel).serves)
}

// whyNoneLocked is why no tunnel is willing: no agent is here, its app is still
// starting, or none of the apps is any more.
func (a *appTunnels) whyNoneLocked(app relay.AppID) error {
	var failed string
	here := false
	for _, t := range a.tunnels {
		if !t.serves() {
			continue
		}
		here = true
		switch state, why := t.AppState(); state {
		case protocol.StateFailed:
			failed = cmp.Or(why, "it does not listen where it should")
		default: // ready: it has become so this instant, or was tried already
			return relay.Errorf(relay.AppStarting, "app %s is still starting", app)
		}
	}
	if !here {
		return noAgent(app)
	}
	// Why is for operators: it tells of the app's inside.
	return &relay.Error{Code: relay.AppRefused, Message: "app " + string(app) + " does not accept connections", Err: errors.New(failed)}
}

// attempts is what one request has tried so far.
type attempts struct {
	tried   []*Tunnel
	refused bool      // an app refused the connection
	err     error     // why the last one failed, in the relay's terms
	renewed int       // how often a kept connection had ended
	until   time.Time // for how long an agent whose app refused may explain itself
}

// maxAttempts bounds how many agents see one request's Open.
const maxAttempts = 4

// again records that t failed with err and reports whether another may be tried.
func (p *attempts) again(t *Tunnel, err error) bool {
	p.tried = append(p.tried, t)
	p.err = translate(err, t.app)
	p.refused = p.refused || relay.CodeOf(p.err) == relay.AppRefused
	return unsent(err) && len(p.tried) < maxAttempts
}

// parkLocked takes a place among the waiting, or says why there is none.
func (r *Registry) parkLocked(a *appTunnels, app relay.AppID, waking bool) error {
	if err := a.whyNoneLocked(app); relay.CodeOf(err) == relay.AppRefused {
		return err
	}
	recently := waking || len(a.tunnels) > 0 || time.Since(a.lastSeen) < r.limits.ParkFor
	if !recently || a.parked >= r.limits.MaxParked || r.closed {
		return a.whyNoneLocked(app)
	}
	a.parked++
	if a.waiting == nil {
		a.waiting = make(chan struct{})
	}
	return nil
}

// await waits for a tunnel to come; late says that none did in time.
func await(ctx context.Context, came <-chan struct{}, expired <-chan time.Time) (late bool, err error) {
	select {
	case <-came:
		return false, nil
	case <-expired:
		return true, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

func noAgent(app relay.AppID) error {
	return relay.Errorf(relay.NoAgent, "no agent of app %s is connected", app)
}

// release ends what acquire began. A replaced tunnel is closed with its last
// stream.
func (r *Registry) release(t *Tunnel) {
	r.budgetOf(t.app).closeStream()
	if t.inFlight.Add(-1) == 0 && t.current() == replaced {
		r.retire(t)
	}
}

// retire closes a replaced tunnel, if it is one that nobody needs: its agent
// has a newer one with the same boot.
func (r *Registry) retire(t *Tunnel) {
	h := t.sess.Hello()
	r.mu.Lock()
	successor := slices.ContainsFunc(r.apps[t.app].tunnels, func(o *Tunnel) bool {
		oh := o.sess.Hello()
		return o != t && o.current() == live && oh.BootID == h.BootID && oh.Tunnel == h.Tunnel
	})
	r.mu.Unlock()
	if successor && t.inFlight.Load() == 0 {
		t.advance(draining)
		go t.sess.Close(protocol.CodeReplaced, "a newer tunnel of this agent is connected")
	}
}

// Open starts a stream to app on one of its tunnels, waiting for one as Limits
// allows, and waits until the agent has accepted it: the
// one seam towards apps. While nothing has reached an app, other agents are tried.
func (r *Registry) Open(ctx context.Context, app relay.AppID, o protocol.Open) (net.Conn, error) {
	var past attempts
	for {
		t, err := r.acquire(ctx, app, &past)
		if err != nil {
			return nil, err
		}
		s, err := t.sess.Open(ctx, o)
		if err == nil {
			if err = s.AwaitReply(ctx); err == nil {
				return &counted{Stream: s, release: func() { r.release(t) }}, nil
			}
			s.Close()
		}
		r.release(t)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if !past.again(t, err) {
			return nil, past.err
		}
	}
}

// counted is a stream that gives its place back when it is closed.
type counted struct {
	*protocol.Stream
	once    sync.Once
	release func()
}

func (c *counted) Close() error {
	err := c.Stream.Close()
	c.once.Do(c.release)
	return err
}

// Connected reports whether app has a tunnel that takes work.
func (r *Registry) Connected(app relay.AppID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.apps[app]
	return a != nil && slices.ContainsFunc(a.tunnels, (*Tunnel).willing)
}

// Tunnels lists the tunnels of this node by app and age.
func (r *Registry) Tunnels() []*Tunnel {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []*Tunnel
	for _, a := range r.apps {
		all = append(all, a.tunnels...)
	}
	slices.SortFunc(all, func(a, b *Tunnel) int {
		return cmp.Or(cmp.Compare(a.app, b.app), a.since.Compare(b.since))
	})
	return all
}

// CloseTokens ends the tunnels whose token is revoked.
func (r *Registry) CloseTokens(revoked func(relay.TokenID) bool) {
	for _, t := range r.Tunnels() {
		if revoked(t.token) {
			t.advance(draining)
			go t.sess.Close(protocol.CodeRevoked, "the token of this agent was revoked")
		}
	}
}

// Drain tells every agent that this relay is going to stop and takes no new
// tunnels from now on. Requests that are already here are still carried. Each
// agent is given a turn of its own to come back, spread over the time given.
func (r *Registry) Drain(ctx context.Context, grace, spread time.Duration) {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	all := r.Tunnels()
	var told sync.WaitGroup
	for i, t := range all {
		turn := spread * time.Duration(i) / time.Duration(len(all))
		told.Go(func() {
			t.sess.Drain(ctx, protocol.Drain{Reason: "relay restarts", Grace: grace, Reconnect: turn})
		})
	}
	told.Wait()
}

// Close ends every tunnel, and takes no more: one that is between its handshake
// and add is told so by whoever adds it.
func (r *Registry) Close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	var closing sync.WaitGroup
	for _, t := range r.Tunnels() {
		closing.Go(func() { t.sess.Close(protocol.CodeShutdown, "relay stopped") })
	}
	closing.Wait()
}

// unsent reports whether err proves that no byte reached an app.
func unsent(err error) bool {
	var e *protocol.Error
	return errors.As(err, &e) && e.Unsent
}

// translate turns the wire's codes into the relay's.
func translate(err error, app relay.AppID) error {
	var e *protocol.Error
	if !errors.As(err, &e) {
		return err
	}
	out := &relay.Error{Code: relay.AppReset, Message: "the connection to app " + string(app) + " was lost", Err: err}
	switch e.Code {
	case protocol.CodeRefused, protocol.CodeUnsupported:
		out.Code, out.Message = relay.AppRefused, "app "+string(app)+" does not accept connections"
	case protocol.CodeTimeout:
		out.Code, out.Message = relay.AppTimeout, "app "+string(app)+" did not answer in time"
	case protocol.CodeDraining:
		out.Code, out.Message = relay.NoAgent, "no agent of app "+string(app)+" is connected"
	case protocol.CodeLimit:
		out.Code, out.Message = relay.Overloaded, "the agent of app "+string(app)+" has no streams left"
	}
	return out
}
