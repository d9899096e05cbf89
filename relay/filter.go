package relay

import (
	"net/url"
	"strings"
)

// Filter selects events by what is in them. The zero Filter selects every
// event. Its text form is a list of terms with blanks between; all must hold:
//
//	type=invoice.*                 the event's type; * stands for anything
//	type!=invoice.created
//	/data/object/currency=usd      the value at a JSON pointer into the body
//	header:X-Tenant=acme           one of the header's values
//
// A value with blanks, an empty one, and a name with blanks or = is quoted:
// /note="paid late". In values \* is a star, \" a quote and \\ a backslash.
//
// A string, number, true, false or null in the body is compared as JSONText, an
// object or a list equals nothing. Without the value or the header, = does not
// hold and != does. The body is looked at up to its first MiB, and as far as it
// is JSON; in a form, the field payload is.
type Filter struct {
	terms []filterTerm
	paths []jsonPath // of the pointer terms, in their order
}

// filterTerm is one condition.
type filterTerm struct {
	kind    termKind
	name    string // the header's name or the pointer
	not     bool   // != instead of =
	pattern []string
}

// termKind says what a term looks at.
type termKind int

const (
	termType termKind = iota
	termHeader
	termPointer
)

// maxFilterBody is how many bytes of a body a Filter looks at.
const maxFilterBody = 1 << 20

// Match reports whether e is selected. It reads the body at most once, and only
// when the terms on type and headers hold.
func (f Filter) Match(e *Event) bool {
	for _, t := range f.terms {
		switch t.kind {
		case termType:
			if t.matches(e.Type) == t.not {
				return false
			}
		case termHeader:
			if t.matchesHeader(e.Header) == t.not {
				return false
			}
		}
	}
	return len(f.paths) == 0 || f.matchBody(e)
}

func (f Filter) matchBody(e *Event) bool {
	values := f.values(filterBody(e))
	for _, t := range f.terms {
		if t.kind != termPointer {
			continue
		}
		text, ok := JSONText(values[0])
		if (ok && t.matches(text)) == t.not {
			return false
		}
		values = values[1:]
	}
	return true
}

// values finds what is at each of f's paths, nil where nothing is.
func (f Filter) values(body []byte) [][]byte {
	values, missing := make([][]byte, len(f.paths)), len(f.paths)
	w := jsonWalk{jsonScan: jsonScan{data: body}, found: func(path, start, end int) bool {
		if values[path] == nil {
			values[path] = body[start:end]
			missing--
		}
		return missing > 0
	}}
	w.document(f.paths)
	return values
}

// filterBody is what of e's body is looked at.
func filterBody(e *Event) []byte {
	body := e.Body[:min(len(e.Body), maxFilterBody)]
	if !formHeader(e.Header) {
		return body
	}
	fields, _ := payloadFields(body)
	if len(fields) == 0 {
		return body
	}
	raw := string(body[fields[0].start:fields[0].end])
	if i := strings.LastIndexByte(raw, '%'); i >= 0 && i > len(raw)-3 {
		raw = raw[:i] // half an escape, where the body was cut
	}
	payload, err := url.QueryUnescape(raw)
	if err != nil {
		return nil
	}
	return []byte(payload)
}

func (t filterTerm) matchesHeader(header []Field) bool {
	for _, h := range header {
		if strings.EqualFold(h.Name, t.name) && t.matches(h.Value) {
			return true
		}
	}
	return false
}

// matches reports whether s has the parts of the pattern in their order, with
// anything between them. One part alone is the whole of s.
func (t filterTerm) matches(s string) bool {
	first, last := t.pattern[0], t.pattern[len(t.pattern)-1]
	if len(t.pattern) == 1 {
		return s == first
	}
	if len(s) < len(first)+len(last) || !strings.HasPrefix(s, first) || !strings.HasSuffix(s, last) {
		return false
	}
	s = s[len(first) : len(s)-len(last)]
	for _, part := range t.pattern[1 : len(t.pattern)-1] {
		i := strings.Index(s, part)
		if i < 0 {
			return false
		}
		s = s[i+len(part):]
	}
	return true
}

// String is the filter's text form, the same for the same terms: ParseFilter
// makes an equal filter of it.
func (f Filter) String() string {
	texts := make([]string, len(f.terms))
	for i, t := range f.terms {
		texts[i] = t.String()
	}
	return strings.Join(texts, " ")
}

func (t filterTerm) String() string {
	name, operator := t.name, "="
	switch t.kind {
	case termType:
		name = typeTerm
	case termHeader:
		name = headerTerm + name
	}
	if t.not {
		operator = "!="
	}
	if strings.ContainsFunc(name, needsQuotes) || strings.ContainsAny(name, "=!") {
		name = `"` + filterEscape.Replace(name) + `"`
	}
	parts := make([]string, len(t.pattern))
	for i, part := range t.pattern {
		parts[i] = patternEscape.Replace(part)
	}
	value := strings.Join(parts, "*")
	if value == "" || strings.ContainsFunc(value, needsQuotes) {
		value = `"` + value + `"`
	}
	return name + operator + value
}

var (
	filterEscape  = strings.NewReplacer(`\`, `\\`, `"`, `\"`)
	patternEscape = strings.NewReplacer(`\`, `\\`, `"`, `\"`, `*`, `\*`)
)

// needsQuotes finds what cannot be outside of quotes.
func needsQuotes(c rune) bool { return isBlank(c) || c == '"' }
