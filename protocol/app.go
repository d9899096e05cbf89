package protocol

import (
	"errors"
	"fmt"
)

// AppID names one app of a customer. It is a DNS label, because the app is
// reached at <app>.<domain>, and it is also the "network address" under which
// every stream to the app is opened.
type AppID string

// MaxAppID is the longest AppID in bytes (RFC 1035, section 2.3.4).
const MaxAppID = 63

// Validate reports why id is not a lower-case DNS label, or nil.
func (id AppID) Validate() error {
	if id == "" {
		return errors.New("app name is empty")
	}
	if len(id) > MaxAppID {
		return fmt.Errorf("app name has %d characters, at most %d are allowed", len(id), MaxAppID)
	}
	for i := range len(id) {
		switch c := id[i]; {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
		case c == '-' && i > 0 && i < len(id)-1:
		default:
			return fmt.Errorf("app name %q: use a-z, 0-9 and inner hyphens", string(id))
		}
	}
	return nil
}
