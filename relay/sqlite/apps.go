package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/posternhq/postern/relay"
)

const (
	insertApp  = `INSERT INTO app (id, created_at) VALUES (?, ?) ON CONFLICT (id) DO NOTHING`
	selectApp  = `SELECT 1 FROM app WHERE id = ?`
	selectApps = `SELECT id, created_at FROM app ORDER BY id`
)

// EnsureApp implements relay.AppStore. It is called for every agent that
// connects, so that the usual answer, "known", comes from the read pool.
func (s *Store) EnsureApp(ctx context.Context, id relay.AppID, now time.Time) error {
	var known int
	err := s.reader.QueryRowContext(ctx, selectApp, id).Scan(&known)
	if err == nil {
		return nil
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("ensure app: %w", err)
	}
	return s.write(ctx, "ensure app", func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, insertApp, id, now.UnixMicro())
		return err
	})
}

// Apps implements relay.AppStore.
func (s *Store) Apps(ctx context.Context) ([]relay.App, error) {
	apps, err := list(ctx, s.reader, scanApp, selectApps)
	if err != nil {
		return nil, fmt.Errorf("list apps: %w", err)
	}
	return apps, nil
}

func scanApp(row scanner) (a relay.App, err error) {
	err = row.Scan(&a.ID, micros{&a.CreatedAt})
	return a, err
}
