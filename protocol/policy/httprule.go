package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ParsePath checks a path of an HTTPRule and gives it back. It begins with a slash and
// has no query, no escapes that can be read in two ways, no dot segments; a * is a whole
// segment, and ** the last one.
func ParsePath(s string) (string, error) {
	if !strings.HasPrefix(s, "/") {
		return "", errors.New("a path begins with /")
	}
	if strings.ContainsAny(s, "?#") {
		return "", errors.New("a path has no query and no fragment")
	}
	if why := ambiguousPath(s); why != "" {
		return "", errors.New("the path " + why)
	}
	segments := strings.Split(s[1:], "/")
	for i, seg := range segments {
		switch {
		case seg == "*", seg == "**" && i == len(segments)-1:
		case seg == "**":
			return "", errors.New("** stands at the end of a path")
		case strings.Contains(seg, "*"):
			return "", errors.New("a * stands for a whole segment, not for a part of one")
		}
	}
	return s, nil
}

// fits says whether a request is one of the rule's. Of an ambiguous path it never is
// when the rule names paths, since the destination may read another one than we do.
func (r *HTTPRule) fits(method, path string, ambiguous bool) bool {
	if len(r.Methods) > 0 && !slices.Contains(r.Methods, method) {
		return false
	}
	if len(r.Paths) == 0 {
		return true
	}
	if ambiguous {
		return false
	}
	return slices.ContainsFunc(r.Paths, func(p string) bool { return fitsPath(p, path) })
}

// fitsPath compares segment by segment, case-sensitive, escapes read. Below /a/** is
// /a/b and /a/b/c, and neither /a nor /a/, which are the collection itself.
func fitsPath(pattern, path string) bool {
	if pattern == "/**" {
		return strings.HasPrefix(path, "/")
	}
	for {
		if pattern == "" || path == "" {
			return pattern == path
		}
		if pattern[0] != '/' || path[0] != '/' {
			return false
		}
		var want, have string
		want, pattern = segment(pattern[1:])
		have, path = segment(path[1:])
		switch {
		case want == "**" && pattern == "":
			return have != ""
		case want == "*":
			if have == "" {
				return false
			}
		case !equalSegments(want, have):
			return false
		}
	}
}

// segment cuts off what comes before the next slash, which stays in rest.
func segment(s string) (seg, rest string) {
	if i := strings.IndexByte(s, '/'); i >= 0 {
		return s[:i], s[i:]
	}
	return s, ""
}

// equalSegments compares what two segments mean: %41 is A.
func equalSegments(a, b string) bool {
	for a != "" && b != "" {
		x, n := unescape(a)
		y, m := unescape(b)
		if x != y {
			return false
		}
		a, b = a[n:], b[m:]
	}
	return a == b
}

// unescape reads the first byte of s, which may be written as an escape, and says how
// many bytes that took.
func unescape(s string) (byte, int) {
	if s[0] == '%' && len(s) >= 3 {
		hi, lo := unhex(s[1]), unhex(s[2])
		if hi < 16 && lo < 16 {
			return hi<<4 | lo, 3
		}
	}
	return s[0], 1
}

// unhex is the value of a hexadecimal digit; 255 for what is none.
func unhex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 255
}

// ambiguousPath says why servers may disagree on what a path names; "" when they
// cannot. It is one of: escaped slashes, dots and percent signs, backslashes, long ways
// to write ASCII in UTF-8, control characters, dot segments, empty segments, and
// parameters, which some servers cut off before they resolve dot segments.
func ambiguousPath(path string) string {
	if path == "" {
		return ""
	}
	if path[0] != '/' {
		return "does not begin with a slash"
	}
	for i := 0; i < len(path); {
		c, n := unescape(path[i:])
		switch {
		case path[i] == '%' && n == 1:
			return "has an escape that cannot be read"
		case n == 3 && c == '%' && len(path) >= i+5 && unhex(path[i+3]) < 16 && unhex(path[i+4]) < 16:
			return "has an escape within an escape"
		case n == 3 && (c == '/' || c == '.'):
			return "has an escaped slash or dot"
		case n == 3 && (c == 0xc0 || c == 0xc1 || c >= 0xf5):
			return "has an escape that is not UTF-8"
		case c == '\\':
			return "has a backslash"
		case c == ';':
			return "has a parameter behind a semicolon"
		case c < ' ' || c == 0x7f || n == 1 && c == ' ':
			return "has a space or a control character"
		}
		i += n
	}
	for rest := path; rest != ""; {
		var seg string
		seg, rest = segment(rest[1:])
		switch {
		case seg == "" && rest != "":
			return "has an empty segment"
		case seg == "." || seg == "..":
			return "has a dot segment"
		}
	}
	return ""
}

// Spell escapes what package url would not take in a RawPath: it would spell the whole
// path anew, and of %2F make the slash that it is not. The path that is sent on is the
// one that was judged.
func Spell(path string) string {
	var out strings.Builder
	for i := range len(path) {
		c := path[i]
		if '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z' || strings.IndexByte("-_.~!$&'()*+,;=:@[]%/", c) >= 0 {
			out.WriteByte(c)
		} else {
			fmt.Fprintf(&out, "%%%02X", c)
		}
	}
	return out.String()
}
