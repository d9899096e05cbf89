package main

import (
	"database/sql"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// cloneSchema has what a relay's schema has and may come to have: keys of both
// kinds, a table without one, two rows of an event in one table, triggers.
const cloneSchema = `
CREATE TABLE event (seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, app TEXT NOT NULL, dedupe_key BLOB, body_len INTEGER NOT NULL) STRICT;
CREATE UNIQUE INDEX event_dedupe ON event(app, dedupe_key) WHERE dedupe_key IS NOT NULL;
CREATE TABLE event_body (event_seq INTEGER PRIMARY KEY REFERENCES event(seq), data BLOB) STRICT;
CREATE TABLE delivery (seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, event_seq INTEGER NOT NULL REFERENCES event,
  lane INTEGER NOT NULL REFERENCES lane(seq), state INTEGER NOT NULL, next_at INTEGER) STRICT;
CREATE TABLE attempt (delivery_seq INTEGER NOT NULL REFERENCES delivery(seq), number INTEGER NOT NULL, body BLOB, PRIMARY KEY (delivery_seq, number)) STRICT, WITHOUT ROWID;
CREATE TABLE label (event_seq INTEGER NOT NULL REFERENCES event(seq), name TEXT NOT NULL) STRICT;
CREATE TABLE token (seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE lane (seq INTEGER PRIMARY KEY, waiting INTEGER NOT NULL) STRICT;
CREATE UNIQUE INDEX event_file ON event_body(data) WHERE data = x'aa';
CREATE TABLE usage (app TEXT NOT NULL PRIMARY KEY, events INTEGER NOT NULL, bytes INTEGER NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO usage VALUES ('shop', 1, 42);
INSERT INTO lane VALUES (1, 2), (2, 0);
INSERT INTO token VALUES (1, 'tok_1');
INSERT INTO event VALUES (7, 'evt_0123456789abcdefghjkmnpqrs', 'shop', x'65767401ff', 42);
INSERT INTO event_body VALUES (7, x'00ff0a');
INSERT INTO delivery VALUES (3, 'dlv_0123456789abcdefghjkmnpqrs', 7, 1, 0, 1000), (9, 'dlv_zzzzzzzzzzzzzzzzzzzzzzzzzz', 7, 1, 2, NULL);
INSERT INTO attempt VALUES (3, 1, x'aa'), (9, 1, x'bb'), (9, 2, x'cc');
INSERT INTO label VALUES (7, 'red');
`

func TestClonesAreWholeEventsOfTheirOwn(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	db, err := openSQLite(filepath.Join(dir, "any.name"), "journal_mode=WAL")
	if err != nil {
		t.Fatal(err)
	}
	mustExec(t, db, cloneSchema)
	db.Close()
	for _, set := range []map[string]string{nil, {"next_at": "t.next_at + 5"}} {
		if err := cloneEvents(t.Context(), dir, 100, set); err != nil {
			t.Fatal(err)
		}
	}
	if db, err = openSQLite(filepath.Join(dir, "any.name")); err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for query, want := range map[string]int{
		"SELECT count(*) FROM event WHERE body_len = 42 AND app = 'shop'":                                                                    201,
		"SELECT count(DISTINCT dedupe_key) FROM event WHERE typeof(dedupe_key) = 'blob'":                                                     201,
		"SELECT count(*) FROM event WHERE id GLOB 'evt_0123456789abcdef*'":                                                                   201,
		"SELECT count(*) FROM event e JOIN event_body b ON b.event_seq = e.seq":                                                              201,
		"SELECT count(*) FROM event_body WHERE data = x'00ff0a'":                                                                             201,
		"SELECT count(*) FROM event e JOIN delivery d ON d.event_seq = e.seq":                                                                402,
		"SELECT count(*) FROM delivery d JOIN attempt a ON a.delivery_seq = d.seq":                                                           603,
		"SELECT count(*) FROM attempt WHERE body = x'cc' AND number = 2":                                                                     201,
		"SELECT count(*) FROM event e JOIN label l ON l.event_seq = e.seq":                                                                   201,
		"SELECT count(*) FROM delivery WHERE next_at = 1000":                                                                                 101,
		"SELECT count(*) FROM delivery WHERE next_at = 1005":                                                                                 100,
		"SELECT count(*) FROM delivery WHERE next_at IS NULL":                                                                                201,
		"SELECT count(*) FROM token":                                                                                                         1,
		"SELECT events FROM usage":                                                                                                           201,
		"SELECT bytes FROM usage":                                                                                                            201 * 42,
		"SELECT waiting FROM lane WHERE seq = 1":                                                                                             201,
		"SELECT waiting FROM lane WHERE seq = 2":                                                                                             0,
		"SELECT count(*) FROM pragma_foreign_key_check":                                                                                      0,
		"SELECT max(n) FROM (SELECT count(*) n FROM delivery GROUP BY event_seq)":                                                            2,
		"SELECT count(DISTINCT min) FROM (SELECT min(id) min FROM event GROUP BY seq)":                                                       201,
		"SELECT count(*) FROM (SELECT id, lag(id) OVER (ORDER BY seq) b FROM event) WHERE id <= b AND b <> 'evt_0123456789abcdefghjkmnpqrs'": 0,
	} {
		var got int
		if err := db.QueryRow(query).Scan(&got); err != nil || got != want {
			t.Errorf("%s: %d instead of %d, %v", query, got, want, err)
		}
	}
}

func mustExec(t *testing.T, db *sql.DB, query string) {
	t.Helper()
	if _, err := db.Exec(query); err != nil {
		t.Fatal(err)
	}
}

func TestThereMustBeSomethingToClone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := cloneEvents(t.Context(), dir, 1, nil); err == nil {
		t.Error("cloned without a database")
	}
	db, err := openSQLite(filepath.Join(dir, "x.db"))
	if err != nil {
		t.Fatal(err)
	}
	mustExec(t, db, "CREATE TABLE other (a)")
	if err := cloneEvents(t.Context(), dir, 1, nil); err == nil {
		t.Error("cloned without a table of events")
	}
	mustExec(t, db, "CREATE TABLE event (seq INTEGER PRIMARY KEY)")
	db.Close()
	if err := cloneEvents(t.Context(), dir, 1, nil); err == nil {
		t.Error("cloned without an event")
	}
}

