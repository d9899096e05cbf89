package relay

import (
	"reflect"
	"strings"
	"sync"
	"testing"
)

func mustFilter(t testing.TB, text string) Filter {
	t.Helper()
	f, err := ParseFilter(text)
	if err != nil {
		t.Fatalf("ParseFilter(%q): %v", text, err)
	}
	return f
}

func TestAFilterSelects(t *testing.T) {
	t.Parallel()
	json := &Event{
		Type: "invoice.payment_failed",
		Header: []Field{
			{"Content-Type", "application/json"}, {"X-Tenant", "acme"}, {"x-tenant", "globex"},
		},
		Body: []byte(`{"data": {"object": {"currency": "usd", "amount": 10.50, "paid": false, "memo": null, "note": "paid late", "tags": ["a", "b"]}}, "n": 12, "star": "a*b", "twice": 1, "twice": 2}`),
	}
	form := &Event{
		Header: []Field{{"content-type", "application/x-www-form-urlencoded"}},
		Body:   []byte(`x=1&payload=%7B%22action%22%3A+%22opened%22%2C%22n%22%3A1%7D`),
	}
	text := &Event{Type: "", Body: []byte("hello"), Header: []Field{{"X-Empty", ""}}}
	broken := &Event{Body: []byte(`{"a": tru, "n": 12}`)}
	gone := &Event{BodySize: 10}
	tests := []struct {
		name, filter string
		e            *Event
		want         bool
	}{
		{"nothing selects everything", "", json, true},
		{"blanks select everything", " \t\n", json, true},
		{"a type", "type=invoice.payment_failed", json, true},
		{"another type", "type=invoice", json, false},
		{"not a type", "type!=invoice.created", json, true},
		{"not this type", "type!=invoice.payment_failed", json, false},
		{"a prefix", "type=invoice.*", json, true},
		{"a suffix", "type=*_failed", json, true},
		{"stars all over", "type=*i*e.*_*", json, true},
		{"stars in the wrong order", "type=*failed*invoice*", json, false},
		{"two stars in a row", "type=**", json, true},
		{"the parts may not overlap", "type=invoice.payment*payment_failed", json, false},
		{"not a pattern", "type!=invoice.*", json, false},
		{"no type is an empty one", `type=""`, text, true},
		{"no type is anything", `type=*`, text, true},
		{"all terms must hold", "type=invoice.* /n=13", json, false},
		{"all terms hold", "  type=invoice.*\n/n=12 ", json, true},

		{"a text in the body", "/data/object/currency=usd", json, true},
		{"case counts in a value", "/data/object/currency=USD", json, false},
		{"a number as it is written", "/data/object/amount=10.50", json, true},
		{"a number otherwise written", "/data/object/amount=10.5", json, false},
		{"false", "/data/object/paid=false", json, true},
		{"null", "/data/object/memo=null", json, true},
		{"a value with blanks", `/data/object/note="paid late"`, json, true},
		{"a pattern in quotes", `/data/object/note="paid *"`, json, true},
		{"a star that is meant", `/star=a\*b`, json, true},
		{"a star that is meant matches no other", `/data/object/currency=u\*d`, json, false},
		{"an element of a list", "/data/object/tags/1=b", json, true},
		{"a list equals nothing", "/data/object/tags=*", json, false},
		{"a list differs from everything", "/data/object/tags!=a", json, true},
		{"an object equals nothing", "/data=*", json, false},
		{"any value", "/n=*", json, true},
		{"nothing there", "/nope=*", json, false},
		{"nothing there differs", "/nope!=x", json, true},
		{"the same pointer twice", "/n!=13 /n=12", json, true},
		{"of two keys the first", "/twice=1 /nope!=1", json, true},
		{"a pointer and one below it", "/data/object/currency=usd /data!=x", json, true},

		{"a header", "header:X-Tenant=acme", json, true},
		{"the second of two headers, whatever the case of the name", "header:x-TENANT=globex", json, true},
		{"no such value", "header:X-Tenant=acm", json, false},
		{"none of the values may be it", "header:X-Tenant!=globex", json, false},
		{"none of the values is it", "header:X-Tenant!=initech", json, true},
		{"no such header", "header:X-Nope=*", json, false},
		{"no such header differs", "header:X-Nope!=*", json, true},
		{"an empty header", `header:X-Empty=""`, text, true},

		{"the payload of a form", "/action=opened /n=1", form, true},
		{"another payload of a form", "/action!=opened", form, false},
		{"no JSON has no values", "/a=*", text, false},
		{"no JSON differs", "/a!=*", text, true},
		{"broken JSON has no values behind the break", "/n=12", broken, false},
		{"a body that is gone has no values", "/n=12", gone, false},
		{"a body that is gone differs", "/n!=12", gone, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := mustFilter(t, tt.filter).Match(tt.e); got != tt.want {
				t.Errorf("%q: got %v, want %v", tt.filter, got, tt.want)
			}
		})
	}
	var zero Filter
	if !zero.Match(text) || zero.String() != "" {
		t.Error("the zero Filter does not select everything")
	}
}

