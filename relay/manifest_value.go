package relay

import (
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// The simple forms of values. Each function returns the value and "", or what
// it expected instead.

const expectedDuration = "a duration such as 30s, 10m, 2h or 7d"

// duration reads "30s", "1h30m" or "7d" between low and high; an absent one is
// fallback, and one that is wrong is 0.
func (r *manifestReader) duration(p place, fallback, low, high time.Duration) time.Duration {
	if !p.given() {
		return fallback
	}
	d, _ := parsed(r, p, expectedDuration, func(s string) (time.Duration, string) {
		d, ok := parseDuration(s)
		if !ok {
			return 0, expectedDuration
		}
		if d < low || d > high {
			return 0, fmt.Sprintf("a duration from %s to %s", shortDuration(low), shortDuration(high))
		}
		return d, ""
	})
	return d
}

const day = 24 * time.Hour

// parseDuration is time.ParseDuration with whole days in front: 7d, 1d12h.
// A day has 24 hours.
func parseDuration(s string) (time.Duration, bool) {
	count, rest, hasDays := strings.Cut(s, "d")
	if !hasDays {
		d, err := time.ParseDuration(s)
		return d, err == nil
	}
	n, err := strconv.ParseUint(count, 10, 16) // neither a sign nor an overflow
	if err != nil {
		return 0, false
	}
	d := time.Duration(n) * day
	if rest == "" {
		return d, true
	}
	more, err := time.ParseDuration(rest)
	if err != nil || rest[0] == '-' || rest[0] == '+' || more >= day {
		return 0, false
	}
	return d + more, true
}

// shortDuration prints 1h30m instead of 1h30m0s, and 7d instead of 168h0m0s.
func shortDuration(d time.Duration) string {
	if d >= 2*day && d%day == 0 {
		return strconv.Itoa(int(d/day)) + "d"
	}
	s := d.String()
	if rest, ok := strings.CutSuffix(s, "m0s"); ok {
		s = rest + "m"
	}
	if rest, ok := strings.CutSuffix(s, "h0m"); ok {
		s = rest + "h"
	}
	return s
}

// size reads "10MiB" or a plain number of bytes, at most limit; an absent one
// is fallback.
func (r *manifestReader) size(p place, fallback, limit int64) int64 {
	if !p.given() {
		return fallback
	}
	if p.node.Kind == yaml.ScalarNode && p.node.ShortTag() == "!!int" {
		return r.integerIn(p, fallback, 1, limit)
	}
	n, _ := parsed(r, p, expectedSize, func(s string) (int64, string) {
		n, expected := parseSize(s)
		if expected == "" && (n < 1 || n > limit) {
			return 0, "a size from 1B to " + shortSize(limit)
		}
		return n, expected
	})
	return n
}

const expectedSize = "a size such as 512KiB, 10MiB or 1GB"

var sizeUnits = []struct {
	suffix string
	bytes  int64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1},
}

// shortSize prints a limit, which is a whole number of MiB or TiB.
func shortSize(n int64) string {
	if n >= 1<<40 {
		return strconv.FormatInt(n>>40, 10) + "TiB"
	}
	return strconv.FormatInt(n>>20, 10) + "MiB"
}

func parseSize(s string) (int64, string) {
	for _, unit := range sizeUnits {
		digits, ok := strings.CutSuffix(s, unit.suffix)
		if !ok {
			continue
		}
		if n, err := strconv.ParseUint(digits, 10, 31); err == nil {
			return min(int64(n), math.MaxInt64/unit.bytes) * unit.bytes, ""
		}
		break
	}
	return 0, expectedSize
}

const expectedRate = "a rate such as 50/s, 100/m or 2000/h"

// maxRate in events a second is beyond what one endpoint can be sent.
const maxRate = 1e6

// parseRate gives events a second.
func parseRate(s string) (float64, string) {
	count, unit, _ := strings.Cut(s, "/")
	seconds, ok := map[string]float64{"s": 1, "m": 60, "h": 3600}[unit]
	if !ok {
		return 0, expectedRate
	}
	n, ok := parseDecimal(count)
	if !ok || n == 0 {
		return 0, expectedRate
	}
	if n/seconds > maxRate {
		return 0, "a rate of at most 1000000/s"
	}
	return n / seconds, ""
}

