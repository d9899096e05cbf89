package provider

import (
	"bytes"
	"encoding/json"
	"net/url"
	"strings"
)

// bodyVariants undo what usually happens to bodies on their way.
var bodyVariants = []variant{
	{func(s string) (string, bool) { return s + "\r\n", true }, lostLineEnd},
	{func(s string) (string, bool) { return s + "\n", true }, lostLineEnd},
	{func(s string) (string, bool) { return strings.TrimRight(s, "\r\n"), true },
		"The signature would hold for the body without the line end at its end: something in between added one."},
	{func(s string) (string, bool) { return strings.ReplaceAll(s, "\r\n", "\n"), true }, changedLineEnds},
	{func(s string) (string, bool) {
		return strings.ReplaceAll(strings.ReplaceAll(s, "\r\n", "\n"), "\n", "\r\n"), true
	}, changedLineEnds},
	{func(s string) (string, bool) { return strings.CutPrefix(s, "\ufeff") },
		"The signature would hold for the body without the byte order mark at its start: something in between added one."},
	{compacted, reserialised},
	{indented("  "), reserialised},
	{indented("    "), reserialised},
	{indented("\t"), reserialised},
	{sorted(true), reserialised},
	{sorted(false), reserialised},
	{spaced, reserialised},
	{func(s string) (string, bool) { return strings.ReplaceAll(s, "/", `\/`), json.Valid([]byte(s)) }, reserialised},
	{func(s string) (string, bool) { return strings.ReplaceAll(s, `\/`, "/"), json.Valid([]byte(s)) }, reserialised},
	{func(s string) (string, bool) { return strings.ReplaceAll(s, "%20", "+"), true }, reencoded},
	{func(s string) (string, bool) { return strings.ReplaceAll(s, "+", "%20"), true }, reencoded},
	{func(s string) (string, bool) {
		form, err := url.ParseQuery(s)
		return form.Encode(), err == nil && strings.Contains(s, "=")
	}, reencoded},
}

const (
	lostLineEnd     = "The signature would hold for the body with a line end at its end: something in between cut it off."
	changedLineEnds = "The signature would hold for the body with other line ends (LF, CR LF): something in between changed them."
	reserialised    = "The signature would hold for the same JSON written differently: something in between parsed the body and wrote it again. The sender's own bytes must arrive."
	reencoded       = "The signature would hold for the same form encoded differently: something in between parsed the body and wrote it again. The sender's own bytes must arrive."
)

func compacted(s string) (string, bool) {
	var out bytes.Buffer
	err := json.Compact(&out, []byte(s))
	return out.String(), err == nil
}

func indented(indent string) func(string) (string, bool) {
	return func(s string) (string, bool) {
		var out bytes.Buffer
		err := json.Indent(&out, []byte(s), "", indent)
		return out.String(), err == nil
	}
}

// sorted writes JSON with its keys in order, and with <, > and & escaped or not.
func sorted(escape bool) func(string) (string, bool) {
	return func(s string) (string, bool) {
		dec := json.NewDecoder(strings.NewReader(s))
		dec.UseNumber()
		var v any
		if !json.Valid([]byte(s)) || dec.Decode(&v) != nil {
			return "", false
		}
		var out bytes.Buffer
		enc := json.NewEncoder(&out)
		enc.SetEscapeHTML(escape)
		err := enc.Encode(v)
		return strings.TrimSuffix(out.String(), "\n"), err == nil
	}
}

// spaced writes JSON with a blank after each comma and colon, as Python does.
func spaced(s string) (string, bool) {
	short, ok := compacted(s)
	if !ok {
		return "", false
	}
	var out strings.Builder
	inText := false
	for i := 0; i < len(short); i++ {
		c := short[i]
		out.WriteByte(c)
		switch {
		case inText && c == '\\' && i+1 < len(short):
			i++
			out.WriteByte(short[i])
		case c == '"':
			inText = !inText
		case !inText && (c == ',' || c == ':'):
			out.WriteByte(' ')
		}
	}
	return out.String(), true
}

// topLevelBool finds a boolean of a JSON object by its exact name.
func topLevelBool(body []byte, name string) (value, found bool) {
	var whole map[string]json.RawMessage
	if json.Unmarshal(body, &whole) != nil {
		return false, false
	}
	err := json.Unmarshal(whole[name], &value)
	return value, err == nil
}

// urlVariants undo what usually differs between the address that a sender was
// given and the one that the relay knows.
var urlVariants = []variant{
	{func(u string) (string, bool) {
		scheme, host, rest, ok := cutURL(u)
		if scheme == "https" {
			return "http://" + host + rest, ok
		}
		return "https://" + host + rest, ok
	}, "The signature would hold for http instead of https, or the other way round: " + publicURL},
	{func(u string) (string, bool) {
		scheme, host, rest, ok := cutURL(u)
		name, port := cutPort(host)
		return scheme + "://" + name + rest, ok && port != ""
	}, "The signature would hold for the URL without its port: " + publicURL},
	{withPort("443"), "The signature would hold for the URL with the port 443: " + publicURL},
	{withPort("80"), "The signature would hold for the URL with the port 80: " + publicURL},
	{withPort("8080"), "The signature would hold for the URL with the port 8080: " + publicURL},
	{func(u string) (string, bool) {
		scheme, host, rest, ok := cutURL(u)
		name, _ := cutPort(host)
		if scheme == "https" {
			return "http://" + name + rest, ok
		}
		return "https://" + name + rest, ok
	}, "The signature would hold for the URL with another scheme and no port: " + publicURL},
	{func(u string) (string, bool) {
		path, query, found := strings.Cut(u, "?")
		if found {
			query = "?" + query
		}
		if trimmed, ok := strings.CutSuffix(path, "/"); ok {
			return trimmed + query, true
		}
		return path + "/" + query, true
	}, "The signature would hold for the URL with one slash at its end more or less: the sender was given another spelling than it calls."},
	{func(u string) (string, bool) {
		scheme, host, rest, ok := cutURL(u)
		return scheme + "://" + strings.ToLower(host) + rest, ok
	}, "The signature would hold for the host in lower case: " + publicURL},
	{func(u string) (string, bool) {
		path, _, found := strings.Cut(u, "?")
		return path, found
	}, "The signature would hold for the URL without its query: the sender signed it without, or something in between added one."},
	{func(u string) (string, bool) {
		path, query, found := strings.Cut(u, "?")
		values, err := url.ParseQuery(query)
		return path + "?" + values.Encode(), found && err == nil
	}, "The signature would hold for the URL with its query written in another order or encoding: something in between changed it."},
	{func(u string) (string, bool) { s, err := url.PathUnescape(u); return s, err == nil },
		"The signature would hold for the URL decoded: something in between changed how it is written."},
}

// publicURL is what to do about most of them.
const publicURL = "the sender was given another address than POSTERN_PUBLIC_URL."

func withPort(port string) func(string) (string, bool) {
	return func(u string) (string, bool) {
		scheme, host, rest, ok := cutURL(u)
		name, _ := cutPort(host)
		return scheme + "://" + name + ":" + port + rest, ok
	}
}
