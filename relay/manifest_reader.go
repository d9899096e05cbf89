package relay

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// manifestReader walks the tree of one file and collects what is wrong with it.
// Its methods go on after an error with a zero value: nobody sees the value,
// since a file with errors is refused whole.
type manifestReader struct {
	file  string
	opts  ManifestOptions
	errs  ManifestErrors
	lines int // in the file; 0 until they are counted

	apps   map[AppID]bool       // declared
	named  map[string]bool      // names in the top-level "secrets"
	quotas map[string]bool      // names in egress.quotas
	hosts  map[string]hostClaim // who took which host
	unused []string
}

type hostClaim struct {
	app  AppID
	line int
}

// place is one value of the file and the way to it.
type place struct {
	path   string // "apps.shop.ingress.hosts[0]"; "" for the whole file
	name   string // the last part of path, where it is a key
	key    *yaml.Node
	node   *yaml.Node // nil: the key is not in the file
	secret bool       // the value may be a secret, so errors do not show it
}

func (p place) given() bool { return p.node != nil }

// empty reports whether p is absent, has no value, or is a list without items.
func (p place) empty() bool {
	return p.node == nil || isNull(p.node) ||
		p.node.Kind == yaml.SequenceNode && len(p.node.Content) == 0
}

func (p place) child(name string, key, node *yaml.Node) place {
	path := name
	if !plainName(name) {
		path = quote(name)
	}
	if p.path != "" {
		path = p.path + "." + path
	}
	return place{path: path, name: name, key: key, node: node, secret: p.secret}
}

func plainName(s string) bool {
	for _, c := range s {
		if c <= ' ' || c >= 0x7f || c == '"' || c == '.' {
			return false
		}
	}
	return s != "" && len(s) <= 64
}

// collectLimit bounds the memory of a hopeless file. It is above
// maxManifestErrors because problems are not found in the order of the file.
const collectLimit = 1000

func (r *manifestReader) failPos(line, column int, format string, args ...any) {
	if len(r.errs) >= collectLimit {
		return
	}
	if r.lines > 0 && line > r.lines { // a missing value at the very end of the file
		line, column = r.lines, 1
	}
	r.errs = append(r.errs, ManifestError{
		File: r.file, Line: max(line, 1), Column: max(column, 1),
		Message: fmt.Sprintf(format, args...),
	})
}

// failAt reports a problem of the thing at path, at the position of n.
func (r *manifestReader) failAt(n *yaml.Node, path, format string, args ...any) {
	if path != "" {
		format, args = "%s: "+format, append([]any{path}, args...)
	}
	r.failPos(n.Line, n.Column, format, args...)
}

// fail reports a problem of p's value. An empty value has no position of its
// own that helps, so its key's is used.
func (r *manifestReader) fail(p place, format string, args ...any) {
	n := p.node
	if p.key != nil && (n == nil || n.Line == 0 || isNull(n) && n.Value == "") {
		n = p.key
	}
	r.failAt(n, p.path, format, args...)
}

// expected reports that p's value is not what it should be.
func (r *manifestReader) expected(p place, what string) {
	found := show(p.node)
	if p.secret {
		found = kindOf(p.node)
	}
	r.fail(p, "expected %s, found %s", what, found)
}

// fields reads a section with a fixed set of keys. A key that is not in the
// file is a place without a node. An empty section has no keys.
func (r *manifestReader) fields(p place, keys ...string) map[string]place {
	f := map[string]place{}
	for _, e := range r.entries(p) {
		if slices.Contains(keys, e.name) {
			f[e.name] = e
			continue
		}
		message := "unknown key " + quote(e.name)
		if p.secret {
			message = "unknown key" // perhaps the secret itself, written without env:
		}
		r.failAt(e.key, p.path, "%s; expected %s%s", message, oneOf(keys), didYouMean(e.name, keys))
	}
	return f
}

// require reports the keys that are missing in section p. The position is that
// of the section's own key, where there is one.
func (r *manifestReader) require(p place, f map[string]place, keys ...string) {
	if p.node.Kind != yaml.MappingNode && !isNull(p.node) {
		return // reported as such already
	}
	for _, key := range keys {
		if f[key].given() {
			continue
		}
		n := p.key
		if n == nil {
			n = p.node
		}
		r.failAt(n, p.path, "expected the key %s, which is missing", quote(key))
	}
}

