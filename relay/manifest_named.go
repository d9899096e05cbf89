package relay

import "strings"

const (
	expectedFormat = "a text in which {secret} stands for the value"
	expectedHeader = "the name of a header such as Authorization"
)

// checkSecrets checks the top-level secrets section and notes its names. The
// values are not resolved: nothing uses them yet, and a variable that nothing
// uses need not be set.
func (r *manifestReader) checkSecrets(p place) bool {
	p.secret = true
	for _, e := range r.entries(p) {
		if _, expected := parseName(e.name); expected != "" {
			r.failAt(e.key, p.path, "expected %s", expected)
			continue
		}
		r.named[e.name] = true
		if !r.isSecretMapping(e) {
			continue
		}
		f := r.fields(e, append([]string{"header", "format"}, secretKinds...)...)
		r.readSource(e, f)
		if f["header"].given() {
			parsed(r, f["header"], expectedHeader, parseHeaderName)
		}
		if f["format"].given() {
			parsed(r, f["format"], expectedFormat, func(s string) (string, string) {
				if !strings.Contains(s, "{secret}") || hasControl(s) {
					return "", expectedFormat
				}
				return s, ""
			})
		}
	}
	return p.given()
}

// parseHeaderName reads a token (RFC 9110, section 5.6.2).
func parseHeaderName(s string) (string, string) {
	for _, c := range s {
		if c <= ' ' || c >= 0x7f || strings.ContainsRune("\"(),/:;<=>?@[\\]{}", c) {
			return "", expectedHeader
		}
	}
	if s == "" || len(s) > 256 {
		return "", expectedHeader
	}
	return s, ""
}
