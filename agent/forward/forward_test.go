package forward

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/protocoltest"
)

// serve runs f behind a session and returns the relay's end of it.
func serve(t *testing.T, f *Forwarder) *protocol.Session {
	t.Helper()
	agent, relay := protocoltest.Pipe(t, protocoltest.Options{})
	var running sync.WaitGroup
	running.Go(func() { agent.Run(context.Background(), protocol.Handler{Stream: f.Serve}) })
	running.Go(func() { relay.Run(context.Background(), protocol.Handler{}) })
	t.Cleanup(func() {
		relay.Close(protocol.CodeShutdown, "test over")
		running.Wait()
	})
	return relay
}

// open opens a stream and waits for the agent's reply.
func open(t *testing.T, relay *protocol.Session, o protocol.Open) (*protocol.Stream, error) {
	t.Helper()
	s, err := relay.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, s.AwaitReply(t.Context())
}

func listen(t *testing.T, addr string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// nobody is an address on which nothing listens.
func nobody(t *testing.T) string {
	t.Helper()
	l := listen(t, "127.0.0.1:0")
	l.Close()
	return l.Addr().String()
}

func TestStreamIsJoinedToTheApp(t *testing.T) {
	for _, kind := range []protocol.Kind{protocol.KindHTTP, protocol.KindTCP} {
		t.Run(string(kind), func(t *testing.T) {
			l := listen(t, "127.0.0.1:0")
			s, err := open(t, serve(t, New(l.Addr().String(), nil)), protocol.Open{Kind: kind})
			if err != nil {
				t.Fatal(err)
			}
			app, err := l.Accept() // it is there: the reply came after the connection
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(s, "question")
			s.CloseWrite()
			if got, err := io.ReadAll(app); err != nil || string(got) != "question" {
				t.Errorf("the app read %q, %v", got, err)
			}
			io.WriteString(app, "answer") // after the other direction has ended
			app.Close()
			if got, err := io.ReadAll(s); err != nil || string(got) != "answer" {
				t.Errorf("the relay read %q, %v", got, err)
			}
		})
	}
}

// A refusal must prove that nothing reached the app: the relay sends the request
// to another agent then.
func TestStreamIsRefusedWhenTheAppDoesNotAcceptIt(t *testing.T) {
	target := nobody(t)
	s, err := open(t, serve(t, New(target, nil)), protocol.Open{Kind: protocol.KindHTTP})
	var refused *protocol.Error
	if !errors.As(err, &refused) || refused.Code != protocol.CodeRefused || !refused.Unsent {
		t.Fatalf("got %v, want %s, and nothing sent", err, protocol.CodeRefused)
	}
	if want := "nothing listens on " + target; refused.Message != want {
		t.Errorf("the relay is told %q, want %q", refused.Message, want)
	}
	if s.Accepted() {
		t.Error("the stream was accepted before the app was asked")
	}
}

func TestStreamThatIsNotForTheAppIsRefusedWithoutAConnection(t *testing.T) {
	l := listen(t, "127.0.0.1:0")
	relay := serve(t, New(l.Addr().String(), nil))
	for _, test := range []struct {
		name string
		open protocol.Open
		code protocol.Code
		says string
	}{
		{"of an unknown kind", protocol.Open{Kind: "shell"}, protocol.CodeUnsupported, "kind shell"},
		{"of an unknown kind to an address", protocol.Open{Kind: "udp", Addr: "127.0.0.1:53"}, protocol.CodeUnsupported, "kind udp"},
		{"to another address", protocol.Open{Kind: protocol.KindTCP, Addr: "169.254.169.254:80"}, protocol.CodeForbidden, "own port only"},
		{"to the app's own address, spelled out", protocol.Open{Kind: protocol.KindTCP, Addr: l.Addr().String()}, protocol.CodeForbidden, "own port only"},
		{"to another address, as http", protocol.Open{Kind: protocol.KindHTTP, Addr: "127.0.0.1:22"}, protocol.CodeForbidden, "own port only"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := open(t, relay, test.open)
			if protocol.CodeOf(err) != test.code || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v, want %s with %q", err, test.code, test.says)
			}
		})
	}
	// The first connection that the app sees is of the first stream for it.
	s, err := open(t, relay, protocol.Open{Kind: protocol.KindTCP})
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(s, "mine")
	s.CloseWrite()
	app, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer app.Close()
	if got, _ := io.ReadAll(app); string(got) != "mine" {
		t.Errorf("the app's first connection brought %q", got)
	}
}

func TestRefusingAppIsLoggedOnceAndOnceWhenItIsBack(t *testing.T) {
	var log bytes.Buffer
	target := nobody(t)
	relay := serve(t, New(target, slog.New(slog.NewTextHandler(&log, nil))))
	lines := func(text string) int { return strings.Count(log.String(), text) }
	for range 3 {
		if _, err := open(t, relay, protocol.Open{Kind: protocol.KindHTTP}); err == nil {
			t.Fatal("accepted although nobody listens")
		}
	}
	if n := lines("does not accept connections"); n != 1 {
		t.Errorf("three refusals make %d lines:\n%s", n, &log)
	}
	l := listen(t, target)
	for range 3 {
		if _, err := open(t, relay, protocol.Open{Kind: protocol.KindHTTP}); err != nil {
			t.Fatal(err)
		}
	}
	if n := lines("accepts connections again"); n != 1 {
		t.Errorf("three connections make %d lines:\n%s", n, &log)
	}
	l.Close()
	if _, err := open(t, relay, protocol.Open{Kind: protocol.KindHTTP}); err == nil {
		t.Fatal("accepted although nobody listens any more")
	}
	if n := lines("does not accept connections"); n != 2 {
		t.Errorf("the second outage makes %d lines in all:\n%s", n, &log)
	}
}

func TestFailedDialIsExplained(t *testing.T) {
	for _, test := range []struct {
		err  error
		says string
	}{
		{&net.OpError{Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}, "nothing listens on app:80"},
		{&net.OpError{Err: os.ErrDeadlineExceeded}, "app:80 does not accept the connection in time"},
		{context.DeadlineExceeded, "app:80 does not accept the connection in time"},
		{&net.DNSError{Err: "no such host", Name: "app"}, "app:80 cannot be reached"},
	} {
		if code, message := explain(test.err, "app:80"); code != protocol.CodeRefused || message != test.says {
			t.Errorf("%v: %s %q, want %s %q", test.err, code, message, protocol.CodeRefused, test.says)
		}
	}
}
