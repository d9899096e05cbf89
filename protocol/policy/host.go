package policy

import (
	"net/netip"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// Limits of RFC 1035, section 2.3.4, in the text form without the dot at the end.
const (
	maxName  = 253
	maxLabel = 63
	// maxRaw bounds what is mapped: 253 characters of at most four bytes.
	maxRaw = 4 * maxName
)

// mapping is UTS 46 as browsers use it: case and width are folded, what is invisible
// is dropped, what is not a name is refused. Underscores and hyphens are judged by
// checkName, after it.
var mapping = idna.New(
	idna.MapForLookup(),
	idna.BidiRule(),
	idna.CheckJoiners(true),
	idna.CheckHyphens(false),
	idna.StrictDomainName(false),
	idna.Transitional(false),
)

// strict judges international labels one by one: they have no hyphens in odd places,
// while plain labels such as r3---sn-4g5e do.
var strict = idna.New(
	idna.MapForLookup(),
	idna.BidiRule(),
	idna.StrictDomainName(false),
	idna.Transitional(false),
)

// canonicalHost reads a name or an IPv4 address: exactly one of both comes back, or
// the reason why neither does. The mapping comes first, since digits in circles map to
// an address.
func canonicalHost(s string) (name string, addr netip.Addr, reason string) {
	switch {
	case s == "":
		return "", addr, "the host is empty"
	case len(s) > maxRaw:
		return "", addr, "the host is longer than 253 characters"
	}
	name, reason = mapHost(s)
	if reason != "" {
		return "", addr, reason
	}
	// One dot at the end says that the name is whole, which all names here are.
	full := strings.HasSuffix(name, ".")
	if full {
		name = name[:len(name)-1]
	}
	if reason := checkName(name); reason != "" {
		return "", addr, reason
	}
	if !numeric(name[strings.LastIndexByte(name, '.')+1:]) {
		return name, addr, ""
	}
	// Some resolvers take 127.1, 0x7f.1 and 2130706433 for addresses, others do not.
	// There is one way to write an address.
	addr, err := netip.ParseAddr(name)
	if err != nil || full {
		return "", netip.Addr{}, "the host ends in a number, and is not an IPv4 address of four numbers"
	}
	return "", addr, ""
}

// mapHost makes a name ASCII and lower case.
func mapHost(s string) (mapped, reason string) {
	ascii, ace := true, false
	for i := range len(s) {
		c := s[i]
		ascii = ascii && c < 0x80
		ace = ace || c == '-' && i >= 3 && s[i-1] == '-' && (s[i-2] == 'n' || s[i-2] == 'N') && (s[i-3] == 'x' || s[i-3] == 'X')
		if c <= ' ' || c == 0x7f {
			return "", "the host has a space or a control character"
		}
	}
	if ascii && !ace {
		return strings.ToLower(s), "" // no table is asked
	}
	if !utf8.ValidString(s) {
		return "", "the host is not UTF-8"
	}
	mapped, err := mapping.ToASCII(s)
	if err != nil {
		return "", "the host is not a valid international name"
	}
	// What was mapped must stand when it is read again, here or by the next one.
	if again, err := mapping.ToASCII(mapped); err != nil || again != mapped {
		return "", "the host is not a valid international name"
	}
	for label := range strings.SplitSeq(mapped, ".") {
		if strings.HasPrefix(label, "xn--") {
			if _, err := strict.ToUnicode(label); err != nil {
				return "", "the host is not a valid international name"
			}
		}
	}
	return mapped, ""
}

// checkName holds a mapped name to the form that DNS names of hosts have. Underscores
// are let through, since there are such hosts.
func checkName(s string) (reason string) {
	if s == "" || len(s) > maxName {
		return "the host is empty, or longer than 253 characters"
	}
	start := 0
	for i := 0; i <= len(s); i++ {
		if i == len(s) || s[i] == '.' {
			switch label := s[start:i]; {
			case label == "":
				return "the host has an empty label"
			case len(label) > maxLabel:
				return "the host has a label longer than 63 characters"
			case label[0] == '-' || label[len(label)-1] == '-':
				return "the host has a label that begins or ends with a hyphen"
			}
			start = i + 1
			continue
		}
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
		default:
			return "the host has a character that names of hosts do not have"
		}
	}
	return ""
}

// numeric reports whether the last label of a name makes it an address for somebody:
// digits, or hexadecimal behind 0x, as in the URL standard of the WHATWG.
func numeric(label string) bool {
	digits, hex := label, false
	if strings.HasPrefix(label, "0x") {
		digits, hex = label[2:], true
	}
	for i := range len(digits) {
		c := digits[i]
		if !('0' <= c && c <= '9' || hex && 'a' <= c && c <= 'f') {
			return false
		}
	}
	return true
}
