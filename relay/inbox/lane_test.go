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

// leases is n claimed deliveries.
func leases(n int) []relay.Lease { return make([]relay.Lease, n) }

// launch starts all that l may start, and returns how many.
func launch(l *lane, now time.Time) int {
	n := 0
	for _, _, ok := l.next(now); ok; _, _, ok = l.next(now) {
		n++
	}
	return n
}

func TestALaneLooksAgainWhenItShould(t *testing.T) {
	t.Parallel()
	d := relay.Destination{MaxInFlight: 4}
	until := t0.Add(time.Hour)
	l := &lane{}
	l.look(d, true, t0, t0)
	if _, ok := l.wakeAt(t0); ok {
		t.Error("an empty lane wants to be looked at")
	}
	l.expect(t0.Add(time.Second))
	if at, ok := l.wakeAt(t0); !ok || !at.Equal(t0.Add(1001*time.Millisecond)) {
		t.Errorf("wakeAt = %v, %v", at, ok)
	}
	l.expectNow()
	if n := l.wants(t0); n != 1 {
		t.Errorf("wants = %d, want 1", n)
	}
	l.claim()
	if _, ok := l.wakeAt(t0); ok || l.wants(t0) != 0 {
		t.Error("a second claim is wanted during the first")
	}
	l.expectNow() // while the claim is made
	l.claimed(nil, until, 0, 1, 1<<20)
	if at, ok := l.wakeAt(t0); !ok || at.After(t0) {
		t.Error("what was said during a claim was lost")
	}
	l.claim()
	l.claimed(leases(1), until, 0, 1, 1<<20)
	if n := launch(l, t0); n != 1 {
		t.Fatalf("%d started", n)
	}
	if _, ok := l.wakeAt(t0); ok {
		t.Error("a full lane wants to be looked at")
	}
	l.ended(relay.OutcomeUnsent, time.Second, false, t0)
	l.landed(relay.Delivery{})
	if at, ok := l.wakeAt(t0); !ok || !at.Equal(t0.Add(minPause)) {
		t.Errorf("after an app that cannot be reached: wakeAt = %v, %v", at, ok)
	}
	if n := l.wants(t0.Add(minPause - 1)); n != 0 {
		t.Errorf("wants = %d during the pause", n)
	}
	l.look(d, false, t0, t0.Add(minPause))
	if n := l.wants(t0.Add(minPause)); n != 0 {
		t.Errorf("wants = %d without an agent", n)
	}
	if _, ok := l.wakeAt(t0); ok {
		t.Error("a lane without an agent wants to be looked at")
	}
}

// A lane that is woken at once must have something to do, or the dispatcher
// would run in circles.
func TestALaneThatWaitsForRoomOnTheNodeDoesNotWakeItself(t *testing.T) {
	t.Parallel()
	l := &lane{}
	l.look(relay.Destination{MaxInFlight: 4}, true, t0, t0)
	l.expectNow()
	l.waiting = true
	if at, ok := l.wakeAt(t0); ok {
		t.Errorf("wakeAt = %v", at)
	}
}

func TestAFastAppIsClaimedForAhead(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		pace   time.Duration
		rate   float64
		window int
		want   int
	}{
		{"not known", 0, 0, 8, 0},
		{"fast", time.Millisecond, 0, 8, 48},
		{"fast and wide", time.Millisecond, 0, 64, maxAhead},
		{"ten milliseconds", 10 * time.Millisecond, 0, 8, 5},
		{"slow", 100 * time.Millisecond, 0, 8, 0},
		{"fast and rare", time.Millisecond, 2, 8, 10},
	} {
		l := &lane{pace: tt.pace, lag: 3 * time.Millisecond, window: tt.window, bucket: bucket{rate: tt.rate}}
		if got := l.ahead(); got != tt.want {
			t.Errorf("%s: ahead = %d, want %d", tt.name, got, tt.want)
		}
	}
}

// Each claim is a transaction, so one is not made for every place that is free.
func TestALaneClaimsWhenHalfIsLeft(t *testing.T) {
	t.Parallel()
	l := &lane{}
	l.look(relay.Destination{MaxInFlight: 8}, true, t0, t0)
	l.window, l.inFlight, l.pace, l.lag, l.more = 8, 8, time.Millisecond, 3*time.Millisecond, true
	for _, tt := range []struct{ held, want int }{{0, 48}, {24, 24}, {25, 0}, {48, 0}, {60, 0}} {
		l.held = make([]held, tt.held)
		if got := l.wants(t0); got != tt.want {
			t.Errorf("with %d in hand it wants %d, want %d", tt.held, got, tt.want)
		}
	}
}

