package relay

import (
	"maps"
	"net/http"
	"slices"
	"strings"
)

// hopByHop are the header lines that belong to one connection, not to the
// message (RFC 9110, section 7.6.1, and what older software still sends).
var hopByHop = map[string]bool{
	"connection": true, "proxy-connection": true, "keep-alive": true, "proxy-authenticate": true,
	"proxy-authorization": true, "te": true, "trailer": true, "transfer-encoding": true,
	"upgrade": true, "http2-settings": true,
}

// HopByHop reports whether header lines of this name, in any case, belong to one
// connection. Those that a Connection line names do so too.
func HopByHop(name string) bool { return hopByHop[strings.ToLower(name)] }

// RemoveHopByHop drops from h what concerned only the connection it came over,
// also what its Connection lines name.
func RemoveHopByHop(h http.Header) {
	for _, names := range h["Connection"] {
		for name := range strings.SplitSeq(names, ",") {
			h.Del(strings.TrimSpace(name))
		}
	}
	for name := range hopByHop {
		h.Del(name)
	}
}

// FieldsOf turns a parsed header into lines: names in alphabetical order, the
// values of one name in the order they came.
func FieldsOf(h http.Header) []Field {
	var fields []Field
	for _, name := range slices.Sorted(maps.Keys(h)) {
		for _, value := range h[name] {
			fields = append(fields, Field{Name: name, Value: value})
		}
	}
	return fields
}
