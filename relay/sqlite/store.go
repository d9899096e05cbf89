package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"time"

	driver "modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

const (
	readers     = 4                // connections of the read pool
	lockTimeout = 10 * time.Second // longest wait for another process's lock
	lockRetry   = 5 * time.Millisecond
)

// Config says which file to open.
type Config struct {
	// Path of the database file. A new file is made with mode 0600; its folder
	// must exist. Required.
	Path string
	// Logger hears of migrations and of damage found later. Default: nobody does.
	Logger *slog.Logger
}

// Store is a relay.Store in one SQLite file. It is safe for concurrent use.
type Store struct {
	log    *slog.Logger
	writer *sql.DB // one connection; every transaction is BEGIN IMMEDIATE
	reader *sql.DB // query_only
}

// Open opens the database file, makes it when there is none, and brings its
// schema up to date. It refuses a file which is not a Postern database, is
// damaged, or was written by a newer version.
func Open(ctx context.Context, c Config) (*Store, error) {
	s, err := open(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", c.Path, explain(err))
	}
	return s, nil
}

func open(ctx context.Context, c Config) (*Store, error) {
	if c.Path == "" {
		return nil, errors.New("no path is given")
	}
	path, err := filepath.Abs(c.Path)
	if err != nil {
		return nil, err
	}
	if err := createFile(path); err != nil {
		return nil, err
	}
	s := &Store{log: c.Logger}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	// Pragmas are part of the connection string and not set once, because
	// database/sql replaces a connection that broke.
	s.writer, err = pool(path, 1, url.Values{
		"_txlock":       {"immediate"},
		"_synchronous":  {"FULL"}, // NORMAL may lose the last commits when power fails
		"_foreign_keys": {"1"},
		"_busy_timeout": {"100"}, // milliseconds, see whileBusy
	})
	if err != nil {
		return nil, err
	}
	if err := whileBusy(ctx, func() error { return s.prepare(ctx) }); err != nil {
		return nil, errors.Join(err, s.writer.Close())
	}
	s.reader, err = pool(path, readers, url.Values{"_query_only": {"1"}, "_busy_timeout": {"5000"}})
	if err != nil {
		return nil, errors.Join(err, s.writer.Close())
	}
	return s, nil
}

// Close waits for what is running and closes the file. The last connection to
// close, the writer's, moves the write-ahead log into the database file.
func (s *Store) Close() error {
	if err := errors.Join(s.reader.Close(), s.writer.Close()); err != nil {
		return fmt.Errorf("close store: %w", err)
	}
	return nil
}

// createFile makes an empty database file that only its owner can read; SQLite
// gives its log the same mode. The file appears under its name complete, by a
// link: opening and closing that name here would drop the locks which another
// Store of this process holds on it (POSIX, fcntl: "all locks removed when any
// file descriptor for that file is closed").
func createFile(path string) error {
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-store-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil // another process was faster
}

func pool(path string, conns int, params url.Values) (*sql.DB, error) {
	file := url.URL{Path: filepath.ToSlash(path)}
	connector, err := driver.NewConnector("file:" + file.EscapedPath() + "?" + params.Encode())
	if err != nil {
		return nil, err
	}
	db := sql.OpenDB(connector)
	db.SetMaxOpenConns(conns)
	db.SetMaxIdleConns(conns)
	return db, nil
}

// write runs do in one transaction that is durable when write returns nil. act
// names what failed when it does not.
func (s *Store) write(ctx context.Context, act string, do func(*sql.Tx) error) error {
	var tx *sql.Tx
	err := whileBusy(ctx, func() (err error) {
		tx, err = s.writer.BeginTx(ctx, nil)
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: %w", act, err)
	}
	defer tx.Rollback() // without effect after Commit
	if err := do(tx); err != nil {
		return fmt.Errorf("%s: %w", act, err)
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("%s: commit: %w", act, err)
	}
	return nil
}

// whileBusy repeats do while another process holds the lock that it needs. A
// longer busy_timeout would not do instead: SQLite looks again at intervals which
// grow to 100 ms, and so may miss every gap that a busy server leaves between its
// transactions, and for some locks it does not wait at all. do must be harmless
// to repeat.
func whileBusy(ctx context.Context, do func() error) error {
	deadline := time.Now().Add(lockTimeout)
	for {
		err := do()
		if resultCode(err) != sqlite3.SQLITE_BUSY || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(lockRetry):
		}
	}
}

// querier is a *sql.DB, *sql.Tx or *sql.Conn.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// scanner is a *sql.Row or *sql.Rows.
type scanner interface {
	Scan(dest ...any) error
}

// list gathers what scan makes of each row.
func list[T any](ctx context.Context, q querier, scan func(scanner) (T, error), query string, args ...any) ([]T, error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, rows.Err()
}

// exec runs one statement and returns how many rows it changed.
func exec(ctx context.Context, tx *sql.Tx, query string, args ...any) (int, error) {
	res, err := tx.ExecContext(ctx, query, args...)
	if err != nil {
		return 0, err
	}
	n, err := res.RowsAffected()
	return int(n), err
}

// resultCode is the primary SQLite result code in err's chain, or 0.
func resultCode(err error) int {
	var e *driver.Error
	if errors.As(err, &e) {
		return e.Code() & 0xff
	}
	return 0
}

// explain says in plain words what SQLite's code means to an operator.
func explain(err error) error {
	switch resultCode(err) {
	case sqlite3.SQLITE_NOTADB:
		return fmt.Errorf("the file is not a SQLite database: %w", err)
	case sqlite3.SQLITE_CORRUPT:
		return fmt.Errorf("the database file is damaged, restore it from a backup: %w", err)
	case sqlite3.SQLITE_CANTOPEN:
		return fmt.Errorf("the file cannot be opened for reading and writing: %w", err)
	case sqlite3.SQLITE_READONLY:
		return fmt.Errorf("the file or its folder cannot be written: %w", err)
	case sqlite3.SQLITE_BUSY:
		return fmt.Errorf("another process keeps the database locked: %w", err)
	}
	return err
}
