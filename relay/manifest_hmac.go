package relay

import (
	"regexp"
	"slices"
	"strings"
)

// Limits of a scheme.
const (
	maxSigned    = 1024 // bytes of the template
	maxPrefix    = 64
	maxSeparator = 8
)

const signedBody = "{body}"

// readHMAC reads how the sender of an endpoint with provider hmac signs.
func (r *manifestReader) readHMAC(p place) *HMACScheme {
	if !p.given() {
		return nil
	}
	f := r.fields(p, "header", "prefix", "separator", "algorithm", "encoding", "key",
		"signed", "timestamp", "id_header", "type_header")
	r.require(p, f, "header")
	stamp := r.fields(f["timestamp"], "header", "unit")
	if f["timestamp"].given() {
		r.require(f["timestamp"], stamp, "header")
	}
	scheme := &HMACScheme{
		Header:          r.readHeaderName(f["header"]),
		Prefix:          r.readAround(f["prefix"], "a text in front of the signature of at most 64 visible characters", maxPrefix),
		Separator:       r.readAround(f["separator"], "a text between signatures of at most 8 characters", maxSeparator),
		Algorithm:       r.choice(f["algorithm"], "sha256", "sha1", "sha384", "sha512"),
		Encoding:        r.choice(f["encoding"], "hex", "base64", "base64url"),
		KeyFormat:       r.choice(f["key"], "raw", "hex", "base64"),
		TimestampHeader: r.readHeaderName(stamp["header"]),
		IDHeader:        r.readHeaderName(f["id_header"]),
		TypeHeader:      r.readHeaderName(f["type_header"]),
	}
	if f["timestamp"].given() {
		scheme.TimestampUnit = r.choice(stamp["unit"], "s", "ms", "rfc3339")
	}
	scheme.Signed = r.readSigned(f["signed"], f)
	return scheme
}

func (r *manifestReader) readHeaderName(p place) string {
	if !p.given() {
		return ""
	}
	name, _ := parsed(r, p, expectedHeader, parseHeaderName)
	return name
}

// readAround reads what stands before or between signatures in a header.
func (r *manifestReader) readAround(p place, what string, limit int) string {
	if !p.given() {
		return ""
	}
	s, _ := parsed(r, p, what, func(s string) (string, string) {
		if len(s) > limit || !visibleASCII(strings.ReplaceAll(s, " ", "")) {
			return "", what
		}
		return s, ""
	})
	return s
}

var (
	signedParts = []string{signedBody, "{timestamp}", "{id}", "{method}", "{url}", "{path}"}
	placeholder = regexp.MustCompile(`\{[A-Za-z_]*\}`)
)

// readSigned reads the template of what is signed; f are the keys beside it. A
// template without the body is refused: whoever saw one webhook could send any
// other body with its signature.
func (r *manifestReader) readSigned(p place, f map[string]place) string {
	if !p.given() {
		return signedBody
	}
	const what = "a text of at most 1024 bytes with {body} in it"
	signed, ok := parsed(r, p, what, func(s string) (string, string) {
		if len(s) > maxSigned || !strings.Contains(s, signedBody) {
			return "", what
		}
		return s, ""
	})
	if !ok {
		return ""
	}
	for _, part := range placeholder.FindAllString(signed, -1) {
		switch {
		case !slices.Contains(signedParts, part):
			r.fail(p, "unknown part %s; expected %s%s", quote(part), oneOf(signedParts), didYouMean(part, signedParts))
		case part == "{timestamp}" && !f["timestamp"].given():
			r.fail(p, "expected the key timestamp beside this one, which says what {timestamp} is")
		case part == "{id}" && !f["id_header"].given():
			r.fail(p, "expected the key id_header beside this one, which says what {id} is")
		}
	}
	return signed
}
