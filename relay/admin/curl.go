package admin

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"unicode/utf8"
)

// maxInline is the longest body that stands in the command itself. Linux takes
// 128 KiB in one argument, with the quotes.
const maxInline = 16 << 10

// curl is a bash command that sends exactly this request. Whatever the event
// says, it stays one command: every value is quoted, and curl is given no chance
// to read a value as the name of a file (@) or as a pattern.
func (x *exported) curl() []byte {
	var b bytes.Buffer
	origin, target := splitURL(x.url)
	piped := len(x.Body) > 0 && !inline(x.Body)
	if piped {
		b.WriteString("base64 -d <<'POSTERN_BODY' | ")
	}
	b.WriteString("curl --globoff --path-as-is")
	option := func(name, value string) { fmt.Fprintf(&b, " \\\n  %s %s", name, quoteShell(value)) }
	if plainTarget(target) {
		option("--url", origin+target)
	} else { // curl would stop at a # and refuse other bytes
		option("--url", origin+"/")
		option("--request-target", target)
	}
	if x.Method == http.MethodHead && len(x.Body) == 0 {
		b.WriteString(" \\\n  --head") // with -X, curl would wait for a body
	} else {
		option("--request", x.Method)
	}
	for _, f := range x.header {
		if f.Value == "" {
			option("--header", f.Name+";") // curl's way to send it empty
			continue
		}
		option("--header", f.Name+": "+f.Value)
	}
	for _, own := range []string{"User-Agent", "Accept", "Content-Type", "Expect"} { // what curl adds by itself
		if !x.has(own) {
			option("--header", own+":")
		}
	}
	switch {
	case piped:
		b.WriteString(" \\\n  --data-binary @-\n")
		wrapBase64(&b, x.Body)
		b.WriteString("POSTERN_BODY")
	case len(x.Body) > 0 || x.Method != http.MethodGet && x.Method != http.MethodHead:
		option("--data-binary", string(x.Body))
	}
	b.WriteByte('\n')
	return b.Bytes()
}

func (x *exported) has(name string) bool {
	for _, f := range x.header {
		if strings.EqualFold(f.Name, name) {
			return true
		}
	}
	return false
}

// inline reports whether body is text that can be read, and copied, in a command.
func inline(body []byte) bool {
	return len(body) <= maxInline && body[0] != '@' && utf8.Valid(body) && !bytes.ContainsFunc(body, func(r rune) bool {
		return r < ' ' && r != '\t' && r != '\n' && r != '\r' || r == 0x7f
	})
}

// plainTarget reports whether target has only what RFC 3986 has in an address.
func plainTarget(target string) bool {
	return !strings.ContainsFunc(target, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-._~:/?[]@!$&'()*+,;=%", r)
	})
}

// quoteShell is s as one word for bash. Plain quotes are for any shell; where s
// has bytes that a terminal or a copy would change, $'…' spells them out. There ! is
// spelled out, too: a terminal's history would replace it behind a quote.
func quoteShell(s string) string {
	legible := utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\n' || r == 0x7f || r == '\u2028' || r == '\u2029' })
	if legible && !strings.Contains(s, "'") {
		return "'" + s + "'"
	}
	var b strings.Builder
	b.WriteString("$'")
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		switch {
		case r == '\\' || r == '\'':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case r < ' ' || r == 0x7f || r == '!' || r == '\u2028' || r == '\u2029' || r == utf8.RuneError && size == 1:
			for i := range size {
				fmt.Fprintf(&b, `\x%02x`, s[i])
			}
		default:
			b.WriteString(s[:size])
		}
		s = s[size:]
	}
	return b.String() + "'"
}

// wrapBase64 writes body in lines of 76 characters (RFC 2045, section 6.8).
func wrapBase64(b *bytes.Buffer, body []byte) {
	const line = 57 // bytes
	b.Grow(len(body)/line*77 + 80)
	for len(body) > 0 {
		n := min(line, len(body))
		b.WriteString(base64.StdEncoding.EncodeToString(body[:n]))
		b.WriteByte('\n')
		body = body[n:]
	}
}
