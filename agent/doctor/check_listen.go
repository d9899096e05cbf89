package doctor

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/posternhq/postern/agent/proc"
	"github.com/posternhq/postern/protocol"
)

// checkListen is about where the app listens: PORT02 to PORT05, PORT10.
func checkListen(s *sight) []protocol.Finding {
	if !s.place.Serves || s.place.Port == 0 || s.pid == 0 || s.exit != nil {
		return nil
	}
	var list []protocol.Finding
	switch {
	case s.blind:
		list = blindly(s)
	case len(s.mine) == 0:
		list = otherPort(s)
	case allLoopback(s.mine) && slices.ContainsFunc(s.mine, fourIn):
		list = localhostOnly(s)
	case s.loopback == refused && s.six == open:
		list = sixOnly(s, s.listener())
	case s.loopback == refused && !slices.ContainsFunc(s.mine, wildcard):
		list = oneAddress(s)
	}
	return append(list, severalPorts(s)...)
}

// settle is how long the app must have listened elsewhere before that counts: many
// open a port for metrics or a debugger on their way to the one that matters.
const settle = 2 * time.Second

func otherPort(s *sight) []protocol.Finding {
	l := s.main()
	since, seen := s.past.appeared[l.Local]
	if !l.Local.IsValid() || slices.Contains(neverApps, l.Local.Port()) {
		return nil
	}
	if late := s.age >= s.place.limit(); !late && (!seen || s.at.Sub(since) < settle) {
		return nil
	}
	var cause string
	if s.place.PortVar != "" {
		cause = fmt.Sprintf("the app listens on port %d, %s sends to PORT, which is %d", l.Local.Port(), s.sender(), s.place.Port)
	} else {
		cause = fmt.Sprintf("the app listens on port %d, it is expected on port %d", l.Local.Port(), s.place.Port)
	}
	return []protocol.Finding{s.finding("PORT02", protocol.SeverityError, cause,
		fmt.Sprintf("%s listens on %v; nothing of the app listens on %d", named(l.Process, l.PID), l.Local, s.place.Port),
		s.fix(func(f *Framework) string { return f.Port }))}
}

// sender is who connects to the app.
func (s *sight) sender() string {
	if s.place.Platform == "" {
		return "whoever calls it"
	}
	return s.place.name()
}

// localhostOnly harms the platform's router, not us. Where there is none it is only
// worth a note, and none at all where not even PORT was given: many want just that.
func localhostOnly(s *sight) []protocol.Finding {
	severity := protocol.SeverityError
	if s.place.Platform == "" {
		if s.place.PortVar == "" {
			return nil
		}
		severity = protocol.SeverityNote
	}
	l := s.listener()
	return []protocol.Finding{s.finding("PORT03", severity,
		"the app listens on localhost only, so nothing outside of its own machine reaches it"+s.sentence(),
		fmt.Sprintf("%s listens on %v and on no other address", named(l.Process, l.PID), l.Local),
		s.fix(func(f *Framework) string { return f.Host }))}
}

// sentence says what the platform does with an app it cannot reach.
func (s *sight) sentence() string {
	limit := s.place.BootLimit
	switch {
	case limit <= 0:
		return ""
	case s.place.Platform == "heroku":
		return fmt.Sprintf("; Heroku ends it with R10 after %s", seconds(limit))
	}
	return fmt.Sprintf("; %s gives it up after %s", s.place.name(), seconds(limit))
}

func sixOnly(s *sight, l proc.Socket) []protocol.Finding {
	evidence := "127.0.0.1 refuses what ::1 accepts"
	if l.Local.IsValid() {
		evidence = fmt.Sprintf("%s listens on %v; 127.0.0.1 refuses what ::1 accepts", named(l.Process, l.PID), l.Local)
	}
	return []protocol.Finding{s.finding("PORT04", protocol.SeverityError,
		"the app takes connections over IPv6 only", evidence, s.fix(func(f *Framework) string { return f.Host }))}
}

func oneAddress(s *sight) []protocol.Finding {
	l := s.mine[0]
	evidence := fmt.Sprintf("%s listens on %v only; 127.0.0.1:%d refuses", named(l.Process, l.PID), l.Local, s.place.Port)
	if s.place.env("HOSTNAME") != "" {
		evidence += "; HOSTNAME is set, and some frameworks take it for the address to listen on"
	}
	return []protocol.Finding{s.finding("PORT05", protocol.SeverityError,
		fmt.Sprintf("the app listens on one address of the machine, %v, and not on all", l.Local.Addr()),
		evidence, s.fix(func(f *Framework) string { return f.Hostname }))}
}

