// Package wake gets sleeping apps up. Some platforms stop an app that nobody has
// visited for a while (Heroku Eco after 30 minutes, Render's free plan after 15),
// and a tunnel does not count as a visit: its agent is stopped with the app. What
// wakes such an app is a request to its public URL, which the manifest names.
//
//	Wake(app)     an agent is needed and none is here; returns at once
//	Arrived(app)  one is here
//	└─ rouse      one goroutine per app: request, wait for the agent, and again,
//	            ever more rarely, until the agent is here or nobody asks any more
//
// It knows neither tunnels nor webhooks: who needs the app calls Wake, and the
// app is awake when Connected says so.
//
// The one rule to know: however many webhooks wait, an app gets one request at a
// time, and the pauses grow. A platform that answers for a dead app must not be
// visited for ever.
package wake

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/posternhq/postern/relay"
)

const (
	// visitTime is how long a platform may take to start an app before it answers:
	// Heroku's router gives it 60 s, Render a little more.
	visitTime = 90 * time.Second
	// arrivalTime is how long the agent may take from the app's first answer.
	arrivalTime = 20 * time.Second
	// firstPause and lastPause are between visits in vain; each is twice the one
	// before.
	firstPause = 30 * time.Second
	lastPause  = 15 * time.Minute
	// askedFor is for how long one call of Wake counts: after that, and with no
	// other call, an app that does not come is left alone.
	askedFor = 30 * time.Minute
)

// Config is what a Waker needs; all but Logger is required.
type Config struct {
	URL       func(relay.AppID) string                    // the app's public URL, "" for none
	Visit     func(ctx context.Context, url string) error // one GET; any answer will do
	Connected func(relay.AppID) bool                      // an agent that takes work is here
	Logger    *slog.Logger                                // default: discard
}

// Waker wakes apps. All methods are safe for concurrent use.
type Waker struct {
	cfg    Config
	ctx    context.Context // ends with Close
	cancel context.CancelFunc

	mu      sync.Mutex
	asleep  map[relay.AppID]*sleeper // guarded by mu; the apps that are being roused
	closed  bool                     // guarded by mu
	rousing sync.WaitGroup
}

// sleeper is an app that is being roused.
type sleeper struct {
	asked time.Time     // guarded by Waker.mu; the last call of Wake
	awake chan struct{} // closed when its agent has come
}

// New makes a Waker.
func New(cfg Config) *Waker {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	w := &Waker{cfg: cfg, asleep: map[relay.AppID]*sleeper{}}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	return w
}

// Wake says that app is needed. It reports whether there is a way to wake it; the
// waking itself goes on behind.
func (w *Waker) Wake(app relay.AppID) bool {
	if w.cfg.URL(app) == "" {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return false
	}
	s := w.asleep[app]
	if s == nil {
		s = &sleeper{awake: make(chan struct{})}
		w.asleep[app] = s
		w.rousing.Go(func() { w.rouse(app, s) })
	}
	s.asked = time.Now()
	return true
}

// Arrived says that an agent of app is here and takes work.
func (w *Waker) Arrived(app relay.AppID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s := w.asleep[app]; s != nil {
		delete(w.asleep, app) // should it fall asleep the next moment, that is another waking
		close(s.awake)
	}
}

// Close ends all waking and waits for it.
func (w *Waker) Close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.cancel()
	w.rousing.Wait()
}

// rouse visits app until it is awake.
func (w *Waker) rouse(app relay.AppID, s *sleeper) {
	if w.cfg.Connected(app) { // since before s was known to Arrived
		w.Arrived(app)
	}
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		url := w.cfg.URL(app) // the manifest may have changed
		if url == "" || w.visit(app, url, s) || !w.wait(s, pause) {
			w.mu.Lock()
			if w.asleep[app] == s {
				delete(w.asleep, app)
			}
			w.mu.Unlock()
			return
		}
	}
}

// visit makes one request and reports whether the agent came, or w is closed. The
// request goes on when the agent is there before its answer: to the platform it is
// a visitor like any other.
func (w *Waker) visit(app relay.AppID, url string, s *sleeper) bool {
	select {
	case <-s.awake:
		return true
	default:
	}
	log := w.cfg.Logger.With("app", app)
	log.Info("waking the app")
	begun := time.Now()
	answered := make(chan error, 1)
	w.rousing.Go(func() {
		ctx, cancel := context.WithTimeout(w.ctx, visitTime)
		defer cancel()
		answered <- w.cfg.Visit(ctx, url)
	})
	var late <-chan time.Time
	for {
		select {
		case <-s.awake:
			log.Info("the app is awake", "after", time.Since(begun).Round(time.Millisecond))
			return true
		case err := <-answered:
			if w.ctx.Err() != nil {
				return true
			}
			if err != nil {
				log.Warn("the app's public URL does not answer", "err", err)
				return false
			}
			late = time.After(arrivalTime)
		case <-late:
			log.Warn("the app's platform answered, but no agent came", "after", time.Since(begun).Round(time.Second))
			return false
		}
	}
}

// wait sleeps; false when the agent has come by itself, or nobody asks any more.
func (w *Waker) wait(s *sleeper, pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.awake:
		return false
	case <-w.ctx.Done():
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Since(s.asked) < askedFor
}