// entries reads a section whose keys are names, in the order of the file.
func (r *manifestReader) entries(p place) []place {
	if !p.given() || isNull(p.node) {
		return nil
	}
	if p.node.Kind != yaml.MappingNode {
		r.fail(p, "expected a mapping, found %s", kindOf(p.node))
		return nil
	}
	var list []place
	first := map[string]int{}
	for i := 0; i+1 < len(p.node.Content); i += 2 {
		key := p.node.Content[i]
		if key.Kind != yaml.ScalarNode || isNull(key) {
			r.failAt(key, p.path, "expected a name as key, found %s", kindOf(key))
			continue
		}
		if line, ok := first[key.Value]; ok {
			name := " " + quote(key.Value)
			if p.secret {
				name = ""
			}
			r.failAt(key, p.path, "duplicate key%s; expected it once, it is on line %d already", name, line)
			continue
		}
		first[key.Value] = key.Line
		list = append(list, p.child(key.Value, key, p.node.Content[i+1]))
	}
	return list
}

// items reads a list; an absent or empty one has no items.
func (r *manifestReader) items(p place, limit int) []place {
	if !p.given() || isNull(p.node) {
		return nil
	}
	if p.node.Kind != yaml.SequenceNode {
		r.fail(p, "expected a list, found %s", kindOf(p.node))
		return nil
	}
	if len(p.node.Content) > limit {
		r.fail(p, "expected at most %d items, found %d", limit, len(p.node.Content))
		return nil
	}
	list := make([]place, len(p.node.Content))
	for i, n := range p.node.Content {
		list[i] = place{path: fmt.Sprintf("%s[%d]", p.path, i), node: n, secret: p.secret}
	}
	return list
}

// text reads a value that must be written as a text. What says what the text
// should be.
func (r *manifestReader) text(p place, what string) (string, bool) {
	if !p.given() {
		return "", false
	}
	if p.node.Kind == yaml.ScalarNode && p.node.ShortTag() == "!!str" {
		return p.node.Value, true
	}
	hint := ""
	if p.node.Kind == yaml.ScalarNode && !isNull(p.node) {
		hint = "; put it in quotes"
	}
	r.fail(p, "expected %s, found %s%s", what, kindOf(p.node), hint)
	return "", false
}

// choice reads one of a few words; an absent value is the first of them.
func (r *manifestReader) choice(p place, words ...string) string {
	if !p.given() {
		return words[0]
	}
	s, ok := r.text(p, oneOf(words))
	if ok && !slices.Contains(words, s) {
		r.fail(p, "expected %s, found %s%s", oneOf(words), quote(s), didYouMean(s, words))
	}
	return s
}

func (r *manifestReader) boolean(p place) bool {
	if !p.given() {
		return false
	}
	var b bool
	if p.node.Kind != yaml.ScalarNode || p.node.ShortTag() != "!!bool" || p.node.Decode(&b) != nil {
		r.expected(p, "true or false")
	}
	return b
}

func (r *manifestReader) integer(p place) (int64, bool) {
	var n int64
	if p.node.Kind != yaml.ScalarNode || p.node.ShortTag() != "!!int" || p.node.Decode(&n) != nil {
		r.expected(p, "a whole number")
		return 0, false
	}
	return n, true
}

// integerIn reads a whole number between low and high; an absent one is
// fallback.
func (r *manifestReader) integerIn(p place, fallback, low, high int64) int64 {
	if !p.given() {
		return fallback
	}
	n, ok := r.integer(p)
	if ok && (n < low || n > high) {
		r.fail(p, "expected a whole number from %d to %d, found %d", low, high, n)
	}
	return n
}

// parsed reads a text with a form of its own. Parse returns what it expected
// instead ("a duration such as 30s"), or "".
func parsed[T any](r *manifestReader, p place, what string, parse func(string) (T, string)) (T, bool) {
	var zero T
	s, ok := r.text(p, what)
	if !ok {
		return zero, false
	}
	v, expected := parse(s)
	if expected != "" {
		r.expected(p, expected)
		return zero, false
	}
	return v, true
}

func isNull(n *yaml.Node) bool {
	return n.Kind == 0 || n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
}

// kindOf says what kind of value n is, without its content.
func kindOf(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	}
	switch n.ShortTag() {
	case "!!str":
		return "a text"
	case "!!int", "!!float":
		return "a number"
	case "!!bool":
		return "true or false"
	case "!!timestamp":
		return "a date"
	case "!!null", "":
		return "nothing"
	}
	return "a value with a tag"
}

// show is n's value for an error, or its kind where the value is no scalar.
func show(n *yaml.Node) string {
	if n.Kind != yaml.ScalarNode || isNull(n) {
		return kindOf(n)
	}
	if n.ShortTag() == "!!str" {
		return quote(n.Value)
	}
	return "the value " + quote(n.Value)
}

// quote makes s fit for an error: on one line and short.
func quote(s string) string {
	const limit = 60
	if utf8.RuneCountInString(s) > limit {
		s = string([]rune(s)[:limit]) + "…"
	}
	return strconv.Quote(s)
}

func oneOf(words []string) string {
	if len(words) == 1 {
		return words[0]
	}
	return "one of " + strings.Join(words, ", ")
}
