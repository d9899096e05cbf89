package protocol_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/hashicorp/yamux"
	"github.com/posternhq/postern/protocol"
)

// handPeer is an agent made of other people's parts: a plain WebSocket as a
// byte stream, the original yamux on it, and JSON written by hand. What works
// with it is the wire that SPEC.md describes and not two ends that happen to
// agree.
type handPeer struct {
	mux     *yamux.Session
	control *yamux.Stream
	answer  string // the relay's answer to hello
}

const plainHello = `{"type":"hello","hello":{"versions":[1],"features":["drain","tcp"],"instance":"web.1","boot_id":"0123456789abcdef","tunnel":0,"tunnels":1}}`

// byHand connects to p and says hello.
func byHand(t testing.TB, p *relayPeer, hello string) *handPeer {
	t.Helper()
	ws, _, err := websocket.Dial(t.Context(), p.URL+protocol.TunnelPath, &websocket.DialOptions{
		Subprotocols: []string{protocol.Subprotocol}, HTTPHeader: http.Header{"Authorization": {"Bearer token"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	ws.SetReadLimit(-1)
	cfg := yamux.DefaultConfig()
	cfg.EnableKeepAlive, cfg.LogOutput = false, io.Discard
	mux, err := yamux.Client(websocket.NetConn(context.Background(), ws, websocket.MessageBinary), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mux.Close() })
	h := &handPeer{mux: mux}
	if h.control, err = mux.OpenStream(); err != nil {
		t.Fatal(err)
	}
	h.say(t, hello)
	h.answer = h.hear(t)
	return h
}

// frame is one message: a length of two bytes, and JSON.
func frame(json string) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(json))), json...)
}

func hearFrame(t testing.TB, r io.Reader) string {
	t.Helper()
	body := readN(r, int(binary.BigEndian.Uint16(readN(r, 2))))
	return string(body)
}

func (h *handPeer) say(t testing.TB, json string) {
	t.Helper()
	if _, err := h.control.Write(frame(json)); err != nil {
		t.Fatal(err)
	}
}

func (h *handPeer) hear(t testing.TB) string {
	t.Helper()
	h.control.SetReadDeadline(time.Now().Add(patience))
	return hearFrame(t, h.control)
}

// handshake makes a session with a peer made by hand.
func handshake(t testing.TB, hello string, handler protocol.Handler) (*handPeer, *protocol.Session) {
	t.Helper()
	p := newRelay(t, false, protocol.AcceptConfig{})
	h := byHand(t, p, hello)
	s := p.next(t)
	go s.Run(context.Background(), handler)
	t.Cleanup(func() { h.mux.Close() }) // first, so that the relay's close need not wait for it
	return h, s
}

func TestPeerMadeByHandServesHTTP(t *testing.T) {
	h, relay := handshake(t, plainHello, protocol.Handler{})
	want := `{"type":"welcome","welcome":{"version":1,"features":["drain","tcp"],"session":"s1","node":"n1","heartbeat_ms":20000}}`
	if h.answer != want {
		t.Fatalf("welcome\n%s, expected\n%s", h.answer, want)
	}
	served := make(chan error, 1)
	go func() { served <- serveByHand(t, h) }()
	st := open(t, relay)
	defer st.Close()
	answers := bufio.NewReader(st)
	for i := range 3 { // kept alive
		body := strings.Repeat("x", i*300_000)
		req, _ := http.NewRequest("POST", "http://app/hook", strings.NewReader(body))
		go req.Write(st)
		resp, err := http.ReadResponse(answers, req)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != 200 || string(got) != fmt.Sprintf("POST /hook %d", len(body)) {
			t.Errorf("answer %s %q, %v", resp.Status, got, err)
		}
	}
	st.CloseWrite()
	if err := receive(t, served, "end of the stream"); err != io.EOF {
		t.Errorf("served until %v, expected EOF", err)
	}
}

// serveByHand answers the requests on one stream.
func serveByHand(t testing.TB, h *handPeer) error {
	st, err := h.mux.AcceptStream()
	if err != nil {
		return err
	}
	defer st.Close()
	if got := hearFrame(t, st); got != `{"kind":"http"}` {
		return fmt.Errorf("open %s", got)
	}
	st.Write([]byte{0, 0})
	requests := bufio.NewReader(st)
	for {
		req, err := http.ReadRequest(requests)
		if err != nil {
			return err
		}
		n, _ := io.Copy(io.Discard, req.Body)
		text := fmt.Sprintf("%s %s %d", req.Method, req.URL, n)
		fmt.Fprintf(st, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text)
	}
}

