package relay

import (
	"net/url"
	"slices"
	"strings"
)

// Redaction says what is taken out of an event before people or other
// destinations see it. The stored event stays whole.
type Redaction struct {
	Headers []string // names, compared without case
	Body    []string // JSON pointers, where * stands for every member or element of one level
}

// Bounds of a body that values are taken out of; one beyond is left out.
const (
	maxRedactBody   = 16 << 20 // bytes
	maxRedactValues = 1 << 20
)

const redactedText = "[redacted]"

// Empty reports whether nothing is taken out.
func (r Redaction) Empty() bool { return len(r.Headers) == 0 && len(r.Body) == 0 }

// With hides what either of the two hides.
func (r Redaction) With(other Redaction) Redaction {
	return Redaction{
		Headers: slices.Concat(r.Headers, other.Headers),
		Body:    slices.Concat(r.Body, other.Body),
	}
}

// Apply is e with the redacted values replaced by "[redacted]", and every other
// byte as it was. It changes nothing that e shares.
//
// A body that has pointers to hide is left out whole, with BodySize as it was,
// where it cannot be told what they point to: when it is not JSON, is cut or has
// more than 16 MiB, when a million values would go, or when a pointer is none.
// The JSON in the field payload of a form, as GitHub sends it, is redacted
// inside of the form, when the form has no other field.
func (r Redaction) Apply(e Event) Event {
	if len(r.Body) > 0 && len(e.Body) > 0 {
		e.Body = r.body(&e)
	}
	e.Header = r.header(e.Header)
	return e
}

// body is e's body without what is hidden, or nil.
func (r Redaction) body(e *Event) []byte {
	paths, ok := r.paths()
	if !ok || len(e.Body) > maxRedactBody || int64(len(e.Body)) < e.BodySize {
		return nil
	}
	// The form comes first: a body can be both at once, a form with a payload and
	// JSON in which that is a part of some string.
	if formHeader(e.Header) {
		if fields, only := payloadFields(e.Body); len(fields) > 0 {
			if !only {
				return nil
			}
			return redactForm(e.Body, fields, paths)
		}
	}
	hidden, ok := redactRanges(e.Body, paths)
	if !ok {
		return nil
	}
	return splice(e.Body, hidden, `"`+redactedText+`"`)
}

func (r Redaction) header(fields []Field) []Field {
	hidden := func(f Field) bool {
		return slices.ContainsFunc(r.Headers, func(name string) bool { return strings.EqualFold(name, f.Name) })
	}
	if !slices.ContainsFunc(fields, hidden) {
		return fields
	}
	fields = slices.Clone(fields)
	for i, f := range fields {
		if hidden(f) {
			fields[i].Value = redactedText
		}
	}
	return fields
}

func (r Redaction) paths() ([]jsonPath, bool) {
	paths := make([]jsonPath, len(r.Body))
	for i, pointer := range r.Body {
		path, ok := parseJSONPath(pointer)
		if !ok {
			return nil, false
		}
		paths[i] = path
	}
	return paths, true
}

// byteRange is data[start:end].
type byteRange struct{ start, end int }

// redactRanges finds what is at paths in the JSON text body, in order, nothing
// twice. False means that body is no JSON or that there is too much to hide.
func redactRanges(body []byte, paths []jsonPath) (hidden []byteRange, ok bool) {
	if !validJSON(body) {
		return nil, false
	}
	w := jsonWalk{jsonScan: jsonScan{data: body}, wild: true, found: func(_, start, end int) bool {
		// What was found inside of this value comes just before it.
		for len(hidden) > 0 && hidden[len(hidden)-1].start >= start {
			hidden = hidden[:len(hidden)-1]
		}
		hidden = append(hidden, byteRange{start, end})
		return len(hidden) <= maxRedactValues
	}}
	if !w.document(paths) {
		return nil, false
	}
	return hidden, true
}

// splice is body with each of ranges replaced. With none it is body itself.
func splice(body []byte, ranges []byteRange, replacement string) []byte {
	if len(ranges) == 0 {
		return body
	}
	size := len(body)
	for _, r := range ranges {
		size += len(replacement) - (r.end - r.start)
	}
	out, at := make([]byte, 0, size), 0
	for _, r := range ranges {
		out = append(out, body[at:r.start]...)
		out = append(out, replacement...)
		at = r.end
	}
	return append(out, body[at:]...)
}

// redactForm hides what is at paths in the JSON of each payload field.
func redactForm(body []byte, fields []byteRange, paths []jsonPath) []byte {
	var hidden []byteRange
	for _, f := range fields {
		raw := body[f.start:f.end]
		payload, err := url.QueryUnescape(string(raw))
		if err != nil {
			return nil
		}
		found, ok := redactRanges([]byte(payload), paths)
		if !ok {
			return nil
		}
		// From positions in the payload to those in its escaped form.
		at, decoded := 0, 0
		escaped := func(to int) int {
			for ; decoded < to; decoded++ {
				if raw[at] == '%' {
					at += 2
				}
				at++
			}
			return f.start + at
		}
		for _, r := range found {
			start := escaped(r.start)
			hidden = append(hidden, byteRange{start, escaped(r.end)})
		}
	}
	return splice(body, hidden, url.QueryEscape(`"`+redactedText+`"`))
}
