package protocol_test

import (
	"context"
	"io"
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

// plugged is a connection whose receiver stops reading when told to, as a
// process that is stopped does: the sender's socket fills up.
type plugged struct {
	net.Conn
	mu      sync.Mutex
	plug    chan struct{} // guarded by mu; non-nil while plugged
	removed chan struct{}
}

func (p *plugged) Read(b []byte) (int, error) {
	p.mu.Lock()
	plug := p.plug
	p.mu.Unlock()
	if plug != nil {
		select {
		case <-plug:
		case <-p.removed:
		}
	}
	return p.Conn.Read(b)
}

func (p *plugged) set() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.plug = make(chan struct{})
}

func (p *plugged) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.removed:
	default:
		close(p.removed)
	}
	return p.Conn.Close()
}

// stalled makes a session whose agent stops reading its socket. Heartbeats are
// rare, so that nothing but the write decides.
func stalled(t *testing.T) (agent, relay *protocol.Session) {
	p := &plugged{removed: make(chan struct{})}
	agent, relay = protocoltest.Pipe(t, protocoltest.Options{Heartbeat: 10 * time.Minute, Wrap: func(c net.Conn) net.Conn {
		p.Conn = c
		return p
	}})
	p.set()
	return agent, relay
}

func TestSocketThatTakesNoBytesEndsTheSessionAfterTheWriteStallLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, relay := stalled(t)
		ended := make(chan error, 1)
		go func() { ended <- relay.Run(context.Background(), protocol.Handler{}) }()
		start := time.Now()
		var writers sync.WaitGroup
		for range 20 {
			writers.Go(func() {
				st, err := relay.Open(t.Context(), protocol.Open{Kind: protocol.KindHTTP})
				if err != nil {
					return
				}
				for err == nil {
					_, err = st.Write(make([]byte, 100_000))
				}
				if protocol.CodeOf(err) != protocol.CodeReset {
					t.Errorf("a writer ended with %v", err)
				}
			})
		}
		err := <-ended
		if took := time.Since(start); took < 30*time.Second || took > 31*time.Second {
			t.Errorf("ended after %v with %v, expected 30 s", took, err)
		}
		if !strings.Contains(err.Error(), "timeout") { // the multiplexer's or the socket's, whoever is first
			t.Errorf("ended with %v, which does not say that a write timed out", err)
		}
		writers.Wait()
	})
}