func TestAFilterLooksAtTheFirstMiBOnly(t *testing.T) {
	t.Parallel()
	filler := strings.Repeat("x", maxFilterBody)
	tests := []struct {
		name, contentType, body string
		want                    bool
	}{
		{"before the limit", "", `{"a": 1, "x": "` + filler + `"}`, true},
		{"behind the limit", "", `{"x": "` + filler + `", "a": 1}`, false},
		{"a number across the limit", "", `{"x": "` + filler[:maxFilterBody-14] + `","a":1` + `00}`, false},
		{"before the limit of a form", "application/x-www-form-urlencoded", `payload={"a":1,"x":"` + filler + `"}`, true},
		{"a form that is cut in front of an escape", "application/x-www-form-urlencoded", `payload={"a":1,"x":"` + filler[:maxFilterBody-20] + `%22}`, true},
		{"a form that is cut after one character of an escape", "application/x-www-form-urlencoded", `payload={"a":1,"x":"` + filler[:maxFilterBody-21] + `%22}`, true},
		{"a form that is cut after two", "application/x-www-form-urlencoded", `payload={"a":1,"x":"` + filler[:maxFilterBody-22] + `%22}`, true},
		{"a form that is cut after an escape", "application/x-www-form-urlencoded", `payload={"a":1,"x":"` + filler[:maxFilterBody-23] + `%22}`, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e := &Event{Body: []byte(tt.body), Header: []Field{{"Content-Type", tt.contentType}}}
			if got := mustFilter(t, "/a=1").Match(e); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestAFilterHasOneText(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, text, want string }{
		{"nothing", "  ", ""},
		{"blanks between terms", " type=a\t\n /b=c ", "type=a /b=c"},
		{"needless quotes", `"type"="a" "/b"="c"`, "type=a /b=c"},
		{"needed quotes", `/b="c d" /e=""`, `/b="c d" /e=""`},
		{"a name in quotes", `"/a b"=c "/a=b"!=c "/a\"b\\"=c`, `"/a b"=c "/a=b"!=c "/a\"b\\"=c`},
		{"a name with an exclamation mark", `/a!b=c`, `"/a!b"=c`},
		{"escapes", `/a=\*\"\\*`, `/a="\*\"\\*"`},
		{"stars in a row", `type=a***b`, `type=a*b`},
		{"a star in quotes", `type="*"`, `type=*`},
		{"an equals sign in a value", `/a=b=c!=d`, `/a=b=c!=d`},
		{"a header", `header:X-A!=*b`, `header:X-A!=*b`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := mustFilter(t, tt.text).String(); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func TestWhatIsWrongWithAFilter(t *testing.T) {
	t.Parallel()
	const form = "expected type, a JSON pointer such as /data/id, or header:NAME"
	tests := []struct{ name, text, want string }{
		{"a word", "invoice", form + `, found "invoice", at character 1 of the filter`},
		{"another word, behind a term with an umlaut", "/ä=ö foo=x", form + `, found "foo", at character 6 of the filter`},
		{"no name", "=x", form + `, found "", at character 1 of the filter`},
		{"no operator", "type", "expected = or != and a value, at character 5 of the filter"},
		{"another operator", "type!x", form + `, found "type!x", at character 1 of the filter`},
		{"a blank before the operator", "type = a", "expected = or != and a value, at character 5 of the filter"},
		{"no value", "type=", `expected a value; an empty one is written "", at character 6 of the filter`},
		{"a blank instead of a value", "type!= a", `expected a value; an empty one is written "", at character 7 of the filter`},
		{"a quote that is not closed", `type="a b`, "expected another quote that closes this one, at character 6 of the filter"},
		{"a quote within a value", `type=a"b"`, `expected no quote within a value; put the whole value in quotes, or write \" for one, at character 7 of the filter`},
		{"something behind a quote", `type="a"b`, "expected a blank after the closing quote, at character 9 of the filter"},
		{"an unknown escape", `type=a\n`, `expected \" or \\ or \*, found another character after \, at character 7 of the filter`},
		{"half an escape", `type=a\`, `expected \" or \\ or \*, found another character after \, at character 7 of the filter`},
		{"no header", "header:=a", `expected the name of a header after header:, found "", at character 1 of the filter`},
		{"a header that is none", `type=a "header:a b"=c`, `expected the name of a header after header:, found "a b", at character 8 of the filter`},
		{"a pointer with a bare tilde", "/a~=b", `expected a JSON pointer such as /data/object/id, with ~ written as ~0, found "/a~", at character 1 of the filter`},
		{"too long", "/a=" + strings.Repeat("b", maxFilterText), "expected a filter of at most 4096 bytes, found 4099"},
		{"too many terms", strings.Repeat("type=a ", maxFilterTerms+1), "expected the end, a filter has at most 50 terms, at character 351 of the filter"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := ParseFilter(tt.text)
			if err == nil || err.Error() != tt.want {
				t.Errorf("got\n%v\nwant\n%s", err, tt.want)
			}
		})
	}
}

func TestAFilterIsUsedByManyAtOnce(t *testing.T) {
	t.Parallel()
	f := mustFilter(t, "type=a* /n=1 header:X=y")
	e := &Event{Type: "ab", Header: []Field{{"x", "y"}}, Body: []byte(`{"n": 1}`)}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 100 {
				if !f.Match(e) {
					t.Error("not selected")
				}
			}
		})
	}
	all.Wait()
}

func FuzzFilter(f *testing.F) {
	for _, s := range []string{
		"", "type=a", `"/a b"!="c\"*"`, "header:X-Tenant=acme /a/0=*b*", `/a="`, "/~1=~", `type=\*`, `""=x`, `/a=""`, "\xff=\xff", "/\xff=\xff",
	} {
		f.Add(s, []byte(`{"a": ["b", 1]}`))
	}
	f.Fuzz(func(t *testing.T, text string, body []byte) {
		filter, err := ParseFilter(text)
		if err != nil {
			if s := err.Error(); strings.ContainsAny(s, "\n\r") || s == "" {
				t.Errorf("error %q is not one line", s)
			}
			return
		}
		again, err := ParseFilter(filter.String())
		if err != nil && len(filter.String()) <= maxFilterText {
			t.Fatalf("%q became %q: %v", text, filter.String(), err)
		}
		if err == nil && !reflect.DeepEqual(filter, again) {
			t.Errorf("%q became %q\n%+v\n%+v", text, filter.String(), filter, again)
		}
		e := &Event{Type: "a", Header: []Field{{"X-Tenant", "acme"}, {"Content-Type", "application/x-www-form-urlencoded"}}, Body: body}
		filter.Match(e)
		e.Header = e.Header[:1]
		filter.Match(e)
	})
}

func BenchmarkFilter(b *testing.B) {
	f := mustFilter(b, "/data/object/currency=usd /z!=1")
	e := &Event{Body: []byte(`{"id": "evt_1", "pad": "` + strings.Repeat("x", 2000) + `", "data": {"object": {"currency": "usd"}}}`)}
	b.SetBytes(int64(len(e.Body)))
	for b.Loop() {
		if !f.Match(e) {
			b.Fatal("not selected")
		}
	}
}
