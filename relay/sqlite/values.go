package sqlite

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/posternhq/postern/relay"
)

// timeArg is t for a column where NULL means no time.
func timeArg(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UnixMicro()
}

// textArg is s for a column where NULL means the empty string.
func textArg(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// bytesArg is s for a BLOB column where NULL means the empty string.
func bytesArg(s string) any {
	if s == "" {
		return nil
	}
	return []byte(s)
}

// notNil is b for a column which is NOT NULL: the driver stores nil as NULL.
func notNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// earlier is the earlier of two times, of which the zero one is never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// encodeHeader makes JSON [["name","value"],...]. JSON text must be UTF-8 and a
// header line need not be, so each byte becomes the code point of its number:
// the ISO-8859-1 reading, which HTTP had in mind (RFC 9110, section 5.5).
func encodeHeader(fields []relay.Field) string {
	size := 2
	for _, f := range fields {
		size += len(f.Name) + len(f.Value) + 8
	}
	out := append(make([]byte, 0, size), '[')
	for i, f := range fields {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(appendQuoted(append(out, '['), f.Name), ',')
		out = append(appendQuoted(out, f.Value), ']')
	}
	return string(append(out, ']'))
}

// appendQuoted adds s as a JSON string of the runes that have its bytes' numbers.
func appendQuoted(out []byte, s string) []byte {
	out = append(out, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			out = append(out, '\\', c)
		case c < ' ':
			out = fmt.Appendf(out, "\\u%04x", c)
		default:
			out = utf8.AppendRune(out, rune(c))
		}
	}
	return append(out, '"')
}

// decodeHeader reads what encodeHeader made, with little work when nothing in it
// had to be escaped.
func decodeHeader(s string) ([]relay.Field, error) {
	if s == "[]" {
		return nil, nil
	}
	inner, ok := strings.CutPrefix(s, `[["`)
	if ok && isASCII(s) && !strings.Contains(s, `\`) {
		if inner, ok = strings.CutSuffix(inner, `"]]`); ok {
			if fields, ok := splitHeader(inner); ok {
				return fields, nil
			}
		}
	}
	return parseHeader(s)
}

// splitHeader reads name","value"],["name","value and so on. ok is false for what
// only looks like it.
func splitHeader(s string) (fields []relay.Field, ok bool) {
	fields = make([]relay.Field, 0, strings.Count(s, `"],["`)+1)
	for pair := range strings.SplitSeq(s, `"],["`) {
		name, value, ok := strings.Cut(pair, `","`)
		if !ok || strings.Contains(name, `"`) || strings.Contains(value, `"`) {
			return nil, false
		}
		fields = append(fields, relay.Field{Name: name, Value: value})
	}
	return fields, true
}

func parseHeader(s string) ([]relay.Field, error) {
	var pairs [][2]string
	if err := json.Unmarshal([]byte(s), &pairs); err != nil {
		return nil, fmt.Errorf("read header: %w", err)
	}
	var fields []relay.Field
	for _, p := range pairs {
		name, ok1 := narrow(p[0])
		value, ok2 := narrow(p[1])
		if !ok1 || !ok2 {
			return nil, fmt.Errorf("read header: %q is not bytes", p)
		}
		fields = append(fields, relay.Field{Name: name, Value: value})
	}
	return fields, nil
}

// narrow turns every rune into the byte of the same number; ok is false when s
// has a rune that is no byte.
func narrow(s string) (bytes string, ok bool) {
	if isASCII(s) {
		return s, true
	}
	b := make([]byte, 0, len(s))
	for _, r := range s {
		if r > 0xff {
			return "", false
		}
		b = append(b, byte(r))
	}
	return string(b), true
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}
