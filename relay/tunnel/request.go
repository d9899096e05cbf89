package tunnel

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/relay"
)

// framing says how the body of a request is delimited on the wire.
type framing int

const (
	noBody framing = iota
	fixedLength
	chunkedBody
)

// framingOf picks the framing of req. A known length is kept, so that the app
// sees what the client announced; everything else is chunked.
func framingOf(req *http.Request) framing {
	switch {
	case req.Body == nil || req.Body == http.NoBody:
		return noBody
	case req.ContentLength > 0 && len(req.Trailer) == 0:
		return fixedLength
	}
	return chunkedBody
}

// checkHead refuses what would let a value break out of its line. Requests that
// came through net/http's server cannot contain it; those made inside might.
func checkHead(req *http.Request) error {
	bad := func(what string) error { return relay.Errorf(relay.Invalid, "request with an invalid %s", what) }
	if !httpguts.ValidHeaderFieldName(req.Method) { // a method is a token, like a name
		return bad("method")
	}
	if !httpguts.ValidHostHeader(req.Host) {
		return bad("host")
	}
	for name, values := range req.Header {
		if !httpguts.ValidHeaderFieldName(name) {
			return bad("header name")
		}
		for _, v := range values {
			if !httpguts.ValidHeaderFieldValue(v) {
				return bad("value of header " + name)
			}
		}
	}
	return nil
}

// writeHead writes the request line and the header (RFC 9112, section 2.1).
func writeHead(w *bufio.Writer, req *http.Request, f framing) error {
	uri := requestTarget(req.URL)
	if strings.ContainsAny(uri, " \r\n\t") {
		return relay.Errorf(relay.Invalid, "request with an invalid target")
	}
	w.WriteString(req.Method)
	w.WriteByte(' ')
	w.WriteString(uri)
	w.WriteString(" HTTP/1.1\r\n")
	writeLine(w, "Host", req.Host)
	for name, values := range req.Header {
		if ownHeader(name) {
			continue
		}
		for _, v := range values {
			if v != "" || name != "User-Agent" { // an empty one means: send none
				writeLine(w, name, v)
			}
		}
	}
	switch f {
	case fixedLength:
		writeLine(w, "Content-Length", strconv.FormatInt(req.ContentLength, 10))
	case chunkedBody:
		writeLine(w, "Transfer-Encoding", "chunked")
		if len(req.Trailer) > 0 {
			writeLine(w, "Trailer", strings.Join(trailerNames(req.Trailer), ", "))
		}
	case noBody:
		if req.Method == http.MethodPost || req.Method == http.MethodPut || req.Method == http.MethodPatch {
			writeLine(w, "Content-Length", "0")
		}
	}
	_, err := w.WriteString("\r\n")
	return err
}

// requestTarget is u's path and query for the request line. Opaque is the
// client's own spelling, where there is one. What RequestURI would do to an
// Opaque that begins with "//" is not wanted: here it is a path, never a host.
func requestTarget(u *url.URL) string {
	if u.Opaque == "" {
		return u.RequestURI()
	}
	if u.RawQuery != "" || u.ForceQuery {
		return u.Opaque + "?" + u.RawQuery
	}
	return u.Opaque
}

func writeLine(w *bufio.Writer, name, value string) {
	w.WriteString(name)
	w.WriteString(": ")
	w.WriteString(value)
	w.WriteString("\r\n")
}

// ownHeader reports the names that writeHead itself decides.
func ownHeader(name string) bool {
	switch name {
	case "Host", "Content-Length", "Transfer-Encoding", "Trailer":
		return true
	}
	return false
}

func trailerNames(h http.Header) []string {
	var names []string
	for name := range h {
		if httpguts.ValidTrailerHeader(name) {
			names = append(names, name)
		}
	}
	return names
}

// writeBody sends the body as it comes: what one read brings leaves at once.
func writeBody(w *bufio.Writer, raw io.Writer, req *http.Request, body io.Reader, f framing) error {
	if f == fixedLength {
		sent := &counter{w: raw}
		err := protocol.Copy(sent, io.LimitReader(body, req.ContentLength), nil)
		if err == nil && sent.n < req.ContentLength {
			err = fmt.Errorf("body ended after %d of %d bytes: %w", sent.n, req.ContentLength, io.ErrUnexpectedEOF)
		}
		return err
	}
	chunks := httputil.NewChunkedWriter(w)
	if err := protocol.Copy(flushing{chunks, w}, body, nil); err != nil {
		return err
	}
	if err := chunks.Close(); err != nil {
		return err
	}
	for _, name := range trailerNames(req.Trailer) { // their values came with the end of the body
		for _, v := range req.Trailer[name] {
			if httpguts.ValidHeaderFieldValue(v) {
				writeLine(w, name, v)
			}
		}
	}
	w.WriteString("\r\n")
	return w.Flush()
}

// counter counts what passes.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// flushing sends every chunk at once.
type flushing struct {
	io.Writer
	w *bufio.Writer
}

func (f flushing) Write(p []byte) (int, error) {
	n, err := f.Writer.Write(p)
	if err == nil {
		err = f.w.Flush()
	}
	return n, err
}
