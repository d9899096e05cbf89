package protocol_test

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/protocoltest"
)

// room is a Budget of so many bytes.
type room struct{ left atomic.Int64 }

func (r *room) Reserve(n int) bool {
	if r.left.Add(-int64(n)) < 0 {
		r.left.Add(int64(n))
		return false
	}
	return true
}

func (r *room) Release(n int) { r.left.Add(int64(n)) }

func TestUnreadBytesOfThePeersStreamsAreBounded(t *testing.T) {
	const limit = 300 << 10
	unread := &room{}
	unread.left.Store(limit)
	agent, relay := protocoltest.Pipe(t, protocoltest.Options{Relay: protocol.Config{Unread: unread}})
	read := make(chan struct{})
	go agent.Run(t.Context(), protocol.Handler{})
	go relay.Run(t.Context(), protocol.Handler{Stream: func(_ context.Context, s *protocol.Stream) {
		s.Accept()
		<-read // somebody who does not read
		io.Copy(io.Discard, s)
		s.CloseWrite()
	}})
	first, second := open(t, agent), open(t, agent)
	defer first.Close()
	defer second.Close()
	chunk := make([]byte, 200<<10) // within each window, not within the room for both
	if _, err := first.Write(chunk); err != nil {
		t.Fatal(err)
	}
	await(t, "the first stream's bytes have arrived", func() bool { return unread.left.Load() == limit-int64(len(chunk)) })
	if _, err := second.Write(chunk); err != nil {
		t.Fatal(err)
	}
	if err := second.AwaitReply(t.Context()); err == nil {
		_, err = second.Read(make([]byte, 1))
		var e *protocol.Error
		if !errors.As(err, &e) || e.Code != protocol.CodeLimit {
			t.Errorf("the second stream: %v, expected a reset with %s", err, protocol.CodeLimit)
		}
	}
	close(read)
	first.CloseWrite()
	if _, err := io.ReadAll(first); err != nil {
		t.Errorf("the first stream: %v", err)
	}
	await(t, "all room is given back", func() bool { return unread.left.Load() == limit })
}

// await polls until ok, for a while.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}
