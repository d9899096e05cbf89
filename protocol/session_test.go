package protocol_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/protocoltest"
)

// run runs both ends; the agent serves streams with serve.
func run(t testing.TB, agent, relay *protocol.Session, h protocol.Handler) {
	t.Helper()
	var running sync.WaitGroup
	running.Go(func() { agent.Run(context.Background(), h) })
	running.Go(func() { relay.Run(context.Background(), protocol.Handler{}) })
	t.Cleanup(func() {
		agent.Close(protocol.CodeShutdown, "")
		relay.Close(protocol.CodeShutdown, "")
		running.Wait()
	})
}

func echo(_ context.Context, s *protocol.Stream) {
	s.Accept()
	io.Copy(s, s)
	s.CloseWrite()
}

func open(t testing.TB, s *protocol.Session) *protocol.Stream {
	t.Helper()
	st, err := s.Open(t.Context(), protocol.Open{Kind: protocol.KindHTTP})
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return st
}

func TestStreamCarriesBytesBothWaysAndHalfCloses(t *testing.T) {
	agent, relay := protocoltest.Pipe(t, protocoltest.Options{})
	run(t, agent, relay, protocol.Handler{Stream: echo})
	for _, size := range []int{0, 1, 4095, 32 << 10, 32<<10 + 1, 1 << 20, 5 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			st := open(t, relay)
			defer st.Close()
			want := make([]byte, size)
			rand.NewChaCha8([32]byte{byte(size)}).Read(want)
			go func() {
				st.Write(want)
				st.CloseWrite()
			}()
			got, err := io.ReadAll(st)
			if err != nil {
				t.Fatalf("read: %v", err)
			}
			if sha256.Sum256(got) != sha256.Sum256(want) {
				t.Fatalf("got %d bytes that differ from the %d sent", len(got), len(want))
			}
		})
	}
}

func TestManyStreamsAtOnceKeepTheirBytesApart(t *testing.T) {
	agent, relay := protocoltest.Pipe(t, protocoltest.Options{})
	run(t, agent, relay, protocol.Handler{Stream: echo})
	var streams sync.WaitGroup
	for i := range 100 {
		streams.Go(func() {
			st := open(t, relay)
			defer st.Close()
			want := bytes.Repeat([]byte{byte(i)}, 100_000+i)
			go func() {
				st.Write(want)
				st.CloseWrite()
			}()
			if got, err := io.ReadAll(st); err != nil || !bytes.Equal(got, want) {
				t.Errorf("stream %d: %d bytes, %v", i, len(got), err)
			}
		})
	}
	streams.Wait()
}

func TestRefusalReachesTheOpenerThatHasAlreadyWritten(t *testing.T) {
	agent, relay := protocoltest.Pipe(t, protocoltest.Options{})
	run(t, agent, relay, protocol.Handler{Stream: func(_ context.Context, s *protocol.Stream) {
		s.Refuse(protocol.CodeRefused, "nothing listens on 127.0.0.1:1")
	}})
	st := open(t, relay)
	defer st.Close()
	if _, err := st.Write(make([]byte, 100_000)); err != nil {
		t.Fatalf("write: %v", err)
	}
	_, err := st.Read(make([]byte, 1))
	var e *protocol.Error
	if !errors.As(err, &e) || e.Code != protocol.CodeRefused || !e.Unsent || !strings.Contains(e.Message, "127.0.0.1:1") {
		t.Fatalf("read: %v, expected the refusal, marked unsent", err)
	}
}

