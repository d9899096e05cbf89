package inbox

import (
	"testing"
	"time"

	"github.com/posternhq/postern/relay"
)

var t0 = time.Unix(1_700_000_000, 0)

func TestALaneKeepsTheEarliestTimes(t *testing.T) {
	t.Parallel()
	l := &lane{}
	for i := range 3 * maxTimes {
		l.expect(t0.Add(time.Duration(3*maxTimes-i) * time.Second))
		l.expect(t0.Add(time.Duration(3*maxTimes-i) * time.Second)) // twice is once
	}
	if len(l.times) != maxTimes {
		t.Fatalf("%d times are kept", len(l.times))
	}
	for i, at := range l.times {
		if want := t0.Add(time.Duration(i+1)*time.Second + time.Millisecond); !at.Equal(want) {
			t.Fatalf("time %d is %v, want %v", i, at, want)
		}
	}
}

func TestALaneLooksAgainWhenItShould(t *testing.T) {
	t.Parallel()
	ep := relay.Endpoint{MaxInFlight: 4}
	l := &lane{}
	l.look(ep, true, t0)
	if _, ok := l.wakeAt(t0); ok {
		t.Error("an empty lane wants to be looked at")
	}
	l.expect(t0.Add(time.Second))
	if at, ok := l.wakeAt(t0); !ok || !at.Equal(t0.Add(1001*time.Millisecond)) {
		t.Errorf("wakeAt = %v, %v", at, ok)
	}
	l.expectNow()
	if n := l.look(ep, true, t0); n != 1 {
		t.Errorf("look = %d, want 1", n)
	}
	l.expectNow() // while the claim is made
	l.claimed(0, 1)
	if at, ok := l.wakeAt(t0); !ok || at.After(t0) {
		t.Error("what was said during a claim was lost")
	}
	l.look(ep, true, t0)
	l.claimed(1, 1)
	if _, ok := l.wakeAt(t0); ok {
		t.Error("a full lane wants to be looked at")
	}
	l.ended(relay.OutcomeUnsent, relay.Delivery{}, t0)
	if at, ok := l.wakeAt(t0); !ok || !at.Equal(t0.Add(minPause)) {
		t.Errorf("after an app that cannot be reached: wakeAt = %v, %v", at, ok)
	}
	if n := l.look(ep, true, t0.Add(minPause-1)); n != 0 {
		t.Errorf("look = %d during the pause", n)
	}
	if n := l.look(ep, false, t0.Add(minPause)); n != 0 {
		t.Errorf("look = %d without an agent", n)
	}
	if _, ok := l.wakeAt(t0); ok {
		t.Error("a lane without an agent wants to be looked at")
	}
}

func TestThePauseGrowsAndEnds(t *testing.T) {
	t.Parallel()
	l, now := &lane{}, t0
	for _, want := range []time.Duration{1, 2, 4, 8, 10, 10} {
		l.inFlight = 2
		l.ended(relay.OutcomeUnsent, relay.Delivery{}, now)
		l.ended(relay.OutcomeUnsent, relay.Delivery{}, now) // of the same wave
		if got := l.pausedUntil.Sub(now); got != want*time.Second {
			t.Errorf("pause %v, want %v", got, want*time.Second)
		}
		now = l.pausedUntil
	}
	l.ended(relay.OutcomeRejected, relay.Delivery{}, now)
	if !l.pausedUntil.IsZero() || l.pause != 0 {
		t.Error("an answer did not end the pause")
	}
}

func TestBucket(t *testing.T) {
	t.Parallel()
	var b bucket
	b.refill(0, t0)
	if b.whole() < 1<<40 || !b.readyAt().IsZero() {
		t.Error("no rate limits something")
	}
	b.take(1000)
	b.refill(3, t0)
	if b.whole() != 3 {
		t.Errorf("a new bucket holds %d, want a second's worth", b.whole())
	}
	b.take(3)
	ready := b.readyAt()
	if b.whole() != 0 || ready.Sub(t0) != 333333334 {
		t.Errorf("empty: %d, ready after %v", b.whole(), ready.Sub(t0))
	}
	b.refill(3, ready)
	if b.whole() != 1 {
		t.Errorf("when it is ready it holds %d", b.whole())
	}
	b.refill(3, t0.Add(time.Hour))
	if b.whole() != 3 {
		t.Errorf("after an hour it holds %d", b.whole())
	}
	b.refill(3, t0) // a clock set back takes nothing away
	if b.whole() != 3 {
		t.Errorf("after the clock went back it holds %d", b.whole())
	}
	b.refill(0.1, t0)
	if b.whole() != 1 {
		t.Errorf("a slow bucket holds %d, want one", b.whole())
	}
}
