package relay

import (
	"bytes"
	"encoding/json"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestValuesAreTakenOutOfABody(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name     string
		pointers []string
		body     string
		want     string
	}{
		{"a text", []string{"/a"}, `{"a":"s"}`, `{"a":"[redacted]"}`},
		{"every other byte stays", []string{"/a/b"}, " {\"z\" : 1.0e+1,\r\n\t\"a\": { \"b\" : \"s\\u00e9\" , \"c\":\"\xff\" } }\n", " {\"z\" : 1.0e+1,\r\n\t\"a\": { \"b\" : \"[redacted]\" , \"c\":\"\xff\" } }\n"},
		{"a number, true, false and null", []string{"/0", "/1", "/2", "/3"}, `[-1.5e3, true,false ,null, 5]`, `["[redacted]", "[redacted]","[redacted]" ,"[redacted]", 5]`},
		{"an object whole", []string{"/a"}, `{"a": {"b": ["s"]}, "c": 1}`, `{"a": "[redacted]", "c": 1}`},
		{"a list whole", []string{"/a"}, `{"a": ["s", {"b": "s"}]}`, `{"a": "[redacted]"}`},
		{"the document whole", []string{""}, ` {"a": "s"} `, ` "[redacted]" `},
		{"nothing there", []string{"/x", "/a/b/c", "/a/0"}, `{"a": {"b": 1}}`, `{"a": {"b": 1}}`},
		{"both of two keys", []string{"/a"}, `{"a": "s", "b": 1, "a": "s"}`, `{"a": "[redacted]", "b": 1, "a": "[redacted]"}`},
		{"below both of two keys", []string{"/a/b"}, `{"a": {"b": "s", "b": "s"}, "a": {"b": "s"}}`, `{"a": {"b": "[redacted]", "b": "[redacted]"}, "a": {"b": "[redacted]"}}`},
		{"a key written with escapes", []string{"/card", "/a~1~0"}, `{"\u0063ard": "s", "a\/~": "s"}`, `{"\u0063ard": "[redacted]", "a\/~": "[redacted]"}`},
		{"every element", []string{"/items/*/card"}, `{"items": [{"card": 1}, {}, {"x": 2, "card": [3]}]}`, `{"items": [{"card": "[redacted]"}, {}, {"x": 2, "card": "[redacted]"}]}`},
		{"every member", []string{"/*/s"}, `{"a": {"s": 1}, "*": {"s": 2}, "c": 3}`, `{"a": {"s": "[redacted]"}, "*": {"s": "[redacted]"}, "c": 3}`},
		{"a star is one level", []string{"/*"}, `{"a": {"s": 1}, "b": []}`, `{"a": "[redacted]", "b": "[redacted]"}`},
		{"a pointer inside of another's value", []string{"/a/b", "/a", "/a/*"}, `{"a": {"b": "s", "c": "s"}, "b": 1}`, `{"a": "[redacted]", "b": 1}`},
		{"two pointers with one beginning", []string{"/a/b", "/a/c"}, `{"a": {"b": "s", "c": "s", "d": 1}}`, `{"a": {"b": "[redacted]", "c": "[redacted]", "d": 1}}`},
		{"an empty key", []string{"/"}, `{"": "s"}`, `{"": "[redacted]"}`},
		{"an empty object and list", []string{"/a/*", "/b/*"}, `{"a": {}, "b": [ ]}`, `{"a": {}, "b": [ ]}`},
		{"a lone scalar has nothing inside", []string{"/a"}, `"/a"`, `"/a"`},
		{"an empty body", []string{"/a"}, ``, ``},

		{"no JSON", []string{"/a"}, `a=s`, ``},
		{"JSON that is cut", []string{"/a"}, `{"a": "s", "b`, ``},
		{"two documents", []string{"/a"}, `{"a": 1}{"a": "s"}`, ``},
		{"JSON behind a byte order mark", []string{"/a"}, "\ufeff{\"a\": \"s\"}", ``},
		{"a pointer that is none", []string{"a"}, `{"a": "s"}`, ``},
		{"a pointer with a bare tilde", []string{"/a~"}, `{"a~": "s"}`, ``},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			body := []byte(tt.body)
			e := Event{Body: body, BodySize: int64(len(body))}
			got := Redaction{Body: tt.pointers}.Apply(e)
			if string(got.Body) != tt.want || tt.want == "" && len(body) > 0 && got.Body != nil {
				t.Errorf("got  %s\nwant %s", got.Body, tt.want)
			}
			if got.BodySize != e.BodySize {
				t.Errorf("BodySize is %d, want %d", got.BodySize, e.BodySize)
			}
			if string(body) != tt.body {
				t.Errorf("the event's own body became %s", body)
			}
		})
	}
}

