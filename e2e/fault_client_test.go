package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"
)

// seen is what a client saw of one request.
type seen struct {
	Status int    // 0: no answer
	Code   string // of the relay's own answers: reset, no_agent, ...
	Header http.Header
	Body   []byte // as far as it came
	Err    error  // nil only when the answer was complete
	From   time.Time
	Took   time.Duration
}

// String sums it up for counting and for messages: "200", "502 reset", "cut
// after 12 bytes of a 200: …".
func (s seen) String() string {
	switch {
	case s.Err != nil && s.Status == 0:
		return "no answer: " + s.Err.Error()
	case s.Err != nil:
		return fmt.Sprintf("cut after %d bytes of a %d: %v", len(s.Body), s.Status, s.Err)
	case s.Code != "":
		return fmt.Sprintf("%d %s", s.Status, s.Code)
	}
	return fmt.Sprint(s.Status)
}

// kind is String without what differs from one request to the next.
func (s seen) kind() string {
	switch {
	case s.Err != nil && s.Status == 0:
		return "no answer"
	case s.Err != nil:
		return "cut"
	}
	return s.String()
}

// ok reports a complete 200.
func (s seen) ok() bool { return s.Err == nil && s.Status == http.StatusOK }

// within bounds every request of a caller.
const callWithin = 30 * time.Second

// caller is one HTTP/1.1 client on one kept-alive connection. Unlike net/http's
// it never sends a request a second time by itself, so that what it counts is
// what the relay did. It is used by one goroutine.
type caller struct {
	addr, host string
	conn       net.Conn
	br         *bufio.Reader
}

// call makes a request and reads the answer to its end.
func (c *caller) call(method, target string, header http.Header, body []byte) seen {
	s := seen{From: time.Now()}
	resp, err := c.begin(method, target, header, body)
	if err != nil {
		s.Err = err
	} else {
		s.Status, s.Header = resp.StatusCode, resp.Header
		s.Body, s.Err = io.ReadAll(resp.Body)
		s.Code = refusalCode(s.Body)
	}
	s.Took = time.Since(s.From)
	if s.Err != nil || resp.Close {
		c.close()
	}
	return s
}

// begin makes a request and reads the head of its answer; the body is the
// caller's to read.
func (c *caller) begin(method, target string, header http.Header, body []byte) (*http.Response, error) {
	if err := c.connect(); err != nil {
		return nil, err
	}
	req, err := http.NewRequest(method, "http://"+c.host+target, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	for name, values := range header {
		req.Header[name] = values
	}
	if err := req.Write(c.conn); err != nil {
		return nil, err
	}
	return http.ReadResponse(c.br, req)
}

func (c *caller) connect() (err error) {
	if c.conn == nil {
		if c.conn, err = net.DialTimeout("tcp", c.addr, callWithin); err != nil {
			return err
		}
		c.br = bufio.NewReader(c.conn)
	}
	return c.conn.SetDeadline(time.Now().Add(callWithin))
}

func (c *caller) close() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

// refusalCode is error.code of the relay's own answers, "" for any other body.
func refusalCode(body []byte) string {
	var a struct {
		Error struct{ Code string }
	}
	if json.Unmarshal(body, &a) != nil {
		return ""
	}
	return a.Error.Code
}

// ask is one request on a connection of its own.
func ask(addr, host, target string) seen {
	c := &caller{addr: addr, host: host}
	defer c.close()
	return c.call(http.MethodGet, target, nil, nil)
}

// asking is ask in a goroutine of its own.
func asking(addr, host, target string) <-chan seen {
	out := make(chan seen, 1)
	go func() { out <- ask(addr, host, target) }()
	return out
}

// askEvery starts a request at every tick until ctx ends, whatever became of
// those before, and hands each to report when it is over. It returns when all
// are.
func askEvery(ctx context.Context, every time.Duration, addr, host, target string, report func(seen)) {
	var running sync.WaitGroup
	defer running.Wait()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		running.Go(func() { report(ask(addr, host, target)) })
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// tally counts what clients saw by kind. It is safe for concurrent use.
type tally struct {
	mu  sync.Mutex
	all []seen
}

func (y *tally) add(s seen) {
	y.mu.Lock()
	y.all = append(y.all, s)
	y.mu.Unlock()
}

func (y *tally) list() []seen {
	y.mu.Lock()
	defer y.mu.Unlock()
	return append([]seen(nil), y.all...)
}

// String is "200 ×812, 502 reset ×3".
func (y *tally) String() string {
	counts, order := map[string]int{}, []string(nil)
	for _, s := range y.list() {
		if counts[s.kind()]++; counts[s.kind()] == 1 {
			order = append(order, s.kind())
		}
	}
	var parts []string
	for _, k := range order {
		parts = append(parts, fmt.Sprintf("%s ×%d", k, counts[k]))
	}
	return strings.Join(parts, ", ")
}

// failures are the requests that were not answered with a complete 200.
func (y *tally) failures() []seen {
	var out []seen
	for _, s := range y.list() {
		if !s.ok() {
			out = append(out, s)
		}
	}
	return out
}

// awaitAbort reads r to its end, which must be an abort.
func awaitAbort(r io.Reader) error {
	n, err := io.Copy(io.Discard, r)
	switch {
	case err == nil:
		return fmt.Errorf("a clean end after %d bytes", n)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return nil
	}
	return fmt.Errorf("neither an end nor an abort after %d bytes: %w", n, err)
}
