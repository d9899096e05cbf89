package sqlite

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"time"

	sqlite3 "modernc.org/sqlite/lib"

	"github.com/posternhq/postern/relay"
)

// writerPragmas set the write connection. They are part of the connection
// string, so that a connection which replaces a broken one has them too.
var writerPragmas = url.Values{
	"_synchronous":  {"FULL"}, // NORMAL may lose the last commits when power fails
	"_foreign_keys": {"0"},    // a look-up for every row inserted; see migrations/0002
	"_busy_timeout": {"100"},  // milliseconds, see whileBusy
	"_pragma": {
		"wal_autocheckpoint(0)", // see wal.go
		"temp_store(2)",         // no files for what a statement may have to undo
		"cache_size(-16384)",    // KiB; each commit looks through all of it
	},
}

// writer owns the write connection. Its fields are for its own goroutine.
type writer struct {
	path  string
	log   *slog.Logger
	queue queue
	pool  *pool // for checkpoints that readers stand in the way of
	ended chan struct{}

	c     *conn // nil after it broke, until the next batch
	lanes map[laneName]int64
	late  int64 // what the table lateness has, at least
	wal   walState
}

// run makes batches until the queue is closed and empty.
func (w *writer) run() {
	defer close(w.ended)
	for range w.queue.wake {
		for {
			waiting, closed := w.queue.look()
			if !waiting && closed {
				return
			}
			if !waiting {
				break
			}
			w.batch()
		}
		w.tidy(true)
	}
}

// batch commits what waits. The lock comes first: until another process gives it
// free the operations stay in the queue, and their callers may withdraw them.
func (w *writer) batch() {
	wanted := func() bool { waiting, _ := w.queue.look(); return waiting }
	if err := w.begin(wanted); err != nil {
		for _, o := range w.queue.take() { // none, when all were withdrawn
			o.done <- err
		}
		return
	}
	ops := w.queue.take()
	if len(ops) == 0 {
		w.rollback()
		return
	}
	err := w.commit(ops)
	for _, o := range ops {
		if err != nil {
			o.err = err
		}
		o.done <- o.err
	}
	w.tidy(false)
}

// begin opens a transaction that holds the write lock. It gives up after
// lockTimeout, or when wanted says that nobody waits any more.
func (w *writer) begin(wanted func() bool) error {
	if w.c == nil {
		c, err := connect(context.Background(), w.path, writerPragmas)
		if err != nil {
			return fmt.Errorf("open the write connection again: %w", explain(err))
		}
		w.c = c
	}
	err := whileBusy(wanted, func() error {
		_, err := w.c.exec("BEGIN IMMEDIATE")
		return err
	})
	if err != nil {
		w.repair(err)
		return fmt.Errorf("begin: %w", explain(err))
	}
	return nil
}

// commit runs ops in the open transaction and commits it. Each op gets an err
// of its own; the error returned is that of all of them.
//
// An operation that fails must leave nothing behind and not take its neighbours
// with it. A savepoint for each would do, but SQLite then copies every page that
// an operation touches, and failures are rare. So the first try goes without; an
// operation that failed after it had written something sends everybody through a
// second try with savepoints.
func (w *writer) commit(ops []*op) error {
	t, ok, err := w.try(ops, false)
	if err == nil && !ok {
		w.rollback()
		if err = w.begin(func() bool { return true }); err == nil {
			t, _, err = w.try(ops, true)
		}
	}
	if err == nil {
		err = t.flush()
	}
	if err == nil {
		if _, err = w.c.exec("COMMIT"); err != nil {
			err = fmt.Errorf("commit: %w", explain(err))
		}
	}
	if err != nil {
		w.rollback()
		w.repair(err)
		return err
	}
	w.late = max(w.late, t.late)
	return nil
}

// try runs every operation. ok is false when one failed half-way, and then the
// transaction is of no use. A failure of the database itself is err.
func (w *writer) try(ops []*op, careful bool) (t *tx, ok bool, err error) {
	t = newTx(w)
	for _, o := range ops {
		if careful {
			if _, err := w.c.exec("SAVEPOINT op"); err != nil {
				return nil, false, err
			}
		}
		w.c.wrote = false
		mark := len(t.deltas)
		o.err = o.run(t)
		if fatal(o.err) {
			return nil, false, explain(o.err)
		}
		if o.err != nil {
			t.deltas = t.deltas[:mark]
			if w.c.wrote && !careful {
				return nil, false, nil
			}
			if careful {
				w.lanes = make(map[laneName]int64)
				if _, err := w.c.exec("ROLLBACK TO op"); err != nil {
					return nil, false, err
				}
			}
		}
		if careful {
			if _, err := w.c.exec("RELEASE op"); err != nil {
				return nil, false, err
			}
		}
	}
	return t, true, nil
}

