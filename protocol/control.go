package protocol

import (
	"context"
	"errors"
	"sync"
	"time"
)

// send writes one control message. A peer that does not read its control stream
// for controlTimeout is dead to us.
func (s *Session) send(c Control) error {
	c.Message = clip(c.Message)
	msg, err := appendFrame(nil, c)
	if err != nil {
		return err
	}
	s.controlMu.Lock()
	defer s.controlMu.Unlock()
	s.mu.Lock()
	if s.end == nil { // else Close has set its own, shorter one, for whoever writes
		s.control.setWriteDeadline(time.Now().Add(controlTimeout))
	}
	s.mu.Unlock()
	if _, err := s.control.Write(msg); err != nil {
		return &Error{Code: CodeReset, Message: "control stream lost", Err: err}
	}
	return nil
}

// The control stream is quiet but for a heartbeat, so no goroutine waits at it:
// bytes that arrive start one, which handles what is there and ends.
const (
	controlIdle  = iota // nobody handles control messages
	controlBusy         // somebody does
	controlAgain        // somebody does, and more has arrived since
)

// wakeControl is called by the receiver when the control stream has something to
// read, or has ended.
func (s *Session) wakeControl() {
	if s.controlState.CompareAndSwap(controlIdle, controlBusy) {
		s.running.Go(s.handleControlData)
		return
	}
	s.controlState.CompareAndSwap(controlBusy, controlAgain)
}

// handleControlData handles the control messages that have arrived.
func (s *Session) handleControlData() {
	for {
		for !s.control.waits() {
			if over := s.readControl(); over {
				return // controlState stays busy: nothing more is handled
			}
		}
		if s.controlState.CompareAndSwap(controlBusy, controlIdle) {
			return
		}
		s.controlState.Store(controlBusy) // it was controlAgain
	}
}

// readControl handles one message and reports whether it ended the session. The
// rest of a message that has arrived in part is waited for.
func (s *Session) readControl() (over bool) {
	body, err := readFrame(s.control, nil)
	if err != nil {
		s.shut(&Error{Code: CodeReset, Message: "connection lost", Err: s.conn.cause(err)})
		return true
	}
	c, err := DecodeControl(body)
	if err != nil {
		s.log.Warn("control message refused", "err", err)
		s.Close(CodeBadMessage, err.Error())
		return true
	}
	return s.handleControl(c, s.handler)
}

// handleControl reports whether the message ended the session.
func (s *Session) handleControl(c Control, h Handler) bool {
	switch c.Type {
	case FramePing:
		s.send(Control{Type: FramePong, ID: c.ID})
	case FrameDrain:
		s.openMu.Lock()
		s.draining = true
		s.openMu.Unlock()
		if h.Drain != nil {
			h.Drain(Drain{Reason: c.Message, Grace: millis(c.GraceMS, maxGrace), Reconnect: millis(c.ReconnectMS, maxGrace)})
		}
		s.send(Control{Type: FrameDrained})
	case FrameDrained:
		s.once.Do(func() { close(s.drained) })
	case FrameState:
		if h.State != nil {
			h.State(c.State.Known(), c.Message)
		}
	case FrameClose:
		s.shut(&Error{Code: c.Code, Message: c.Message, Err: ErrClosedByPeer})
		return true
	}
	return false // pong counts by having arrived; unknown types are a later version's
}

// ErrClosedByPeer marks the end of a session that the peer closed on purpose.
var ErrClosedByPeer = errors.New("closed by the peer")

// beats is the heartbeat's timer. It is a timer and not a goroutine because a
// relay holds thousands of idle sessions.
type beats struct {
	mu      sync.Mutex
	timer   *time.Timer
	stopped bool // guarded by mu
	done    sync.WaitGroup
}

// startBeats pings now and then on, and ends the session when the peer is dead.
func (s *Session) startBeats(h Handler) *beats {
	interval := time.Duration(s.welcome.HeartbeatMS) * time.Millisecond
	b := &beats{}
	b.mu.Lock()
	defer b.mu.Unlock()
	s.lastSeen = time.Unix(0, s.conn.lastRead.Load())
	b.timer = time.AfterFunc(jittered(interval), func() {
		b.mu.Lock()
		if b.stopped {
			b.mu.Unlock()
			return
		}
		b.done.Add(1)
		b.mu.Unlock()
		defer b.done.Done()
		if !s.beat(h) {
			return
		}
		b.mu.Lock()
		if !b.stopped {
			b.timer.Reset(jittered(interval))
		}
		b.mu.Unlock()
	})
	return b
}

// stop waits for a beat that is under way.
func (b *beats) stop() {
	b.mu.Lock()
	b.stopped = true
	b.timer.Stop()
	b.mu.Unlock()
	b.done.Wait()
}

// beat judges the silence since the last ping and sends the next one. It
// reports whether the session goes on. Any byte received counts as life, not
// only a pong: a tunnel busy with a download is not dead because the pong
// stands in a queue.
func (s *Session) beat(h Handler) bool {
	seen := time.Unix(0, s.conn.lastRead.Load())
	if s.pingID == 0 || seen.After(s.lastSeen) {
		s.missed = 0
	} else {
		s.missed++
	}
	s.lastSeen = seen
	switch {
	case s.missed >= missedBeats:
		s.shut(&Error{Code: CodeDead, Message: "nothing received for two heartbeats", Err: context.DeadlineExceeded})
		return false
	case s.missed == 1 && h.Suspect != nil:
		h.Suspect()
	}
	s.mux.ping() // for the round trip; the one below is for life
	s.pingID++
	if err := s.send(Control{Type: FramePing, ID: s.pingID}); err != nil {
		s.shut(&Error{Code: CodeDead, Message: "heartbeat could not be sent", Err: err})
		return false
	}
	return true
}
