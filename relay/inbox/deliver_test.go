package inbox

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/posternhq/postern/relay"
)

// trickle is a body that gives a byte now and then, for ever.
type trickle struct {
	every time.Duration
	ctx   context.Context
}

func newTrickle(every time.Duration) *trickle { return &trickle{every: every} }

func (t *trickle) Read(p []byte) (int, error) {
	select {
	case <-t.ctx.Done():
		return 0, t.ctx.Err()
	case <-time.After(t.every):
		p[0] = '.'
		return 1, nil
	}
}

func (t *trickle) Close() error { return nil }

func TestTheOutcomeOfAnAttempt(t *testing.T) {
	broken := io.NopCloser(io.MultiReader(strings.NewReader("half"), errorReader{errors.New("cut")}))
	for _, tt := range []struct {
		name   string
		app    func(*http.Request) (*http.Response, error)
		want   relay.Outcome
		status int
	}{
		{"200", answer(200), relay.OutcomeDone, 200},
		{"204", answer(204), relay.OutcomeDone, 204},
		{"299", answer(299), relay.OutcomeDone, 299},
		{"301", answer(301), relay.OutcomeRejected, 301},
		{"410", answer(410), relay.OutcomeRejected, 410},
		{"500", answer(500), relay.OutcomeRejected, 500},
		{"101 has no body to wait for", func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 101, Body: io.NopCloser(blockingReader{})}, nil
		}, relay.OutcomeRejected, 101},
		{"no agent", refuse(relay.Errorf(relay.NoAgent, "x")), relay.OutcomeUnsent, 0},
		{"refused, wrapped", refuse(fmt.Errorf("a: %w", relay.Errorf(relay.AppRefused, "x"))), relay.OutcomeUnsent, 0},
		{"timeout said by the transport", refuse(relay.Errorf(relay.AppTimeout, "x")), relay.OutcomeTimeout, 0},
		{"reset", refuse(relay.Errorf(relay.AppReset, "x")), relay.OutcomeUnknown, 0},
		{"anything else", refuse(io.ErrUnexpectedEOF), relay.OutcomeUnknown, 0},
		{"a 200 that is cut short", func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Body: broken}, nil
		}, relay.OutcomeUnknown, 200},
		{"an error with bytes that no database takes", refuse(errors.New("a\x00\xff" + strings.Repeat("é", 1000))), relay.OutcomeUnknown, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t)
				f.app = tt.app
				draft := f.inbox.Draft(f.ep, incoming("1"), relay.Verdict{})
				a, _ := f.inbox.try(t.Context(), f.flight(draft))
				if a.Outcome != tt.want || a.Status != tt.status || a.Delivery != draft.Delivery.ID || a.EndedAt.IsZero() {
					t.Errorf("attempt %+v, want %v with status %d", a, tt.want, tt.status)
				}
				if strings.ContainsRune(a.Error, 0) || !utf8.ValidString(a.Error) || len(a.Error) > maxErrorText+3 {
					t.Errorf("error text %q", a.Error)
				}
			})
		})
	}
}

type errorReader struct{ err error }

func (r errorReader) Read([]byte) (int, error) { return 0, r.err }

type blockingReader struct{}

func (blockingReader) Read([]byte) (int, error) { select {} }

// countingBody notices how much was read and that it was closed.
type countingBody struct {
	left, read int
	closed     bool
}

func (b *countingBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	n := min(len(p), b.left)
	b.left, b.read = b.left-n, b.read+n
	return n, nil
}

func (b *countingBody) Close() error { b.closed = true; return nil }

