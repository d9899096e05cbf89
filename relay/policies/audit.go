package policies

import (
	"context"
	"fmt"

	"github.com/posternhq/postern/protocol/api"
	"github.com/posternhq/postern/relay"
)

// The authors that are no tokens.
const (
	byFile  = "file"
	byRelay = "relay"
)

// The actions of the audit log. They are part of the API and never renamed.
const (
	didApply    = "manifest.apply"
	didCanary   = "manifest.canary"
	didPromote  = "manifest.promote"
	didRollback = "manifest.rollback"
	didDeny     = "egress.deny"
	didAllow    = "egress.allow"
	didEnd      = "egress.end"
	didExpire   = "egress.expire" // an order or a line ended by itself
	didWarn     = "egress.warn"   // an exception or a line ends soon
)

// audit keeps who did what, and logs it. What was done is in force whether it can be
// kept or not.
func (p *Policies) audit(ctx context.Context, by string, app relay.AppID, action, subject, detail string) {
	now := p.now()
	e := relay.AuditEntry{ID: relay.NewAuditID(now), At: now, By: by, App: app, Action: action, Subject: subject, Detail: detail}
	p.cfg.Logger.Info("policies changed", "action", action, "by", by, "app", string(app), "subject", subject, "detail", detail)
	if err := p.cfg.Store.AddAudit(ctx, e); err != nil {
		p.cfg.Logger.Error("audit entry lost", "action", action, "by", by, "subject", subject, "error", err)
	}
}

// Audit lists who did what, newest first; app "" is all, limit 0 is 100.
func (p *Policies) Audit(ctx context.Context, app relay.AppID, limit int) (api.AuditList, error) {
	all, err := p.cfg.Store.Audit(ctx, app, limit)
	if err != nil {
		return api.AuditList{}, fmt.Errorf("list audit entries: %w", err)
	}
	list := api.AuditList{Entries: make([]api.AuditEntry, 0, len(all))}
	for _, e := range all {
		list.Entries = append(list.Entries, api.AuditEntry{ID: e.ID, At: e.At, By: e.By, App: string(e.App),
			Action: e.Action, Subject: e.Subject, Detail: e.Detail})
	}
	return list, nil
}