func TestWhatIsInHandGoesBackWhenItIsNoUse(t *testing.T) {
	t.Parallel()
	lease := 90 * time.Second
	for _, tt := range []struct {
		name   string
		change func(*lane)
		after  time.Duration
		want   int
	}{
		{"all is well", func(*lane) {}, 0, 0},
		{"no agent", func(l *lane) { l.up = false }, 0, 5},
		{"the app cannot be reached", func(l *lane) { l.ended(relay.OutcomeUnsent, 0, false, t0) }, 0, 5},
		{"the breaker opened", func(l *lane) {
			l.breaker.follow(relay.Breaker{Failures: 1, Pause: time.Second})
			l.ended(relay.OutcomeUnknown, 0, false, t0)
		}, 0, 5},
		{"the lease is half over", func(*lane) {}, 46 * time.Second, 5},
		{"the lease is nearly half over", func(*lane) {}, 44 * time.Second, 0},
	} {
		l := &lane{}
		l.look(relay.Destination{MaxInFlight: 4}, true, t0, t0)
		l.claimed(leases(5), t0.Add(lease), 0, 5, 1<<20)
		tt.change(l)
		if got := l.surplus(t0.Add(tt.after), lease); len(got) != tt.want || len(l.held) != 5-tt.want {
			t.Errorf("%s: %d of 5 go back, %d stay, want %d", tt.name, len(got), len(l.held), tt.want)
		}
	}
}

func TestAStoreThatDoesNotTakeOutcomesStopsTheLane(t *testing.T) {
	t.Parallel()
	l := &lane{}
	l.look(relay.Destination{MaxInFlight: 1}, true, t0, t0)
	started := 0
	for range 1000 {
		l.hold(held{})
		if n := launch(l, t0); n > 0 {
			started += n
			l.ended(relay.OutcomeDone, 0, false, t0)
		}
	}
	if started != minLanding {
		t.Errorf("%d started while no outcome was written, want %d", started, minLanding)
	}
	if _, ok := l.wakeAt(t0); ok {
		t.Error("the lane wakes itself all the same")
	}
	l.lost()
	if n := launch(l, t0); n != 1 {
		t.Errorf("%d started after one was written", n)
	}
}

// Each webhook takes its place at the app before it is known whether the store
// lets it go first. Under load such places were taken all the time, and what had
// been answered with 202 was never delivered.
func TestLiveWebhooksDoNotStarveTheOthers(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		window int
		change func(*lane)
		want   int
	}{
		{"nobody waits", 4, func(*lane) {}, 4},
		{"some are in hand", 4, func(l *lane) { l.hold(held{}) }, 2},
		{"some may be in the store", 4, func(l *lane) { l.more = true }, 2},
		{"some are being claimed", 4, func(l *lane) { l.claim() }, 2},
		{"some wait for the only place", 1, func(l *lane) { l.hold(held{}) }, 0},
		{"the breaker is open", 4, func(l *lane) { l.breaker.open = true }, 0},
	} {
		l := &lane{}
		l.look(relay.Destination{MaxInFlight: 8}, true, t0, t0)
		l.window = tt.window
		tt.change(l)
		n := 0
		for ; l.takesLive(t0) && n < 100; n++ {
			l.startLive()
		}
		if n != tt.want || l.inFlight != n {
			t.Errorf("%s: %d live ones at once, want %d", tt.name, n, tt.want)
		}
		for range n {
			l.unstartLive()
		}
		if l.inFlight != 0 || l.live != 0 {
			t.Errorf("%s: %d in flight and %d live at the end", tt.name, l.inFlight, l.live)
		}
	}
}

func TestLiveEventsGoBeforeReplayedOnes(t *testing.T) {
	t.Parallel()
	l := &lane{}
	for _, name := range []relay.DeliveryID{"r1", "r2", "l1", "r3", "l2"} {
		d := relay.Delivery{ID: name}
		if name[0] == 'r' {
			d.Trigger = relay.TriggerReplay
		}
		l.hold(held{lease: relay.Lease{Delivery: d}})
	}
	got := ""
	for _, h := range l.held {
		got += string(h.lease.Delivery.ID) + " "
	}
	if want := "l1 l2 r1 r2 r3 "; got != want {
		t.Errorf("in hand: %s, want %s", got, want)
	}
}

