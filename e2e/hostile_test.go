package e2e

import (
	"bytes"
	"compress/gzip"
	"crypto/hmac"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/google/go-github/v84/github"
	"github.com/stripe/stripe-go/v85/webhook"
	_ "modernc.org/sqlite" // to count what is stored

	"github.com/posternhq/postern/e2e/rig"
)

// hostileModes are the modes that every odd webhook goes through.
var hostileModes = []string{"store", "sync", "hybrid"}

// hostileManifest has for each mode an endpoint that checks nothing, one of
// each provider, one that looks for an order key, and a small one.
func hostileManifest() string {
	var b strings.Builder
	b.WriteString("version: 1\napps:\n  shop:\n    endpoints:\n")
	for _, mode := range hostileModes {
		for _, ep := range []struct{ name, keys string }{
			{"none", "provider: none"},
			{"stripe", "provider: stripe, secrets: [{env: STRIPE_NEW}]"},
			{"github", "provider: github, secrets: [{env: GITHUB_SECRET}]"},
			{"ordered", "provider: none, order_by: /data/object/id"},
			{"small", "provider: none, max_body: 4KiB"},
		} {
			fmt.Fprintf(&b, "      %s-%s: {%s, mode: %s, path: /in, retry: {schedule: [50ms, 50ms]}}\n", ep.name, mode, ep.keys, mode)
		}
	}
	return b.String()
}

func startHostileRelay(t *testing.T) *rig.Relay {
	t.Helper()
	return rig.StartRelay(t, rig.RelayConfig{
		Manifest: hostileManifest(),
		Env:      []string{"STRIPE_NEW=" + stripeNew, "GITHUB_SECRET=" + githubSecret},
	})
}

// hostileBodies are bodies that do not survive being taken for text or JSON, or
// not at this size.
func hostileBodies() []hostile {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	fmt.Fprint(z, `{"data":{"object":{"id":"zipped"}}}`)
	z.Close()
	utf16BOM := []byte{0xff, 0xfe}
	for _, u := range utf16.Encode([]rune(`{"data":{"object":{"id":"é"}}}`)) {
		utf16BOM = append(utf16BOM, byte(u), byte(u>>8))
	}
	const deep = 100_000
	json := []line{{"Content-Type", "application/json"}}
	form := []line{{"Content-Type", "application/x-www-form-urlencoded"}}
	return []hostile{
		{name: "empty"},
		{name: "empty without a length", noLength: true},
		{name: "one byte", body: []byte{0}},
		{name: "every byte there is", body: bytes.Repeat(all, 3)},
		{name: "only NULs", body: make([]byte, 5000)},
		{name: "not UTF-8 in JSON", lines: json, body: []byte("{\"data\":{\"object\":{\"id\":\"\xff\xfe\xc3\x28\x00\"}}}")},
		{name: "gzip", lines: []line{{"Content-Encoding", "gzip"}, {"Content-Type", "application/json"}}, body: zipped.Bytes()},
		{name: "called gzip and is not", lines: []line{{"Content-Encoding", "gzip"}}, body: []byte("plain")},
		{name: "25 MB", body: randomBytes(25_000_000)},
		{name: "UTF-16 with a mark", lines: json, body: utf16BOM},
		{name: "UTF-8 with a mark", lines: json, body: []byte("\xef\xbb\xbf{\"data\":{\"object\":{\"id\":1}}}\r\n\r\n")},
		{name: "JSON with the same key twice", lines: json, body: []byte(`{"data":{"object":{"id":1,"id":2}},"data":{"object":{"id":3}},"id":"evt_a","id":"evt_b"}`)},
		{name: "JSON of great depth", lines: json, body: []byte(`{"data":` + strings.Repeat("[", deep) + strings.Repeat("]", deep) + `}`)},
		{name: "JSON of great depth without an end", lines: json, body: []byte(strings.Repeat(`{"data":{"object":`, deep))},
		{name: "JSON with a huge number", lines: json, body: []byte(`{"data":{"object":{"id":` + strings.Repeat("9", 5000) + `}}}`)},
		{name: "JSON with blanks and escapes", lines: json, body: []byte("\t{ \"data\" : { \"object\" : { \"id\" : \"\\u0000\\ud800\" } } }\r\n\n")},
		{name: "form with the same key twice", lines: form, body: []byte("a=1&a=2&b=%zz&a=3&&=&c")},
		{name: "form with JSON in payload", lines: form, body: []byte("payload=%7B%22zen%22%3A+%22a%2Bb%22%7D&payload=x")},
		{name: "lines that end in all ways", body: []byte("a\nb\r\nc\rd\n\r\r\n")},
		{name: "a request in the body", body: []byte("POST /hooks/shop/none-store HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx")},
	}
}

