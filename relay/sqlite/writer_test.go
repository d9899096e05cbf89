package sqlite

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	sqlite3 "modernc.org/sqlite/lib"

	"github.com/posternhq/postern/relay"
)

// hold keeps the writer busy until the function that it returns is called, so
// that what comes meanwhile is one batch.
func hold(t *testing.T, s *Store) (release func()) {
	t.Helper()
	started, end, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- s.write(context.Background(), "hold", func(*tx) error {
			close(started)
			<-end
			return nil
		})
	}()
	<-started
	return func() {
		close(end)
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// start runs do and returns when it waits in the queue as the nth.
func start(t *testing.T, s *Store, nth int, do func() error) <-chan error {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- do() }()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		s.writer.queue.mu.Lock()
		n := len(s.writer.queue.ingest) + len(s.writer.queue.others)
		s.writer.queue.mu.Unlock()
		if n == nth {
			return ended
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d operations wait, not %d", n, nth)
		}
	}
}

func createOne(s *Store, all ...relay.NewEvent) func() error {
	return func() error {
		_, err := s.CreateEvents(context.Background(), all)
		return err
	}
}

func TestAnOperationThatFailsHalfwayTakesNobodyWithIt(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	release := hold(t, s)
	bad := append(events(2, 1, "k", nil), events(1, 1, "", nil)...) // the second one's id is taken by then
	bad[1].Event.DedupeKey = ""
	var seen [2]*tx
	note := func(i int) func() error {
		return func() error {
			return s.write(context.Background(), "note", func(t *tx) error { seen[i] = t; return nil })
		}
	}
	ended := []<-chan error{
		start(t, s, 1, note(0)),
		start(t, s, 2, createOne(s, events(1, 1, "k", nil)...)),
		start(t, s, 3, createOne(s, bad...)),
		start(t, s, 4, createOne(s, events(3, 1, "k", nil)...)),
		start(t, s, 5, note(1)),
	}
	release()
	for i, e := range ended {
		if err := <-e; (err != nil) != (i == 2) {
			t.Errorf("operation %d: %v", i, err)
		}
	}
	if seen[0] == nil || seen[0] != seen[1] {
		t.Fatal("they were not in one batch")
	}
	got, err := s.Events(t.Context(), relay.EventFilter{})
	if err != nil || len(got) != 2 || got[0].Event.ID != eventID(3) || got[1].Event.ID != eventID(1) {
		t.Errorf("stored %+v, %v", got, err)
	}
	usage, err := s.Usage(t.Context())
	if err != nil || len(usage) != 1 || usage[0] != (relay.Usage{App: "shop", Events: 2, Waiting: 2}) {
		t.Errorf("usage %+v, %v", usage, err)
	}
}

