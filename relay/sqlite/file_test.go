package sqlite_test

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/relay"
	"github.com/posternhq/postern/relay/sqlite"
)

func now() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }

func newEvent(id string) relay.NewEvent {
	return relay.NewEvent{
		Event: relay.Event{ID: relay.EventID(id), App: "shop", Endpoint: "stripe", ReceivedAt: now(), Body: []byte(id)},
		Deliveries: []relay.Delivery{{
			ID: relay.DeliveryID("dlv_" + id), App: "shop", Endpoint: "stripe", NextAt: now(), OrderKey: "k",
		}},
	}
}

func create(t testing.TB, s *sqlite.Store, events ...relay.NewEvent) {
	t.Helper()
	if _, err := s.CreateEvents(context.Background(), events); err != nil {
		t.Fatal(err)
	}
}

func claim(t testing.TB, s *sqlite.Store, limit int) []relay.Lease {
	t.Helper()
	leases, err := s.ClaimDeliveries(context.Background(), relay.Claim{
		Owner: "n1", App: "shop", Endpoint: "stripe", Limit: limit, Now: now(), Until: now().Add(time.Minute),
	})
	if err != nil {
		t.Fatal(err)
	}
	return leases
}

func TestWhatWasStoredIsThereAfterReopening(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "odd name?#%41 &.db")
	ctx := t.Context()
	s := open(t, path)
	if err := s.EnsureApp(ctx, "shop", now()); err != nil {
		t.Fatal(err)
	}
	if err := s.CreateToken(ctx, relay.Token{ID: "tok_1", App: "shop", Scope: relay.ScopeAgent, IssuedAt: now()}); err != nil {
		t.Fatal(err)
	}
	create(t, s, newEvent("evt_1"), newEvent("evt_2"))
	leases := claim(t, s, 1)
	next := leases[0].Delivery
	next.State = relay.DeliveryDone
	if err := s.FinishAttempt(ctx, relay.Finish{Attempt: relay.Attempt{Delivery: next.ID}, Next: next}); err != nil {
		t.Fatal(err)
	}
	before := dump(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if after := dump(t, open(t, path)); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	if _, err := os.Stat(path + "-wal"); err != nil {
		t.Errorf("the file is not at the path that was given, or not in WAL mode: %v", err)
	}
}

// dump is everything that the methods show of the store.
func dump(t *testing.T, s *sqlite.Store) string {
	t.Helper()
	ctx := t.Context()
	var b strings.Builder
	add := func(v any, err error) {
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%+v\n", v)
	}
	add(s.Apps(ctx))
	add(s.Tokens(ctx))
	add(s.Backlogs(ctx))
	for _, id := range []relay.EventID{"evt_1", "evt_2"} {
		add(s.Event(ctx, id))
		add(s.Deliveries(ctx, id))
		add(s.Attempts(ctx, relay.DeliveryID("dlv_"+id)))
	}
	return b.String()
}

func TestOnlyTheOwnerMayReadTheFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, filepath.Join(dir, "postern.db"))
	create(t, s, newEvent("evt_1"))
	for _, name := range []string{"postern.db", "postern.db-wal", "postern.db-shm"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", name, info.Mode())
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 3 {
		t.Errorf("files left behind: %v", entries)
	}
}

