package report

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/posternhq/postern/protocol"
)

func TestReportFromBeginningToEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rl := newRelay(t, nil)
		o := &output{}
		o.add("one")
		o.add("two")
		var rss atomic.Int64
		rss.Store(1)
		r := start(t, Config{Open: rl.open, Lines: o, Sample: func() (protocol.Vitals, error) {
			return protocol.Vitals{RSS: rss.Load(), Processes: 1}, nil
		}})
		r.SetFindings(protocol.Findings{List: make([]protocol.Finding, 1)})
		rl.want(t, "1 findings; rss 1; one,two")
		time.Sleep(every / 2)
		o.add("three")
		time.Sleep(gather / 2)
		o.add("four")
		rl.want(t, "")
		time.Sleep(gather)
		rl.want(t, "three,four")
		r.SetFindings(protocol.Findings{})
		rl.want(t, "0 findings")
		rss.Store(2)
		time.Sleep(every)
		rl.want(t, "rss 2")
		o.add("five")
		if err := r.End(t.Context(), protocol.Exit{Code: 3}); err != nil {
			t.Error(err)
		}
		rl.want(t, "five; 0 findings; rss 2; exit 3")
		<-r.over
	})
}

func TestManyLinesAreNotWaitedFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rl := newRelay(t, nil)
		o := &output{}
		start(t, Config{Open: rl.open, Lines: o})
		rl.want(t, "")
		for range 3 {
			o.add(strings.Repeat("x", batch/2))
			synctest.Wait()
		}
		if n := len(rl.take()); n == 0 {
			t.Error("8 KiB of lines are still waited with")
		}
	})
}

func TestLinesBeyondTheBandwidthAreDroppedAndCounted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rl := newRelay(t, nil)
		o := &output{}
		r := start(t, Config{Open: rl.open, Lines: o})
		rl.take()
		const seconds = 10
		total := 0
		for range seconds * 10 { // a MiB each second
			for range 100 {
				o.add(fmt.Sprintf("%d %s", total, strings.Repeat("x", 1<<20/1000-lineCost)))
				total++
			}
			time.Sleep(time.Second / 10)
		}
		reports := rl.take()
		seen, size := 0, 0
		for _, report := range reports {
			for _, line := range report.Lines {
				seen += line.Missed
				if want := fmt.Sprint(seen, " "); !strings.HasPrefix(line.Text, want) {
					t.Fatalf("line %.20q, want %q", line.Text, want)
				}
				seen++
				size += len(line.Text) + lineCost
			}
		}
		if limit := seconds*rate + burst + tail; size > limit || size < limit/2 {
			t.Errorf("%d bytes in %d s, want about %d", size, seconds, limit)
		}
		if behind := total - seen; behind > backlog/1000+1000 {
			t.Errorf("the relay is %d lines behind", behind)
		}
		// However far behind, the end has the last lines, and those only.
		for range 200 {
			o.add(fmt.Sprintf("%d %s", total, strings.Repeat("x", 1<<20/1000-lineCost)))
			total++
		}
		if err := r.End(t.Context(), protocol.Exit{}); err != nil {
			t.Error(err)
		}
		size = 0
		for _, report := range rl.take() {
			for _, line := range report.Lines {
				seen += line.Missed + 1
				size += len(line.Text) + lineCost
			}
		}
		if size > tail || size < tail-2000 {
			t.Errorf("the end has %d bytes of lines, want %d", size, tail)
		}
		if seen != total {
			t.Errorf("%d lines were seen or missed, want %d", seen, total)
		}
	})
}

func TestJumpOfMemoryIsReportedAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rl := newRelay(t, nil)
		const limit = 1000
		var rss, samples atomic.Int64
		rss.Store(100)
		start(t, Config{Open: rl.open, Sample: func() (protocol.Vitals, error) {
			samples.Add(1)
			return protocol.Vitals{RSS: rss.Load(), Limit: limit}, nil
		}})
		rl.want(t, "rss 100")
		samples.Store(0)
		time.Sleep(100*every + time.Millisecond)
		synctest.Wait()
		if n := samples.Load(); n != 100 {
			t.Errorf("%d samples of a quiet app in %v, want 100", n, 100*every)
		}
		if n := len(rl.take()); n != 100 {
			t.Errorf("%d vitals of a quiet app, want 100", n)
		}
		rss.Store(140) // it moves
		time.Sleep(every)
		rl.want(t, "rss 140")
		rss.Store(170)
		time.Sleep(fast)
		rl.want(t, "")
		rss.Store(250)
		time.Sleep(fast)
		rl.want(t, "rss 250")
	})
}

