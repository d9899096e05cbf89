package sqlite

import (
	"fmt"
	"testing"
	"time"

	"github.com/posternhq/postern/relay"
)

// BenchmarkCreateEvents shows what a transaction and its sync cost, and what
// one more event in it does.
func BenchmarkCreateEvents(b *testing.B) {
	body := make([]byte, 9<<10) // the median GitHub webhook
	for _, batch := range []int{1, 16, 256} {
		b.Run(fmt.Sprint("batch=", batch), func(b *testing.B) {
			s := openTemp(b)
			first := 0
			for b.Loop() {
				if _, err := s.CreateEvents(b.Context(), events(first, batch, "", body)); err != nil {
					b.Fatal(err)
				}
				first += batch
			}
			b.ReportMetric(float64(first)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

// BenchmarkClaim must not depend on how many deliveries wait, neither of those
// that could be claimed nor of those behind one failing head of their key.
func BenchmarkClaim(b *testing.B) {
	for _, waiting := range []int{100, 10_000, 100_000} {
		for _, key := range []string{"", "k"} {
			b.Run(fmt.Sprintf("waiting=%d/key=%q", waiting, key), func(b *testing.B) {
				s := fill(b, waiting, key)
				for b.Loop() {
					claimAndRelease(b, s)
				}
			})
		}
	}
}

// BenchmarkBacklogs grows with what waits, on the read pool.
func BenchmarkBacklogs(b *testing.B) {
	s := fill(b, 100_000, "")
	for b.Loop() {
		if _, err := s.Backlogs(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// fill makes a store in which n deliveries wait.
func fill(b *testing.B, n int, key string) *Store {
	s := openTemp(b)
	for first := 0; first < n; first += 1000 {
		if _, err := s.CreateEvents(b.Context(), events(first, min(1000, n-first), key, nil)); err != nil {
			b.Fatal(err)
		}
	}
	return s
}

// claimAndRelease is one claim of eight and the release of what it got.
func claimAndRelease(b *testing.B, s *Store) {
	now := time.Date(2026, 1, 3, 0, 0, 0, 0, time.UTC)
	leases, err := s.ClaimDeliveries(b.Context(), relay.Claim{
		Owner: "n1", App: "shop", Endpoint: "stripe", Limit: 8, Now: now, Until: now.Add(time.Minute),
	})
	if err != nil || len(leases) == 0 {
		b.Fatalf("claimed %d, %v", len(leases), err)
	}
	if _, err := s.ReleaseLeases(b.Context(), "n1"); err != nil {
		b.Fatal(err)
	}
}
