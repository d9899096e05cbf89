package doctor

import (
	"net/netip"
	"time"

	"github.com/posternhq/postern/agent/proc"
	"github.com/posternhq/postern/protocol"
)

// history is what a doctor remembers between examinations.
type history struct {
	started time.Time // the app; zero before it has
	looks   int       // how many there were since
	state   protocol.AppState

	booted time.Duration // from the start until it was ready first; 0: it was not yet
	lostAt time.Time     // when it ceased to be ready; zero while it is, or never was
	here   proc.Socket   // where it listens, or did last
	server string        // the name of who did
	gaps   []gap         // times in which it was not ready after it had been

	appeared map[netip.AddrPort]time.Time // since when the app listens where

	detourOf uint64         // the listener on another port that was tried
	detour   netip.AddrPort // where it can be reached; zero: nowhere

	frozen time.Duration // how long nothing of us ran, the last time that was long; 0: never
	thawed time.Time     // the end of that

	cpuAt time.Time // of the last look at what the processes used
	cpu   time.Duration
	busy  float64 // share of one processor since the look before; -1: not known

	refusals int // times the relay's connection was refused although the app was ready
	refused  time.Time
	poked    int // how many pokes are in refusals or explained otherwise

	// What the app said. By socket, so that each is asked once.
	whispered uint64
	reacted   bool
	greeted   uint64
	tls       bool
	answer    *answer
	answered  time.Time // of the first answer that was not good; zero after a good one
	local     *answer   // the same with the host name localhost
	idle      time.Duration
}

// gap is a time in which the app took no connections. That another process listens
// after it is told, but a server that hands its socket to its successor without a gap
// has done nothing wrong.
type gap struct {
	from, to time.Time
	before   int // who listened, by PID
	after    int
}

const (
	maxGaps = 16
	// lossPatience is how long an app that is lost may take to come back before
	// requests are refused rather than held.
	lossPatience = 10 * time.Second
)

// note takes a sight into the history.
func (h *history) note(s *sight, state protocol.AppState) {
	ready := state == protocol.StateReady && s.ready()
	switch {
	case ready && h.booted == 0 && h.looks == 0 && s.age > startSlack:
		h.booted = 1 // it was there before us, and nobody knows how long it took
	case ready && h.booted == 0:
		h.booted = max(s.age, 1)
	case ready && !h.lostAt.IsZero():
		if len(h.gaps) == maxGaps {
			h.gaps = append(h.gaps[:0], h.gaps[1:]...)
		}
		h.gaps = append(h.gaps, gap{from: h.lostAt, to: s.at, before: h.here.PID, after: s.listener().PID})
	case !ready && h.booted > 0 && h.lostAt.IsZero():
		h.lostAt = s.at
	}
	if ready {
		h.lostAt = time.Time{}
		h.here = s.listener()
		h.server = h.here.Process
	}
	if h.tls && len(s.mine) > 0 && h.greeted != keyOf(s.listener()) {
		h.tls = false // another listener
	}
	h.noteListeners(s)
	h.noteCPU(s)
	h.noteAnswer(s)
	h.state = state
	if s.pid != 0 {
		h.looks++
	}
}

func (h *history) noteListeners(s *sight) {
	appeared := make(map[netip.AddrPort]time.Time)
	for _, l := range s.elsewhere {
		since, ok := h.appeared[l.Local]
		if !ok {
			since = s.at
		}
		appeared[l.Local] = since
	}
	h.appeared = appeared
}

// cpuSpan is the shortest time over which use of the processor says something: on a
// machine that is busy otherwise, a working app may have to wait its turn for a while.
const cpuSpan = time.Second

func (h *history) noteCPU(s *sight) {
	if len(s.tree) == 0 {
		return
	}
	sum := s.cpu()
	if span := s.at.Sub(h.cpuAt); h.cpuAt.IsZero() {
		h.busy = -1
	} else if span < cpuSpan {
		return
	} else {
		h.busy = max(0, float64(sum-h.cpu)/float64(span))
	}
	h.cpuAt, h.cpu = s.at, sum
}

func (h *history) noteAnswer(s *sight) {
	if s.answer == nil {
		return
	}
	h.answer = s.answer
	switch {
	case s.answer.good():
		h.answered, h.local = time.Time{}, nil
	case h.answered.IsZero():
		h.answered = s.at
	}
}

// curious reports whether a listener that is ready is still to be listened to.
func (h *history) curious(place *Place) bool {
	if !place.Serves || h.booted == 0 {
		return false
	}
	key := keyOf(h.here)
	return place.ReadyPath == "" && h.whispered != key || h.reacted && h.greeted != key
}

// keyOf tells one listener from another; where none can be seen, all are one.
func keyOf(l proc.Socket) uint64 { return max(l.Inode, 1) }
