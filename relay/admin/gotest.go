package admin

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// goTest is a Go test file of its own that gives the request to a handler. All
// in it is inside one function named after the event, so that many such files
// may lie in one package. resigned are the lines that can be signed anew.
func (x *exported) goTest(resigned []string) []byte {
	var b bytes.Buffer
	encoded := len(x.Body) > maxInline || !utf8.Valid(x.Body)
	imports := []string{"bufio", "net/http", "net/http/httptest", "strings", "testing"}
	if encoded {
		imports = append([]string{"bufio", "encoding/base64"}, imports[1:]...)
	}
	b.WriteString("package webhook\n\nimport (\n")
	for _, path := range imports {
		fmt.Fprintf(&b, "\t%q\n", path)
	}
	b.WriteString(")\n\n")
	name := "Test_" + strings.ReplaceAll(safeName(string(x.ID)), "-", "_")
	name = strings.ReplaceAll(name, ".", "_")
	fmt.Fprintf(&b, "// %s sends the webhook %s, which %s/%s got\n// at %s.\n", name,
		comment(string(x.ID)), comment(string(x.App)), comment(x.Endpoint), x.ReceivedAt.UTC().Format(time.RFC3339))
	if len(resigned) > 0 {
		fmt.Fprintf(&b, "//\n// The signature (%s) may cover the time of sending: a handler that verifies\n", comment(strings.Join(resigned, ", ")))
		b.WriteString("// finds it too old, or made with another secret. Sign the body anew with the secret\n// of your test, at the time it runs, and set these lines before ServeHTTP.\n")
	}
	fmt.Fprintf(&b, "func %s(t *testing.T) {\n", name)
	b.WriteString("\tvar handler http.Handler // put yours here\n")
	b.WriteString("\tif handler == nil {\n\t\tt.Skip(\"there is no handler to test\")\n\t}\n")
	b.WriteString("\tconst head = \"\" +\n")
	origin, target := splitURL(x.url)
	_, host, _ := strings.Cut(origin, "://")
	lines := []string{x.Method + " " + target + " HTTP/1.1", "Host: " + host}
	for _, f := range x.header {
		lines = append(lines, f.Name+": "+f.Value)
	}
	lines = append(lines, "Content-Length: "+strconv.Itoa(len(x.Body)), "")
	for i, line := range lines {
		end := " +\n"
		if i == len(lines)-1 {
			end = "\n"
		}
		fmt.Fprintf(&b, "\t\t%s%s", strconv.QuoteToGraphic(line+"\r\n"), end)
	}
	if encoded {
		b.WriteString("\tconst inBase64 = `\n")
		wrapBase64(&b, x.Body)
		b.WriteString("`\n\tbody, err := base64.StdEncoding.DecodeString(inBase64)\n")
		b.WriteString("\tif err != nil {\n\t\tt.Fatal(err)\n\t}\n")
	} else {
		b.WriteString("\tconst body = \"\" +\n")
		for chunk, rest := "", string(x.Body); ; {
			chunk, rest = nextChunk(rest)
			if rest == "" {
				fmt.Fprintf(&b, "\t\t%s\n", strconv.QuoteToGraphic(chunk))
				break
			}
			fmt.Fprintf(&b, "\t\t%s +\n", strconv.QuoteToGraphic(chunk))
		}
	}
	b.WriteString("\tr, err := http.ReadRequest(bufio.NewReader(strings.NewReader(head + string(body))))\n")
	b.WriteString("\tif err != nil {\n\t\tt.Fatal(err)\n\t}\n")
	b.WriteString("\tw := httptest.NewRecorder()\n\thandler.ServeHTTP(w, r)\n")
	b.WriteString("\tif w.Code < 200 || w.Code > 299 {\n\t\tt.Errorf(\"answered %d: %s\", w.Code, w.Body)\n\t}\n}\n")
	return b.Bytes()
}

// nextChunk takes a piece of text that fits a line, up to a line break if there
// is one, and never half a character.
func nextChunk(text string) (chunk, rest string) {
	const most = 96
	if i := strings.IndexByte(text[:min(most, len(text))], '\n'); i >= 0 {
		return text[:i+1], text[i+1:]
	}
	n := min(most, len(text))
	for n < len(text) && !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n], text[n:]
}

// comment is s fit to stand behind //.
func comment(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsGraphic(r) || r == utf8.RuneError {
			return '?'
		}
		return r
	}, clip(s))
}