// blindly is what connections alone can prove.
func blindly(s *sight) []protocol.Finding {
	switch {
	case s.loopback == open && s.outer == refused && s.place.Platform != "":
		return []protocol.Finding{s.finding("PORT03", protocol.SeverityError,
			"the app listens on localhost only, so nothing outside of its own machine reaches it"+s.sentence(),
			fmt.Sprintf("127.0.0.1:%d accepts what %v refuses", s.place.Port, netip.AddrPortFrom(s.outerAt, uint16(s.place.Port))),
			s.fix(func(f *Framework) string { return f.Host }))}
	case s.loopback == refused && s.six == open:
		return sixOnly(s, proc.Socket{})
	case s.loopback == refused && s.outer == open:
		return []protocol.Finding{s.finding("PORT05", protocol.SeverityError,
			fmt.Sprintf("something listens on one address of the machine, %v, and not on all", s.outerAt),
			fmt.Sprintf("%v accepts what 127.0.0.1 refuses", netip.AddrPortFrom(s.outerAt, uint16(s.place.Port))),
			s.fix(func(f *Framework) string { return f.Hostname }))}
	}
	return nil
}

// debugPorts are what debuggers and their like listen on.
var debugPorts = map[int]string{
	9229: "Node's inspector", 9230: "Node's inspector", 5005: "a Java debugger", 8787: "a Java debugger", 5678: "debugpy",
	6060: "Go's pprof", 2345: "Delve", 40000: "Delve", 4321: "a debugger", 1044: "a Java debugger", 9010: "JMX", 1099: "JMX",
	7199: "JMX", 9003: "Xdebug", 1234: "a Ruby debugger", 12345: "a Ruby debugger", 4369: "Erlang's port mapper",
}

// neverApps are those of debugPorts that are nobody's default for an app itself.
var neverApps = []uint16{9229, 9230, 5005, 6060, 4369}

// severalPorts is about ports that others than the app itself can reach; what
// listens on localhost beside the port is nobody's business.
func severalPorts(s *sight) []protocol.Finding {
	if len(s.mine) == 0 {
		return nil
	}
	var public, debuggers []string
	for _, l := range s.elsewhere {
		if l.Local.Addr().IsLoopback() {
			continue
		}
		text := fmt.Sprint(l.Local.Port())
		if slices.Contains(public, text) {
			continue
		}
		public = append(public, text)
		if what := debugPorts[int(l.Local.Port())]; what != "" {
			debuggers = append(debuggers, fmt.Sprintf("%s is the port of %s", text, what))
		}
	}
	if len(public) == 0 {
		return nil
	}
	slices.Sort(public)
	evidence := fmt.Sprintf("beside %d, which is the one that is sent to, the app listens on all interfaces on %s", s.place.Port, strings.Join(public, ", "))
	if len(debuggers) == 0 {
		return []protocol.Finding{s.finding("PORT10", protocol.SeverityNote, "the app listens on several ports", evidence,
			"nothing, if they are meant to be; what only the app itself uses should listen on 127.0.0.1")}
	}
	return []protocol.Finding{s.finding("PORT10", protocol.SeverityWarning,
		"the app has a debugger's port open on all interfaces",
		evidence+"; "+strings.Join(debuggers, ", "),
		"take the debugger's flag out of the command, or let it listen on 127.0.0.1 (node: --inspect=127.0.0.1:9229, Java: address=127.0.0.1:5005) and use postern forward")}
}

// main is the likeliest of the app's listeners on other ports to be the app itself:
// no debugger, open to all, of the process nearest to the first.
func (s *sight) main() proc.Socket {
	best, score := proc.Socket{}, -1
	for _, l := range s.elsewhere {
		n := 0
		if debugPorts[int(l.Local.Port())] == "" {
			n += 4
		}
		if wildcard(l) {
			n += 2
		}
		if best.PID == 0 || l.PID == best.PID && l.Local.Port() < best.Local.Port() {
			n++
		}
		if n > score {
			best, score = l, n
		}
	}
	return best
}

func wildcard(l proc.Socket) bool { return l.Local.Addr().IsUnspecified() }
func fourIn(l proc.Socket) bool   { return l.Local.Addr().Is4() }

func allLoopback(list []proc.Socket) bool {
	return !slices.ContainsFunc(list, func(l proc.Socket) bool { return !l.Local.Addr().IsLoopback() })
}
