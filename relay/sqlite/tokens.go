package sqlite

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/posternhq/postern/relay"
)

const (
	insertToken = `INSERT INTO token (id, app, scope, issued_at, expires_at, revoked_at) VALUES (?, ?, ?, ?, ?, ?)`
	revokeToken = `UPDATE token SET revoked_at = coalesce(revoked_at, ?) WHERE id = ?`

	selectTokens = `SELECT id, app, scope, issued_at, expires_at, revoked_at
		FROM token ORDER BY issued_at DESC, seq DESC`
	selectRevoked = `SELECT id FROM token
		WHERE revoked_at IS NOT NULL AND (expires_at IS NULL OR expires_at > ?)`
)

// CreateToken implements relay.TokenStore. An id that is taken is an error, and
// the stored token stays as it is.
func (s *Store) CreateToken(ctx context.Context, t relay.Token) error {
	return s.write(ctx, "create token", func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, insertToken, t.ID, t.App, t.Scope,
			t.IssuedAt.UnixMicro(), timeArg(t.ExpiresAt), timeArg(t.RevokedAt))
		return err
	})
}

// RevokeToken implements relay.TokenStore.
func (s *Store) RevokeToken(ctx context.Context, id relay.TokenID, now time.Time) error {
	return s.write(ctx, "revoke token", func(tx *sql.Tx) error {
		changed, err := exec(ctx, tx, revokeToken, now.UnixMicro(), id)
		if err == nil && changed == 0 {
			err = relay.Errorf(relay.NotFound, "there is no token %q", id)
		}
		return err
	})
}

// Tokens implements relay.TokenStore.
func (s *Store) Tokens(ctx context.Context) ([]relay.Token, error) {
	tokens, err := list(ctx, s.reader, scanToken, selectTokens)
	if err != nil {
		return nil, fmt.Errorf("list tokens: %w", err)
	}
	return tokens, nil
}

// RevokedTokens implements relay.TokenStore. A token without an end stays in the
// set for ever.
func (s *Store) RevokedTokens(ctx context.Context, now time.Time) ([]relay.TokenID, error) {
	ids, err := list(ctx, s.reader, scanTokenID, selectRevoked, now.UnixMicro())
	if err != nil {
		return nil, fmt.Errorf("list revoked tokens: %w", err)
	}
	return ids, nil
}

func scanToken(row scanner) (t relay.Token, err error) {
	err = row.Scan(&t.ID, &t.App, &t.Scope, micros{&t.IssuedAt}, micros{&t.ExpiresAt}, micros{&t.RevokedAt})
	return t, err
}

func scanTokenID(row scanner) (id relay.TokenID, err error) {
	err = row.Scan(&id)
	return id, err
}
