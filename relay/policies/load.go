package policies

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/posternhq/postern/protocol/policy"
	"github.com/posternhq/postern/relay"
)

// lookBack is how many versions are looked through for the one that the file had last.
const lookBack = 10_000

// originFile, originAPI and originRollback say where a version came from.
const (
	originFile     = "file"
	originAPI      = "api"
	originRollback = "rollback"
)

// Load puts into force what the store has: the running version, a canary with the time
// that it has left, orders. Call it once, before everything else.
//
// A relay.ManifestErrors in the error means that the running version cannot be read any
// more, because a secret is gone or the format has changed: orders are in force,
// nothing is declared. The caller may go on to SetFile, which puts a new text in its
// place, and must not serve when that fails too.
func (p *Policies) Load(ctx context.Context) error {
	if err := p.take(ctx); err != nil {
		return err
	}
	defer p.give()
	versions, err := p.cfg.Store.Manifests(ctx, lookBack)
	if err != nil {
		return fmt.Errorf("load manifest versions: %w", err)
	}
	running, canary, broken, err := p.loadEditions(ctx, versions)
	if err != nil {
		return err
	}
	orders, err := p.cfg.Store.Orders(ctx, p.cfg.Now(), false)
	if err != nil {
		return fmt.Errorf("load orders: %w", err)
	}
	slices.Reverse(orders)
	past, err := p.loadPast(ctx)
	if err != nil {
		return err
	}
	p.change(func(next *state) {
		next.orders, next.past, next.running = orders, past, running
		if canary != nil {
			p.start(next, canary)
		}
	})
	if broken != nil {
		return fmt.Errorf("version %d of the manifest cannot be read any more: %w", running.version.Number, broken)
	}
	if running.manifest != nil {
		p.cfg.Apply(running.manifest)
	}
	return nil
}

// loadEditions reads the running version and the canary. A canary that cannot be read
// is taken back; a running version that cannot is broken.
func (p *Policies) loadEditions(ctx context.Context, versions []relay.ManifestVersion) (running, canary *edition, broken, err error) {
	running = &edition{}
	for _, v := range versions { // newest first
		if v.Origin == originFile && p.file == "" {
			p.file = v.SHA256
		}
		if v.Status != relay.ManifestRunning && v.Status != relay.ManifestCanary {
			continue
		}
		if v, err = p.cfg.Store.Manifest(ctx, v.Number); err != nil {
			return nil, nil, nil, fmt.Errorf("load manifest version: %w", err)
		}
		p.signLate(ctx, &v)
		m, problem := p.cfg.Parse(v.Source)
		switch {
		case v.Status == relay.ManifestRunning && problem == nil:
			running = newEdition(v, m, nil)
		case v.Status == relay.ManifestRunning:
			running, broken = &edition{version: v, broken: problem}, problem
		case problem == nil:
			canary = newEdition(v, m, nil)
		default:
			v.Status, v.EndedAt, v.Note = relay.ManifestRolledBack, p.now(), "it cannot be read any more"
			if err := p.cfg.Store.UpdateManifests(ctx, v); err != nil {
				return nil, nil, nil, fmt.Errorf("take canary back: %w", err)
			}
			p.audit(ctx, byRelay, "", didRollback, versionName(v.Number), v.Note)
		}
	}
	return running, canary, broken, nil
}

// signLate signs a version that a crash has left without its signature.
func (p *Policies) signLate(ctx context.Context, v *relay.ManifestVersion) {
	if v.Signature != "" || p.cfg.Sign == nil {
		return
	}
	p.sign(v)
	if err := p.cfg.Store.UpdateManifests(ctx, *v); err != nil {
		p.cfg.Logger.Error("manifest version is stored without its signature", "version", v.Number, "error", err)
	}
}

// loadPast finds the exceptions that ended a short time ago, and notes of what was
// warned already.
func (p *Policies) loadPast(ctx context.Context) ([]relay.Order, error) {
	now := p.cfg.Now()
	all, err := p.cfg.Store.Orders(ctx, now, true)
	if err != nil {
		return nil, fmt.Errorf("load ended orders: %w", err)
	}
	slices.Reverse(all)
	past := slices.DeleteFunc(all, func(o relay.Order) bool { return !mentioned(o, now) })
	entries, err := p.cfg.Store.Audit(ctx, "", 1000)
	if err != nil {
		return nil, fmt.Errorf("load audit entries: %w", err)
	}
	for _, e := range entries {
		switch e.Action {
		case didWarn:
			p.warned[e.Subject] = true
		case didExpire:
			p.ended[e.Subject] = true
		}
	}
	return past, nil
}

// SetFile says that the watched file has this text, which was parsed to m: at the
// start, when it changes, and when a secret that it refers to does. A text that the
// file had last already, however long ago and whatever ran since then, changes nothing,
// so that a restart does not undo what came through the API or was rolled back. Any
// other is a new version by "file", with a canary when it says so.
func (p *Policies) SetFile(ctx context.Context, source []byte, m *relay.Manifest) error {
	if err := fits(m); err != nil {
		return err
	}
	if err := p.take(ctx); err != nil {
		return err
	}
	defer p.give()
	sum := digestOf(source)
	if sum != p.file {
		_, err := p.install(ctx, proposal{source: source, manifest: m, origin: originFile, by: byFile})
		return err
	}
	return p.refresh(sum, m)
}

// refresh takes up m where its text is in force already: a secret may have changed. The
// caller has the turn.
func (p *Policies) refresh(sum string, m *relay.Manifest) error {
	st := p.state.Load()
	if st.canary != nil && st.canary.version.SHA256 == sum {
		p.change(func(next *state) { next.canary = newEdition(st.canary.version, m, st.canary) })
	}
	if st.running.version.SHA256 != sum {
		if st.running.broken != nil {
			return fmt.Errorf("version %d of the manifest cannot be read any more: %w", st.running.version.Number, st.running.broken)
		}
		return nil
	}
	if st.running.broken != nil {
		p.change(func(next *state) { next.running = newEdition(st.running.version, m, nil) })
	}
	p.cfg.Apply(m)
	return nil
}

// parse reads a text that somebody wants to have in force.
func (p *Policies) parse(source []byte) (*relay.Manifest, error) {
	m, err := p.cfg.Parse(source)
	var problems relay.ManifestErrors
	switch {
	case errors.As(err, &problems):
		return nil, &relay.Error{Code: relay.Invalid, Reason: "manifest", Message: problems.Error(), Err: problems}
	case err != nil:
		return nil, &relay.Error{Code: relay.Invalid, Reason: "manifest", Message: "the manifest cannot be read", Err: err}
	}
	return m, nil
}

// compiledOf is what e makes of app, besides what is in force: for questions.
func compiledOf(e *edition, app relay.AppID, s *state, edit func(*policy.Policy)) *policy.Compiled {
	full := policyOf(e, app, concerning(s.orders, app), s.own)
	if edit != nil {
		edit(&full)
	}
	return policy.Compile(&full)
}

// mentionTime is for how long an exception that has ended is spoken of.
const mentionTime = 24 * time.Hour

// mentioned reports whether o is an exception that ended by itself within the last day.
func mentioned(o relay.Order, now time.Time) bool {
	return o.Kind == relay.OrderAllow && o.EndedAt.IsZero() && !now.Before(o.Until) && now.Sub(o.Until) < mentionTime
}
