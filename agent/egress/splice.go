package egress

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/posternhq/postern/protocol"
)

// splice joins a stream and a connection of the app until both directions have ended,
// and closes both. It is protocol.Splice for tunnels that are idle for most of their
// lives: who waits holds no buffer, 64 bytes apart.
//
//	app → stream   end: stream.CloseWrite        app cut: stream is reset
//	stream → app   end: app.CloseWrite           stream reset: app is cut
//	the app takes no more bytes: its own go on, what the stream brings is thrown away
type splice struct {
	stream *protocol.Stream
	app    appConn

	up     lazyReader  // owned by upwards
	ended  atomic.Bool // the direction towards the stream has ended, or is about to
	broken atomic.Bool // the app has refused bytes
}

func (sp *splice) run() {
	over := make(chan struct{})
	go func() {
		defer close(over)
		sp.downwards()
	}()
	sp.upwards()
	<-over
	sp.app.Close()
	sp.stream.Close()
}

// upwards moves the app's bytes to the stream.
func (sp *splice) upwards() {
	sp.up.init(sp.app.Conn)
	for {
		buf, n, err := sp.up.next()
		if n > 0 {
			_, failed := sp.stream.Write(buf[:n])
			returnBuffer(buf)
			if failed != nil {
				return // downwards learns why, behind what has come already
			}
			continue
		}
		returnBuffer(buf)
		sp.ended.Store(true)
		if err == io.EOF && !sp.broken.Load() {
			sp.app.read.Store(true)
			sp.stream.CloseWrite()
			return
		}
		// The kernel reports a reset once: when the writer has had it, an end is none.
		sp.stream.Reset(protocol.CodeReset)
		return
	}
}

// downwards moves the stream's bytes to the app.
func (sp *splice) downwards() {
	var small [64]byte
	var large *copyBuffer
	defer func() { returnBuffer(large) }()
	for {
		buf := small[:]
		if large != nil {
			buf = large[:]
		}
		n, err := sp.stream.Read(buf)
		if large == nil && n == len(small) {
			large = lendBuffer()
			buf = large[:]
			copy(buf, small[:])
			// Once our end has gone, Fresh tells nothing any more.
			if !sp.stream.Fresh() && !sp.ended.Load() {
				var more int
				more, err = sp.stream.Read(buf[n:]) // does not wait
				n += more
			}
		}
		if _, failed := sp.app.Write(buf[:n]); failed != nil {
			sp.broken.Store(true)
			if sp.ended.Load() {
				sp.stream.Reset(protocol.CodeReset)
				return
			}
			if _, err = io.Copy(io.Discard, sp.stream); err == nil {
				return
			}
		}
		if err == io.EOF {
			sp.app.CloseWrite()
			return
		}
		if err != nil {
			cut(sp.app.Conn)
			return
		}
		if n <= copySize/2 {
			returnBuffer(large)
			large = nil
		}
	}
}

// copySize is how much is moved at once.
const copySize = 32 << 10

type copyBuffer [copySize]byte

var copyBuffers = sync.Pool{New: func() any { return new(copyBuffer) }}

func lendBuffer() *copyBuffer { return copyBuffers.Get().(*copyBuffer) }

func returnBuffer(b *copyBuffer) {
	if b != nil {
		copyBuffers.Put(b)
	}
}

// lazyReader reads a connection into buffers that are lent once there is something to
// read. It has one user.
type lazyReader struct {
	conn net.Conn
	raw  syscall.RawConn // nil: the connection has no socket

	buf *copyBuffer
	n   int
	err error
	try func(fd uintptr) bool // of raw.Read
}

func (l *lazyReader) init(conn net.Conn) {
	l.conn = conn
	if s, ok := conn.(syscall.Conn); ok {
		l.raw, _ = s.SyscallConn()
	}
	l.try = l.read
}

// next waits for bytes. The caller returns the buffer, which may be nil.
func (l *lazyReader) next() (*copyBuffer, int, error) {
	l.buf, l.n, l.err = nil, 0, nil
	if l.raw == nil {
		l.buf = lendBuffer()
		l.n, l.err = l.conn.Read(l.buf[:])
		return l.buf, l.n, l.err
	}
	if err := l.raw.Read(l.try); err != nil {
		return l.buf, 0, err
	}
	if l.n == 0 && l.err == nil {
		l.err = io.EOF
	}
	return l.buf, l.n, l.err
}

// read is one attempt; false waits until there is something.
func (l *lazyReader) read(fd uintptr) bool {
	l.buf = lendBuffer()
	for {
		n, err := syscall.Read(int(fd), l.buf[:])
		switch err {
		case nil:
			l.n = n
			return true
		case syscall.EINTR:
		case syscall.EAGAIN:
			returnBuffer(l.buf)
			l.buf = nil
			return false
		default:
			l.err = err
			return true
		}
	}
}
