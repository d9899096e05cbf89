package protocol

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// line is one line of SPEC.md's transcript.
type line struct {
	agent bool // who sends it
	data  []byte
	part  bool // a header whose payload is the next line
	text  string
}

var (
	transcriptBlock = regexp.MustCompile("(?s)```transcript\n(.*?)```")
	transcriptToken = regexp.MustCompile(`'[^']*'|[0-9a-f]+`)
)

func transcript(t *testing.T) []line {
	t.Helper()
	block := transcriptBlock.FindStringSubmatch(spec(t))
	if block == nil {
		t.Fatal("no transcript")
	}
	var lines []line
	for text := range strings.Lines(block[1]) {
		who, rest, _ := strings.Cut(strings.TrimSpace(text), "> ")
		rest, _, _ = strings.Cut(rest, " #")
		l := line{agent: who == "agent", text: text}
		for _, token := range transcriptToken.FindAllString(rest, -1) {
			if token[0] == '\'' {
				l.data = append(l.data, token[1:len(token)-1]...)
				continue
			}
			raw, err := hex.DecodeString(token)
			if err != nil {
				t.Fatalf("%s: %v", text, err)
			}
			l.data = append(l.data, raw...)
		}
		l.part = len(l.data) == 12 && l.data[1] == 0
		lines = append(lines, l)
	}
	return lines
}

// scriptedRelay does what the relay of the transcript does. opens says when to
// open its stream.
func scriptedRelay(opens <-chan struct{}, ended chan<- error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s, err := Accept(w, r, AcceptConfig{Welcome: func(Hello) (Welcome, error) {
			return Welcome{Session: "s1", Node: "n1"}, nil
		}})
		if err != nil {
			ended <- err
			return
		}
		go func() {
			<-opens
			st, err := s.Open(context.Background(), Open{Kind: KindHTTP})
			if err != nil {
				return
			}
			defer st.Close()
			io.WriteString(st, "hello")
			io.ReadFull(st, make([]byte, len("world")))
			st.CloseWrite()
			io.Copy(io.Discard, st)
		}()
		ended <- s.Run(context.Background(), Handler{Stream: func(_ context.Context, st *Stream) {
			st.Refuse(CodeUnsupported, "not here")
		}})
	}
}

// mframe is one frame of the multiplexer.
type mframe struct {
	typ     byte
	flags   uint16
	stream  uint32
	length  uint32
	payload string
}

func readMframe(r io.Reader) (f mframe, err error) {
	head := make([]byte, 12)
	if _, err := io.ReadFull(r, head); err != nil {
		return f, err
	}
	f.typ, f.flags = head[1], binary.BigEndian.Uint16(head[2:])
	f.stream, f.length = binary.BigEndian.Uint32(head[4:]), binary.BigEndian.Uint32(head[8:])
	if f.typ == 0 {
		payload := make([]byte, f.length)
		_, err = io.ReadFull(r, payload)
		f.payload = string(payload)
	}
	return f, err
}

// merger reads frames with what is a sender's own choice taken out: pings are
// left away, and a SYN or an ACK that came in a frame of its own is moved to the
// stream's next frame.
type merger struct {
	r    io.Reader
	held map[uint32]uint16
}

func (m *merger) next() (mframe, error) {
	for {
		f, err := readMframe(m.r)
		switch {
		case err != nil:
			return f, err
		case f.typ == 2:
		case f.typ == 1 && f.length == 0 && f.flags&^3 == 0:
			m.held[f.stream] |= f.flags
		default:
			f.flags |= m.held[f.stream]
			delete(m.held, f.stream)
			return f, nil
		}
	}
}

func TestRelayPlaysItsPartInTheTranscriptOfTheSpec(t *testing.T) {
	opens, ended := make(chan struct{}), make(chan error, 1)
	srv := httptest.NewServer(scriptedRelay(opens, ended))
	defer srv.Close()
	ws, _, err := websocket.Dial(t.Context(), srv.URL, &websocket.DialOptions{Subprotocols: []string{Subprotocol}})
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	conn := websocket.NetConn(t.Context(), ws, websocket.MessageBinary)
	conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	heard := &merger{conn, map[uint32]uint16{}}
	said := &merger{r: &bytes.Buffer{}, held: map[uint32]uint16{}} // by the relay in SPEC.md
	for _, l := range transcript(t) {
		if l.agent {
			if _, err := conn.Write(l.data); err != nil { // one line, one message
				t.Fatalf("%s: %v", l.text, err)
			}
			continue
		}
		if strings.Contains(l.text, "opens stream") {
			close(opens)
		}
		said.r.(*bytes.Buffer).Write(l.data)
		if l.part {
			continue
		}
		want, err := said.next()
		if err == io.EOF {
			continue // a SYN or an ACK alone
		}
		if err != nil {
			t.Fatalf("%s: %v", l.text, err)
		}
		if got, err := heard.next(); err != nil || got != want {
			t.Fatalf("%s: the relay sent %+v, %v, expected %+v", l.text, got, err, want)
		}
	}
	select {
	case err := <-ended:
		if CodeOf(err) != CodeShutdown || !errors.Is(err, ErrClosedByPeer) {
			t.Errorf("the session ended with %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the session did not end")
	}
}
