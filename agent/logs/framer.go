package logs

import (
	"bytes"
	"sync"
	"time"

	"github.com/posternhq/postern/protocol"
)

// A framer cuts one writer's bytes into lines and hands them, masked, to the Log.
//
// A line that is longer than maxRaw is kept as its first protocol.MaxLine bytes at
// most; some more are looked at, so that a secret across the cut is seen. A line
// that is not finished is kept after silence: what is sure of it, that is up to the
// first place where a secret may have begun. The rest follows as a line of its
// own, masked in knowledge of the whole.
type framer struct {
	log    *Log
	stream int

	mu    sync.Mutex  // never held while the writer behind a Tee is written to
	raw   []byte      // guarded by mu; the unfinished line
	given int         // guarded by mu; how much of raw was kept after silence
	over  bool        // guarded by mu; raw was cut and kept: drop the rest of the line
	block block       // guarded by mu; a secret of many lines that has begun
	last  time.Time   // guarded by mu; when raw last grew
	timer *time.Timer // guarded by mu; runs flush; nil until first needed
	armed bool        // guarded by mu
	ended bool        // guarded by mu; close was called: no timer any more
	work  workspace   // guarded by mu
}

const (
	// maxRaw is how much of a line is held until its end is seen.
	maxRaw = protocol.MaxLine + lookahead
	// lookahead is longer than what stands in front of a secret in any shape.
	lookahead = 512
	// silence is how long an unfinished line waits for its end.
	silence = time.Second
)

// write takes the writer's next bytes.
func (f *framer) write(p []byte) {
	at := now()
	kept := false
	f.mu.Lock()
	for {
		n := bytes.IndexByte(p, '\n')
		if n < 0 {
			break
		}
		kept = f.line(at, p[:n]) || kept
		p = p[n+1:]
	}
	if len(p) > 0 {
		kept = f.hold(at, p) || kept
	}
	f.mu.Unlock()
	if kept {
		f.log.notify()
	}
}

// addAll takes text that ends with a line.
func (f *framer) addAll(text []byte) {
	if len(text) == 0 || text[len(text)-1] != '\n' {
		text = append(text, '\n')
	}
	f.write(text)
}

// line finishes a line with p. The caller holds mu.
func (f *framer) line(at int64, p []byte) bool {
	if len(f.raw) == 0 && !f.over && len(p) <= maxRaw {
		return f.give(at, p, 0, false)
	}
	kept := f.hold(at, p)
	if !f.over {
		kept = f.give(at, f.raw, f.given, false)
	}
	f.raw, f.given, f.over = f.raw[:0], 0, false
	return kept
}

// hold adds p to the unfinished line, which is cut when it gets too long. The
// caller holds mu.
func (f *framer) hold(at int64, p []byte) bool {
	if f.over {
		return false
	}
	n := min(len(p), maxRaw-len(f.raw))
	f.raw = append(f.raw, p[:n]...)
	f.last = time.Unix(0, at)
	if n == len(p) {
		f.arm()
		return false
	}
	f.over = true
	return f.give(at, f.raw, f.given, true)
}

// give keeps raw from given on, as one line. With open it is not known how raw goes
// on. The caller holds mu.
func (f *framer) give(at int64, raw []byte, given int, open bool) bool {
	end := len(raw)
	if !open && end > 0 && raw[end-1] == '\r' {
		end--
	}
	if given > 0 && given >= end {
		f.log.mask.find(&f.work, raw, open, &f.block) // for the block
		return false                                  // silence has let all of it out
	}
	f.log.mask.find(&f.work, raw, open, &f.block)
	text, cut := f.work.masked(raw[:end], given)
	f.log.keep(f.stream, at, text, cut || open)
	return true
}

// arm sees to it that flush runs when no more comes. The caller holds mu.
func (f *framer) arm() {
	if f.armed || f.ended {
		return
	}
	f.armed = true
	if f.timer == nil {
		f.timer = time.AfterFunc(silence, f.flush)
	} else {
		f.timer.Reset(silence)
	}
}

// flush keeps what is sure of a line that has not grown for a while.
func (f *framer) flush() {
	f.mu.Lock()
	kept := false
	f.armed = false
	switch wait := silence - time.Since(f.last); {
	case f.ended || f.over || len(f.raw) == f.given:
	case wait > 0:
		f.armed = true
		f.timer.Reset(wait)
	default:
		kept = f.giveSure()
	}
	f.mu.Unlock()
	if kept {
		f.log.notify()
	}
}

// giveSure keeps the unfinished line up to where a secret may have begun. The
// caller holds mu.
func (f *framer) giveSure() bool {
	if f.block.open {
		return false
	}
	begun := f.block
	f.log.mask.find(&f.work, f.raw, true, &begun)
	end := min(f.work.sure(len(f.raw)), protocol.MaxLine)
	if end <= f.given {
		return false
	}
	text, cut := f.work.masked(f.raw[:end], f.given)
	f.log.keep(f.stream, now(), text, cut)
	f.given = end
	return true
}

// close keeps the unfinished line whatever it is: nobody will finish it.
func (f *framer) close() {
	f.mu.Lock()
	f.ended = true
	if f.timer != nil {
		f.timer.Stop()
	}
	kept := false
	if len(f.raw) > f.given && !f.over {
		kept = f.give(now(), f.raw, f.given, true)
	}
	f.raw, f.given, f.over = nil, 0, false
	f.mu.Unlock()
	if kept {
		f.log.notify()
	}
}
