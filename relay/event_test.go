package relay

import (
	"testing"
	"time"
)

var ended = time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)

func TestNext(t *testing.T) {
	t.Parallel()
	policy := RetryPolicy{Schedule: []time.Duration{10 * time.Second, 100 * time.Second}}
	for _, tt := range []struct {
		name    string
		before  int // counted attempts before this one
		attempt Attempt
		random  float64
		state   DeliveryState
		after   int           // counted attempts after it
		wait    time.Duration // until the next one
	}{
		{"done", 0, Attempt{Outcome: OutcomeDone, Status: 204}, 0.5, DeliveryDone, 1, 0},
		{"done on the last try", 2, Attempt{Outcome: OutcomeDone, Status: 200}, 0.5, DeliveryDone, 3, 0},

		{"rejected", 0, Attempt{Outcome: OutcomeRejected, Status: 500}, 0.5, DeliveryReady, 1, 10 * time.Second},
		{"rejected again", 1, Attempt{Outcome: OutcomeRejected, Status: 500}, 0.5, DeliveryReady, 2, 100 * time.Second},
		{"rejected for the last time", 2, Attempt{Outcome: OutcomeRejected, Status: 500}, 0.5, DeliveryDead, 3, 0},
		{"timeout", 0, Attempt{Outcome: OutcomeTimeout}, 0.5, DeliveryReady, 1, 10 * time.Second},
		{"unknown", 0, Attempt{Outcome: OutcomeUnknown}, 0.5, DeliveryReady, 1, 10 * time.Second},
		{"unknown for the last time", 2, Attempt{Outcome: OutcomeUnknown}, 0.5, DeliveryDead, 3, 0},

		{"shortest jitter", 0, Attempt{Outcome: OutcomeRejected}, 0, DeliveryReady, 1, 8 * time.Second},
		{"three quarters of the jitter", 0, Attempt{Outcome: OutcomeRejected}, 0.75, DeliveryReady, 1, 11 * time.Second},

		{"unsent is not counted", 0, Attempt{Outcome: OutcomeUnsent}, 0.5, DeliveryReady, 0, time.Second},
		{"unsent never kills", 2, Attempt{Outcome: OutcomeUnsent}, 0.5, DeliveryReady, 2, time.Second},
		{"unsent beyond a schedule that was shortened", 9, Attempt{Outcome: OutcomeUnsent}, 0.5, DeliveryReady, 9, time.Second},

		{"Retry-After is later", 0, Attempt{Outcome: OutcomeRejected, RetryIn: time.Minute}, 0.5, DeliveryReady, 1, time.Minute},
		{"Retry-After is sooner", 0, Attempt{Outcome: OutcomeRejected, RetryIn: time.Second}, 0.5, DeliveryReady, 1, 10 * time.Second},
		{"Retry-After of a year", 0, Attempt{Outcome: OutcomeRejected, RetryIn: 365 * 24 * time.Hour}, 0.5, DeliveryReady, 1, time.Hour},
		{"Retry-After of less than nothing", 0, Attempt{Outcome: OutcomeRejected, RetryIn: -time.Hour}, 0.5, DeliveryReady, 1, 10 * time.Second},
		{"Retry-After does not revive", 2, Attempt{Outcome: OutcomeRejected, RetryIn: time.Minute}, 0.5, DeliveryDead, 3, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			due := ended.Add(-time.Hour)
			before := Delivery{
				ID: "dlv_1", Event: "evt_1", App: "shop", Endpoint: "stripe", OrderKey: "k",
				State: DeliveryLeased, Attempt: tt.before, NextAt: due,
				LeaseOwner: "node", LeaseUntil: ended.Add(time.Minute), LeaseGen: 7,
				LastStatus: 418, LastError: "old",
			}
			tt.attempt.EndedAt, tt.attempt.Error = ended, "new"
			got := before.Next(tt.attempt, policy, tt.random)

			want := before
			want.State, want.Attempt = tt.state, tt.after
			want.LeaseOwner, want.LeaseUntil = "", time.Time{}
			want.LastStatus, want.LastError = tt.attempt.Status, "new"
			if tt.state == DeliveryReady {
				want.NextAt = ended.Add(tt.wait)
			}
			if got != want {
				t.Errorf("Next:\n got %+v\nwant %+v", got, want)
			}
			if before.State != DeliveryLeased || before.Attempt != tt.before {
				t.Error("Next changed its receiver")
			}
		})
	}
}

func TestNextWithoutAScheduleTriesOnce(t *testing.T) {
	t.Parallel()
	d := Delivery{}.Next(Attempt{Outcome: OutcomeRejected, EndedAt: ended}, RetryPolicy{}, 0.5)
	if d.State != DeliveryDead || d.Attempt != 1 {
		t.Errorf("delivery %+v", d)
	}
}

// Walking the default schedule to its end tells how long an app may be broken.
func TestTheDefaultScheduleLastsAboutTwentyEightHours(t *testing.T) {
	t.Parallel()
	d, now := Delivery{}, ended
	for d.State == DeliveryReady {
		d = d.Next(Attempt{Outcome: OutcomeRejected, EndedAt: now}, DefaultRetry, 0.5)
		if d.State == DeliveryReady {
			now = d.NextAt
		}
	}
	if d.Attempt != 11 || now.Sub(ended) < 27*time.Hour || now.Sub(ended) > 29*time.Hour {
		t.Errorf("%d attempts in %v", d.Attempt, now.Sub(ended))
	}
}

func TestJitterStaysInItsBounds(t *testing.T) {
	t.Parallel()
	policy := RetryPolicy{Schedule: []time.Duration{10 * time.Second}}
	for i := range 1000 {
		d := Delivery{}.Next(Attempt{Outcome: OutcomeRejected, EndedAt: ended}, policy, float64(i)/1000)
		if wait := d.NextAt.Sub(ended); wait < 8*time.Second || wait > 12*time.Second {
			t.Fatalf("random %v waits %v", float64(i)/1000, wait)
		}
	}
}

func TestOutcomesAndStatesHaveNames(t *testing.T) {
	t.Parallel()
	for o, want := range map[Outcome]string{
		OutcomeDone: "done", OutcomeRejected: "rejected", OutcomeTimeout: "timeout",
		OutcomeUnknown: "unknown", OutcomeUnsent: "unsent", 9: "invalid",
	} {
		if o.String() != want {
			t.Errorf("Outcome(%d) is %q, want %q", int(o), o, want)
		}
	}
	for s, want := range map[DeliveryState]string{
		DeliveryReady: "ready", DeliveryLeased: "leased", DeliveryDone: "done",
		DeliveryDead: "dead", DeliveryCancelled: "cancelled", 9: "unknown",
	} {
		if s.String() != want {
			t.Errorf("DeliveryState(%d) is %q, want %q", int(s), s, want)
		}
	}
}

func TestBodyHash(t *testing.T) {
	t.Parallel()
	a, same, b := Event{Body: []byte("a")}, Event{Body: []byte("a")}, Event{Body: []byte("b")}
	if a.BodyHash() == b.BodyHash() || a.BodyHash() != same.BodyHash() {
		t.Error("the hash does not tell bodies apart")
	}
}
