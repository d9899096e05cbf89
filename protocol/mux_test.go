package protocol_test

import (
	"context"
	"io"
	"sync"
	"testing"
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

// Whoever finds nobody sending sends, and others go on adding to what is to be
// sent. A short request must not be kept at that work by a bulk transfer.
func TestShortWriteIsNotKeptBusyByABulkTransfer(t *testing.T) {
	agent, relay := connect(t, protocol.Config{}, protocol.Config{})
	run(t, agent, relay, protocol.Handler{Stream: func(_ context.Context, s *protocol.Stream) {
		s.Accept()
		if s.Open().Addr == "" {
			io.Copy(io.Discard, s)
			return
		}
		io.Copy(s, s)
	}})
	stop := make(chan struct{})
	var bulk sync.WaitGroup
	for range 2 {
		st := open(t, relay)
		bulk.Go(func() {
			defer st.Close()
			for {
				select {
				case <-stop:
					return
				default:
					if _, err := st.Write(make([]byte, 256<<10)); err != nil {
						return
					}
				}
			}
		})
	}
	short, err := relay.Open(t.Context(), protocol.Open{Kind: protocol.KindTCP, Addr: "echo:1"})
	if err != nil {
		t.Fatal(err)
	}
	defer short.Close()
	var longest time.Duration
	for deadline := time.Now().Add(2 * time.Second); time.Now().Before(deadline); {
		start := time.Now()
		if _, err := io.WriteString(short, "ping"); err != nil {
			t.Fatal(err)
		}
		longest = max(longest, time.Since(start))
		if _, err := io.ReadFull(short, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	bulk.Wait()
	t.Logf("longest write: %v", longest)
	if longest > time.Second {
		t.Errorf("a write of four bytes took %v beside a bulk transfer", longest)
	}
}
