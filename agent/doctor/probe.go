package doctor

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// What the doctor says to an app, and why no more.
//
// An app with a health path is asked for it: that is what the path is for. TLS shows
// itself in the answer.
//
// An app without one is never sent a whole request: a handler would run, and "/" may
// be dear, or write. It is sent the five bytes "GET /" on one connection, once for
// each listener. Five bytes are the header of a TLS record, so
// whoever expects TLS reacts at once, with an alert, a sentence or by hanging up. An
// HTTP server has seen the beginning of a good request and waits for the rest; when
// we hang up instead, servers call no handler, and those made for production write
// nothing to their log. (Python's http.server, and development servers made from it,
// take it for a request of HTTP/0.9 and answer it: one line in their log.) A bare ClientHello would prove TLS
// in one step, but every HTTP server complains about it as a malformed request. It is
// sent only to who reacted, and its answer is the proof.

// userAgent is how the doctor is known in an app's access log.
const userAgent = "postern-doctor/1"

const (
	whisperTime = 750 * time.Millisecond // for the reaction to five bytes
	helloTime   = 2 * time.Second        // for the answer to a ClientHello
	askTime     = 5 * time.Second        // for the health path
	maxBody     = 4 << 10                // bytes of an answer that are looked at
)

type dialFunc func(ctx context.Context, addr netip.AddrPort) (net.Conn, error)

// whisper sends the beginning of a request and reports whether the other side
// reacted to it. It closes the connection.
func whisper(ctx context.Context, conn net.Conn) (reacted bool) {
	defer conn.Close()
	defer closeWith(ctx, conn)()
	conn.SetDeadline(time.Now().Add(whisperTime))
	if _, err := io.WriteString(conn, "GET /"); err != nil {
		return false
	}
	_, err := conn.Read(make([]byte, 1))
	var netErr net.Error
	return ctx.Err() == nil && (err == nil || !errors.As(err, &netErr) || !netErr.Timeout())
}

// speaksTLS sends a ClientHello on a connection of its own. Only a TLS record in
// return is proof.
func speaksTLS(ctx context.Context, dial dialFunc, addr netip.AddrPort) bool {
	ctx, cancel := context.WithTimeout(ctx, helloTime)
	defer cancel()
	conn, err := dial(ctx, addr)
	if err != nil {
		return false
	}
	defer conn.Close()
	tape := &firstBytes{Conn: conn}
	client := tls.Client(tape, &tls.Config{InsecureSkipVerify: true, ServerName: "localhost"}) // nothing is said on it
	if client.HandshakeContext(ctx) == nil {
		client.Close()
		return true
	}
	return isTLS(tape.seen)
}

// isTLS reports whether an answer begins with the header of a TLS alert or handshake.
func isTLS(b []byte) bool {
	return len(b) >= 3 && (b[0] == 0x15 || b[0] == 0x16) && b[1] == 3 && b[2] <= 4
}

// firstBytes remembers how the other side began.
type firstBytes struct {
	net.Conn
	seen []byte
}

func (f *firstBytes) Read(p []byte) (int, error) {
	n, err := f.Conn.Read(p)
	if room := 8 - len(f.seen); room > 0 {
		f.seen = append(f.seen, p[:min(n, room)]...)
	}
	return n, err
}

// answer is what came back for the health path.
type answer struct {
	host   string
	status int    // 0: no HTTP answer
	body   []byte // its beginning
	tls    bool   // it was a TLS record, or the complaint of a TLS server
	err    error  // why there is no status
}

func (a *answer) good() bool { return a != nil && a.status >= 200 && a.status < 400 }

func (a *answer) String() string {
	switch {
	case a.status != 0:
		return fmt.Sprintf("%d %s", a.status, http.StatusText(a.status))
	case a.tls:
		return "a TLS record"
	}
	var netErr net.Error
	switch {
	case errors.As(a.err, &netErr) && netErr.Timeout():
		return fmt.Sprintf("nothing within %v", askTime)
	case errors.Is(a.err, io.EOF), errors.Is(a.err, io.ErrUnexpectedEOF):
		return "a closed connection"
	}
	return "no HTTP"
}

// ask sends GET path on a fresh connection and closes it.
func ask(ctx context.Context, dial dialFunc, addr netip.AddrPort, host, path string) *answer {
	a := &answer{host: host}
	conn, err := dial(ctx, addr)
	if err != nil {
		a.err = err
		return a
	}
	defer conn.Close()
	defer closeWith(ctx, conn)()
	conn.SetDeadline(time.Now().Add(askTime))
	tape := &firstBytes{Conn: conn}
	resp, err := request(tape, host, path, "close")
	if err != nil {
		a.err, a.tls = err, isTLS(tape.seen)
		return a
	}
	defer resp.Body.Close()
	a.status = resp.StatusCode
	a.body, _ = io.ReadAll(io.LimitReader(resp.Body, maxBody))
	a.tls = resp.StatusCode == http.StatusBadRequest && bytes.Contains(bytes.ToLower(a.body), []byte("https"))
	return a
}

// request writes a GET and reads the head of the answer. Interim answers (1xx) are
// passed over.
func request(conn net.Conn, host, path, connection string) (*http.Response, error) {
	_, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: %s\r\nAccept: */*\r\nConnection: %s\r\n\r\n",
		path, host, userAgent, connection)
	if err != nil {
		return nil, err
	}
	reader := bufio.NewReader(io.LimitReader(conn, 64<<10))
	for range 8 {
		resp, err := http.ReadResponse(reader, nil)
		if err != nil || resp.StatusCode >= 200 {
			return resp, err
		}
	}
	return nil, errors.New("nothing but interim answers")
}

// usablePath is path as it may stand in a request line, "" when it may not.
func usablePath(path string) string {
	if path == "" {
		return ""
	}
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	for i := range len(path) {
		if path[i] <= 0x20 || path[i] >= 0x7f {
			return ""
		}
	}
	return path
}

// idleTime asks the health path, keeps the connection and returns how long the app
// did so. ok is false when that says nothing: no answer, an app that announced it
// would close, or one that kept it until limit.
func idleTime(ctx context.Context, dial dialFunc, addr netip.AddrPort, host, path string, limit time.Duration) (held time.Duration, ok bool) {
	conn, err := dial(ctx, addr)
	if err != nil {
		return 0, false
	}
	defer conn.Close()
	defer closeWith(ctx, conn)()
	conn.SetDeadline(time.Now().Add(askTime))
	resp, err := request(conn, host, path, "keep-alive")
	if err != nil {
		return 0, false
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, io.LimitReader(resp.Body, maxBody*16))
	if err != nil || n == maxBody*16 || resp.Close || resp.ContentLength < 0 && len(resp.TransferEncoding) == 0 {
		return 0, false
	}
	since := time.Now()
	conn.SetDeadline(since.Add(limit))
	n64, err := conn.Read(make([]byte, 1))
	if n64 > 0 || err == nil || ctx.Err() != nil {
		return 0, false
	}
	var netErr net.Error
	if errors.As(err, &netErr) && netErr.Timeout() {
		return 0, false
	}
	return time.Since(since), true
}

// closeWith closes conn when ctx ends; the function it returns ends that.
func closeWith(ctx context.Context, conn net.Conn) func() {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	return func() { stop() }
}
