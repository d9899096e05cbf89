package dns

import (
	"errors"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/posternhq/postern/protocol/outbound"
)

var errNoName = errors.New("the name does not exist")

// maxChain is how many CNAMEs lead from a name to its addresses at most.
const maxChain = 16

// matches reports whether m answers q: as a message of any kind with the same id and
// the same question. Names are equal whatever their case.
func matches(m, q *dns.Msg) bool {
	if !m.Response || m.Id != q.Id || m.Opcode != q.Opcode || len(m.Question) != 1 {
		return false
	}
	got, asked := m.Question[0], q.Question[0]
	return got.Qtype == asked.Qtype && got.Qclass == asked.Qclass && strings.EqualFold(got.Name, asked.Name)
}

// read makes an outcome of an answer with code NOERROR or NXDOMAIN.
func read(name string, kind uint16, m *dns.Msg) half {
	if m.Rcode == dns.RcodeNameError {
		return half{err: notFound(name, m, errNoName)}
	}
	addrs, ttl := addresses(dns.Fqdn(name), kind, m)
	if len(addrs) == 0 {
		return half{err: notFound(name, m, outbound.ErrNoAddress)}
	}
	return half{addrs: addrs, ttl: ttl}
}

// addresses follows the CNAMEs in m from owner to its addresses. The TTL is the
// smallest of all records on the way. Records of other names are not looked at.
func addresses(owner string, kind uint16, m *dns.Msg) ([]netip.Addr, time.Duration) {
	smallest := uint32(1<<32 - 1)
	for range maxChain {
		next, ttl := alias(owner, m)
		if next == "" {
			break
		}
		owner, smallest = next, min(smallest, ttl)
	}
	var addrs []netip.Addr
	for _, rr := range m.Answer {
		if !strings.EqualFold(rr.Header().Name, owner) || rr.Header().Rrtype != kind || rr.Header().Class != dns.ClassINET {
			continue
		}
		var a netip.Addr
		switch rr := rr.(type) {
		case *dns.A:
			a, _ = netip.AddrFromSlice(rr.A.To4())
		case *dns.AAAA:
			// As it is: an IPv4 address in it is for the policy to see.
			a, _ = netip.AddrFromSlice(rr.AAAA.To16())
		}
		if !a.IsValid() || len(addrs) == maxAddrs {
			continue
		}
		addrs = append(addrs, a)
		smallest = min(smallest, rr.Header().Ttl)
	}
	return addrs, seconds(smallest)
}

// alias returns what owner's CNAME in m says, "" without one.
func alias(owner string, m *dns.Msg) (target string, ttl uint32) {
	for _, rr := range m.Answer {
		if c, ok := rr.(*dns.CNAME); ok && strings.EqualFold(c.Hdr.Name, owner) && c.Hdr.Class == dns.ClassINET {
			return c.Target, c.Hdr.Ttl
		}
	}
	return "", 0
}

// notFound says that there is nothing, for as long as the zone says (RFC 2308,
// section 5).
func notFound(name string, m *dns.Msg, reason error) *outbound.LookupError {
	e := &outbound.LookupError{Name: name, NotFound: true, Err: reason}
	for _, rr := range m.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			e.TTL = seconds(min(soa.Minttl, soa.Hdr.Ttl))
		}
	}
	return e
}

// seconds reads a TTL; one with its highest bit set is 0 (RFC 2181, section 8).
func seconds(ttl uint32) time.Duration {
	if ttl > 1<<31-1 {
		return 0
	}
	return time.Duration(ttl) * time.Second
}