func TestALongAnswerIsKeptInPartAndReadInPart(t *testing.T) {
	for _, tt := range []struct{ size, kept, read int }{
		{0, 0, 0},
		{maxAnswerKept, maxAnswerKept, maxAnswerKept},
		{maxAnswerRead, maxAnswerKept, maxAnswerRead},
		{10 * maxAnswerRead, maxAnswerKept, maxAnswerRead},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t)
			body := &countingBody{left: tt.size}
			h := http.Header{"X-Long": {strings.Repeat("x", maxAnswerHeader)}, "A": {"1"}}
			f.app = func(*http.Request) (*http.Response, error) {
				return &http.Response{StatusCode: 200, Header: h, Body: body}, nil
			}
			a, _ := f.inbox.try(t.Context(), f.flight(f.inbox.Draft(f.ep, incoming("1"), relay.Verdict{})))
			if a.Outcome != relay.OutcomeDone || len(a.Body) != tt.kept || body.read != tt.read || !body.closed {
				t.Errorf("of %d bytes: kept %d, read %d, closed %v, outcome %v", tt.size, len(a.Body), body.read, body.closed, a.Outcome)
			}
			if !slices.Equal(a.Header, []relay.Field{{Name: "A", Value: "1"}}) {
				t.Errorf("header of %d lines kept", len(a.Header))
			}
		})
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	now := time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)
	for _, tt := range []struct {
		in   string
		want time.Duration
	}{
		{"", 0}, {"0", 0}, {"120", 2 * time.Minute}, {" 5 ", 5 * time.Second},
		{"99999999", maxRetryIn}, {"99999999999999999999999", maxRetryIn},
		{"-5", 0}, {"+5", 0}, {"1.5", 0}, {"soon", 0}, {"\x00", 0},
		{"Mon, 06 May 2024 07:09:09 GMT", time.Minute},
		{"Monday, 06-May-24 07:09:09 GMT", time.Minute},
		{"Mon, 06 May 2024 07:00:00 GMT", 0},
		{"Wed, 06 May 9999 07:09:09 GMT", maxRetryIn},
	} {
		if got := retryAfter(tt.in, now); got != tt.want {
			t.Errorf("retryAfter(%q) = %v, want %v", tt.in, got, tt.want)
		}
	}
}

func FuzzRetryAfter(f *testing.F) {
	f.Add("120")
	f.Add("Mon, 06 May 2024 07:09:09 GMT")
	f.Fuzz(func(t *testing.T, value string) {
		if d := retryAfter(value, t0); d < 0 || d > maxRetryIn {
			t.Errorf("retryAfter(%q) = %v", value, d)
		}
	})
}

// overTheWire sends what Request makes through net/http's own transport and
// returns the bytes that come out at the other end.
func overTheWire(t *testing.T, f *fixture, ep relay.Endpoint, l relay.Lease) string {
	t.Helper()
	near, far := net.Pipe()
	tr := &http.Transport{
		DisableCompression: true,
		DialContext: func(_ context.Context, _, address string) (net.Conn, error) {
			if address != "shop:80" {
				t.Errorf("dialled %q", address)
			}
			return near, nil
		},
	}
	raw := make(chan string, 1)
	go playApp(far, raw)
	r, err := f.inbox.Request(t.Context(), ep, l)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := tr.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	tr.CloseIdleConnections()
	return <-raw
}

// playApp reads one request, keeps its bytes and answers.
func playApp(c net.Conn, raw chan<- string) {
	defer c.Close()
	var seen bytes.Buffer
	r, err := http.ReadRequest(bufio.NewReader(io.TeeReader(c, &seen)))
	if err == nil {
		_, err = io.Copy(io.Discard, r.Body)
	}
	if err != nil {
		raw <- err.Error()
		return
	}
	io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	raw <- seen.String()
}

