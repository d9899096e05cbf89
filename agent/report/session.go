package report

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/posternhq/postern/protocol"
)

const (
	// tail is how much of the latest output a new stream begins with, and how much
	// the end has.
	tail = 64 << 10
	// After a line has come, more are waited for until there are so many bytes, or
	// for so long.
	batch  = 8 << 10
	gather = 500 * time.Millisecond
	// rate is how many bytes of lines are sent in a second, burst how many at once
	// after a quiet time.
	rate  = 64 << 10
	burst = 256 << 10
	// backlog is how far lines may be behind; older ones are left out.
	backlog = 256 << 10
	// lineCost is what a line takes on the wire besides its text.
	lineCost = 64

	// every is the time between vitals; fast that between two looks at an app whose
	// memory moves, so that a jump is told of at once.
	every = 5 * time.Second
	fast  = time.Second
	// socketsEvery is the time between two lists of sockets.
	socketsEvery = 30 * time.Second

	// writeWait is how long the relay may leave a stream standing.
	writeWait = 30 * time.Second
)

// errEnded is the relay's FIN before our own.
var errEnded = errors.New("the relay has ended the report")

// session is a Reporter's work on one stream. All of it but listen is Run's.
type session struct {
	r      *Reporter
	stream Stream

	over chan struct{} // closed by listen
	err  error         // set before over is closed; nil: FIN

	lines  Follower // nil: none are sent
	left   int      // bytes of lines that may be sent now; less than 0 after a long line
	filled time.Time

	last, sent protocol.Vitals // the latest sample, and the latest that was sent
	sentAt     time.Time
	sockets    []protocol.Socket // of Config.Sockets
	socketsAt  time.Time
}

// listen waits for the relay's end of the stream. What it sends is nothing to us.
func (s *session) listen() {
	defer close(s.over)
	_, s.err = io.Copy(io.Discard, s.stream)
}

// run reports until the stream is lost or End is called. nil means that the relay
// has stored the end.
func (s *session) run() error {
	if s.r.isEnding() {
		return s.end()
	}
	sample, err := s.begin()
	if err != nil {
		return err
	}
	vitals := time.NewTimer(sample)
	defer vitals.Stop()
	flush := time.NewTimer(0) // the lines that are there already
	defer flush.Stop()
	gathering := true
	var wake <-chan struct{}
	for {
		select {
		case <-s.over:
			return s.ended()
		case <-s.r.ending:
			return s.end()
		case <-s.r.changed:
			err = s.sendFindings()
		case <-vitals.C:
			sample, err = s.look()
			vitals.Reset(sample)
		case <-wake:
			if !gathering {
				gathering = true
				flush.Reset(gather)
				wake = s.lines.Wait(batch)
				continue
			}
			wake, gathering, err = s.flush(flush)
		case <-flush.C:
			wake, gathering, err = s.flush(flush)
		}
		if err != nil {
			return fmt.Errorf("write report: %w", err)
		}
	}
}

// begin sends what a new stream begins with, but for the lines, and returns when to
// look at the app next.
func (s *session) begin() (time.Duration, error) {
	select {
	case <-s.r.changed:
	default:
	}
	if err := s.sendFindings(); err != nil {
		return 0, err
	}
	return s.look()
}

// ended is why the relay ended the stream.
func (s *session) ended() error {
	if s.err != nil {
		return s.err
	}
	return errEnded
}

// write sends one report within writeWait.
func (s *session) write(report protocol.Report) error {
	s.stream.SetWriteDeadline(time.Now().Add(writeWait))
	defer s.stream.SetWriteDeadline(time.Time{})
	return protocol.WriteReport(s.stream, report)
}

