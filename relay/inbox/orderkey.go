package inbox

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"unicode/utf8"

	"github.com/posternhq/postern/relay"
)

// Bounds of the search for an order key.
const (
	maxKeyScan  = 4 << 20 // bytes of the body that are looked at
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
	value, ok := relay.JSONPointer(body[:min(len(body), maxKeyScan)], pointer)
	if !ok || string(value) == "null" {
		return ""
	}
	text, _ := relay.JSONText(value)
	return boundedKey(text)
}

// boundedKey keeps equal keys equal and makes every key fit a database column:
// short, UTF-8, without a NUL.
func boundedKey(s string) string {
	if len(s) <= maxOrderKey && utf8.ValidString(s) && !strings.Contains(s, "\x00") {
		return s
	}
	sum := sha256.Sum256([]byte(s))
	return "sha256:" + hex.EncodeToString(sum[:])
}
