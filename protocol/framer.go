package protocol

import (
	"bufio"
	"crypto/subtle"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"time"
)

// framer is the socket under the WebSocket library, with a way past it for our
// own data. The library reads, answers pings and closes; but it writes through
// 4 KiB buffers that cannot be configured, so a 64 KiB message of a client,
// which must be masked, costs it sixteen copies, sixteen system calls and, over
// TLS, sixteen records. writeMessage frames and masks the message where it lies
// and sends it in one write.
//
// Every write is one whole frame, ours or the library's (it flushes its buffer
// at the end of a control frame), so that the two can take turns.
type framer struct {
	net.Conn
	masked bool // this end is the client

	mu  sync.Mutex // held while a frame is written
	err error      // guarded by mu; the first failed write, final
}

// frameHead is the most a frame's header takes: two bytes, eight of length, four
// of key (RFC 6455, section 5.2).
const frameHead = 14

// Write implements net.Conn for the library: the upgrade and control frames.
func (f *framer) Write(p []byte) (int, error) {
	if err := f.send(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// writeMessage sends buf[frameHead:] as one binary message. It uses the bytes
// before it for the header and scrambles the rest.
func (f *framer) writeMessage(buf []byte) error {
	const (
		finBinary = 0x80 | 0x2
		maskBit   = 0x80
	)
	payload := buf[frameHead:]
	start := frameHead
	var bit byte
	if f.masked {
		// The key must be unpredictable to whoever supplies the payload (section
		// 10.3); this generator is ChaCha8 seeded by the system.
		key := rand.Uint32()
		start -= 4
		binary.LittleEndian.PutUint32(buf[start:], key)
		mask(payload, key)
		bit = maskBit
	}
	switch n := len(payload); {
	case n < 126:
		start--
		buf[start] = bit | byte(n)
	case n < 1<<16:
		start -= 3
		buf[start] = bit | 126
		binary.BigEndian.PutUint16(buf[start+1:], uint16(n))
	default:
		start -= 9
		buf[start] = bit | 127
		binary.BigEndian.PutUint64(buf[start+1:], uint64(n))
	}
	start--
	buf[start] = finBinary
	return f.send(buf[start:])
}

// mask applies the key to p (RFC 6455, section 5.3). XORBytes is several times
// faster than a loop, so the key is laid out once for a block.
func mask(p []byte, key uint32) {
	var block [1024]byte
	n := min(len(block), (len(p)+3)&^3)
	for i := 0; i < n; i += 4 {
		binary.LittleEndian.PutUint32(block[i:], key)
	}
	for len(p) > 0 {
		p = p[subtle.XORBytes(p, p, block[:n]):]
	}
}

// send writes one frame. A write that makes no progress for writeStall fails,
// and with it the connection: a peer that does not read is as good as gone.
func (f *framer) send(p []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	if f.err = f.Conn.SetWriteDeadline(time.Now().Add(writeStall)); f.err != nil {
		return f.err
	}
	_, f.err = f.Conn.Write(p)
	return f.err
}

// framerWriter hands websocket.Accept a framer in place of the server's
// connection.
type framerWriter struct {
	http.ResponseWriter
	conn *framer // set by Hijack
}

// Hijack implements http.Hijacker.
func (w *framerWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	w.conn = &framer{Conn: conn}
	// The upgrade answer is still in rw.Writer, whose target is the server's own
	// connection: it must leave before the target changes.
	if err := rw.Writer.Flush(); err != nil {
		conn.Close()
		return nil, nil, err
	}
	rw.Writer.Reset(w.conn)
	return w.conn, rw, nil
}