func TestSocketsAreListedRarely(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rl := newRelay(t, nil)
		var rss, lists atomic.Int64
		start(t, Config{Open: rl.open,
			Sample: func() (protocol.Vitals, error) { return protocol.Vitals{RSS: rss.Load(), Limit: 100}, nil },
			Sockets: func() []protocol.Socket {
				lists.Add(1)
				return make([]protocol.Socket, 2*protocol.MaxSockets)
			},
		})
		time.Sleep(10*socketsEvery + every/2)
		reports := rl.take()
		for _, report := range reports {
			if n := len(report.Vitals.Sockets); n != protocol.MaxSockets {
				t.Fatalf("vitals with %d sockets, want %d", n, protocol.MaxSockets)
			}
		}
		if n := lists.Load(); n != 11 || len(reports) != 61 {
			t.Errorf("%d lists for %d vitals, want 11 for 61", n, len(reports))
		}
		rss.Store(90)
		time.Sleep(every)
		synctest.Wait()
		if n := lists.Load(); n != 12 {
			t.Errorf("%d lists after a jump, want 12", n)
		}
	})
}

func TestStreamIsOpenedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		first, second := newRelay(t, nil), newRelay(t, nil)
		o := &output{}
		o.add("one")
		var current atomic.Pointer[relay]
		var tries atomic.Int64
		r := start(t, Config{Lines: o, Open: func(ctx context.Context, open protocol.Open) (Stream, error) {
			tries.Add(1)
			if rl := current.Load(); rl != nil {
				return rl.open(ctx, open)
			}
			return nil, errors.New("no session")
		}})
		r.SetFindings(protocol.Findings{List: make([]protocol.Finding, 2)})
		time.Sleep(10 * time.Minute)
		if n := tries.Load(); n < 15 || n > 45 {
			t.Errorf("%d attempts in ten minutes without a session", n)
		}
		current.Store(first)
		r.Poke()
		first.want(t, "2 findings; one")
		o.add("two")
		time.Sleep(time.Minute)
		first.want(t, "two")
		current.Store(second)
		first.sess.Close(protocol.CodeReset, "gone")
		o.add("three")
		time.Sleep(2 * minBackoff)
		second.want(t, "2 findings; one,two,three")
		current.Store(first) // and the other one is lost while nothing happens
		second.sess.Close(protocol.CodeReset, "gone")
		current.Store(nil)
		time.Sleep(time.Hour)
		tries.Store(0)
		r.Poke()
		synctest.Wait()
		if tries.Load() != 1 {
			t.Errorf("%d attempts after a poke, want 1", tries.Load())
		}
	})
}

func TestRelayThatTakesNoReportsIsLeftAlone(t *testing.T) {
	t.Parallel()
	for name, refuse := range map[string]bool{"when opened": false, "when answered": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				rl := newRelay(t, func(s *protocol.Stream) { s.Refuse(protocol.CodeUnsupported, "no") })
				var tries atomic.Int64
				var log bytes.Buffer
				r := start(t, Config{
					Open: func(ctx context.Context, o protocol.Open) (Stream, error) {
						tries.Add(1)
						if refuse {
							return rl.open(ctx, o)
						}
						return nil, protocol.Errorf(protocol.CodeUnsupported, "the relay does not know reports")
					},
					Lines:  &output{},
					Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})),
				})
				time.Sleep(time.Hour)
				if n := tries.Load(); n != 1 {
					t.Errorf("%d attempts, want 1", n)
				}
				r.Poke() // a new session
				synctest.Wait()
				if n := tries.Load(); n != 2 {
					t.Errorf("%d attempts after a poke, want 2", n)
				}
				begin := time.Now()
				if err := r.End(t.Context(), protocol.Exit{}); !errors.Is(err, ErrNotTold) {
					t.Errorf("End: %v", err)
				}
				if took := time.Since(begin); took > time.Second {
					t.Errorf("End took %v, nobody is there to be told", took)
				}
				if n := strings.Count(log.String(), "\n"); n != 1 || !strings.Contains(log.String(), "level=DEBUG") {
					t.Errorf("logged %d lines, want one for debugging:\n%s", n, &log)
				}
			})
		})
	}
}

func TestEndWaitsUntilTheRelayHasStoredIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var rl *relay
		rl = newRelay(t, func(s *protocol.Stream) {
			defer s.Close()
			s.Accept()
			if rl.read(s) == io.EOF {
				time.Sleep(3 * time.Second) // a slow disk
				s.CloseWrite()
			}
		})
		r := start(t, Config{Open: rl.open, Lines: &output{}})
		synctest.Wait()
		begin := time.Now()
		if err := r.End(t.Context(), protocol.Exit{}); err != nil {
			t.Error(err)
		}
		if took := time.Since(begin); took != 3*time.Second {
			t.Errorf("End took %v", took)
		}
	})
}

