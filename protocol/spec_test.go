package protocol

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/yamux"
)

// These tests keep SPEC.md honest: what it says in tables and examples is read
// out of it and compared with the program. The transcript at its end is played
// to a relay in transcript_test.go.

// spec is the text of SPEC.md.
func spec(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("SPEC.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// table is the rows of the one table whose header line begins with header, each
// row a list of cells without backticks.
func table(t *testing.T, header string) [][]string {
	t.Helper()
	_, rest, found := strings.Cut(spec(t), "\n| "+header)
	if !found {
		t.Fatalf("no table with header %q", header)
	}
	var rows [][]string
	for _, line := range strings.Split(rest, "\n")[2:] {
		if !strings.HasPrefix(line, "|") {
			break
		}
		var cells []string
		for _, cell := range strings.Split(strings.Trim(line, "|"), "|") {
			cells = append(cells, strings.ReplaceAll(strings.TrimSpace(cell), "`", ""))
		}
		rows = append(rows, cells)
	}
	if len(rows) == 0 {
		t.Fatalf("table %q is empty", header)
	}
	return rows
}

func column(rows [][]string, n int) []string {
	var cells []string
	for _, row := range rows {
		cells = append(cells, row[n])
	}
	return cells
}

// constants are the values of all constants of type typ in this package.
func constants(t *testing.T, typ string) []string {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var values []string
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok || len(spec.Values) != 1 {
				return true
			}
			if id, ok := spec.Type.(*ast.Ident); ok && id.Name == typ {
				if lit, ok := spec.Values[0].(*ast.BasicLit); ok {
					value, _ := strconv.Unquote(lit.Value)
					values = append(values, value)
				}
			}
			return true
		})
	}
	return values
}

// same compares two lists as sets.
func same(t *testing.T, what string, inSpec, inProgram []string) {
	t.Helper()
	slices.Sort(inSpec)
	slices.Sort(inProgram)
	if !slices.Equal(inSpec, inProgram) {
		t.Errorf("%s: SPEC.md has %q, the program %q", what, inSpec, inProgram)
	}
}

func TestSpecHasEveryNameThatTheProgramHas(t *testing.T) {
	for header, typ := range map[string]string{
		"type | sent by": "FrameType", "feature |": "Feature", "kind |": "Kind", "state |": "AppState",
	} {
		same(t, typ, column(table(t, header), 0), constants(t, typ))
	}
	same(t, "Code", column(table(t, "number | code"), 1), constants(t, "Code"))
	for _, text := range []string{
		"`" + TunnelPath + "`", "Sec-WebSocket-Protocol: " + Subprotocol, fmt.Sprintf("# The Postern tunnel, version %d\n", Version),
		fmt.Sprintf("up to %d %%", int(beatJitter*100)),
	} {
		if !strings.Contains(spec(t), text) {
			t.Errorf("SPEC.md does not say %q", text)
		}
	}
}

func TestSpecNumbersTheCodesAsTheProgramDoes(t *testing.T) {
	rows := table(t, "number | code")
	for i, row := range rows {
		n, err := strconv.Atoi(row[0])
		if err != nil || n != i || codeFromNumber(uint32(n)) != Code(row[1]) || Code(row[1]).number() != uint32(n) {
			t.Errorf("row %d: %s is %s, in the program %s", i, row[0], row[1], codeFromNumber(uint32(i)))
		}
	}
	if unknown := codeFromNumber(uint32(len(rows))); unknown != CodeReset || Code("later").number() != 0 {
		t.Errorf("a code of a later version is read as %s", unknown)
	}
}

func TestSpecListsTheKeysOfEveryMessage(t *testing.T) {
	for header, v := range map[string]any{
		"key | JSON type": Control{}, "key of `hello`": Hello{}, "key of `welcome`": Welcome{}, "key of `open`": Open{}, "key of the reply": Reply{}, "key of `egress`": EgressOpen{},
		"key of a report": Report{}, "key of a line": Line{}, "key of `vitals`": Vitals{}, "key of a socket": Socket{},
		"key of `findings`": Findings{}, "key of a finding": Finding{}, "key of `exit`": Exit{}, "key of `logs`": LogQuery{},
	} {
		keys := map[string]string{}
		for f := range reflect.TypeOf(v).Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			keys[name] = jsonType(f.Type)
		}
		rows := table(t, header)
		for _, row := range rows {
			if typ, ok := keys[row[0]]; !ok || typ != row[1] {
				t.Errorf("%s: %s is %s, in the program %q", header, row[0], row[1], typ)
			}
		}
		if len(rows) != len(keys) {
			t.Errorf("%s: %d keys, in the program %d", header, len(rows), len(keys))
		}
	}
}

func jsonType(typ reflect.Type) string {
	if typ == reflect.TypeFor[time.Time]() {
		return "string"
	}
	if typ == reflect.TypeFor[json.RawMessage]() {
		return "object"
	}
	switch typ.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "string"
	case reflect.Slice:
		return "array of " + jsonType(typ.Elem()) + "s"
	case reflect.Pointer, reflect.Struct:
		return "object"
	}
	return "number"
}

func TestSpecSaysWhichKeysAMessageHas(t *testing.T) {
	full := Control{
		ID: 1, Hello: &Hello{}, Welcome: &Welcome{}, Code: "c", Message: "m", GraceMS: 1, ReconnectMS: 1, RetryAfterMS: 1, State: "s",
	}
	known := map[string]bool{}
	for f := range reflect.TypeOf(full).Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		known[name] = true
	}
	comments := map[string]string{} // by type, from the constants' own comments
	source, _ := os.ReadFile("frame.go")
	for _, m := range regexp.MustCompile(`FrameType = "(\w+)".*?\{(.*?)\}`).FindAllStringSubmatch(string(source), -1) {
		comments[m[1]] = m[2]
	}
	for _, row := range table(t, "type | sent by") {
		for _, key := range strings.Split(row[2], ", ") {
			if key != "" && !known[key] {
				t.Errorf("%s has a key %s, which is none", row[0], key)
			}
		}
		if row[0] != "hello" && row[0] != "welcome" && comments[row[0]] != row[2] {
			t.Errorf("%s has keys %q, its constant says %q", row[0], row[2], comments[row[0]])
		}
	}
}

