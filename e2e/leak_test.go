package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/posternhq/postern/e2e/rig"
	"github.com/posternhq/postern/protocol"
)

func TestAgentsThatComeAndGoLeaveNothingBehind(t *testing.T) {
	const (
		cycles   = 300
		together = 8
	)
	r := rig.StartRelay(t, rig.RelayConfig{})
	token := r.Token("shop")
	comeAndGo(t, r, token, 0) // what is made once is made now
	files, routines := openFiles(t, r.PID()), 0
	rig.Eventually(t, wait, "a relay at rest", func() error {
		before := routines
		files = openFiles(t, r.PID())
		if routines, _ = goroutines(t, r.Admin); routines != before {
			return fmt.Errorf("%d goroutines, a moment ago %d", routines, before)
		}
		return nil
	})
	heap := heapOf(t, r.Admin)

	began := time.Now()
	var running sync.WaitGroup
	next := make(chan int)
	for range together {
		running.Go(func() {
			for n := range next {
				comeAndGo(t, r, token, n)
			}
		})
	}
	for n := range cycles {
		next <- n
	}
	close(next)
	running.Wait()
	t.Logf("%d agents came and went in %v", cycles, time.Since(began).Round(time.Millisecond))

	var stacks string
	deadline := time.Now().Add(2 * wait)
	rig.Eventually(t, 3*wait, "files and goroutines as before", func() error {
		nowFiles := openFiles(t, r.PID())
		now, text := goroutines(t, r.Admin)
		stacks = text
		err := error(nil)
		if nowFiles > files || now > routines {
			err = fmt.Errorf("%d files, before %d; %d goroutines, before %d", nowFiles, files, now, routines)
		}
		if err != nil && time.Now().After(deadline) {
			t.Fatalf("%v\n%s", err, stacks)
		}
		return err
	})
	// Pools are emptied by the second collection.
	rig.Eventually(t, wait, "the heap as before", func() error {
		if after := heapOf(t, r.Admin); after > heap+2<<20 {
			return fmt.Errorf("the heap is %s, it was %s", mib(after), mib(heap))
		}
		return nil
	})
	t.Logf("files %d, goroutines %d, heap %s, as before", files, routines, mib(heap))
}

// comeAndGo connects an agent, sends it a request whose client leaves in the
// middle, and ends the agent in one of several ways.
func comeAndGo(t *testing.T, r *rig.Relay, token string, n int) {
	var wire net.Conn
	sess, err := protocol.Dial(context.Background(), protocol.DialConfig{
		URL: r.URL, Token: token,
		Hello: protocol.Hello{Instance: fmt.Sprint("web.", n), BootID: fmt.Sprintf("boot-%08d", n), Tunnels: 1},
		DialContext: func(ctx context.Context, addr string) (c net.Conn, err error) {
			var d net.Dialer
			wire, err = d.DialContext(ctx, "tcp", addr)
			return wire, err
		},
	})
	if err != nil {
		t.Errorf("cycle %d: %v", n, err)
		return
	}
	arrived := make(chan struct{}, 64)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- sess.Run(ctx, protocol.Handler{Stream: func(ctx context.Context, s *protocol.Stream) {
			answerHalf(ctx, s, n, arrived)
		}})
	}()
	leave := abortedRequest(r, n)
	select {
	case <-arrived: // here or, as agents take turns, at another of this moment
	case <-time.After(50 * time.Millisecond):
	}
	if n%8 < 4 {
		leave() // before the agent
	} else {
		defer leave() // after it
	}
	switch n % 4 {
	case 0:
		sess.Close(protocol.CodeShutdown, "done")
	case 1:
		wire.Close() // a crash
	case 2:
		drain, stop := context.WithTimeout(ctx, wait)
		err = sess.Drain(drain, protocol.Drain{Reason: "done", Grace: time.Second})
		stop()
		sess.Close(protocol.CodeShutdown, "done")
	case 3:
		cancel()
	}
	cancel()
	select {
	case <-ended:
	case <-time.After(wait):
		t.Errorf("cycle %d: the session does not end", n)
	}
	if err != nil && !errors.Is(err, protocol.ErrClosedByPeer) {
		t.Errorf("cycle %d: %v", n, err)
	}
}

// answerHalf is an app that answers a part, nothing, or refuses.
func answerHalf(ctx context.Context, s *protocol.Stream, n int, arrived chan<- struct{}) {
	defer s.Close()
	if n%5 == 4 {
		s.Refuse(protocol.CodeRefused, "nothing listens")
		return
	}
	if s.Accept() != nil {
		return
	}
	s.Read(make([]byte, 4096))
	if n%3 == 0 {
		io.WriteString(s, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\npart")
	}
	select {
	case arrived <- struct{}{}:
	default:
	}
	<-ctx.Done()
}

// abortedRequest sends a request, every third with an unfinished body; leave
// hangs up.
func abortedRequest(r *rig.Relay, n int) (leave func()) {
	conn, err := net.Dial("tcp", r.Addr)
	if err != nil {
		return func() {}
	}
	head := "GET / HTTP/1.1\r\nHost: " + r.AppHost("shop") + "\r\n\r\n"
	if n%3 == 1 {
		head = "POST / HTTP/1.1\r\nHost: " + r.AppHost("shop") + "\r\nContent-Length: 100000\r\n\r\npart"
	}
	io.WriteString(conn, head)
	return func() { conn.Close() }
}
