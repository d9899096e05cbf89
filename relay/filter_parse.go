package relay

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// Bounds of a filter's text form.
const (
	maxFilterText  = 4096 // bytes
	maxFilterTerms = 50
)

// How terms begin.
const (
	typeTerm   = "type"
	headerTerm = "header:"
)

const expectedTerm = "type, a JSON pointer such as /data/id, or header:NAME"

// ParseFilter reads a Filter's text form. The error is one plain sentence with
// the place in text, in characters from 1.
func ParseFilter(text string) (Filter, error) {
	if len(text) > maxFilterText {
		return Filter{}, fmt.Errorf("expected a filter of at most %d bytes, found %d", maxFilterText, len(text))
	}
	p := filterParser{text: text}
	var f Filter
	for p.blanks(); p.at < len(text); p.blanks() {
		if len(f.terms) == maxFilterTerms {
			return Filter{}, p.fail(p.at, "expected the end, a filter has at most %d terms", maxFilterTerms)
		}
		t, err := p.term()
		if err != nil {
			return Filter{}, err
		}
		if t.kind == termPointer {
			path, _ := parseJSONPath(t.name) // good, or term would have failed
			f.paths = append(f.paths, path)
		}
		f.terms = append(f.terms, t)
	}
	return f, nil
}

// filterParser goes once over a filter's text.
type filterParser struct {
	text string
	at   int
}

func (p *filterParser) fail(at int, format string, args ...any) error {
	place := utf8.RuneCountInString(p.text[:at]) + 1
	return fmt.Errorf("%s, at character %d of the filter", fmt.Sprintf(format, args...), place)
}

func isBlank(c rune) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }

func (p *filterParser) blanks() {
	for p.at < len(p.text) && isBlank(rune(p.text[p.at])) {
		p.at++
	}
}

// term reads one term. It begins here.
func (p *filterParser) term() (filterTerm, error) {
	start := p.at
	name, err := p.name()
	if err != nil {
		return filterTerm{}, err
	}
	t := filterTerm{name: name}
	switch header, isHeader := strings.CutPrefix(name, headerTerm); {
	case name == typeTerm:
		t.kind, t.name = termType, ""
	case isHeader:
		t.kind, t.name = termHeader, header
		if _, expected := parseHeaderName(header); expected != "" {
			return t, p.fail(start, "expected the name of a header after header:, found %s", quote(header))
		}
	case strings.HasPrefix(name, "/"):
		t.kind = termPointer
		if _, expected := parsePointer(name); expected != "" {
			return t, p.fail(start, "expected %s, found %s", expected, quote(name))
		}
	default:
		return t, p.fail(start, "expected %s, found %s", expectedTerm, quote(name))
	}
	if t.not, err = p.operator(); err != nil {
		return t, err
	}
	t.pattern, err = p.value()
	return t, err
}

// name reads up to the operator.
func (p *filterParser) name() (string, error) {
	if p.text[p.at] == '"' {
		parts, err := p.quoted(false)
		if err != nil {
			return "", err
		}
		return parts[0], nil
	}
	start := p.at
	for p.at < len(p.text) {
		c := p.text[p.at]
		if c == '=' || isBlank(rune(c)) || strings.HasPrefix(p.text[p.at:], "!=") {
			break
		}
		p.at++
	}
	return p.text[start:p.at], nil
}

// operator reads = or != and says whether it was the latter.
func (p *filterParser) operator() (not bool, err error) {
	rest := p.text[p.at:]
	switch {
	case strings.HasPrefix(rest, "!="):
		p.at += 2
		return true, nil
	case strings.HasPrefix(rest, "="):
		p.at++
		return false, nil
	}
	return false, p.fail(p.at, "expected = or != and a value")
}

// value reads the value as the parts between its stars.
func (p *filterParser) value() ([]string, error) {
	if p.at < len(p.text) && p.text[p.at] == '"' {
		return p.quoted(true)
	}
	start := p.at
	pattern := newPattern(true)
	for p.at < len(p.text) && !isBlank(rune(p.text[p.at])) {
		if p.text[p.at] == '"' {
			return nil, p.fail(p.at, `expected no quote within a value; put the whole value in quotes, or write \" for one`)
		}
		if err := p.character(&pattern); err != nil {
			return nil, err
		}
	}
	if p.at == start {
		return nil, p.fail(start, `expected a value; an empty one is written ""`)
	}
	return pattern.parts(), nil
}

// quoted reads a text in quotes, which begin here. Only in a value a star stands
// for anything.
func (p *filterParser) quoted(value bool) ([]string, error) {
	start := p.at
	p.at++
	pattern := newPattern(value)
	for {
		if p.at == len(p.text) {
			return nil, p.fail(start, "expected another quote that closes this one")
		}
		if p.text[p.at] == '"' {
			break
		}
		if err := p.character(&pattern); err != nil {
			return nil, err
		}
	}
	p.at++
	if value && p.at < len(p.text) && !isBlank(rune(p.text[p.at])) {
		return nil, p.fail(p.at, "expected a blank after the closing quote")
	}
	return pattern.parts(), nil
}

// character reads one character or escape into pattern.
func (p *filterParser) character(pattern *filterPattern) error {
	c := p.text[p.at]
	if c != '\\' {
		p.at++
		pattern.add(c)
		return nil
	}
	if p.at+1 == len(p.text) || strings.IndexByte(`"\*`, p.text[p.at+1]) < 0 {
		return p.fail(p.at, `expected \" or \\ or \*, found another character after \`)
	}
	pattern.literal(p.text[p.at+1])
	p.at += 2
	return nil
}

// filterPattern gathers the parts of a value.
type filterPattern struct {
	stars bool // a star ends a part
	done  []string
	part  []byte
}

func newPattern(stars bool) filterPattern { return filterPattern{stars: stars} }

func (f *filterPattern) literal(c byte) { f.part = append(f.part, c) }

func (f *filterPattern) add(c byte) {
	if c == '*' && f.stars {
		f.done = append(f.done, string(f.part))
		f.part = nil
		return
	}
	f.literal(c)
}

// parts drops what two stars in a row have between them, which is nothing.
func (f *filterPattern) parts() []string {
	parts := append(f.done, string(f.part))
	if len(parts) < 3 {
		return parts
	}
	last := len(parts) - 1
	inner := slices.DeleteFunc(slices.Clone(parts[1:last]), func(s string) bool { return s == "" })
	return slices.Concat(parts[:1], inner, parts[last:])
}
