package doctor

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/posternhq/postern/agent/proc"
	"github.com/posternhq/postern/protocol"
)

// Run watches the app until ctx ends, and returns when nothing of it is left. Call
// it once.
//
//	pause → glance (cheap: did anything change?) → look → Changed
//	                                             → look closer, once the app is ready → Changed
func (d *Doctor) Run(ctx context.Context) {
	w := watch{Doctor: d, begun: time.Now(), idle: make(chan time.Duration, 1)}
	defer w.tasks.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w.look(ctx, brief)
	pause := w.pause()
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		slept := wallClock()
		wake := d.wake
		if !w.mayPoke() {
			wake = nil
		}
		must := false
		select {
		case <-ctx.Done():
			return
		case <-wake:
			w.poked, must = time.Now(), true
		case held := <-w.idle:
			w.held, must = held, true
		case <-timer.C:
			if late := wallClock().Sub(slept) - pause; late > frozenTime {
				w.late, must = late, true
			}
		}
		if must || w.due() || w.glance(ctx) {
			w.look(ctx, brief)
		}
		pause = w.pause()
		timer.Reset(pause)
	}
}

// wallClock is the time of day, which goes on while a platform keeps the whole machine
// asleep.
func wallClock() time.Time { return time.Now().Round(0) }

// schedule is when the app is examined whatever happens; then every minute.
var schedule = []time.Duration{1 * time.Second, 2 * time.Second, 5 * time.Second,
	10 * time.Second, 20 * time.Second, 40 * time.Second, 50 * time.Second}

const (
	everyLook  = time.Minute            // between two examinations that nothing calls for
	everyWatch = 5 * time.Second        // between two glances at an app that is ready
	everyDial  = 30 * time.Second       // the same where only a connection can tell
	bootGlance = 100 * time.Millisecond // between two glances at an app that boots, in its first ten seconds
	lateGlance = 250 * time.Millisecond // after that
	failGlance = time.Second            // when it has failed
	everyAsk   = time.Second            // between two questions to a health path that does not answer well
	everyPoke  = time.Second            // between two examinations because of pokes
	frozenTime = time.Minute            // a timer so late did not merely wait for its turn
	glanceCost = 20                     // a glance may take one part in so many of the time
)

// watch is what Run knows beside the history.
type watch struct {
	*Doctor
	begun time.Time
	tasks sync.WaitGroup

	last   Diagnosis
	said   bool
	seen   history   // as of the last look
	at     time.Time // of the last look
	looked time.Time // when it was over
	pid    int
	ended  bool
	ports  []proc.Socket // what listened at the last glance
	cost   time.Duration // of the last glance
	poked  time.Time

	late     time.Duration // how much too late the timer was, when that was much
	idle     chan time.Duration
	held     time.Duration
	measured bool
}

// look examines, tells what is new, and looks closer when there is a reason to: the
// news that the app is ready does not wait for what it says.
func (w *watch) look(ctx context.Context, how fresh) {
	w.examine(ctx, how)
	if w.seen.curious(&w.cfg.Place) && w.last.State == protocol.StateReady || w.seen.reacted {
		w.examine(ctx, whole)
	}
	w.measure(ctx)
}

// examine calls Changed without the turn, so that it may call Examine.
func (w *watch) examine(ctx context.Context, how fresh) {
	if !w.begin(ctx) {
		return
	}
	if w.held != 0 {
		w.past.idle = w.held
	}
	if w.late != 0 {
		w.past.frozen, w.past.thawed, w.late = w.late, time.Now(), 0
	}
	diagnosis, s := w.Doctor.look(ctx, how)
	w.seen = w.past
	w.end()
	if ctx.Err() != nil {
		return // what was cut short says nothing
	}
	w.at, w.pid, w.ended, w.looked = s.at, s.pid, s.exit != nil, time.Now()
	if w.said && w.last.same(&diagnosis) {
		return
	}
	if w.last.State != diagnosis.State {
		w.log.Debug("app state", "state", diagnosis.State, "why", diagnosis.Why)
	}
	w.last, w.said = diagnosis, true
	if w.cfg.Changed != nil {
		w.cfg.Changed(diagnosis)
	}
}

