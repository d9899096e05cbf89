package admin

import (
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/posternhq/postern/relay"
)

// kind is what a query parameter's value is.
type kind int

const (
	kindText   kind = iota // UTF-8 of up to maxText bytes
	kindTime               // RFC 3339
	kindNumber             // whole, from low to high
	kindFlag               // true, false, 1 or 0
	kindWords              // separated by commas, or the parameter several times
	kindChoice             // one of choices
	kindURL                // http or https, with a host
)

// param is one query parameter of a route.
type param struct {
	name     string
	kind     kind
	about    string
	required bool
	low      int      // kindNumber
	high     int      // kindNumber
	choices  []string // kindChoice
}

// Limits of what is read from a query.
const (
	maxQuery = 16 << 10 // bytes
	maxText  = 2 << 10  // bytes of one value
	maxWords = 1000     // values of one list
)

// query is what a request's query says, by the names of the route's parameters.
type query map[string]any

// decodeQuery reads raw strictly by params. Errors are *relay.Error of the code
// Invalid and name the parameter.
func decodeQuery(params []param, raw string) (query, error) {
	if len(raw) > maxQuery {
		return nil, relay.Errorf(relay.Invalid, "the query has %d bytes, at most %d are taken", len(raw), maxQuery)
	}
	values, err := url.ParseQuery(raw)
	if err != nil {
		return nil, relay.Errorf(relay.Invalid, "the query is malformed: check its percent signs, and write ; as %%3B")
	}
	q := make(query, len(values))
	for name := range values {
		if !slices.ContainsFunc(params, func(p param) bool { return p.name == name }) {
			return nil, relay.Errorf(relay.Invalid, "the query parameter %s is not known here; there are: %s", quoted(name), names(params))
		}
	}
	for _, p := range params {
		given := values[p.name]
		if len(given) == 0 {
			if p.required {
				return nil, p.wrong("is required" + p.hint())
			}
			continue
		}
		if q[p.name], err = p.read(given); err != nil {
			return nil, err
		}
	}
	return q, nil
}

// read gives values their type.
func (p param) read(values []string) (any, error) {
	for _, v := range values {
		if len(v) > maxText || !utf8.ValidString(v) || strings.ContainsRune(v, 0) {
			return nil, p.wrong("is not text of at most " + strconv.Itoa(maxText) + " bytes")
		}
	}
	if p.kind == kindWords {
		words := strings.Split(strings.Join(values, ","), ",")
		if len(words) > maxWords {
			return nil, p.wrong("has too many values")
		}
		return words, nil
	}
	if len(values) > 1 {
		return nil, p.wrong("is there " + strconv.Itoa(len(values)) + " times; give it once")
	}
	return p.readOne(values[0])
}

func (p param) readOne(v string) (any, error) {
	switch p.kind {
	case kindTime:
		t, err := time.Parse(time.RFC3339, v)
		if err != nil {
			return nil, p.wrong("is not a time like 2026-01-31T12:00:00Z")
		}
		return t.UTC(), nil
	case kindNumber:
		n, err := strconv.Atoi(v)
		if err != nil || n < p.low || n > p.high {
			return nil, p.wrong("is not a whole number from " + strconv.Itoa(p.low) + " to " + strconv.Itoa(p.high))
		}
		return n, nil
	case kindFlag:
		switch v {
		case "true", "1":
			return true, nil
		case "false", "0":
			return false, nil
		}
		return nil, p.wrong("is neither true nor false")
	case kindChoice:
		if !slices.Contains(p.choices, v) {
			return nil, p.wrong("is not known" + p.hint())
		}
	case kindURL:
		if !plainURL(v) {
			return nil, p.wrong("is not an http or https address without user name and fragment")
		}
	}
	return v, nil
}

// plainURL reports whether v can be sent to as it is.
func plainURL(v string) bool {
	u, err := url.Parse(v)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Hostname() != "" && u.User == nil &&
		!strings.Contains(v, "#") && !strings.ContainsFunc(v, func(r rune) bool { return r <= ' ' || r > '~' })
}

func (p param) wrong(what string) error {
	return relay.Errorf(relay.Invalid, "the query parameter %q %s", p.name, what)
}

func (p param) hint() string {
	if p.kind != kindChoice {
		return ""
	}
	return "; it is one of " + strings.Join(p.choices, ", ")
}

func names(params []param) string {
	if len(params) == 0 {
		return "none"
	}
	list := make([]string, len(params))
	for i, p := range params {
		list[i] = p.name
	}
	return strings.Join(list, ", ")
}

// quoted is what a caller sent, fit to stand in the answer to them.
func quoted(s string) string {
	const most = 64
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strconv.QuoteToGraphic(strings.ToValidUTF8(s, "\uFFFD"))
}

func (q query) text(name string) string {
	v, _ := q[name].(string)
	return v
}

func (q query) time(name string) time.Time {
	v, _ := q[name].(time.Time)
	return v
}

func (q query) words(name string) []string {
	v, _ := q[name].([]string)
	return v
}

func (q query) number(name string, otherwise int) int {
	if v, ok := q[name].(int); ok {
		return v
	}
	return otherwise
}

// flag is false when it is not given, too; asked says which.
func (q query) flag(name string) (value, asked bool) {
	value, asked = q[name].(bool)
	return value, asked
}