func TestAFailedCommitIsTheErrorOfTheWholeBatch(t *testing.T) {
	t.Parallel()
	for name, sabotage := range map[string]func(*tx) error{
		"the commit": func(t *tx) error {
			_, err := t.exec("ROLLBACK") // so that there is nothing to commit
			return err
		},
		"an operation that fills the disk": func(t *tx) error {
			if _, err := t.number("PRAGMA max_page_count=1"); err != nil { // as many as there are
				return err
			}
			_, err := t.exec("INSERT INTO app VALUES (?, 1)", strings.Repeat("x", 1<<20))
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := openTemp(t)
			release := hold(t, s)
			ended := []<-chan error{
				start(t, s, 1, createOne(s, events(1, 1, "", nil)...)),
				start(t, s, 2, func() error { return s.write(context.Background(), "sabotage", sabotage) }),
				start(t, s, 3, createOne(s, events(2, 1, "", nil)...)),
			}
			release()
			for i, e := range ended {
				if err := <-e; err == nil || relay.CodeOf(err) != "" {
					t.Errorf("operation %d: %v", i, err)
				}
			}
			s.onWriter(t, func(tx *tx) error {
				_, err := tx.number("PRAGMA max_page_count=100000")
				return err
			})
			if err := createOne(s, events(1, 3, "", nil)...)(); err != nil {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

func TestTheWriterReplacesABrokenConnection(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	if err := createOne(s, events(1, 1, "", nil)...)(); err != nil {
		t.Fatal(err)
	}
	s.onWriter(t, func(tx *tx) error {
		_, err := tx.number("PRAGMA cache_size=77") // marks this connection
		return err
	})
	err := s.write(t.Context(), "break", func(*tx) error { return brokenError(t) })
	if resultCode(err) != sqlite3.SQLITE_CANTOPEN {
		t.Fatalf("got %v", err)
	}
	s.onWriter(t, func(tx *tx) error {
		cache, err := tx.number("PRAGMA cache_size")
		sync, err2 := tx.number("PRAGMA synchronous")
		if cache == 77 || sync != 2 {
			t.Errorf("cache_size %d, synchronous %d", cache, sync)
		}
		return errors.Join(err, err2)
	})
	if err := createOne(s, events(2, 1, "", nil)...)(); err != nil {
		t.Fatal(err)
	}
}

// brokenError is a SQLite error that leaves a connection in doubt.
func brokenError(t *testing.T) error {
	c, err := connect(context.Background(), t.TempDir(), nil)
	if err == nil {
		_, err = c.exec("SELECT 1 FROM sqlite_schema")
		c.close()
	}
	return err
}

func TestAnOperationThatStillWaitsCanBeWithdrawn(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	release := hold(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	ended := start(t, s, 1, func() error {
		_, err := s.CreateEvents(ctx, events(1, 1, "", nil))
		return err
	})
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) || relay.CodeOf(err) != "" {
		t.Fatalf("got %v", err)
	}
	release()
	if err := createOne(s, events(2, 1, "", nil)...)(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Event(t.Context(), eventID(1)); relay.CodeOf(err) != relay.NotFound {
		t.Fatalf("the withdrawn event: %v", err)
	}
}

func TestAnOperationInABatchWaitsForItsCommit(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	ctx, cancel := context.WithCancel(t.Context())
	started, end := make(chan struct{}), make(chan struct{})
	var committing atomic.Bool
	ended := make(chan error, 1)
	go func() {
		ended <- s.write(ctx, "wait", func(tx *tx) error {
			close(started)
			<-end
			committing.Store(true)
			_, err := tx.exec(insertApp, "late", 1)
			return err
		})
	}()
	<-started
	cancel()
	select {
	case err := <-ended:
		t.Fatalf("it did not wait: %v", err)
	case <-time.After(20 * time.Millisecond): // nothing tells that nothing happens
	}
	close(end)
	if err := <-ended; err != nil || !committing.Load() {
		t.Fatalf("got %v", err)
	}
	if apps, err := s.Apps(t.Context()); err != nil || len(apps) != 1 {
		t.Fatalf("apps %+v, %v", apps, err)
	}
}

func TestCloseFinishesWhatTheWriterWasGiven(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	release := hold(t, s)
	ended := []<-chan error{
		start(t, s, 1, createOne(s, events(1, 1, "", nil)...)),
		start(t, s, 2, createOne(s, events(2, 1, "", nil)...)),
	}
	closed := make(chan error, 1)
	go func() { closed <- s.Close() }()
	release()
	for _, e := range ended {
		if err := <-e; err != nil {
			t.Error(err)
		}
	}
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
	if err := createOne(s, events(3, 1, "", nil)...)(); !errors.Is(err, errClosed) {
		t.Errorf("after Close: %v", err)
	}
	again, err := Open(t.Context(), Config{Path: s.writer.path})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if n, err := again.CountEvents(t.Context(), relay.EventFilter{}); err != nil || n != 2 {
		t.Errorf("%d events, %v", n, err)
	}
}

func TestABatchTakesIngestFirstAndStarvesNobody(t *testing.T) {
	t.Parallel()
	q := queue{wake: make(chan struct{}, 1)}
	for i := range 1000 {
		q.add(&op{ingest: i%2 == 1, bytes: 100})
	}
	batch := q.take()
	if len(batch) != maxBatch {
		t.Fatalf("%d operations", len(batch))
	}
	for i, o := range batch {
		if o.ingest != (i < maxBatch-othersShare) {
			t.Fatalf("operation %d of %d: ingest %v", i, len(batch), o.ingest)
		}
	}
	total := len(batch)
	for batch = q.take(); len(batch) > 0; batch = q.take() {
		total += len(batch)
	}
	if total != 1000 {
		t.Errorf("%d operations were taken", total)
	}

	for range 10 {
		q.add(&op{ingest: true, bytes: maxBatchBytes / 3})
	}
	q.add(&op{ingest: true, bytes: 10 * maxBatchBytes})
	q.add(&op{bytes: 1})
	var sizes []int
	for batch = q.take(); len(batch) > 0; batch = q.take() {
		sizes = append(sizes, len(batch))
	}
	if fmt.Sprint(sizes) != "[4 3 3 1 1]" {
		t.Errorf("batches of %v", sizes)
	}
}

func TestTheLogStaysSmallWhileReadersPageWithoutABreak(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	s.onWriter(t, func(tx *tx) error {
		tx.w.wal = walState{idle: 50, busy: 100, keep: 200, large: 400, patience: 10 * time.Second}
		return nil
	})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	for range 2 * readers {
		go func() {
			for ctx.Err() == nil {
				if _, err := s.Events(context.Background(), relay.EventFilter{Limit: 5}); err != nil {
					ended <- err
					return
				}
			}
			ended <- nil
		}()
	}
	var largest int64
	body := make([]byte, 8<<10)
	for i := range 120 { // some 3000 pages through a log of 400
		if err := createOne(s, events(10*i, 5, "", body)...)(); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(s.writer.path + "-wal"); err == nil {
			largest = max(largest, info.Size())
		}
	}
	stop()
	for range 2 * readers {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if largest > 600*4096 {
		t.Errorf("the log grew to %d bytes", largest)
	}
}