func TestThePauseGrowsAndEnds(t *testing.T) {
	t.Parallel()
	l, now := &lane{window: 8, pace: time.Millisecond, lag: time.Millisecond}, t0
	for _, want := range []time.Duration{1, 2, 4, 8, 10, 10} {
		l.inFlight = 2
		l.ended(relay.OutcomeUnsent, 0, false, now)
		l.ended(relay.OutcomeUnsent, 0, false, now) // of the same wave
		if got := l.pausedUntil.Sub(now); got != want*time.Second {
			t.Errorf("pause %v, want %v", got, want*time.Second)
		}
		now = l.pausedUntil
		if n := l.ahead(); n != 0 {
			t.Errorf("%d would be claimed ahead for an app that cannot be reached", n)
		}
	}
	l.ended(relay.OutcomeRejected, 0, false, now)
	if !l.pausedUntil.IsZero() || l.pause != 0 {
		t.Error("an answer did not end the pause")
	}
}

func TestBucket(t *testing.T) {
	t.Parallel()
	var b bucket
	b.refill(0, perSecond(0), t0)
	if b.whole() < 1<<40 || !b.readyAt().IsZero() {
		t.Error("no rate limits something")
	}
	b.take(1000)
	b.refill(3, perSecond(3), t0)
	if b.whole() != 3 {
		t.Errorf("a new bucket holds %d, want a second's worth", b.whole())
	}
	b.take(3)
	ready := b.readyAt()
	if b.whole() != 0 || ready.Sub(t0) != 333333334 {
		t.Errorf("empty: %d, ready after %v", b.whole(), ready.Sub(t0))
	}
	b.refill(3, perSecond(3), ready)
	if b.whole() != 1 {
		t.Errorf("when it is ready it holds %d", b.whole())
	}
	b.refill(3, perSecond(3), t0.Add(time.Hour))
	if b.whole() != 3 {
		t.Errorf("after an hour it holds %d", b.whole())
	}
	b.refill(3, perSecond(3), t0) // a clock set back takes nothing away
	if b.whole() != 3 {
		t.Errorf("after the clock went back it holds %d", b.whole())
	}
	b.refill(0.1, perSecond(0.1), t0)
	if b.whole() != 1 {
		t.Errorf("a slow bucket holds %d, want one", b.whole())
	}
}

func TestTheBreaker(t *testing.T) {
	t.Parallel()
	const second = time.Second
	b := &breaker{}
	b.follow(relay.Breaker{Failures: 3, Pause: 30 * second})
	fail := func(at time.Duration, probe bool, want change) {
		t.Helper()
		if got := b.ended(relay.OutcomeRejected, probe, t0.Add(at)); got != want {
			t.Errorf("after %v: change %d, want %d", at, got, want)
		}
	}
	room := func(at time.Duration, want bool) {
		t.Helper()
		if got := b.room(t0.Add(at)) > 0; got != want {
			t.Errorf("after %v: room %v, want %v", at, got, want)
		}
	}
	fail(0, false, unchanged)
	fail(0, false, unchanged)
	b.ended(relay.OutcomeDone, false, t0) // not in a row
	fail(0, false, unchanged)
	fail(0, false, unchanged)
	b.ended(relay.OutcomeUnsent, false, t0) // says nothing
	fail(0, false, opened)
	fail(10*second, false, unchanged) // was on its way; makes nothing longer
	room(29*second, false)
	room(30*second, true)
	if !b.start() {
		t.Error("the first attempt after the pause is no probe")
	}
	room(31*second, false)
	b.ended(relay.OutcomeUnsent, true, t0.Add(31*second))
	room(31*second, true)
	b.start()
	fail(32*second, true, stayedOpen)
	room(91*second, false)
	room(92*second, true)
	for range 10 {
		b.start()
		fail(100*second, true, stayedOpen)
	}
	if b.pause != relay.MaxBreakerPause {
		t.Errorf("the pause grew to %v, want %v", b.pause, relay.MaxBreakerPause)
	}
	if got := b.ended(relay.OutcomeDone, true, t0); got != closed {
		t.Errorf("a success made change %d, want closed", got)
	}
	room(0, true)
	fail(0, false, unchanged)
	for range 2 {
		b.ended(relay.OutcomeRejected, false, t0)
	}
	room(0, false)
	b.follow(relay.Breaker{})
	room(0, true)
	for range 100 {
		fail(0, false, unchanged)
	}
}
