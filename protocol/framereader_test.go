package protocol

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// wireBytes collects what a framer writes.
type wireBytes struct {
	net.Conn
	bytes.Buffer
}

func (w *wireBytes) Read(p []byte) (int, error)       { return w.Buffer.Read(p) }
func (w *wireBytes) Write(p []byte) (int, error)      { return w.Buffer.Write(p) }
func (w *wireBytes) SetWriteDeadline(time.Time) error { return nil }

// readFrames takes frames apart until the reader's end. It fails the test when
// more comes out than went in.
func readFrames(t *testing.T, src io.Reader, masked bool, limit int) (data []byte, controls []string, err error) {
	t.Helper()
	f := frameReader{src: src, masked: masked, control: func(op byte, p []byte) {
		controls = append(controls, string(op)+string(p))
	}}
	f.use(make([]byte, idleBuffer))
	for {
		p, err := f.next()
		if err != nil {
			return data, controls, err
		}
		if len(p) == 0 {
			t.Fatal("nothing was read, without an error")
		}
		if data = append(data, p...); len(data) > limit {
			t.Fatalf("%d bytes came out of %d", len(data), limit)
		}
	}
}

func FuzzFrameReader(f *testing.F) {
	for _, seed := range []string{"", "\x82\x00", "\x82\x03abc", "\x82\x83\x01\x02\x03\x04abc", "\x82\x7e\x00\x03abc", "\x82\x7f\x00\x00\x00\x00\x00\x00\x00\x03abc",
		"\x82\x7f\xff\xff\xff\xff\xff\xff\xff\xffabc", "\x89\x00\x82\x01x", "\x09\x00", "\x89\x7e\x01\x00", "\x88\x02\x03\xe8\x82\x01x",
		"\x89\x7e\x00\x80" + strings.Repeat("p", 128), "\x81\x01x",
		"\xc2\x01x", "\x83\x01x", "\x02\x01a\x80\x01b", "\x8a\x01p\x82\x01x", "\x82", "\x82\x85\x00\x00"} {
		f.Add([]byte(seed), true)
		f.Add([]byte(seed), false)
	}
	f.Fuzz(func(t *testing.T, wire []byte, masked bool) {
		data, controls, err := readFrames(t, bytes.NewReader(wire), masked, len(wire))
		var bad *Error
		if err != io.EOF && err != io.ErrUnexpectedEOF && !(errors.As(err, &bad) && bad.Code == CodeBadMessage) {
			t.Fatalf("ended with %v", err)
		}
		for i, c := range controls {
			if c[0] == opClose && (i < len(controls)-1 || err != io.EOF) {
				t.Fatalf("%v, and %d control frames after the close", err, len(controls)-1-i)
			}
			if len(c) > 1+maxControlPayload {
				t.Fatalf("a control frame of %d bytes came through", len(c)-1)
			}
		}
		slowData, slowControls, slowErr := readFrames(t, iotest.OneByteReader(bytes.NewReader(wire)), masked, len(wire))
		if !bytes.Equal(data, slowData) || len(controls) != len(slowControls) || (err == nil) != (slowErr == nil) {
			t.Fatalf("byte by byte %q, %d control frames, %v; at once %q, %d, %v", slowData, len(slowControls), slowErr, data, len(controls), err)
		}
	})
}

// FuzzFramesWrittenAreFramesRead cuts payload into frames of any size, control
// frames in between.
func FuzzFramesWrittenAreFramesRead(f *testing.F) {
	for _, size := range []int{0, 1, 3, 125, 126, 4095, 4096, 5000, 65535, 65536, 70000} {
		f.Add(bytes.Repeat([]byte("abcdefg"), size/7+1)[:size], 65536, true)
		f.Add(bytes.Repeat([]byte("abcdefg"), size/7+1)[:size], 126, false)
	}
	f.Fuzz(func(t *testing.T, payload []byte, cut int, masked bool) {
		if cut < 1 || len(payload)/cut > 1000 {
			cut = len(payload) + 1
		}
		wire := &wireBytes{}
		w := &framer{Conn: wire, masked: masked}
		pings := 0
		for rest := payload; len(rest) > 0; pings++ {
			n := min(cut, len(rest))
			if err := errors.Join(w.writeControl(opPing, rest[:min(n, 125)]), w.writeMessage(append(make([]byte, frameHead), rest[:n]...))); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if err := w.writeControl(opClose, nil); err != nil {
			t.Fatal(err)
		}
		data, controls, err := readFrames(t, wire, masked, len(payload))
		if err != io.EOF || !bytes.Equal(data, payload) || len(controls) != pings+1 {
			t.Fatalf("%d of %d bytes, %d control frames, %v", len(data), len(payload), len(controls), err)
		}
		if pings > 0 && controls[0] != string(byte(opPing))+string(payload[:min(cut, len(payload), 125)]) {
			t.Fatalf("the first ping is %q", controls[0])
		}
	})
}

func TestNothingIsReadBehindACloseFrame(t *testing.T) {
	data, controls, err := readFrames(t, strings.NewReader("\x82\x01a\x88\x00\x82\x01b"), false, 100)
	if string(data) != "a" || len(controls) != 1 || err != io.EOF {
		t.Errorf("read %q, %d control frames, %v", data, len(controls), err)
	}
}

// A peer that opens streams and resets them at once holds none; what waits to be
// accepted is bounded all the same.
func TestStreamsThatAreOpenedAndResetDoNotPileUp(t *testing.T) {
	ours, theirs := net.Pipe()
	conn := &wsConn{wire: &framer{Conn: ours}, small: make([]byte, idleBuffer)}
	conn.changed.L = &conn.mu
	conn.reader = frameReader{src: ours, masked: true, control: conn.answer}
	conn.reader.use(conn.small)
	m := newMux(conn, false, 100, 1<<20, nil)
	go io.Copy(io.Discard, theirs)
	received := make(chan error, 1)
	go func() {
		var err error
		for err == nil {
			err = m.receiveFrame()
		}
		received <- err
	}()
	peer := &framer{Conn: theirs, masked: true}
	for id := uint32(1); id < 20_000; id += 2 {
		open, reset := newHeader(typeData, flagSYN, id, 0), newHeader(typeWindow, flagRST, id, 0)
		if err := peer.writeMessage(append(append(make([]byte, frameHead), open[:]...), reset[:]...)); err != nil {
			t.Fatal(err)
		}
	}
	theirs.Close()
	<-received
	pending, streams := len(m.pending), len(m.streams)
	if pending > 100 || streams > 1 {
		t.Errorf("%d streams wait to be accepted, %d are open, of at most 100", pending, streams)
	}
}
