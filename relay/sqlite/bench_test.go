package sqlite

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/posternhq/postern/relay"
)

// producers is how many callers the concurrent benchmarks have.
const producers = 64

// storedEvents is how many events lie in the large store of BenchmarkCreate:
// 50 000, or what this variable says. A million take a while to prepare.
const storedEvents = "SQLITE_BENCH_EVENTS"

// BenchmarkSingleRows is the baseline: commits of one row each into a bare table
// of the same driver, with the same pragmas.
func BenchmarkSingleRows(b *testing.B) {
	c, err := connect(b.Context(), filepath.Join(b.TempDir(), "bare.db"), url.Values{
		"_journal_mode": {"WAL"}, "_synchronous": {"FULL"}, "_txlock": {"immediate"},
	})
	if err != nil {
		b.Fatal(err)
	}
	defer c.close()
	if _, err := c.exec(`CREATE TABLE row (seq INTEGER PRIMARY KEY, body BLOB)`); err != nil {
		b.Fatal(err)
	}
	body := make([]byte, 2<<10)
	for b.Loop() {
		if _, err := c.exec(`INSERT INTO row (body) VALUES (?)`, body); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "rows/s")
}

// BenchmarkCreate is what accepting costs: many callers, one event of 2 KiB with
// one delivery in each call, in an empty store and in a large one.
func BenchmarkCreate(b *testing.B) {
	large := 50_000
	if n, err := strconv.Atoi(os.Getenv(storedEvents)); err == nil {
		large = n
	}
	for _, stored := range []int{0, large} {
		b.Run(fmt.Sprint("stored=", stored), func(b *testing.B) {
			s := fill(b, stored, "", relay.DeliveryDone) // once for what follows
			var made atomic.Int64
			for _, callers := range []int{1, producers} {
				b.Run(fmt.Sprint("callers=", callers), func(b *testing.B) {
					together(b, callers, func(int) error {
						_, err := s.CreateEvents(context.Background(), events(1<<30+int(made.Add(1)), 1, "", benchBody))
						return err
					})
					b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
				})
			}
		})
	}
}

var benchBody = make([]byte, 2<<10)

