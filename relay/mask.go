package relay

import (
	"bytes"
	"slices"
	"strings"
)

// Hidden stands where a secret was taken out.
const Hidden = "[hidden]"

// minMasked is the length from which a secret is looked for: a shorter one is in
// every other text by chance.
const minMasked = 6

// MaskSecrets takes the endpoint's own secrets out of e, which some senders put
// into a header (GitLab's token), the address or the body (Graph's clientState).
// It reports whether there were any, and changes nothing that e shares.
func (e *Endpoint) MaskSecrets(event *Event) bool {
	masked := false
	for _, secret := range append(slices.Clip(e.Secrets), e.VerifyToken) {
		value := secret.Reveal()
		if len(value) < minMasked {
			continue
		}
		hide := func(s string) string {
			if !strings.Contains(s, value) {
				return s
			}
			masked = true
			return strings.ReplaceAll(s, value, Hidden)
		}
		fields := make([]Field, len(event.Header))
		for i, f := range event.Header {
			fields[i] = Field{Name: f.Name, Value: hide(f.Value)}
		}
		event.Header, event.Target, event.PublicURL = fields, hide(event.Target), hide(event.PublicURL)
		if bytes.Contains(event.Body, []byte(value)) {
			event.Body, masked = bytes.ReplaceAll(event.Body, []byte(value), []byte(Hidden)), true
		}
	}
	return masked
}