func TestValuesAreTakenOutOfAForm(t *testing.T) {
	t.Parallel()
	const formType = "application/x-www-form-urlencoded; charset=utf-8"
	const hidden = `%22%5Bredacted%5D%22`
	tests := []struct{ name, contentType, body, want string }{
		{"escapes stay as they were", formType, `payload=%7b%22b%22:+1%2C%20%22a%22%3A+%22s%C3%A9%22%7d`, `payload=%7b%22b%22:+1%2C%20%22a%22%3A+` + hidden + `%7d`},
		{"without escapes", formType, `payload={"a":"s","b":1}`, `payload={"a":` + hidden + `,"b":1}`},
		{"a name with escapes", formType, `p%61yload=%7B%22a%22%3A1%7D`, `p%61yload=%7B%22a%22%3A` + hidden + `%7D`},
		{"two payloads", formType, `payload={"a":"s"}&&payload={"x":0,"a":"s"}&`, `payload={"a":` + hidden + `}&&payload={"x":0,"a":` + hidden + `}&`},
		{"a payload that is no JSON once it is unescaped", formType, `payload={"b":"%22"}`, ``},
		{"nothing found", formType, `payload=%7B%22b%22%3A1%7D`, `payload=%7B%22b%22%3A1%7D`},
		{"another field beside it", formType, `payload={"a":"s"}&a=s`, ``},
		{"a payload that is no JSON", formType, `payload=s`, ``},
		{"a payload without a value", formType, `payload`, ``},
		{"a bad escape", formType, `payload=%7B%22a%22%3A%2`, ``},
		{"a form without a payload", formType, `a=s`, ``},
		{"a form that is not called one", "text/plain", `payload={"a":"s"}`, ``},
		{"JSON that is called a form", formType, `{"a": "s", "b": "100%"}`, `{"a": "[redacted]", "b": "100%"}`},
		{"a form that is also JSON", formType, `"&payload={%22a%22:%22s%22}&"`, ``},
		{"JSON with a payload in a text", "application/json", `{"a": "s", "b": "&payload={}&"}`, `{"a": "[redacted]", "b": "&payload={}&"}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e := Event{Body: []byte(tt.body), Header: []Field{{"Content-Type", tt.contentType}}}
			// That the type is hidden too must not change how the body is read.
			r := Redaction{Body: []string{"/a"}, Headers: []string{"content-type"}}
			if got := r.Apply(e); string(got.Body) != tt.want || tt.want == "" && got.Body != nil {
				t.Errorf("got  %s\nwant %s", got.Body, tt.want)
			}
		})
	}
}

func TestHeadersAreTakenOut(t *testing.T) {
	t.Parallel()
	header := []Field{{"authorization", "Bearer s"}, {"X-A", "1"}, {"Authorization", ""}, {"X-a", "2"}}
	own := append([]Field(nil), header...)
	got := Redaction{Headers: []string{"AUTHORIZATION", "x-nope"}}.Apply(Event{Header: header, Body: []byte("s")})
	want := []Field{{"authorization", "[redacted]"}, {"X-A", "1"}, {"Authorization", "[redacted]"}, {"X-a", "2"}}
	if !reflect.DeepEqual(got.Header, want) {
		t.Errorf("got %q, want %q", got.Header, want)
	}
	if !reflect.DeepEqual(header, own) {
		t.Errorf("the event's own header became %q", header)
	}
	if string(got.Body) != "s" {
		t.Errorf("the body became %q, though nothing in it is hidden", got.Body)
	}
}

func TestABodyThatIsTooMuchIsLeftOut(t *testing.T) {
	t.Parallel()
	pad := func(n int) []byte { return []byte(`{"a": "s", "x": "` + strings.Repeat("x", n) + `"}`) }
	frame := len(pad(0))
	tests := []struct {
		name string
		e    Event
		want bool // there is a body
	}{
		{"16 MiB", Event{Body: pad(maxRedactBody - frame)}, true},
		{"one byte more", Event{Body: pad(maxRedactBody - frame + 1)}, false},
		{"a body of which a part is stored", Event{Body: []byte(`{"a": 1}`), BodySize: 9}, false},
		{"a body without a size", Event{Body: []byte(`{"a": 1}`)}, true},
		{"a million values", Event{Body: []byte("[" + strings.Repeat("1,", maxRedactValues-1) + "1]")}, true},
		{"a million values and one", Event{Body: []byte("[" + strings.Repeat("1,", maxRedactValues) + "1]")}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := Redaction{Body: []string{"/a", "/*"}}.Apply(tt.e)
			if (got.Body != nil) != tt.want || got.BodySize != tt.e.BodySize {
				t.Errorf("%d bytes left and a size of %d", len(got.Body), got.BodySize)
			}
		})
	}
}

func TestAnEmptyRedactionChangesNothing(t *testing.T) {
	t.Parallel()
	e := Event{Header: []Field{{"A", "b"}}, Body: []byte("not JSON")}
	if got := (Redaction{}).Apply(e); !reflect.DeepEqual(got, e) || !(Redaction{}).Empty() {
		t.Errorf("got %+v", got)
	}
	if (Redaction{Headers: []string{"A"}}).Empty() || (Redaction{Body: []string{"/a"}}).Empty() {
		t.Error("a redaction is called empty")
	}
}

func FuzzRedaction(f *testing.F) {
	for _, body := range []string{
		`{"a": {"b": [1, "s", {"c": null}]}, "a": 2}`, `[{"a": 1}, [2]]`, `{"\u0061": "\ud83d\ude00"}`, `"s"`, `{"a": tru}`, `[1`, "\xff",
		`payload=%7B%22a%22%3A1%7D&payload=[1]`,
	} {
		f.Add([]byte(body), "/a/b", "/*/1")
		f.Add([]byte(body), "/a", "")
	}
	f.Fuzz(func(t *testing.T, body []byte, one, two string) {
		own := bytes.Clone(body)
		for _, kind := range []string{"application/json", "application/x-www-form-urlencoded"} {
			e := Event{Body: body, Header: []Field{{"Content-Type", kind}}}
			if got := (Redaction{Headers: []string{"x"}}).Apply(e); !bytes.Equal(got.Body, body) {
				t.Fatalf("without pointers %q became %q", body, got.Body)
			}
			got := Redaction{Body: []string{one, two}}.Apply(e)
			switch {
			case !bytes.Equal(body, own):
				t.Fatal("the event's own body was changed")
			case kind == "application/json":
				checkRedacted(t, body, got.Body, one, two)
			case got.Body != nil && !json.Valid(got.Body):
				checkRedactedForm(t, got.Body, one, two)
			}
		}
	})
}

// checkRedacted does to the decoded document what must have been done to its
// text, and compares.
func checkRedacted(t *testing.T, body, got []byte, pointers ...string) {
	t.Helper()
	if !json.Valid(body) {
		if len(got) > 0 {
			t.Fatalf("%q is not JSON and became %q", body, got)
		}
		return
	}
	if got == nil {
		return // a pointer that is none, or too much to hide
	}
	if !json.Valid(got) {
		t.Fatalf("%q became %q, which is not JSON", body, got)
	}
	want := decoded(t, body)
	for _, pointer := range pointers {
		if !utf8.ValidString(pointer) || strings.ContainsRune(pointer, utf8.RuneError) {
			return // decoding makes other keys equal to it
		}
		path, ok := parseJSONPath(pointer)
		if !ok {
			t.Fatalf("there is a body in spite of the pointer %q", pointer)
		}
		want = hide(want, path)
	}
	if have := decoded(t, got); !reflect.DeepEqual(have, want) {
		t.Fatalf("%q without %q became %q", body, pointers, got)
	}
}

func decoded(t *testing.T, body []byte) any {
	t.Helper()
	var v any
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	if err := dec.Decode(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

func hide(v any, path jsonPath) any {
	if len(path) == 0 {
		return redactedText
	}
	switch v := v.(type) {
	case map[string]any:
		for key := range v {
			if path[0] == "*" || path[0] == key {
				v[key] = hide(v[key], path[1:])
			}
		}
	case []any:
		for i := range v {
			if path[0] == "*" || path[0] == strconv.Itoa(i) {
				v[i] = hide(v[i], path[1:])
			}
		}
	}
	return v
}

// checkRedactedForm fails when the payload of a form has anything left at the
// pointers.
func checkRedactedForm(t *testing.T, got []byte, pointers ...string) {
	t.Helper()
	values, err := url.ParseQuery(string(got))
	if err != nil || len(values) != 1 {
		return
	}
	for _, payload := range values["payload"] {
		checkRedacted(t, []byte(payload), []byte(payload), pointers...)
	}
}
