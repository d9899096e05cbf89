package egress

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/posternhq/postern/protocol/policy"
)

const (
	// firstByteTime is how long a client may keep a connection before it says anything:
	// some open them in advance.
	firstByteTime = 2 * time.Minute
	// headTime is how long the head of a request may take from its first byte.
	headTime = 10 * time.Second
	// answerTime is how long a client may take to read an answer of ours.
	answerTime = 10 * time.Second
	// byeTime and byeBytes bound what is read of a client that was refused, so that it
	// sees the answer and not a reset.
	byeTime  = time.Second
	byeBytes = 256 << 10
)

// headBuffer is for the head of one CONNECT, and the longest request line.
const headBuffer = 4 << 10

// readers holds *bufio.Reader of headBuffer bytes: no tunnel keeps one.
var readers = sync.Pool{New: func() any { return newHeadReader(nil) }}

func newHeadReader(r io.Reader) *bufio.Reader { return bufio.NewReaderSize(r, headBuffer) }

// takeRest returns what br holds beyond what was read, and gives br back.
func takeRest(br *bufio.Reader) []byte {
	rest, _ := br.Peek(br.Buffered())
	rest = bytes.Clone(rest)
	br.Reset(nil)
	readers.Put(br)
	return rest
}

// serveConn serves one connection of the app until it ends, or gives it to net/http.
func (p *Proxy) serveConn(ctx context.Context, conn net.Conn) {
	br := readers.Get().(*bufio.Reader)
	br.Reset(conn)
	conn.SetReadDeadline(time.Now().Add(firstByteTime))
	first, err := br.Peek(1)
	if err != nil {
		takeRest(br)
		p.forget(conn) // nothing was asked
		return
	}
	conn.SetDeadline(time.Now().Add(headTime))
	switch first[0] {
	case socksVersion:
		p.serveSOCKS(ctx, conn, br)
	case 4:
		takeRest(br)
		conn.Write([]byte{0, 0x5b, 0, 0, 0, 0, 0, 0}) // SOCKS4: request rejected
		p.bye(conn)
	default:
		p.serveHTTP(ctx, conn, br)
	}
}

// serveHTTP reads a CONNECT itself, which is most of what comes and must leave nothing
// behind, and gives all else to net/http.
func (p *Proxy) serveHTTP(ctx context.Context, conn net.Conn, br *bufio.Reader) {
	const method = "CONNECT "
	start, err := br.Peek(len(method))
	if err == nil && string(start) != method {
		conn.SetDeadline(time.Time{})
		p.requests.take(conn, takeRest(br))
		return
	}
	var head connectHead
	if err == nil {
		head, err = readConnect(br)
	}
	early := takeRest(br)
	if err != nil {
		if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
			writeError(conn, asHeadError(err))
			p.bye(conn)
			return
		}
		p.forget(conn)
		return
	}
	p.connect(ctx, conn, head, early)
}

// connect serves a CONNECT whose head has been read.
func (p *Proxy) connect(ctx context.Context, conn net.Conn, head connectHead, early []byte) {
	t, err := policy.ParseTunnel(head.authority)
	if err != nil {
		p.badTarget("connect", err)
		httpAnswer{}.refuse(conn, refusalOf(err))
		p.bye(conn)
		return
	}
	p.tunnel(ctx, &call{
		conn: conn, from: "connect", target: t, trace: head.trace, early: early, answer: httpAnswer{},
	})
}

// bye ends a connection behind an answer: the other end reads it before it is told
// that nobody listens to what it still sends.
func (p *Proxy) bye(conn net.Conn) {
	defer p.forget(conn)
	half, ok := conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	conn.SetReadDeadline(time.Now().Add(byeTime))
	br := readers.Get().(*bufio.Reader)
	br.Reset(conn)
	defer takeRest(br)
	for left := byeBytes; left > 0; {
		n, err := br.Discard(min(br.Size(), left))
		left -= n
		if err != nil {
			return
		}
	}
}

// asHeadError is err, or what a failed read amounts to.
func asHeadError(err error) *headError {
	var bad *headError
	switch {
	case errors.As(err, &bad):
		return bad
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &headError{status: 408, message: "the request took too long to arrive"}
	}
	return &headError{status: 400, message: "the request ended before its head was complete"}
}

// refusalOf is the refusal in err; an error that is none is a target that cannot be
// read.
func refusalOf(err error) *policy.Refusal {
	var r *policy.Refusal
	if errors.As(err, &r) {
		return r
	}
	return policy.NewRefusal(policy.BadTarget, err.Error())
}

// badTarget logs a target that nobody can read, without repeating it: there may be a
// password in it.
func (p *Proxy) badTarget(from string, err error) {
	if p.denials.first(from + err.Error()) {
		p.log.Warn("call refused, its target cannot be read", "from", from, "reason", err)
	}
}
