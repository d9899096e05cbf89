package policy

import "net/netip"

// class is one range of addresses that are not for calls to the outside.
type class struct {
	prefix netip.Prefix
	name   string
	hole   bool // it may be a network of the operator's own, to which a hole makes sense
}

// The ranges are those of the two registries of special-purpose addresses at IANA
// (RFC 6890; iana.org/assignments/iana-ipv4-special-registry and -ipv6-), those of
// them that are reachable globally too: nobody offers an API there, and several lead
// to whatever machine is nearest. To these come multicast, class E, and what clouds
// keep for themselves among public addresses. The first that fits gives the name.
var classes4 = []class{
	{netip.MustParsePrefix("0.0.0.0/32"), "unspecified", false}, // Linux connects to loopback
	{netip.MustParsePrefix("0.0.0.0/8"), "this network (RFC 791)", false},
	{netip.MustParsePrefix("10.0.0.0/8"), "private (RFC 1918)", true},
	{netip.MustParsePrefix("100.64.0.0/10"), "shared by a carrier (RFC 6598)", true}, // 100.100.100.200: metadata of Alibaba Cloud
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback", false},
	{netip.MustParsePrefix("168.63.129.16/32"), "the platform of Azure", false}, // learn.microsoft.com, "What is IP address 168.63.129.16?"
	{netip.MustParsePrefix("169.254.169.254/32"), "metadata of a cloud", false},
	{netip.MustParsePrefix("169.254.170.0/24"), "metadata of a cloud", false}, // ECS and EKS hand out credentials here
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local", false},
	{netip.MustParsePrefix("172.16.0.0/12"), "private (RFC 1918)", true},
	{netip.MustParsePrefix("192.0.0.0/24"), "IETF protocol assignments (RFC 6890)", false},
	{netip.MustParsePrefix("192.0.2.0/24"), "documentation (RFC 5737)", false},
	{netip.MustParsePrefix("192.31.196.0/24"), "AS112 (RFC 7535)", false},
	{netip.MustParsePrefix("192.52.193.0/24"), "AMT (RFC 7450)", false},
	{netip.MustParsePrefix("192.88.99.0/24"), "6to4 relays (RFC 7526)", false},
	{netip.MustParsePrefix("192.168.0.0/16"), "private (RFC 1918)", true},
	{netip.MustParsePrefix("192.175.48.0/24"), "AS112 (RFC 7534)", false},
	{netip.MustParsePrefix("198.18.0.0/15"), "benchmarking (RFC 2544)", true}, // some VPNs use it
	{netip.MustParsePrefix("198.51.100.0/24"), "documentation (RFC 5737)", false},
	{netip.MustParsePrefix("203.0.113.0/24"), "documentation (RFC 5737)", false},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast", false},
	{netip.MustParsePrefix("255.255.255.255/32"), "broadcast", false},
	{netip.MustParsePrefix("240.0.0.0/4"), "reserved (RFC 1112)", false},
}

