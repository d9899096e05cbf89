package logs

import (
	"strings"
	"unicode/utf8"

	"github.com/posternhq/postern/protocol"
)

// Follower reads a Log from a place of its own on. It is an alias of an interface
// without a name, so that packages that do not import this one can ask for it. One
// goroutine may use it at a time.
type Follower = interface {
	// Next returns the next lines, in the order in which they came over all streams:
	// as many as have about limit bytes, at least one when there is one.
	Next(limit int) []protocol.Line
	// Skip leaves out the oldest of what is still to come, but for about keep bytes
	// of it. What was left out is counted in Missed.
	Skip(keep int)
	// Wait returns a channel that gets a value when lines of about so many bytes
	// have come since the last Next or Skip, and maybe a value too many.
	Wait(bytes int) <-chan struct{}
	Close()
}

const (
	// lineCost is what a line counts besides its text: what it takes on the wire.
	lineCost = 64
	// maxBatch is about the most that Next copies while it holds the lock.
	maxBatch = 32 << 10
	// maxStride is how many lines are walked back while the lock is held.
	maxStride = 512
	// everything is more lines, or bytes, than a Log keeps.
	everything = 1 << 30
)

type follower struct {
	log    *Log
	wake   chan struct{}      // holds one value
	text   []byte             // Next's, used again
	missed [len(names)]uint64 // left out by Skip and not told yet

	// Guarded by log.mu.
	at   [len(names)]pos
	seen uint64 // Log.bytes at the last Next or Skip
	want uint64 // wake when Log.bytes is there; 0: do not
}

// Follow returns a reader that begins with the latest lines, about back bytes of
// them, and goes on with what comes.
func (l *Log) Follow(back int) Follower { return l.follow(everything, back) }

// follow begins at most lines lines and about bytes bytes back.
func (l *Log) follow(lines, bytes int) *follower {
	f := &follower{log: l, wake: make(chan struct{}, 1)}
	l.mu.Lock()
	ends, seen := l.endsLocked(), l.bytes
	l.mu.Unlock()
	at, walked := l.back(ends, lines, bytes)
	l.mu.Lock()
	f.at, f.seen = at, seen-uint64(walked)
	l.followers[f] = true
	l.mu.Unlock()
	return f
}

// Close forgets the follower.
func (f *follower) Close() {
	f.log.mu.Lock()
	delete(f.log.followers, f)
	f.log.mu.Unlock()
}

// Wait implements Follower.
func (f *follower) Wait(bytes int) <-chan struct{} {
	f.log.mu.Lock()
	f.want = f.seen + uint64(max(bytes, 1))
	f.wakeLocked()
	f.log.mu.Unlock()
	return f.wake
}

func (f *follower) wakeLocked() {
	if f.want == 0 || f.log.bytes < f.want {
		return
	}
	f.want = 0
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// notify wakes the followers that have waited for the lines kept last.
func (l *Log) notify() {
	l.mu.Lock()
	for f := range l.followers {
		f.wakeLocked()
	}
	l.mu.Unlock()
}

// Next implements Follower.
func (f *follower) Next(limit int) []protocol.Line {
	limit = min(limit, maxBatch)
	var lines []protocol.Line
	var ends []int // of each line's text in f.text
	f.text = f.text[:0]
	l := f.log
	l.mu.Lock()
	for size := 0; size < limit; {
		n, rec, missed, ok := f.takeLocked()
		if !ok {
			f.seen = l.bytes // also where some were dropped
			break
		}
		size += len(rec.text) + lineCost
		f.seen += uint64(len(rec.text) + lineCost)
		f.text = append(f.text, rec.text...)
		ends = append(ends, len(f.text))
		lines = append(lines, protocol.Line{At: unstamp(rec.at), Stream: names[n], Cut: rec.cut, Missed: missed})
	}
	l.mu.Unlock()
	text := string(f.text)
	for i, begin := 0, 0; i < len(lines); i++ {
		setText(&lines[i], text[begin:ends[i]])
		begin = ends[i]
	}
	return lines
}

// takeLocked takes the oldest line that is left, of whatever stream.
func (f *follower) takeLocked() (stream int, rec record, missed int, ok bool) {
	var oldest uint64
	for n := range f.at {
		r := &f.log.rings[n]
		p, dropped, more := r.settle(f.at[n])
		f.at[n] = p
		f.missed[n] += dropped
		if more && (!ok || r.seq(p) < oldest) {
			stream, oldest, ok = n, r.seq(p), true
		}
	}
	if !ok {
		return 0, record{}, 0, false
	}
	rec, f.at[stream] = f.log.rings[stream].read(f.at[stream])
	missed, f.missed[stream] = int(f.missed[stream]), 0
	return stream, rec, missed, true
}

// Skip implements Follower.
func (f *follower) Skip(keep int) {
	l := f.log
	l.mu.Lock()
	ends, seen := l.endsLocked(), l.bytes
	l.mu.Unlock()
	to, walked := l.back(ends, everything, keep)
	l.mu.Lock()
	f.seen = max(f.seen, seen-uint64(walked))
	for n := range f.at {
		if to[n].index > f.at[n].index {
			f.missed[n] += to[n].index - f.at[n].index
			f.at[n] = to[n]
		}
	}
	l.mu.Unlock()
}

// endsLocked is behind the newest line of each stream.
func (l *Log) endsLocked() (ends [len(names)]pos) {
	for n := range l.rings {
		ends[n] = l.rings[n].end()
	}
	return ends
}

// back walks back from at over the latest lines of all streams, at most lines of
// them and about bytes bytes. It does so in strides, not to hold up whoever writes.
func (l *Log) back(at [len(names)]pos, lines, bytes int) (_ [len(names)]pos, walked int) {
	for lines > 0 {
		stride := min(lines, maxStride)
		lines -= stride
		l.mu.Lock()
		for range stride {
			n, p, length, ok := l.newestBeforeLocked(at)
			if !ok || walked+length+lineCost > bytes {
				l.mu.Unlock()
				return at, walked
			}
			at[n] = p
			walked += length + lineCost
		}
		l.mu.Unlock()
	}
	return at, walked
}

// newestBeforeLocked finds the newest line before at, of whatever stream.
func (l *Log) newestBeforeLocked(at [len(names)]pos) (stream int, found pos, length int, ok bool) {
	var newest uint64
	for n := range at {
		p, size, more := l.rings[n].before(at[n])
		if !more {
			continue
		}
		if seq := l.rings[n].seq(p); !ok || seq > newest {
			stream, found, length, newest, ok = n, p, size, seq, true
		}
	}
	return stream, found, length, ok
}

// setText gives a line its text as protocol.Line wants it: apps write what they like.
func setText(line *protocol.Line, text string) {
	if !utf8.ValidString(text) {
		text = strings.ToValidUTF8(text, "\uFFFD")
		if len(text) > protocol.MaxLine {
			text, line.Cut = clip(text, protocol.MaxLine), true
		}
	}
	line.Text = text
}

// clip is the first n bytes of s at most, in whole characters.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