// BenchmarkClaimAndFinish is what delivering costs the store: each of the callers
// claims one delivery and finishes it.
func BenchmarkClaimAndFinish(b *testing.B) {
	s := openTemp(b)
	for first := 0; first < b.N; first += 1000 {
		if _, err := s.CreateEvents(b.Context(), events(first, min(1000, b.N-first), "", benchBody)); err != nil {
			b.Fatal(err)
		}
	}
	b.ResetTimer()
	together(b, producers, func(int) error {
		leases, err := s.ClaimDeliveries(context.Background(), benchClaim(1))
		if err != nil || len(leases) != 1 {
			return fmt.Errorf("claimed %d, %w", len(leases), err)
		}
		return s.FinishAttempt(context.Background(), benchFinish(leases[0].Delivery))
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "deliveries/s")
}

// BenchmarkClaim must not depend on how many deliveries wait, neither of those
// that could be claimed nor of those behind one failing head of their key.
func BenchmarkClaim(b *testing.B) {
	for _, waiting := range []int{100, 100_000} {
		for _, key := range []string{"", "k"} {
			b.Run(fmt.Sprintf("waiting=%d/key=%q", waiting, key), func(b *testing.B) {
				s := fill(b, waiting, key, relay.DeliveryReady)
				for b.Loop() {
					claimAndRelease(b, s)
				}
			})
		}
	}
}

// BenchmarkBacklogs must not depend on how much waits.
func BenchmarkBacklogs(b *testing.B) {
	for _, waiting := range []int{100, 100_000} {
		b.Run(fmt.Sprint("waiting=", waiting), func(b *testing.B) {
			s := fill(b, waiting, "", relay.DeliveryReady)
			for b.Loop() {
				if _, err := s.Backlogs(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// together spreads b.N calls of do over callers.
func together(b *testing.B, callers int, do func(i int) error) {
	b.Helper()
	var next atomic.Int64
	var wait sync.WaitGroup
	for range callers {
		wait.Go(func() {
			for i := int(next.Add(1)); i <= b.N; i = int(next.Add(1)) {
				if err := do(i); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wait.Wait()
}

// fill makes a store with n events of which each has one delivery.
func fill(b *testing.B, n int, key string, state relay.DeliveryState) *Store {
	b.Helper()
	path := filepath.Join(b.TempDir(), "postern.db")
	if n > 0 {
		s, err := Open(b.Context(), Config{Path: path}) // makes the schema
		if err == nil {
			err = s.Close()
		}
		if err != nil {
			b.Fatal(err)
		}
		bulk(b, path, n, key, state)
		settle(b, path)
	}
	s, err := Open(b.Context(), Config{Path: path})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	return s
}

// settle writes what the system still has of the file in memory to the disk, so
// that no later sync has to. Nobody may have the file open as a database.
func settle(b *testing.B, path string) {
	b.Helper()
	f, err := os.Open(path)
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	if err != nil {
		b.Fatal(err)
	}
}

// bulk writes n events as CreateEvents would, faster, by SQL of its own.
func bulk(b *testing.B, path string, n int, key string, state relay.DeliveryState) {
	b.Helper()
	c, err := connect(b.Context(), path, url.Values{"_synchronous": {"OFF"}, "_pragma": {"cache_size(-262144)"}})
	if err != nil {
		b.Fatal(err)
	}
	defer c.close()
	at := benchTime().UnixMicro()
	waiting, blocked := 0, "0"
	if state == relay.DeliveryReady {
		waiting = n
	}
	if key != "" {
		blocked = "i > 1"
	}
	numbers := fmt.Sprintf("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %d) ", n)
	for _, query := range []string{
		"BEGIN IMMEDIATE",
		fmt.Sprintf(`INSERT INTO lane VALUES (1, 'shop', 'stripe', '', %d)`, waiting),
		fmt.Sprintf(`INSERT INTO usage VALUES ('shop', %d, %d)`, n, n*len(benchBody)),
		numbers + fmt.Sprintf(`INSERT INTO event (id, app, endpoint, received_at, method, target, public_url, header, body_len,
				body_sha256, remote_ip, type, dedupe_key, verified, expires_at, body_expires_at, due_at, high_at)
			SELECT printf('evt_%%010d', i), 'shop', 'stripe', %[1]d, 'POST', x'', x'', '[]', 2048,
				x'e5a00aa9991ac8a5ee3109844d84a55583bd20572ad3ffcd42792f3c36b183ad', '', x'',
				CAST(printf('evt_%%010d', i) AS BLOB), 1, %[1]d + 1000000000000, %[1]d + 500000000000,
				%[1]d + 500000000000, %[1]d FROM n`, at),
		numbers + `INSERT INTO event_body SELECT i, 0, zeroblob(2048) FROM n`,
		numbers + fmt.Sprintf(`INSERT INTO delivery (id, event_seq, lane, state, blocked, order_key, origin, attempt, attempts,
				next_at, lease_gen, last_status, last_error)
			SELECT printf('dlv_%%010d', i), i, 1, %d, %s, nullif(CAST('%s' AS BLOB), x''), 0, 0, 0, %d, 0, 0, '' FROM n`,
			state, blocked, key, at),
		"COMMIT",
		"PRAGMA wal_checkpoint(TRUNCATE)",
	} {
		if err := c.script(b.Context(), query); err != nil {
			b.Fatalf("%v: %s", err, query)
		}
	}
}

func benchTime() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }

func benchClaim(limit int) relay.Claim {
	now := benchTime().Add(time.Hour)
	return relay.Claim{Owner: "n1", App: "shop", Endpoint: "stripe", Limit: limit, Now: now, Until: now.Add(time.Minute)}
}

// benchFinish is a delivery that an app took.
func benchFinish(d relay.Delivery) relay.Finish {
	a := relay.Attempt{Delivery: d.ID, StartedAt: benchTime(), EndedAt: benchTime(), Instance: "web.1", Status: 200,
		Header: []relay.Field{{Name: "Content-Type", Value: "text/plain"}}, Body: []byte("ok")}
	d.State, d.Attempt, d.LastStatus = relay.DeliveryDone, 1, 200
	return relay.Finish{Attempt: a, Next: d}
}

// claimAndRelease is one claim of eight and the release of what it got.
func claimAndRelease(b *testing.B, s *Store) {
	leases, err := s.ClaimDeliveries(b.Context(), benchClaim(8))
	if err != nil || len(leases) == 0 {
		b.Fatalf("claimed %d, %v", len(leases), err)
	}
	if _, err := s.ReleaseLeases(b.Context(), "n1"); err != nil {
		b.Fatal(err)
	}
}