func (w *watch) mayPoke() bool { return time.Since(w.poked) >= everyPoke }

// pause is how long until the next glance.
func (w *watch) pause() time.Duration {
	pause := bootGlance
	switch {
	case w.last.State == protocol.StateReady:
		pause = everyWatch
	case w.ended:
		pause = everyLook
	case w.last.State == protocol.StateFailed:
		pause = failGlance
	case time.Since(w.begun) > 10*time.Second:
		pause = lateGlance
	}
	pause = max(pause, glanceCost*w.cost)
	if next := w.next(); !next.IsZero() {
		pause = min(pause, time.Until(next))
	}
	if !w.mayPoke() {
		pause = min(pause, everyPoke-time.Since(w.poked))
	}
	return max(pause, time.Millisecond)
}

// due reports whether an examination has come due since the last one.
func (w *watch) due() bool {
	next := w.next()
	return !next.IsZero() && !time.Now().Before(next)
}

// next is when the app is to be examined even if nothing changes.
func (w *watch) next() time.Time {
	if w.ended {
		return time.Time{} // nothing changes any more
	}
	next := w.at.Add(everyLook)
	earlier := func(t time.Time) {
		if t.After(w.at) && t.Before(next) {
			next = t
		}
	}
	start := w.seen.started
	if start.IsZero() {
		return next
	}
	for _, after := range schedule {
		earlier(start.Add(after))
	}
	if limit := w.cfg.Place.limit(); w.seen.booted == 0 {
		for _, part := range []time.Duration{w.cfg.Place.patience(), limit / 2, limit * 8 / 10, limit} {
			earlier(start.Add(part))
		}
		for _, since := range w.seen.appeared {
			earlier(since.Add(settle))
		}
	}
	if !w.seen.lostAt.IsZero() {
		earlier(w.seen.lostAt.Add(lossPatience))
	}
	return next
}

// glance is a cheap look: has anything changed that calls for an examination?
func (w *watch) glance(ctx context.Context) bool {
	pid, exit := 0, (*protocol.Exit)(nil)
	if w.cfg.Child != nil {
		pid, exit = w.cfg.Child()
	}
	if pid != w.pid || (exit != nil) != w.ended {
		return true
	}
	if pid == 0 || w.ended || !w.cfg.Place.Serves || w.cfg.Place.Port == 0 {
		return false
	}
	if here := w.seen.here; w.last.State == protocol.StateReady && here.PID != 0 {
		return !w.world.holds(here)
	}
	if w.last.State != protocol.StateReady && w.seen.answer != nil && !w.seen.answer.good() && time.Since(w.looked) >= everyAsk {
		return true
	}
	began := time.Now()
	ports, err := w.world.ports(pid)
	w.cost = time.Since(began)
	if err != nil {
		return w.knock(ctx)
	}
	changed := !slices.EqualFunc(ports, w.ports, func(a, b proc.Socket) bool { return a.Inode == b.Inode && a.Local == b.Local })
	w.ports = ports
	return changed
}

// knock is glance by a connection, where nothing else can tell: often while the app
// boots, rarely when it is ready.
func (w *watch) knock(ctx context.Context) bool {
	if w.last.State == protocol.StateReady {
		return time.Since(w.looked) >= everyDial
	}
	s := &sight{place: &w.cfg.Place, world: &w.world, past: &w.seen, blind: true}
	return s.try(ctx, s.target(), brief) == open
}

// idleLimit is how long Heroku's router keeps idle connections to an app.
const idleLimit = 90 * time.Second

// measure starts, once, the measuring of how long the app keeps an idle connection.
// It needs an answered request, so it is done only where a health path may be asked,
// and only on the platform whose router cares.
func (w *watch) measure(ctx context.Context) {
	place := &w.cfg.Place
	path := usablePath(place.ReadyPath)
	if w.measured || w.last.State != protocol.StateReady || !place.Serves || place.Platform != "heroku" || path == "" {
		return
	}
	w.measured = true
	s := &sight{place: place}
	addr, host := s.target(), s.hostname()
	w.tasks.Go(func() {
		if held, ok := idleTime(ctx, w.world.dial, addr, host, path, idleLimit); ok {
			w.idle <- held
		}
	})
}
