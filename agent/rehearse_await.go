package agent

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/posternhq/postern/agent/doctor"
	"github.com/posternhq/postern/protocol"
)

const (
	// quietTime is how long a ready app must stay as it is. Some open a second
	// listener a moment after the first, and some crash a moment after they listen.
	quietTime  = time.Second
	quietLimit = 5 * time.Second // it changes all the time, and may

	// faultTime is how long a wrong listener must stand. One on another port has stood
	// for three seconds before the doctor speaks of it, and may still be the first of
	// two as long as the app computes.
	faultTime = 2 * time.Second

	awaitTick = 100 * time.Millisecond
	cpuWindow = time.Second
	calmShare = 0.2 // of one CPU
)

// waitLimit is how long the app may take to be ready.
func (r *rehearsing) waitLimit() time.Duration {
	switch {
	case r.Wait > 0:
		return r.Wait
	case r.As.BootLimit > 0:
		return min(r.As.BootLimit, longestWait)
	}
	return defaultWait
}

// await returns when there is no more to be learned by waiting.
func (r *rehearsing) await(ctx context.Context, changes *latest) error {
	looking, stop := context.WithCancel(ctx)
	var doctor sync.WaitGroup
	doctor.Go(func() { r.doctor.Run(looking) })
	defer doctor.Wait()
	defer stop()

	limit := r.waitLimit()
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	tick := time.NewTicker(awaitTick)
	defer tick.Stop()
	w := &waiting{began: r.actor.began, cpu: r.actor.cpu}
	defer func() { r.result.BootMS = w.boot().Milliseconds() }()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.actor.gone:
			return nil
		case <-timeout.C:
			r.note("the app was not ready after %s, where %s", limit, r.limitThere())
			return nil
		case <-changes.wake:
		case <-tick.C:
		}
		if w.enough(changes.get()) {
			return nil
		}
	}
}

// limitThere is the platform's own limit in words.
func (r *rehearsing) limitThere() string {
	if r.As.BootLimit <= 0 {
		return r.As.Says + " has no limit"
	}
	return fmt.Sprintf("%s waits %s", r.As.Says, r.As.BootLimit)
}

// waiting is what await has seen so far.
type waiting struct {
	began time.Time
	ready time.Time // for the first time; zero before

	fault string // what is wrong with the listeners, "" when nothing is
	since time.Time

	cpu   func() time.Duration
	spent time.Duration // CPU at the beginning of the window
	begun time.Time     // of the window
	calm  bool          // the last whole window was
}

// boot is how long the app took to be ready, or did not.
func (w *waiting) boot() time.Duration {
	if w.ready.IsZero() {
		return time.Since(w.began)
	}
	return w.ready.Sub(w.began)
}

// enough takes in one diagnosis, which stands since changed, and reports whether
// it is the last word.
func (w *waiting) enough(d doctor.Diagnosis, changed time.Time) bool {
	now := time.Now()
	w.measure(now)
	if fault := faultIn(d); fault != w.fault {
		w.fault, w.since = fault, now
	}
	if isReady(d) && w.ready.IsZero() {
		w.ready = changed
	}
	stands := now.Sub(w.since)
	switch {
	case w.fault == "" && w.ready.IsZero():
		return false
	case w.fault == "":
		return now.Sub(changed) >= quietTime || now.Sub(w.ready) >= quietLimit
	case strings.Contains(w.fault, "PORT02"):
		return stands >= faultTime && w.calm
	}
	return stands >= faultTime
}

// measure looks at the app's CPU time once in a window.
func (w *waiting) measure(now time.Time) {
	window := now.Sub(w.begun)
	if window < cpuWindow {
		return
	}
	spent := w.cpu()
	w.calm = !w.begun.IsZero() && (spent-w.spent).Seconds() < calmShare*window.Seconds()
	w.spent, w.begun = spent, now
}

// faultIn names what is wrong with where the app listens: the codes of it, and the
// address where it can be reached instead. Their sentences may count seconds.
func faultIn(d doctor.Diagnosis) string {
	var codes []string
	for _, f := range d.Findings.List {
		switch f.Code {
		case "PORT02", "PORT03", "PORT04", "PORT05":
			if f.Severity == protocol.SeverityError {
				codes = append(codes, f.Code)
			}
		}
	}
	if len(codes) == 0 {
		return ""
	}
	return strings.Join(codes, " ") + " " + d.Reachable.String()
}

// isReady reports whether the platform would reach the app. The agent beside it can
// do so over loopback, and calls ready what nobody else reaches.
func isReady(d doctor.Diagnosis) bool {
	return d.State == protocol.StateReady && faultIn(d) == ""
}

// cpu is what the app's processes have used so far.
func (a *actor) cpu() time.Duration {
	var sum time.Duration
	for _, p := range a.members() {
		sum += p.CPU
	}
	return sum
}

// latest is the doctor's newest diagnosis, handed from its goroutine to another.
type latest struct {
	wake chan struct{} // something was set

	mu sync.Mutex
	d  doctor.Diagnosis
	at time.Time
}

func newLatest() *latest { return &latest{wake: make(chan struct{}, 1), at: time.Now()} }

func (l *latest) set(d doctor.Diagnosis) {
	l.mu.Lock()
	l.d, l.at = d, time.Now()
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *latest) get() (doctor.Diagnosis, time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.d, l.at
}
