package inbox

import (
	"math"
	"slices"
	"time"

	"github.com/posternhq/postern/relay"
)

// laneID names a lane.
type laneID struct {
	app         relay.AppID
	endpoint    string
	destination string // "" is the app
}

// laneOf is the lane that d belongs to.
func laneOf(d relay.Delivery) laneID { return laneID{d.App, d.Endpoint, d.Destination} }

// lane is what the worker remembers of one destination: how much it may be given
// now, what is in hand for it, and when it is worth asking the store. All of it
// may be forgotten: the poll finds again what is due, and leases end.
//
// Its methods are plain decisions without locks or clocks. Inbox.mu guards
// every lane.
type lane struct {
	id laneID

	// The app's side.
	up       bool // an agent was connected when last looked
	seen     bool // somebody has looked
	upSince  time.Time
	inFlight int // attempts that are being made
	live     int // those of them whose sender may be waiting, from before the commit
	landing  int // attempts made, whose outcome is being written
	window   int // attempts allowed at once; grows from 1 to maximum
	maximum  int // the destination's MaxInFlight
	bucket   bucket
	breaker  breaker
	pace     time.Duration // about how long an answer takes; 0: not known

	// The store's side.
	more     bool          // a claim may find something now
	times    []time.Time   // when one may, later; sorted, the earliest maxTimes
	claiming bool          // a claim is being made
	lag      time.Duration // about how long a claim takes; 0: not known
	waiting  bool          // a claim is to be made as soon as the node has room for it
	held     []held        // claimed, not started; live ones first
	largest  int64         // body seen so far

	// After trouble: pause is the last one's length.
	pausedUntil time.Time // no attempt before
	pause       time.Duration
	storeUntil  time.Time // no claim before
}

// held is a delivery that was claimed ahead.
type held struct {
	lease relay.Lease
	until time.Time // the end of the lease
}

const (
	maxTimes = 64               // moments a lane remembers; the poll knows the others
	minPause = time.Second      // first pause after an app could not be reached
	maxPause = 10 * time.Second // longest one: how late a recovered app is noticed
	bootTime = time.Minute      // how long an app that came up may say that it is not ready

	maxAhead   = 256 // deliveries claimed before they are wanted
	minLanding = 128 // outcomes that may wait to be written, at least

	// The least that answers and claims are taken to last.
	minPace  = 100 * time.Microsecond
	minClaim = time.Millisecond
)

// expect notes that a delivery is due at t. The moment is kept a little later
// than t, so that a store which keeps milliseconds agrees that it is due.
func (l *lane) expect(t time.Time) {
	t = t.Truncate(time.Millisecond).Add(time.Millisecond)
	at, known := slices.BinarySearchFunc(l.times, t, time.Time.Compare)
	if known || at == maxTimes {
		return
	}
	l.times = slices.Insert(l.times, at, t)
	l.times = l.times[:min(len(l.times), maxTimes)]
}

// expectNow notes that a delivery is due already.
func (l *lane) expectNow() { l.more = true }

// due reports whether there may be deliveries whose time has come.
func (l *lane) due() bool { return l.more || len(l.held) > 0 }

// look takes in the destination as the manifest has it now, and whether it can
// be reached. An app that just came back starts with one at a time. A lane that
// nobody has looked at before knows only from connected, the time an agent last
// came, how long the app has been up.
func (l *lane) look(d relay.Destination, up bool, connected, now time.Time) {
	if up && !l.up {
		l.window, l.pace = 1, 0
		l.resume()
		if l.upSince = now; !l.seen {
			l.upSince = connected
		}
	}
	l.up, l.seen, l.maximum = up, true, max(1, d.MaxInFlight)
	l.bucket.refill(d.Rate, perSecond(d.Rate), now)
	l.breaker.follow(d.Breaker)
	for len(l.times) > 0 && !l.times[0].After(now) {
		l.times, l.more = l.times[1:], true
	}
}

