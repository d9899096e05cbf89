package sqlite

import (
	"context"
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

// prepare makes the file ready to use. It may be repeated.
func (s *Store) prepare(ctx context.Context, c *conn) error {
	files, err := fs.Glob(migrations, "migrations/*.sql") // sorted
	if err != nil {
		return err
	}
	version, err := identify(c, len(files))
	if err != nil {
		return err
	}
	if version == 0 {
		// Only a file without any page takes this: retention gives freed pages
		// back, a few at a time.
		if err := c.script(ctx, "PRAGMA auto_vacuum=INCREMENTAL"); err != nil {
			return err
		}
	}
	if err := enterWAL(c); err != nil {
		return err
	}
	if version == len(files) {
		return nil
	}
	return s.migrate(ctx, c, files)
}

// identify returns the schema version of the file, 0 for a new one, and refuses
// what this program must not touch. It writes nothing.
func identify(c *conn, latest int) (int, error) {
	var app, version, objects int64
	_, err := c.one(func(r *row) { app, version, objects = r.int(), r.int(), r.int() }, `SELECT
		(SELECT application_id FROM pragma_application_id),
		(SELECT user_version FROM pragma_user_version),
		(SELECT count(*) FROM sqlite_schema)`)
	if err != nil {
		return 0, err
	}
	if app != applicationID && (app != 0 || version != 0 || objects != 0) {
		return 0, errors.New("the file is a database of another program")
	}
	if version > int64(latest) {
		return 0, fmt.Errorf("the database has schema version %d and this program knows up to %d: "+
			"a newer postern-relay wrote it, use that version or a later one", version, latest)
	}
	return int(version), nil
}

// enterWAL switches the file to the write-ahead log, once in its life.
func enterWAL(c *conn) error {
	var mode string
	_, err := c.one(func(r *row) { mode = r.str() }, "PRAGMA journal_mode=WAL")
	if err == nil && mode != "wal" {
		return fmt.Errorf("the write-ahead log cannot be used here, journal mode stays %q", mode)
	}
	return err
}

// migrate applies the files which the database does not have yet, all or none.
func (s *Store) migrate(ctx context.Context, c *conn, files []string) (err error) {
	if _, err := c.exec("BEGIN IMMEDIATE"); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	defer func() {
		if err != nil {
			c.exec("ROLLBACK") // the first error counts
		}
	}()
	// Again, now that the write lock is held: another process may have been here.
	version, err := identify(c, len(files))
	if err != nil {
		return err
	}
	for _, name := range files[version:] {
		text, err := migrations.ReadFile(name)
		if err != nil {
			return err
		}
		if err := c.script(ctx, string(text)); err != nil {
			return fmt.Errorf("apply %s: %w", name, err)
		}
	}
	mark := fmt.Sprintf("PRAGMA application_id=%d; PRAGMA user_version=%d", applicationID, len(files))
	if err := c.script(ctx, mark); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	if _, err := c.exec("COMMIT"); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	if version < len(files) {
		s.log.Info("store migrated", "from", version, "to", len(files))
	}
	return nil
}