// hostileHeads are odd in how they come and not in what they bring.
func hostileHeads() []hostile {
	body := []byte(`{"ok":true}`)
	long := strings.Repeat("v", 60<<10)
	return []hostile{
		{name: "lines of the same name", body: body, lines: []line{{"X-Twice", "b"}, {"X-Other", "1"}, {"X-Twice", "a"}, {"x-twice", "b"}, {"X-Twice", ""}, {"X-TWICE", "a, b"}}},
		{name: "names in odd case", body: body, lines: []line{{"x-lower", "1"}, {"X-UPPER", "2"}, {"x-MiXeD-cAsE", "3"}, {"X_under_Score", "4"}, {"1-!#$%&'*+.^_`|~", "5"}}},
		{name: "values of odd bytes", body: body, lines: []line{{"X-Latin", "caf\xe9 \xff"}, {"X-UTF8", "漢字"}, {"X-Tab", "a\tb"}, {"X-Quotes", `"a\"b`}, {"X-Empty", ""}, {"X-Colon", ": :"}}},
		{name: "a very long value", body: body, lines: []line{{"X-Long", long}}},
		{name: "many lines", body: body, lines: manyLines(500)},
		{name: "a garbled content type", body: body, lines: []line{{"Content-Type", ";;; =\"\xff/json; charset=\"\", x"}}},
		{name: "two content types", body: body, lines: []line{{"Content-Type", "text/plain"}, {"Content-Type", "application/json"}}},
		{name: "what a client usually adds", body: body, lines: []line{{"User-Agent", "x/1.0 (\xe9)"}, {"Accept-Encoding", "br;q=1.0, gzip;q=0"}, {"Accept", "*/*"}, {"Cookie", "a=b"}, {"Cookie", "c=d"}, {"Authorization", "Bearer x"}}},
		{name: "chunks", body: []byte("hello, world\x00"), chunks: []byte("5\r\nhello\r\n1;ext=\"a;b\"\r\n,\r\n007\r\n world\x00\r\n0\r\n\r\n")},
		{name: "chunks with trailers", body: []byte("hello"), chunks: []byte("5\r\nhello\r\n0\r\nX-Late: 1\r\nPostern-Verified: true\r\n\r\n"), lines: []line{{"Trailer", "X-Late"}}},
		{name: "no chunks at all", chunks: []byte("0\r\n\r\n")},
		{name: "escapes in the path", rest: "/a%2Fb/%00/%25/%c3%A9/%E6%BC%A2/+", body: body},
		{name: "odd bytes in the path", rest: "/a|b/{c}/^/'/;p=1/@:$&=,!~*()", body: body},
		{name: "slashes", rest: "//a//", body: body},
		{name: "keys of a query twice", rest: "?a=1&a=2&b&=&a=%zz&c=%2e%2e/&;d=+", body: body},
		{name: "a question mark alone", rest: "/x?", body: body},
		{name: "a query with question marks", rest: "?a=?b=?", body: body},
		{name: "a very long query", rest: "?" + strings.Repeat("k=v%20&", 7000), body: body},
		{name: "a target with a host", absolute: true, rest: "/a%2Fb/%7e?x=1&x=%2F", body: body},
		{name: "a target with a host and odd bytes", absolute: true, rest: "/a|b/{c}/^/'/;p=1/@:$&=,!~*()?x={1}|", body: body},
		{name: "HTTP/1.0", version: "HTTP/1.0", body: body},
		{name: "Expect: 100-continue", body: body, lines: []line{{"Expect", "100-continue"}}, write: whenTold},
		{name: "byte after byte", body: bytes.Repeat([]byte("slow"), 50), write: slowly},
	}
}

