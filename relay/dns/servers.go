package dns

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// server is one name server.
type server struct {
	network string // udp, tcp
	addr    string // address:port
}

// servers says whom to ask, in this order.
type servers interface {
	list() ([]server, error) // at least one
}

// fixedServers come from the relay's settings.
type fixedServers []server

func (f fixedServers) list() ([]server, error) { return f, nil }

func parseServers(s string) (fixedServers, error) {
	var list fixedServers
	for one := range strings.SplitSeq(s, ",") {
		one = strings.TrimSpace(one)
		network, addr, ok := strings.Cut(one, "://")
		if !ok || network != "udp" && network != "tcp" {
			return nil, fmt.Errorf("name server %q: expected udp://address:port or tcp://address:port", one)
		}
		at, err := netip.ParseAddrPort(addr)
		if err != nil {
			alone, err := netip.ParseAddr(strings.Trim(addr, "[]"))
			if err != nil {
				return nil, fmt.Errorf("name server %q: %q is not an address with a port", one, addr)
			}
			at = netip.AddrPortFrom(alone, 53)
		}
		if at.Port() == 0 {
			return nil, fmt.Errorf("name server %q: port 0", one)
		}
		list = append(list, server{network, at.String()})
	}
	return list, nil
}

// systemServers are those of resolv.conf. Only the addresses are taken from it.
type systemServers struct {
	path string

	mu      sync.Mutex
	checked time.Time // guarded by mu; when the file was looked at last
	changed time.Time // guarded by mu; its time of change then
	known   []server  // guarded by mu
}

const (
	checkEvery    = 5 * time.Second
	maxResolvConf = 64 << 10
	maxServers    = 4 // resolvers use three
)

// list reads the file again when it has changed. One that cannot be read, or that
// names no server, leaves what was known before; at first, a server on this machine.
func (s *systemServers) list() ([]server, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); s.known == nil || now.Sub(s.checked) >= checkEvery {
		s.checked = now
		info, err := os.Stat(s.path)
		if err == nil && !info.ModTime().Equal(s.changed) && info.Size() <= maxResolvConf {
			s.changed = info.ModTime()
			if found := readResolvConf(s.path); len(found) > 0 {
				s.known = found
			}
		}
	}
	if s.known == nil {
		return []server{{"udp", "127.0.0.1:53"}, {"udp", "[::1]:53"}}, nil
	}
	return s.known, nil
}

func readResolvConf(path string) []server {
	config, err := dns.ClientConfigFromFile(path)
	if err != nil {
		return nil
	}
	var list []server
	for _, s := range config.Servers {
		if a, err := netip.ParseAddr(s); err == nil && len(list) < maxServers {
			list = append(list, server{"udp", net.JoinHostPort(a.String(), config.Port)})
		}
	}
	return list
}
