package sqlite

import (
	"context"
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

// onWriter runs do on the write connection, in a transaction.
func (s *Store) onWriter(t *testing.T, do func(*tx) error) {
	t.Helper()
	if err := s.write(t.Context(), "test", do); err != nil {
		t.Fatal(err)
	}
}

func eventID(i int) relay.EventID { return relay.EventID(fmt.Sprintf("evt_%010d", i)) }

// events makes n events from number first on, each with one ready delivery. The
// dedupe keys have no order, like those of most providers.
func events(first, n int, key string, body []byte) []relay.NewEvent {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	all := make([]relay.NewEvent, n)
	for i := range all {
		id := eventID(first + i)
		all[i] = relay.NewEvent{
			Event: relay.Event{ID: id, App: "shop", Endpoint: "stripe", ReceivedAt: at, Method: "POST", Body: body,
				DedupeKey: fmt.Sprintf("evt_%016x", uint64(first+i)*0x9e3779b97f4a7c15),
				Header:    []relay.Field{{Name: "Content-Type", Value: "application/json"}},
				// Not yet over: the tests know no retention but their own.
				BodyExpiresAt: at.Add(time.Hour), ExpiresAt: at.Add(2 * time.Hour)},
			Deliveries: []relay.Delivery{{
				ID: relay.DeliveryID("dlv_" + id), App: "shop", Endpoint: "stripe", NextAt: at, OrderKey: key,
			}},
		}
	}
	return all
}

func TestConnectionsAreSetAsDocumented(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	for _, tt := range []struct {
		pragma         string
		writer, reader int64
	}{
		{pragma: "synchronous", writer: 2, reader: 2}, // 2: FULL
		{pragma: "query_only", writer: 0, reader: 1},
		{pragma: "busy_timeout", writer: 100, reader: 5000},
		{pragma: "auto_vacuum", writer: 2, reader: 2}, // 2: INCREMENTAL
		{pragma: "wal_autocheckpoint", writer: 0, reader: 1000},
		{pragma: "temp_store", writer: 2, reader: 0},
		{pragma: "user_version", writer: 4, reader: 4},
	} {
		var writer, reader int64
		s.onWriter(t, func(tx *tx) (err error) {
			writer, err = tx.number("PRAGMA " + tt.pragma)
			return err
		})
		err := s.pool.read(t.Context(), func(c *conn) (err error) {
			reader, err = c.number("PRAGMA " + tt.pragma)
			return err
		})
		if err != nil || writer != tt.writer || reader != tt.reader {
			t.Errorf("%s: writer %d, reader %d, want %d and %d; %v", tt.pragma, writer, reader, tt.writer, tt.reader, err)
		}
	}
}

// A query that walks a whole table gets slower with every webhook ever received.
func TestNoQueryWalksATable(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	for name, tt := range map[string]struct{ query, want string }{
		"claim":           {selectReady, "INDEX delivery_ready (lane=? AND next_at<?)"},
		"lease":           {selectLease, "SEARCH d USING INTEGER PRIMARY KEY"},
		"bury":            {buryDelivery, "USING INTEGER PRIMARY KEY"},
		"extend":          {extendLease, "(id=?)"},
		"release":         {releaseLeases, "INDEX delivery_lease"},
		"reclaim":         {reclaimExpired, "INDEX delivery_lease (lease_until<?)"},
		"place":           {selectPlace, "(id=?)"},
		"failed":          {selectFailed, "INDEX delivery_failed (event_seq=?)"},
		"block":           {blockKey, "INDEX delivery_order (lane=? AND order_key=? AND blocked=?)"},
		"unblock":         {unblockOldest, "INDEX delivery_order (lane=? AND order_key=? AND blocked=?)"},
		"unfinished":      {selectUnfinished, "INDEX delivery_order (lane=? AND order_key=?)"},
		"duplicate":       {selectDuplicate, "INDEX event_dedupe (app=? AND endpoint=? AND dedupe_key=?)"},
		"highest":         {selectHigh, "SCAN event"}, // backwards, one row
		"backlogs":        {selectBacklogs, "INDEX delivery_ready (lane=?)"},
		"event":           {selectEvent, "(id=?)"},
		"deliveries":      {selectDeliveries, "INDEX delivery_by_event (event_seq=?)"},
		"of event":        {selectOfEvent, "INDEX delivery_by_event (event_seq=?)"},
		"attempts":        {selectAttempts, "SEARCH a USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"},
		"due":             {selectDue, "INDEX event_due (due_at<?)"},
		"open":            {selectOpen, "INDEX delivery_by_event (event_seq=?)"},
		"order key":       {selectKey, "INDEX delivery_by_event (event_seq=?)"},
		"replay's":        {selectOfReplay, "INDEX delivery_replay (replay=?)"},
		"replays of app":  {selectOfApp, "INDEX replay_by_app (app=?)"},
		"replay":          {selectReplay, "(id=?)"},
		"revoked tokens":  {selectRevoked, "token_revoked"},
		"app":             {filterQuery(t, s, relay.EventFilter{App: "a"}), "INDEX event_by_app (app=?)"},
		"app, page":       {filterQuery(t, s, relay.EventFilter{App: "a"}, "e.seq < 7"), "INDEX event_by_app (app=? AND rowid<?)"},
		"app, time":       {filterQuery(t, s, relay.EventFilter{App: "a", Since: benchTime()}), "INDEX event_by_app (app=? AND rowid>?)"},
		"time":            {filterQuery(t, s, relay.EventFilter{Since: benchTime(), Until: benchTime()}), "INTEGER PRIMARY KEY (rowid>? AND rowid<?)"},
		"endpoint":        {filterQuery(t, s, relay.EventFilter{App: "a", Endpoint: "e"}), "INDEX event_by_endpoint (app=? AND endpoint=?)"},
		"ids":             {filterQuery(t, s, relay.EventFilter{App: "a", IDs: []relay.EventID{"x"}}), "SEARCH e USING INTEGER PRIMARY KEY (rowid=?)"},
		"dead of app":     {filterQuery(t, s, relay.EventFilter{App: "a", States: []relay.DeliveryState{relay.DeliveryDead}}), "INDEX delivery_failed"},
		"ready":           {filterQuery(t, s, relay.EventFilter{States: []relay.DeliveryState{relay.DeliveryReady}}), "INDEX delivery_ready"},
		"done of app":     {filterQuery(t, s, relay.EventFilter{App: "a", States: []relay.DeliveryState{relay.DeliveryDone}}), "INDEX event_by_app (app=?)"},
		"newest of all":   {filterQuery(t, s, relay.EventFilter{}), "SCAN e"}, // backwards, as many as are asked for
		"file of a body":  {`SELECT 1 FROM event_body WHERE codec = 2 AND data = ?`, "event_body_file (data=?)"},
		"lane":            {selectLane, "(app=? AND endpoint=? AND destination=?)"},
		"usage":           {selectUsage, "INDEX sqlite_autoindex_lane_1 (app=?)"},
		"last words":      {lastWordsQueryOf(relay.LastWordsFilter{}), "SCAN last_words USING INDEX last_words_by_time"}, // backwards, as many as are asked for
		"of an app":       {lastWordsQueryOf(relay.LastWordsFilter{App: "a", Instance: "i"}), "INDEX last_words_by_app (app=?)"},
		"of an instance":  {lastWordsQueryOf(relay.LastWordsFilter{Instance: "i"}), "SCAN last_words USING INDEX last_words_by_time"}, // a hundred for each app
		"forgotten words": {forgetLastWords, "INDEX last_words_by_app (app=?)"},
		"replaced words":  {deleteLastWords, "INDEX last_words_boot (app=? AND instance=? AND boot_id=?)"},
		"flows":           {selectFlows, "SEARCH f USING PRIMARY KEY (hour>? AND hour<?)"}, // and a sort, of what is asked for
		"flows of app":    {selectFlowsOfApp, "SEARCH f USING PRIMARY KEY (hour=? AND app=?)"},
		"one flow more":   {expireFlows, "SEARCH flow_sum USING PRIMARY KEY (hour=? AND app=? AND target=?"},
		"known target":    {touchTarget, "PRIMARY KEY (app=? AND target=?)"},
		"targets":         {selectTargetsOfApp, "PRIMARY KEY (app=?)"},
		"live orders":     {selectLiveOrders, "INDEX egress_order_live (until>?)"},
		"order":           {selectOrder, "(id=?)"},
		"orders":          {selectOrders, "SCAN egress_order"}, // backwards, a thousand
		"audit":           {selectAudit, "SCAN audit"},         // backwards, as many as are asked for
		"audit of app":    {selectAuditOfApp, "audit_by_app (app=?)"},
		"manifests":       {selectManifests, "SCAN manifest"}, // backwards, as many as are asked for
		"manifest":        {selectManifest, "SEARCH m USING INTEGER PRIMARY KEY"},
		"start of a time": {`SELECT seq, high_at FROM event WHERE seq >= ? ORDER BY seq LIMIT 1`, "INTEGER PRIMARY KEY (rowid>?)"},
	} {
		plan := planOf(t, s, tt.query)
		if !strings.Contains(plan, tt.want) {
			t.Errorf("%s: the plan does not use %q:\n%s", name, tt.want, plan)
		}
		for step := range strings.Lines(plan) {
			small := strings.Contains(step, "INDEX delivery_") || // partial: what is unfinished or failed
				strings.Contains(step, "token_revoked") || strings.Contains(step, "json_each") ||
				step == "SCAN l\n" || step == "SCAN u\n" || step == "SCAN h\n" || step == tt.want+"\n"
			sorted := strings.Contains(step, "TEMP B-TREE FOR ORDER BY") && name != "order key" && // of one event
				!strings.HasPrefix(name, "flows") // of what is asked for
			if strings.HasPrefix(step, "SCAN") && !small || sorted {
				t.Errorf("%s: %s\nin\n%s", name, step, plan)
			}
		}
	}
}

func lastWordsQueryOf(f relay.LastWordsFilter) string {
	query, _ := lastWordsQuery(f)
	return query
}

// filterQuery is the query for one page of a filter.
func filterQuery(t *testing.T, s *Store, f relay.EventFilter, more ...string) string {
	t.Helper()
	var query string
	err := s.pool.read(t.Context(), func(c *conn) error {
		q, err := c.compile(&f)
		if err != nil {
			return err
		}
		for _, cond := range more {
			q.add(cond)
		}
		query, _ = q.page("e.seq, "+eventColumns, "", 0, 10)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return query
}

// planOf is what SQLite says that it would do, a line a step.
func planOf(t *testing.T, s *Store, query string) string {
	t.Helper()
	var b strings.Builder
	args := make([]any, strings.Count(query, "?")) // NULL for each parameter
	err := s.pool.read(t.Context(), func(c *conn) error {
		return c.each(t.Context(), func(r *row) error {
			r.int()
			r.int()
			r.int()
			b.WriteString(r.str() + "\n")
			return nil
		}, "EXPLAIN QUERY PLAN "+query, args...)
	})
	if err != nil {
		t.Fatalf("%v: %s", err, query)
	}
	return b.String()
}

func TestAFullDatabaseIsAnErrorAndPasses(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	s.onWriter(t, func(tx *tx) error {
		_, err := tx.number("PRAGMA max_page_count=90")
		return err
	})
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
	s.onWriter(t, func(tx *tx) error {
		_, err := tx.number("PRAGMA max_page_count=100000")
		return err
	})
	if _, err := s.CreateEvents(t.Context(), events(stored-1, 1, "", big)); err != nil {
		t.Fatalf("with space again: %v", err)
	}
}

// What a transaction reads first must still hold when it writes, whoever else
// has the file open.
func TestATransactionHoldsTheWriteLockFromItsBeginning(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	other, err := Open(t.Context(), Config{Path: s.writer.path})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	err = s.write(t.Context(), "hold", func(*tx) error {
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
