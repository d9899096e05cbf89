package sqlite

import (
	"context"
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
func (s *Store) CreateToken(ctx context.Context, k relay.Token) error {
	return s.write(ctx, "create token", func(t *tx) error {
		_, err := t.exec(insertToken, k.ID, k.App, k.Scope,
			k.IssuedAt.UnixMicro(), timeArg(k.ExpiresAt), timeArg(k.RevokedAt))
		return err
	})
}

// RevokeToken implements relay.TokenStore.
func (s *Store) RevokeToken(ctx context.Context, id relay.TokenID, now time.Time) error {
	return s.write(ctx, "revoke token", func(t *tx) error {
		res, err := t.exec(revokeToken, now.UnixMicro(), id)
		if err == nil && res.changed == 0 {
			err = relay.Errorf(relay.NotFound, "there is no token %q", id)
		}
		return err
	})
}

// Tokens implements relay.TokenStore.
func (s *Store) Tokens(ctx context.Context) (tokens []relay.Token, err error) {
	err = s.read(ctx, "list tokens", func(c *conn) error {
		tokens, err = list(ctx, c, scanToken, selectTokens)
		return err
	})
	return tokens, err
}

// RevokedTokens implements relay.TokenStore. A token without an end stays in the
// set for ever.
func (s *Store) RevokedTokens(ctx context.Context, now time.Time) (ids []relay.TokenID, err error) {
	err = s.read(ctx, "list revoked tokens", func(c *conn) error {
		ids, err = list(ctx, c, scanTokenID, selectRevoked, now.UnixMicro())
		return err
	})
	return ids, err
}

func scanToken(r *row) relay.Token {
	return relay.Token{ID: relay.TokenID(r.str()), App: relay.AppID(r.str()), Scope: relay.Scope(r.str()),
		IssuedAt: r.time(), ExpiresAt: r.time(), RevokedAt: r.time()}
}

func scanTokenID(r *row) relay.TokenID { return relay.TokenID(r.str()) }