func TestResetReachesReaderAndWriterWithItsCode(t *testing.T) {
	agent, relay := protocoltest.Pipe(t, protocoltest.Options{})
	got := make(chan error, 2)
	run(t, agent, relay, protocol.Handler{Stream: func(_ context.Context, s *protocol.Stream) {
		s.Accept()
		_, err := io.Copy(io.Discard, s)
		got <- err
		for err = nil; err == nil; {
			_, err = s.Write(make([]byte, 1000))
		}
		got <- err
	}})
	st := open(t, relay)
	if err := st.AwaitReply(t.Context()); err != nil {
		t.Fatalf("reply: %v", err)
	}
	st.Reset(protocol.CodeTimeout)
	for range 2 {
		if err := <-got; protocol.CodeOf(err) != protocol.CodeTimeout {
			t.Errorf("peer got %v, expected code %s", err, protocol.CodeTimeout)
		}
	}
	if _, err := st.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("own read: %v, expected net.ErrClosed", err)
	}
}

// A reset overtakes unread bytes. An app that answers early and then drops the
// connection must still be heard.
func TestSpliceDeliversAnAnswerThatIsFollowedByACut(t *testing.T) {
	agent, relay := protocoltest.Pipe(t, protocoltest.Options{})
	answer := "HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n"
	run(t, agent, relay, protocol.Handler{Stream: func(_ context.Context, s *protocol.Stream) {
		s.Accept()
		app, theirs := tcpPair(t)
		go func() {
			theirs.Write([]byte(answer))
			cutTCP(theirs)
		}()
		protocol.Splice(s, app)
	}})
	st := open(t, relay)
	st.Write(make([]byte, 10))
	buf := make([]byte, len(answer))
	if _, err := io.ReadFull(st, buf); err != nil || string(buf) != answer {
		t.Fatalf("got %q, %v", buf, err)
	}
	st.Close()
}

func TestSpliceTellsACutFromAnEnd(t *testing.T) {
	for name, test := range map[string]struct {
		end  func(net.Conn)
		want func(error) bool
	}{
		"closed": {func(c net.Conn) { c.Close() }, func(err error) bool { return err == nil }},
		"cut":    {cutTCP, func(err error) bool { return protocol.CodeOf(err) == protocol.CodeReset }},
	} {
		t.Run(name, func(t *testing.T) {
			agent, relay := protocoltest.Pipe(t, protocoltest.Options{})
			run(t, agent, relay, protocol.Handler{Stream: func(_ context.Context, s *protocol.Stream) {
				s.Accept()
				app, theirs := tcpPair(t)
				go func() {
					theirs.Write([]byte("half an ans"))
					io.ReadFull(theirs, make([]byte, 2))
					test.end(theirs)
				}()
				protocol.Splice(s, app)
			}})
			st := open(t, relay)
			defer st.Close()
			st.Write([]byte("go"))
			got, err := io.ReadAll(st)
			if !test.want(err) {
				t.Errorf("read %q, then %v", got, err)
			}
		})
	}
}

func TestClosedStreamCutsTheAppsConnection(t *testing.T) {
	agent, relay := protocoltest.Pipe(t, protocoltest.Options{})
	ended := make(chan error, 1)
	run(t, agent, relay, protocol.Handler{Stream: func(_ context.Context, s *protocol.Stream) {
		s.Accept()
		app, theirs := tcpPair(t)
		go func() {
			_, err := io.Copy(io.Discard, theirs)
			ended <- err
		}()
		protocol.Splice(s, app)
	}})
	st := open(t, relay)
	if err := st.AwaitReply(t.Context()); err != nil {
		t.Fatal(err)
	}
	st.Close()
	if err := <-ended; err == nil {
		t.Error("the app saw a clean end, expected an abort: a client that has gone is not one that finished")
	}
}

