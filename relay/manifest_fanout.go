package relay

import (
	"net/url"
	"strconv"
	"strings"
)

// maxDestinations is how many destinations an endpoint has besides its app:
// each of them is a delivery of every event.
const maxDestinations = 20

// readFanOut reads who else gets an endpoint's events. Whoever has a name owns
// the deliveries that wait under it, so names are unique.
func (r *manifestReader) readFanOut(p place, provider string) []Destination {
	var list []Destination
	first := map[string]int{}
	for _, item := range r.items(p, maxDestinations) {
		d, name := r.readDestination(item, provider)
		if d.Name != "" {
			if line, taken := first[d.Name]; taken {
				r.fail(name, "expected a name of its own, %s is taken on line %d already", quote(d.Name), line)
			} else {
				first[d.Name] = name.node.Line
			}
		}
		list = append(list, d)
	}
	return list
}

// readDestination also gives the place of the name.
func (r *manifestReader) readDestination(p place, provider string) (Destination, place) {
	f := r.fields(p, "name", "url", "filter", "redact", "resign", "max_in_flight", "rate", "retry", "breaker")
	r.require(p, f, "name", "url")

	d := Destination{
		Filter:      r.readFilter(f["filter"]),
		Redact:      r.readRedaction(f["redact"]),
		Resign:      r.readResign(f["resign"], provider),
		MaxInFlight: r.readInFlight(f["max_in_flight"]),
		Rate:        r.readRate(f["rate"]),
		Retry:       r.readRetry(f["retry"]),
		Breaker:     r.readBreaker(f["breaker"]),
	}
	if f["name"].given() {
		const what = "a name of 1 to 63 characters a-z, 0-9, - and _"
		d.Name, _ = parsed(r, f["name"], what, parseName)
	}
	if f["url"].given() {
		d.URL = r.readURL(f["url"])
	}
	return d, f["name"]
}

func (r *manifestReader) readFilter(p place) Filter {
	if !p.given() {
		return Filter{}
	}
	text, ok := r.text(p, "a filter such as type=invoice.*")
	if !ok {
		return Filter{}
	}
	filter, err := ParseFilter(text)
	if err != nil {
		r.fail(p, "%v", err)
	}
	return filter
}

const expectedURL = "a URL such as https://hooks.example.com/stripe"

// readURL reads where a destination is. Its value is never shown: a query often
// has a key in it, and a user has a password.
func (r *manifestReader) readURL(p place) string {
	s, ok := r.text(p, expectedURL)
	if !ok {
		return ""
	}
	if problem := urlProblem(s); problem != "" {
		r.fail(p, "expected %s%s", expectedURL, problem)
		return ""
	}
	return s
}

// urlProblem says what is wrong with the URL of a destination, or "".
func urlProblem(s string) string {
	const limit = 2048
	u, err := url.Parse(s)
	switch {
	case len(s) > limit:
		return ", of at most 2048 characters"
	case !visibleASCII(s):
		return ", without blanks and in ASCII"
	case err != nil:
		return ", found one that is malformed"
	case u.Scheme != "https" && u.Scheme != "http":
		return ", which begins with https:// or http://"
	case u.User != nil:
		return ", without a user and password"
	case strings.Contains(s, "#"):
		return ", without a fragment"
	case u.Opaque != "" || u.Hostname() == "":
		return ", with a host"
	}
	if port := u.Port(); port != "" || strings.HasSuffix(u.Host, ":") {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return ", with a port from 1 to 65535"
		}
	}
	return ""
}
