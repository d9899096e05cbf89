package main

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

type collected struct{ bytes.Buffer }

func (c *collected) take(piece []byte) { c.Write(piece) }

var answers = []struct {
	name, raw, body string
	status          int
	fails           string // part of the error
}{
	{name: "with a length", raw: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", status: 200, body: "hello"},
	{name: "with lower-case fields", raw: "HTTP/1.1 200 OK\r\ncontent-length:5\r\nX-A: b\r\n\r\nhello", status: 200, body: "hello"},
	{name: "with no reason phrase", raw: "HTTP/1.1 503\r\nContent-Length: 0\r\n\r\n", status: 503},
	{name: "with chunks", raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\nA;x=y\r\nlo world, \r\n0\r\n\r\n", status: 200, body: "hello world, "},
	{name: "with trailers", raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nA: b\r\nC: d\r\n\r\n", status: 200, body: "hi"},
	{name: "after interim answers", raw: "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", status: 200, body: "ok"},
	{name: "without a body by its status", raw: "HTTP/1.1 204 No Content\r\n\r\n", status: 204},
	{name: "larger than the buffer", raw: "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + strings.Repeat("x", 1000), status: 200, body: strings.Repeat("x", 1000)},
	{name: "larger than the buffer, in chunks", raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n" + strings.Repeat("x", 1000) + "\r\n0\r\n\r\n", status: 200, body: strings.Repeat("x", 1000)},

	{name: "short body", raw: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell", fails: "early"},
	{name: "short chunk", raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhell", fails: "early"},
	{name: "no last chunk", raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n", fails: "chunk size"},
	{name: "no end after the last chunk", raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", fails: "trailers"},
	{name: "chunk longer than said", raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi!\r\n0\r\n\r\n", fails: "without its end"},
	{name: "chunk size that is none", raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", fails: "not a chunk size"},
	{name: "negative chunk size", raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-2\r\n", fails: "not a chunk size"},
	{name: "head cut short", raw: "HTTP/1.1 200 OK\r\nContent-Le", fails: "unexpected EOF"},
	{name: "nothing", raw: "", fails: "unexpected EOF"},
	{name: "no length at all", raw: "HTTP/1.1 200 OK\r\n\r\nhello", fails: "without Content-Length"},
	{name: "negative length", raw: "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", fails: "not a length"},
	{name: "another coding", raw: "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", fails: "transfer coding"},
	{name: "another protocol", raw: "SSH-2.0-OpenSSH_9.9 and so on\r\n\r\n", fails: "status line"},
	{name: "status that is none", raw: "HTTP/1.1 2x0 OK\r\nContent-Length: 0\r\n\r\n", fails: "status line"},
	{name: "field without a colon", raw: "HTTP/1.1 200 OK\r\nwhat\r\n\r\n", fails: "header field"},
	{name: "head larger than the buffer", raw: "HTTP/1.1 200 OK\r\nA: " + strings.Repeat("x", 500) + "\r\n\r\n", fails: "more than"},
}

func TestResponsesAreReadHoweverTheyArrive(t *testing.T) {
	t.Parallel()
	arrivals := map[string]func(io.Reader) io.Reader{
		"at once":                         func(r io.Reader) io.Reader { return r },
		"byte by byte":                    iotest.OneByteReader,
		"in halves":                       iotest.HalfReader,
		"end of data with the last bytes": iotest.DataErrReader,
	}
	for _, answer := range answers {
		for arrival, through := range arrivals {
			in := newResponseReader(through(strings.NewReader(answer.raw)), 256)
			var body collected
			head, err := in.head()
			if err == nil {
				err = in.body(head, &body)
			}
			switch {
			case answer.fails != "" && err == nil:
				t.Errorf("%s, %s: accepted with body %q", answer.name, arrival, &body)
			case answer.fails != "" && !strings.Contains(err.Error(), answer.fails):
				t.Errorf("%s, %s: error %q does not say %q", answer.name, arrival, err, answer.fails)
			case answer.fails == "" && err != nil:
				t.Errorf("%s, %s: %v", answer.name, arrival, err)
			case answer.fails == "" && (head.status != answer.status || body.String() != answer.body):
				t.Errorf("%s, %s: status %d, body %q", answer.name, arrival, head.status, &body)
			}
		}
	}
}

func TestResponsesOfOneConnectionAreToldApart(t *testing.T) {
	t.Parallel()
	raw := "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none" +
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\n\r\n" +
		"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nthree"
	for _, source := range []io.Reader{strings.NewReader(raw), iotest.OneByteReader(strings.NewReader(raw))} {
		in := newResponseReader(source, 256)
		for _, want := range []string{"one", "two", "three"} {
			head, err := in.head()
			if err != nil {
				t.Fatalf("before %q: %v", want, err)
			}
			var body collected
			if err := in.body(head, &body); err != nil || body.String() != want {
				t.Fatalf("body %q instead of %q, error %v", &body, want, err)
			}
			if head.closes != (want == "three") {
				t.Errorf("%q: closes is %v", want, head.closes)
			}
		}
	}
}

func TestReadingResponsesAllocatesNothing(t *testing.T) {
	raw := strings.NewReader("HTTP/1.1 200 OK\r\nContent-Length: 128\r\n\r\n" + smallBody)
	in := newResponseReader(raw, smallBuffer)
	sink := &counter{}
	allocs := testing.AllocsPerRun(100, func() {
		raw.Seek(0, io.SeekStart)
		head, err := in.head()
		if err != nil {
			t.Fatal(err)
		}
		if err := in.body(head, sink); err != nil {
			t.Fatal(err)
		}
	})
	if allocs > 0 {
		t.Errorf("%v allocations per answer", allocs)
	}
}

type counter struct{ n int }

func (c *counter) take(piece []byte) { c.n += len(piece) }

func FuzzResponseReader(f *testing.F) {
	for _, answer := range answers {
		f.Add([]byte(answer.raw))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		in := newResponseReader(bytes.NewReader(raw), 256)
		var sink counter
		head, err := in.head()
		if err == nil {
			err = in.body(head, &sink)
		}
		if sink.n > len(raw) || err == nil && !head.chunked && int64(sink.n) != head.length {
			t.Errorf("%d body bytes out of %d, head %+v", sink.n, len(raw), head)
		}
	})
}
