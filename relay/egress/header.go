package egress

import (
	"crypto/rand"
	"encoding/hex"
	"net/http"
	"strings"
)

// passedBy reports whether a message has been here before, by its Via lines
// (RFC 9110, section 7.6.3).
func passedBy(h http.Header, pseudonym string) bool {
	for _, line := range h["Via"] {
		for hop := range strings.SplitSeq(withoutComments(line), ",") {
			// received-protocol, received-by
			if f := strings.Fields(hop); len(f) >= 2 && strings.EqualFold(f[1], pseudonym) {
				return true
			}
		}
	}
	return false
}

// withoutComments drops what stands in parentheses, which may have commas.
func withoutComments(s string) string {
	if !strings.Contains(s, "(") {
		return s
	}
	depth := 0
	var out strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case c == '(':
			depth++
		case c == ')' && depth > 0:
			depth--
		case depth == 0:
			out.WriteByte(c)
		}
	}
	return out.String()
}

// addVia says that a message came this way.
func addVia(h http.Header, pseudonym string) {
	h["Via"] = append(h["Via"][:len(h["Via"]):len(h["Via"])], "1.1 "+pseudonym)
}

// keepTrace returns the request's traceparent, and puts a new one in the place of one
// that is missing or cannot be read; then there is no tracestate either (W3C Trace
// Context, section 3.3).
func keepTrace(h http.Header) string {
	if lines := h["Traceparent"]; len(lines) == 1 && validTraceparent(lines[0]) {
		return lines[0]
	}
	parent := newTraceparent()
	h["Traceparent"] = []string{parent}
	delete(h, "Tracestate")
	return parent
}

// validTraceparent reports whether s is a traceparent of version 00, or one of a later
// version that begins like it.
func validTraceparent(s string) bool {
	const length = 55
	if len(s) < length || s[2] != '-' || s[35] != '-' || s[52] != '-' {
		return false
	}
	version, trace, parent, flags := s[:2], s[3:35], s[36:52], s[53:55]
	switch {
	case !isHex(version), !isHex(trace), !isHex(parent), !isHex(flags),
		version == "ff", strings.Trim(trace, "0") == "", strings.Trim(parent, "0") == "":
		return false
	case version == "00":
		return len(s) == length
	}
	return len(s) <= 4*length && (len(s) == length || s[length] == '-')
}

func isHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// newTraceparent begins a trace, not sampled.
func newTraceparent() string {
	var id [24]byte
	rand.Read(id[:])
	id[0], id[16] = id[0]|1, id[16]|1 // never all zero
	return "00-" + hex.EncodeToString(id[:16]) + "-" + hex.EncodeToString(id[16:]) + "-00"
}