// Regression: a control message that waited for its turn gave its own twenty
// seconds to the stream, and Close waited with it. Not in a bubble, whose clock
// stands still while somebody waits for a mutex. Control messages do not queue
// behind the streams' bytes any more.
func TestCloseDoesNotWaitForABlockedSocket(t *testing.T) {
	_, relay := stalled(t)
	ended := make(chan error, 1)
	go func() { ended <- relay.Run(context.Background(), protocol.Handler{}) }()
	var writers sync.WaitGroup
	for range 100 {
		writers.Go(func() {
			st, err := relay.Open(t.Context(), protocol.Open{Kind: protocol.KindHTTP})
			for err == nil {
				_, err = st.Write(make([]byte, 100_000))
			}
		})
	}
	blocked := func(marks ...string) func() bool {
		return func() bool {
			n := 0
			for _, stack := range ours() {
				if strings.Contains(stack, marks[0]) && strings.Contains(stack, marks[1]) {
					n++
				}
			}
			return n >= 3
		}
	}
	eventually(t, "the connection's buffer is full", blocked("protocol.(*wsConn).writeFrame", "sync.(*Cond).Wait"))
	start := time.Now()
	relay.Close(protocol.CodeShutdown, "bye")
	writers.Wait()
	if err := receive(t, ended, "end of the session"); protocol.CodeOf(err) != protocol.CodeShutdown {
		t.Errorf("ended with %v", err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("close took %v, expected its second to be heard", took)
	}
}

func TestEveryGoroutineIsGoneWhenRunReturns(t *testing.T) {
	for name, end := range map[string]func(agent, relay *protocol.Session, stop context.CancelFunc){
		"closed by the agent": func(a, _ *protocol.Session, _ context.CancelFunc) { a.Close(protocol.CodeShutdown, "") },
		"closed by the relay": func(_, r *protocol.Session, _ context.CancelFunc) { r.Close(protocol.CodeShutdown, "") },
		"closed by both": func(a, r *protocol.Session, _ context.CancelFunc) {
			go a.Close(protocol.CodeShutdown, "")
			r.Close(protocol.CodeShutdown, "")
		},
		"context ended": func(_, _ *protocol.Session, stop context.CancelFunc) { stop() },
	} {
		t.Run(name, func(t *testing.T) {
			check := leaks(t)
			agent, relay := connect(t, protocol.Config{}, protocol.Config{})
			ctx, stop := context.WithCancel(context.Background())
			defer stop()
			var running, streams sync.WaitGroup
			deaf := func(ctx context.Context, s *protocol.Stream) {
				s.Accept()
				io.WriteString(s, "x")
				<-ctx.Done()
			}
			running.Go(func() { agent.Run(ctx, protocol.Handler{Stream: deaf}) })
			running.Go(func() { relay.Run(ctx, protocol.Handler{Stream: deaf}) })
			for i := range 20 {
				opener := []*protocol.Session{agent, relay}[i%2]
				st := open(t, opener)
				if _, err := io.ReadFull(st, make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
				streams.Go(func() { // blocked in a write, and in a read
					go io.Copy(io.Discard, st)
					for err := error(nil); err == nil; {
						_, err = st.Write(make([]byte, 10_000))
					}
				})
			}
			end(agent, relay, stop)
			running.Wait()
			streams.Wait()
			check()
		})
	}
}

// ledger is a Budget that counts.
type ledger struct {
	limit          int64
	reserved, held atomic.Int64
	refused        atomic.Int64
}

func (l *ledger) Reserve(n int) bool {
	if l.held.Add(int64(n)) > l.limit {
		l.held.Add(int64(-n))
		l.refused.Add(1)
		return false
	}
	l.reserved.Add(int64(n))
	return true
}

func (l *ledger) Release(n int) { l.held.Add(int64(-n)) }

// far is a link with a long way: windows only grow when the round trip matters.
// For tests in a bubble.
func far(t *testing.T, delay time.Duration) func(net.Conn) net.Conn {
	return func(c net.Conn) net.Conn {
		t.Cleanup(func() { time.Sleep(2 * delay) }) // what is on its way arrives before the bubble ends
		near, mid := net.Pipe()
		go carryLate(c, mid, delay)
		go carryLate(mid, c, delay)
		return near
	}
}

type late struct {
	due  time.Time
	data []byte
}

// carryLate moves bytes from src to dst, each after delay, any number at once.
func carryLate(dst, src net.Conn, delay time.Duration) {
	onTheWay := make(chan late, 1<<16)
	go func() {
		for l := range onTheWay {
			time.Sleep(time.Until(l.due))
			dst.Write(l.data)
		}
		dst.Close()
	}()
	defer close(onTheWay)
	for {
		buf := make([]byte, 64<<10)
		n, err := src.Read(buf)
		if err != nil {
			return
		}
		onTheWay <- late{time.Now().Add(delay), buf[:n]}
	}
}

func TestWindowsGrowWithinTheBudgetAndGiveItBack(t *testing.T) {
	for name, test := range map[string]struct {
		limit     int64
		maxWindow int
		size      int           // of the transfer
		grown     int64         // what the window may grow by
		took      time.Duration // at most; the round trip is 100 ms
	}{
		"enough":     {64 << 20, 0, 16 << 20, 4<<20 - 256<<10, 4 * time.Second},
		"small max":  {64 << 20, 1 << 20, 8 << 20, 1<<20 - 256<<10, 3 * time.Second},
		"only a bit": {300 << 10, 0, 4 << 20, 256 << 10, 2 * time.Second},
		"none":       {0, 0, 4 << 20, 0, 4 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				budget := &ledger{limit: test.limit}
				agent, relay := protocoltest.Pipe(t, protocoltest.Options{
					Wrap: far(t, 50*time.Millisecond), Relay: protocol.Config{Budget: budget, MaxWindow: test.maxWindow},
				})
				run(t, agent, relay, protocol.Handler{Stream: func(_ context.Context, s *protocol.Stream) {
					s.Accept()
					s.Write(make([]byte, test.size))
					s.CloseWrite()
				}})
				time.Sleep(time.Second) // in the bubble: the round trip has been measured
				start := time.Now()
				st := open(t, relay)
				if n, err := io.Copy(io.Discard, st); n != int64(test.size) || err != nil {
					t.Errorf("%d bytes, %v", n, err)
				}
				if took := time.Since(start); took > test.took {
					t.Errorf("%d bytes took %v, expected at most %v", test.size, took, test.took)
				}
				if got := budget.reserved.Load(); got != test.grown {
					t.Errorf("%d bytes were reserved, expected %d", got, test.grown)
				}
				if test.limit == 0 && budget.refused.Load() == 0 {
					t.Error("the budget was not asked")
				}
				st.Close()
				synctest.Wait()
				if held := budget.held.Load(); held != 0 {
					t.Errorf("%d bytes are still held after the stream's end", held)
				}
			})
		})
	}
}

func TestSessionThatIsLostGivesItsBudgetBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		budget := &ledger{limit: 64 << 20}
		agent, relay := protocoltest.Pipe(t, protocoltest.Options{Wrap: far(t, 50*time.Millisecond), Relay: protocol.Config{Budget: budget}})
		run(t, agent, relay, protocol.Handler{Stream: func(_ context.Context, s *protocol.Stream) {
			s.Accept()
			for err := error(nil); err == nil; {
				_, err = s.Write(make([]byte, 100_000))
			}
		}})
		time.Sleep(time.Second)
		var readers sync.WaitGroup
		for range 5 {
			st := open(t, relay)
			readers.Go(func() { io.Copy(io.Discard, st) })
		}
		for budget.held.Load() == 0 {
			time.Sleep(100 * time.Millisecond) // in the bubble
		}
		agent.Close(protocol.CodeShutdown, "")
		readers.Wait()
		relay.Close(protocol.CodeShutdown, "")
		synctest.Wait()
		if held := budget.held.Load(); held != 0 {
			t.Errorf("%d bytes are still held after the session's end", held)
		}
	})
}

// The relay may close a session in the moment in which another goroutine begins
// to run it: two readers of one connection would tear each other's frames.
func TestSessionMayBeClosedWhileRunBegins(t *testing.T) {
	for range 30 {
		agent, relay := connect(t, protocol.Config{}, protocol.Config{})
		ended := make(chan error, 2)
		go func() { ended <- agent.Run(context.Background(), protocol.Handler{Stream: echo}) }()
		go func() { ended <- relay.Run(context.Background(), protocol.Handler{Stream: echo}) }()
		relay.Close(protocol.CodeReplaced, "")
		for range 2 {
			if err := receive(t, ended, "end of Run"); protocol.CodeOf(err) != protocol.CodeReplaced {
				t.Fatalf("ended with %v", err)
			}
		}
	}
}
