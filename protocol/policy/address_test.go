package policy_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/posternhq/postern/protocol/policy"
)

// Each range of the registries: the address before it, its first, its last, and the one
// after it. "-" is an outside that is special as well, or does not exist.
func TestClassAtTheEdges(t *testing.T) {
	for _, c := range []struct{ class, before, first, last, after string }{
		{"unspecified", "-", "0.0.0.0", "0.0.0.0", "-"},
		{"this network", "-", "0.0.0.1", "0.255.255.255", "1.0.0.0"},
		{"private", "9.255.255.255", "10.0.0.0", "10.255.255.255", "11.0.0.0"},
		{"carrier", "100.63.255.255", "100.64.0.0", "100.127.255.255", "100.128.0.0"},
		{"loopback", "126.255.255.255", "127.0.0.0", "127.255.255.255", "128.0.0.0"},
		{"Azure", "168.63.129.15", "168.63.129.16", "168.63.129.16", "168.63.129.17"},
		{"link-local", "169.253.255.255", "169.254.0.0", "169.254.255.255", "169.255.0.0"},
		{"metadata", "-", "169.254.169.254", "169.254.169.254", "-"},
		{"metadata", "-", "169.254.170.2", "169.254.170.23", "-"},
		{"private", "172.15.255.255", "172.16.0.0", "172.31.255.255", "172.32.0.0"},
		{"IETF", "191.255.255.255", "192.0.0.0", "192.0.0.255", "192.0.1.0"},
		{"IETF", "-", "192.0.0.9", "192.0.0.10", "-"}, // reachable globally, says the registry: anycast
		{"IETF", "-", "192.0.0.170", "192.0.0.192", "-"},
		{"documentation", "192.0.1.255", "192.0.2.0", "192.0.2.255", "192.0.3.0"},
		{"AS112", "192.31.195.255", "192.31.196.0", "192.31.196.255", "192.31.197.0"},
		{"AMT", "192.52.192.255", "192.52.193.0", "192.52.193.255", "192.52.194.0"},
		{"6to4", "192.88.98.255", "192.88.99.0", "192.88.99.255", "192.88.100.0"},
		{"private", "192.167.255.255", "192.168.0.0", "192.168.255.255", "192.169.0.0"},
		{"AS112", "192.175.47.255", "192.175.48.0", "192.175.48.255", "192.175.49.0"},
		{"benchmarking", "198.17.255.255", "198.18.0.0", "198.19.255.255", "198.20.0.0"},
		{"documentation", "198.51.99.255", "198.51.100.0", "198.51.100.255", "198.51.101.0"},
		{"documentation", "203.0.112.255", "203.0.113.0", "203.0.113.255", "203.0.114.0"},
		{"multicast", "223.255.255.255", "224.0.0.0", "239.255.255.255", "-"},
		{"reserved", "-", "240.0.0.0", "255.255.255.254", "-"},
		{"broadcast", "-", "255.255.255.255", "255.255.255.255", "-"},

		{"unspecified", "-", "::", "::", "-"},
		{"loopback", "-", "::1", "::1", "-"},
		{"compatible", "-", "::2", "::ffff:ffff", "-"},
		{"translated", "-", "::ffff:0:0:0", "::ffff:0:ffff:ffff", "-"},
		{"NAT64", "-", "64:ff9b::", "64:ff9b::ffff:ffff", "-"},
		{"local NAT64", "-", "64:ff9b:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff", "-"},
		{"discard", "-", "100::", "100::ffff:ffff:ffff:ffff", "-"},
		{"dummy", "-", "100:0:0:1::", "100:0:0:1:ffff:ffff:ffff:ffff", "-"},
		{"not given out", "-", "200::", "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2000::"},
		{"Teredo", "2000:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2001::", "2001:0:ffff:ffff:ffff:ffff:ffff:ffff", "-"},
		{"anycast", "-", "2001:1::1", "2001:1::3", "-"},
		{"benchmarking", "-", "2001:2::", "2001:2:0:ffff:ffff:ffff:ffff:ffff", "-"},
		{"AMT", "-", "2001:3::", "2001:3:ffff:ffff:ffff:ffff:ffff:ffff", "-"},
		{"AS112", "-", "2001:4:112::", "2001:4:112:ffff:ffff:ffff:ffff:ffff", "-"},
		{"ORCHID", "-", "2001:10::", "2001:1f:ffff:ffff:ffff:ffff:ffff:ffff", "-"},
		{"ORCHIDv2", "-", "2001:20::", "2001:2f:ffff:ffff:ffff:ffff:ffff:ffff", "-"},
		{"DRIP", "-", "2001:30::", "2001:3f:ffff:ffff:ffff:ffff:ffff:ffff", "-"},
		{"IETF", "-", "2001:5::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", "2001:200::"},
		{"documentation", "2001:db7:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db9::"},
		{"6to4", "2001:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2002::", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2003::"},
		{"AS112", "2620:4f:7fff:ffff:ffff:ffff:ffff:ffff", "2620:4f:8000::", "2620:4f:8000:ffff:ffff:ffff:ffff:ffff", "2620:4f:8001::"},
		{"documentation", "3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", "3fff:1000::"},
		{"not given out", "3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "4000::", "5eff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "-"},
		{"segment routing", "-", "5f00::", "5f00:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "-"},
		{"not given out", "-", "5f01::", "fbff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "-"},
		{"private", "-", "fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "-"},
		{"metadata", "-", "fd00:ec2::254", "fd00:ec2::23", "-"},
		{"metadata", "-", "fd20:ce::254", "fd20:ce::254", "-"},
		{"not given out", "-", "fe00::", "fe7f:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "-"},
		{"link-local", "-", "fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "-"},
		{"site-local", "-", "fec0::", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "-"},
		{"multicast", "-", "ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "-"},
		{"ISATAP", "2001:470:1f0b:0:0:5efd:ffff:ffff", "2001:470:1f0b:0:0:5efe:7f00:1", "2001:470:1f0b::5efe:808:808", "2001:470:1f0b:0:0:5eff::"},
		{"ISATAP", "2a00::1ff:5efe:7f00:1", "2a00::200:5efe:7f00:1", "2a00::200:5efe:a00:1", "2a00::300:5efe:7f00:1"},
	} {
		for _, s := range []string{c.first, c.last} {
			if got := policy.Class(netip.MustParseAddr(s)); !strings.Contains(got, c.class) {
				t.Errorf("%s is %q, want %s", s, got, c.class)
			}
		}
		for _, s := range []string{c.before, c.after} {
			if s == "-" {
				continue
			}
			a := netip.MustParseAddr(s)
			if got := policy.Class(a); got != "" {
				t.Errorf("%s is %q, want a public address", s, got)
			}
			if a.Is4() {
				if got := policy.Class(netip.AddrFrom16(a.As16())); got != "" {
					t.Errorf("mapped %s is %q, want a public address", s, got)
				}
			}
		}
		if a := netip.MustParseAddr(c.first); a.Is4() {
			mapped := netip.AddrFrom16(a.As16())
			if got := policy.Class(mapped); !strings.Contains(got, c.class) {
				t.Errorf("%s is %q, want %s", mapped, got, c.class)
			}
		}
	}
	for _, s := range []string{"8.8.8.8", "1.1.1.1", "93.184.216.34", "2606:2800:220:1::1", "2001:4860:4860::8888", "2a00:1450:4001:81b::200e", "2400:cb00::1"} {
		if got := policy.Class(netip.MustParseAddr(s)); got != "" {
			t.Errorf("%s is %q, want a public address", s, got)
		}
	}
	if policy.Class(netip.Addr{}) == "" {
		t.Error("no address is a public address")
	}
	if policy.Class(netip.MustParseAddr("2a00::1%eth0")) == "" {
		t.Error("an address with a zone is public")
	}
}
