package inbox

import (
	"math"
	"slices"
	"time"

	"github.com/posternhq/postern/relay"
)

// laneID names a lane.
type laneID struct {
	app      relay.AppID
	endpoint string
}

// lane is what the worker remembers of one endpoint: how much the app may be
// given now, and when it is worth asking the store. It holds no event, and all
// of it may be forgotten: the poll finds again what is due.
//
// Its methods are plain decisions without locks or clocks. Inbox.mu guards
// every lane.
type lane struct {
	id laneID

	// The app's side.
	up       bool // an agent was connected when last looked
	inFlight int
	window   int // allowed at the app at once; grows from 1 to maximum
	maximum  int // the endpoint's MaxInFlight
	bucket   bucket

	// The store's side.
	more  bool        // a claim may find something now
	times []time.Time // when one may, later; sorted, the earliest maxTimes

	// After trouble: no claim before pausedUntil. pause is the last one's length.
	pausedUntil time.Time
	pause       time.Duration
}

const (
	maxTimes = 64               // moments a lane remembers; the poll knows the others
	minPause = time.Second      // first pause after an app could not be reached
	maxPause = 10 * time.Second // longest one: how late a recovered app is noticed
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

// look takes in the endpoint as the manifest has it now and whether an agent is
// connected, and returns how many deliveries to claim; 0 means do not ask. An
// app that just came back starts with one at a time.
func (l *lane) look(ep relay.Endpoint, up bool, now time.Time) int {
	if up && !l.up {
		l.window = 1
		l.resume()
	}
	l.up, l.maximum = up, max(1, ep.MaxInFlight)
	l.bucket.refill(ep.Rate, now)
	for len(l.times) > 0 && !l.times[0].After(now) {
		l.times, l.more = l.times[1:], true
	}
	if !l.more || now.Before(l.pausedUntil) {
		return 0
	}
	limit := min(l.room(), l.bucket.whole())
	if limit > 0 {
		// Cleared before the claim: what is said during it is not lost.
		l.more = false
	}
	return max(0, limit)
}

// room is how many more deliveries the app may be given.
func (l *lane) room() int {
	if !l.up {
		return 0
	}
	return max(0, min(l.window, l.maximum)-l.inFlight)
}

// claimed notes the result of a claim that asked for limit.
func (l *lane) claimed(n, limit int) {
	l.inFlight += n
	l.bucket.take(n)
	if n >= limit {
		l.more = true
	}
}

// claimFailed leaves the store alone for a moment.
func (l *lane) claimFailed(now time.Time) {
	l.more = true
	l.pausedUntil = now.Add(minPause)
}

// dropped notes that a flight ended without a result.
func (l *lane) dropped() { l.inFlight-- }

// ended notes how an attempt went and what became of its delivery.
func (l *lane) ended(outcome relay.Outcome, next relay.Delivery, now time.Time) {
	l.inFlight--
	switch outcome {
	case relay.OutcomeDone, relay.OutcomeRejected:
		// The app answers. Growing by one for each answer doubles the window in
		// the time of one attempt: 1, 2, 4, ...
		l.window = min(l.window+1, l.maximum)
		l.resume()
	case relay.OutcomeUnsent:
		// The app cannot be reached, which the other deliveries would find out
		// too, one by one.
		l.window = 1
		if now.Before(l.pausedUntil) {
			break // another attempt of the same wave said so already
		}
		l.pause = min(max(minPause, 2*l.pause), maxPause)
		l.pausedUntil = now.Add(l.pause)
	}
	if next.State == relay.DeliveryReady {
		l.expect(next.NextAt)
	} else if next.OrderKey != "" {
		l.expectNow() // the next one with this key had to wait for it
	}
}

// resume ends the pause.
func (l *lane) resume() { l.pause, l.pausedUntil = 0, time.Time{} }

// wakeAt is when to look again, false when only an outside event can change
// anything: an agent, a webhook, the end of an attempt.
func (l *lane) wakeAt(now time.Time) (time.Time, bool) {
	if l.room() == 0 || !l.more && len(l.times) == 0 {
		return time.Time{}, false
	}
	at := now
	if !l.more {
		at = l.times[0]
	}
	if l.pausedUntil.After(at) {
		at = l.pausedUntil
	}
	if ready := l.bucket.readyAt(); ready.After(at) {
		at = ready
	}
	return at, true
}

// bucket limits a rate: it fills with rate tokens a second and holds one
// second's worth. The zero bucket has no limit until refill gives it one.
type bucket struct {
	rate   float64 // 0: no limit
	tokens float64
	at     time.Time
}

func (b *bucket) refill(rate float64, now time.Time) {
	size := max(1, rate)
	if b.rate <= 0 {
		b.tokens = size
	}
	passed := max(0, now.Sub(b.at)) // a clock set back takes nothing away
	b.tokens = min(size, b.tokens+passed.Seconds()*rate)
	b.rate, b.at = rate, now
}

// whole is how many may go now.
func (b *bucket) whole() int {
	if b.rate <= 0 {
		return math.MaxInt
	}
	return int(b.tokens + 1e-9) // a sum of fractions may miss a whole by a hair
}

func (b *bucket) take(n int) { b.tokens -= float64(n) }

// readyAt is when the next one may go.
func (b *bucket) readyAt() time.Time {
	if b.whole() > 0 {
		return time.Time{}
	}
	missing := (1 - b.tokens) / b.rate
	return b.at.Add(time.Duration(math.Ceil(missing * float64(time.Second))))
}
