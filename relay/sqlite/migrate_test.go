package sqlite

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/posternhq/postern/relay"
)

// madeBy1 makes a database as the first schema had it: events 1 to 4 with bodies
// "body N". 1 is done after two attempts; 2 and 3 wait with one order key, 2
// leased; 4 is dead, of another app, and was received before the others.
func madeBy1(t *testing.T, path string) {
	t.Helper()
	schema, err := migrations.ReadFile("migrations/0001_init.sql")
	if err != nil {
		t.Fatal(err)
	}
	c, err := connect(t.Context(), path, url.Values{"_foreign_keys": {"1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	run := func(script string) {
		t.Helper()
		if err := c.script(t.Context(), script); err != nil {
			t.Fatal(err)
		}
	}
	run("PRAGMA auto_vacuum=INCREMENTAL; PRAGMA journal_mode=WAL")
	run(string(schema))
	run(fmt.Sprintf("PRAGMA application_id=%d; PRAGMA user_version=1", applicationID))
	at := benchTime().UnixMicro()
	for i, e := range []struct {
		app      string
		received int64
		state    int
		key      string
		blocked  int
	}{{"shop", at, 2, "", 0}, {"shop", at + 1, 1, "k", 0}, {"shop", at + 2, 0, "k", 1}, {"web", at - 5_000_000, 3, "", 0}} {
		n := i + 1
		run(fmt.Sprintf(`INSERT INTO event VALUES (%[1]d, 'evt_%[1]d', '%[2]s', 'stripe', %[3]d, 'POST', x'2f61', x'75',
				'[["A","\u003cb"]]', 6, x'%[4]x', '::1', x'74', NULL, CAST('k%[1]d' AS BLOB), 1, %[5]d);
			INSERT INTO event_body VALUES (%[1]d, 0, CAST('body %[1]d' AS BLOB))`,
			n, e.app, e.received, sha256.Sum256(fmt.Appendf(nil, "body %d", n)), at+3_600_000_000))
		run(fmt.Sprintf(`INSERT INTO delivery (id, event_seq, app, endpoint, state, order_key, blocked, attempt, next_at,
				lease_owner, lease_until, lease_gen, last_status, last_error)
			VALUES ('dlv_%[1]d', %[1]d, '%[2]s', 'stripe', %[3]d, nullif(CAST('%[4]s' AS BLOB), x''), %[5]d, 0, %[6]d,
				iif(%[3]d = 1, 'n1', NULL), iif(%[3]d = 1, %[6]d, NULL), 3, 500, 'x')`,
			n, e.app, e.state, e.key, e.blocked, at))
	}
	for n := range 2 {
		run(fmt.Sprintf(`INSERT INTO attempt (delivery_seq, number, instance, outcome, status, retry_in, header, body, error)
			VALUES (1, %d, 'web.1', 0, 200, 0, '[]', x'6f6b', '')`, n+1))
	}
	run("INSERT INTO app VALUES ('shop', 1)")
}

func TestADatabaseOfTheFirstSchemaIsMigrated(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "postern.db")
	madeBy1(t, path)
	s, err := Open(t.Context(), Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	checkMigratedEvents(t, s)

	attempts, err := s.Attempts(t.Context(), "dlv_1")
	if err != nil || len(attempts) != 2 || attempts[1].Number != 2 || string(attempts[1].Body) != "ok" {
		t.Errorf("attempts %+v, %v", attempts, err)
	}
	usage, err := s.Usage(t.Context())
	want := []relay.Usage{{App: "shop", Events: 3, Bytes: 18, Waiting: 2}, {App: "web", Events: 1, Bytes: 6}}
	if err != nil || !reflect.DeepEqual(usage, want) {
		t.Errorf("usage %+v, %v", usage, err)
	}
	// The order of the key is kept, and fencing numbers grow.
	d, err := s.Delivery(t.Context(), "dlv_2")
	if err != nil || d.LeaseGen != 3 || d.LeaseOwner != "n1" || d.State != relay.DeliveryLeased {
		t.Fatalf("delivery %+v, %v", d, err)
	}
	if leases, err := s.ClaimDeliveries(t.Context(), benchClaim(5)); err != nil || len(leases) != 0 {
		t.Fatalf("claimed %+v, %v", leases, err)
	}
	if err := s.FinishAttempt(t.Context(), benchFinish(d)); err != nil {
		t.Fatal(err)
	}
	leases, err := s.ClaimDeliveries(t.Context(), benchClaim(5))
	if err != nil || len(leases) != 1 || leases[0].Delivery.ID != "dlv_3" || string(leases[0].Event.Body) != "body 3" {
		t.Fatalf("claimed %+v, %v", leases, err)
	}
	// And retention finds everything.
	done, err := s.Expire(t.Context(), benchTime().Add(time.Hour), 10)
	if err != nil || done != (relay.Expired{Events: 4, GivenUp: 1}) {
		t.Errorf("expired %+v, %v", done, err)
	}
	wantNoOrphans(t, s)
}

// A data folder of a release before keeps everything and gets what is new.
func TestADatabaseOfAnEarlierSchemaIsMigrated(t *testing.T) {
	t.Parallel()
	for version, files := range map[int][]string{
		2: {"0002_lanes"},
		3: {"0002_lanes", "0003_lastwords"},
	} {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "postern.db")
			madeBy1(t, path)
			c, err := connect(t.Context(), path, url.Values{"_foreign_keys": {"0"}})
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range files {
				text, err := migrations.ReadFile("migrations/" + name + ".sql")
				if err == nil {
					err = c.script(t.Context(), string(text))
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			err = c.script(t.Context(), fmt.Sprint("PRAGMA user_version=", version))
			if err := errors.Join(err, c.close()); err != nil {
				t.Fatal(err)
			}
			for again := range 2 { // and once more, with nothing to migrate
				useMigrated(t, path, again)
			}
		})
	}
}

// useMigrated opens the file, checks what the first schema had in it, and uses
// what later ones added.
func useMigrated(t *testing.T, path string, again int) {
	t.Helper()
	s, err := Open(t.Context(), Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	checkMigratedEvents(t, s)
	w := relay.LastWords{ID: "lw_1", App: "shop", Instance: "web.1", BootID: "b", EndedAt: benchTime(), Reason: "killed"}
	if err := s.SaveLastWords(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	all, err := s.LastWords(t.Context(), relay.LastWordsFilter{App: "shop"})
	if err != nil || len(all) != 1 || !reflect.DeepEqual(all[0], w) {
		t.Errorf("last words %+v, %v", all, err)
	}
	n, err := s.AddManifest(t.Context(), relay.ManifestVersion{Source: []byte("version: 1"), AppliedAt: benchTime()})
	if err != nil || n != int64(again+1) {
		t.Errorf("manifest %d, %v", n, err)
	}
	fresh, err := s.AddFlows(t.Context(), []relay.FlowSum{{App: "shop", Hour: benchTime(), Target: "a:1", Verdict: "allow"}})
	if err != nil || len(fresh) != 1-again {
		t.Errorf("new targets %+v, %v", fresh, err)
	}
}

func checkMigratedEvents(t *testing.T, s *Store) {
	t.Helper()
	e, err := s.Event(t.Context(), "evt_2")
	if err != nil || string(e.Body) != "body 2" || e.BodySize != 6 || e.Type != "t" || e.Target != "/a" || e.DedupeKey != "k2" ||
		!e.Verified || len(e.Header) != 1 || e.Header[0].Value != "<b" || !e.ExpiresAt.Equal(benchTime().Add(time.Hour)) {
		t.Errorf("event %+v, %v", e, err)
	}
	for _, tt := range []struct {
		filter relay.EventFilter
		want   string
	}{
		{relay.EventFilter{}, "[evt_4 evt_3 evt_2 evt_1]"},
		{relay.EventFilter{Until: benchTime()}, "[evt_4]"}, // committed last, received first
		{relay.EventFilter{Since: benchTime().Add(time.Microsecond)}, "[evt_3 evt_2]"},
		{relay.EventFilter{States: []relay.DeliveryState{relay.DeliveryDead}}, "[evt_4]"},
	} {
		got, err := s.Events(t.Context(), tt.filter)
		var ids []relay.EventID
		for _, l := range got {
			ids = append(ids, l.Event.ID)
		}
		if fmt.Sprint(ids) != tt.want || err != nil {
			t.Errorf("%+v: %v, %v", tt.filter, ids, err)
		}
	}
}

// wantNoOrphans checks that every row's parent is there. SQLite does not enforce
// it, see migrations/0002.
func wantNoOrphans(t *testing.T, s *Store) {
	t.Helper()
	err := s.pool.read(t.Context(), func(c *conn) error {
		orphans, err := c.number("SELECT count(*) FROM pragma_foreign_key_check")
		attempts, err2 := c.number(fmt.Sprintf("SELECT count(*) FROM attempt WHERE seq >> %d NOT IN (SELECT seq FROM delivery)", attemptBits))
		if orphans != 0 || attempts != 0 || err2 != nil {
			t.Errorf("%d orphans, and %d attempts without a delivery, %v", orphans, attempts, err2)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
