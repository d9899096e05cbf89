package inbox

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Bounds of the search for an order key.
const (
	maxKeyScan  = 4 << 20 // bytes of the body that are looked at
	maxKeyDepth = 32      // steps of the pointer
	maxOrderKey = 200     // bytes; a longer value is replaced by its hash
)

// orderKey is the value in body at a JSON pointer (RFC 6901), or "" when there
// is none: no pointer, not JSON, nothing there, or something that is not a
// string, number or boolean. An event without a key is delivered in no
// particular order; it is never refused.
func orderKey(pointer string, body []byte) string {
	if !strings.HasPrefix(pointer, "/") {
		return ""
	}
	steps := strings.Split(pointer[1:], "/")
	if len(steps) > maxKeyDepth {
		return ""
	}
	dec := json.NewDecoder(bytes.NewReader(body[:min(len(body), maxKeyScan)]))
	dec.UseNumber() // so that large ids keep their digits
	for _, step := range steps {
		// RFC 6901, section 4: first ~1, then ~0, or "~01" would become "/".
		step = strings.ReplaceAll(strings.ReplaceAll(step, "~1", "/"), "~0", "~")
		if !descend(dec, step) {
			return ""
		}
	}
	value, err := dec.Token()
	if err != nil {
		return ""
	}
	switch v := value.(type) {
	case string:
		return boundedKey(v)
	case json.Number:
		return boundedKey(v.String())
	case bool:
		return strconv.FormatBool(v)
	}
	return ""
}

// descend moves dec from the start of a value to the start of the member or
// element of it that step names, and reports whether there is one.
func descend(dec *json.Decoder, step string) bool {
	open, err := dec.Token()
	if err != nil {
		return false
	}
	switch open {
	case json.Delim('{'):
		for dec.More() {
			if key, err := dec.Token(); err != nil {
				return false
			} else if key == step {
				return true
			}
			if dec.Decode(&skipped{}) != nil {
				return false
			}
		}
	case json.Delim('['):
		index, err := strconv.Atoi(step)
		if err != nil || index < 0 || strconv.Itoa(index) != step {
			return false
		}
		for ; index > 0 && dec.More(); index-- {
			if dec.Decode(&skipped{}) != nil {
				return false
			}
		}
		return dec.More()
	}
	return false
}

// skipped is a JSON value that is passed over without being built.
type skipped struct{}

func (*skipped) UnmarshalJSON([]byte) error { return nil }

// boundedKey keeps equal keys equal and makes every key fit a database column:
// short, UTF-8, without a NUL.
func boundedKey(s string) string {
	if len(s) <= maxOrderKey && utf8.ValidString(s) && !strings.Contains(s, "\x00") {
		return s
	}
	sum := sha256.Sum256([]byte(s))
	return "sha256:" + hex.EncodeToString(sum[:])
}
