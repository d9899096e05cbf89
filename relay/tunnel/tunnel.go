// Package tunnel holds the agents' sessions on the relay's side and carries
// requests into them.
//
//	Server     accepts an agent's upgrade, checks who it is, runs its session
//	Registry   knows which tunnels lead to which app, picks one, waits for one
//	Tunnel     one agent's session and the idle streams kept on it
//	Transport  http.RoundTripper whose network address is an app's id
//
// It decides nothing about requests: what may reach an app is ingress' matter,
// and what an agent may open towards the relay is its handler's.
//
// The one rule to know: a request is sent to a second agent only while it is
// certain that no byte of it reached an app.
package tunnel

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/relay"
)

// state says how willing a tunnel is to take work.
type state int32

const (
	live     state = iota // takes new work
	replaced              // a newer tunnel of the same instance is here: only when nothing else is left
	draining              // finishes what it has
	gone                  // the session is over
)

// Tunnel is the relay's handle on one agent's session.
type Tunnel struct {
	// Fixed at registration.
	app   relay.AppID
	token relay.TokenID
	sess  *protocol.Session
	since time.Time

	state    atomic.Int32            // a state; only ever grows
	word     atomic.Pointer[appWord] // the agent's latest about its app
	inFlight atomic.Int32            // streams in use

	mu   sync.Mutex
	idle []*conn // guarded by mu; kept-alive streams, the latest used last
}

func newTunnel(who relay.Principal, sess *protocol.Session) *Tunnel {
	t := &Tunnel{app: who.App, token: who.Token, sess: sess, since: time.Now()}
	state := protocol.StateReady
	if sess.Has(protocol.FeatureState) {
		state = sess.Hello().State.Known()
	}
	t.says(state, "")
	return t
}

// App is whose tunnel it is.
func (t *Tunnel) App() relay.AppID { return t.app }

// Instance is which copy of the app is behind it.
func (t *Tunnel) Instance() string { return t.sess.Hello().Instance }

// Number counts an agent's tunnels: 0, 1, …
func (t *Tunnel) Number() int { return t.sess.Hello().Tunnel }

// Has reports whether the agent and this relay both have feature f.
func (t *Tunnel) Has(f protocol.Feature) bool { return t.sess.Has(f) }

// Tell opens a stream to the agent itself, and not to its app. It does not wait for
// the Reply, nor count as work.
func (t *Tunnel) Tell(ctx context.Context, o protocol.Open) (*protocol.Stream, error) {
	return t.sess.Open(ctx, o)
}

// InFlight is how many streams are in use.
func (t *Tunnel) InFlight() int { return int(t.inFlight.Load()) }

// appWord is what an agent says of its app.
type appWord struct {
	state protocol.AppState
	why   string
}

// says keeps the agent's word.
func (t *Tunnel) says(state protocol.AppState, why string) { t.word.Store(&appWord{state, why}) }

// AppState is what the agent last said of its app, and why.
func (t *Tunnel) AppState() (protocol.AppState, string) {
	w := t.word.Load()
	return w.state, w.why
}

// willing reports whether t takes new work for its app.
func (t *Tunnel) willing() bool {
	return t.current() < draining && t.word.Load().state == protocol.StateReady
}

// serves reports whether t stays and has an app that may be ready some time.
func (t *Tunnel) serves() bool {
	return t.current() < draining && t.word.Load().state != protocol.StateNone
}

func (t *Tunnel) current() state { return state(t.state.Load()) }

// advance moves the state forward, never back, and drops the idle streams when
// they must not be used again. A replaced tunnel with nothing left is closed.
func (t *Tunnel) advance(to state) {
	for {
		from := t.state.Load()
		if from >= int32(to) {
			return
		}
		if t.state.CompareAndSwap(from, int32(to)) {
			break
		}
	}
	t.closeIdle()
}

// closeIdle ends the kept-alive streams that wait for their next request.
func (t *Tunnel) closeIdle() {
	t.mu.Lock()
	idle := t.idle
	t.idle = nil
	t.mu.Unlock()
	for _, c := range idle {
		c.close(protocol.CodeCanceled)
	}
}

// takeIdle gives the most recently used idle stream that is still good, nil
// when there is none.
func (t *Tunnel) takeIdle() *conn {
	for {
		t.mu.Lock()
		n := len(t.idle)
		if n == 0 {
			t.mu.Unlock()
			return nil
		}
		c := t.idle[n-1]
		t.idle[n-1] = nil
		t.idle = t.idle[:n-1]
		t.mu.Unlock()
		if c.wake() {
			c.reused = true
			return c
		}
	}
}

// keep puts c among the idle streams, or closes it.
func (t *Tunnel) keep(c *conn) {
	t.mu.Lock()
	if t.current() != live || len(t.idle) >= maxIdlePerTunnel {
		t.mu.Unlock()
		c.close(protocol.CodeCanceled)
		return
	}
	c.sleep()
	t.idle = append(t.idle, c)
	t.mu.Unlock()
}

// drop takes c out of the idle streams; false when somebody took it first.
func (t *Tunnel) drop(c *conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.Index(t.idle, c)
	if i < 0 {
		return false
	}
	t.idle = slices.Delete(t.idle, i, i+1)
	return true
}