func TestCommitsAreOneRowEach(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "commits.db")
	r, err := commitLoad{Path: path, Size: 2048, Warmup: 20 * time.Millisecond, Window: 100 * time.Millisecond}.run(t.Context())
	if err != nil || r.Ops == 0 || r.Seconds < 0.1 || r.P50 <= 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	db, err := openSQLite(path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var rows, size int64
	var mode string
	if err := db.QueryRow("SELECT count(*), max(length(body)), (SELECT journal_mode FROM pragma_journal_mode) FROM one").Scan(&rows, &size, &mode); err != nil {
		t.Fatal(err)
	}
	if rows < r.Ops || size != 2048 || mode != "wal" {
		t.Errorf("%d rows of %d bytes in mode %s, counted %d", rows, size, mode, r.Ops)
	}
}

// The two settings that make a commit durable are per connection or per file,
// and a misspelt one would pass silently.
func TestPragmasAreSet(t *testing.T) {
	t.Parallel()
	for pragma, want := range map[string]string{"synchronous=FULL": "2", "synchronous=OFF": "0", "cache_size=-4000": "-4000", "foreign_keys=OFF": "0"} {
		db, err := openSQLite(filepath.Join(t.TempDir(), "x.db"), pragma)
		if err != nil {
			t.Fatal(err)
		}
		var got string
		name, _, _ := strings.Cut(pragma, "=")
		if err := db.QueryRow("PRAGMA " + name).Scan(&got); err != nil || got != want {
			t.Errorf("%s: %q, %v", pragma, got, err)
		}
		db.Close()
	}
}
