package policy

import (
	"errors"
	"net/netip"
	"strings"
)

// ParsePattern gives the canonical form of a rule's host: a name, an address (IPv6 with
// or without brackets), or a name some of whose labels are *. A * alone, in place of
// the last label, or within a label is an error. Whether a pattern is too wide for an
// allow list, such as *.com, is not judged here.
func ParsePattern(s string) (string, error) {
	if isCanonicalPattern(s) {
		return s, nil // as all are in a Policy, which may have very many
	}
	if len(s) > maxRaw {
		return "", errors.New("the host is longer than 253 characters")
	}
	if strings.Contains(s, ":") {
		inner := s
		if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
			inner = s[1 : len(s)-1]
		}
		addr, reason := parseIPv6(inner)
		if reason != "" {
			return "", errors.New(reason)
		}
		return addr.String(), nil
	}
	if !strings.Contains(s, "*") {
		name, addr, reason := canonicalHost(s)
		switch {
		case reason != "":
			return "", errors.New(reason)
		case addr.IsValid():
			return addr.String(), nil
		}
		return name, nil
	}

	// A letter stands in for each *, so that the name as a whole can be mapped.
	labels := strings.Split(strings.TrimSuffix(dots.Replace(s), "."), ".")
	stars := make([]bool, len(labels))
	for i, label := range labels {
		switch {
		case label == "*":
			stars[i], labels[i] = true, "x"
		case strings.Contains(label, "*"):
			return "", errors.New("a * stands for whole labels, not for a part of one")
		}
	}
	switch {
	case len(labels) == 1:
		return "", errors.New("a * alone fits everything; say mode: open instead")
	case stars[len(stars)-1]:
		return "", errors.New("the last label cannot be *")
	}
	name, _, reason := canonicalHost(strings.Join(labels, "."))
	if reason != "" {
		return "", errors.New(reason)
	}
	mapped := strings.Split(name, ".")
	if len(mapped) != len(labels) {
		return "", errors.New("the host is not a valid international name")
	}
	for i := range mapped {
		if stars[i] {
			mapped[i] = "*"
		}
	}
	return strings.Join(mapped, "."), nil
}

// isCanonicalPattern recognizes names and patterns of names to which nothing is to be
// done. It is false for addresses and international names.
func isCanonicalPattern(s string) bool {
	if s == "" || len(s) > maxName {
		return false
	}
	start, label := 0, ""
	for i := 0; i <= len(s); i++ {
		if i < len(s) && s[i] != '.' {
			c := s[i]
			if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '*') {
				return false
			}
			continue
		}
		label, start = s[start:i], i+1
		switch {
		case label == "" || len(label) > maxLabel || strings.HasPrefix(label, "xn--"):
			return false
		case label != "*" && strings.IndexByte(label, '*') >= 0:
			return false
		case label[0] == '-' || label[len(label)-1] == '-':
			return false
		}
	}
	return label != "*" && !numeric(label)
}

// dots are what UTS 46 maps to the dot between labels.
var dots = strings.NewReplacer("\u3002", ".", "\uff0e", ".", "\uff61", ".")

// unmapPrefix gives a range of mapped addresses as the IPv4 range that it is.
func unmapPrefix(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		return netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96).Masked()
	}
	return p.Masked()
}
