// Package provider knows how each sender of webhooks signs them, what it asks
// of an endpoint before it sends any, and where it puts the id, the type and the
// time of an event.
//
// It decides and nothing more: it reads no clock, writes no log, and opens no
// connection but through Config.Fetch. Keeping and delivering is others'
// business.
//
// The one rule to know: a signature covers the sender's own bytes. Verification
// sees the body and the headers as they arrived, before anything parses them,
// and what is read out of a body afterwards (an id, a type) never turns a good
// signature into a bad one.
//
//	Rules.Verify → row.greet    handshakes that nobody signs
//	             → row.judge    the signature: scheme.verify for all who share a secret
//	             → row.welcome  handshakes that are signed
//	             → row.about    id, type and time
package provider

import (
	"context"
	"math"
	"time"

	"github.com/posternhq/postern/relay"
)

// All lists the facts of all providers in alphabetical order.
func All() []relay.ProviderFacts {
	all := make([]relay.ProviderFacts, len(table))
	for i := range table {
		all[i] = table[i].ProviderFacts
	}
	return all
}

// Facts are those of the provider that a manifest calls name; the zero value
// when there is none.
func Facts(name string) relay.ProviderFacts {
	if row := lookup(name); row != nil {
		return row.ProviderFacts
	}
	return relay.ProviderFacts{}
}

// Config is what a Rules needs from outside.
type Config struct {
	// Fetch gets a document over https, for the certificates and confirmations of
	// senders that work with them. It bounds size and time and follows no
	// redirect. Nil fails every such verification.
	Fetch func(ctx context.Context, url string) ([]byte, error)
}

// Rules judges webhooks. It is safe for concurrent use.
type Rules struct {
	cfg    Config
	certs  *certificates
	tokens *tokens
}

// New makes Rules.
func New(cfg Config) *Rules {
	return &Rules{cfg: cfg, certs: newCertificates(cfg.Fetch), tokens: newTokens()}
}

// request is one webhook on its way through the rules.
type request struct {
	ctx   context.Context
	rules *Rules
	ep    relay.Endpoint
	in    relay.Incoming

	// trial is set while Explain looks for a cause: nothing is fetched, and
	// nothing is remembered.
	trial bool
}

// forever is a tolerance that any timestamp keeps.
const forever = time.Duration(math.MaxInt64)

// Verify applies the rules of ep's provider to in. A provider that is not in
// the table refuses everything: accepting what nobody can check would be worse.
//
// It never fails: whatever is wrong with the request is a Verdict that is not OK
// and says why. Trouble of our own, a certificate that cannot be had, is one
// with an Answer of 503, so that the sender tries again.
func (v *Rules) Verify(ctx context.Context, ep relay.Endpoint, in relay.Incoming) relay.Verdict {
	row := lookup(ep.Provider)
	if row == nil {
		return refuse("the endpoint's provider is not known to this relay")
	}
	r := request{ctx: ctx, rules: v, ep: ep, in: in}
	if row.greet != nil {
		answer, problem := row.greet(r)
		if answer != nil || problem != "" {
			return relay.Verdict{OK: problem == "", Reason: problem, Answer: answer, Handshake: true}
		}
	}
	verdict := row.judge(r)
	if !verdict.OK {
		return verdict
	}
	if row.welcome != nil {
		answer, problem := row.welcome(r)
		if answer != nil || problem != "" {
			return relay.Verdict{OK: problem == "", Verified: problem == "", Reason: problem, Answer: answer, Handshake: true}
		}
	}
	if row.about != nil {
		about := row.about(r)
		verdict.DedupeKey, verdict.Type = label(about.id), label(about.kind)
		if verdict.SentAt.IsZero() {
			verdict.SentAt = about.sentAt
		}
	}
	return verdict
}

// acceptAll is the provider "none": nothing is checked, and nothing is claimed.
func acceptAll(request) relay.Verdict { return relay.Verdict{OK: true} }
