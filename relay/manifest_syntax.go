package relay

import (
	"bytes"
	"errors"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// MaxManifestSize is the largest manifest in bytes: a thousand apps with ten
// endpoints each fit, or an allow list of a hundred thousand lines, and a parser fed
// by mistake with a database does not.
const MaxManifestSize = 8 << 20

// parseYAML gives the root node of the one document in data.
func (r *manifestReader) parseYAML(data []byte) (*yaml.Node, bool) {
	if len(data) > MaxManifestSize {
		r.failPos(1, 1, "expected a file of at most 8 MiB, found %d bytes", len(data))
		return nil, false
	}
	if !r.checkText(data) {
		return nil, false
	}
	var doc, next yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(data))
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		r.failPos(1, 1, "the file is empty; expected a mapping with the keys version and apps")
		return nil, false
	case err != nil:
		r.failSyntax(data, err)
		return nil, false
	}
	switch err := dec.Decode(&next); {
	case err == nil:
		r.failPos(next.Line, next.Column, "expected one YAML document, found a second one")
		return nil, false
	case !errors.Is(err, io.EOF):
		r.failSyntax(data, err)
		return nil, false
	}
	root := doc.Content[0]
	if isNull(root) {
		r.failPos(root.Line, root.Column, "the file is empty; expected a mapping with the keys version and apps")
		return nil, false
	}
	return root, true
}

// checkText finds what the YAML reader would refuse without saying where: bytes
// that are not UTF-8 and control characters (YAML 1.2, section 5.1). It also
// counts the lines.
func (r *manifestReader) checkText(data []byte) bool {
	line, column := 1, 1
	for i := 0; i < len(data); {
		c, size := utf8.DecodeRune(data[i:])
		if c == utf8.RuneError && size == 1 {
			r.failPos(line, column, "expected UTF-8 text, found the byte 0x%02x", data[i])
			return false
		}
		if !yamlPrintable(c) && (c != '\uFEFF' || i > 0) {
			r.failPos(line, column, "expected printable text, found the control character %U", c)
			return false
		}
		i += size
		column++
		if yamlBreak(c) && (c != '\r' || i == len(data) || data[i] != '\n') {
			line, column = line+1, 1
		}
	}
	r.lines = line
	if column == 1 { // the last line ended; nothing follows it
		r.lines = max(line-1, 1)
	}
	return true
}

// yamlBreak reports whether the YAML reader begins a new line after c, which
// older versions of YAML do at more than CR and LF.
func yamlBreak(c rune) bool {
	return c == '\n' || c == '\r' || c == 0x85 || c == '\u2028' || c == '\u2029'
}

func yamlPrintable(c rune) bool {
	switch {
	case c == '\t', c == '\n', c == '\r', c == 0x85:
		return true
	case c < ' ', c >= 0x7f && c < 0xa0, c == 0xfeff, c == 0xfffe, c == 0xffff:
		return false
	}
	return true
}

// yamlGrammar are the problems that the YAML parser reports at the place where
// the surrounding block begins, one line too early, with what to tell instead.
// Its scanner's problems, all others, carry the right line.
var yamlGrammar = map[string]string{
	"did not find expected key":              "expected another key at the same indentation as the keys above, or the end of the section",
	"did not find expected '-' indicator":    "expected another list item that begins with -, at the same indentation as those above",
	"did not find expected ',' or ']'":       "expected , or ] to go on with or close the list that begins with [",
	"did not find expected ',' or '}'":       "expected , or } to go on with or close the mapping that begins with {",
	"did not find expected <document start>": "expected the end of the file or --- after the document",
	"did not find expected node content":     "expected a value",
	"found undefined tag handle":             "expected a plain value, found a tag with an unknown handle",
}

const yamlCannotStart = "found character that cannot start any token"

// yamlScanner says in other words what the scanner reports for the commonest
// mistakes.
var yamlScanner = map[string]string{
	yamlCannotStart: "expected a key or value: indent with spaces, not tabs, and quote a text that begins with @, ` or %",
	"mapping values are not allowed in this context": "expected no second \": \" on this line and no deeper indentation than above; quote a text that has \": \" in it",
	"could not find expected ':'":                    "expected \":\" after the key",
	"found unexpected end of stream":                 "expected the closing quote of the text that begins here",
}

