package egress

import (
	"net/http"
	"strings"
)

// cleanRequest drops from an app's request what is not for its destination. The relay
// does the same; a request that is sent from here does not pass it.
func cleanRequest(h http.Header) {
	for name := range h {
		if forUs(strings.ToLower(name)) {
			delete(h, name)
		}
	}
	// Only WebSocket is let through: h2c would carry requests that nobody judges.
	if up := h["Upgrade"]; len(up) > 0 && (len(up) != 1 || !strings.EqualFold(strings.TrimSpace(up[0]), "websocket")) {
		delete(h, "Upgrade")
		delete(h, "Connection")
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

// cleanAnswer drops from the answer of a destination that was called from here what it
// cannot tell for us: Proxy-Status would be read as ours, Alt-Svc leads past this way.
func cleanAnswer(resp *http.Response) error {
	if !routeOf(resp.Request.Context()).direct {
		if resp.Close && resp.Request.ContentLength != 0 {
			// The relay wants no more of the upload, and takes nothing after it.
			resp.Header.Set("Connection", "close")
		}
		return nil // the relay has done the rest
	}
	for name := range resp.Header {
		lower := strings.ToLower(name)
		if strings.HasPrefix(lower, "proxy-") || lower == "alt-svc" {
			delete(resp.Header, name)
		}
	}
	return nil
}

// rawTarget is the path and query of an absolute URL as the app spelled them, "/" when
// there is no path.
func rawTarget(absolute string) string {
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