var classes6 = []class{
	{netip.MustParsePrefix("::/128"), "unspecified", false},
	{netip.MustParsePrefix("::1/128"), "loopback", false},
	{netip.MustParsePrefix("::/96"), "IPv4-compatible (RFC 4291)", false},
	{netip.MustParsePrefix("::ffff:0:0:0/96"), "IPv4-translated (RFC 2765)", false},
	{netip.MustParsePrefix("64:ff9b::/96"), "NAT64", true},
	{netip.MustParsePrefix("64:ff9b:1::/48"), "local NAT64 (RFC 8215)", true},
	{netip.MustParsePrefix("100::/64"), "discard-only (RFC 6666)", false},
	{netip.MustParsePrefix("100:0:0:1::/64"), "dummy prefix (RFC 9780)", false},
	{netip.MustParsePrefix("2001::/32"), "Teredo", false},
	{netip.MustParsePrefix("2001:1::/32"), "anycast of protocols (RFC 7723, RFC 8155, RFC 9665)", false},
	{netip.MustParsePrefix("2001:2::/48"), "benchmarking (RFC 5180)", false},
	{netip.MustParsePrefix("2001:3::/32"), "AMT (RFC 7450)", false},
	{netip.MustParsePrefix("2001:4:112::/48"), "AS112 (RFC 7535)", false},
	{netip.MustParsePrefix("2001:10::/28"), "ORCHID (RFC 4843)", false},
	{netip.MustParsePrefix("2001:20::/28"), "ORCHIDv2 (RFC 7343)", false},
	{netip.MustParsePrefix("2001:30::/28"), "DRIP (RFC 9374)", false},
	{netip.MustParsePrefix("2001::/23"), "IETF protocol assignments (RFC 2928)", false},
	{netip.MustParsePrefix("2001:db8::/32"), "documentation (RFC 3849)", false},
	{netip.MustParsePrefix("2002::/16"), "6to4", false},
	{netip.MustParsePrefix("2620:4f:8000::/48"), "AS112 (RFC 7534)", false},
	{netip.MustParsePrefix("3fff::/20"), "documentation (RFC 9637)", false},
	{netip.MustParsePrefix("5f00::/16"), "segment routing (RFC 9602)", false},
	{netip.MustParsePrefix("fd00:ec2::/32"), "metadata of a cloud", false}, // AWS: fd00:ec2::254, fd00:ec2::23
	{netip.MustParsePrefix("fd20:ce::254/128"), "metadata of a cloud", false},
	{netip.MustParsePrefix("fc00::/7"), "private (RFC 4193)", true},
	{netip.MustParsePrefix("fe80::/10"), "link-local", false},
	{netip.MustParsePrefix("fec0::/10"), "site-local (RFC 3879)", true},
	{netip.MustParsePrefix("ff00::/8"), "multicast", false},
}

// global is all that IANA has given out for unicast (RFC 4291, section 2.4).
var global = netip.MustParsePrefix("2000::/3")

// Class says why an address is not for calls to the outside: "loopback", "private
// (RFC 1918)", "NAT64" and so on; "" for a public unicast address. An IPv4 address that
// is mapped into IPv6 is judged as the IPv4 address.
func Class(a netip.Addr) string {
	name, _ := classify(a)
	return name
}

// classify also says whether a hole makes sense.
func classify(a netip.Addr) (name string, hole bool) {
	switch {
	case !a.IsValid():
		return "not an address", false
	case a.Zone() != "":
		return "of one link (it has a zone)", false
	}
	a = a.Unmap()
	table := classes4
	if a.Is6() {
		table = classes6
	}
	for i := range table {
		if table[i].prefix.Contains(a) {
			return table[i].name, table[i].hole
		}
	}
	if a.Is4() {
		return "", false
	}
	if !global.Contains(a) {
		return "not given out by IANA", false
	}
	if isISATAP(a) {
		return "ISATAP (RFC 5214)", false
	}
	return "", false
}

// isISATAP reports whether the lower half of an address says that an IPv4 address is
// in it: 00-00-5E-FE, with or without the bit for "unique in the world" (RFC 5214,
// section 6.1).
func isISATAP(a netip.Addr) bool {
	b := a.As16()
	return b[8]&^0x02 == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe
}

// embedded is the IPv4 address to which an IPv6 address leads in the end; invalid when
// there is none. It matters where a hole lets such addresses through.
func embedded(a netip.Addr) netip.Addr {
	if !a.Is6() {
		return netip.Addr{}
	}
	b := a.As16()
	last := netip.AddrFrom4([4]byte(b[12:16]))
	switch name, _ := classify(a); name {
	case "NAT64", "IPv4-compatible (RFC 4291)", "IPv4-translated (RFC 2765)":
		return last
	case "6to4":
		return netip.AddrFrom4([4]byte(b[2:6]))
	case "Teredo": // RFC 4380, section 4: its bits are turned over
		return netip.AddrFrom4([4]byte{^b[12], ^b[13], ^b[14], ^b[15]})
	}
	if isISATAP(a) {
		return last
	}
	return netip.Addr{}
}
