package protocol

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"
)

// Stream is one logical connection inside a Session, a net.Conn. One goroutine
// may read while another writes; Close, Reset and the deadlines are for anybody.
//
// The side that opened it may write at once. Its first Read waits for the Reply;
// a refusal is returned from Read, and from later Writes, as an *Error with
// Unsent set.
type Stream struct {
	mux  *muxStream
	sess *Session
	open Open

	// Opener only; owned by the reader.
	replied  bool
	replyErr error
	part     []byte // of the Reply, what came before a read deadline passed

	counts atomic.Bool // among the session's active ones

	refused  atomic.Pointer[Error] // what replyErr was, for Write
	accepted atomic.Bool           // replied, for everybody else
}

// Accepted reports whether the peer has accepted the stream, as far as the
// reader has seen: from then on bytes may have reached what is behind it.
func (s *Stream) Accepted() bool { return s.accepted.Load() }

// Fresh reports whether an idle stream can still be used: nothing has arrived
// on it that nobody asked for, and neither side has ended it.
func (s *Stream) Fresh() bool { return s.mux.fresh() }

// Aside takes a stream that the peer opened out of what Active counts and WaitIdle
// waits for: one that is only a look, and may last as long as the session.
func (s *Stream) Aside() {
	if s.counts.CompareAndSwap(true, false) {
		s.sess.finish()
	}
}

// Kind is what the stream is for.
func (s *Stream) Kind() Kind { return s.open.Kind }

// Open is the message that started the stream.
func (s *Stream) Open() Open { return s.open }

// Session is the session the stream belongs to.
func (s *Stream) Session() *Session { return s.sess }

// Read implements net.Conn. A reset is an *Error, io.EOF is the peer's
// CloseWrite and nothing else.
func (s *Stream) Read(p []byte) (int, error) {
	if !s.replied {
		if err := s.readReply(); err != nil {
			return 0, err
		}
	}
	return s.mux.Read(p)
}

// AwaitReply waits for the peer's Reply. Use it where the answer matters before
// the first byte is written; it takes the reader's place.
func (s *Stream) AwaitReply(ctx context.Context) error {
	if s.replied {
		return s.replyErr
	}
	stop := context.AfterFunc(ctx, func() { s.Reset(CodeCanceled) })
	defer stop()
	err := s.readReply()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// readReply reads the Reply that precedes the peer's bytes.
func (s *Stream) readReply() error {
	if s.replyErr != nil {
		return s.replyErr
	}
	var seen bytes.Buffer
	body, err := readFrame(io.MultiReader(bytes.NewReader(s.part), io.TeeReader(s.mux, &seen)), nil)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		s.part = append(s.part, seen.Bytes()...)
		return err // the caller may extend the deadline and come back
	case err == io.EOF, err == io.ErrUnexpectedEOF:
		s.replyErr = Errorf(CodeReset, "stream ended before its reply")
	case CodeOf(err) == CodeLimit:
		// The peer's multiplexer had no place for the stream: nobody saw it.
		s.replyErr = &Error{Code: CodeLimit, Message: "the peer has no streams left", Unsent: true}
	case err != nil:
		s.replyErr = err
	default:
		s.replyErr = DecodeReply(body)
	}
	if s.replyErr == nil {
		s.replied = true
		s.accepted.Store(true)
		return nil
	}
	var e *Error
	if errors.As(s.replyErr, &e) {
		s.refused.Store(e)
	}
	return s.replyErr
}

// Write implements net.Conn. It returns once the bytes are queued; what is
// queued counts against the peer's window.
func (s *Stream) Write(p []byte) (int, error) {
	n, err := s.mux.Write(p)
	return n, s.writeError(err)
}

// writeError is err, or the refusal behind it.
func (s *Stream) writeError(err error) error {
	if refused := s.refused.Load(); err != nil && refused != nil {
		return refused
	}
	return err
}

// AwaitReset waits for the reset that may follow the peer's end, for limit and two
// round trips at most; nil when none came. With CodeStale what was written since the
// peer last sent something is unsent. Nobody else may read meanwhile.
func (s *Stream) AwaitReset(limit time.Duration) error {
	if e := s.mux.awaitReset(limit); e != nil {
		return e
	}
	return nil
}

// CloseWrite ends our direction; the peer reads io.EOF after the last byte.
func (s *Stream) CloseWrite() error {
	return s.writeError(s.mux.CloseWrite())
}

// Close ends both directions. When both have already ended cleanly nothing is
// sent; otherwise the peer's reads and writes fail with CodeCanceled.
func (s *Stream) Close() error { return s.Reset(CodeCanceled) }

// Reset aborts both directions. The peer still reads what was sent before; then
// its reads fail with code, and its writes at once.
func (s *Stream) Reset(code Code) error { return s.mux.Reset(code) }

// ID is the stream's number in the session, for logs.
func (s *Stream) ID() uint32 { return s.mux.id }

func (s *Stream) LocalAddr() net.Addr                { return s.sess.conn.LocalAddr() }
func (s *Stream) RemoteAddr() net.Addr               { return s.sess.conn.RemoteAddr() }
func (s *Stream) SetReadDeadline(t time.Time) error  { s.mux.setReadDeadline(t); return nil }
func (s *Stream) SetWriteDeadline(t time.Time) error { s.mux.setWriteDeadline(t); return nil }

// SetDeadline implements net.Conn.
func (s *Stream) SetDeadline(t time.Time) error {
	s.mux.setReadDeadline(t)
	s.mux.setWriteDeadline(t)
	return nil
}

// Accept says yes to the opener. The side that was given the stream calls
// Accept or Refuse once, before it writes anything.
func (s *Stream) Accept() error {
	_, err := s.mux.Write([]byte{0, 0})
	return s.writeError(err)
}

// Refuse says no, with the reason, and ends the stream. It waits, for at most
// refuseWait, until the opener has seen the reason: in multiplexers other than
// ours a reset at once would overtake it.
func (s *Stream) Refuse(code Code, message string) error {
	return s.RefuseWith(Reply{Code: code, Message: message})
}

// RefuseWith is Refuse with a whole Reply. Its code is the stream's reset besides.
func (s *Stream) RefuseWith(r Reply) error {
	r.Message = clip(r.Message)
	code := r.Code
	msg, err := appendFrame(nil, r)
	if err != nil {
		s.Reset(code)
		return err
	}
	s.SetDeadline(time.Now().Add(refuseWait))
	if _, err = s.mux.Write(msg); err == nil {
		err = s.mux.CloseWrite()
	}
	if err == nil {
		s.discard()
	}
	s.Reset(code)
	return s.writeError(err)
}

const refuseWait = 10 * time.Second

// discard reads until the opener stops, the stream is reset or its read
// deadline passes.
func (s *Stream) discard() {
	buf := lendCopyBuffer(smallCopy)
	defer returnCopyBuffer(buf)
	for {
		if _, err := s.mux.Read(buf); err != nil {
			return
		}
	}
}
