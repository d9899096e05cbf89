// Package logs keeps the latest output of the app in memory, secrets masked, for
// whoever asks the relay for it, and for the last words.
//
//	Log.Tee      the app's bytes go to the agent's own stdout or stderr, unchanged and
//	             first; then framer cuts them into lines, masker hides what is
//	             secret, and ring keeps them
//	Log.Add      the same for what the agent says itself
//	Log.Follow   a reader with a place of its own; Log.Serve is one behind a stream
//	Log.Tail     the latest lines, once
//
// The one rule to know: nobody who reads is waited for. A reader that is too slow
// finds that lines are gone and is told how many (Line.Missed). The lock is held to
// copy one line in, or a few KiB out, never over I/O.
//
// Secrets are masked before a line is kept, so that no way of reading a Log can
// forget to. What counts as one is in secrets.go (by value) and shapes.go (by
// looks).
//
// Goroutines: the package starts two kinds. Serve has one that waits for the peer
// to go, and waits for it before it returns. A line that is not finished is kept
// after a second of silence by a timer of its Tee, which Close stops. Tee itself
// works in its caller's goroutine.
package logs

import (
	"cmp"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/posternhq/postern/protocol"
)

// The streams that a Log keeps.
const (
	Stdout  = "stdout"
	Stderr  = "stderr"
	Postern = "postern" // what the agent itself says
)

var names = [...]string{Stdout, Stderr, Postern}

// number is the place of a stream's name; any other name is the agent's own.
func number(stream string) int {
	for n, name := range names {
		if name == stream {
			return n
		}
	}
	return len(names) - 1
}

// Config says how much is kept. The zero value is ready.
type Config struct {
	Size    int      // bytes kept of each stream, lines' heads included; default DefaultSize
	Secrets []string // values to mask; see SecretsIn
}

// DefaultSize is how many bytes of each stream are kept. Memory for them is taken
// as they come.
const DefaultSize = 2 << 20

// Log keeps the latest lines of each stream. All methods are safe for concurrent
// use.
type Log struct {
	mask    *masker
	own     [len(names)]*framer // of Add
	done    chan struct{}       // closed by Close
	once    sync.Once           // closes done
	serving atomic.Int32        // streams that Serve answers

	mu        sync.Mutex
	rings     [len(names)]ring   // guarded by mu
	seq       uint64             // guarded by mu; lines of all streams so far
	bytes     uint64             // guarded by mu; of text, of all streams so far
	followers map[*follower]bool // guarded by mu
	framers   []*framer          // guarded by mu; those that Close flushes
}

// New makes an empty Log.
func New(cfg Config) *Log {
	l := &Log{
		mask:      newMasker(cfg.Secrets),
		done:      make(chan struct{}),
		followers: map[*follower]bool{},
	}
	for n := range l.rings {
		l.rings[n] = newRing(cmp.Or(max(cfg.Size, 0), DefaultSize))
		l.own[n] = l.newFramer(n)
	}
	return l
}

// Tee returns a writer that passes what it gets to to, unchanged and at once, and
// then keeps its lines. Its Write never waits for a reader. When to fails the rest
// is not passed on but kept all the same, and Write reports success: the app must
// not stand still, and its last words may say why. One goroutine at a time may
// write.
func (l *Log) Tee(stream string, to io.Writer) io.Writer {
	return &tee{to: to, framer: l.newFramer(number(stream))}
}

// Add keeps the lines of text.
func (l *Log) Add(stream, text string) {
	l.own[number(stream)].addAll([]byte(text))
}

// Close says that nothing more comes: unfinished lines are kept as they are, and
// streams that follow end behind the last line. What is written later is kept too,
// but no longer followed.
func (l *Log) Close() {
	l.mu.Lock()
	framers := l.framers
	l.mu.Unlock()
	for _, f := range framers {
		f.close()
	}
	l.once.Do(func() { close(l.done) })
}

// Done is closed by Close.
func (l *Log) Done() <-chan struct{} { return l.done }

func (l *Log) newFramer(stream int) *framer {
	f := &framer{log: l, stream: stream}
	l.mu.Lock()
	l.framers = append(l.framers, f)
	l.mu.Unlock()
	return f
}

// keep adds one masked line of at most protocol.MaxLine bytes.
func (l *Log) keep(stream int, at int64, text []byte, cut bool) {
	l.mu.Lock()
	l.rings[stream].add(l.seq, at, text, cut)
	l.seq++
	l.bytes += uint64(len(text) + lineCost)
	l.mu.Unlock()
}

// tee is what Log.Tee returns.
type tee struct {
	to     io.Writer
	failed bool
	framer *framer
}

// Write implements io.Writer.
func (t *tee) Write(p []byte) (int, error) {
	if !t.failed {
		n, err := t.to.Write(p)
		t.failed = err != nil || n < len(p)
	}
	t.framer.write(p)
	return len(p), nil
}

// Tail returns the latest n lines of all streams together, oldest first. It is for
// a few hundred; Follow reads more without holding all of it at once.
func (l *Log) Tail(n int) []protocol.Line {
	n = max(n, 0)
	f := l.follow(n, everything)
	defer f.Close()
	var lines []protocol.Line
	for len(lines) < n {
		more := f.Next(maxBatch)
		if len(more) == 0 {
			break
		}
		lines = append(lines, more...)
	}
	return lines[:min(n, len(lines))]
}

// now is the time of the lines that are kept now.
func now() int64 { return stamp(time.Now()) }
