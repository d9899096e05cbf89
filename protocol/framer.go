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

// framer is the socket under the WebSocket library. The library shakes hands;
// after that we frame and take apart ourselves (framer, frameReader): it reads
// and writes through 4 KiB buffers that cannot be configured, so a 64 KiB message
// of a client, which must be masked, costs it sixteen copies, sixteen system
// calls and, over TLS, sixteen records, and two reads at the other end. Here it
// is masked where it lies and sent in one write.
//
// Every write is one whole frame.
type framer struct {
	net.Conn
	masked bool   // this end is the client
	early  []byte // what came behind the upgrade request; the reader's

	mu  sync.Mutex // held while a frame is written
	err error      // guarded by mu; the first failed write, final
}

// frameHead is the most a frame's header takes: two bytes, eight of length, four
// of key (RFC 6455, section 5.2).
const frameHead = 14

// Read gives what came early, then what comes.
func (f *framer) Read(p []byte) (int, error) {
	if len(f.early) > 0 {
		n := copy(p, f.early)
		if f.early = f.early[n:]; len(f.early) == 0 {
			f.early = nil
		}
		return n, nil
	}
	return f.Conn.Read(p)
}

// writeControl sends a control frame: the answer to a ping or a close.
func (f *framer) writeControl(op byte, payload []byte) error {
	frame := append(make([]byte, frameHead, frameHead+maxControlPayload), payload...)
	return f.writeFrame(op, frame)
}

// writeMessage sends buf[frameHead:] as one binary message. It uses the bytes
// before it for the header and scrambles the rest.
func (f *framer) writeMessage(buf []byte) error { return f.writeFrame(opBinary, buf) }

func (f *framer) writeFrame(op byte, buf []byte) error {
	const fin, maskBit = 0x80, 0x80
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
	buf[start] = fin | op
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
	early, _ := rw.Reader.Peek(rw.Reader.Buffered())
	w.conn.early = append(w.conn.early, early...)
	// The upgrade answer is still in the server's buffer. The library gets buffers
	// of the least size: it will not use them, and the server's 8 KiB are free.
	if err := rw.Writer.Flush(); err != nil {
		conn.Close()
		return nil, nil, err
	}
	return w.conn, bufio.NewReadWriter(bufio.NewReaderSize(w.conn, 16), bufio.NewWriterSize(w.conn, 16)), nil
}
