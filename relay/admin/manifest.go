package admin

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"unicode/utf8"

	"github.com/posternhq/postern/protocol/api"
	"github.com/posternhq/postern/relay"
)

// The longest lists.
const (
	maxVersions = 1000
	maxAudit    = 1000
)

// manifests is who knows the manifest's versions. They say what holds for all
// apps, so a token that reaches one app only has no business there.
func (s *Server) manifests(c *call) (Policies, error) {
	p, err := s.policies()
	if err == nil && c.home() != "" {
		err = relay.Errorf(relay.Forbidden, "the token is for the app %q only, and the manifest is all apps'", string(c.home()))
	}
	return p, err
}

func (s *Server) showManifest(c *call) (any, error) {
	p, err := s.manifests(c)
	if err != nil {
		return nil, err
	}
	return shown(p.Running(c.ctx()))
}

func (s *Server) listManifests(c *call) (any, error) {
	p, err := s.manifests(c)
	if err != nil {
		return nil, err
	}
	list, err := p.Versions(c.ctx(), c.query.number("limit", defaultList))
	list.Versions = append([]api.ManifestVersion{}, list.Versions...) // never null
	return shown(list, err)
}

func (s *Server) showVersion(c *call) (any, error) {
	p, err := s.manifests(c)
	if err != nil {
		return nil, err
	}
	n, err := strconv.ParseInt(c.path(), 10, 64)
	if err != nil || n < 1 {
		return nil, relay.Errorf(relay.NotFound, "there is no version %s of the manifest; versions are 1, 2, 3 …", quoted(c.path()))
	}
	return shown(p.Version(c.ctx(), n))
}

func (s *Server) applyManifest(c *call) (any, error) {
	p, req, err := s.manifestRequest(c)
	if err != nil {
		return nil, err
	}
	return shown(p.Apply(c.ctx(), by(c), *req))
}

func (s *Server) diffManifest(c *call) (any, error) {
	p, req, err := s.manifestRequest(c)
	if err != nil {
		return nil, err
	}
	diff, err := p.Diff(c.ctx(), *req)
	diff.Lines, diff.Flips = append([]string{}, diff.Lines...), append([]api.Flip{}, diff.Flips...) // never null
	return shown(diff, err)
}

// manifestRequest checks what comes with a text.
func (s *Server) manifestRequest(c *call) (Policies, *api.ManifestRequest, error) {
	p, err := s.manifests(c)
	if err != nil {
		return nil, nil, err
	}
	req := c.body.(*api.ManifestRequest)
	switch {
	case len(req.Source) > relay.MaxManifestSize:
		err = relay.Errorf(relay.TooLarge, "the manifest is longer than %d bytes", relay.MaxManifestSize)
	case req.Base < 0:
		err = relay.Errorf(relay.Invalid, "base is the number of a version; 0 is whichever runs")
	case req.SinceMS < 0 || req.SinceMS > maxSpanMS:
		err = relay.Errorf(relay.Invalid, "since_ms is from 0 to %d", maxSpanMS)
	default:
		err = checkTexts(field{"note", req.Note})
	}
	return p, req, err
}

func (s *Server) rollbackManifest(c *call) (any, error) {
	p, err := s.manifests(c)
	if err != nil {
		return nil, err
	}
	req := c.body.(*api.RollbackRequest)
	if req.To < 0 {
		return nil, relay.Errorf(relay.Invalid, "to is the number of a version; 0 is the one before")
	}
	if err := checkTexts(field{"note", req.Note}); err != nil {
		return nil, err
	}
	return shown(p.Rollback(c.ctx(), by(c), *req))
}

func (s *Server) promoteManifest(c *call) (any, error) {
	p, err := s.manifests(c)
	if err != nil {
		return nil, err
	}
	return shown(p.Promote(c.ctx(), by(c)))
}

func (s *Server) listAudit(c *call) (any, error) {
	p, err := s.policies()
	if err == nil {
		err = s.knows(c.ctx(), c.app)
	}
	if err != nil {
		return nil, err
	}
	list, err := p.Audit(c.ctx(), c.app, c.query.number("limit", defaultList))
	list.Entries = append([]api.AuditEntry{}, list.Entries...) // never null
	return shown(list, err)
}

// shown is v as a handler's answer.
func shown[T any](v T, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	return v, nil
}

// by says who asks, for the record.
func by(c *call) string { return string(c.who.Token) + " (" + string(c.who.Scope) + ")" }

// field is a text of a body.
type field struct{ name, value string }

// checkTexts bounds texts that are kept and shown to others.
func checkTexts(fields ...field) error {
	for _, f := range fields {
		if len(f.value) > maxText || !utf8.ValidString(f.value) || hasControls(f.value) {
			return relay.Errorf(relay.Invalid, "%s is text on one line of at most %d bytes", f.name, maxText)
		}
	}
	return nil
}

func hasControls(s string) bool {
	for _, r := range s {
		if r < ' ' || r == 0x7f {
			return true
		}
	}
	return false
}

// writeError answers with err. What is wrong with a manifest is shown whole: the
// text is the caller's own.
func writeError(w http.ResponseWriter, id string, err error) {
	var problems relay.ManifestErrors
	if !errors.As(err, &problems) || relay.CodeOf(err) != relay.Invalid {
		relay.WriteError(w, id, err)
		return
	}
	var e *relay.Error
	errors.As(err, &e)
	var answer api.ErrorAnswer
	answer.Error.Code, answer.Error.Reason, answer.Error.Message = string(e.Code), e.Reason, e.Message
	answer.Error.RequestID = id
	for _, p := range problems {
		answer.Error.Errors = append(answer.Error.Errors, api.ManifestProblem{Line: p.Line, Column: p.Column, Message: p.Message})
	}
	body, _ := json.Marshal(answer) // nothing in it can fail
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(e.Code.Status())
	w.Write(append(body, '\n'))
}

// manifestError is the answer to a text with problems.
func manifestError(problems relay.ManifestErrors) error {
	first, more := problems[0], ""
	if n := len(problems) - 1; n > 0 {
		more = ", and " + strconv.Itoa(n) + " more"
	}
	return &relay.Error{Code: relay.Invalid, Err: problems, Message: "the manifest is not valid: line " +
		strconv.Itoa(first.Line) + ", column " + strconv.Itoa(first.Column) + ": " + first.Message + more}
}
