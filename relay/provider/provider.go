// Package provider knows how each sender of webhooks signs them, and where it
// puts the id, the type and the time of an event.
//
// It decides and nothing more: it reads no clock, opens no connection, keeps
// nothing and logs nothing. Answering the sender is the ingress's business.
//
// The one rule to know: a signature covers the sender's own bytes. Verification
// sees the body and the headers as they arrived, before anything parses them,
// and what is read out of a body afterwards (an id, a type) never turns a good
// signature into a bad one.
package provider

import (
	"fmt"
	"net/http"
	"time"
	"unicode/utf8"

	"github.com/posternhq/postern/relay"
)

// Request is what a Provider looks at.
type Request struct {
	Header     http.Header
	Body       []byte
	URL        string // the public one, for providers that sign it
	Secrets    []relay.Secret
	ReceivedAt time.Time
}

// Provider is one row of the table.
type Provider struct {
	Name        string
	NeedsSecret bool // an endpoint without a secret would refuse everything

	// Verify never fails: whatever is wrong with the request is a Verdict that
	// is not OK and says why.
	Verify func(Request) relay.Verdict
}

// table is in the order of Names. Nobody changes it.
var table = [...]Provider{
	{Name: "github", NeedsSecret: true, Verify: verifyGitHub},
	{Name: "none", Verify: acceptAll},
	{Name: "stripe", NeedsSecret: true, Verify: verifyStripe},
}

// Lookup finds a provider by the name that a manifest uses.
func Lookup(name string) (Provider, bool) {
	for _, p := range table {
		if p.Name == name {
			return p, true
		}
	}
	return Provider{}, false
}

// Names lists the providers in alphabetical order.
func Names() []string {
	names := make([]string, len(table))
	for i, p := range table {
		names[i] = p.Name
	}
	return names
}

// Verify applies the rules of ep's provider to in. A provider that is not in
// the table refuses everything: accepting what nobody can check would be worse.
func Verify(ep relay.Endpoint, in relay.Incoming) relay.Verdict {
	p, ok := Lookup(ep.Provider)
	if !ok {
		return refuse("the endpoint's provider is not known to this relay")
	}
	return p.Verify(Request{
		Header:     in.Header,
		Body:       in.Body,
		URL:        in.PublicURL,
		Secrets:    ep.Secrets,
		ReceivedAt: in.ReceivedAt,
	})
}

// acceptAll is the provider "none": nothing is checked, and nothing is claimed.
func acceptAll(Request) relay.Verdict { return relay.Verdict{OK: true} }

func refuse(format string, args ...any) relay.Verdict {
	return relay.Verdict{Reason: fmt.Sprintf(format, args...)}
}

// single gets the value of a header that must be there exactly once. Which of
// two values the app's own library would check is anybody's guess, so two are
// refused. The second result says what is wrong, "" when nothing is.
func single(h http.Header, name string) (value, problem string) {
	values := h.Values(name)
	switch {
	case len(values) == 0:
		return "", fmt.Sprintf("the header %s is missing", name)
	case len(values) > 1:
		return "", fmt.Sprintf("the header %s is there %d times", name, len(values))
	case values[0] == "":
		return "", fmt.Sprintf("the header %s is empty", name)
	}
	return values[0], ""
}

// maxLabel bounds ids and types, which become database keys.
const maxLabel = 256

// label is s when it can be an id or a type, else "". An event without an id is
// only not deduplicated, so leaving out an odd one loses nothing.
func label(s string) string {
	if len(s) > maxLabel || !utf8.ValidString(s) {
		return ""
	}
	for _, r := range s {
		if r < ' ' || r == 0x7f {
			return ""
		}
	}
	return s
}

// Secretless lists the providers whose endpoints need no secret.
func Secretless() []string {
	var names []string
	for _, p := range table {
		if !p.NeedsSecret {
			names = append(names, p.Name)
		}
	}
	return names
}
