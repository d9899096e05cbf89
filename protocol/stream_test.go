package protocol_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/protocoltest"
)

func TestAwaitReplyTellsAcceptedFromRefused(t *testing.T) {
	agent, relay := protocoltest.Pipe(t, protocoltest.Options{})
	run(t, agent, relay, protocol.Handler{Stream: func(_ context.Context, s *protocol.Stream) {
		if s.Open().Addr == "no:1" {
			s.Refuse(protocol.CodeForbidden, "the policy says no")
			return
		}
		echo(t.Context(), s)
	}})
	for addr, want := range map[string]protocol.Code{"yes:1": "", "no:1": protocol.CodeForbidden} {
		st, err := relay.Open(t.Context(), protocol.Open{Kind: protocol.KindTCP, Addr: addr})
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		for range 2 { // the answer stays the answer
			if err := st.AwaitReply(t.Context()); protocol.CodeOf(err) != want {
				t.Errorf("%s: %v, expected code %q", addr, err, want)
			}
		}
	}
}

func TestAwaitReplyThatIsGivenUpCancelsTheStream(t *testing.T) {
	agent, relay := protocoltest.Pipe(t, protocoltest.Options{})
	got := make(chan error, 1)
	run(t, agent, relay, protocol.Handler{Stream: func(_ context.Context, s *protocol.Stream) {
		_, err := s.Read(make([]byte, 1)) // never accepts
		got <- err
	}})
	st := open(t, relay)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	if err := st.AwaitReply(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("await: %v", err)
	}
	if err := receive(t, got, "end of the stream"); protocol.CodeOf(err) != protocol.CodeCanceled {
		t.Errorf("peer got %v, expected %s", err, protocol.CodeCanceled)
	}
}

// An app may answer 413 and never read the body. The opener's writer is then
// stuck on a full window, and its reader must not be stuck behind it.
func TestReplyIsReadWhileAWriteIsStillBlocked(t *testing.T) {
	agent, relay := protocoltest.Pipe(t, protocoltest.Options{})
	full := make(chan struct{})
	run(t, agent, relay, protocol.Handler{Stream: func(ctx context.Context, s *protocol.Stream) {
		<-full
		s.Accept()
		io.WriteString(s, "413")
		<-ctx.Done()
	}})
	st := open(t, relay)
	defer st.Close()
	var sent atomic.Int64
	go func() {
		for n, err := 0, error(nil); err == nil; sent.Add(int64(n)) {
			n, err = st.Write(make([]byte, 10_000))
		}
	}()
	eventually(t, "the window is full", func() bool { return sent.Load() == 260_000 })
	close(full)
	got := make(chan string, 1)
	go func() {
		buf := make([]byte, 3)
		_, err := io.ReadFull(st, buf)
		got <- fmt.Sprint(string(buf), err)
	}()
	if answer := receive(t, got, "answer: the reader waits for the writer"); answer != "413<nil>" {
		t.Errorf("read %s", answer)
	}
}

func TestReadDeadlineBeforeTheReplyCanBeExtended(t *testing.T) {
	agent, relay := protocoltest.Pipe(t, protocoltest.Options{})
	goOn := make(chan struct{})
	run(t, agent, relay, protocol.Handler{Stream: func(_ context.Context, s *protocol.Stream) {
		<-goOn
		echo(t.Context(), s)
	}})
	st := open(t, relay)
	defer st.Close()
	st.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	_, err := st.Read(make([]byte, 1))
	var timeout net.Error
	if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Fatalf("read: %v, expected a timeout", err)
	}
	close(goOn)
	st.SetReadDeadline(time.Time{})
	checkEcho(t, st, "late but whole")
}

// Regression: a write that failed on its deadline had swallowed the Open, and
// the next one sent bytes that the peer took for it.
func TestFirstWriteThatTimesOutDoesNotLoseTheOpen(t *testing.T) {
	agent, relay := protocoltest.Pipe(t, protocoltest.Options{})
	kinds := make(chan protocol.Kind, 1)
	run(t, agent, relay, protocol.Handler{Stream: func(ctx context.Context, s *protocol.Stream) {
		kinds <- s.Kind()
		echo(ctx, s)
	}})
	st := open(t, relay)
	defer st.Close()
	st.SetWriteDeadline(time.Now().Add(-time.Second))
	if n, err := st.Write([]byte("lost")); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("wrote %d, %v, expected a timeout", n, err)
	}
	st.SetWriteDeadline(time.Time{})
	checkEcho(t, st, "after the deadline was lifted")
	if k := <-kinds; k != protocol.KindHTTP {
		t.Errorf("peer saw kind %q", k)
	}
}

func TestWriteDeadlineEndsAWriteThatWaitsForTheWindow(t *testing.T) {
	agent, relay := protocoltest.Pipe(t, protocoltest.Options{})
	goOn := make(chan struct{})
	got := make(chan int, 1)
	run(t, agent, relay, protocol.Handler{Stream: func(_ context.Context, s *protocol.Stream) {
		s.Accept()
		<-goOn
		all, _ := io.ReadAll(s)
		got <- len(all)
	}})
	st := open(t, relay)
	defer st.Close()
	st.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
	n, err := st.Write(make([]byte, 1<<20))
	if !errors.Is(err, os.ErrDeadlineExceeded) || n > 256<<10 {
		t.Fatalf("wrote %d, %v, expected a timeout within one window", n, err)
	}
	close(goOn)
	st.SetWriteDeadline(time.Time{})
	if _, err := st.Write([]byte("more")); err != nil {
		t.Errorf("write after the deadline was lifted: %v", err)
	}
	st.CloseWrite()
	if all := receive(t, got, "bytes at the peer"); all != n+4 {
		t.Errorf("peer read %d bytes, expected the %d that Write reported", all, n+4)
	}
}

