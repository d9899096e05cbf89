package admin

import (
	"net/http"
	"slices"
	"strings"

	"github.com/posternhq/postern/relay"
)

// exported is a webhook as somebody may send it again: what is seen of it, to an
// address, without the header lines that belong to one connection.
type exported struct {
	seen
	url    string // never decoded and encoded again
	header []relay.Field
}

func (s *Server) exportEvent(c *call) (any, error) {
	e, err := s.event(c)
	if err != nil {
		return nil, err
	}
	v := s.sight(e)
	if v.gone {
		return nil, relay.Errorf(relay.Conflict, "there is nothing to export: %s", noteGone)
	}
	if note := v.note(&e); note != "" {
		return nil, relay.Errorf(relay.Conflict, "there is nothing to export: %s", note)
	}
	x := &exported{seen: v, url: v.PublicURL, header: endToEnd(v.Header)}
	target := c.query.text("target")
	if target != "" {
		x.url = v.addressAt(target)
	}
	if !sendable(x) {
		return nil, relay.Errorf(relay.Conflict, "the event has a method, an address or a header that no client sends")
	}
	switch c.query.text("as") {
	case "curl":
		return &file{name: string(e.ID) + ".sh", contentType: textType, data: x.curl()}, nil
	case "go":
		if target == "" { // what the app sees, not what the sender saw
			x.url = v.addressAt(originOf(v.PublicURL))
		}
		return &file{name: string(e.ID) + "_test.go", contentType: textType, data: x.goTest(s.signatureNames(&v))}, nil
	}
	last, err := s.lastAttempt(c, &v)
	if err != nil {
		return nil, err
	}
	return &file{name: string(e.ID) + ".har", contentType: "application/json", data: x.har(last)}, nil
}

// textType shows exports as text: nothing runs them by accident.
const textType = "text/plain; charset=utf-8"

// madeAnew are header lines that whoever sends the request makes anew.
var madeAnew = []string{"Content-Length", "Expect", "Host"}

func endToEnd(fields []relay.Field) []relay.Field {
	return slices.DeleteFunc(slices.Clone(fields), func(f relay.Field) bool {
		return relay.HopByHop(f.Name) || slices.Contains(madeAnew, http.CanonicalHeaderKey(f.Name))
	})
}

// sendable reports whether x is an HTTP request at all. What was stored came over
// HTTP and is; this keeps a record that was damaged out of shells and source.
func sendable(x *exported) bool {
	for _, f := range x.header {
		if !isToken(f.Name) || strings.ContainsAny(f.Value, "\r\n\x00") {
			return false
		}
	}
	scheme, rest, ok := strings.Cut(x.url, "://")
	return isToken(x.Method) && ok && (scheme == "http" || scheme == "https") && rest != "" && rest[0] != '/' &&
		!strings.ContainsFunc(x.url, func(r rune) bool { return r <= ' ' || r == 0x7f })
}

// isToken follows RFC 9110, section 5.6.2.
func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
	})
}

// originOf is scheme, host and port of an address.
func originOf(address string) string {
	origin, _ := splitURL(address)
	return origin
}

// splitURL splits an absolute address in front of its path. The second part is
// what a request line has, byte for byte.
func splitURL(address string) (origin, target string) {
	scheme, rest, _ := strings.Cut(address, "://")
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	target = rest[end:]
	if !strings.HasPrefix(target, "/") {
		target = "/" + target
	}
	return scheme + "://" + rest[:end], target
}

// signatureNames are the header lines that the relay could sign anew, if any.
func (s *Server) signatureNames(v *seen) []string {
	fields, err := s.cfg.Resign(v.endpoint, v.Event, v.PublicURL, s.cfg.Now())
	if err != nil {
		return nil
	}
	var list []string
	for _, f := range fields {
		if isToken(f.Name) && !slices.Contains(list, f.Name) {
			list = append(list, f.Name)
		}
	}
	return list
}

// lastAttempt is the newest one of all deliveries to the app, nil when there is
// none.
func (s *Server) lastAttempt(c *call, v *seen) (*relay.Attempt, error) {
	deliveries, err := s.cfg.Store.Deliveries(c.ctx(), v.ID)
	if err != nil {
		return nil, err
	}
	deliveries = slices.DeleteFunc(slices.Clone(deliveries), func(d relay.Delivery) bool { return d.Destination != "" })
	attempts, err := s.attempts(c.ctx(), deliveries)
	if err != nil || len(attempts) == 0 {
		return nil, err
	}
	last := v.attempt(attempts[len(attempts)-1])
	return &last, nil
}