// What comes for a connection that has ended while it owed nothing is provably not
// taken; what came before that may have been.
func TestBytesForAConnectionThatOwesNothingAnyMoreAreUnsent(t *testing.T) {
	agent, relay := protocoltest.Pipe(t, protocoltest.Options{})
	conns := make(chan net.Conn, 1)
	run(t, agent, relay, protocol.Handler{Stream: func(_ context.Context, s *protocol.Stream) {
		s.Accept()
		ours, theirs := tcpPair(t)
		conns <- theirs
		protocol.SpliceRequests(s, ours, nil)
	}})
	exchange := func(st *protocol.Stream, app net.Conn) {
		t.Helper()
		io.WriteString(st, "ask")
		if _, err := io.ReadFull(app, make([]byte, 3)); err != nil {
			t.Fatal(err)
		}
		io.WriteString(app, "answer")
		if _, err := io.ReadFull(st, make([]byte, 6)); err != nil {
			t.Fatal(err)
		}
	}
	end := func(st *protocol.Stream, app net.Conn) {
		t.Helper()
		app.Close()
		if _, err := st.Read(make([]byte, 1)); err != io.EOF {
			t.Fatalf("the app's end is %v", err)
		}
	}

	st := open(t, relay)
	app := <-conns
	exchange(st, app)
	end(st, app)
	io.WriteString(st, "too late")
	err := st.AwaitReset(10 * time.Second)
	var e *protocol.Error
	if !errors.As(err, &e) || e.Code != protocol.CodeStale || !e.Unsent {
		t.Errorf("bytes behind the end: %v, want %s, unsent", err, protocol.CodeStale)
	}
	st.Close()

	st = open(t, relay)
	app = <-conns
	exchange(st, app)
	io.WriteString(st, "ask")
	if _, err := io.ReadFull(app, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	end(st, app) // it owes an answer
	if err := st.AwaitReset(50 * time.Millisecond); protocol.CodeOf(err) == protocol.CodeStale {
		t.Errorf("a request that the app has read is called unsent")
	}
	st.Close()
}

// An upgraded connection has no turns: an end that half-closes it still reads.
func TestAnUpgradedConnectionHasNoTurns(t *testing.T) {
	for name, answer := range map[string][]string{
		"at once":        {"HTTP/1.1 101 Switching Protocols\r\n\r\n"},
		"byte for byte":  strings.Split("HTTP/1.1 101 Switching Protocols\r\n\r\n", ""),
		"behind another": {"HTTP/1.1 100 Continue\r\n\r\nHTT", "P/1.1 101 Switching Protocols\r\n\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			agent, relay := protocoltest.Pipe(t, protocoltest.Options{})
			conns := make(chan net.Conn, 1)
			run(t, agent, relay, protocol.Handler{Stream: func(_ context.Context, s *protocol.Stream) {
				s.Accept()
				ours, theirs := tcpPair(t)
				conns <- theirs
				protocol.SpliceRequests(s, ours, nil)
			}})
			st := open(t, relay)
			io.WriteString(st, "ask")
			app := <-conns
			if _, err := io.ReadFull(app, make([]byte, 3)); err != nil {
				t.Fatal(err)
			}
			for _, part := range answer {
				io.WriteString(app, part)
				if _, err := io.ReadFull(st, make([]byte, len(part))); err != nil {
					t.Fatal(err)
				}
			}
			app.(*net.TCPConn).CloseWrite()
			if _, err := st.Read(make([]byte, 1)); err != io.EOF {
				t.Fatalf("the app's end is %v", err)
			}
			io.WriteString(st, "still here")
			got := make([]byte, 10)
			if _, err := io.ReadFull(app, got); err != nil || string(got) != "still here" {
				t.Errorf("behind its end the app got %q, %v", got, err)
			}
		})
	}
}

