package provider

import (
	"net/url"
	"strings"

	"github.com/posternhq/postern/relay"
)

// A URL that is signed is text: it is cut and joined here, and never parsed and
// printed again, which would change how it is written.

// cutURL divides a URL in scheme, host with port, and the rest, which begins
// with "/", "?" or "#" or is empty.
func cutURL(u string) (scheme, host, rest string, ok bool) {
	scheme, after, ok := strings.Cut(u, "://")
	if !ok {
		return "", "", "", false
	}
	end := strings.IndexAny(after, "/?#")
	if end < 0 {
		end = len(after)
	}
	return scheme, after[:end], after[end:], true
}

// cutPort divides host:port; the port is "" when there is none. An address of
// IPv6 keeps its brackets.
func cutPort(host string) (name, port string) {
	colon := strings.LastIndexByte(host, ':')
	if colon < 0 || strings.HasSuffix(host, "]") {
		return host, ""
	}
	return host[:colon], host[colon+1:]
}

// pathOf is the path of a URL as it is written, without the query.
func pathOf(u string) string {
	_, _, rest, _ := cutURL(u)
	if end := strings.IndexAny(rest, "?#"); end >= 0 {
		rest = rest[:end]
	}
	return rest
}

// query finds the parameters of a request.
func query(in relay.Incoming) url.Values {
	_, text, found := strings.Cut(in.Target, "?")
	if !found {
		_, text, _ = strings.Cut(in.PublicURL, "?")
	}
	values, err := url.ParseQuery(text)
	if err != nil {
		return url.Values{}
	}
	return values
}

// one is the value of a parameter that is there exactly once.
func one(values url.Values, name string) (string, bool) {
	if len(values[name]) != 1 {
		return "", false
	}
	return values[name][0], true
}