// Regression: a reason longer than a message left the stream open for ever.
func TestRefusalWithAnEndlessReasonArrivesShortened(t *testing.T) {
	agent, relay := protocoltest.Pipe(t, protocoltest.Options{})
	run(t, agent, relay, protocol.Handler{Stream: func(_ context.Context, s *protocol.Stream) {
		s.Refuse(protocol.CodeRefused, strings.Repeat("dial: <é> ", 10_000))
	}})
	st := open(t, relay)
	defer st.Close()
	err := st.AwaitReply(t.Context())
	var e *protocol.Error
	if !errors.As(err, &e) || e.Code != protocol.CodeRefused || !strings.HasPrefix(e.Message, "dial: <é>") || len(e.Message) > 1100 {
		t.Fatalf("got %.100v", err)
	}
}

func TestCloseWriteAloneSendsTheOpen(t *testing.T) {
	agent, relay := protocoltest.Pipe(t, protocoltest.Options{})
	run(t, agent, relay, protocol.Handler{Stream: func(_ context.Context, s *protocol.Stream) {
		body, _ := io.ReadAll(s)
		s.Accept()
		s.Write(append(body, "nothing came"...))
		s.CloseWrite()
	}})
	st := open(t, relay)
	defer st.Close()
	if err := st.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(st); err != nil || string(got) != "nothing came" {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := st.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write after CloseWrite: %v", err)
	}
}

func TestStreamsOpenedBeforeAnybodyAcceptsAreAllServed(t *testing.T) {
	const streams = 600
	agent, relay := protocoltest.Pipe(t, protocoltest.Options{})
	var opened atomic.Int64
	done := make(chan error, streams)
	for range streams {
		go func() {
			st, err := relay.Open(t.Context(), protocol.Open{Kind: protocol.KindHTTP})
			if err != nil {
				done <- err
				return
			}
			opened.Add(1)
			defer st.Close()
			done <- st.AwaitReply(t.Context())
		}()
	}
	// The agent is not run yet and accepts nothing.
	eventually(t, "all streams are open", func() bool { return opened.Load() == streams })
	run(t, agent, relay, protocol.Handler{Stream: echo})
	for range streams {
		if err := receive(t, done, "reply"); err != nil {
			t.Fatalf("stream: %v", err)
		}
	}
}

func TestOpenWithAnEndedContextTakesNothing(t *testing.T) {
	agent, relay := protocoltest.Pipe(t, protocoltest.Options{})
	run(t, agent, relay, protocol.Handler{Stream: echo})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 2000 { // a fair coin would leave a thousand half-open streams behind
		if _, err := relay.Open(ctx, protocol.Open{Kind: protocol.KindHTTP}); !errors.Is(err, context.Canceled) {
			t.Fatalf("open: %v", err)
		}
	}
	if st := open(t, relay); st.ID() != 2 {
		t.Errorf("the next stream is number %d, expected 2: the others were made all the same", st.ID())
	}
}

func TestStreamBeyondMaxStreamsIsResetAndNoOther(t *testing.T) {
	agent, relay := protocoltest.Pipe(t, protocoltest.Options{
		Agent: protocol.Config{MaxStreams: 3}, Relay: protocol.Config{MaxStreams: 3},
	})
	var stop [2]context.CancelFunc
	for i, s := range []*protocol.Session{agent, relay} {
		var ctx context.Context
		ctx, stop[i] = context.WithCancel(context.Background())
		defer stop[i]()
		go s.Run(ctx, protocol.Handler{Stream: echo})
	}
	for name, s := range map[string]*protocol.Session{"relay opens": relay, "agent opens": agent} {
		t.Run(name, func(t *testing.T) {
			var streams []*protocol.Stream
			for range 3 {
				st := open(t, s)
				defer st.Close()
				checkEcho(t, st, "within the limit")
				streams = append(streams, st)
			}
			extra := open(t, s)
			defer extra.Close()
			if err := extra.AwaitReply(t.Context()); protocol.CodeOf(err) != protocol.CodeLimit {
				t.Errorf("stream number 4: %v, expected a reset", err)
			}
			for _, st := range streams {
				checkEcho(t, st, "still there")
			}
			streams[0].Close()
			eventually(t, "a closed stream makes room", func() bool {
				st := open(t, s)
				defer st.Close()
				return st.AwaitReply(t.Context()) == nil
			})
		})
	}
}

// checkEcho sends text and expects it back.
func checkEcho(t testing.TB, st *protocol.Stream, text string) {
	t.Helper()
	if _, err := io.WriteString(st, text); err != nil {
		t.Fatalf("write: %v", err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(st, got); err != nil || !bytes.Equal(got, []byte(text)) {
		t.Fatalf("got %q, %v, expected %q", got, err, text)
	}
}
