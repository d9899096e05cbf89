package protocol_test

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/posternhq/postern/protocol"
)

// yframe is one yamux frame: version 0, type, flags, stream, length, payload.
func yframe(typ byte, flags uint16, stream, length uint32, payload string) string {
	b := append([]byte{0, typ}, byte(flags>>8), byte(flags))
	b = binary.BigEndian.AppendUint32(b, stream)
	b = binary.BigEndian.AppendUint32(b, length)
	return string(b) + payload
}

// ydata is a data frame with its payload.
func ydata(flags uint16, stream uint32, payload string) string {
	return yframe(0, flags, stream, uint32(len(payload)), payload)
}

const syn, ack, fin, rst = 1, 2, 4, 8

// helloBytes opens the control stream and says hello.
var helloBytes = ydata(syn, 1, string(frame(plainHello)))

// FuzzRelayEndsASessionOfGarbage plays a peer that holds a valid token and
// nothing else: after the upgrade it sends arbitrary bytes, cut into messages at
// arbitrary places, and hangs up. The relay must end the session, keep no
// goroutine, and not have met a panic of the multiplexer, which would hide it in
// an error.
func FuzzRelayEndsASessionOfGarbage(f *testing.F) {
	for _, seed := range []string{
		"", "\x00", "GET / HTTP/1.1\r\n\r\n", "\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", yframe(9, 0, 0, 0, ""),
		helloBytes, helloBytes[:30], helloBytes + ydata(0, 1, string(frame(`{"type":"ping","id":1}`))),
		helloBytes + ydata(syn, 3, string(frame(`{"kind":"http"}`))+"bytes") + ydata(fin, 3, ""),
		helloBytes + ydata(syn, 3, string(frame(`{"kind":"http"}`))) + yframe(1, rst, 3, 1, ""),
		helloBytes + ydata(syn, 3, "\xff\xff") + ydata(syn, 3, "twice"),
		helloBytes + ydata(syn, 2, "an even number is the relay's") + yframe(1, 0, 99, 1<<31, ""),
		helloBytes + yframe(0, 0, 1, 1<<31, "a window's worth too much"),
		helloBytes + yframe(1, syn, 3, 1<<32-1, "") + yframe(1, ack|fin|rst, 3, 1<<32-1, ""),
		helloBytes + yframe(2, syn, 0, 7, "") + yframe(2, ack, 0, 7, "") + yframe(3, 0, 0, 0, ""),
		helloBytes + yframe(3, 0, 0, 77, ""), helloBytes + ydata(0, 1, string(frame(`{"type":"close"}`))),
		helloBytes + yframe(1, rst, 1, 5, ""), helloBytes + yframe(1, fin, 1, 0, ""),
		ydata(syn, 1, string(frame(`{"type":"hello"}`))), ydata(syn, 1, "\x00\x00"), ydata(syn|fin, 1, ""), yframe(1, syn|rst, 1, 0, ""),
		helloBytes + strings.Repeat(yframe(1, syn, 5, 0, "")+yframe(1, rst, 5, 0, ""), 50),
		helloBytes + strings.Repeat(yframe(1, ack, 1, 0, ""), 300),
	} {
		f.Add([]byte(seed), uint16(0), true)
		f.Add([]byte(seed), uint16(1), true)
		f.Add([]byte(seed), uint16(13), false)
	}
	f.Fuzz(func(t *testing.T, garbage []byte, cut uint16, binary bool) {
		check := leaks(t)
		err := feed(t, garbage, int(cut), binary)
		if err == nil {
			t.Error("the session ended without a reason")
		} else if strings.Contains(err.Error(), "panic") {
			t.Errorf("the multiplexer panicked: %v", err)
		}
		check()
	})
}

// feed sends garbage to a relay and returns how the session ended.
func feed(t *testing.T, garbage []byte, cut int, binary bool) error {
	ours, theirs := net.Pipe()
	ended := make(chan error, 1)
	l := newOneConn(theirs)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ended <- serveOnce(w, r)
	})}
	var serving sync.WaitGroup
	serving.Go(func() { srv.Serve(l) })
	defer serving.Wait()
	defer srv.Close()
	ws, _, err := websocket.Dial(t.Context(), "http://relay.test/", &websocket.DialOptions{
		Subprotocols: []string{protocol.Subprotocol},
		HTTPClient: &http.Client{Transport: &http.Transport{
			DialContext: func(context.Context, string, string) (net.Conn, error) { return ours, nil }}},
	})
	if err != nil {
		t.Fatal(err)
	}
	var answers sync.WaitGroup
	answers.Go(func() {
		for err := error(nil); err == nil; {
			_, _, err = ws.Read(context.Background())
		}
	})
	sendPieces(ws, garbage, cut, binary)
	ws.CloseNow()
	answers.Wait()
	return receive(t, ended, "end of the session")
}

