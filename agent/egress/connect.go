package egress

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/posternhq/postern/protocol/policy"
)

// maxHead is the largest head of a request.
const maxHead = 32 << 10

// connectHead is what counts in the head of a CONNECT. Its Host field does not.
type connectHead struct {
	authority string // as it was sent; policy.ParseTunnel reads it
	trace     string // traceparent, "" when there is none that is valid
}

// headError is a head that is not HTTP/1 as it should be.
type headError struct {
	status  int
	message string
}

func (e *headError) Error() string { return e.message }

func badHead(format string, args ...any) error {
	return &headError{status: http.StatusBadRequest, message: fmt.Sprintf(format, args...)}
}

// readConnect reads a head that begins with CONNECT, up to and with the empty line.
// It is strict: whatever two programs could read in two ways is refused.
func readConnect(br *bufio.Reader) (connectHead, error) {
	left := maxHead
	line, err := readLine(br, &left, true)
	if err != nil {
		return connectHead{}, err
	}
	method, rest, _ := strings.Cut(string(line), " ")
	authority, version, ok := strings.Cut(rest, " ")
	if method != http.MethodConnect || !ok || version != "HTTP/1.1" && version != "HTTP/1.0" {
		return connectHead{}, badHead("expected CONNECT host:port HTTP/1.1")
	}
	head := connectHead{authority: authority}
	hosts := 0
	for {
		line, err := readLine(br, &left, false)
		if err != nil {
			return connectHead{}, err
		}
		if len(line) == 0 {
			return head, nil
		}
		name, value, err := splitField(line)
		if err != nil {
			return connectHead{}, err
		}
		switch strings.ToLower(name) {
		case "host":
			if hosts++; hosts > 1 {
				return connectHead{}, badHead("more than one Host field")
			}
		case "transfer-encoding":
			return connectHead{}, badHead("a CONNECT has no body")
		case "content-length":
			if value != "0" {
				return connectHead{}, badHead("a CONNECT has no body")
			}
		case "proxy-authorization":
			if !readableAuth(value) {
				return connectHead{}, badHead("Proxy-Authorization cannot be read")
			}
		case "traceparent":
			head.trace = validTrace(value)
		}
	}
}

// readLine returns one line without its end; it is valid until the next read. left is
// how many bytes the head may still have. A line that is longer than br's buffer is too
// long when whole is set; otherwise its first part is returned.
func readLine(br *bufio.Reader, left *int, whole bool) ([]byte, error) {
	line, err := br.ReadSlice('\n')
	full := errors.Is(err, bufio.ErrBufferFull)
	if *left -= len(line); *left < 0 || full && whole {
		return nil, errHeadTooLarge
	}
	switch {
	case full:
		line = bytes.Clone(line)
		if err := skipLine(br, left); err != nil {
			return nil, err
		}
		return line, nil
	case err == io.EOF:
		return nil, badHead("the request ended before its head was complete")
	case err != nil:
		return nil, err
	case !bytes.HasSuffix(line, []byte("\r\n")):
		return nil, badHead("a line does not end in CR LF")
	}
	return line[:len(line)-2], nil
}

var errHeadTooLarge = &headError{status: http.StatusRequestHeaderFieldsTooLarge, message: "the head of the request is too large"}

// skipLine reads to the end of a line.
func skipLine(br *bufio.Reader, left *int) error {
	for {
		line, err := br.ReadSlice('\n')
		if *left -= len(line); *left < 0 {
			return errHeadTooLarge
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
}

// splitField takes a field line apart (RFC 9112, section 5).
func splitField(line []byte) (name, value string, err error) {
	at := bytes.IndexByte(line, ':')
	if at <= 0 {
		return "", "", badHead("a line of the head is not a field")
	}
	for _, c := range line[:at] {
		if !isToken(c) {
			return "", "", badHead("a field name has byte 0x%02x", c)
		}
	}
	for _, c := range line[at+1:] {
		if c < ' ' && c != '\t' || c == 0x7f {
			return "", "", badHead("a field value has byte 0x%02x", c)
		}
	}
	return string(line[:at]), strings.Trim(string(line[at+1:]), " \t"), nil
}

// isToken reports whether c may be in a token (RFC 9110, section 5.6.2).
func isToken(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

// readableAuth reports whether value can be credentials. They are not looked at
// otherwise: who reaches the proxy is the app.
func readableAuth(value string) bool {
	scheme, rest, _ := strings.Cut(value, " ")
	if !strings.EqualFold(scheme, "basic") {
		return scheme != ""
	}
	_, err := base64.StdEncoding.DecodeString(strings.TrimSpace(rest))
	return err == nil
}

// validTrace is value when it is a traceparent of W3C Trace Context, version 00.
func validTrace(value string) string {
	parts := strings.Split(value, "-")
	if len(value) != 55 || len(parts) != 4 || parts[0] != "00" || len(parts[1]) != 32 || len(parts[2]) != 16 ||
		strings.Trim(parts[1], "0") == "" || strings.Trim(parts[2], "0") == "" ||
		strings.Trim(strings.Join(parts, ""), "0123456789abcdef") != "" {
		return ""
	}
	return value
}

// httpAnswer answers a CONNECT.
type httpAnswer struct{}

var established = []byte("HTTP/1.1 200 Connection established\r\n\r\n")

func (httpAnswer) connected(conn net.Conn) error {
	_, err := conn.Write(established)
	return err
}

func (httpAnswer) refuse(conn net.Conn, r *policy.Refusal) {
	w := &answerWriter{header: http.Header{}}
	r.WriteHTTP(w, pseudonym)
	w.send(conn)
}

// writeError answers a request that cannot be read.
func writeError(conn net.Conn, e *headError) {
	w := &answerWriter{header: http.Header{}}
	e.writeTo(w)
	w.send(conn)
}

// writeTo has the form of policy.Refusal.WriteHTTP.
func (e *headError) writeTo(w http.ResponseWriter) {
	body, _ := json.Marshal(map[string]any{"error": map[string]string{"code": "bad_request", "message": e.message}})
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Proxy-Status", pseudonym+`; error=http_request_error; details=`+strconv.Quote(e.message))
	w.WriteHeader(e.status)
	w.Write(append(body, '\n'))
}

// answerWriter is an http.ResponseWriter for a connection without net/http.
type answerWriter struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (w *answerWriter) Header() http.Header { return w.header }
func (w *answerWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
}
func (w *answerWriter) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.body.Write(b)
}

// send writes the answer; the connection is to be closed behind it.
func (w *answerWriter) send(conn net.Conn) {
	w.WriteHeader(http.StatusOK)
	w.header.Set("Content-Length", strconv.Itoa(w.body.Len()))
	w.header.Set("Connection", "close")
	if w.header.Get("Date") == "" {
		w.header.Set("Date", time.Now().UTC().Format(http.TimeFormat))
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, "HTTP/1.1 %d %s\r\n", w.status, http.StatusText(w.status))
	w.header.Write(&out)
	out.WriteString("\r\n")
	out.Write(w.body.Bytes())
	conn.SetWriteDeadline(time.Now().Add(answerTime))
	conn.Write(out.Bytes())
}
