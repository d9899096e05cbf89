package relay

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestJSONPointer(t *testing.T) {
	t.Parallel()
	const doc = `{"foo": ["bar", "baz"], "": 0, "a/b": 1, "c%d": 2, "m~n": 8, " ": 7, "\u006beq": "x\ty", "o": {"0": [true, null]}, "n": -1.50e+10}`
	tests := []struct {
		name, body, pointer string
		want                string // "" for none
	}{
		// RFC 6901, section 5.
		{"the whole document", `[1]`, "", `[1]`},
		{"a member", doc, "/foo", `["bar", "baz"]`},
		{"an element", doc, "/foo/0", `"bar"`},
		{"the empty key", doc, "/", `0`},
		{"a key with a slash", doc, "/a~1b", `1`},
		{"a key with a percent sign", doc, "/c%d", `2`},
		{"a key with a tilde", doc, "/m~0n", `8`},
		{"a key that is a blank", doc, "/ ", `7`},

		{"a key with a tilde before a one", `{"/": 1, "~1": 2}`, "/~01", `2`},
		{"a key that is written with an escape", doc, "/keq", `"x\ty"`},
		{"a number as a key", doc, "/o/0/1", `null`},
		{"a number as it is written", doc, "/n", `-1.50e+10`},
		{"nothing there", doc, "/nope", ``},
		{"nothing below a text", doc, "/foo/0/x", ``},
		{"beyond the end of a list", doc, "/foo/2", ``},
		{"an index with a leading zero", doc, "/foo/01", ``},
		{"a negative index", doc, "/foo/-1", ``},
		{"the end of a list", doc, "/foo/-", ``},
		{"a star is a key as any other", `{"a": 1, "*": 2}`, "/*", `2`},
		{"of two keys the first", `{"a": 1, "a": 2}`, "/a", `1`},
		{"a pointer without a slash", doc, "foo", ``},
		{"a pointer with a bare tilde", `{"~": 1}`, "/~", ``},
		{"what comes behind is not looked at", `{"a": [1, {"b": "c"} garbage`, "/a/1/b", `"c"`},
		{"what comes before must be JSON", `{"x": tru, "a": 1}`, "/a", ``},
		{"no JSON", `hello`, "/a", ``},
		{"nothing", ``, "/a", ``},
		{"a text that is cut", `{"a": "b`, "/a", ``},
		{"a number that may be cut", `{"a": 12`, "/a", ``},
		{"a number that ends", `{"a": 12}`, "/a", `12`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, ok := JSONPointer([]byte(tt.body), tt.pointer)
			if string(got) != tt.want || ok != (tt.want != "") {
				t.Errorf("JSONPointer(%q) = %q, %v, want %q", tt.pointer, got, ok, tt.want)
			}
		})
	}
}

func TestJSONText(t *testing.T) {
	t.Parallel()
	tests := []struct {
		value, want string
		ok          bool
	}{
		{`"a"`, "a", true},
		{`""`, "", true},
		{`"a\u00e9\n"`, "aé\n", true},
		{"\"\xff\"", "\xff", true},
		{`12345678901234567890.10`, "12345678901234567890.10", true},
		{`true`, "true", true},
		{`null`, "null", true},
		{`{}`, "", false},
		{`["a"]`, "", false},
		{``, "", false},
		{`"`, "", false},
	}
	for _, tt := range tests {
		if got, ok := JSONText([]byte(tt.value)); got != tt.want || ok != tt.ok {
			t.Errorf("JSONText(%s) = %q, %v, want %q, %v", tt.value, got, ok, tt.want, tt.ok)
		}
	}
}

func TestDeepJSONIsBounded(t *testing.T) {
	t.Parallel()
	nested := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	for _, n := range []int{maxJSONDepth, maxJSONDepth + 1, 1_000_000} {
		body := []byte(nested(n))
		if got, want := validJSON(body), json.Valid(body); got != want {
			t.Errorf("%d levels: valid is %v, encoding/json says %v", n, got, want)
		}
		if _, ok := JSONPointer(body, "/0/0"); ok != (n <= maxJSONDepth) {
			t.Errorf("%d levels: found is %v", n, ok)
		}
	}
}

// The scanner must take what encoding/json takes, or a body that an app reads
// would not be redacted, and no value may be found in what is none.
func FuzzJSONPointer(f *testing.F) {
	for _, s := range []string{
		`{"a": [1, -0.5e-7, {"b": "c\n\u00e9"}], "d": true, "e": null}`, `[`, `{"a":}`, `"\ud800"`, "\"\xff\"", `01`, `-`, `1.`, `1e`, ` 1 `,
		`{"a": 1,}`, `[1,]`, `{"a" 1}`, "\"\x01\"", `"\x"`, `"\u12"`, `nul`, `[[[[]]]]`, `{"a":1}{"a":2}`, "\ufeff{}", `1 2`,
	} {
		f.Add([]byte(s), "/a/0")
		f.Add([]byte(s), "")
	}
	f.Fuzz(func(t *testing.T, body []byte, pointer string) {
		if got, want := validJSON(body), json.Valid(body); got != want {
			t.Fatalf("valid is %v, encoding/json says %v: %q", got, want, body)
		}
		value, ok := JSONPointer(body, pointer)
		if ok && !json.Valid(value) {
			t.Errorf("found %q, which is not JSON", value)
		}
		if whole, found := JSONPointer(body, ""); json.Valid(body) && (!found || strings.TrimSpace(string(body)) != string(whole)) {
			t.Errorf("the whole of %q is %q", body, whole)
		}
		if text, hasText := JSONText(value); ok && value[0] != '{' && value[0] != '[' && !hasText {
			t.Errorf("%q has no text: %q", value, text)
		}
	})
}
