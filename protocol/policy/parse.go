package policy

import (
	"net/netip"
	"net/url"
	"strings"
)

// TargetError says why a target cannot be read.
type TargetError struct {
	// Reason is one sentence. It never repeats what was sent: that may hold a password.
	Reason string
}

func (e *TargetError) Error() string { return e.Reason }

// Refusal is what the app is told.
func (e *TargetError) Refusal() *Refusal { return NewRefusal(BadTarget, e.Reason) }

func badTarget(reason string) error { return &TargetError{Reason: reason} }

// ParseTunnel reads the host:port of a CONNECT, or of a named forward. The port must
// be there, and nothing else may be. The error is a *TargetError.
func ParseTunnel(authority string) (Target, error) { return parseAuthority(authority, Tunnel, 0) }

// ParseURL reads the absolute form of a request: http:// and nothing else, without
// userinfo and fragment; the port is 80 when none is named. The URL that it returns
// has the target as its host; its EscapedPath is what Call.Path wants, and what the
// destination is to be sent. The error is a *TargetError.
func ParseURL(absolute string) (Target, *url.URL, error) {
	scheme, rest, ok := strings.Cut(absolute, "://")
	if !ok || !strings.EqualFold(scheme, "http") {
		return Target{}, nil, badTarget("only requests for http:// in absolute form are taken; https:// goes through CONNECT")
	}
	for i := range len(rest) {
		switch c := rest[i]; {
		case c <= ' ' || c == 0x7f:
			return Target{}, nil, badTarget("the URL has a space or a control character")
		case c == '#':
			return Target{}, nil, badTarget("the URL has a fragment")
		}
	}
	authority, tail := rest, ""
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		authority, tail = rest[:i], rest[i:]
	}
	t, err := parseAuthority(authority, Request, 80)
	if err != nil {
		return Target{}, nil, err
	}
	// The host is replaced before net/url sees it, so that there is one reading of it.
	host := t.HostPort()
	if t.Port == 80 {
		host = strings.TrimSuffix(host, ":80")
	}
	u, err := url.Parse("http://" + host + tail)
	if err != nil {
		return Target{}, nil, badTarget("the URL's path or query has an escape that cannot be read")
	}
	return t, u, nil
}

// ParseHost reads a host and a port that come apart, as in SOCKS. host is a name, or
// the text of an address without brackets. The error is a *TargetError.
func ParseHost(host string, port uint16, form Form) (Target, error) {
	if port == 0 {
		return Target{}, badTarget("port 0 cannot be called")
	}
	t, reason := Target{Form: form, Port: port}, ""
	if strings.Contains(host, ":") {
		t.Addr, reason = parseIPv6(host)
	} else {
		t.Host, t.Addr, reason = canonicalHost(host)
	}
	if reason != "" {
		return Target{}, badTarget(reason)
	}
	return t, nil
}

// ParseCall reads a call as people write it: https://host and tcp://host:port are
// tunnels, http://host/path is a GET request. A path or query behind https:// is passed
// over, since nobody sees it. The error is a *TargetError.
func ParseCall(s string) (Call, error) {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		return Call{}, badTarget("a call is written https://host, http://host/path or tcp://host:port")
	}
	switch Scheme(strings.ToLower(scheme)) {
	case HTTP:
		t, u, err := ParseURL(s)
		if err != nil {
			return Call{}, err
		}
		return Call{Target: t, Method: "GET", Path: u.EscapedPath()}, nil
	case HTTPS:
		if i := strings.IndexAny(rest, "/?#"); i >= 0 {
			rest = rest[:i]
		}
		t, err := parseAuthority(rest, Tunnel, 443)
		return Call{Target: t}, err
	case TCP:
		t, err := ParseTunnel(rest)
		return Call{Target: t}, err
	}
	return Call{}, badTarget("a call is written https://host, http://host/path or tcp://host:port")
}

// parseAuthority reads host:port. With standard set the port may be missing, or empty
// behind its colon as RFC 3986 has it.
func parseAuthority(s string, form Form, standard uint16) (Target, error) {
	if strings.Contains(s, "@") {
		return Target{}, badTarget("the target has a user or a password before its host")
	}
	host, digits, port := s, "", false
	if strings.HasPrefix(s, "[") {
		end := strings.IndexByte(s, ']')
		if end < 0 {
			return Target{}, badTarget("the target has a bracket that is not closed")
		}
		host, digits = s[1:end], s[end+1:]
		if digits != "" {
			if digits[0] != ':' {
				return Target{}, badTarget("the target has something between its address and its port")
			}
			digits, port = digits[1:], true
		}
	} else if i := strings.LastIndexByte(s, ':'); i >= 0 {
		host, digits, port = s[:i], s[i+1:], true
		if strings.Contains(host, ":") {
			return Target{}, badTarget("an IPv6 address needs brackets, and a host has one port")
		}
	}

	t := Target{Form: form, Port: standard}
	if standard == 0 && !port {
		return Target{}, badTarget("the target has no port")
	}
	if standard == 0 || digits != "" {
		var ok bool
		if t.Port, ok = parsePort(digits); !ok {
			return Target{}, badTarget("the port is not a number from 1 to 65535 without sign and leading zero")
		}
	}
	var reason string
	if strings.HasPrefix(s, "[") {
		t.Addr, reason = parseIPv6(host)
	} else {
		t.Host, t.Addr, reason = canonicalHost(host)
	}
	if reason != "" {
		return Target{}, badTarget(reason)
	}
	return t, nil
}

// parsePort takes the one way to write a port.
func parsePort(s string) (uint16, bool) {
	if len(s) == 0 || len(s) > 5 || s[0] == '0' {
		return 0, false
	}
	n := 0
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		n = n*10 + int(s[i]-'0')
	}
	return uint16(n), n <= 65535
}

// parseIPv6 reads an IPv6 address without brackets. A mapped one comes back as the
// IPv4 address that it is.
func parseIPv6(s string) (netip.Addr, string) {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil || !strings.Contains(s, ":"):
		return netip.Addr{}, "brackets and colons are for IPv6 addresses only"
	case a.Zone() != "":
		return netip.Addr{}, "an address with a zone is of this machine only"
	}
	return a.Unmap(), ""
}
