package relay

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
)

// JSONPointer is the value in body at a JSON pointer (RFC 6901), as it is
// written there; JSONText makes a text of it. The empty pointer is the whole
// document. A key that is there twice counts the first time.
//
// It reads no further than to the end of the value: what comes behind may be cut
// off or anything. Where body stops being JSON before that, there is no value.
func JSONPointer(body []byte, pointer string) (value []byte, ok bool) {
	path, ok := parseJSONPath(pointer)
	if !ok {
		return nil, false
	}
	w := jsonWalk{jsonScan: jsonScan{data: body}, found: func(_, start, end int) bool {
		value = body[start:end]
		return false
	}}
	w.document([]jsonPath{path})
	return value, value != nil
}

// JSONText is what a JSON string says, and a number, true, false or null as it
// is written. An object or a list has no text.
func JSONText(value []byte) (text string, ok bool) {
	if len(value) == 0 || value[0] == '{' || value[0] == '[' {
		return "", false
	}
	if value[0] != '"' {
		return string(value), true
	}
	return unquoteJSON(value)
}

// unquoteJSON is what a JSON string with its quotes says.
func unquoteJSON(raw []byte) (string, bool) {
	if len(raw) < 2 {
		return "", false
	}
	if bytes.IndexByte(raw, '\\') < 0 {
		return string(raw[1 : len(raw)-1]), true // the sender's own bytes, UTF-8 or not
	}
	var s string
	err := json.Unmarshal(raw, &s)
	return s, err == nil
}

// jsonPath is the steps of a JSON pointer, without escapes.
type jsonPath []string

func parseJSONPath(pointer string) (jsonPath, bool) {
	if pointer == "" {
		return jsonPath{}, true
	}
	if _, expected := parsePointer(pointer); expected != "" {
		return nil, false
	}
	path := strings.Split(pointer[1:], "/")
	for i, step := range path {
		// RFC 6901, section 4: first ~1, then ~0, or "~01" would become "/".
		path[i] = strings.ReplaceAll(strings.ReplaceAll(step, "~1", "/"), "~0", "~")
	}
	return path, true
}

// jsonWalk finds the values at several paths in one go over a document.
//
//	document
//	└── walk                    a value that has paths into it
//	    ├── object, list ─ walk
//	    └── skip                a value that has none
type jsonWalk struct {
	jsonScan
	wild bool // the step * stands for every member and element
	// found is told of each value, by the index of its path and the bytes it has
	// in data, after those inside of it. It says whether to go on.
	found func(path, start, end int) bool
}

// jsonSeek is what is left of a path on the way to its value.
type jsonSeek struct {
	path int
	rest jsonPath
}

// document walks the one value in data. False means that data stopped being
// JSON, or that found said so; what follows the value is not looked at.
func (w *jsonWalk) document(paths []jsonPath) bool {
	seeks := make([]jsonSeek, len(paths))
	for i, path := range paths {
		seeks[i] = jsonSeek{path: i, rest: path}
	}
	w.space()
	return w.walk(seeks, 0)
}

// walk reads the value that begins here. Its depth is bounded by the paths'.
func (w *jsonWalk) walk(seeks []jsonSeek, depth int) bool {
	start, inside := w.at, false
	for _, s := range seeks {
		inside = inside || len(s.rest) > 0
	}
	var ok bool
	switch c := w.peek(); {
	case inside && c == '{':
		ok = w.object(seeks, depth+1)
	case inside && c == '[':
		ok = w.list(seeks, depth+1)
	default:
		ok = w.skip(depth)
	}
	if !ok {
		return false
	}
	for _, s := range seeks {
		if len(s.rest) == 0 && !w.found(s.path, start, w.at) {
			return false
		}
	}
	return true
}

func (w *jsonWalk) object(seeks []jsonSeek, depth int) bool {
	return w.members(depth, func(key []byte) bool {
		return w.child(seeks, depth, func(step string) bool { return keyIs(key, step) })
	})
}

func (w *jsonWalk) list(seeks []jsonSeek, depth int) bool {
	index := -1
	return w.elements(depth, func() bool {
		index++
		return w.child(seeks, depth, func(step string) bool {
			// No leading zeros (RFC 6901, section 4): only the usual form is equal.
			return len(step) <= 10 && step == strconv.Itoa(index)
		})
	})
}

// child reads a member's or element's value with the paths that lead into it.
func (w *jsonWalk) child(seeks []jsonSeek, depth int, is func(step string) bool) bool {
	var into []jsonSeek
	for _, s := range seeks {
		if len(s.rest) > 0 && (w.wild && s.rest[0] == "*" || is(s.rest[0])) {
			into = append(into, jsonSeek{path: s.path, rest: s.rest[1:]})
		}
	}
	if len(into) == 0 {
		return w.skip(depth)
	}
	return w.walk(into, depth)
}

// keyIs reports whether the key with its quotes says step.
func keyIs(key []byte, step string) bool {
	if bytes.IndexByte(key, '\\') < 0 {
		return string(key[1:len(key)-1]) == step
	}
	s, ok := unquoteJSON(key)
	return ok && s == step
}
