package sqlite

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	sqlite3 "modernc.org/sqlite/lib"

	"github.com/posternhq/postern/relay"
)

func openTemp(t testing.TB) *Store {
	t.Helper()
	s, err := Open(context.Background(), Config{Path: filepath.Join(t.TempDir(), "postern.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestConnectionsAreSetAsDocumented(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	for _, tt := range []struct {
		pragma         string
		writer, reader int
	}{
		{pragma: "synchronous", writer: 2, reader: 2}, // 2: FULL
		{pragma: "foreign_keys", writer: 1, reader: 0},
		{pragma: "query_only", writer: 0, reader: 1},
		{pragma: "busy_timeout", writer: 100, reader: 5000},
		{pragma: "auto_vacuum", writer: 2, reader: 2}, // 2: INCREMENTAL
		{pragma: "user_version", writer: 1, reader: 1},
	} {
		var writer, reader int
		if err := s.writer.QueryRow("PRAGMA " + tt.pragma).Scan(&writer); err != nil {
			t.Fatal(err)
		}
		if err := s.reader.QueryRow("PRAGMA " + tt.pragma).Scan(&reader); err != nil {
			t.Fatal(err)
		}
		if writer != tt.writer || reader != tt.reader {
			t.Errorf("%s: writer %d, reader %d, want %d and %d", tt.pragma, writer, reader, tt.writer, tt.reader)
		}
	}
}

// A query that walks a whole table gets slower with every webhook ever
// received. Walking a partial index of unfinished work is what Backlogs does.
func TestNoQueryWalksATable(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	byApp, _ := eventsQuery(relay.EventFilter{App: "a"}, 0)
	byEndpoint, _ := eventsQuery(relay.EventFilter{App: "a", Endpoint: "e"}, 0)
	nextPage, _ := eventsQuery(relay.EventFilter{App: "a", Endpoint: "e", Before: "x"}, 1)
	for name, tt := range map[string]struct{ query, want string }{
		"claim":          {claimDeliveries, "INDEX delivery_waiting (app=? AND endpoint=? AND state=? AND blocked=? AND next_at<?)"},
		"backlogs":       {selectBacklogs, "COVERING INDEX delivery_waiting"},
		"lease":          {selectLease, "SEARCH d USING INTEGER PRIMARY KEY"},
		"bury":           {buryDelivery, "USING INTEGER PRIMARY KEY"},
		"extend":         {extendLease, "(id=?)"},
		"release":        {releaseLeases, "INDEX delivery_lease"},
		"reclaim":        {reclaimExpired, "INDEX delivery_lease (lease_until<?)"},
		"finish":         {finishDelivery, "(id=?)"},
		"requeue":        {requeueDeliveries, "INDEX delivery_by_event (event_seq=?)"},
		"block":          {blockKey, "INDEX delivery_order (app=? AND endpoint=? AND order_key=? AND blocked=?)"},
		"unblock":        {unblockOldest, "INDEX delivery_order (app=? AND endpoint=? AND order_key=? AND blocked=?)"},
		"add delivery":   {insertDelivery, "INDEX delivery_order (app=? AND endpoint=? AND order_key=?)"},
		"add attempt":    {insertAttempt, "(delivery_seq=?)"},
		"duplicate":      {selectDuplicate, "INDEX event_dedupe (app=? AND endpoint=? AND dedupe_key=?)"},
		"event":          {selectEvent, "(id=?)"},
		"events, app":    {byApp, "INDEX event_by_app (app=?)"},
		"events":         {byEndpoint, "INDEX event_by_endpoint (app=? AND endpoint=?)"},
		"events, page":   {nextPage, "INDEX event_by_endpoint (app=? AND endpoint=? AND rowid<?)"},
		"deliveries":     {selectDeliveries, "INDEX delivery_by_event (event_seq=?)"},
		"attempts":       {selectAttempts, "(delivery_seq=?)"},
		"revoked tokens": {selectRevoked, "token_revoked"},
	} {
		plan := planOf(t, s, tt.query)
		if !strings.Contains(plan, tt.want) {
			t.Errorf("%s: the plan does not use %q:\n%s", name, tt.want, plan)
		}
		for step := range strings.Lines(plan) {
			onIndex := strings.Contains(step, "COVERING INDEX delivery_waiting") || // Backlogs
				strings.Contains(step, "INDEX delivery_lease") || // what is in flight
				strings.Contains(step, "token_revoked")
			sorted := strings.Contains(step, "TEMP B-TREE")
			if strings.HasPrefix(step, "SCAN") && !onIndex || sorted {
				t.Errorf("%s: %s\nin\n%s", name, step, plan)
			}
		}
	}
}

// planOf is what SQLite says that it would do, a line a step.
func planOf(t *testing.T, s *Store, query string) string {
	t.Helper()
	args := make([]any, 20) // NULL for each parameter
	for n := len(args); ; n-- {
		rows, err := s.writer.Query("EXPLAIN QUERY PLAN "+query, args[:n]...)
		if err != nil && n > 0 && strings.Contains(err.Error(), "arguments") {
			continue
		}
		if err != nil {
			t.Fatalf("%v: %s", err, query)
		}
		defer rows.Close()
		var b strings.Builder
		for rows.Next() {
			var id, parent, unused int
			var detail string
			if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
				t.Fatal(err)
			}
			b.WriteString(detail + "\n")
		}
		return b.String()
	}
}

func TestAFullDiskIsAnErrorAndPasses(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	if _, err := s.writer.Exec("PRAGMA max_page_count=60"); err != nil {
		t.Fatal(err)
	}
	big := make([]byte, 100<<10)
	stored := 0
	var err error
	for ; err == nil && stored < 10; stored++ {
		_, err = s.CreateEvents(t.Context(), events(stored, 1, "", big))
	}
	if resultCode(err) != sqlite3.SQLITE_FULL || relay.CodeOf(err) != "" || !strings.HasPrefix(err.Error(), "create events: ") {
		t.Fatalf("after %d events: %v with code %q", stored, err, relay.CodeOf(err))
	}
	if _, err := s.Event(t.Context(), eventID(stored-1)); relay.CodeOf(err) != relay.NotFound {
		t.Fatalf("half of the refused event is there: %v", err)
	}
	if _, err := s.Event(t.Context(), eventID(0)); err != nil {
		t.Fatalf("reading stopped too: %v", err)
	}
	if _, err := s.writer.Exec("PRAGMA max_page_count=100000"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.CreateEvents(t.Context(), events(stored-1, 1, "", big)); err != nil {
		t.Fatalf("with space again: %v", err)
	}
}

// database/sql replaces a connection that broke. The new one must sync as the
// first one did, or webhooks acknowledged later could be lost.
func TestAReplacedWriteConnectionIsSetLikeTheFirst(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	if _, err := s.writer.Exec("PRAGMA cache_size=77"); err != nil { // marks this connection
		t.Fatal(err)
	}
	conn, err := s.writer.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	conn.Raw(func(any) error { return driver.ErrBadConn })
	conn.Close()

	var synchronous, foreignKeys, cacheSize int
	err = s.writer.QueryRow("SELECT * FROM pragma_synchronous, pragma_foreign_keys, pragma_cache_size").
		Scan(&synchronous, &foreignKeys, &cacheSize)
	if err != nil || synchronous != 2 || foreignKeys != 1 || cacheSize == 77 {
		t.Fatalf("synchronous %d, foreign_keys %d, cache_size %d, %v", synchronous, foreignKeys, cacheSize, err)
	}
}

// What a transaction reads first must still hold when it writes, whoever else
// has the file open.
func TestATransactionHoldsTheWriteLockFromItsBeginning(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	var path string
	if err := s.writer.QueryRow("SELECT file FROM pragma_database_list").Scan(&path); err != nil {
		t.Fatal(err)
	}
	other, err := Open(t.Context(), Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	err = s.write(t.Context(), "hold", func(*sql.Tx) error {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		return other.EnsureApp(ctx, "shop", time.Unix(0, 0))
	})
	if err == nil {
		t.Fatal("two transactions could write at once")
	}
	if err := other.EnsureApp(t.Context(), "shop", time.Unix(0, 0)); err != nil {
		t.Fatal(err)
	}
}

func eventID(i int) relay.EventID { return relay.EventID(fmt.Sprintf("evt_%07d", i)) }

// events makes n events from number first on, each with one ready delivery.
func events(first, n int, key string, body []byte) []relay.NewEvent {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	all := make([]relay.NewEvent, n)
	for i := range all {
		id := eventID(first + i)
		all[i] = relay.NewEvent{
			Event: relay.Event{ID: id, App: "shop", Endpoint: "stripe", ReceivedAt: at, Method: "POST", Body: body,
				DedupeKey: string(id), Header: []relay.Field{{Name: "Content-Type", Value: "application/json"}}},
			Deliveries: []relay.Delivery{{
				ID: relay.DeliveryID("dlv_" + id), App: "shop", Endpoint: "stripe", NextAt: at, OrderKey: key,
			}},
		}
	}
	return all
}

func FuzzHeaderComesBackByteForByte(f *testing.F) {
	f.Add("Content-Type", "application/json")
	f.Add("X-\xff\x00", "caf\xe9 \u2028 \U0001f4a3 \\u0000 \"<&>")
	f.Fuzz(func(t *testing.T, name, value string) {
		in := []relay.Field{{Name: name, Value: value}, {Name: value, Value: name}}
		out, err := decodeHeader(encodeHeader(in))
		if err != nil || len(out) != 2 || out[0] != in[0] || out[1] != in[1] {
			t.Fatalf("%q came back as %q, %v", in, out, err)
		}
	})
}

func TestAHeaderThatWasNotEncodedHereIsAnError(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", "{}", `[["a","\u0100"]]`, `[["a`} {
		if got, err := decodeHeader(s); err == nil {
			t.Errorf("%q was read as %q", s, got)
		}
	}
}
