package selftest

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestSettleWaitsForWhatIsMissingAndNotForEver(t *testing.T) {
	t.Parallel()
	const quiet = 30 * time.Second
	for _, test := range []struct {
		name string
		acks int64
		// came is when the app takes the event with the number, after the start.
		came map[int64]time.Duration
		want time.Duration // about how long it waits
	}{
		{"nothing is missing", 0, nil, aftermath},
		{"all comes", 2, map[int64]time.Duration{1: 10 * time.Second, 2: 35 * time.Second}, 35*time.Second + aftermath},
		{"one never comes", 2, map[int64]time.Duration{1: 10 * time.Second}, 10*time.Second + quiet},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := story{NewLedger()}
				for n := range test.acks {
					s.send(n+1, "")
					s.ack(n+1, "e"+string(rune('1'+n)))
				}
				began := time.Now()
				refresh := func() error {
					for n, at := range test.came {
						if time.Since(began) >= at {
							s.take(n, "e"+string(rune('0'+n)))
							delete(test.came, n)
						}
					}
					return nil
				}
				if err := Settle(t.Context(), s.Ledger, quiet, refresh); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(began).Truncate(time.Second); took != test.want.Truncate(time.Second) {
					t.Errorf("waited %v, want %v", took, test.want)
				}
			})
		})
	}
}

func TestSettleEndsWithItsContextAndWithItsReader(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s := story{NewLedger()}
	s.send(1, "")
	s.ack(1, "x")
	if err := Settle(ctx, s.Ledger, time.Hour, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	broken := errors.New("the journal is gone")
	if err := Settle(t.Context(), s.Ledger, time.Hour, func() error { return broken }); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
}
