package run

import (
	"syscall"
	"time"
)

// sweep leaves nobody behind in the child's group, so that nothing holds the dyno,
// its port or its output. The child has been reaped.
//
// During a stop the others have until the same deadline as the child would have
// had: "sh -c" and package managers die of SIGTERM at once while the server below
// them is still answering its last requests. Without a stop they get SIGTERM and a
// short time. Then SIGKILL.
//
// A process that has left the group for a session of its own is a daemon by its own
// will and is not touched, unless it is an orphan that we have adopted. Those follow
// when the group is gone, with what is left of the time: they are what the app works
// with (a connection pooler, a cache), and it may need them to its last request.
func (s *supervisor) sweep() {
	s.orphans.reap()
	if s.group.gone() && s.orphans.none() {
		return
	}
	limit := s.sweepLimit()
	s.empty("processes of the app", s.group.gone, limit)
	if !s.killed && !s.broadcast {
		s.orphans.tell(syscall.SIGTERM)
	}
	s.empty("processes that have left the app's group", s.orphans.gone, limit)
}

// empty returns when gone says so; once limit has passed, after having killed everybody.
func (s *supervisor) empty(who string, gone func() bool, limit <-chan time.Time) {
	if !s.killed && !s.emptied(gone, limit) {
		s.log.Warn(who + " remain after it, killing them")
		s.killed = true
		s.killRest()
	}
	if s.killed && !s.emptied(gone, time.After(killDelay)) {
		s.log.Warn(who + " remain after being killed")
	}
}

// killRest is kill after the child was reaped: nobody may be left in the group.
func (s *supervisor) killRest() {
	if !s.group.gone() {
		s.send(syscall.SIGKILL)
	}
	s.orphans.tell(syscall.SIGKILL)
	s.orphans.gone()
}

// sweepLimit asks those left in the group to go, where nobody has yet, and returns when
// their time is up.
func (s *supervisor) sweepLimit() <-chan time.Time {
	if !s.termed {
		s.termed = true
		if !s.group.gone() {
			s.send(syscall.SIGTERM)
		}
	}
	if s.deadline != nil {
		return s.deadline.C
	}
	return time.After(orphanGrace)
}

// emptied waits until gone says so. It reports false when until comes first, or
// somebody's Ctrl-C; every other signal has lost its addressee.
func (s *supervisor) emptied(gone func() bool, until <-chan time.Time) bool {
	for pause := time.Millisecond; !gone(); pause = min(2*pause, 50*time.Millisecond) {
		s.orphans.reap()
		select {
		case <-time.After(pause):
		case sig, open := <-s.signals:
			if !open {
				s.signals = nil
			}
			if sig == syscall.SIGINT && !s.cmd.StopOnINT {
				return false
			}
		case <-until:
			return false
		}
	}
	return true
}