func TestSpecLimitsAreTheProgramsLimits(t *testing.T) {
	seconds := func(d time.Duration) string { return fmt.Sprintf("%g s", d.Seconds()) }
	mux := yamux.DefaultConfig()
	want := map[string]any{
		"bytes of a message": MaxFrame, "bytes of a message text": maxReason, "bytes of a string in hello": maxNameLen,
		"entries of a list": maxListLen, "bytes of a boot id, at least": minBootID, "bytes of addr": maxAddr, "bytes of url": maxURL,
		"tunnels of an agent": MaxTunnels, "bytes of a data frame": chunk, "bytes of a window at first": mux.MaxStreamWindowSize,
		"open streams, default":                       documented(t, "session.go", `reset\. Default (\d+)\.`),
		"connecting, proxy and TLS included, default": documented(t, "dial.go", `together\. Default (\d+ s)\.`),
		"handshake": seconds(handshakeTimeout), "SYN to open": seconds(handshakeTimeout),
		"waiting to write a control message": seconds(controlTimeout), "hanging up after close or refuse": seconds(closeTimeout),
		"closing after a refused open": seconds(refuseWait),
		"one write to the socket":      seconds(writeStall), "longest time in a message": seconds(maxGrace),
		"shortest heartbeat_ms": fmt.Sprintf("%d ms", minInterval.Milliseconds()), "longest heartbeat_ms": seconds(maxInterval),
		"default heartbeat_ms": seconds(DefaultHeartbeat), "missed beats until dead": missedBeats,
	}
	rows := table(t, "limit |")
	for _, row := range rows {
		if got, ok := want[row[0]]; !ok || fmt.Sprint(got) != row[1] {
			t.Errorf("%s: %s, in the program %v", row[0], row[1], got)
		}
	}
	if len(rows) != len(want) {
		t.Errorf("%d limits, expected %d", len(rows), len(want))
	}
}

// documented is a default that has no constant, from its field's comment.
func documented(t *testing.T, file, pattern string) string {
	t.Helper()
	source, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	flat := strings.ReplaceAll(string(source), "\n\t// ", " ")
	m := regexp.MustCompile(pattern).FindStringSubmatch(flat)
	if m == nil {
		t.Fatalf("%s does not match %s", file, pattern)
	}
	return m[1]
}

func TestSpecPermanentReasonsAreTheProgramsPermanentReasons(t *testing.T) {
	for _, row := range table(t, "status | reason") {
		for _, reason := range strings.Split(row[1], ", ") {
			if e := (&HandshakeError{Reason: reason}); e.Permanent() != (row[3] == "yes") {
				t.Errorf("%s: permanent %s, in the program %v", reason, row[3], e.Permanent())
			}
		}
	}
}

func TestSpecExamplesAreMessages(t *testing.T) {
	seen := map[FrameType]bool{}
	for _, block := range regexp.MustCompile("(?s)```message\n(.*?)\n(.*?)\n```").FindAllStringSubmatch(spec(t), -1) {
		text := block[1]
		raw, err := hex.DecodeString(strings.NewReplacer(" ", "", "\n", "").Replace(block[2]))
		if err != nil {
			t.Errorf("%s: %v", text, err)
		}
		body, err := readFrame(bytes.NewReader(raw), nil)
		if err != nil || string(body) != text || len(raw) != 2+len(text) {
			t.Errorf("the bytes say %s, %v, the text %s", body, err, text)
		}
		var v any
		c, err := DecodeControl([]byte(text))
		seen[c.Type] = true
		if v = c; err != nil {
			v, err = DecodeOpen([]byte(text))
		}
		if err != nil {
			refusal, ok := DecodeReply([]byte(text)).(*Error)
			if !ok || !refusal.Unsent {
				t.Errorf("%s is no message", text)
				continue
			}
			v = Reply{Code: refusal.Code, Message: refusal.Message, Detail: refusal.Detail}
		}
		if msg, err := appendFrame(nil, v); err != nil || string(msg[2:]) != text {
			t.Errorf("%s is written as %s, %v", text, msg[min(2, len(msg)):], err)
		}
	}
	for _, typ := range constants(t, "FrameType") {
		if !seen[FrameType(typ)] {
			t.Errorf("no example of %s", typ)
		}
	}
}

func TestSpecFrameTypesAndFlagsAreThoseOfTheMultiplexer(t *testing.T) {
	for header, want := range map[string][]string{
		"type | name": {"0 data", "1 window update", "2 ping", "3 go away"},
		"flag |":      {"1 SYN", "2 ACK", "4 FIN", "8 RST"},
	} {
		for i, row := range table(t, header) {
			// The transcript proves that these are what the multiplexer understands.
			if got := row[0] + " " + row[1]; i >= len(want) || got != want[i] {
				t.Errorf("%s row %d is %q", header, i, got)
			}
		}
	}
	offset := 0
	for _, row := range table(t, "offset | bytes") {
		size, _ := strconv.Atoi(row[1])
		if row[0] != strconv.Itoa(offset) {
			t.Errorf("%s is at %s, expected %d", row[2], row[0], offset)
		}
		offset += cmp.Or(size, 100)
	}
	if offset != 12 {
		t.Errorf("the header has %d bytes", offset)
	}
}
