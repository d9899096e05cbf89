package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
)

// migrations holds NNNN_name.sql files, applied in the order of their names. The
// number of files applied is the schema version, kept in PRAGMA user_version.
//
//go:embed migrations/*.sql
var migrations embed.FS

// applicationID marks the file as ours (PRAGMA application_id): "Post".
const applicationID = 0x506f7374

// prepare makes the file ready to use, all on one connection. It may be repeated.
func (s *Store) prepare(ctx context.Context) error {
	files, err := fs.Glob(migrations, "migrations/*.sql") // sorted
	if err != nil {
		return err
	}
	conn, err := s.writer.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	version, err := identify(ctx, conn, len(files))
	if err != nil {
		return err
	}
	if version == 0 {
		// Only a file without any page takes this: retention will want to give
		// freed pages back, a few at a time.
		if _, err := conn.ExecContext(ctx, "PRAGMA auto_vacuum=INCREMENTAL"); err != nil {
			return err
		}
	}
	if err := enterWAL(ctx, conn); err != nil {
		return err
	}
	if version == len(files) {
		return nil
	}
	return s.migrate(ctx, conn, files)
}

// rowQuerier is a *sql.Conn or *sql.Tx.
type rowQuerier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// identify returns the schema version of the file, 0 for a new one, and refuses
// what this program must not touch. It writes nothing.
func identify(ctx context.Context, q rowQuerier, latest int) (int, error) {
	var app, version, objects int
	err := q.QueryRowContext(ctx, `SELECT
		(SELECT application_id FROM pragma_application_id),
		(SELECT user_version FROM pragma_user_version),
		(SELECT count(*) FROM sqlite_schema)`).Scan(&app, &version, &objects)
	if err != nil {
		return 0, err
	}
	if app != applicationID && (app != 0 || version != 0 || objects != 0) {
		return 0, errors.New("the file is a database of another program")
	}
	if version > latest {
		return 0, fmt.Errorf("the database has schema version %d and this program knows up to %d: "+
			"a newer postern-relay wrote it, use that version or a later one", version, latest)
	}
	return version, nil
}

// enterWAL switches the file to the write-ahead log, once in its life.
func enterWAL(ctx context.Context, conn *sql.Conn) error {
	var mode string
	err := conn.QueryRowContext(ctx, "PRAGMA journal_mode=WAL").Scan(&mode)
	if err == nil && mode != "wal" {
		return fmt.Errorf("the write-ahead log cannot be used here, journal mode stays %q", mode)
	}
	return err
}

// migrate applies the files which the database does not have yet, all or none.
func (s *Store) migrate(ctx context.Context, conn *sql.Conn, files []string) error {
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	defer tx.Rollback()
	// Again, now that the write lock is held: another process may have been here.
	version, err := identify(ctx, tx, len(files))
	if err != nil {
		return err
	}
	for _, name := range files[version:] {
		text, err := migrations.ReadFile(name)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, string(text)); err != nil {
			return fmt.Errorf("apply %s: %w", name, err)
		}
	}
	mark := fmt.Sprintf("PRAGMA application_id=%d; PRAGMA user_version=%d", applicationID, len(files))
	if _, err := tx.ExecContext(ctx, mark); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	s.log.Info("store migrated", "from", version, "to", len(files))
	return nil
}