func TestTheAppSeesTheSendersOwnBytes(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	body := "{ \"a\" :1}\r\n\x00\xff" + strings.Repeat("z", 100_000)
	in := incoming(body)
	in.Target = "/a%2Fb|c?x=%7b&y={&x=1"
	in.ReceivedAt = time.Date(2024, 5, 6, 9, 8, 9, 120_456, time.FixedZone("", 7200))
	in.Header = http.Header{
		"Stripe-Signature": {"t=1,v1=ab"}, "X-Twice": {"b", "a"}, "X-Odd": {"\x80\xff ünï"},
		"Content-Type": {"application/json; charset=x"}, "Content-Length": {"7"}, "Connection": {"close, X-Hop"},
		"X-Hop": {"1"}, "Te": {"trailers"}, "Transfer-Encoding": {"chunked"}, "Expect": {"100-continue"}, "Upgrade": {"h2c"},
		"Postern-Verified": {"true"}, "Postern-Anything": {"1"}, "Postern_verified": {"true"}, "Postern_Event-Id": {"evt_forged"},
		"X-Forwarded-For": {"6.6.6.6"}, "X_forwarded_host": {"evil"}, "X-Forwarded-Proto": {"http"},
		"Bad Name": {"1"}, "X-Bad-Value": {"a\r\nb"}, "": {"nothing"},
	}
	l := f.inbox.Draft(f.ep, in, relay.Verdict{OK: true, Verified: false})
	got := overTheWire(t, f, f.ep, l)
	head, gotBody, _ := strings.Cut(got, "\r\n\r\n")
	if gotBody != body {
		t.Errorf("the body of %d bytes became %d bytes", len(body), len(gotBody))
	}
	lines := strings.Split(head, "\r\n")
	if want := "POST /webhooks/stripe/a%2Fb|c?x=%7b&y={&x=1 HTTP/1.1"; lines[0] != want {
		t.Errorf("request line %q, want %q", lines[0], want)
	}
	id := regexp.MustCompile(`^(Postern-Request-Id: req_|Traceparent: 00-)[0-9a-z-]+$`)
	var rest []string
	for _, line := range lines[1:] {
		if !id.MatchString(line) {
			rest = append(rest, line)
		}
	}
	slices.Sort(rest)
	want := []string{
		"Content-Length: 100013",
		"Content-Type: application/json; charset=x",
		"Host: hooks.example",
		"Idempotency-Key: " + string(l.Event.ID),
		"Postern-Attempt: 1",
		"Postern-Delivery-Id: " + string(l.Delivery.ID),
		"Postern-Endpoint: stripe",
		"Postern-Event-Id: " + string(l.Event.ID),
		"Postern-Received-At: 2024-05-06T07:08:09.00012Z",
		"Postern-Verified: false",
		"Stripe-Signature: t=1,v1=ab",
		"X-Forwarded-For: 203.0.113.9",
		"X-Forwarded-Host: hooks.example",
		"X-Forwarded-Proto: https",
		"X-Odd: \x80\xff ünï",
		"X-Twice: a",
		"X-Twice: b",
	}
	if !slices.Equal(rest, want) {
		t.Errorf("header lines\n%q\nwant\n%q", rest, want)
	}
	if b, a := strings.Index(head, "X-Twice: b"), strings.Index(head, "X-Twice: a"); b > a {
		t.Error("the values of one name changed their order")
	}
	if len(rest)+2 != len(lines)-1 {
		t.Errorf("want one Postern-Request-Id and one Traceparent in %q", lines)
	}
}

func TestWhatTheSenderSaidAboutIdentityStays(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	in := incoming("")
	in.Header = http.Header{"Idempotency-Key": {"theirs"}, "Traceparent": {"00-aa-bb-01"}, "User-Agent": {"Stripe/1.0"}}
	got := overTheWire(t, f, f.ep, f.inbox.Draft(f.ep, in, relay.Verdict{Verified: true}))
	for _, want := range []string{
		"Idempotency-Key: theirs\r\n", "Traceparent: 00-aa-bb-01\r\n", "User-Agent: Stripe/1.0\r\n",
		"Postern-Verified: true\r\n", "POST /webhooks/stripe HTTP/1.1\r\n", "Content-Length: 0\r\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in %q", want, got)
		}
	}
}

