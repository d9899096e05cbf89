package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/e2e/rig"
)

// line is a header line as it was on the wire, without blanks around the value.
type line struct{ name, value string }

// rawRequest is a request as an app got it, before anything has made sense of it.
type rawRequest struct {
	first string // the request line
	lines []line
	body  []byte
}

// values are those of all lines of a name, in their order.
func (r rawRequest) values(name string) []string { return valuesOf(r.lines, name) }

func valuesOf(lines []line, name string) []string {
	var values []string
	for _, l := range lines {
		if strings.EqualFold(l.name, name) {
			values = append(values, l.value)
		}
	}
	return values
}

func (r rawRequest) value(name string) string { return strings.Join(r.values(name), ", ") }

func readRawRequest(in *bufio.Reader) (r rawRequest, err error) {
	if r.first, err = rawLine(in); err != nil {
		return r, err
	}
	for {
		text, err := rawLine(in)
		if err != nil {
			return r, err
		}
		if text == "" {
			break
		}
		name, value, _ := strings.Cut(text, ":")
		r.lines = append(r.lines, line{name, strings.Trim(value, " \t")})
	}
	switch {
	case r.value("Transfer-Encoding") == "chunked":
		if r.body, err = io.ReadAll(httputil.NewChunkedReader(in)); err == nil {
			_, err = rawLine(in) // behind the last chunk
		}
	case len(r.values("Content-Length")) == 1:
		var n int
		if n, err = strconv.Atoi(r.value("Content-Length")); err == nil {
			r.body = make([]byte, n)
			_, err = io.ReadFull(in, r.body)
		}
	default:
		err = fmt.Errorf("a request without one length: %q", r.lines)
	}
	return r, err
}

// rawLine is the next line, which must end with CR LF.
func rawLine(in *bufio.Reader) (string, error) {
	text, err := in.ReadString('\n')
	if err != nil {
		return "", err
	}
	text, ok := strings.CutSuffix(text, "\r\n")
	if !ok {
		return "", fmt.Errorf("a line that does not end with CR LF: %q", text)
	}
	return text, nil
}

// rawApp is an app on a bare socket.
type rawApp struct {
	got chan rawRequest
	// refuses says which requests are answered 500; nil none.
	refuses func(rawRequest) bool
}

func newRawApp() *rawApp { return &rawApp{got: make(chan rawRequest, 16<<10)} }

// serve answers requests on one connection until it ends.
func (a *rawApp) serve(t testing.TB) func(net.Conn) {
	return func(conn net.Conn) {
		in := bufio.NewReaderSize(conn, 64<<10)
		for {
			r, err := readRawRequest(in)
			if err != nil {
				var cut *net.OpError
				if !errors.As(err, &cut) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Errorf("the app cannot read what it gets: %v", err)
				}
				return
			}
			refused := a.refuses != nil && a.refuses(r)
			a.got <- r
			answer := "HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\nthe app's word"
			if refused {
				answer = "HTTP/1.1 500 Not Now\r\nContent-Length: 0\r\n\r\n"
			}
			if _, err := io.WriteString(conn, answer); err != nil {
				return
			}
		}
	}
}

func (a *rawApp) next(t *testing.T) rawRequest {
	t.Helper()
	return rig.Receive(t, deliversWithin, "delivery to the app", a.got)
}

// hostile is one odd webhook.
type hostile struct {
	name    string
	rest    string // behind the endpoint's path, as it is in the request line
	lines   []line
	body    []byte
	version string // HTTP/1.1 when empty
	// chunks is the body as it is on the wire, where it goes in chunks.
	chunks []byte
	// noLength sends neither a length nor chunks.
	noLength bool
	// absolute puts the relay's address into the request line.
	absolute bool
	// write sends head and body in its own way; nil sends them at once.
	write func(t *testing.T, conn *net.TCPConn, in *bufio.Reader, head string, body []byte)

	status int // of the refusal; 0 is taken
	code   string
}

// request is the head and the body as they go onto the wire.
func (h hostile) request(addr, endpoint string, more []line) (head string, body []byte) {
	version := h.version
	if version == "" {
		version = "HTTP/1.1"
	}
	origin := ""
	if h.absolute {
		origin = "http://" + addr
	}
	var b strings.Builder
	fmt.Fprintf(&b, "POST %s/hooks/shop/%s%s %s\r\nHost: %s\r\n", origin, endpoint, h.rest, version, addr)
	for _, l := range slices.Concat(h.lines, more) {
		fmt.Fprintf(&b, "%s: %s\r\n", l.name, l.value)
	}
	body = h.body
	switch {
	case h.chunks != nil:
		b.WriteString("Transfer-Encoding: chunked\r\n")
		body = h.chunks
	case !h.noLength:
		fmt.Fprintf(&b, "Content-Length: %d\r\n", len(h.body))
	}
	b.WriteString("\r\n")
	return b.String(), body
}