func TestPeerMadeByHandOpensStreamsAndHalfCloses(t *testing.T) {
	h, _ := handshake(t, plainHello, protocol.Handler{Stream: func(_ context.Context, s *protocol.Stream) {
		s.Accept()
		all, err := io.ReadAll(s) // until the peer's half-close
		fmt.Fprintf(s, "%s %s %d %v", s.Kind(), s.Open().Addr, len(all), err)
		s.CloseWrite()
	}})
	for _, size := range []int{0, 1, 100_000, 1 << 20} {
		st, err := h.mux.OpenStream()
		if err != nil {
			t.Fatal(err)
		}
		// The open and the first bytes leave together, without waiting.
		st.Write(append(frame(`{"kind":"tcp","addr":"db:5432","from":"the future"}`), make([]byte, size)...))
		st.Close() // in the original yamux, a half-close
		st.SetReadDeadline(time.Now().Add(patience))
		got, err := io.ReadAll(st)
		if want := fmt.Sprintf("\x00\x00tcp db:5432 %d <nil>", size); err != nil || string(got) != want {
			t.Errorf("got %q, %v, expected %q", got, err, want)
		}
	}
}

func TestHalfCloseFromOurSideLeavesThePeersDirectionOpen(t *testing.T) {
	h, relay := handshake(t, plainHello, protocol.Handler{})
	st := open(t, relay)
	defer st.Close()
	io.WriteString(st, "question")
	st.CloseWrite()
	peer, err := h.mux.AcceptStream()
	if err != nil {
		t.Fatal(err)
	}
	peer.SetReadDeadline(time.Now().Add(patience))
	hearFrame(t, peer)
	if got, err := io.ReadAll(peer); err != nil || string(got) != "question" {
		t.Fatalf("peer read %q, %v", got, err)
	}
	go func() {
		peer.Write(append([]byte{0, 0}, bytes.Repeat([]byte("a"), 600_000)...))
		peer.Close()
	}()
	if got, err := io.ReadAll(st); err != nil || len(got) != 600_000 {
		t.Errorf("read %d bytes of the answer, %v", len(got), err)
	}
}

// A Reply may arrive in pieces, and a read deadline may pass between them.
func TestReplyInPiecesSurvivesReadDeadlines(t *testing.T) {
	h, relay := handshake(t, plainHello, protocol.Handler{})
	st := open(t, relay)
	defer st.Close()
	st.Write([]byte("x"))
	peer, err := h.mux.AcceptStream()
	if err != nil {
		t.Fatal(err)
	}
	reply := frame(`{"code":"limit","message":"full"}`)
	for i, piece := range [][]byte{reply[:1], reply[1:9], reply[9:]} {
		peer.Write(piece)
		wait := 30 * time.Millisecond
		if i == 2 {
			wait = patience
		}
		st.SetReadDeadline(time.Now().Add(wait))
		_, err = st.Read(make([]byte, 1))
		if i < 2 && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("after piece %d: %v, expected a timeout", i, err)
		}
	}
	var e *protocol.Error
	if !errors.As(err, &e) || e.Code != protocol.CodeLimit || e.Message != "full" || !e.Unsent {
		t.Errorf("got %v, expected the refusal", err)
	}
}

func TestWhatALaterVersionAddsIsIgnored(t *testing.T) {
	hello := strings.Replace(plainHello, `{"versions":[1]`, `{"colour":"red","versions":[3,2,1]`, 1)
	hello = strings.Replace(hello, `"drain"`, `"teleport","drain"`, 1)
	h, relay := handshake(t, hello, protocol.Handler{})
	if !strings.Contains(h.answer, `"version":1,"features":["drain","tcp"]`) {
		t.Errorf("welcome %s", h.answer)
	}
	h.say(t, `{"type":"teleport","to":{"x":1}}`)
	h.say(t, `{"type":"ping","id":7,"mood":"good"}`)
	if got := h.hear(t); got != `{"type":"pong","id":7}` {
		t.Errorf("heard %s", got)
	}
	if relay.Has("teleport") || !relay.Has(protocol.FeatureDrain) {
		t.Error("features were not negotiated")
	}
}

func TestPeerWithoutTheDrainFeatureIsNotSentDrains(t *testing.T) {
	h, relay := handshake(t, strings.Replace(plainHello, `"drain",`, "", 1), protocol.Handler{})
	if err := relay.Drain(t.Context(), protocol.Drain{Reason: "deploy"}); err != nil {
		t.Errorf("drain: %v", err)
	}
	h.say(t, `{"type":"ping","id":1}`)
	if got := h.hear(t); got != `{"type":"pong","id":1}` {
		t.Errorf("heard %s, expected no drain", got)
	}
}