// With an Idempotency-Key net/http would send the event a second time by
// itself when a reused connection breaks.
func TestNetHTTPDoesNotRepeatAnEventByItself(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	r, err := f.inbox.Request(t.Context(), f.ep, f.inbox.Draft(f.ep, incoming("1"), relay.Verdict{}))
	if err != nil || r.GetBody != nil {
		t.Errorf("GetBody is set; error %v", err)
	}
}

func TestTraceparent(t *testing.T) {
	t.Parallel()
	d := relay.Delivery{ID: "dlv_1", Event: "evt_1", LeaseGen: 1}
	first := traceparent(d)
	if !regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-01$`).MatchString(first) {
		t.Errorf("traceparent %q", first)
	}
	d.LeaseGen = 2
	second := traceparent(d)
	if first[:35] != second[:35] || first == second {
		t.Errorf("%q and %q, want one trace and two spans", first, second)
	}
}

func TestAppURL(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ path, target, want string }{
		{"/hooks", "", "/hooks"},
		{"/hooks", "?", "/hooks?"},
		{"/hooks", "?a=1&a=%20", "/hooks?a=1&a=%20"},
		{"/hooks", "/", "/hooks/"},
		{"/hooks", "/x/y%2Fz", "/hooks/x/y%2Fz"},
		{"/hooks/", "/x", "/hooks/x"},
		{"/", "", "/"},
		{"/", "//evil.example/x", "//evil.example/x"},
		{"", "", "/"},
		{"/a", "/x?y?z", "/a/x?y?z"},
		{"/a", "/ü", "/a/ü"},
		{"/a", "/%zz", "/a/%zz"},
	} {
		u := appURL("shop", tt.path, tt.target)
		if got := u.RequestURI(); got != tt.want || u.Host != "shop" || u.Scheme != "http" {
			t.Errorf("appURL(%q, %q) is %q at %q, want %q", tt.path, tt.target, got, u.Host, tt.want)
		}
	}
}

func TestSafeTarget(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		target string
		want   bool
	}{
		{"", true}, {"?a=../b", true}, {"/", true}, {"/a/b", true}, {"/a..b/...", true}, {"/.well-known", true}, {"//a", true},
		{"admin", false}, {"/..", false}, {"/../admin", false}, {"/a/../../admin", false}, {"/%2e%2E/admin", false},
		{"/a%2f..%2f..%2fadmin", false}, {`/..\admin`, false}, {`/a%5C..`, false}, {"/./a", false}, {"/%zz", false},
	} {
		if got := safeTarget(tt.target); got != tt.want {
			t.Errorf("safeTarget(%q) = %v, want %v", tt.target, got, tt.want)
		}
	}
}

func FuzzRequest(f *testing.F) {
	f.Add("POST", "/a?b", "https://h/x", "X-A", "1", "X-A", "2")
	f.Add("", "//", "::", "Postern_Verified", "true", "", "\x00")
	f.Add("B\x00D", "\x7f", "http://[", "connection", ",,x", "X", "\r\n")
	f.Fuzz(func(t *testing.T, method, target, public, n1, v1, n2, v2 string) {
		fx := newFixture(t)
		l := relay.Lease{Event: relay.Event{
			App: testApp, Method: method, Target: target, PublicURL: public,
			Header: []relay.Field{{Name: n1, Value: v1}, {Name: n2, Value: v2}},
		}}
		r, err := fx.inbox.Request(t.Context(), fx.ep, l)
		if err != nil {
			return
		}
		if r.URL.Host != string(testApp) || r.Header.Get("Postern-Verified") != "false" {
			t.Errorf("request %+v", r)
		}
		for name, values := range r.Header {
			folded := strings.ReplaceAll(strings.ToLower(name), "_", "-")
			if folded == "postern-verified" && (len(values) != 1 || values[0] != "false") {
				t.Errorf("the sender set %s: %q", name, values)
			}
		}
	})
}