// send sends h over a connection of its own and returns the answer.
func (h hostile) send(t *testing.T, r *rig.Relay, endpoint string, more ...line) (*http.Response, []byte) {
	t.Helper()
	conn := r.Dial(t, callWithin)
	defer conn.Close()
	in := bufio.NewReader(conn)
	head, body := h.request(r.Addr, endpoint, more)
	if h.write != nil {
		h.write(t, conn, in, head, body)
	} else if _, err := conn.Write(append([]byte(head), body...)); err != nil && h.status == 0 {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(in, &http.Request{Method: http.MethodPost})
	if err != nil {
		t.Fatalf("read the answer: %v", err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("read the answer: %v after %q", err, answer)
	}
	if resp.Close {
		// The relay must not wait for the rest of a body that it does not want.
		_, err := io.Copy(io.Discard, in)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the connection stays open behind an answer that closes it")
		}
	} else if h.code == "too_large" {
		t.Errorf("a connection with the rest of a body in it stays in use")
	}
	return resp, answer
}

// ofTheRelay are names that the relay says something under, or that belong to
// one connection. All others are the sender's.
var ofTheRelay = []string{
	"Host", "Content-Length", "Transfer-Encoding", "Connection", "Keep-Alive", "Expect", "Te", "Trailer",
	"Idempotency-Key", "Traceparent", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host",
}

func isOfTheRelay(name string) bool {
	return strings.HasPrefix(strings.ToLower(name), "postern-") ||
		slices.ContainsFunc(ofTheRelay, func(n string) bool { return strings.EqualFold(n, name) })
}

// checkArrival compares what the app got with what was sent: the target, every
// line, and the body, byte for byte; and that nothing was invented.
func checkArrival(t *testing.T, h hostile, sent []line, got rawRequest) {
	t.Helper()
	if want := "POST /in" + h.rest + " HTTP/1.1"; got.first != want {
		t.Errorf("the app got %.300q, expected %.300q", got.first, want)
	}
	if !bytes.Equal(got.body, h.body) {
		t.Errorf("a body of %d bytes arrived as %d bytes: %s", len(h.body), len(got.body), firstDifference(h.body, got.body))
	}
	checked := map[string]bool{}
	for _, l := range slices.Concat(sent, got.lines) {
		name := strings.ToLower(l.name)
		if isOfTheRelay(name) || checked[name] {
			continue
		}
		checked[name] = true
		want, arrived := valuesOf(sent, l.name), got.values(l.name)
		if !slices.Equal(want, arrived) {
			t.Errorf("%s: sent %.200q, arrived %.200q", l.name, want, arrived)
		}
	}
}

func firstDifference(a, b []byte) string {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return fmt.Sprintf("byte %d is %#x instead of %#x", i, b[i], a[i])
		}
	}
	return fmt.Sprintf("%d bytes are the same", min(len(a), len(b)))
}

// slowly sends the body in pieces with pauses between them.
func slowly(t *testing.T, conn *net.TCPConn, _ *bufio.Reader, head string, body []byte) {
	t.Helper()
	pause := time.NewTicker(20 * time.Millisecond)
	defer pause.Stop()
	for piece := range slices.Chunk(append([]byte(head), body...), 1+(len(head)+len(body))/20) {
		if _, err := conn.Write(piece); err != nil {
			t.Fatal(err)
		}
		<-pause.C
	}
}

// whenTold sends the body when the relay has asked for it.
func whenTold(t *testing.T, conn *net.TCPConn, in *bufio.Reader, head string, body []byte) {
	t.Helper()
	io.WriteString(conn, head)
	resp, err := http.ReadResponse(in, &http.Request{Method: http.MethodPost})
	if err != nil || resp.StatusCode != http.StatusContinue {
		t.Fatalf("no 100 Continue: %v, %v", resp, err)
	}
	if _, err := conn.Write(body); err != nil {
		t.Fatal(err)
	}
}

// cutShort sends half of the body and no more.
func cutShort(t *testing.T, conn *net.TCPConn, _ *bufio.Reader, head string, body []byte) {
	t.Helper()
	io.WriteString(conn, head)
	conn.Write(body[:len(body)/2])
	conn.CloseWrite()
}
