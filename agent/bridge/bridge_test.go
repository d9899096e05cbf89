package bridge_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/posternhq/postern/agent/bridge"
)

// patience ends a test that would otherwise hang; nothing is expected to take it.
const patience = 20 * time.Second

// app is a listener whose connections the test holds.
type app struct{ net.Listener }

func newApp(t testing.TB, addr string) *app {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Skipf("cannot listen on %s: %v", addr, err)
	}
	t.Cleanup(func() { l.Close() })
	return &app{Listener: l}
}

func (a *app) address() string { return a.Addr().String() }

// take accepts the next connection.
func (a *app) take(t testing.TB) *net.TCPConn {
	t.Helper()
	a.Listener.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
	conn, err := a.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return ready(t, conn)
}

func ready(t testing.TB, conn net.Conn) *net.TCPConn {
	t.Helper()
	conn.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.TCPConn)
}

// running is a Bridge with its Run.
type running struct {
	*bridge.Bridge
	end   context.CancelFunc // of Run's context
	ended chan struct{}
}

func start(t testing.TB, cfg bridge.Config) *running {
	t.Helper()
	b, err := bridge.Listen(t.Context(), "127.0.0.1:0", cfg)
	if err != nil {
		t.Fatal(err)
	}
	return begin(t, b)
}

func begin(t testing.TB, b *bridge.Bridge) *running {
	ctx, end := context.WithCancel(context.Background())
	r := &running{Bridge: b, end: end, ended: make(chan struct{})}
	go func() {
		defer close(r.ended)
		b.Run(ctx)
	}()
	t.Cleanup(func() {
		end()
		<-r.ended
	})
	return r
}

// isOver waits for Run to return.
func (r *running) isOver(t testing.TB) {
	t.Helper()
	select {
	case <-r.ended:
	case <-time.After(patience):
		t.Fatal("Run does not return")
	}
}

func (r *running) address() string { return r.Addrs()[0].String() }

func (r *running) dial(t testing.TB) *net.TCPConn {
	t.Helper()
	conn, err := net.DialTimeout("tcp", r.address(), patience)
	if err != nil {
		t.Fatal(err)
	}
	return ready(t, conn)
}

func to(addr string) func() string { return func() string { return addr } }

// pass sends text through and checks that it arrives.
func pass(t testing.TB, from, to net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(from, text); err != nil {
		t.Fatalf("write: %v", err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(to, got); err != nil || string(got) != text {
		t.Fatalf("got %q, %v; want %q", got, err, text)
	}
}

// ends checks that conn has nothing more to read, and ended as it should.
func ends(t testing.TB, conn net.Conn, want error) {
	t.Helper()
	n, err := conn.Read(make([]byte, 1))
	if n != 0 || !errors.Is(err, want) {
		t.Errorf("read %d, %v; want %v", n, err, want)
	}
}

func TestBytesPassBothWaysAndEachDirectionEndsByItself(t *testing.T) {
	t.Parallel()
	for _, clientFirst := range []bool{true, false} {
		t.Run(fmt.Sprintf("client first %v", clientFirst), func(t *testing.T) {
			t.Parallel()
			a := newApp(t, "127.0.0.1:0")
			b := start(t, bridge.Config{Target: to(a.address())})
			one := b.dial(t)
			other := a.take(t)
			pass(t, one, other, "request")
			pass(t, other, one, "answer")
			if !clientFirst {
				one, other = other, one
			}
			one.CloseWrite()
			ends(t, other, io.EOF)
			pass(t, other, one, strings.Repeat("the other direction goes on ", 10_000))
			other.CloseWrite()
			ends(t, one, io.EOF)
		})
	}
}

func TestAResetStaysAReset(t *testing.T) {
	t.Parallel()
	for _, byClient := range []bool{true, false} {
		t.Run(fmt.Sprintf("by client %v", byClient), func(t *testing.T) {
			t.Parallel()
			a := newApp(t, "127.0.0.1:0")
			b := start(t, bridge.Config{Target: to(a.address())})
			one := b.dial(t)
			other := a.take(t)
			pass(t, one, other, "half of what was to c")
			if !byClient {
				one, other = other, one
			}
			one.SetLinger(0)
			one.Close()
			other.SetDeadline(time.Now().Add(3 * time.Second)) // at once, and not when the bridge loses patience
			ends(t, other, syscall.ECONNRESET)
		})
	}
}

// A server that refuses an upload answers at once and closes, with the rest unread. Its
// kernel makes a reset of that; the answer must not be lost on the way.
func TestTheAnswerOfAnAppThatDoesNotReadOnArrives(t *testing.T) {
	t.Parallel()
	a := newApp(t, "127.0.0.1:0")
	b := start(t, bridge.Config{Target: to(a.address())})
	for range 20 {
		client := b.dial(t)
		server := a.take(t)
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			client.Write(make([]byte, 8<<20)) // fails some time
		}()
		if _, err := io.ReadFull(server, make([]byte, 1<<10)); err != nil {
			t.Fatal(err)
		}
		const answer = "HTTP/1.1 413 Content Too Large\r\n\r\n"
		io.WriteString(server, answer)
		server.Close()
		got := make([]byte, len(answer))
		if n, err := io.ReadFull(client, got); err != nil {
			t.Fatalf("got %q, %v", got[:n], err)
		}
		client.Close()
		<-sent
	}
}

func TestAnAppThatTakesNoConnectionIsReported(t *testing.T) {
	t.Parallel()
	gone := newApp(t, "127.0.0.1:0")
	gone.Close()
	for _, target := range []string{gone.address(), ""} {
		refused := make(chan error, 1)
		b := start(t, bridge.Config{Target: to(target), Refused: func(err error) { refused <- err }})
		// The reset may be there before connect has returned.
		if conn, err := net.Dial("tcp", b.address()); err == nil {
			ends(t, ready(t, conn), syscall.ECONNRESET)
		} else if !errors.Is(err, syscall.ECONNRESET) {
			t.Error(err)
		}
		if err := <-refused; target != "" && !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%q: %v", target, err)
		}
	}
}

