// Package report tells the relay how the app is doing: what it writes, what it
// uses, what the port doctor says, and in the end how it ended.
//
//	Reporter.Run
//	  Config.Open → a stream of protocol.KindReport; on failure again, slower the
//	                longer it lasts, or at once after Poke
//	  session.run   the latest lines, vitals and findings; then lines in batches,
//	                vitals every five seconds, findings when they change
//	  …until the stream is lost (open another one) or End is called
//	  session.end   the last lines, vitals, exit, FIN; the relay's FIN says it is stored
//
// The one rule to know: the relay may be slow or gone, and nothing of the app
// waits for it. Lines are read from the log only as fast as they may be sent; what
// does not fit into the bandwidth is left out there, the oldest first, and counted.
//
// Goroutines: Run is one, in its caller's; it starts one for each stream, which
// waits for the relay's end of it, and waits for that one before it opens the next
// stream or returns. With nothing to send it wakes every five seconds, for the
// vitals.
package report

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/posternhq/postern/protocol"
)

// Stream is a stream of protocol.KindReport; *protocol.Stream is one.
type Stream interface {
	io.ReadWriteCloser
	CloseWrite() error
	SetWriteDeadline(time.Time) error
}

// Lines is the app's output; *logs.Log is one.
type Lines interface {
	// Follow returns a reader of the latest lines, about back bytes of them, and then
	// of what comes.
	Follow(back int) Follower
}

// Follower reads the app's output from a place of its own on. It is an alias, so
// that agent/logs, which this package does not import, can have the same one.
type Follower = interface {
	// Next returns the next lines, of about limit bytes together; none when there are
	// none.
	Next(limit int) []protocol.Line
	// Skip leaves out the oldest of what is to come, but for about keep bytes.
	Skip(keep int)
	// Wait returns a channel that gets a value when about so many bytes have come
	// since the last Next or Skip.
	Wait(bytes int) <-chan struct{}
	Close()
}

// Config is what a Reporter needs. Open is required.
type Config struct {
	// Open opens a stream on any session of the agent. It fails while there is none.
	// An error with protocol.CodeUnsupported says that the relay takes no reports:
	// then it is asked again after Poke only.
	Open  func(context.Context, protocol.Open) (Stream, error)
	Lines Lines // nil: no lines are sent
	// Sample is what the app's processes use. It is called every five seconds, and
	// every second while memory moves. nil: no vitals are sent.
	Sample func() (protocol.Vitals, error)
	// Sockets, when set, is asked for the sockets of the vitals: every thirty seconds,
	// and when memory has jumped. To list them the kernel walks a table that may have
	// half a million places, whoever they belong to, which costs more than all the
	// rest. nil: those of Sample.
	Sockets func() []protocol.Socket
	Logger  *slog.Logger // default: discard
}

// Reporter keeps one stream of reports open. All methods are safe for concurrent
// use.
type Reporter struct {
	cfg     Config
	log     *slog.Logger
	poked   chan struct{} // holds one value
	changed chan struct{} // holds one value: there are new findings
	ending  chan struct{} // closed by End
	over    chan struct{} // closed when Run has returned
	once    sync.Once     // closes ending

	quiet bool // owned by Run: the log knows that there is no stream

	late   context.Context // done when End has waited for long enough
	giveUp context.CancelFunc

	mu       sync.Mutex
	findings *protocol.Findings // guarded by mu; nil: none were set
	exit     protocol.Exit      // guarded by mu; set before ending is closed
	told     bool               // guarded by mu; the relay has the exit
}

const (
	minBackoff = time.Second
	maxBackoff = 30 * time.Second
	// lasting is how long a stream must last to count as one that works.
	lasting = 10 * time.Second
)

// ErrNotTold is what End returns when the relay may not know how the app ended.
var ErrNotTold = errors.New("the relay was not told how the app ended")

// New makes a Reporter that does nothing until Run.
func New(cfg Config) *Reporter {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	late, giveUp := context.WithCancel(context.Background())
	return &Reporter{
		cfg: cfg, log: cfg.Logger, late: late, giveUp: giveUp,
		poked:   make(chan struct{}, 1),
		changed: make(chan struct{}, 1),
		ending:  make(chan struct{}),
		over:    make(chan struct{}),
	}
}

// Poke says that a session was opened: where there is no stream, one is tried at
// once.
func (r *Reporter) Poke() { put(r.poked) }

// SetFindings replaces the findings of the port doctor.
func (r *Reporter) SetFindings(f protocol.Findings) {
	f.List = append([]protocol.Finding(nil), f.List...)
	r.mu.Lock()
	r.findings = &f
	r.mu.Unlock()
	put(r.changed)
}

// put leaves a value in a channel that holds one.
func put(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// End reports how the app ended, behind its last lines, and waits until the relay
// has stored it or ctx ends; Run returns then. The log must be closed before: an
// unfinished line would be missing. End is called once, while Run runs.
func (r *Reporter) End(ctx context.Context, exit protocol.Exit) error {
	defer r.giveUp()
	r.once.Do(func() {
		r.mu.Lock()
		r.exit = exit
		r.mu.Unlock()
		close(r.ending)
	})
	select {
	case <-r.over:
	case <-ctx.Done():
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.told {
		return ErrNotTold
	}
	return nil
}

func (r *Reporter) isEnding() bool {
	select {
	case <-r.ending:
		return true
	default:
		return false
	}
}

// Run reports until ctx ends or End has been called and has had its say. It is
// called once.
func (r *Reporter) Run(ctx context.Context) {
	defer close(r.over)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(r.late, cancel)
	defer stop()
	for backoff := minBackoff; ctx.Err() == nil; backoff = min(2*backoff, maxBackoff) {
		s, err := r.cfg.Open(ctx, protocol.Open{Kind: protocol.KindReport})
		if err == nil {
			begin := time.Now()
			if err = r.report(ctx, s); err == nil {
				return // all is told
			}
			if time.Since(begin) > lasting {
				backoff, r.quiet = minBackoff, false
			}
		}
		if !r.pause(ctx, backoff, err) {
			return
		}
	}
}

// pause waits before a stream is opened again; false when none ever will be.
func (r *Reporter) pause(ctx context.Context, backoff time.Duration, err error) bool {
	if !r.quiet && ctx.Err() == nil {
		r.quiet = true
		r.log.Debug("no report to the relay", "err", err)
	}
	ending := r.ending
	if r.isEnding() {
		ending, backoff = nil, minBackoff/4
	}
	timer := time.NewTimer(backoff/2 + rand.N(backoff/2))
	defer timer.Stop()
	again := timer.C
	if protocol.CodeOf(err) == protocol.CodeUnsupported {
		if ending == nil {
			return false
		}
		again = nil
	}
	select {
	case <-again:
	case <-r.poked:
	case <-ending:
	case <-ctx.Done():
		return false
	}
	return true
}

// report uses one stream. nil means that End was called and the relay has all.
func (r *Reporter) report(ctx context.Context, s Stream) error {
	sess := &session{r: r, stream: s, over: make(chan struct{}), left: burst, filled: time.Now()}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if r.cfg.Lines != nil {
		sess.lines = r.cfg.Lines.Follow(tail)
		defer sess.lines.Close()
	}
	go sess.listen()
	err := sess.run()
	s.Close()
	<-sess.over
	if err != nil && sess.err != nil && protocol.CodeOf(sess.err) != "" {
		return sess.err // the relay's reason
	}
	return err
}
