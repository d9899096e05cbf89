package sqlite

import (
	"context"

	"github.com/posternhq/postern/relay"
)

const (
	insertAudit = `INSERT INTO audit (id, at, made_by, app, action, subject, detail) VALUES (?, ?, ?, ?, ?, ?, ?)`

	auditColumns     = `id, at, made_by, app, action, subject, detail`
	selectAudit      = `SELECT ` + auditColumns + ` FROM audit ORDER BY seq DESC LIMIT ?`
	selectAuditOfApp = `SELECT ` + auditColumns + ` FROM audit WHERE app = ? ORDER BY seq DESC LIMIT ?`
)

// How many entries Audit lists.
const (
	defaultAudit = 100
	mostAudit    = 1000
)

// AddAudit implements relay.EgressStore. An id that is taken is an error.
func (s *Store) AddAudit(ctx context.Context, e relay.AuditEntry) error {
	return s.write(ctx, "add audit entry", func(t *tx) error {
		_, err := t.exec(insertAudit, e.ID, e.At.UnixMicro(), e.By, e.App, e.Action, e.Subject, e.Detail)
		return err
	})
}

// Audit implements relay.EgressStore.
func (s *Store) Audit(ctx context.Context, app relay.AppID, limit int) (all []relay.AuditEntry, err error) {
	if limit <= 0 {
		limit = defaultAudit
	}
	query, args := selectAudit, []any{min(limit, mostAudit)}
	if app != "" {
		query, args = selectAuditOfApp, []any{app, min(limit, mostAudit)}
	}
	err = s.read(ctx, "list audit entries", func(c *conn) error {
		all, err = list(ctx, c, scanAudit, query, args...)
		return err
	})
	return all, err
}

func scanAudit(r *row) relay.AuditEntry {
	return relay.AuditEntry{ID: r.str(), At: r.time(), By: r.str(), App: relay.AppID(r.str()),
		Action: r.str(), Subject: r.str(), Detail: r.str()}
}
