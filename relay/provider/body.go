package provider

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"time"
)

// maxBodyScan bounds how much of a body is searched for an id and a type.
const maxBodyScan = 1 << 20

// found is what scan found: values by their paths.
type found map[string]scalar

type scalar struct {
	text   string
	number bool
}

// text is the string at path, "" when there is none.
func (f found) text(path string) string {
	if s := f[path]; !s.number {
		return s.text
	}
	return ""
}

// number is the number at path as it is written, "" when there is none.
func (f found) number(path string) string {
	if s := f[path]; s.number {
		return s.text
	}
	return ""
}

// scan finds strings and numbers in the JSON in body by their paths: names
// joined with dots, and decimal indices of arrays. Names are exact, and the
// first of two equal ones counts. It stops as soon as it has all of them, and
// quietly at the first thing it cannot read: what it did not find is just not in
// the result. An empty path finds nothing.
//
// Every webhook is scanned, so this reads the bytes itself and passes over what
// nobody asked for without looking into it; encoding/json takes ten times as
// long.
func scan(body []byte, paths ...string) found {
	s := scanner{rest: body[:min(len(body), maxBodyScan)], found: make(found, len(paths))}
	for _, path := range paths {
		if path != "" {
			s.paths = append(s.paths, path)
		}
	}
	s.value("")
	return s.found
}

type scanner struct {
	rest  []byte // what was not read yet
	paths []string
	found found
}

// value reads the value at path and goes on while it is worth while.
func (s *scanner) value(path string) (more bool) {
	wanted, below := s.concerns(path)
	s.blanks()
	if len(s.rest) == 0 {
		return false
	}
	switch c := s.rest[0]; {
	case below && c == '{':
		return s.object(path)
	case below && c == '[':
		return s.array(path)
	}
	raw, ok := s.skip()
	if !ok {
		return false
	}
	if _, known := s.found[path]; wanted && !known {
		if v, ok := readScalar(raw); ok {
			s.found[path] = v
		}
	}
	return len(s.found) < len(s.paths)
}

func (s *scanner) object(path string) (more bool) {
	s.rest = s.rest[1:]
	for {
		s.blanks()
		if s.next('}') {
			return true
		}
		key, ok := s.text()
		if !ok {
			return false
		}
		s.blanks()
		if !s.next(':') || !s.value(s.below(path, key)) {
			return false
		}
		s.blanks()
		if !s.next(',') {
			return s.next('}')
		}
	}
}

func (s *scanner) array(path string) (more bool) {
	s.rest = s.rest[1:]
	for i := 0; ; i++ {
		s.blanks()
		if s.next(']') {
			return true
		}
		if !s.value(s.below(path, strconv.AppendInt([]byte{'"'}, int64(i), 10))) {
			return false
		}
		s.blanks()
		if !s.next(',') {
			return s.next(']')
		}
	}
}

// passed is the path of everything that nobody looks for.
const passed = "\x00"

// below is the path of a member; key is its name as it is written, with the
// quotation mark in front.
func (s *scanner) below(path string, key []byte) string {
	name := key[1:]
	if bytes.IndexByte(name, '\\') >= 0 {
		var text string
		if json.Unmarshal(append(key, '"'), &text) != nil {
			return passed
		}
		name = []byte(text)
	}
	start := 0
	if path != "" {
		start = len(path) + 1
	}
	for _, p := range s.paths {
		if len(name) == 0 || bytes.IndexByte(name, '.') >= 0 || len(p) < start+len(name) || start > 0 && (p[:start-1] != path || p[start-1] != '.') {
			continue
		}
		if end := start + len(name); p[start:end] == string(name) && (end == len(p) || p[end] == '.') {
			return p[:end]
		}
	}
	return passed
}

// concerns tells whether path is looked for, or something below it is.
func (s *scanner) concerns(path string) (wanted, below bool) {
	switch path {
	case "":
		return false, true
	case passed:
		return false, false
	}
	for _, p := range s.paths {
		wanted = wanted || p == path
		below = below || len(p) > len(path) && p[len(path)] == '.' && p[:len(path)] == path
	}
	return wanted, below
}

func (s *scanner) blanks() {
	s.rest = bytes.TrimLeft(s.rest, " \t\r\n")
}

// next reads c when it is what comes next.
func (s *scanner) next(c byte) bool {
	if len(s.rest) == 0 || s.rest[0] != c {
		return false
	}
	s.rest = s.rest[1:]
	return true
}