func TestOpenRefusesWhatItMustNotTouch(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		make func(t *testing.T, path string)
		want string
	}{
		{"a text file", func(t *testing.T, path string) {
			write(t, path, []byte(strings.Repeat("this is no database\n", 1000)))
		}, "not a SQLite database"},
		{"a database of another program", func(t *testing.T, path string) {
			execute(t, path, "CREATE TABLE other (x)")
		}, "another program"},
		{"a database that another program marked", func(t *testing.T, path string) {
			execute(t, path, "PRAGMA application_id=77")
		}, "another program"},
		{"a database of a newer version", func(t *testing.T, path string) {
			makeStore(t, path)
			execute(t, path, "PRAGMA user_version=1000")
		}, "schema version 1000"},
		{"a file cut in half", func(t *testing.T, path string) {
			data := makeStore(t, path)
			write(t, path, data[:len(data)/2])
		}, "damaged"},
		{"a file whose first page is overwritten", func(t *testing.T, path string) {
			data := makeStore(t, path)
			copy(data[100:4096], bytes.Repeat([]byte{0xa5}, 4096))
			write(t, path, data)
		}, "damaged"},
		{"a folder", func(t *testing.T, path string) {
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}, "cannot be opened"},
		{"a file in a folder that does not exist", func(t *testing.T, path string) {
			if err := os.Remove(filepath.Dir(path)); err != nil {
				t.Fatal(err)
			}
		}, "no such file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "sub", "postern.db")
			if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			tt.make(t, path)
			before, _ := os.ReadFile(path)
			s, err := sqlite.Open(t.Context(), sqlite.Config{Path: path})
			if err == nil {
				s.Close()
				t.Fatal("it was opened")
			}
			if !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), path) || relay.CodeOf(err) != "" {
				t.Errorf("error %q with code %q does not name the path and %q", err, relay.CodeOf(err), tt.want)
			}
			if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
				t.Error("the file was changed")
			}
		})
	}
}

func TestOpenNeedsAPath(t *testing.T) {
	t.Parallel()
	if _, err := sqlite.Open(t.Context(), sqlite.Config{}); err == nil {
		t.Fatal("an empty path was opened")
	}
}

// makeStore makes a store with events in it, closes it and returns the file.
func makeStore(t *testing.T, path string) []byte {
	t.Helper()
	s, err := sqlite.Open(t.Context(), sqlite.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		create(t, s, newEvent(fmt.Sprint("evt_", i)))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// execute runs a statement on the file without the store's knowledge.
func execute(t *testing.T, path, query string) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(query); err != nil {
		t.Fatal(err)
	}
}

func TestADamagedBodyIsNeverDelivered(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]string{
		"another byte": "UPDATE event_body SET data = CAST('X' || substr(data, 2) AS BLOB) WHERE event_seq = 1",
		"cut":          "UPDATE event_body SET data = substr(data, 2) WHERE event_seq = 1",
		"gone":         "DELETE FROM event_body WHERE event_seq = 1",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "postern.db")
			s := open(t, path)
			create(t, s, newEvent("evt_1"), newEvent("evt_2")) // both with one order key
			execute(t, path, damage)

			if _, err := s.Event(t.Context(), "evt_1"); err == nil || !strings.Contains(err.Error(), "damaged") {
				t.Errorf("get event: %v", err)
			}
			if leases := claim(t, s, 10); len(leases) != 0 {
				t.Fatalf("claimed %+v", leases)
			}
			ds, err := s.Deliveries(t.Context(), "evt_1")
			if err != nil {
				t.Fatal(err)
			}
			if d := ds[0]; d.State != relay.DeliveryDead || d.LastError != "the stored body is damaged" || d.LeaseOwner != "" {
				t.Errorf("got %+v", d)
			}
			// And it no longer stands in the way of the next of its key.
			if leases := claim(t, s, 10); len(leases) != 1 || leases[0].Event.ID != "evt_2" {
				t.Errorf("claimed %+v", leases)
			}
		})
	}
}

func TestABodyInAnUnknownFormIsAnErrorAndStays(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "postern.db")
	s := open(t, path)
	create(t, s, newEvent("evt_1"))
	execute(t, path, "UPDATE event_body SET codec = 9")
	_, err := s.ClaimDeliveries(t.Context(), relay.Claim{App: "shop", Endpoint: "stripe", Limit: 1, Now: now()})
	if err == nil || !strings.Contains(err.Error(), "form 9") {
		t.Fatalf("claim: %v", err)
	}
	execute(t, path, "UPDATE event_body SET codec = 0")
	if leases := claim(t, s, 1); len(leases) != 1 {
		t.Fatal("the failed claim was not undone")
	}
}
