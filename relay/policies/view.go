package policies

import (
	"context"
	"fmt"

	"github.com/posternhq/postern/protocol/api"
	"github.com/posternhq/postern/relay"
)

// Running is the running version with its source; NotFound when there is none.
func (p *Policies) Running(context.Context) (api.ManifestVersion, error) {
	e := p.state.Load().running
	if e.version.Number == 0 {
		return api.ManifestVersion{}, relay.Errorf(relay.NotFound, "no manifest was applied yet")
	}
	v := p.viewVersion(e.version, relay.ManifestRunning, e.manifest)
	v.Source = string(e.version.Source)
	return v, nil
}

// Version is one version with its source; NotFound when there is none.
func (p *Policies) Version(ctx context.Context, number int64) (api.ManifestVersion, error) {
	stored, err := p.cfg.Store.Manifest(ctx, number)
	if err != nil {
		return api.ManifestVersion{}, fmt.Errorf("get manifest version: %w", err)
	}
	v := p.viewVersion(stored, stored.Status, nil)
	v.Source = string(stored.Source)
	return v, nil
}

// Versions lists the newest, newest first, without source; limit 0 is 100.
func (p *Policies) Versions(ctx context.Context, limit int) (api.ManifestList, error) {
	all, err := p.cfg.Store.Manifests(ctx, limit)
	if err != nil {
		return api.ManifestList{}, fmt.Errorf("list manifest versions: %w", err)
	}
	list := api.ManifestList{Versions: make([]api.ManifestVersion, 0, len(all))}
	for _, v := range all {
		list.Versions = append(list.Versions, p.viewVersion(v, v.Status, nil))
	}
	return list, nil
}

// viewVersion shows v, without its source; m, when it is known, warns.
func (p *Policies) viewVersion(v relay.ManifestVersion, status relay.ManifestStatus, m *relay.Manifest) api.ManifestVersion {
	out := api.ManifestVersion{Number: v.Number, Status: string(status), Origin: v.Origin, AppliedAt: v.AppliedAt, AppliedBy: v.AppliedBy,
		Base: v.Base, EndedAt: v.EndedAt, Note: v.Note, SHA256: v.SHA256, Signature: v.Signature, KeyID: v.KeyID}
	if m == nil {
		return out
	}
	out.Warnings = m.Warnings(p.cfg.Now())
	for _, section := range m.Unused {
		out.Warnings = append(out.Warnings, section+" is without effect in this version")
	}
	return out
}

func (p *Policies) viewOrder(o relay.Order) api.Order {
	return api.Order{ID: o.ID, Kind: string(o.Kind), App: string(o.App), What: o.What, Reason: o.Reason, Owner: o.Owner, By: o.By,
		CreatedAt: o.CreatedAt, Until: o.Until, EndedAt: o.EndedAt, Live: o.Live(p.cfg.Now())}
}
