package policies

import (
	"cmp"
	"context"
	"fmt"

	"github.com/posternhq/postern/protocol/api"
	"github.com/posternhq/postern/relay"
)

// Promote puts the canary in force for all. Conflict when there is none.
func (p *Policies) Promote(ctx context.Context, by string) (api.ManifestVersion, error) {
	if err := p.take(ctx); err != nil {
		return api.ManifestVersion{}, err
	}
	defer p.give()
	return p.promote(ctx, by, "")
}

// promote has the turn from its caller.
func (p *Policies) promote(ctx context.Context, by, why string) (api.ManifestVersion, error) {
	ctx, cancel := finish(ctx)
	defer cancel()
	st := p.state.Load()
	if st.canary == nil {
		return api.ManifestVersion{}, relay.Errorf(relay.Conflict, "there is no canary that could be promoted")
	}
	promoted, before := st.canary.version, st.running.version
	promoted.Status, before.Status, before.EndedAt = relay.ManifestRunning, relay.ManifestReplaced, p.now()
	changed := []relay.ManifestVersion{promoted}
	if before.Number != 0 {
		changed = append(changed, before)
	}
	if err := p.cfg.Store.UpdateManifests(ctx, changed...); err != nil {
		return api.ManifestVersion{}, fmt.Errorf("promote manifest version: %w", err)
	}
	p.change(func(next *state) {
		next.running, next.canary, next.trial = st.canary, nil, nil
	})
	p.promoted.Add(1)
	p.cfg.Apply(st.canary.manifest)
	p.audit(ctx, by, "", didPromote, versionName(promoted.Number), why)
	return p.viewVersion(promoted, promoted.Status, st.canary.manifest), nil
}

// Rollback ends the canary, or goes back to the text of an earlier version, which
// becomes a new version by itself, in force at once and for all. To 0 means the canary
// if there is one, and else the version that ran before the running one; called again,
// it goes further back. The answer is what runs then.
func (p *Policies) Rollback(ctx context.Context, by string, req api.RollbackRequest) (api.ManifestVersion, error) {
	if err := checkNote(req.Note); err != nil {
		return api.ManifestVersion{}, err
	}
	if err := p.take(ctx); err != nil {
		return api.ManifestVersion{}, err
	}
	defer p.give()
	st := p.state.Load()
	running := st.running.version
	switch {
	case st.canary != nil && (req.To == 0 || req.To == running.Number):
		if err := p.takeBack(ctx, by, cmp.Or(req.Note, "by "+by)); err != nil {
			return api.ManifestVersion{}, err
		}
		return p.viewVersion(running, relay.ManifestRunning, st.running.manifest), nil
	case st.canary != nil && req.To == st.canary.version.Number:
		return api.ManifestVersion{}, relay.Errorf(relay.Conflict, "version %d is the canary; it can be promoted", req.To)
	case req.To == running.Number && running.Number != 0:
		return api.ManifestVersion{}, relay.Errorf(relay.Conflict, "version %d is running", req.To)
	}
	target, err := p.rollbackTarget(ctx, req.To, running)
	if err != nil {
		return api.ManifestVersion{}, err
	}
	m, err := p.parse(target.Source)
	if err != nil {
		return api.ManifestVersion{}, err
	}
	if err := fits(m); err != nil {
		return api.ManifestVersion{}, err
	}
	note := fmt.Sprintf("back to version %d", target.Number)
	if req.Note != "" {
		note += ": " + req.Note
	}
	out, err := p.install(ctx, proposal{source: target.Source, manifest: m, origin: originRollback, by: by,
		note: note, atOnce: true, takesBack: cmp.Or(req.Note, "by "+by)})
	if err == nil {
		p.rolledBack.Add(1)
	}
	return out, err
}

// rollbackTarget finds the version to go back to, with its source.
func (p *Policies) rollbackTarget(ctx context.Context, to int64, running relay.ManifestVersion) (relay.ManifestVersion, error) {
	if to == 0 {
		versions, err := p.cfg.Store.Manifests(ctx, lookBack)
		if err != nil {
			return relay.ManifestVersion{}, fmt.Errorf("list manifest versions: %w", err)
		}
		if to = origin(versions, running).Base; to == 0 {
			return relay.ManifestVersion{}, relay.Errorf(relay.Conflict, "there is no version before the running one")
		}
	}
	v, err := p.cfg.Store.Manifest(ctx, to)
	if err != nil {
		return v, fmt.Errorf("get manifest version: %w", err)
	}
	return v, nil
}

// origin is the version whose text v has, when v is a rollback to it: what ran before
// that one is what ran before v.
func origin(versions []relay.ManifestVersion, v relay.ManifestVersion) relay.ManifestVersion {
	if v.Origin != originRollback {
		return v
	}
	for _, older := range versions { // newest first
		if older.Number < v.Number && older.SHA256 == v.SHA256 && older.Origin != originRollback {
			return older
		}
	}
	return v
}

// takeBack ends the canary for a reason. The caller has the turn.
func (p *Policies) takeBack(ctx context.Context, by, why string) error {
	ctx, cancel := finish(ctx)
	defer cancel()
	v := p.state.Load().canary.version
	v.Status, v.EndedAt, v.Note = relay.ManifestRolledBack, p.now(), why
	if err := p.cfg.Store.UpdateManifests(ctx, v); err != nil {
		return fmt.Errorf("take canary back: %w", err)
	}
	p.change(func(next *state) { next.canary, next.trial = nil, nil })
	p.rolledBack.Add(1)
	p.audit(ctx, by, "", didRollback, versionName(v.Number), why)
	return nil
}

// maxNote is the longest note of a version and maxReason the longest reason of an
// order, in bytes.
const (
	maxNote   = 1000
	maxReason = 500
)

func checkNote(note string) error {
	if len(note) > maxNote || hasControl(note) {
		return relay.Errorf(relay.Invalid, "expected a note of at most %d bytes in one line", maxNote)
	}
	return nil
}