func TestEndWaitsNoLongerThanItMay(t *testing.T) {
	t.Parallel()
	for name, handle := range map[string]func(*protocol.Stream){
		"for a relay that does not store": func(s *protocol.Stream) { s.Accept(); io.Copy(io.Discard, s); <-s.Session().Done() },
		"for a relay that does not read":  func(s *protocol.Stream) { s.Accept(); <-s.Session().Done() },
		"for a relay that always resets":  func(s *protocol.Stream) { s.Accept(); s.Reset(protocol.CodeLimit) },
		"for a session":                   nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				rl := newRelay(t, handle)
				o := &output{}
				open := rl.open
				if handle == nil {
					open = func(context.Context, protocol.Open) (Stream, error) { return nil, errors.New("no session") }
				}
				r := start(t, Config{Open: open, Lines: o})
				for range 100 { // more than the window takes
					for range 16 {
						o.add(strings.Repeat("x", protocol.MaxLine-lineCost))
					}
					time.Sleep(time.Second)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				defer cancel()
				begin := time.Now()
				if err := r.End(ctx, protocol.Exit{}); !errors.Is(err, ErrNotTold) {
					t.Errorf("End: %v", err)
				}
				if took := time.Since(begin); took != 2*time.Second {
					t.Errorf("End took %v", took)
				}
				synctest.Wait()
				select {
				case <-r.over:
				default:
					t.Error("Run goes on")
				}
			})
		})
	}
}

func TestEndIsToldToTheNextSession(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rl := newRelay(t, nil)
		o := &output{}
		o.add("last words")
		var there atomic.Bool
		r := start(t, Config{Lines: o, Open: func(ctx context.Context, open protocol.Open) (Stream, error) {
			if !there.Load() {
				return nil, errors.New("no session")
			}
			return rl.open(ctx, open)
		}})
		time.AfterFunc(time.Second, func() { there.Store(true) })
		begin := time.Now()
		if err := r.End(t.Context(), protocol.Exit{Code: 137}); err != nil {
			t.Error(err)
		}
		if took := time.Since(begin); took > 2*time.Second {
			t.Errorf("End took %v", took)
		}
		rl.want(t, "last words; exit 137")
	})
}

func TestRelayThatEndsTheReportIsGivenAnotherOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rl := newRelay(t, func(s *protocol.Stream) { // it drains
			defer s.Close()
			s.Accept()
			s.CloseWrite()
			io.Copy(io.Discard, s)
		})
		start(t, Config{Open: rl.open, Lines: &output{}})
		time.Sleep(time.Hour)
		rl.mu.Lock()
		defer rl.mu.Unlock()
		if rl.streams < 60 || rl.streams > 300 {
			t.Errorf("%d streams in an hour", rl.streams)
		}
	})
}

func TestAppThatCannotBeMeasuredIsReportedWithoutVitals(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rl := newRelay(t, nil)
		o := &output{}
		r := start(t, Config{Open: rl.open, Lines: o, Sample: func() (protocol.Vitals, error) {
			return protocol.Vitals{}, errors.New("no /proc")
		}})
		o.add("one")
		time.Sleep(time.Minute)
		rl.want(t, "one")
		if err := r.End(t.Context(), protocol.Exit{Code: 1}); err != nil {
			t.Error(err)
		}
		rl.want(t, "exit 1")
	})
}

// broken is a stream that cannot be written to, and then tells why.
type broken struct{ closed chan struct{} }

func (b *broken) Write([]byte) (int, error) { return 0, errors.New("reset") }
func (b *broken) Read([]byte) (int, error) {
	<-b.closed
	return 0, &protocol.Error{Code: protocol.CodeUnsupported, Unsent: true}
}
func (b *broken) Close() error                     { close(b.closed); return nil }
func (b *broken) CloseWrite() error                { return nil }
func (b *broken) SetWriteDeadline(time.Time) error { return nil }

func TestReasonOfTheRelayCountsMoreThanTheFailedWrite(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		o := &output{}
		o.add("one")
		start(t, Config{Lines: o, Open: func(context.Context, protocol.Open) (Stream, error) {
			tries++
			return &broken{closed: make(chan struct{})}, nil
		}})
		time.Sleep(time.Hour)
		synctest.Wait()
		if tries != 1 {
			t.Errorf("%d attempts, want 1: the relay takes no reports", tries)
		}
	})
}
