package doctor

import (
	"fmt"
	"time"

	"github.com/posternhq/postern/protocol"
)

// judge says what state the app is in, and on what that rests.
//
//	starting  until the boot limit has passed
//	ready     127.0.0.1 and the port lead to the app, and the health path answers
//	starting  again for ten seconds when that is lost
//	failed    after that, or when the app has ended
func judge(s *sight) (protocol.AppState, string) {
	h := s.past
	switch {
	case s.exit != nil:
		return protocol.StateFailed, "the app has ended: " + exitText(s.exit)
	case s.pid == 0:
		return protocol.StateStarting, "the app has not been started yet"
	case !s.place.Serves:
		return protocol.StateReady, "the app runs, and nothing is sent to it"
	case s.ready():
		return protocol.StateReady, fmt.Sprintf("the app listens on port %d", s.place.Port)
	case h.booted > 0:
		if h.lostAt.IsZero() || s.at.Sub(h.lostAt) < lossPatience {
			return protocol.StateStarting, "the app was ready and is not any more: " + s.obstacle()
		}
		return protocol.StateFailed, "the app was lost: " + s.obstacle()
	case s.age < s.place.limit():
		return protocol.StateStarting, s.obstacle()
	}
	return protocol.StateFailed, fmt.Sprintf("not ready within %v: %s", s.place.limit(), s.obstacle())
}

// obstacle is why the app is not ready, in one line.
func (s *sight) obstacle() string {
	port := s.place.Port
	switch {
	case port == 0:
		return "it is not known which port the app should listen on"
	case s.ours() && s.answer != nil:
		return fmt.Sprintf("the health path answers %s", s.answer)
	case len(s.alien) > 0:
		return fmt.Sprintf("port %d belongs to %s", port, named(s.holder.Name, s.holder.PID))
	case len(s.mine) > 0 && s.loopback == silent:
		return fmt.Sprintf("the app listens on port %d and takes no connections: its queue is full", port)
	case len(s.mine) > 0 || s.six == open || s.outer == open:
		return fmt.Sprintf("the app listens on port %d, but not at 127.0.0.1", port)
	case s.blind:
		return fmt.Sprintf("127.0.0.1:%d refuses connections", port)
	case len(s.elsewhere) > 0:
		return fmt.Sprintf("nothing listens on port %d; the app listens on port %d", port, s.main().Local.Port())
	}
	return fmt.Sprintf("nothing listens on port %d", port)
}

// exitText is an exit in words.
func exitText(e *protocol.Exit) string {
	switch {
	case e.Signal == "SIGKILL", e.Code == 137:
		return "killed with SIGKILL (code 137), which is how a platform and a kernel out of memory end a process"
	case e.Signal != "":
		return fmt.Sprintf("ended by %s (code %d)", e.Signal, e.Code)
	case e.Code == 127:
		return "code 127, the command was not found"
	case e.Code == 126:
		return "code 126, the command cannot be executed"
	}
	return fmt.Sprintf("code %d", e.Code)
}

// seconds is a duration as people say it.
func seconds(d time.Duration) string {
	if d < 10*time.Second {
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return fmt.Sprintf("%d s", int(d.Seconds()+0.5))
}
