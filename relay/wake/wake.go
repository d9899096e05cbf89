// Package wake gets sleeping apps up. Some platforms stop an app that nobody has
// visited for a while (Heroku Eco after 30 minutes, Render's free plan after 15),
// and a tunnel does not count as a visit: its agent is stopped with the app. What
// wakes such an app is a request to its public URL, which the manifest names.
//
//	Wake(app)   an agent is needed and none is here; returns at once
//	└─ rouse    one goroutine per app: request, wait for the agent, and again,
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
	// lookEvery is how often it is looked whether the agent has come.
	lookEvery = 250 * time.Millisecond
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
	asked   map[relay.AppID]time.Time // guarded by mu; the last call, of the apps that are being roused
	closed  bool                      // guarded by mu
	rousing sync.WaitGroup
}

// New makes a Waker.
func New(cfg Config) *Waker {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	w := &Waker{cfg: cfg, asked: map[relay.AppID]time.Time{}}
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
	_, under := w.asked[app]
	w.asked[app] = time.Now()
	if !under {
		w.rousing.Go(func() { w.rouse(app) })
	}
	return true
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
func (w *Waker) rouse(app relay.AppID) {
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		url := w.cfg.URL(app) // the manifest may have changed
		if url == "" || w.visit(app, url) || !w.wait(app, pause) {
			w.mu.Lock()
			delete(w.asked, app)
			w.mu.Unlock()
			return
		}
	}
}

// visit makes one request and reports whether the agent came, or w is closed. The
// request goes on when the agent is there before its answer: to the platform it is
// a visitor like any other.
func (w *Waker) visit(app relay.AppID, url string) bool {
	log := w.cfg.Logger.With("app", app)
	log.Info("waking the app")
	begun := time.Now()
	answered := make(chan error, 1)
	w.rousing.Go(func() {
		ctx, cancel := context.WithTimeout(w.ctx, visitTime)
		defer cancel()
		answered <- w.cfg.Visit(ctx, url)
	})
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	var late <-chan time.Time
	for {
		select {
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
		case <-look.C:
			if w.cfg.Connected(app) {
				log.Info("the app is awake", "after", time.Since(begun).Round(time.Millisecond))
				return true
			}
		}
	}
}

// wait sleeps, unless the agent comes by itself; false when there is nothing left
// to do.
func (w *Waker) wait(app relay.AppID, pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-w.ctx.Done():
		return false
	}
	w.mu.Lock()
	recently := time.Since(w.asked[app]) < askedFor
	w.mu.Unlock()
	return recently && !w.cfg.Connected(app)
}
