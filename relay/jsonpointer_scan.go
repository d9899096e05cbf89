package relay

import "bytes"

// maxJSONDepth is how deep values may be nested; encoding/json has the same.
const maxJSONDepth = 10_000

// jsonScan reads JSON (RFC 8259) without building anything, and takes exactly
// what encoding/json takes. Unlike that, it says where in data a value lies and
// comes as far as it can where data is cut.
type jsonScan struct {
	data []byte
	at   int // the next byte
}

// validJSON reports whether data is one JSON value.
func validJSON(data []byte) bool {
	s := jsonScan{data: data}
	s.space()
	if !s.skip(0) {
		return false
	}
	s.space()
	return s.at == len(data)
}

// peek is the next byte, or 0, which is nowhere part of JSON.
func (s *jsonScan) peek() byte {
	if s.at < len(s.data) {
		return s.data[s.at]
	}
	return 0
}

func (s *jsonScan) take(c byte) bool {
	if s.peek() != c {
		return false
	}
	s.at++
	return true
}

func (s *jsonScan) space() {
	for s.at < len(s.data) {
		switch s.data[s.at] {
		case ' ', '\t', '\n', '\r':
			s.at++
		default:
			return
		}
	}
}

// skip passes over the value that begins here, inside of depth others.
func (s *jsonScan) skip(depth int) bool {
	switch c := s.peek(); c {
	case '{':
		return s.members(depth+1, func([]byte) bool { return s.skip(depth + 1) })
	case '[':
		return s.elements(depth+1, func() bool { return s.skip(depth + 1) })
	case '"':
		return s.str()
	case 't':
		return s.word("true")
	case 'f':
		return s.word("false")
	case 'n':
		return s.word("null")
	default:
		return s.number(depth)
	}
}

// members passes over an object. Value reads each member's value; key has its
// quotes.
func (s *jsonScan) members(depth int, value func(key []byte) bool) bool {
	if depth > maxJSONDepth || !s.take('{') {
		return false
	}
	s.space()
	if s.take('}') {
		return true
	}
	for {
		start := s.at
		if !s.str() {
			return false
		}
		key := s.data[start:s.at]
		s.space()
		if !s.take(':') {
			return false
		}
		s.space()
		if !value(key) {
			return false
		}
		s.space()
		if !s.take(',') {
			return s.take('}')
		}
		s.space()
	}
}

// elements passes over a list. Value reads each element.
func (s *jsonScan) elements(depth int, value func() bool) bool {
	if depth > maxJSONDepth || !s.take('[') {
		return false
	}
	s.space()
	if s.take(']') {
		return true
	}
	for {
		if !value() {
			return false
		}
		s.space()
		if !s.take(',') {
			return s.take(']')
		}
		s.space()
	}
}

func (s *jsonScan) word(w string) bool {
	if !bytes.HasPrefix(s.data[s.at:], []byte(w)) {
		return false
	}
	s.at += len(w)
	return true
}

// str passes over a string.
func (s *jsonScan) str() bool {
	if !s.take('"') {
		return false
	}
	for s.at < len(s.data) {
		c := s.data[s.at]
		s.at++
		switch {
		case c == '"':
			return true
		case c < ' ':
			return false
		case c == '\\' && !s.escape():
			return false
		}
	}
	return false
}

// escape passes over what follows a backslash.
func (s *jsonScan) escape() bool {
	switch c := s.peek(); c {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		s.at++
		return true
	case 'u':
		s.at++
	default:
		return false
	}
	for range 4 {
		switch c := s.peek(); {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'f', c >= 'A' && c <= 'F':
			s.at++
		default:
			return false
		}
	}
	return true
}

// number passes over a number. Inside of another value something must follow
// it: where data was cut it could be half a number.
func (s *jsonScan) number(depth int) bool {
	s.take('-')
	if !s.take('0') && !s.digits() {
		return false
	}
	if s.take('.') && !s.digits() {
		return false
	}
	if s.take('e') || s.take('E') {
		if !s.take('+') {
			s.take('-')
		}
		if !s.digits() {
			return false
		}
	}
	return depth == 0 || s.at < len(s.data)
}

// digits passes over at least one digit.
func (s *jsonScan) digits() bool {
	start := s.at
	for c := s.peek(); c >= '0' && c <= '9'; c = s.peek() {
		s.at++
	}
	return s.at > start
}