func TestDrainAndCloseAreWhatSPECSays(t *testing.T) {
	h, relay := handshake(t, plainHello, protocol.Handler{})
	done := make(chan error, 1)
	go func() {
		done <- relay.Drain(t.Context(), protocol.Drain{Reason: "deploy", Grace: 20 * time.Second, Reconnect: 1500 * time.Millisecond})
	}()
	if got := h.hear(t); got != `{"type":"drain","message":"deploy","grace_ms":20000,"reconnect_ms":1500}` {
		t.Errorf("heard %s", got)
	}
	select {
	case err := <-done:
		t.Errorf("drain ended before it was answered: %v", err)
	default:
	}
	h.say(t, `{"type":"drained"}`)
	if err := receive(t, done, "end of the drain"); err != nil {
		t.Error(err)
	}
	go relay.Close(protocol.CodeShutdown, "bye")
	if got := h.hear(t); got != `{"type":"close","code":"shutdown","message":"bye"}` {
		t.Errorf("heard %s", got)
	}
}

func TestHandshakeMessagesThatAreRefused(t *testing.T) {
	long := strings.Repeat("9", 16_230)
	for name, test := range map[string]struct{ hello, code string }{
		"version":             {strings.Replace(plainHello, "[1]", "[2,99]", 1), "version"},
		"no versions":         {strings.Replace(plainHello, "[1]", "[]", 1), "bad_message"},
		"no instance":         {strings.Replace(plainHello, "web.1", "", 1), "bad_message"},
		"tunnel out of range": {strings.Replace(plainHello, `"tunnels":1`, `"tunnels":17`, 1), "bad_message"},
		"not JSON":            {"hello", "bad_message"},
		"another type":        {`{"type":"ping","id":1}`, "bad_message"},
		"an endless type":     {`{"type":"` + strings.Repeat(`\"`, 8000) + `"}`, "bad_message"},
		"an endless number":   {strings.Replace(plainHello, "[1]", "["+long+"]", 1), "bad_message"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newRelay(t, false, protocol.AcceptConfig{})
			h := byHand(t, p, test.hello)
			if !strings.HasPrefix(h.answer, `{"type":"refuse","code":"`+test.code+`","message":"`) {
				t.Errorf("answer %.200s, expected a refusal with %s", h.answer, test.code)
			}
			h.mux.Close()
			if a := receive(t, p.sessions, "end at the relay"); protocol.CodeOf(a.err) != protocol.Code(test.code) {
				t.Errorf("accept ended with %v", a.err)
			}
		})
	}
}

func TestControlMessageThatCannotBeReadClosesTheSession(t *testing.T) {
	for _, bad := range []string{"", "{", `{"id":1}`, `{"type":"ping","id":-1}`, `{"type":"drain","grace_ms":-1}`, `{"type":"ping"} x`} {
		h, relay := handshake(t, plainHello, protocol.Handler{})
		h.say(t, bad)
		if got := h.hear(t); !strings.HasPrefix(got, `{"type":"close","code":"bad_message","message":"`) {
			t.Errorf("after %q: heard %s", bad, got)
		}
		h.mux.Close()
		receive(t, relay.Done(), "end of the session")
	}
}

func TestOpenThatCannotBeReadIsRefusedAndNothingElse(t *testing.T) {
	h, _ := handshake(t, plainHello, protocol.Handler{Stream: echo})
	for _, bad := range []string{"", "{", `{"kind":""}`, `{"kind":"http","addr":"a b:1"}`, `{"addr":"db:1"}`,
		`{"kind":"http","addr":"` + strings.Repeat("a", 263) + `"}`} {
		st, err := h.mux.OpenStream()
		if err != nil {
			t.Fatal(err)
		}
		st.Write(append(frame(bad), "bytes behind it"...))
		st.SetReadDeadline(time.Now().Add(patience))
		if got := hearFrame(t, st); !strings.HasPrefix(got, `{"code":"bad_message","message":"`) {
			t.Errorf("after %.50q: heard %q", bad, got)
		}
		if n, err := st.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("after the refusal: %d bytes, %v, expected the end", n, err)
		}
		st.Close()
	}
	h.say(t, `{"type":"ping","id":2}`)
	if got := h.hear(t); got != `{"type":"pong","id":2}` {
		t.Errorf("heard %s", got)
	}
}
