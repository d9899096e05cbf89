package protocol

import (
	"encoding/binary"
	"io"
	"math/bits"
)

// frameReader takes WebSocket frames apart (RFC 6455, section 5). Where messages
// begin and end means nothing here, so fragments are as good as messages.
type frameReader struct {
	src    io.Reader
	masked bool // what the peer must do: clients mask, servers do not
	// control gets the payload of a ping or a close; it must not block, and must
	// not keep p.
	control func(op byte, p []byte)
	// idle is called before every read from src, which may wait.
	idle func()

	buf        []byte // lent by the owner, see use
	start, end int    // unread bytes in buf
	left       uint64 // payload that is still to come in the current data frame
	key        uint32 // its mask, turned to the next byte
	closed     bool   // the peer's close frame has come
	lastFill   int    // what the last read from src brought
}

// WebSocket opcodes.
const (
	opContinuation = 0x0
	opText         = 0x1
	opBinary       = 0x2
	opClose        = 0x8
	opPing         = 0x9
	opPong         = 0xa

	maxControlPayload = 125
)

// empty reports whether buf may be exchanged.
func (f *frameReader) empty() bool { return f.start == f.end }

// use makes b the buffer. Only while empty.
func (f *frameReader) use(b []byte) { f.buf, f.start, f.end = b, 0, 0 }

// next returns payload that has arrived, at least one byte, valid until the next
// call. io.EOF follows the peer's close frame, or the end of the connection
// between two frames.
func (f *frameReader) next() ([]byte, error) {
	for {
		if f.closed {
			return nil, io.EOF
		}
		if f.left > 0 && !f.empty() {
			return f.take(), nil
		}
		if f.left == 0 {
			more, err := f.header()
			if err != nil {
				return nil, err
			}
			if !more {
				continue
			}
		}
		if err := f.fill(); err != nil {
			return nil, err
		}
	}
}

// take gives the part of the current frame that is in the buffer.
func (f *frameReader) take() []byte {
	n := f.end - f.start
	if uint64(n) > f.left {
		n = int(f.left)
	}
	p := f.buf[f.start : f.start+n]
	f.start += n
	f.left -= uint64(n)
	if f.masked {
		mask(p, f.key)
		f.key = bits.RotateLeft32(f.key, -8*(n%4))
	}
	return p
}

// header reads one frame's header, and the whole of a control frame. more says
// that bytes are missing.
func (f *frameReader) header() (more bool, err error) {
	b := f.buf[f.start:f.end]
	if len(b) < 2 {
		return true, nil
	}
	op, size := b[0]&0xf, uint64(b[1]&0x7f)
	if b[0]&0x70 != 0 {
		return false, Errorf(CodeBadMessage, "WebSocket frame with reserved bits")
	}
	if masked := b[1]&0x80 != 0; masked != f.masked {
		return false, Errorf(CodeBadMessage, "WebSocket frame masked: %t, expected %t", masked, f.masked)
	}
	head := 2
	switch size {
	case 126:
		head += 2
	case 127:
		head += 8
	}
	if f.masked {
		head += 4
	}
	if len(b) < head {
		return true, nil
	}
	switch size {
	case 126:
		size = uint64(binary.BigEndian.Uint16(b[2:]))
	case 127:
		size = binary.BigEndian.Uint64(b[2:])
	}
	if size>>63 != 0 {
		return false, Errorf(CodeBadMessage, "WebSocket frame with a length beyond 63 bits")
	}
	var key uint32
	if f.masked {
		key = binary.LittleEndian.Uint32(b[head-4:])
	}
	switch op {
	case opBinary, opContinuation:
		f.start += head
		f.left, f.key = size, key
		return size > 0 && f.empty(), nil
	case opClose, opPing, opPong:
		return f.controlFrame(op, b, head, size, key)
	case opText:
		return false, Errorf(CodeBadMessage, "WebSocket message of text, expected binary")
	}
	return false, Errorf(CodeBadMessage, "WebSocket frame with opcode %d", op)
}

func (f *frameReader) controlFrame(op byte, b []byte, head int, size uint64, key uint32) (more bool, err error) {
	if size > maxControlPayload || b[0]&0x80 == 0 {
		return false, Errorf(CodeBadMessage, "WebSocket control frame that is long or fragmented")
	}
	whole := head + int(size)
	if len(b) < whole {
		return true, nil
	}
	payload := b[head:whole]
	if f.masked {
		mask(payload, key)
	}
	f.start += whole
	f.closed = op == opClose
	if op != opPong {
		f.control(op, payload)
	}
	return false, nil
}

// fill reads once from src. What is left of an unfinished header moves to the
// front first.
func (f *frameReader) fill() error {
	if f.idle != nil {
		f.idle()
	}
	if f.start > 0 {
		f.end = copy(f.buf, f.buf[f.start:f.end])
		f.start = 0
	}
	n, err := f.src.Read(f.buf[f.end:])
	f.end += n
	f.lastFill = n
	if n > 0 {
		return nil
	}
	if err == io.EOF && (f.left > 0 || !f.empty()) {
		return io.ErrUnexpectedEOF
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}
