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

// micros scans a time; NULL is the zero time.
type micros struct{ to *time.Time }

func (m micros) Scan(v any) error {
	switch v := v.(type) {
	case nil:
		*m.to = time.Time{}
	case int64:
		*m.to = time.UnixMicro(v).UTC()
	default:
		return fmt.Errorf("a time is stored as %T", v)
	}
	return nil
}

// text scans a TEXT or BLOB into a string; NULL is the empty string.
type text struct{ to *string }

func (t text) Scan(v any) error {
	switch v := v.(type) {
	case nil:
		*t.to = ""
	case string:
		*t.to = v
	case []byte:
		*t.to = string(v)
	default:
		return fmt.Errorf("a string is stored as %T", v)
	}
	return nil
}

// header scans what encodeHeader made.
type header struct{ to *[]relay.Field }

func (h header) Scan(v any) error {
	s, ok := v.(string)
	if !ok {
		return fmt.Errorf("a header is stored as %T", v)
	}
	fields, err := decodeHeader(s)
	*h.to = fields
	return err
}

// encodeHeader makes JSON [["name","value"],...]. JSON text must be UTF-8 and a
// header line need not be, so each byte becomes the code point of its number:
// the ISO-8859-1 reading, which HTTP had in mind (RFC 9110, section 5.5).
func encodeHeader(fields []relay.Field) string {
	pairs := make([][2]string, len(fields))
	for i, f := range fields {
		pairs[i] = [2]string{widen(f.Name), widen(f.Value)}
	}
	out, _ := json.Marshal(pairs) // pairs of strings always have a JSON form
	return string(out)
}

func decodeHeader(s string) ([]relay.Field, error) {
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

// widen turns every byte into the rune of the same number.
func widen(s string) string {
	if isASCII(s) {
		return s
	}
	var b strings.Builder
	for i := range len(s) {
		b.WriteRune(rune(s[i]))
	}
	return b.String()
}

// narrow undoes widen; ok is false when s has a rune that is no byte.
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