// flush sends lines, and says what to wait for next: for the first line to come,
// or, where the bandwidth is used up, for the timer.
func (s *session) flush(timer *time.Timer) (wake <-chan struct{}, gathering bool, err error) {
	timer.Stop()
	if s.lines == nil {
		return nil, false, nil
	}
	s.lines.Skip(backlog)
	s.fill()
	for s.left >= batch {
		lines := s.lines.Next(min(s.left, tail))
		if len(lines) == 0 {
			return s.lines.Wait(1), false, nil
		}
		for _, line := range lines {
			s.left -= len(line.Text) + lineCost
		}
		if err := s.write(protocol.Report{Lines: lines}); err != nil {
			return nil, false, err
		}
		s.fill()
	}
	timer.Reset(gather)
	return nil, true, nil
}

// fill adds to left what the time since the last call gives.
func (s *session) fill() {
	now := time.Now()
	s.left = min(burst, s.left+int(now.Sub(s.filled)*rate/time.Second))
	s.filled = now
}

// sendFindings sends what the port doctor has said last.
func (s *session) sendFindings() error {
	s.r.mu.Lock()
	findings := s.r.findings
	s.r.mu.Unlock()
	if findings == nil {
		return nil
	}
	return s.write(protocol.Report{Findings: findings})
}

// look takes a sample, sends it when it is time or when memory has jumped, and
// returns when to look again.
func (s *session) look() (time.Duration, error) {
	v, ok := s.sample()
	if !ok {
		return every, nil
	}
	whole := v.Limit
	if whole <= 0 {
		whole = max(s.sent.RSS, 64<<20)
	}
	moves := apart(v.RSS, s.last.RSS) > whole/50 && !s.sentAt.IsZero()
	jumped := apart(v.RSS, s.sent.RSS) > whole/10
	s.last = v
	next := every
	if moves {
		next = fast
	}
	now := time.Now()
	if !jumped && now.Sub(s.sentAt) < every {
		return min(next, every-now.Sub(s.sentAt)), nil
	}
	s.addSockets(&v, jumped)
	s.sent, s.sentAt = v, now
	return next, s.write(protocol.Report{Vitals: &v})
}

func (s *session) sample() (protocol.Vitals, bool) {
	if s.r.cfg.Sample == nil {
		return protocol.Vitals{}, false
	}
	v, err := s.r.cfg.Sample()
	if err != nil {
		return protocol.Vitals{}, false // the app has just ended, or this system cannot tell
	}
	if v.At.IsZero() {
		v.At = time.Now()
	}
	return v, true
}

// addSockets gives v the app's sockets, which may be those of some time ago.
func (s *session) addSockets(v *protocol.Vitals, now bool) {
	if s.r.cfg.Sockets != nil {
		if now || time.Since(s.socketsAt) >= socketsEvery {
			s.sockets, s.socketsAt = s.r.cfg.Sockets(), time.Now()
		}
		v.Sockets = s.sockets
	}
	v.Sockets = v.Sockets[:min(len(v.Sockets), protocol.MaxSockets)]
}

func apart(a, b int64) int64 { return max(a-b, b-a) }

// end sends the last lines, what is left of the app, and how it ended, and waits
// for the relay. How long is up to whoever closes the stream, which is End.
func (s *session) end() error {
	if s.lines != nil {
		s.lines.Skip(tail)
		for range tail / batch { // Next may give less than it is asked for
			lines := s.lines.Next(tail)
			if len(lines) == 0 {
				break
			}
			if err := s.write(protocol.Report{Lines: lines}); err != nil {
				return err
			}
		}
	}
	if err := s.sendFindings(); err != nil {
		return err
	}
	s.r.mu.Lock()
	exit := s.r.exit
	s.r.mu.Unlock()
	last := protocol.Report{Exit: &exit}
	if v, ok := s.sample(); ok && v.Processes > 0 {
		s.addSockets(&v, false)
		last.Vitals = &v
	}
	if err := s.write(last); err != nil {
		return err
	}
	if err := s.stream.CloseWrite(); err != nil {
		return err
	}
	<-s.over
	if s.err != nil {
		return s.err
	}
	s.r.mu.Lock()
	s.r.told = true
	s.r.mu.Unlock()
	return nil
}