// hostileWebhooks is the corpus for one provider. The largest body goes only to
// whom it may come from, and to the one that checks nothing, to save time.
func hostileWebhooks(provider string) []hostile {
	return slices.DeleteFunc(append(hostileBodies(), hostileHeads()...), func(h hostile) bool {
		return len(h.body) > 1<<20 && provider != "github" && provider != "none"
	})
}

func manyLines(n int) []line {
	var lines []line
	for i := range n {
		lines = append(lines, line{fmt.Sprintf("X-%d", i%50), fmt.Sprint(i)})
	}
	return lines
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	random := rand.NewChaCha8([32]byte{1})
	random.Read(b)
	return b
}

// signed are the lines with which a provider's webhook proves itself.
func signed(provider string, body []byte, unique string) []line {
	switch provider {
	case "stripe":
		p := webhook.GenerateTestSignedPayload(&webhook.UnsignedPayload{Payload: body, Secret: stripeNew, Timestamp: time.Now()})
		return []line{{"Stripe-Signature", p.Header}}
	case "github":
		mac := hmac.New(sha256.New, []byte(githubSecret))
		mac.Write(body)
		return []line{{"X-Hub-Signature-256", "sha256=" + hex.EncodeToString(mac.Sum(nil))}, {"X-GitHub-Delivery", unique}, {"X-GitHub-Event", "ping"}}
	}
	return nil
}

// verified asks the provider's own library about what arrived.
func verified(provider string, r rawRequest) error {
	switch provider {
	case "stripe":
		return webhook.ValidatePayload(r.body, r.value("Stripe-Signature"), stripeNew)
	case "github":
		return github.ValidateSignature(r.value("X-Hub-Signature-256"), r.body, []byte(githubSecret))
	}
	return nil
}

func TestHostileWebhooksArriveByteForByte(t *testing.T) {
	t.Parallel()
	r := startHostileRelay(t)
	app := newRawApp()
	r.StartAgent(rig.ServeRaw(t, app.serve(t)), rig.AgentConfig{})
	for _, mode := range hostileModes {
		for _, provider := range []string{"none", "stripe", "github", "ordered"} {
			for _, h := range hostileWebhooks(provider) {
				t.Run(mode+"/"+provider+"/"+h.name, func(t *testing.T) { tryHostile(t, r, app, h, provider, mode) })
			}
		}
	}
	if n := len(app.got); n > 0 {
		t.Errorf("the app got %d more requests", n)
	}
}

func tryHostile(t *testing.T, r *rig.Relay, app *rawApp, h hostile, provider, mode string) {
	more := signed(provider, h.body, h.name)
	resp, answer := h.send(t, r, provider+"-"+mode, more...)
	taken := string(answer) == "the app's word" && resp.StatusCode == http.StatusOK
	if mode == "store" || mode == "hybrid" && !taken {
		wantAccepted(t, resp, answer)
	} else if !taken || !eventID.MatchString(resp.Header.Get("Postern-Event-Id")) {
		t.Fatalf("answered %s: %q", resp.Status, answer)
	}
	got := app.next(t)
	checkArrival(t, h, append(h.lines, more...), got)
	if got.value("Postern-Event-Id") != resp.Header.Get("Postern-Event-Id") {
		t.Errorf("the app got %s, the sender %s", got.value("Postern-Event-Id"), resp.Header.Get("Postern-Event-Id"))
	}
	if want := fmt.Sprint(provider == "stripe" || provider == "github"); got.value("Postern-Verified") != want {
		t.Errorf("Postern-Verified: %s", got.value("Postern-Verified"))
	}
	if err := verified(provider, got); err != nil {
		t.Errorf("the provider's own library refuses what arrived: %v", err)
	}
}

