package logs

import (
	"context"
	"io"
	"time"

	"github.com/posternhq/postern/protocol"
)

const (
	// maxServing is how many streams are answered at once.
	maxServing = 32
	// maxTail is how many lines may be asked for; more are not kept, with lines of a
	// usual length.
	maxTail = 100_000
	// serveBatch is how much is read at a time for a stream: what a reader that
	// stands still holds in memory, besides its window.
	serveBatch = 16 << 10
	// gather is how long lines are waited for when one has come, so that an app that
	// writes line by line does not cost a message for each.
	gather = 50 * time.Millisecond
	// endWait is how long the relay may take to end its side.
	endWait = 10 * time.Second
	// probe is how often a relay that has ended its own direction is asked whether it
	// is still there: only a reset says that it has gone.
	probe = 15 * time.Second
)

// Serve answers a stream of protocol.KindLogs: with the lines that are kept, as
// many of the latest as are asked for, and then, if asked, with what comes, until
// the relay resets the stream, ctx ends, or Close was called. A relay that reads
// slowly misses lines, and is told how many.
func (l *Log) Serve(ctx context.Context, s *protocol.Stream) {
	o := s.Open()
	switch {
	case o.Kind != protocol.KindLogs:
		s.Refuse(protocol.CodeUnsupported, "the log serves no streams of kind "+string(o.Kind))
		return
	case o.Logs == nil:
		s.Refuse(protocol.CodeBadMessage, "the stream does not say which lines it is to carry")
		return
	}
	if l.serving.Add(1) > maxServing {
		l.serving.Add(-1)
		s.Refuse(protocol.CodeLimit, "too many are reading this log already")
		return
	}
	defer l.serving.Add(-1)
	stop := context.AfterFunc(ctx, func() { s.Reset(protocol.CodeShutdown) })
	defer stop()
	p := &peer{over: make(chan struct{})}
	go p.listen(s)
	defer func() {
		s.Close()
		<-p.over
	}()
	if s.Accept() == nil && l.send(s, *o.Logs, p) == nil && s.CloseWrite() == nil {
		s.SetReadDeadline(time.Now().Add(endWait))
		<-p.over
	}
}

// peer is the relay's direction of a stream. It says nothing, but it may end.
type peer struct {
	over chan struct{}
	err  error // set when over is closed; nil: FIN, the relay may be reading still
}

// listen reads until the direction has ended.
func (p *peer) listen(s *protocol.Stream) {
	defer close(p.over)
	_, p.err = io.Copy(io.Discard, s)
}

// send writes what q asks for. nil is the end of it.
func (l *Log) send(s *protocol.Stream, q protocol.LogQuery, p *peer) error {
	f := l.follow(min(max(q.Lines, 0), maxTail), everything)
	defer f.Close()
	for left := q.Lines; q.Follow || left > 0; {
		lines := f.Next(serveBatch)
		if len(lines) == 0 {
			if !q.Follow || l.ended() && !f.more() || !l.await(s, f, p) {
				return nil
			}
			continue
		}
		if !q.Follow {
			lines = lines[:min(len(lines), left)]
			left -= len(lines)
		}
		if err := protocol.WriteReport(s, protocol.Report{Lines: lines}); err != nil {
			return err
		}
	}
	return nil
}

func (l *Log) ended() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

// more reports whether there is anything to read: lines that came between a Next
// that found nothing and the end of the log.
func (f *follower) more() bool {
	f.log.mu.Lock()
	defer f.log.mu.Unlock()
	for n := range f.at {
		if _, _, ok := f.log.rings[n].settle(f.at[n]); ok {
			return true
		}
	}
	return false
}

// await waits for lines, and then a little for more of them. It reports false when
// the relay has gone.
func (l *Log) await(s *protocol.Stream, f *follower, p *peer) bool {
	over := p.over
	var ask <-chan time.Time
	select {
	case <-over: // with FIN: from now on only a write tells of a reset
		timer := time.NewTimer(probe)
		defer timer.Stop()
		over, ask = nil, timer.C
	default:
	}
	select {
	case <-f.Wait(1):
	case <-l.done:
		return true
	case <-ask:
		_, err := s.Write(nil)
		return err == nil
	case <-over:
		return p.err == nil
	}
	timer := time.NewTimer(gather)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-l.done:
	}
	return true
}
