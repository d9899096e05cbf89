package sqlite

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	driver "modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

const (
	lockTimeout = 10 * time.Second // longest wait for another process's lock
	lockRetry   = 5 * time.Millisecond
)

// DefaultMinFree is the default of Config.MinFree.
const DefaultMinFree = 256 << 20

// Config says which file to open.
type Config struct {
	// Path of the database file. A new file is made with mode 0600; its folder
	// must exist. Required.
	Path string
	// Logger hears of migrations and of damage found later. Default: nobody does.
	Logger *slog.Logger
	// MinFree is how many bytes the file system must have left for an event to be
	// taken. Default: DefaultMinFree; negative: the disk may become full.
	MinFree int64
}

// Store is a relay.Store in one SQLite file and a folder for large bodies. It is
// safe for concurrent use.
type Store struct {
	log    *slog.Logger
	pool   *pool   // who reads
	writer *writer // the only one that writes
	bodies bodies
	disk   disk
	close  func() error
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
	s := &Store{log: c.Logger, bodies: bodies{dir: path + "-bodies"}, disk: disk{dir: filepath.Dir(path), min: c.MinFree}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if c.MinFree == 0 {
		s.disk.min = DefaultMinFree
	}
	wc, err := connect(ctx, path, writerPragmas)
	if err != nil {
		return nil, err
	}
	wanted := func() bool { return ctx.Err() == nil }
	if err := whileBusy(wanted, func() error { return s.prepare(ctx, wc) }); err != nil {
		return nil, errors.Join(err, wc.close())
	}
	if err := whileBusy(wanted, func() error { return s.bodies.sweep(wc) }); err != nil {
		return nil, errors.Join(err, wc.close())
	}
	if s.pool, err = newPool(ctx, path); err != nil {
		return nil, errors.Join(err, wc.close())
	}
	s.writer = &writer{
		path: path, log: s.log, pool: s.pool, c: wc, lanes: make(map[laneName]int64),
		wal: newWAL(s.disk.min), queue: queue{wake: make(chan struct{}, 1)}, ended: make(chan struct{}),
	}
	s.close = sync.OnceValue(s.shut)
	go s.writer.run()
	return s, nil
}

// Close finishes what the writer was given, waits for the reads in progress and
// closes the file. Closing again does nothing. The last connection to close, the
// writer's, moves the write-ahead log into the database file.
func (s *Store) Close() error {
	if err := s.close(); err != nil {
		return fmt.Errorf("close store: %w", err)
	}
	return nil
}

func (s *Store) shut() error {
	s.writer.queue.close()
	<-s.writer.ended
	err := s.pool.close()
	if c := s.writer.c; c != nil {
		err = errors.Join(err, c.close())
	}
	return err
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

// write gives do to the writer and waits until what it did is durable. act names
// what failed when it does not become so. do may be run again after its work was
// undone, and must set what it returns anew each time.
func (s *Store) write(ctx context.Context, act string, do func(*tx) error) error {
	if err := s.writer.queue.do(ctx, &op{run: do}); err != nil {
		return fmt.Errorf("%s: %w", act, err)
	}
	return nil
}

// read gives do a connection for one query.
func (s *Store) read(ctx context.Context, act string, do func(*conn) error) error {
	if err := s.pool.read(ctx, do); err != nil {
		return fmt.Errorf("%s: %w", act, err)
	}
	return nil
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