func TestDrainStopsNewStreamsAndLetsOthersFinish(t *testing.T) {
	agent, relay := protocoltest.Pipe(t, protocoltest.Options{})
	drains := make(chan protocol.Drain, 1)
	var running sync.WaitGroup
	running.Go(func() { agent.Run(context.Background(), protocol.Handler{Stream: echo}) })
	running.Go(func() {
		relay.Run(context.Background(), protocol.Handler{Drain: func(d protocol.Drain) { drains <- d }})
	})
	before := open(t, relay)
	before.Write([]byte("a"))
	if _, err := io.ReadFull(before, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := agent.Drain(t.Context(), protocol.Drain{Reason: "deploy", Grace: 5 * time.Second}); err != nil {
		t.Fatalf("drain: %v", err)
	}
	if d := <-drains; d.Reason != "deploy" || d.Grace != 5*time.Second {
		t.Errorf("relay was told %+v", d)
	}
	_, err := relay.Open(t.Context(), protocol.Open{Kind: protocol.KindHTTP})
	var e *protocol.Error
	if !errors.As(err, &e) || e.Code != protocol.CodeDraining || !e.Unsent {
		t.Errorf("open after drain: %v", err)
	}
	before.Write([]byte("b"))
	if _, err := io.ReadFull(before, make([]byte, 1)); err != nil {
		t.Errorf("stream from before the drain: %v", err)
	}
	idle := make(chan error, 1)
	go func() { idle <- agent.WaitIdle(t.Context()) }()
	before.Close()
	if err := <-idle; err != nil {
		t.Errorf("wait idle: %v", err)
	}
	agent.Close(protocol.CodeShutdown, "bye")
	running.Wait()
}

func TestNobodyWaitsForAStreamThatIsAside(t *testing.T) {
	agent, relay := protocoltest.Pipe(t, protocoltest.Options{})
	aside := make(chan *protocol.Stream, 2)
	run(t, agent, relay, protocol.Handler{Stream: func(ctx context.Context, s *protocol.Stream) {
		if s.Kind() == protocol.KindLogs {
			s.Aside()
			s.Aside() // twice is once
		}
		s.Accept()
		aside <- s
		io.Copy(io.Discard, s)
	}})
	looks, err := relay.Open(t.Context(), protocol.Open{Kind: protocol.KindLogs})
	if err != nil {
		t.Fatal(err)
	}
	<-aside
	if n := agent.Active(); n != 0 {
		t.Errorf("%d active streams, want none", n)
	}
	if err := agent.WaitIdle(t.Context()); err != nil {
		t.Error(err)
	}
	works := open(t, relay)
	<-aside
	if n := agent.Active(); n != 1 {
		t.Errorf("%d active streams, want one", n)
	}
	looks.Close()
	works.Close()
	if err := agent.WaitIdle(t.Context()); err != nil || agent.Active() != 0 {
		t.Errorf("at the end %d active streams, %v", agent.Active(), err)
	}
}

func TestCloseTellsThePeerWhy(t *testing.T) {
	agent, relay := protocoltest.Pipe(t, protocoltest.Options{})
	ended := make(chan error, 1)
	go agent.Run(context.Background(), protocol.Handler{})
	go func() { ended <- relay.Run(context.Background(), protocol.Handler{}) }()
	agent.Close(protocol.CodeReplaced, "a newer one is here")
	err := <-ended
	if protocol.CodeOf(err) != protocol.CodeReplaced || !errors.Is(err, protocol.ErrClosedByPeer) {
		t.Errorf("relay's end: %v", err)
	}
}

// link joins two pipes and can stop carrying bytes while both ends stay open,
// as a router that forgot the connection does.
type link struct{ cut atomic.Bool }

func (l *link) wrap(far net.Conn) net.Conn {
	near, mid := net.Pipe()
	go l.carry(far, mid)
	go l.carry(mid, far)
	return near
}

func (l *link) carry(dst, src net.Conn) {
	buf := make([]byte, 4096)
	for {
		n, err := src.Read(buf)
		if l.cut.Load() {
			if err != nil {
				return // the other end is not told
			}
			continue
		}
		if err != nil {
			dst.Close()
			return
		}
		dst.Write(buf[:n])
	}
}

func TestHalfOpenLinkIsNoticedByBothEndsAfterTwoMissedBeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l link
		agent, relay := protocoltest.Pipe(t, protocoltest.Options{Heartbeat: 20 * time.Second, Wrap: l.wrap})
		type end struct {
			err   error
			after time.Duration
		}
		ends := make(chan end, 2)
		suspects := make(chan time.Duration, 2)
		start := time.Now()
		var cut atomic.Int64 // since start
		sinceCut := func() time.Duration { return time.Since(start) - time.Duration(cut.Load()) }
		for _, s := range []*protocol.Session{agent, relay} {
			go func() {
				err := s.Run(context.Background(), protocol.Handler{Suspect: func() { suspects <- sinceCut() }})
				ends <- end{err, sinceCut()}
			}()
		}
		time.Sleep(5 * time.Minute) // in the bubble: beats keep a healthy session alive
		select {
		case e := <-ends:
			t.Fatalf("a healthy session ended: %v", e.err)
		default:
		}
		cut.Store(int64(time.Since(start)))
		l.cut.Store(true)
		for range 2 {
			e := <-ends
			if protocol.CodeOf(e.err) != protocol.CodeDead {
				t.Errorf("ended with %v, expected %s", e.err, protocol.CodeDead)
			}
			if e.after < 32*time.Second || e.after > 73*time.Second {
				t.Errorf("noticed after %v, expected two to three beats", e.after)
			}
		}
		if len(suspects) != 2 {
			t.Errorf("%d ends had a suspicion after one beat, expected both", len(suspects))
		}
	})
}