// sendPieces sends b in messages of cut bytes, 0 for a single one.
func sendPieces(ws *websocket.Conn, b []byte, cut int, binary bool) {
	typ := websocket.MessageText
	if binary {
		typ = websocket.MessageBinary
	}
	if cut <= 0 || len(b)/cut > 100 {
		cut = max(1, len(b))
	}
	for len(b) > 0 {
		n := min(cut, len(b))
		if ws.Write(context.Background(), typ, b[:n]) != nil {
			return
		}
		b = b[n:]
	}
}

// serveOnce is a relay that answers every stream and opens one itself.
func serveOnce(w http.ResponseWriter, r *http.Request) error {
	s, err := protocol.Accept(w, r, protocol.AcceptConfig{
		Welcome: func(protocol.Hello) (protocol.Welcome, error) {
			return protocol.Welcome{Session: "s", Node: "n", HeartbeatMS: 60_000}, nil
		},
	})
	if err != nil {
		return err
	}
	if st, err := s.Open(context.Background(), protocol.Open{Kind: protocol.KindHTTP}); err == nil {
		defer st.Close()
		go io.Copy(io.Discard, st)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return s.Run(ctx, protocol.Handler{Stream: echo})
}

// rawPeer sends bytes of its own making through a WebSocket to a relay.
func rawPeer(t *testing.T, p *relayPeer, pieces ...string) {
	t.Helper()
	ws, _, err := websocket.Dial(t.Context(), p.URL, &websocket.DialOptions{Subprotocols: []string{protocol.Subprotocol}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ws.CloseNow() })
	go func() {
		for err == nil {
			_, _, err = ws.Read(context.Background())
		}
	}()
	for _, piece := range pieces {
		if ws.Write(context.Background(), websocket.MessageBinary, []byte(piece)) != nil {
			return // the relay has hung up
		}
	}
}

func TestPeerThatBreaksTheMultiplexersRulesEndsTheSession(t *testing.T) {
	openHTTP := ydata(syn, 3, string(frame(`{"kind":"http"}`)))
	quarter := ydata(0, 3, strings.Repeat("x", 64<<10))
	for name, test := range map[string]struct {
		bytes string
		want  string
	}{
		"more than the window":       {openHTTP + strings.Repeat(quarter, 4), "window of"},
		"a window beyond 32 bits":    {openHTTP + yframe(1, 0, 3, 1<<32-1, ""), "beyond 32 bits"},
		"a stream opened twice":      {openHTTP + openHTTP, "opened twice"},
		"a stream of the relay's":    {ydata(syn, 4, ""), "wrong side"},
		"an unknown type of frame":   {yframe(4, 0, 0, 0, ""), "type 4"},
		"another version":            {"\x01" + yframe(0, 0, 0, 0, "")[1:], "version 1"},
		"go away with an error":      {yframe(3, 0, 0, 2, ""), "error 2"},
		"the control stream's end":   {yframe(1, fin, 1, 0, ""), "connection lost"},
		"the control stream's reset": {yframe(1, rst, 1, 5, ""), "connection lost"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newRelay(t, false, protocol.AcceptConfig{})
			ended := make(chan error, 1)
			go func() {
				a := <-p.sessions
				if a.err != nil {
					ended <- a.err
					return
				}
				ended <- a.sess.Run(context.Background(), protocol.Handler{Stream: func(ctx context.Context, s *protocol.Stream) {
					<-ctx.Done() // reads nothing
				}})
			}()
			rawPeer(t, p, helloBytes, test.bytes)
			if err := receive(t, ended, "end of the session"); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("ended with %v, expected %q", err, test.want)
			}
		})
	}
}

// The window is the peer's to use up to the last byte, and a frame for a stream
// that is gone does no harm.
func TestPeerMayUseItsWholeWindowAndSendToStreamsThatAreGone(t *testing.T) {
	p := newRelay(t, false, protocol.AcceptConfig{})
	open := string(frame(`{"kind":"http"}`))
	rawPeer(t, p, helloBytes, ydata(syn, 3, open+strings.Repeat("x", 256<<10-len(open))),
		ydata(syn, 5, open)+yframe(1, rst, 5, 1, "")+ydata(0, 5, "late")+yframe(1, fin, 5, 0, "")+yframe(1, 0, 5, 1<<32-1, ""),
		ydata(0, 99, "never there"), ydata(syn, 7, open+"last"))
	got := make(chan string, 8)
	s := p.next(t)
	go s.Run(context.Background(), protocol.Handler{Stream: func(_ context.Context, st *protocol.Stream) {
		if st.ID() == 7 {
			got <- string(readN(st, 4))
		}
	}})
	if text := receive(t, got, "last stream"); text != "last" {
		t.Errorf("read %q", text)
	}
}
