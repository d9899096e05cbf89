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
// short time. Then SIGKILL. A process that has left the group for a session of its
// own is a daemon by its own will and is not touched.
func (s *supervisor) sweep() {
	if s.group.gone() {
		return
	}
	if !s.killed && !s.emptied(s.sweepLimit()) {
		s.log.Warn("processes of the app remain after it, killing them")
		s.kill()
	}
	if s.killed && !s.emptied(time.After(killDelay)) {
		s.log.Warn("processes of the app remain after being killed")
	}
}

// sweepLimit asks the orphans to go, where nobody has yet, and returns when their
// time is up.
func (s *supervisor) sweepLimit() <-chan time.Time {
	if !s.termed {
		s.termed = true
		s.send(syscall.SIGTERM)
	}
	if s.deadline != nil {
		return s.deadline.C
	}
	return time.After(orphanGrace)
}

// emptied waits until the group is gone. It reports false when until comes first,
// or somebody's Ctrl-C; every other signal has lost its addressee.
func (s *supervisor) emptied(until <-chan time.Time) bool {
	for pause := time.Millisecond; !s.group.gone(); pause = min(2*pause, 50*time.Millisecond) {
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
