package relay

import (
	"net/http"
	"strings"
)

// hopByHop are the header lines that belong to one connection, not to the
// message (RFC 9110, section 7.6.1, and what older software still sends).
var hopByHop = [...]string{"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate",
	"Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Http2-Settings"}

// RemoveHopByHop drops from h what concerned only the connection it came over,
// also what its Connection lines name.
func RemoveHopByHop(h http.Header) {
	for _, names := range h["Connection"] {
		for name := range strings.SplitSeq(names, ",") {
			h.Del(strings.TrimSpace(name))
		}
	}
	for _, name := range hopByHop {
		delete(h, name)
	}
}
