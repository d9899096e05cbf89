package egress

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// webConn is a connection in net/http's hands. What net/http answers by itself, to a
// head that it cannot read, gets the form of our answers.
type webConn struct {
	net.Conn
	proxy *Proxy
	rest  []byte // owned by the reader: what was read before net/http had it

	handling atomic.Bool // from the handler's start to the end of its answer
	begun    atomic.Bool // a request has begun to arrive since
	abort    atomic.Bool // the answer was cut
	closed   sync.Once
}

func (c *webConn) idle() {
	c.begun.Store(false)
	c.handling.Store(false)
}

func (c *webConn) Read(b []byte) (int, error) {
	if len(c.rest) > 0 {
		n := copy(b, c.rest)
		if c.rest = c.rest[n:]; len(c.rest) == 0 {
			c.rest = nil
		}
		c.begun.Store(true)
		return n, nil
	}
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.begun.Store(true)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) && c.begun.Load() && !c.handling.Swap(true) {
		writeError(c.Conn, &headError{status: http.StatusRequestTimeout, message: "the request took too long to arrive"})
	}
	return n, err
}

func (c *webConn) Write(b []byte) (int, error) {
	if c.handling.Load() {
		return c.Conn.Write(b)
	}
	head, text, _ := bytes.Cut(b, []byte("\r\n\r\n"))
	status := http.StatusBadRequest
	if fields := strings.Fields(string(head)); len(fields) > 1 {
		if n, err := strconv.Atoi(fields[1]); err == nil && n >= 400 && n < 600 {
			status = n
		}
	}
	writeError(c.Conn, &headError{status: status, message: "the request cannot be read: " + strings.ToLower(string(text))})
	return len(b), nil
}

// CloseWrite ends the direction towards the app.
func (c *webConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

func (c *webConn) Close() error {
	c.closed.Do(func() {
		if c.abort.Load() {
			cut(c.Conn)
		}
		c.proxy.forget(c.Conn)
	})
	return nil
}

// enter counts a handler that Run waits for; false when the proxy is stopping.
func (p *Proxy) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.serving.Add(1)
	return true
}

// context ends with the proxy. It is for what goes on when net/http has done its part.
func (p *Proxy) context() context.Context { return p.ctx }

// answerBuffers lends the buffers that answers are copied with.
type answerBuffers struct{}

func (answerBuffers) Get() []byte  { return lendBuffer()[:] }
func (answerBuffers) Put(b []byte) { returnBuffer((*copyBuffer)(b)) }
