package ingress

import (
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/posternhq/postern/relay"
)

// owner says whom a Host belongs to.
type owner int

const (
	nobody owner = iota
	ownHost
	appHost
)

// route finds the app of a Host header. Hosts under the apps' domain and hosts
// that the manifest names are apps'; every other is ours, so that the relay
// answers under its public name, its address, and whatever a platform's health
// check calls it.
func (s *Server) route(host string) (relay.App, owner) {
	host = canonicalHost(host)
	if app, ok := s.cfg.Directory.AppByHost(host); ok {
		return app, appHost
	}
	if host == s.cfg.PublicURL.Hostname() {
		return relay.App{}, ownHost
	}
	label, under := strings.CutSuffix(host, "."+s.cfg.AppsDomain)
	if !under {
		return relay.App{}, ownHost
	}
	id := relay.AppID(label)
	if id.Validate() != nil {
		return relay.App{}, nobody
	}
	app, ok := s.cfg.Directory.App(id)
	if !ok {
		return relay.App{}, nobody
	}
	return app, appHost
}

// canonicalHost is host in lower case without port and trailing dot.
func canonicalHost(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// trusted reports whether the peer is one of the listed proxies.
func (s *Server) trusted(peer netip.Addr) bool {
	for _, p := range s.cfg.TrustedProxies {
		if p.Contains(peer) {
			return true
		}
	}
	return false
}

// believe takes the client's address and scheme from a trusted proxy. The
// address is the last one in X-Forwarded-For that is not itself trusted: what
// stands before it was written by the client.
func (s *Server) believe(r *http.Request, c *call) {
	if p := r.Header.Get("X-Forwarded-Proto"); p == "http" || p == "https" {
		c.proto = p
	}
	chain := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	var known []string
	for i := len(chain) - 1; i >= 0; i-- {
		addr, err := parseClient(strings.TrimSpace(chain[i]))
		if err != nil {
			break
		}
		c.remote = addr.Unmap()
		known = append([]string{c.remote.String()}, known...)
		if !s.trusted(c.remote) {
			break
		}
	}
	if len(known) > 0 {
		c.forwarded = strings.Join(append(known, c.forwarded), ", ")
	}
}

// parseClient reads an entry of X-Forwarded-For. Some proxies add the port.
func parseClient(s string) (netip.Addr, error) {
	if withPort, err := netip.ParseAddrPort(s); err == nil {
		return withPort.Addr(), nil
	}
	return netip.ParseAddr(strings.Trim(s, "[]"))
}
