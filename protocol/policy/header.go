package policy

import (
	"net/http"
	"strings"
)

// CleanRequest drops from an app's request what is not for its destination: what
// belongs to the connection, what proxies tell each other, and what a client might
// command us with. httputil.ReverseProxy does the rest (RFC 9110, section 7.6.1).
func CleanRequest(h http.Header) {
	for name := range h {
		if forUs(strings.ToLower(name)) {
			delete(h, name)
		}
	}
	// Only WebSocket is let through: h2c would carry requests that nobody judges
	// (RFC 9110, section 7.8: a proxy may ignore Upgrade).
	if up := h["Upgrade"]; len(up) > 0 && (len(up) != 1 || !strings.EqualFold(strings.TrimSpace(up[0]), "websocket")) {
		delete(h, "Upgrade")
	}
	delete(h, "Http2-Settings")
}

// forUs reports whether a header line of this name, in lower case, ends here.
func forUs(name string) bool {
	for _, prefix := range []string{"proxy-", "x-forwarded-", "x-relay-", "postern-"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return name == "forwarded" || strings.HasPrefix(name, "x-upstream-") && strings.HasSuffix(name, "-proxy")
}

// CleanAnswer drops from an answer what its destination cannot tell for us.
func CleanAnswer(h http.Header) {
	for name := range h {
		lower := strings.ToLower(name)
		// Proxy-Status would be read as ours (RFC 9209, section 2); Alt-Svc leads past
		// this way, over UDP.
		if strings.HasPrefix(lower, "proxy-") || lower == "alt-svc" {
			delete(h, name)
		}
	}
}

// RawTarget is the path and query of an absolute URL as the client spelled them, "/"
// when there is no path.
func RawTarget(absolute string) string {
	_, rest, _ := strings.Cut(absolute, "://")
	i := strings.IndexAny(rest, "/?")
	switch {
	case i < 0:
		return "/"
	case rest[i] == '?':
		return "/" + rest[i:]
	}
	return rest[i:]
}