// hostileRefused are webhooks that no endpoint may take.
func hostileRefused() []hostile {
	const limit = 4 << 10
	chunk := fmt.Sprintf("400\r\n%s\r\n", strings.Repeat("c", 0x400))
	over := bytes.Repeat([]byte("x"), limit+1)
	ok := []byte("ok")
	refused := []hostile{
		{name: "over the limit", body: over, status: http.StatusRequestEntityTooLarge, code: "too_large"},
		{name: "far over the limit", body: bytes.Repeat(over, 500), status: http.StatusRequestEntityTooLarge, code: "too_large"},
		{name: "chunks over the limit", chunks: []byte(strings.Repeat(chunk, 4) + "1\r\nx\r\n0\r\n\r\n"), status: http.StatusRequestEntityTooLarge, code: "too_large"},
		{name: "chunks far over the limit", chunks: []byte(strings.Repeat(chunk, 4000) + "0\r\n\r\n"), status: http.StatusRequestEntityTooLarge, code: "too_large"},
		{name: "cut short", body: over[:1000], write: cutShort, status: http.StatusBadRequest, code: "invalid"},
		{name: "chunks cut short", chunks: []byte(chunk + chunk), write: cutShort, status: http.StatusBadRequest, code: "invalid"},
		{name: "a chunk without a size", chunks: []byte("zz\r\nhello\r\n0\r\n\r\n"), status: http.StatusBadRequest, code: "invalid"},
		{name: "a chunk longer than it says", chunks: []byte("3\r\nhello\r\n0\r\n\r\n"), status: http.StatusBadRequest, code: "invalid"},
	}
	for _, rest := range []string{"/..", "/../x", "/%2e%2e/x", "/%2E./x", "/a/..%2Fx", "/a%2F..%2F..%2Fx", "/..%5Cx", "/./x", "/%2e"} {
		refused = append(refused, hostile{name: "path " + rest, rest: rest, body: ok, status: http.StatusBadRequest, code: "invalid"})
	}
	// net/http refuses these before the relay sees them, in its own words.
	for _, h := range []hostile{
		{name: "an escape that is none", rest: "/%zz", body: ok},
		{name: "a blank in the path", rest: "/a b", body: ok},
		{name: "two lengths", body: ok, lines: []line{{"Content-Length", "3"}}},
		{name: "a length that is none", body: ok, noLength: true, lines: []line{{"Content-Length", "-2"}}},
		{name: "a name with a blank", body: ok, lines: []line{{"X-A ", "1"}}},
		{name: "a value with a NUL", body: ok, lines: []line{{"X-A", "a\x00b"}}},
		{name: "a value with a bare CR", body: ok, lines: []line{{"X-A", "a\rb"}}},
	} {
		h.status = http.StatusBadRequest
		refused = append(refused, h)
	}
	return append(refused,
		hostile{name: "another version", version: "HTTP/3.7", body: ok, status: http.StatusHTTPVersionNotSupported},
		hostile{name: "an unknown coding", noLength: true, lines: []line{{"Transfer-Encoding", "gzip, chunked"}}, status: http.StatusNotImplemented},
		hostile{name: "a huge head", body: ok, lines: []line{{"X-Huge", strings.Repeat("h", 2<<20)}}, status: http.StatusRequestHeaderFieldsTooLarge})
}

func TestWhatIsRefusedIsNeitherStoredNorDelivered(t *testing.T) {
	t.Parallel()
	r := startHostileRelay(t)
	app := newRawApp()
	r.StartAgent(rig.ServeRaw(t, app.serve(t)), rig.AgentConfig{})
	before := storedEvents(t, r)
	for _, mode := range hostileModes {
		for _, h := range hostileRefused() {
			t.Run(mode+"/"+h.name, func(t *testing.T) {
				resp, answer := h.send(t, r, "small-"+mode)
				if h.code != "" {
					wantRefusal(t, resp, answer, h.status, h.code)
				} else if resp.StatusCode != h.status {
					t.Errorf("answered %s: %q", resp.Status, answer)
				}
			})
		}
	}
	if after := storedEvents(t, r); after != before {
		t.Errorf("%d of the refused webhooks are stored", after-before)
	}
	for _, mode := range hostileModes {
		// The limit itself is no reason, and these are the first that arrive.
		good := hostile{name: "at the limit", body: bytes.Repeat([]byte("g"), 4<<10), lines: []line{{"X-Good", mode}}}
		tryHostile(t, r, app, good, "small", mode)
	}
	if n := len(app.got); n > 0 {
		t.Errorf("the app got %d more requests", n)
	}
}