// rollback ends the open transaction, if SQLite has not done so itself.
func (w *writer) rollback() {
	w.lanes = make(map[laneName]int64)
	w.late = 0
	if w.c == nil {
		return
	}
	if _, err := w.c.exec("ROLLBACK"); err != nil && resultCode(err) != sqlite3.SQLITE_ERROR {
		w.repair(err) // SQLITE_ERROR: there is no transaction any more
	}
}

// repair gives up a connection whose state is in doubt; the next batch opens
// another. A disk that was only full needs none.
func (w *writer) repair(err error) {
	switch resultCode(err) {
	case 0:
		if !errors.Is(err, driver.ErrBadConn) {
			return
		}
	case sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_ERROR:
		return
	}
	if w.c == nil {
		return
	}
	w.log.Warn("the store's write connection is opened again", "error", err)
	if err := w.c.close(); err != nil {
		w.log.Warn("closing the store's broken connection failed", "error", err)
	}
	w.c = nil
}

// fatal reports whether err is the database's failure and not one operation's.
func fatal(err error) bool {
	switch resultCode(err) {
	case sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOMEM,
		sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_BUSY,
		sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_INTERRUPT:
		return true
	}
	return errors.Is(err, driver.ErrBadConn)
}

// whileBusy repeats do while another process holds the lock that it needs. A
// longer busy_timeout would not do instead: SQLite looks again at intervals which
// grow to 100 ms, and so may miss every gap that a busy server leaves between its
// transactions, and for some locks it does not wait at all. do must be harmless
// to repeat.
func whileBusy(wanted func() bool, do func() error) error {
	deadline := time.Now().Add(lockTimeout)
	for {
		err := do()
		if resultCode(err) != sqlite3.SQLITE_BUSY || time.Now().After(deadline) || !wanted() {
			return err
		}
		time.Sleep(lockRetry)
	}
}

// tx is one transaction as its operations see it: the connection, and the counts
// that are written once at its end.
type tx struct {
	*conn
	w      *writer
	deltas []delta
	high   int64 // the latest received_at so far
	known  bool  // high was looked up
	late   int64 // how much earlier than high an event of this transaction was received
}

func newTx(w *writer) *tx { return &tx{conn: w.c, w: w} }

// delta is a change of a count, on one of: a lane, an app, a replay.
type delta struct {
	lane    int64
	waiting int64

	app           relay.AppID
	events, bytes int64

	replay                relay.ReplayID
	done, dead, cancelled int64
}

// flush writes the counts.
func (t *tx) flush() error {
	lanes := make(map[int64]int64)
	apps := make(map[relay.AppID]delta)
	replays := make(map[relay.ReplayID]delta)
	for _, d := range t.deltas {
		if d.lane != 0 {
			lanes[d.lane] += d.waiting
		}
		if d.app != "" || d.events != 0 {
			sum := apps[d.app]
			sum.events, sum.bytes = sum.events+d.events, sum.bytes+d.bytes
			apps[d.app] = sum
		}
		if d.replay != "" {
			sum := replays[d.replay]
			sum.done, sum.dead, sum.cancelled = sum.done+d.done, sum.dead+d.dead, sum.cancelled+d.cancelled
			replays[d.replay] = sum
		}
	}
	for lane, n := range lanes {
		if n == 0 {
			continue
		}
		if _, err := t.exec(`UPDATE lane SET waiting = waiting + ? WHERE seq = ?`, n, lane); err != nil {
			return fmt.Errorf("count the backlog: %w", err)
		}
	}
	for app, d := range apps {
		if _, err := t.exec(`INSERT INTO usage (app, events, bytes) VALUES (?, ?, ?)
			ON CONFLICT (app) DO UPDATE SET events = events + excluded.events, bytes = bytes + excluded.bytes`,
			app, d.events, d.bytes); err != nil {
			return fmt.Errorf("count the usage: %w", err)
		}
	}
	for id, d := range replays {
		if _, err := t.exec(`UPDATE replay SET done = done + ?, dead = dead + ?, cancelled = cancelled + ? WHERE id = ?`,
			d.done, d.dead, d.cancelled, id); err != nil {
			return fmt.Errorf("count for the replay: %w", err)
		}
	}
	if t.late > t.w.late {
		if _, err := t.exec(`UPDATE lateness SET micros = ?1 WHERE micros < ?1`, t.late); err != nil {
			return fmt.Errorf("note the lateness: %w", err)
		}
	}
	return nil
}
