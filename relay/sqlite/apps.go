package sqlite

import (
	"context"
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
// connects, so that the usual answer, "known", comes from a read.
func (s *Store) EnsureApp(ctx context.Context, id relay.AppID, now time.Time) error {
	var known int64
	err := s.pool.read(ctx, func(c *conn) (err error) {
		known, err = c.number(selectApp, id)
		return err
	})
	if err != nil {
		return fmt.Errorf("ensure app: %w", err)
	}
	if known != 0 {
		return nil
	}
	return s.write(ctx, "ensure app", func(t *tx) error {
		_, err := t.exec(insertApp, id, now.UnixMicro())
		return err
	})
}

// Apps implements relay.AppStore.
func (s *Store) Apps(ctx context.Context) (apps []relay.App, err error) {
	err = s.read(ctx, "list apps", func(c *conn) error {
		apps, err = list(ctx, c, scanApp, selectApps)
		return err
	})
	return apps, err
}

func scanApp(r *row) relay.App {
	return relay.App{ID: relay.AppID(r.str()), CreatedAt: r.time()}
}
