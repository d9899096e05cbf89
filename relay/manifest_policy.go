package relay

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/posternhq/postern/protocol/policy"
)

// PolicyOf is what m lets app do, as far as a manifest says it: emergency denies,
// exceptions, the relay's addresses and the numbers of the version are for others to
// fill in. A nil m declares nothing.
func (m *Manifest) PolicyOf(id AppID) policy.Policy {
	p := policy.Policy{App: string(id), Mode: policy.Enforce, SNI: policy.SNIMatch}
	if m == nil {
		return p
	}
	p.Deny, p.Holes, p.Quotas = m.Egress.Deny, m.Egress.Holes, m.Egress.Quotas
	app, ok := m.Apps[id]
	if !ok || !app.Egress.Declared {
		return p
	}
	e := app.Egress
	p.Declared, p.Mode, p.SNI, p.Limits = true, e.Mode, e.SNI, e.Limits
	p.Allow = e.Allow
	p.Deny = slices.Concat(m.Egress.Deny, e.Deny)
	return p
}

// expiresSoon is how long before its end a line of an allow list is spoken of.
const expiresSoon = 7 * 24 * time.Hour

// Warnings are what is well written and should still be looked at: lines that have
// ended or end within a week.
func (m *Manifest) Warnings(now time.Time) []string {
	var all []string
	for _, id := range slices.Sorted(maps.Keys(m.Apps)) {
		for _, rule := range m.Apps[id].Egress.Allow {
			if rule.Expires.IsZero() || now.Before(rule.Expires.Add(-expiresSoon)) {
				continue
			}
			verb := "ends"
			if !now.Before(rule.Expires) {
				verb = "has ended"
			}
			owner := ""
			if rule.Owner != "" {
				owner = ", owner " + rule.Owner
			}
			all = append(all, fmt.Sprintf("%s (line %d, %s%s) %s at %s", rule.Where, rule.Line, rule.Host, owner, verb, rule.Expires.Format(time.RFC3339)))
		}
	}
	return all
}
