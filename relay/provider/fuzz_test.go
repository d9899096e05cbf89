package provider

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/posternhq/postern/relay"
)

// fuzzed are samples that the fuzz targets damage, by number.
func fuzzed(f *testing.F) []sample {
	all := samples()
	for i := range all {
		s := &all[i]
		_, in := s.make(0, s.body)
		stamp := ""
		for name, values := range in.Header {
			if strings.Contains(name, "Time") {
				stamp = values[0]
			}
		}
		f.Add(uint8(i), in.Header.Get(s.header), stamp, in.Body)
	}
	return all
}

// FuzzVerify changes what a sender sends. Whatever it is, the verdict is of one
// piece, and what was not signed does not pass.
func FuzzVerify(f *testing.F) {
	all := fuzzed(f)
	f.Fuzz(func(t *testing.T, i uint8, signature, stamp string, body []byte) {
		s := &all[int(i)%len(all)]
		ep, in := s.make(0, s.body)
		good := in
		in.Header, in.Body = in.Header.Clone(), body
		if s.header != "" {
			in.Header.Set(s.header, signature)
		}
		for name := range in.Header {
			if strings.Contains(name, "Time") {
				in.Header.Set(name, stamp)
			}
		}
		rules := testRules()
		v := rules.Verify(t.Context(), ep, in)
		if v.OK == (v.Reason != "") || v.Verified != v.OK || !v.OK && (v.DedupeKey != "" || v.Type != "") {
			t.Errorf("verdict %+v", v)
		}
		if strings.ContainsAny(v.Reason, "\r\n") || label(v.DedupeKey) != v.DedupeKey || label(v.Type) != v.Type {
			t.Errorf("verdict %+v", v)
		}
		if v.OK && !s.uncovered && s.row() != "sns" && string(body) != string(good.Body) && !sameMeaning(*s, string(body), string(good.Body)) {
			t.Errorf("%s: accepted %q", s.name, body)
		}
		if fields, err := rules.Resign(ep, eventOf(in), sampleURL, sampleTime); err == nil {
			for _, field := range fields {
				if strings.ContainsAny(field.Name+field.Value, "\r\n") {
					t.Errorf("field %q", field)
				}
			}
		}
		if len(body) < 1000 {
			rules.Explain(ep, in)
		}
	})
}

// FuzzSignatureLists has one of several signatures be the right one, between
// whatever else.
func FuzzSignatureLists(f *testing.F) {
	f.Add("", "")
	f.Add("v1,AAAA ", " v1a,AAAA")
	f.Add("v1a,bm9wZQ== v2,x ", " ")
	f.Add(strings.Repeat("v1, ", 20), "")
	const body = "{}"
	right := "v1," + b64(sum(sha256.New, "0123456789abcdefghijklmnop", "id.1750000000.", body))
	f.Fuzz(func(t *testing.T, before, after string) {
		ep := relay.Endpoint{Provider: "standard", Secrets: twoStandard}
		in := relay.Incoming{Method: "POST", Body: []byte(body), ReceivedAt: sampleTime, Header: http.Header{
			"Webhook-Id": {"id"}, "Webhook-Timestamp": {"1750000000"}, "Webhook-Signature": {before + right + after},
		}}
		whole := (before == "" || strings.HasSuffix(before, " ")) && (after == "" || strings.HasPrefix(after, " "))
		v := testRules().Verify(t.Context(), ep, in)
		if whole && strings.Count(before, " ") < maxSignatures && !v.OK {
			t.Errorf("refused: %+v", v)
		}
		if !strings.Contains(before, right) && !strings.Contains(after, right) && v.OK && !strings.Contains(before+right+after, right) {
			t.Errorf("accepted: %+v", v)
		}
	})
}

func FuzzTemplates(f *testing.F) {
	f.Add("{timestamp}.{body}")
	f.Add("{{body}{x}}}{")
	f.Fuzz(func(t *testing.T, template string) {
		var out strings.Builder
		for _, part := range fill(template, func(name string) ([]byte, bool) { return []byte(name), name == "{body}" || name == "{id}" }) {
			out.Write(part)
		}
		if out.String() != template {
			t.Errorf("filled in with its own names, %q became %q", template, out.String())
		}
	})
}

func FuzzURLs(f *testing.F) {
	f.Add("https://relay.example:443/x?y=%2F%3a#z")
	f.Add("https://[::1]:80")
	f.Add("%")
	f.Fuzz(func(t *testing.T, u string) {
		if scheme, host, rest, ok := cutURL(u); ok && scheme+"://"+host+rest != u {
			t.Errorf("cutURL(%q) = %q, %q, %q", u, scheme, host, rest)
		}
		if got := twilioURLs(u); got[0] != u {
			t.Errorf("twilioURLs(%q) = %q", u, got)
		}
		if decoded := decodeHubSpot(u); len(decoded) > len(u) || !strings.Contains(u, "%") && decoded != u {
			t.Errorf("decodeHubSpot(%q) = %q", u, decoded)
		}
	})
}

// FuzzScan compares with encoding/json on all that is JSON.
func FuzzScan(f *testing.F) {
	for _, body := range []string{
		`{"id":"a","x":{"id":"no"},"a":{"b":["zero",[],{"c":1}],"n":-0.5e1}}`, ` [ {"id" : 1 } , 2, "x\\"]`, `{"\u0069d":"\ud800","":{"id":"x"},"id":"later"}`,
		`{"a":{"b":[]},"a":{"b":["second"]},"id":null,"type":true}`, `"text"`, `7`, `{"a":"b}],:{","type":"t"}`, "{\"id\":\"\xff\"}", `{"a":{"":{"n":1},"n":2}}`, `{"a.n":1,"a":{"b.0":2}}`,
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		paths := []string{"id", "type", "a.b.0", "a.b.2.c", "a.n", ""}
		got := scan(body, paths...)
		for path, v := range got {
			if !slices.Contains(paths, path) || path == "" {
				t.Errorf("found %q at %q", v.text, path)
			}
		}
		if !json.Valid(body) {
			return
		}
		want := found{}
		reference(json.NewDecoder(bytes.NewReader(body)), "", paths, want)
		if !maps.Equal(got, want) {
			t.Errorf("found %v, want %v", got, want)
		}
	})
}

// reference is scan over the tokens of encoding/json, for bodies that are JSON.
func reference(dec *json.Decoder, path string, paths []string, out found) {
	dec.UseNumber()
	token, err := dec.Token()
	if err != nil {
		panic(err)
	}
	set := func(v scalar) {
		if _, known := out[path]; !known && path != "" && slices.Contains(paths, path) {
			out[path] = v
		}
	}
	switch token := token.(type) {
	case string:
		set(scalar{text: token})
	case json.Number:
		set(scalar{text: token.String(), number: true})
	case json.Delim:
		for i := 0; dec.More(); i++ {
			name := strconv.Itoa(i)
			if token == '{' {
				key, _ := dec.Token()
				name = key.(string)
			}
			if name == "" || strings.Contains(name, ".") {
				name = "\x00" // no path has such names
			}
			reference(dec, strings.TrimPrefix(path+"."+name, "."), paths, out)
		}
		dec.Token()
	}
}
