package policies

import (
	"context"
	"fmt"
	"strconv"

	"github.com/posternhq/postern/protocol/api"
	"github.com/posternhq/postern/relay"
)

// Apply puts the text of req in force: for a canary first, when it says so and changes
// anything about calls. A text with errors is refused whole (Invalid, with
// relay.ManifestErrors in its chain), so is one made for another version than the
// running one (Conflict). The text that runs already is not applied again.
func (p *Policies) Apply(ctx context.Context, by string, req api.ManifestRequest) (api.ManifestVersion, error) {
	source := []byte(req.Source)
	m, err := p.parse(source)
	if err != nil {
		return api.ManifestVersion{}, err
	}
	if err := fits(m); err != nil {
		return api.ManifestVersion{}, err
	}
	if err := checkNote(req.Note); err != nil {
		return api.ManifestVersion{}, err
	}
	if err := p.take(ctx); err != nil {
		return api.ManifestVersion{}, err
	}
	defer p.give()
	st := p.state.Load()
	if running := st.running.version.Number; req.Base != 0 && req.Base != running {
		return api.ManifestVersion{}, relay.Errorf(relay.Conflict, "the text was made for version %d, and version %d is running", req.Base, running)
	}
	sum := digestOf(source)
	switch {
	case st.canary == nil && st.running.version.SHA256 == sum && st.running.broken == nil:
		return p.viewVersion(st.running.version, relay.ManifestRunning, st.running.manifest), nil
	case st.canary != nil && st.canary.version.SHA256 == sum && req.NoCanary:
		return p.promote(ctx, by, "applied without a canary")
	case st.canary != nil && st.canary.version.SHA256 == sum:
		return p.viewVersion(st.canary.version, relay.ManifestCanary, st.canary.manifest), nil
	}
	return p.install(ctx, proposal{source: source, manifest: m, origin: originAPI, by: by, note: req.Note, atOnce: req.NoCanary})
}

// proposal is a text that was found good.
type proposal struct {
	source           []byte
	manifest         *relay.Manifest
	origin, by, note string
	atOnce           bool // no canary

	// Of a rollback: the running version is not replaced but taken back, for a reason.
	takesBack string
}

// install makes a proposal the next version: stores it, signs it, puts it in force. The
// caller has the turn.
func (p *Policies) install(ctx context.Context, c proposal) (api.ManifestVersion, error) {
	ctx, cancel := finish(ctx)
	defer cancel()
	st, now := p.state.Load(), p.now()
	v := relay.ManifestVersion{
		Source: c.source, SHA256: digestOf(c.source), Origin: c.origin, AppliedAt: now, AppliedBy: c.by,
		Base: st.running.version.Number, Status: relay.ManifestRunning, Note: c.note,
	}
	tried := !c.atOnce && st.running.manifest != nil && c.manifest.Egress.Rollout.Canary > 0 &&
		!sameEgress(st.running.manifest, c.manifest)
	if tried {
		v.Status = relay.ManifestCanary
	}
	ended := st.ending(c, tried)
	for i := range ended {
		ended[i].EndedAt = now
	}
	var err error
	if v.Number, err = p.cfg.Store.AddManifest(ctx, v, ended...); err != nil {
		return api.ManifestVersion{}, fmt.Errorf("add manifest version: %w", err)
	}
	p.sign(&v)
	if err := p.cfg.Store.UpdateManifests(ctx, append(ended, v)...); err != nil {
		// It is stored as running: only its signature, and why others ended, is missing.
		p.cfg.Logger.Error("manifest version is stored without its signature", "version", v.Number, "error", err)
	}
	if c.origin == originFile {
		p.file = v.SHA256
	}
	made := newEdition(v, c.manifest, st.running)
	p.change(func(next *state) {
		next.canary, next.tried, next.trial = nil, nil, nil
		if tried {
			p.start(next, made)
		} else {
			next.running = made
		}
	})
	if !tried {
		p.cfg.Apply(c.manifest)
	}
	p.audit(ctx, c.by, "", c.action(tried), versionName(v.Number), c.detail(ended))
	out := p.viewVersion(v, v.Status, c.manifest)
	if st.canary != nil {
		out.Warnings = append(out.Warnings, fmt.Sprintf("version %d, which was a canary, has ended", st.canary.version.Number))
	}
	return out, nil
}

// ending are the versions that c takes the place of, as they are from then on but for
// the time.
func (s *state) ending(c proposal, tried bool) []relay.ManifestVersion {
	status, note := relay.ManifestReplaced, ""
	if c.takesBack != "" {
		status, note = relay.ManifestRolledBack, c.takesBack
	}
	var ended []relay.ManifestVersion
	end := func(e *edition) {
		v := e.version
		v.Status = status
		if note != "" {
			v.Note = note
		}
		ended = append(ended, v)
	}
	if s.canary != nil {
		end(s.canary)
	}
	if !tried && s.running.version.Number != 0 {
		end(s.running)
	}
	return ended
}

func (c proposal) action(tried bool) string {
	switch {
	case c.origin == originRollback:
		return didRollback
	case tried:
		return didCanary
	}
	return didApply
}

func (c proposal) detail(ended []relay.ManifestVersion) string {
	s := "origin " + c.origin
	for _, v := range ended {
		verb := "replaces"
		if v.Status == relay.ManifestRolledBack {
			verb = "takes back"
		}
		s += fmt.Sprintf(", %s version %d", verb, v.Number)
	}
	if c.note != "" {
		s += ": " + c.note
	}
	return s
}

func versionName(number int64) string { return "version " + strconv.FormatInt(number, 10) }
