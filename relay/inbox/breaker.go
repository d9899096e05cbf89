package inbox

import (
	"math"
	"time"

	"github.com/posternhq/postern/relay"
)

// breaker leaves an app alone that fails every time; see relay.Breaker. Closed
// it lets everything through, open nothing, and after the pause one attempt,
// the probe, finds out whether to close again. The zero breaker is closed.
type breaker struct {
	rule     relay.Breaker
	failures int // counted ones in a row
	open     bool
	pause    time.Duration // the present one, or the last one
	until    time.Time     // the pause ends then
	probing  bool          // the probe is on its way
}

// change is what an attempt did to a breaker.
type change int

const (
	unchanged change = iota
	opened
	stayedOpen // the probe failed; the next pause is longer
	closed
)

// follow takes in the rule as the manifest has it now.
func (b *breaker) follow(rule relay.Breaker) {
	if rule.Failures <= 0 && b.open {
		*b = breaker{}
	}
	b.rule = rule
}

// room is how many attempts may start at now.
func (b *breaker) room(now time.Time) int {
	switch {
	case !b.open:
		return math.MaxInt
	case b.probing || now.Before(b.until):
		return 0
	}
	return 1
}

// start notes that an attempt starts, and reports whether it is the probe.
func (b *breaker) start() (probe bool) {
	b.probing = b.open
	return b.open
}

// probeNow ends the pause: something is different now.
func (b *breaker) probeNow() { b.until = time.Time{} }

// forget notes that an attempt ended without saying anything.
func (b *breaker) forget(probe bool) {
	if probe {
		b.probing = false
	}
}

// ended notes how an attempt ended. One that was on its way when the breaker
// opened can close it, but does not make the pause longer.
func (b *breaker) ended(outcome relay.Outcome, probe bool, now time.Time) change {
	b.forget(probe)
	if outcome == relay.OutcomeDone {
		was := b.open
		*b = breaker{rule: b.rule}
		if was {
			return closed
		}
		return unchanged
	}
	if !outcome.Counts() || b.rule.Failures <= 0 {
		return unchanged
	}
	b.failures++
	switch {
	case !b.open && b.failures >= b.rule.Failures:
		b.open, b.pause = true, min(b.rule.Pause, relay.MaxBreakerPause)
		b.until = now.Add(b.pause)
		return opened
	case b.open && probe:
		b.pause = min(2*b.pause, relay.MaxBreakerPause)
		b.until = now.Add(b.pause)
		return stayedOpen
	}
	return unchanged
}