// text reads a string; the result has the quotation mark in front and none at
// the end.
func (s *scanner) text() ([]byte, bool) {
	if len(s.rest) == 0 || s.rest[0] != '"' {
		return nil, false
	}
	for i := 1; ; i++ {
		n := bytes.IndexByte(s.rest[i:], '"')
		if n < 0 {
			return nil, false
		}
		i += n
		backslashes := 0
		for s.rest[i-1-backslashes] == '\\' {
			backslashes++
		}
		if backslashes%2 == 0 {
			text := s.rest[:i:i]
			s.rest = s.rest[i+1:]
			return text, true
		}
	}
}

// skip passes over one value, whatever it is, and gives its bytes.
func (s *scanner) skip() (raw []byte, ok bool) {
	whole := s.rest
	for depth := 0; len(s.rest) > 0; {
		switch c := s.rest[0]; c {
		case '"':
			if _, ok := s.text(); !ok {
				return nil, false
			}
		case '{', '[':
			depth++
			s.rest = s.rest[1:]
		case '}', ']':
			depth--
			s.rest = s.rest[1:]
		default:
			n := bytes.IndexAny(s.rest, "\"{}[],")
			if depth > 0 && n == 0 { // a comma
				n = 1
			}
			if n < 0 {
				n = len(s.rest)
			}
			if n == 0 {
				return nil, false
			}
			s.rest = s.rest[n:]
		}
		if depth <= 0 {
			return whole[:len(whole)-len(s.rest)], depth == 0
		}
	}
	return nil, false
}

// readScalar reads a string or a number.
func readScalar(raw []byte) (v scalar, ok bool) {
	raw = bytes.TrimRight(raw, " \t\r\n")
	if len(raw) == 0 {
		return v, false
	}
	if raw[0] == '"' {
		err := json.Unmarshal(raw, &v.text)
		return v, err == nil
	}
	var n json.Number
	if (raw[0] == '-' || raw[0] >= '0' && raw[0] <= '9') && json.Unmarshal(raw, &n) == nil {
		return scalar{text: n.String(), number: true}, true
	}
	return v, false
}

// maxItems bounds how many events of one batch are looked at.
const maxItems = 2000

// items reads a batch: a JSON array of objects, whole or not at all.
func items(body []byte) ([]map[string]json.RawMessage, error) {
	if len(body) > maxBodyScan {
		return nil, errors.New("batch too long")
	}
	var list []map[string]json.RawMessage
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, err
	}
	if len(list) == 0 || len(list) > maxItems {
		return nil, errors.New("batch empty or too long")
	}
	return list, nil
}

// batch names a batch after what its items are told apart by. The same items in
// the same order have the same id; when one of them lacks a required name, the
// batch has none.
func batch(list []map[string]json.RawMessage, required string, besides ...string) string {
	sum := sha256.New()
	for _, item := range list {
		if v := item[required]; len(v) == 0 || string(v) == "null" || string(v) == `""` {
			return ""
		}
		for _, name := range append([]string{required}, besides...) {
			v := item[name]
			io.WriteString(sum, strconv.Itoa(len(v))+":")
			sum.Write(v)
		}
	}
	return "batch_" + hex.EncodeToString(sum.Sum(nil))
}

// common is the string that all items have under name, "" when they differ.
func common(list []map[string]json.RawMessage, name string) string {
	var first string
	for i, item := range list {
		var s string
		if json.Unmarshal(item[name], &s) != nil || i > 0 && s != first {
			return ""
		}
		first = s
	}
	return first
}

// about is what an event says of itself.
type about struct {
	id     string // the dedupe key
	kind   string // the type
	sentAt time.Time
}

// fromHeaders is the about of senders that say it in headers. Signatures do not
// cover those: whoever holds a signed body could send it again under a new id,
// and such a scheme gives no way to notice.
func fromHeaders(id, kind string) func(request) about {
	return func(r request) about {
		return about{id: r.in.Header.Get(id), kind: r.in.Header.Get(kind)}
	}
}

// fromBody is the about of senders that say it in the body, by paths.
func fromBody(id, kind string) func(request) about {
	return func(r request) about {
		f := scan(r.in.Body, id, kind)
		return about{id: f.text(id), kind: f.text(kind)}
	}
}

// bodyKey names a body by its bytes, for senders that give no id but write the
// time of the event, to the millisecond, into the body: equal bodies are then one
// event. Where there is no such time, two events may look alike, and taking them
// for one would lose one.
func bodyKey(body []byte) string {
	sum := sha256.Sum256(body)
	return "body_" + hex.EncodeToString(sum[:])
}
