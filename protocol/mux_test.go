package protocol_test

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/protocoltest"
)

func TestStreamThatIsResetBeforeAnythingWasSentOnItIsResetForItsOpener(t *testing.T) {
	agent, relay := protocoltest.Pipe(t, protocoltest.Options{})
	run(t, agent, relay, protocol.Handler{Stream: func(_ context.Context, s *protocol.Stream) {
		s.Reset(protocol.CodeForbidden)
	}})
	st := open(t, relay)
	defer st.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := st.AwaitReply(ctx); protocol.CodeOf(err) != protocol.CodeForbidden {
		t.Errorf("opener got %v, expected %s", err, protocol.CodeForbidden)
	}
}

// slow is a connection that is read at a limited rate.
type slow struct {
	net.Conn
	perSecond int
}

func (s slow) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p[:min(len(p), 4<<10)])
	time.Sleep(time.Duration(n) * time.Second / time.Duration(s.perSecond))
	return n, err
}

// Whoever finds nobody sending sends, and others go on adding to what is to be
// sent. A short request must not be kept at that work by a bulk transfer.
func TestShortWriteIsNotKeptBusyByABulkTransfer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		agent, relay := protocoltest.Pipe(t, protocoltest.Options{Wrap: func(c net.Conn) net.Conn { return slow{c, 4 << 20} }})
		run(t, agent, relay, protocol.Handler{Stream: func(_ context.Context, s *protocol.Stream) {
			s.Accept()
			io.Copy(io.Discard, s)
		}})
		streams := []*protocol.Stream{open(t, relay), open(t, relay), open(t, relay)}
		for _, st := range streams {
			defer st.Close()
			if err := st.AwaitReply(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait() // nobody is sending
		took := make(chan time.Duration)
		go func() {
			start := time.Now()
			streams[0].Write(make([]byte, 20<<10))
			took <- time.Since(start)
		}()
		synctest.Wait() // the short write is on its way to the slow socket
		var bulk sync.WaitGroup
		for _, st := range streams[1:] {
			bulk.Go(func() { st.Write(make([]byte, 16<<20)) })
		}
		if d := <-took; d > time.Second {
			t.Errorf("beside a bulk transfer at 4 MiB/s a write of 20 KiB took %v", d)
		}
		bulk.Wait()
	})
}