// parseDecimal reads digits with at most one dot. strconv alone would also take
// "inf", "1e9" and "0x1p4", which nobody means.
func parseDecimal(s string) (float64, bool) {
	if len(s) > 20 || !allOf(s, "0123456789.") {
		return 0, false
	}
	n, err := strconv.ParseFloat(s, 64)
	return n, err == nil
}

const expectedRange = "an address range such as 203.0.113.0/24, or one address"

// parseRange reads a CIDR range; a single address is a range of one.
func parseRange(s string) (netip.Prefix, string) {
	if addr, err := netip.ParseAddr(s); err == nil && addr.Zone() == "" && !addr.Is4In6() {
		return netip.PrefixFrom(addr, addr.BitLen()), ""
	}
	prefix, err := netip.ParsePrefix(s)
	if err != nil || prefix.Addr().Is4In6() {
		return netip.Prefix{}, expectedRange
	}
	// 203.0.113.9/24 is more often a mistake than a way to write the whole /24.
	if masked := prefix.Masked(); masked != prefix {
		return netip.Prefix{}, fmt.Sprintf("a range without bits below its mask; did you mean %s or %s/%d?",
			masked, prefix.Addr(), prefix.Addr().BitLen())
	}
	return prefix, ""
}

const expectedHost = "a host name such as shop.example.com"

// parseHost reads a host name (RFC 1123, section 2.1) and gives it in lower
// case.
func parseHost(s string) (string, string) {
	host := strings.ToLower(s)
	labels := strings.Split(host, ".")
	for _, label := range labels {
		// A label of a host name is what an app's name is.
		if AppID(label).Validate() != nil {
			return "", expectedHost + hostHint(s)
		}
	}
	if len(host) > 253 || allOf(labels[len(labels)-1], "0123456789") {
		return "", expectedHost + hostHint(s) // an all-numeric last label is an IPv4 address
	}
	return host, ""
}

// hostHint names the usual mistakes with host names.
func hostHint(s string) string {
	switch {
	case strings.Contains(s, "://"):
		return " without a scheme"
	case strings.Contains(s, "*"):
		return "; a wildcard is not possible here"
	case strings.Contains(s, ":"):
		return " without a port"
	case strings.ContainsFunc(s, func(c rune) bool { return c >= 0x80 }):
		return " in its ASCII (punycode) form"
	}
	return ""
}

const expectedPath = "a path that begins with / and has no query"

// parsePath reads the path of a URL as it stands in a request line.
func parsePath(s string) (string, string) {
	if !strings.HasPrefix(s, "/") || strings.HasPrefix(s, "//") || len(s) > 2048 {
		return "", expectedPath
	}
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c <= ' ', c >= 0x7f, c == '?', c == '#', c == '\\':
			return "", expectedPath
		case c == '%' && !percentEncoded(s[i:]):
			return "", "a path in which each % begins an escape such as %20"
		}
	}
	return s, ""
}

func percentEncoded(s string) bool {
	if len(s) < 3 {
		return false
	}
	_, err := strconv.ParseUint(s[1:3], 16, 8)
	return err == nil && s[1] != '+'
}

const expectedPointer = "a JSON pointer such as /data/object/id"

// parsePointer reads a JSON pointer (RFC 6901, section 3). The empty pointer,
// the whole document, is no key to order by.
func parsePointer(s string) (string, string) {
	if !strings.HasPrefix(s, "/") || len(s) > 1024 {
		return "", expectedPointer
	}
	for i := range len(s) {
		if s[i] == '~' && (i+1 == len(s) || s[i+1] != '0' && s[i+1] != '1') {
			return "", expectedPointer + ", with ~ written as ~0"
		}
	}
	return s, ""
}

func visibleASCII(s string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c >= 0x7f })
}

func allOf(s, set string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool { return !strings.ContainsRune(set, c) })
}

// parseName reads the name of an endpoint or a secret.
func parseName(s string) (string, string) {
	const expected = "a name of 1 to 63 characters a-z, 0-9, - and _"
	if s == "" || len(s) > 63 || !allOf(s, "abcdefghijklmnopqrstuvwxyz0123456789-_") {
		return "", expected
	}
	return s, ""
}