// booting reports whether the app may still be on its way up.
func (l *lane) booting(now time.Time) bool {
	return l.up && !l.upSince.IsZero() && now.Sub(l.upSince) < bootTime
}

// room is how many attempts may start at now.
func (l *lane) room(now time.Time) int {
	if l.full() || now.Before(l.pausedUntil) {
		return 0
	}
	return max(0, min(l.slots(), l.bucket.whole(), l.breaker.room(now)))
}

// slots is how many more attempts the app may be given. A store that is too slow
// for the app, or down, takes slots away: nothing more is delivered whose outcome
// could not be written.
func (l *lane) slots() int {
	return min(min(l.window, l.maximum)-l.inFlight, max(minLanding, 4*l.maximum)-l.landing)
}

// full reports that no attempt may start before one ends or an agent comes.
func (l *lane) full() bool { return !l.up || l.slots() <= 0 || l.breaker.probing }

// next is a delivery in hand whose attempt starts now.
func (l *lane) next(now time.Time) (h held, probe, ok bool) {
	if len(l.held) == 0 || l.room(now) == 0 {
		return held{}, false, false
	}
	h = l.held[0]
	l.held[0] = held{} // so that its body can go before the next insertion
	l.held = l.held[1:]
	return h, l.start(), true
}

// start notes that an attempt starts, and reports whether it is the breaker's
// probe.
func (l *lane) start() (probe bool) {
	l.inFlight++
	l.bucket.take(1)
	return l.breaker.start()
}

// takesLive reports whether the app can be given a webhook whose sender waits.
// While others wait for their turn, such webhooks get no more than half of the
// places, or they would keep them all: a new one is always quicker.
func (l *lane) takesLive(now time.Time) bool {
	if l.breaker.open || l.room(now) == 0 {
		return false
	}
	others := len(l.held) > 0 || l.more || l.claiming
	return !others || l.live < min(l.window, l.maximum)/2
}

// startLive notes that a live attempt is going to start.
func (l *lane) startLive() {
	l.start()
	l.live++
}

// unstartLive takes a startLive back.
func (l *lane) unstartLive() {
	l.live--
	l.inFlight--
	l.bucket.take(-1)
}

// ahead is how many deliveries are worth having in hand: what the app takes
// during two claims. An app that is slow beside the store needs none.
func (l *lane) ahead() int {
	if l.pace == 0 || l.lag == 0 || l.breaker.open {
		return 0
	}
	claims := 2 * float64(l.lag) / float64(l.pace)
	if claims < 0.2 {
		return 0
	}
	n := min(maxAhead, math.Ceil(float64(l.window)*claims))
	if l.bucket.rate > 0 {
		n = min(n, 5*l.bucket.rate) // seconds, well within a lease
	}
	return int(n)
}

// wants is how many deliveries to claim; 0 means do not ask. Without an agent it
// is none, so that waiting for one costs no attempt.
func (l *lane) wants(now time.Time) int {
	if !l.more || l.claiming || !l.up || now.Before(l.storeUntil) || now.Before(l.pausedUntil) {
		return 0
	}
	all := l.room(now) + l.ahead()
	n := all - len(l.held)
	if len(l.held) > 0 && n < all/2 {
		return 0 // a few at a time would each be a transaction
	}
	return max(0, n)
}

// claim notes that a claim is being made. What is said during it is not lost.
func (l *lane) claim() { l.claiming, l.waiting, l.more = true, false, false }

// claimed notes the result of a claim that took so long and asked for limit
// deliveries and for maxBytes of bodies.
func (l *lane) claimed(leases []relay.Lease, until time.Time, took time.Duration, limit int, maxBytes int64) {
	l.claiming = false
	l.lag = average(l.lag, max(took, minClaim))
	size := int64(0)
	for _, lease := range leases {
		n := int64(len(lease.Event.Body))
		size += n
		l.largest = max(l.largest, n)
		l.hold(held{lease, until})
	}
	if len(leases) >= limit || len(leases) > 0 && size+l.largest > maxBytes {
		l.more = true
	}
}

