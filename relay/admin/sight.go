package admin

import (
	"bytes"
	"context"
	"strings"

	"github.com/posternhq/postern/relay"
)

// hiddenValue stands where a value was taken out.
const hiddenValue = relay.Hidden

// Reasons why a body is not shown.
const (
	noteExpired = "retention deleted the body"
	noteRefused = "the body was not kept: those of refused webhooks are for a short time, and not of all"
	noteHidden  = "the endpoint's redaction rules hide the body"
	noteGone    = "the endpoint is not in the manifest, so nobody knows what it hides; put it back to see the request"
)

// seen is an event as people may see it.
type seen struct {
	relay.Event
	endpoint relay.Endpoint // zero when it is gone
	gone     bool           // the manifest does not have the endpoint any more
	whole    bool           // nothing is hidden
}

// sight is e as people see it: without what its endpoint hides, and without the
// endpoint's own secrets, which some senders put into a header or the address.
// It changes nothing that e shares.
//
// Of an endpoint that the manifest has no more, no values are shown, to
// administrators neither: taking an endpoint away must not show more than before,
// and whoever may put it back can see everything again.
func (s *Server) sight(e relay.Event) seen {
	e.BodySize = max(e.BodySize, int64(len(e.Body))) // as it came, whatever is hidden
	ep, ok := s.cfg.Endpoint(e.App, e.Endpoint)
	if !ok {
		return seen{Event: withoutValues(e), gone: true}
	}
	shown := ep.Redact.Apply(e)
	masked := ep.MaskSecrets(&shown)
	return seen{Event: shown, endpoint: ep, whole: ep.Redact.Empty() && !masked}
}

// note says why there is no body, or "".
func (v *seen) note(stored *relay.Event) string {
	switch {
	case v.Body != nil || stored.BodySize == 0:
		return ""
	case stored.Body == nil && stored.Refusal != "":
		return noteRefused
	case stored.Body == nil:
		return noteExpired
	case v.gone:
		return noteGone
	}
	return noteHidden
}

// attempt is a as people see it. An app may well give back what it got, so its
// answers are treated as the event's own body is.
func (v *seen) attempt(a relay.Attempt) relay.Attempt {
	answer := relay.Event{Header: a.Header, Body: a.Body}
	if v.gone {
		answer = withoutValues(answer)
	} else {
		answer = v.endpoint.Redact.Apply(answer)
		v.endpoint.MaskSecrets(&answer)
	}
	a.Header, a.Body = answer.Header, answer.Body
	return a
}

// withoutValues is e with the names of things only.
func withoutValues(e relay.Event) relay.Event {
	fields := make([]relay.Field, len(e.Header))
	for i, f := range e.Header {
		fields[i] = relay.Field{Name: f.Name, Value: hiddenValue}
	}
	e.Header, e.Body = fields, nil
	e.Target, e.PublicURL = withoutQuery(e.Target), withoutQuery(e.PublicURL)
	return e
}

func withoutQuery(address string) string {
	path, _, found := strings.Cut(address, "?")
	if found {
		path += "?" + hiddenValue
	}
	return path
}

// How many bytes of bodies one search reads to see whether what it found is there
// for its asker, too.
const (
	searchBudget = 64 << 20
	searchRead   = 16 << 10 // what any read counts for at least
)

// search looks for a text in what people see. The store searches events whole:
// without this, somebody could guess a hidden value letter by letter.
type search struct {
	text string // "" finds everything
	read int64  // bytes of bodies so far
}

// finds reports whether e has the text. e comes from a list, without its body.
// spent says that it was not looked at, because enough was read.
func (s *Server) finds(ctx context.Context, q *search, e relay.Event) (found, spent bool, err error) {
	if q.text == "" {
		return true, false, nil
	}
	v := s.sight(e)
	if v.whole || v.mentions(q.text) {
		return true, false, nil
	}
	if v.gone {
		return false, false, nil
	}
	cost := max(e.BodySize, searchRead)
	if q.read > 0 && q.read+cost > searchBudget {
		return false, true, nil
	}
	q.read += cost
	stored, err := s.cfg.Store.Event(ctx, e.ID)
	if relay.CodeOf(err) == relay.NotFound {
		return false, false, nil // retention was faster
	}
	if err != nil {
		return false, false, err
	}
	v = s.sight(stored)
	return bytes.Contains(v.Body, []byte(q.text)), false, nil
}

// mentions reports whether text is in what is shown of v besides the body.
func (v *seen) mentions(text string) bool {
	for _, f := range v.Header {
		if strings.Contains(f.Name, text) || strings.Contains(f.Value, text) {
			return true
		}
	}
	return strings.Contains(v.Target, text) || strings.Contains(v.Type, text) || strings.Contains(v.DedupeKey, text)
}