func TestTheTargetMayMove(t *testing.T) {
	t.Parallel()
	first, second := newApp(t, "127.0.0.1:0"), newApp(t, "127.0.0.1:0")
	var target atomic.Value
	target.Store(first.address())
	b := start(t, bridge.Config{Target: func() string { return target.Load().(string) }})
	old := b.dial(t)
	oldServer := first.take(t)
	target.Store(second.address())
	pass(t, b.dial(t), second.take(t), "to the new one")
	pass(t, old, oldServer, "still to the old one")
}

func TestNoMoreConnectionsThanAllowedAtATime(t *testing.T) {
	t.Parallel()
	a := newApp(t, "127.0.0.1:0")
	b := start(t, bridge.Config{Target: to(a.address()), MaxConns: 1})
	first := b.dial(t)
	firstServer := a.take(t)
	second := b.dial(t) // as far as the kernel is concerned
	io.WriteString(second, "wait")
	pass(t, first, firstServer, "all mine")
	a.Listener.(*net.TCPListener).SetDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := a.Accept(); !isTimeout(err) {
		t.Errorf("a second connection came through: %v", err)
	}
	first.Close()
	firstServer.Close()
	pass(t, a.take(t), second, "your turn")
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

func TestADrainedBridgeLetsConnectionsFinish(t *testing.T) {
	t.Parallel()
	a := newApp(t, "127.0.0.1:0")
	b := start(t, bridge.Config{Target: to(a.address())})
	client := b.dial(t)
	server := a.take(t)
	drained := make(chan error, 1)
	go func() { drained <- b.Drain(t.Context()) }()
	waitFree(t, b.address())
	pass(t, client, server, "still here")
	select {
	case err := <-drained:
		t.Fatalf("drained too early: %v", err)
	default:
	}
	client.Close()
	server.Close()
	if err := <-drained; err != nil {
		t.Error(err)
	}
	b.isOver(t)
	if err := b.Drain(t.Context()); err != nil {
		t.Errorf("a second time: %v", err)
	}
}

// waitFree waits until nobody listens on addr any more. It does not connect, because
// the bridge may still take that.
func waitFree(t *testing.T, addr string) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if l, err := net.Listen("tcp", addr); err == nil {
			l.Close()
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("the port is still taken")
}

// The router has connected before it knew of the stop; the bridge has not accepted yet.
func TestADrainedBridgeServesWhoIsInTheQueue(t *testing.T) {
	t.Parallel()
	a := newApp(t, "127.0.0.1:0")
	go func() {
		for conn, err := a.Accept(); err == nil; conn, err = a.Accept() {
			go func() {
				defer conn.Close()
				io.Copy(conn, conn)
			}()
		}
	}()
	for range 10 {
		l, err := bridge.Listen(t.Context(), "127.0.0.1:0", bridge.Config{Target: to(a.address())})
		if err != nil {
			t.Fatal(err)
		}
		var clients []*net.TCPConn
		for range 5 {
			conn, err := net.Dial("tcp", l.Addrs()[0].String())
			if err != nil {
				t.Fatal(err)
			}
			clients = append(clients, ready(t, conn))
		}
		b := begin(t, l)
		pass(t, clients[0], clients[0], "accepting")
		drained := make(chan error, 1)
		go func() { drained <- b.Drain(t.Context()) }()
		for _, client := range clients {
			pass(t, client, client, "each of us")
			client.Close()
		}
		if err := <-drained; err != nil {
			t.Error(err)
		}
	}
}

func TestTheEndOfADrainResetsTheRest(t *testing.T) {
	t.Parallel()
	a := newApp(t, "127.0.0.1:0")
	b := start(t, bridge.Config{Target: to(a.address())})
	client := b.dial(t)
	server := a.take(t)
	ctx, cancel := context.WithCancel(t.Context())
	drained := make(chan error, 1)
	go func() { drained <- b.Drain(ctx) }()
	waitFree(t, b.address())
	cancel()
	if err := <-drained; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	b.isOver(t)
	ends(t, client, syscall.ECONNRESET)
	ends(t, server, syscall.ECONNRESET)
}

func TestTheEndOfTheContextIsTheEnd(t *testing.T) {
	t.Parallel()
	a := newApp(t, "127.0.0.1:0")
	b := start(t, bridge.Config{Target: to(a.address())})
	client := b.dial(t)
	a.take(t)
	b.end()
	b.isOver(t)
	ends(t, client, syscall.ECONNRESET)
	waitFree(t, b.address())
}

func TestABridgeThatNeverRanGivesItsPortBack(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*bridge.Bridge){
		"drain": func(b *bridge.Bridge) { b.Drain(t.Context()) },
		"close": func(b *bridge.Bridge) { b.Close() },
	} {
		b, err := bridge.Listen(t.Context(), "127.0.0.1:0", bridge.Config{Target: to("")})
		if err != nil {
			t.Fatal(err)
		}
		end(b)
		waitFree(t, b.Addrs()[0].String())
		b.Run(t.Context()) // returns
		if t.Failed() {
			t.Error(name)
		}
	}
}