// hold takes h in hand: what came in just now goes before what somebody asked for
// again.
func (l *lane) hold(h held) {
	at := len(l.held)
	if h.lease.Delivery.Trigger == relay.TriggerLive {
		for at > 0 && l.held[at-1].lease.Delivery.Trigger != relay.TriggerLive {
			at--
		}
	}
	l.held = slices.Insert(l.held, at, h)
}

// surplus takes out of hand what will not be started soon, or whose lease is
// half over, for others or for later.
func (l *lane) surplus(now time.Time, lease time.Duration) []held {
	if len(l.held) == 0 {
		return nil
	}
	if !l.up || l.breaker.room(now) == 0 || now.Before(l.pausedUntil) {
		all := l.held
		l.held, l.more = nil, true
		return all
	}
	var old []held
	l.held = slices.DeleteFunc(l.held, func(h held) bool {
		aged := h.until.Sub(now) < lease/2
		if aged {
			old = append(old, h)
		}
		return aged
	})
	return old
}

// claimFailed leaves the store alone for a moment.
func (l *lane) claimFailed(now time.Time) {
	l.claiming, l.more = false, true
	l.storeUntil = now.Add(minPause)
}

// dropped notes that an attempt ended without an outcome.
func (l *lane) dropped(probe bool) {
	l.inFlight--
	l.breaker.forget(probe)
}

// ended notes how an attempt went that took so long. Its outcome has to be
// written now.
func (l *lane) ended(outcome relay.Outcome, took time.Duration, probe bool, now time.Time) change {
	l.inFlight--
	l.landing++
	switch outcome {
	case relay.OutcomeDone, relay.OutcomeRejected:
		// The app answers. Growing by one for each answer doubles the window in
		// the time of one attempt: 1, 2, 4, ...
		l.window = min(l.window+1, l.maximum)
		l.pause, l.pausedUntil = 0, time.Time{}
		l.pace = average(l.pace, max(took, minPace))
	case relay.OutcomeUnsent, relay.OutcomeBooting:
		// The app cannot be reached, which the other deliveries would find out
		// too, one by one.
		l.window, l.pace = 1, 0
		if now.Before(l.pausedUntil) {
			break // another attempt of the same wave said so already
		}
		l.pause = min(max(minPause, 2*l.pause), maxPause)
		l.pausedUntil = now.Add(l.pause)
	}
	c := l.breaker.ended(outcome, probe, now)
	if c == opened {
		l.window = 1
	}
	return c
}

// landed notes what became of a delivery whose attempt's outcome is written.
func (l *lane) landed(next relay.Delivery) {
	l.landing--
	if next.State == relay.DeliveryReady {
		l.expect(next.NextAt)
	} else if next.OrderKey != "" {
		l.expectNow() // the next one with this key had to wait for it
	}
}

// lost notes that an outcome could not be written.
func (l *lane) lost() { l.landing-- }

// resume ends the pauses: something is different now.
func (l *lane) resume() {
	l.pause, l.pausedUntil = 0, time.Time{}
	l.breaker.probeNow()
}

// wakeAt is when to look again, false when only an outside event can change
// anything: an agent, a webhook, the end of an attempt or of a claim.
func (l *lane) wakeAt(now time.Time) (time.Time, bool) {
	if l.full() {
		return time.Time{}, false
	}
	at := now
	switch {
	case len(l.held) > 0:
	case l.claiming || l.waiting:
		return time.Time{}, false
	case l.more:
		at = later(at, l.storeUntil)
	case len(l.times) > 0:
		at = later(l.times[0], l.storeUntil)
	default:
		return time.Time{}, false
	}
	at = later(at, l.pausedUntil)
	at = later(at, l.bucket.readyAt())
	if l.breaker.open {
		at = later(at, l.breaker.until)
	}
	return at, true
}

// average moves an average that is 0 at first towards the latest value.
func average(so, latest time.Duration) time.Duration {
	if so == 0 {
		return latest
	}
	return (7*so + latest) / 8
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
