package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// response is what the load generator needs to know of an answer's head.
type response struct {
	status  int
	length  int64 // body bytes; chunked when the length comes with the body
	chunked bool
	closes  bool // the server closes the connection after this answer
}

// responseReader reads HTTP/1.1 answers from one connection. It is a load
// generator's parser and not a validating one: it knows the status line,
// Content-Length, chunked bodies, interim answers and Connection: close, and
// whatever it does not know is an error rather than a guess. The whole head
// must fit the buffer. It allocates nothing per answer.
type responseReader struct {
	source io.Reader
	buf    []byte
	r, w   int // buf[r:w] is read from source and not consumed yet
}

// bodySink takes the pieces of a body as they arrive; a piece is valid only
// during the call.
type bodySink interface {
	take(piece []byte)
}

func newResponseReader(source io.Reader, size int) *responseReader {
	return &responseReader{source: source, buf: make([]byte, size)}
}

// head reads the next final answer's head and skips interim ones (1xx).
func (r *responseReader) head() (response, error) {
	for {
		raw, err := r.until("\r\n\r\n")
		if err != nil {
			return response{}, fmt.Errorf("read head: %w", err)
		}
		head, err := parseHead(raw)
		if err != nil {
			return response{}, err
		}
		if head.status >= 200 {
			return head, nil
		}
	}
}

// body hands the body that follows head to sink. It returns an error when the
// connection ends before the body does.
func (r *responseReader) body(head response, sink bodySink) error {
	if !head.chunked {
		return r.exactly(head.length, sink)
	}
	for {
		line, err := r.until("\r\n")
		if err != nil {
			return fmt.Errorf("read chunk size: %w", err)
		}
		size, err := parseChunkSize(line)
		if err != nil {
			return err
		}
		if size == 0 {
			return r.trailers()
		}
		if err := r.exactly(size, sink); err != nil {
			return err
		}
		if end, err := r.until("\r\n"); err != nil || len(end) > 0 {
			return errors.Join(errors.New("chunk without its end"), err)
		}
	}
}

// exactly passes n bytes on to sink.
func (r *responseReader) exactly(n int64, sink bodySink) error {
	left := n
	for left > 0 {
		if r.r == r.w {
			if err := r.fill(); err != nil {
				return fmt.Errorf("body ended %d of %d bytes early: %w", left, n, err)
			}
		}
		piece := r.buf[r.r:min(r.w, r.r+int(min(left, int64(len(r.buf)))))]
		sink.take(piece)
		r.r += len(piece)
		left -= int64(len(piece))
	}
	return nil
}

// trailers consumes the lines after the last chunk.
func (r *responseReader) trailers() error {
	for {
		line, err := r.until("\r\n")
		if err != nil {
			return fmt.Errorf("read trailers: %w", err)
		}
		if len(line) == 0 {
			return nil
		}
	}
}

// until consumes up to and including mark and returns what stood before it,
// valid until the next read.
func (r *responseReader) until(mark string) ([]byte, error) {
	searched := 0
	for {
		from := max(r.r, r.r+searched-len(mark)+1)
		if i := bytes.Index(r.buf[from:r.w], []byte(mark)); i >= 0 {
			found := r.buf[r.r : from+i]
			r.r = from + i + len(mark)
			return found, nil
		}
		searched = r.w - r.r
		if err := r.fill(); err != nil {
			return nil, err
		}
	}
}

// fill reads more into the buffer. The end of the connection is always
// unexpected here, because fill is only called when something is missing.
func (r *responseReader) fill() error {
	if r.r > 0 {
		r.w = copy(r.buf, r.buf[r.r:r.w])
		r.r = 0
	}
	if r.w == len(r.buf) {
		return fmt.Errorf("more than %d bytes of head or chunk size", len(r.buf))
	}
	n, err := r.source.Read(r.buf[r.w:])
	r.w += n
	if n > 0 {
		return nil
	}
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

var (
	crlf             = []byte("\r\n")
	contentLength    = []byte("Content-Length")
	transferEncoding = []byte("Transfer-Encoding")
	connection       = []byte("Connection")
	chunkedCoding    = []byte("chunked")
	closeOption      = []byte("close")
)

// parseHead reads a head without its final empty line.
func parseHead(raw []byte) (response, error) {
	head := response{length: -1}
	line, rest, _ := bytes.Cut(raw, crlf)
	if len(line) < len("HTTP/1.1 200") || !bytes.HasPrefix(line, []byte("HTTP/1.1 ")) {
		return head, fmt.Errorf("not a status line: %q", line)
	}
	var err error
	if head.status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return head, fmt.Errorf("not a status line: %q", line)
	}
	for len(rest) > 0 {
		line, rest, _ = bytes.Cut(rest, crlf)
		if err := head.field(line); err != nil {
			return head, err
		}
	}
	bodiless := head.status < 200 || head.status == 204 || head.status == 304
	if bodiless {
		head.length, head.chunked = 0, false
	}
	if head.length < 0 && !head.chunked {
		return head, fmt.Errorf("status %d without Content-Length or chunks", head.status)
	}
	return head, nil
}

// field takes over one header field, if it is one of the three that matter.
func (h *response) field(line []byte) error {
	name, value, ok := bytes.Cut(line, []byte(":"))
	if !ok {
		return fmt.Errorf("not a header field: %q", line)
	}
	value = bytes.TrimSpace(value)
	switch {
	case len(name) == len(contentLength) && bytes.EqualFold(name, contentLength):
		n, err := strconv.ParseInt(string(value), 10, 64)
		if err != nil || n < 0 {
			return fmt.Errorf("not a length: %q", line)
		}
		h.length = n
	case len(name) == len(transferEncoding) && bytes.EqualFold(name, transferEncoding):
		if !bytes.EqualFold(value, chunkedCoding) {
			return fmt.Errorf("unknown transfer coding: %q", value)
		}
		h.chunked = true
	case len(name) == len(connection) && bytes.EqualFold(name, connection):
		h.closes = bytes.EqualFold(value, closeOption)
	}
	return nil
}

func parseChunkSize(line []byte) (int64, error) {
	size, _, _ := bytes.Cut(line, []byte(";"))
	n, err := strconv.ParseInt(string(bytes.TrimSpace(size)), 16, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("not a chunk size: %q", line)
	}
	return n, nil
}
