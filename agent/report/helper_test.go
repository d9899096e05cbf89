package report

import (
	"context"
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

// output is the app's output: a log of which nothing is dropped.
type output struct {
	mu        sync.Mutex
	lines     []protocol.Line // guarded by mu
	followers []*reader       // guarded by mu
}

func (o *output) add(text string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.lines = append(o.lines, protocol.Line{At: time.Now(), Stream: "stdout", Text: text})
	for _, r := range o.followers {
		r.wakeLocked()
	}
}

func (o *output) Follow(back int) Follower {
	o.mu.Lock()
	defer o.mu.Unlock()
	r := &reader{o: o, wake: make(chan struct{}, 1)}
	r.at = r.backLocked(back)
	o.followers = append(o.followers, r)
	return r
}

// reader is a place in an output; everything guarded by the output's lock.
type reader struct {
	o        *output
	at, want int
	missed   int
	wake     chan struct{}
}

func (r *reader) backLocked(bytes int) int {
	at := len(r.o.lines)
	for at > 0 && bytes >= len(r.o.lines[at-1].Text)+lineCost {
		at--
		bytes -= len(r.o.lines[at].Text) + lineCost
	}
	return at
}

func (r *reader) wakeLocked() {
	if r.want == 0 {
		return
	}
	size := 0
	for _, line := range r.o.lines[r.at:] {
		size += len(line.Text) + lineCost
	}
	if size >= r.want {
		r.want = 0
		put(r.wake)
	}
}

func (r *reader) Next(limit int) []protocol.Line {
	r.o.mu.Lock()
	defer r.o.mu.Unlock()
	var lines []protocol.Line
	for limit > 0 && r.at < len(r.o.lines) {
		line := r.o.lines[r.at]
		line.Missed, r.missed = r.missed, 0
		lines = append(lines, line)
		limit -= len(line.Text) + lineCost
		r.at++
	}
	return lines
}

func (r *reader) Skip(keep int) {
	r.o.mu.Lock()
	defer r.o.mu.Unlock()
	if at := r.backLocked(keep); at > r.at {
		r.missed += at - r.at
		r.at = at
	}
}

func (r *reader) Wait(bytes int) <-chan struct{} {
	r.o.mu.Lock()
	defer r.o.mu.Unlock()
	r.want = max(bytes, 1)
	r.wakeLocked()
	return r.wake
}

func (r *reader) Close() {}

// relay takes reports.
type relay struct {
	agent *protocol.Session
	sess  *protocol.Session

	mu      sync.Mutex
	reports []protocol.Report // guarded by mu
	at      []time.Time       // guarded by mu; when each came
	streams int               // guarded by mu
}

// newRelay makes one whose handler is called for each stream once it is accepted;
// nil: it reads to the end and answers with FIN.
func newRelay(t *testing.T, handle func(*protocol.Stream)) *relay {
	t.Helper()
	rl := &relay{}
	rl.agent, rl.sess = protocoltest.Pipe(t, protocoltest.Options{})
	var running sync.WaitGroup
	running.Go(func() { rl.agent.Run(context.Background(), protocol.Handler{}) })
	running.Go(func() {
		rl.sess.Run(context.Background(), protocol.Handler{Stream: func(_ context.Context, s *protocol.Stream) {
			rl.mu.Lock()
			rl.streams++
			rl.mu.Unlock()
			if handle != nil {
				handle(s)
				return
			}
			s.Accept()
			if rl.read(s) == io.EOF {
				s.CloseWrite()
			}
			s.Close()
		}})
	})
	t.Cleanup(func() {
		rl.sess.Close(protocol.CodeShutdown, "test over")
		running.Wait()
	})
	return rl
}

func (rl *relay) read(s io.Reader) error {
	for {
		report, err := protocol.ReadReport(s)
		if err != nil {
			return err
		}
		rl.mu.Lock()
		rl.reports = append(rl.reports, report)
		rl.at = append(rl.at, time.Now())
		rl.mu.Unlock()
	}
}

func (rl *relay) open(ctx context.Context, o protocol.Open) (Stream, error) {
	return rl.agent.Open(ctx, o)
}

// take waits until all is quiet and returns what has come since the last time.
func (rl *relay) take() []protocol.Report {
	synctest.Wait()
	rl.mu.Lock()
	defer rl.mu.Unlock()
	got := rl.reports
	rl.reports, rl.at = nil, nil
	return got
}

// in says what is in reports, in short.
func in(reports []protocol.Report) string {
	var all []string
	for _, r := range reports {
		var texts []string
		for _, line := range r.Lines {
			text := line.Text
			if line.Missed > 0 {
				text = fmt.Sprintf("(%d missed)%s", line.Missed, text)
			}
			texts = append(texts, text)
		}
		switch {
		case r.Lines != nil:
			all = append(all, strings.Join(texts, ","))
		case r.Vitals != nil:
			all = append(all, fmt.Sprintf("rss %d", r.Vitals.RSS))
		case r.Findings != nil:
			all = append(all, fmt.Sprintf("%d findings", len(r.Findings.List)))
		case r.Exit != nil:
			all = append(all, fmt.Sprintf("exit %d", r.Exit.Code))
		}
	}
	return strings.Join(all, "; ")
}

func (rl *relay) want(t *testing.T, want string) {
	t.Helper()
	if got := in(rl.take()); got != want {
		t.Errorf("the relay got %q, want %q", got, want)
	}
}

// start runs a Reporter until the test ends.
func start(t *testing.T, cfg Config) *Reporter {
	t.Helper()
	r := New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	go r.Run(ctx)
	t.Cleanup(func() {
		cancel()
		<-r.over
	})
	return r
}