// storedEvents counts the events in the relay's database.
func storedEvents(t *testing.T, r *rig.Relay) (n int) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(r.Data, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		head, _ := os.ReadFile(file)
		if !bytes.HasPrefix(head, []byte("SQLite format 3\x00")) {
			continue
		}
		db, err := sql.Open("sqlite", "file:"+file+"?mode=ro&_pragma=busy_timeout(5000)")
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if err := db.QueryRowContext(t.Context(), "SELECT count(*) FROM event").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	t.Fatalf("no database among %q", files)
	return 0
}

func TestTheSecondAttemptBringsTheSameBytes(t *testing.T) {
	t.Parallel()
	r := startHostileRelay(t)
	app := newRawApp()
	app.refuses = func(r rawRequest) bool { return r.value("Postern-Attempt") == "1" }
	r.StartAgent(rig.ServeRaw(t, app.serve(t)), rig.AgentConfig{})
	for _, mode := range []string{"store", "hybrid"} { // in mode sync the sender tries again
		for _, provider := range []string{"none", "stripe", "github"} {
			for _, h := range hostileWebhooks(provider) {
				t.Run(mode+"/"+provider+"/"+h.name, func(t *testing.T) { tryHostileTwice(t, r, app, h, provider, mode) })
			}
		}
	}
}

// tryHostileTwice is tryHostile with an app that refuses the first attempt.
func tryHostileTwice(t *testing.T, r *rig.Relay, app *rawApp, h hostile, provider, mode string) {
	more := signed(provider, h.body, h.name)
	resp, answer := h.send(t, r, provider+"-"+mode, more...)
	if mode == "store" || resp.StatusCode != http.StatusInternalServerError {
		wantAccepted(t, resp, answer)
	}
	first, second := app.next(t), app.next(t)
	checkArrival(t, h, append(h.lines, more...), first)
	checkArrival(t, h, append(h.lines, more...), second)
	for _, name := range []string{"Postern-Event-Id", "Postern-Delivery-Id", "Postern-Received-At", "Idempotency-Key"} {
		if first.value(name) != second.value(name) || first.value(name) == "" {
			t.Errorf("%s: %q, then %q", name, first.value(name), second.value(name))
		}
	}
	if second.value("Postern-Attempt") != "2" {
		t.Errorf("Postern-Attempt: %s", second.value("Postern-Attempt"))
	}
	if err := verified(provider, second); err != nil {
		t.Errorf("the provider's own library refuses what arrived: %v", err)
	}
}

// Each sender sends its next webhook when the last was accepted, so the order of
// its own is known; that between two senders is not.
func TestTenThousandWebhooksOfOneKeyKeepTheirOrder(t *testing.T) {
	t.Parallel()
	const senders = 8
	each := 1250
	if testing.Short() || rig.Race() { // one after the other, they take a while
		each = 125
	}
	r := startHostileRelay(t)
	app := newRawApp()
	r.StartAgent(rig.ServeRaw(t, app.serve(t)), rig.AgentConfig{})
	client := r.Client()
	var sending sync.WaitGroup
	for s := range senders {
		sending.Go(func() {
			for n := range each {
				body := fmt.Sprintf(`{"data":{"object":{"id":"one"}},"sender":%d,"n":%d}`, s, n)
				resp, err := client.Post(r.HookURL("shop", "ordered-store"), "application/json", strings.NewReader(body))
				if err != nil {
					t.Errorf("sender %d: %v", s, err)
					return
				}
				resp.Body.Close()
				if resp.StatusCode != http.StatusAccepted {
					t.Errorf("sender %d, webhook %d: %s", s, n, resp.Status)
					return
				}
			}
		})
	}
	var expected [senders]int
	for range senders * each {
		got := app.next(t)
		var s, n int
		if _, err := fmt.Sscanf(string(got.body), `{"data":{"object":{"id":"one"}},"sender":%d,"n":%d}`, &s, &n); err != nil || s >= senders {
			t.Fatalf("the app got %q: %v", got.body, err)
		}
		if n != expected[s] {
			t.Fatalf("of sender %d came %d, expected %d", s, n, expected[s])
		}
		expected[s]++
	}
	sending.Wait()
}