// When the app that listened on 127.0.0.1 ends, its address may be the bridge's own.
func TestABridgeDoesNotLeadToItself(t *testing.T) {
	t.Parallel()
	var self atomic.Value
	self.Store("")
	var refused atomic.Int32
	reasons := make(chan error, 16)
	b, err := bridge.Listen(t.Context(), ":0", bridge.Config{
		Target:  func() string { return self.Load().(string) },
		Refused: func(err error) { refused.Add(1); reasons <- err },
	})
	if err != nil {
		t.Fatal(err)
	}
	begin(t, b)
	_, port, _ := net.SplitHostPort(b.Addrs()[0].String())
	for i, host := range []string{"127.0.0.1", "localhost", "0.0.0.0"} {
		self.Store(net.JoinHostPort(host, port))
		if conn, err := net.Dial("tcp", "127.0.0.1:"+port); err == nil {
			ends(t, ready(t, conn), syscall.ECONNRESET)
		}
		if err := <-reasons; !strings.Contains(err.Error(), "bridge itself") {
			t.Errorf("%s: %v", host, err)
		}
		if got := refused.Load(); got != int32(i)+1 {
			t.Errorf("%s: %d connections came of it", host, got)
		}
	}
}

func TestALargeTransferArrivesWhole(t *testing.T) {
	t.Parallel()
	a := newApp(t, "127.0.0.1:0")
	b := start(t, bridge.Config{Target: to(a.address())})
	sent := make([]byte, 32<<20)
	for i := range sent {
		sent[i] = byte(i >> 8 * (i & 3))
	}
	client := b.dial(t)
	server := a.take(t)
	go func() {
		server.Write(sent)
		server.Close()
	}()
	got, err := io.ReadAll(client)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d bytes of %d, %v", len(got), len(sent), err)
	}
}
