package logs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/protocoltest"
)

// serve runs l behind a session and returns the relay's end of it.
func serve(t *testing.T, l *Log) *protocol.Session {
	t.Helper()
	agent, relay := protocoltest.Pipe(t, protocoltest.Options{})
	var running sync.WaitGroup
	running.Go(func() { agent.Run(context.Background(), protocol.Handler{Stream: l.Serve}) })
	running.Go(func() { relay.Run(context.Background(), protocol.Handler{}) })
	t.Cleanup(func() {
		relay.Close(protocol.CodeShutdown, "test over")
		running.Wait()
	})
	return relay
}

func open(t *testing.T, relay *protocol.Session, o protocol.Open) *protocol.Stream {
	t.Helper()
	s, err := relay.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func ask(lines int, follow bool) protocol.Open {
	return protocol.Open{Kind: protocol.KindLogs, Logs: &protocol.LogQuery{Lines: lines, Follow: follow}}
}

// readAll reads lines until the stream ends.
func readAll(t *testing.T, s io.Reader) []protocol.Line {
	t.Helper()
	var lines []protocol.Line
	for {
		r, err := protocol.ReadReport(s)
		if err == io.EOF {
			return lines
		}
		if err != nil {
			t.Fatalf("after %d lines: %v", len(lines), err)
		}
		lines = append(lines, r.Lines...)
	}
}

func TestStreamHasTheLatestLinesAndEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := New(Config{Secrets: []string{"hunter2hunter2"}})
		for n := range 1000 {
			l.Add(names[n%2], fmt.Sprintf("%d hunter2hunter2 %s", n, strings.Repeat("x", n)))
		}
		relay := serve(t, l)
		begin := time.Now()
		lines := readAll(t, open(t, relay, ask(300, false)))
		if len(lines) != 300 {
			t.Fatalf("%d lines, want 300", len(lines))
		}
		for n, line := range lines {
			n += 700
			if want := fmt.Sprintf("%d [hidden] %s", n, strings.Repeat("x", n)); line.Text != want || line.Stream != names[n%2] {
				t.Fatalf("line %.30q of %s, want %.30q", line.Text, line.Stream, want)
			}
		}
		if lines := readAll(t, open(t, relay, ask(0, false))); len(lines) != 0 {
			t.Errorf("%d lines, none were asked for", len(lines))
		}
		if lines := readAll(t, open(t, relay, ask(1<<40, false))); len(lines) != 1000 {
			t.Errorf("%d lines, want all", len(lines))
		}
		if took := time.Since(begin); took > time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

func TestStreamHasNoMoreLinesThanAskedFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := New(Config{})
		long := strings.Repeat("x", protocol.MaxLine)
		for range 100 {
			l.Add(Stdout, long)
		}
		s := open(t, serve(t, l), ask(99, false)) // more than its window takes
		if err := s.AwaitReply(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		for range 50 {
			l.Add(Stdout, long)
		}
		if n := len(readAll(t, s)); n != 99 {
			t.Errorf("%d lines, 99 were asked for", n)
		}
	})
}

func TestStreamFollows(t *testing.T) {
	t.Parallel()
	for _, halfClosed := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			l := New(Config{})
			l.Add(Stdout, "before")
			relay := serve(t, l)
			s := open(t, relay, ask(10, true))
			if halfClosed { // it has nothing to say, and still reads
				s.CloseWrite()
			}
			next := func() []string {
				t.Helper()
				r, err := protocol.ReadReport(s)
				if err != nil {
					t.Fatal(err)
				}
				return texts(r.Lines)
			}
			if got := next(); len(got) != 1 || got[0] != "before" {
				t.Errorf("first %q", got)
			}
			time.Sleep(time.Hour + time.Second)
			l.Add(Stdout, "one")
			synctest.Wait()
			l.Add(Stderr, "two")
			if got := next(); len(got) != 2 || got[0] != "one" || got[1] != "two" {
				t.Errorf("%q, want both lines in one message", got)
			}
			tee := l.Tee(Stdout, io.Discard)
			fmt.Fprint(tee, "three\nno end")
			l.Close()
			if got := texts(readAll(t, s)); len(got) != 2 || got[0] != "three" || got[1] != "no end(cut)" {
				t.Errorf("the end is %q", got)
			}
		})
	}
}

func TestStreamThatIsClosedIsNotServedAnyMore(t *testing.T) {
	t.Parallel()
	for _, halfClosed := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			l := New(Config{})
			relay := serve(t, l)
			s := open(t, relay, ask(10, true))
			if halfClosed {
				s.CloseWrite()
			}
			if err := s.AwaitReply(t.Context()); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if n := l.serving.Load(); n != 1 {
				t.Fatalf("%d streams are served, want 1", n)
			}
			s.Close()
			if halfClosed {
				time.Sleep(2 * probe)
			}
			synctest.Wait()
			if n := l.serving.Load(); n != 0 {
				t.Errorf("%d streams are served", n)
			}
			l.mu.Lock()
			defer l.mu.Unlock()
			if len(l.followers) > 0 {
				t.Errorf("%d followers are left", len(l.followers))
			}
		})
	}
}

func TestSlowReaderMissesLinesAndIsToldHowMany(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := New(Config{Size: 64 << 10})
		relay := serve(t, l)
		s := open(t, relay, ask(10, true))
		if err := s.AwaitReply(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		tee := l.Tee(Stdout, io.Discard)
		const lines = 50_000 // far more than the window and the ring hold
		begin := time.Now()
		for n := range lines {
			fmt.Fprintf(tee, "%d\n", n)
			if n%100 == 0 {
				time.Sleep(gather) // for whoever would read
			}
		}
		if took := time.Since(begin); took > lines/100*gather {
			t.Errorf("the writer was held up for %v", took-lines/100*gather)
		}
		l.Close()
		next, missed := 0, 0
		for _, line := range readAll(t, s) {
			next += line.Missed
			missed += line.Missed
			if line.Text != fmt.Sprint(next) {
				t.Fatalf("line %q, want %d", line.Text, next)
			}
			next++
		}
		if next != lines || missed == 0 {
			t.Errorf("%d lines in all, %d of them missed; want %d", next, missed, lines)
		}
	})
}

func TestQuestionThatCannotBeAnsweredIsRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := New(Config{})
		relay := serve(t, l)
		refused := func(o protocol.Open, code protocol.Code) {
			t.Helper()
			var e *protocol.Error
			if err := open(t, relay, o).AwaitReply(t.Context()); !errors.As(err, &e) || e.Code != code {
				t.Errorf("%v, want %s", err, code)
			}
		}
		refused(protocol.Open{Kind: protocol.KindTCP}, protocol.CodeUnsupported)
		refused(protocol.Open{Kind: protocol.KindLogs}, protocol.CodeBadMessage)
		var all []*protocol.Stream
		for range maxServing {
			s := open(t, relay, ask(1, true))
			if err := s.AwaitReply(t.Context()); err != nil {
				t.Fatal(err)
			}
			all = append(all, s)
		}
		refused(ask(1, true), protocol.CodeLimit)
		all[0].Close()
		synctest.Wait()
		if err := open(t, relay, ask(1, true)).AwaitReply(t.Context()); err != nil {
			t.Errorf("after one has gone: %v", err)
		}
	})
}