// failSyntax reports err of the YAML library with a position. The library says
// at most the line, so the column is that of the line's first character, or of
// the character it names. The text of the line is not repeated: it may hold a
// secret.
func (r *manifestReader) failSyntax(data []byte, err error) {
	problem := strings.TrimPrefix(err.Error(), "yaml: ")
	if rest, ok := strings.CutPrefix(problem, "unknown anchor '"); ok {
		line, column := findAlias(data, strings.TrimSuffix(rest, "' referenced"))
		r.failPos(line, column, "expected an anchor that was defined above; quote a text that begins with *")
		return
	}
	line := 0
	if rest, ok := strings.CutPrefix(problem, "line "); ok {
		number, after, _ := strings.Cut(rest, ": ")
		if n, err := strconv.Atoi(number); err == nil {
			line, problem = n, after
		}
	}
	message, grammar := yamlGrammar[problem]
	if grammar {
		line = grammarLine(data, line+1)
	} else if message = yamlScanner[problem]; message == "" {
		message = "expected valid YAML: " + problem
	}
	line = max(line, 1)
	r.failPos(line, syntaxColumn(data, line, problem), "%s", message)
}

// grammarLine finds the line at which data stops to be valid YAML; block is the
// line where the surrounding block begins. The parser reads little further than
// the problem, so the search goes up from there: the longest valid beginning
// ends just above the problem. Its work is bounded; beyond that the answer is
// block.
func grammarLine(data []byte, block int) int {
	in := &byteByByte{data: data}
	_ = validYAML(in) // fails again; only how far it came matters
	ends := lineEnds(data[:in.read])
	tries := 1 + min(200, MaxManifestSize/4/(len(data)+1))
	for n := len(ends) - 1; n >= 0 && tries > 0; n-- {
		if n == 0 || validYAML(bytes.NewReader(data[:ends[n-1]])) == nil {
			return n + 1
		}
		tries--
	}
	return min(block, max(len(ends), 1))
}

func validYAML(in io.Reader) error {
	dec := yaml.NewDecoder(in)
	for {
		if err := dec.Decode(new(yaml.Node)); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// byteByByte shows how far the YAML parser read: fed with single bytes it reads
// only what it needs.
type byteByByte struct {
	data []byte
	read int
}

func (b *byteByByte) Read(p []byte) (int, error) {
	if b.read == len(b.data) || len(p) == 0 {
		return 0, io.EOF
	}
	p[0] = b.data[b.read]
	b.read++
	return 1, nil
}

// lineEnds gives the offset after each line of data; the last may have no end.
func lineEnds(data []byte) []int {
	var ends []int
	for i, c := range data {
		if c == '\n' || i == len(data)-1 {
			ends = append(ends, i+1)
		}
	}
	return ends
}

// syntaxColumn is the column of the line's first character, or of the first
// that cannot begin a value, if that is the problem.
func syntaxColumn(data []byte, line int, problem string) int {
	lines := bytes.SplitN(data, []byte("\n"), line+1)
	if line > len(lines) {
		return 1
	}
	text := lines[line-1]
	if problem == yamlCannotStart {
		for i, c := range text {
			if bytes.IndexByte([]byte("\t@`%"), c) >= 0 && beginsValue(text, i) {
				return utf8.RuneCount(text[:i]) + 1
			}
		}
	}
	return len(text) - len(bytes.TrimLeft(text, " ")) + 1
}

// beginsValue reports whether a value can begin at text[at].
func beginsValue(text []byte, at int) bool {
	return at == 0 || bytes.IndexByte([]byte(" [{,"), text[at-1]) >= 0
}

// findAlias finds where *name stands as a value, outside of comments.
func findAlias(data []byte, name string) (line, column int) {
	for i, text := range bytes.Split(data, []byte("\n")) {
		text, _, _ = bytes.Cut(text, []byte(" #"))
		for from := 0; ; from++ {
			at := bytes.Index(text[from:], []byte("*"+name))
			if at < 0 {
				break
			}
			from += at
			if beginsValue(text, from) {
				return i + 1, utf8.RuneCount(text[:from]) + 1
			}
		}
	}
	return 1, 1
}