// The peer is silent on its control stream but sends a download: that is life.
func TestAnyByteCountsAsLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// The agent is never run: it answers no ping. What the relay sends is
		// thrown away on the way, so that only the agent's bytes flow.
		var deaf atomic.Bool
		agent, relay := protocoltest.Pipe(t, protocoltest.Options{Heartbeat: time.Second, Wrap: func(far net.Conn) net.Conn {
			near, mid := net.Pipe()
			go io.Copy(far, mid)
			go func() {
				buf := make([]byte, 4096)
				for {
					n, err := far.Read(buf)
					if err != nil {
						mid.Close()
						return
					}
					if !deaf.Load() {
						mid.Write(buf[:n])
					}
				}
			}()
			return near
		}})
		deaf.Store(true)
		ended := make(chan error, 1)
		go func() {
			ended <- relay.Run(context.Background(), protocol.Handler{Stream: func(_ context.Context, s *protocol.Stream) {
				s.Accept()
				io.Copy(io.Discard, s)
			}})
		}()
		st := open(t, agent)
		for range 60 {
			if _, err := st.Write([]byte("x")); err != nil {
				t.Fatalf("the session ended while bytes arrived: %v", err)
			}
			time.Sleep(500 * time.Millisecond)
		}
		if err := <-ended; protocol.CodeOf(err) != protocol.CodeDead {
			t.Errorf("ended with %v once the bytes stopped", err)
		}
	})
}

func TestSlowReaderHoldsNoMoreThanItsWindow(t *testing.T) {
	agent, relay := protocoltest.Pipe(t, protocoltest.Options{})
	var sent atomic.Int64
	run(t, agent, relay, protocol.Handler{Stream: func(_ context.Context, s *protocol.Stream) {
		s.Accept()
		for {
			n, err := s.Write(make([]byte, 10_000))
			sent.Add(int64(n))
			if err != nil {
				return
			}
		}
	}})
	slow := open(t, relay)
	defer slow.Close()
	if err := slow.AwaitReply(t.Context()); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(5 * time.Second)
	for sent.Load() < 240<<10 && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond) // polling with a deadline
	}
	if got := sent.Load(); got < 240<<10 || got > 257<<10 {
		t.Errorf("the stalled stream took %d bytes, expected its window of 256 KiB", got)
	}
	// The window is full; another stream must not notice.
	agentEcho := open(t, relay)
	defer agentEcho.Close()
	if err := agentEcho.AwaitReply(t.Context()); err != nil {
		t.Fatalf("a second stream behind a stalled one: %v", err)
	}
}

func tcpPair(t testing.TB) (ours, theirs net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if ours, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if theirs, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return ours, theirs
}

func cutTCP(c net.Conn) {
	c.(*net.TCPConn).SetLinger(0)
	c.Close()
}
