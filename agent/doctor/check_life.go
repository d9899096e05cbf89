package doctor

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/posternhq/postern/protocol"
)

// checkLife is about whether and when the app listens: PORT06, PORT07, PORT11,
// PORT12.
func checkLife(s *sight) []protocol.Finding {
	if !s.place.Serves || s.place.Port == 0 || s.exit != nil && s.exit.Asked {
		return nil
	}
	var list []protocol.Finding
	switch {
	case s.past.booted == 0:
		list = append(nobodyListens(s), slowBoot(s)...)
	default:
		list = append(lost(s), slowBoot(s)...)
	}
	return append(list, refusedThough(s)...)
}

// busyShare of a processor is what an app that boots uses at least.
const busyShare = 0.1

func nobodyListens(s *sight) []protocol.Finding {
	cause := fmt.Sprintf("nothing listens on port %d", s.place.Port)
	late := s.age >= s.place.limit()
	severity := protocol.SeverityWarning
	if late {
		severity = protocol.SeverityError
	}
	if s.exit != nil {
		return []protocol.Finding{s.finding("PORT06", protocol.SeverityError,
			cause+": the app ended before it listened",
			"it ended after "+seconds(s.exitAge())+", "+exitText(s.exit)+s.lastWord(), s.exitFix())}
	}
	if s.pid == 0 || len(s.mine) > 0 || len(s.alien) > 0 || s.loopback == open || !late && s.age < s.place.patience() {
		return nil
	}
	if main := s.main(); main.PID != 0 && !slices.Contains(neverApps, main.Local.Port()) {
		return nil // it listens, on another port: PORT02
	}
	if s.blind {
		if !late {
			return nil
		}
		return []protocol.Finding{s.finding("PORT06", severity, cause,
			fmt.Sprintf("127.0.0.1:%d refuses connections; %s%s", s.place.Port, s.began(), s.lastWord()),
			"see in the app's output what it waits for")}
	}
	server := s.server()
	switch {
	case server.State == 'D':
		return []protocol.Finding{s.finding("PORT06", severity, cause+": the app is blocked in I/O",
			fmt.Sprintf("%s is in state D, which is a read or write that does not end%s", named(server.Name, server.PID), s.lastWord()),
			"look at the disk or network drive it reads from")}
	case s.past.busy < 0:
		return nil
	case s.past.busy >= busyShare, s.works:
		if !late {
			return nil // PORT07 tells when it becomes too slow
		}
		return []protocol.Finding{s.finding("PORT06", severity, cause+": the app is still busy",
			fmt.Sprintf("it uses %.0f %% of a processor; %s%s", 10*math.Round(10*s.past.busy), s.began(), s.lastWord()),
			"listen first and load later, or do at build time what takes so long")}
	}
	return []protocol.Finding{s.finding("PORT06", severity, cause+": the app waits for something, or is no server",
		fmt.Sprintf("%s is in state %c, none of its threads works, and it uses hardly any processor time; %s%s",
			named(server.Name, server.PID), server.State, s.began(), s.lastWord()),
		"see in the app's last line what it waits for (a database, a lock, input); if nothing is to reach this process, say --no-port")}
}

// began is when the app did. What counts seconds would be news at every look.
func (s *sight) began() string { return "it was started at " + clock(s.past.started) }

// exitAge is how old the app became.
func (s *sight) exitAge() time.Duration {
	if age := s.exit.At.Sub(s.past.started); age > 0 && age < s.age {
		return age
	}
	return s.age
}

func (s *sight) exitFix() string {
	switch s.exit.Code {
	case 127:
		return "the command's program is not there: check its name and that the build installs it"
	case 126:
		return "the command's program may not be executed: `chmod +x`, and check its first line (#!)"
	case 137:
		return "look at its memory: raise the limit or lower its use (fewer workers, --max-old-space-size, -Xmx)"
	case 0:
		return "a server must not end: keep it in the foreground (no daemon mode, no & in the command)"
	}
	return "see the app's last lines"
}

// lastWord is the app's last line of output, as part of an evidence.
func (s *sight) lastWord() string {
	for i := len(s.lines) - 1; i >= 0; i-- {
		if line := s.lines[i]; line.Stream != "postern" && strings.TrimSpace(line.Text) != "" {
			return "; its last line: " + clip(strings.TrimSpace(line.Text))
		}
	}
	return "; it has printed nothing"
}

// slowBoot counts down to the platform's limit, at half and at four fifths of it, and
// remembers a boot that came near. Where no platform limits the boot, it is silent.
func slowBoot(s *sight) []protocol.Finding {
	limit := s.place.BootLimit
	if limit <= 0 || s.exit != nil && s.past.booted == 0 {
		return nil
	}
	const fix = "listen first and load later; do at build time what can be done there (assets, migrations, compiling); start fewer workers"
	end := fmt.Sprintf("%s ends a process that does not listen after %s", s.place.name(), seconds(limit))
	if s.place.Platform == "" {
		end = fmt.Sprintf("the limit is %s", seconds(limit))
	}
	if took := s.past.booted; took > 0 {
		if took < limit/2 {
			return nil
		}
		return []protocol.Finding{s.finding("PORT07", protocol.SeverityWarning,
			fmt.Sprintf("the boot is slow: it took %s of %s", seconds(took), seconds(limit)), end, fix)}
	}
	part, severity := 0, protocol.SeverityWarning
	switch {
	case s.pid == 0 || s.loopback == open && s.answer == nil || len(s.mine) > 0 && s.loopback != open || s.main().PID != 0:
		return nil // it is not the boot that is slow
	case s.age >= limit:
		part, severity = 100, protocol.SeverityError
	case s.age >= limit*8/10:
		part, severity = 80, protocol.SeverityError
	case s.age >= limit/2:
		part = 50
	default:
		return nil
	}
	return []protocol.Finding{s.finding("PORT07", severity,
		fmt.Sprintf("the boot is slow: %d %% of the time have passed and the app is not ready", part), end, fix)}
}

// reported is how long a refused connection is worth telling.
const reported = 10 * time.Minute

func refusedThough(s *sight) []protocol.Finding {
	if s.past.refusals == 0 || s.at.Sub(s.past.refused) > reported || !s.ready() {
		return nil
	}
	return []protocol.Finding{s.finding("PORT11", protocol.SeverityWarning,
		"connections to the app were refused although it listens",
		fmt.Sprintf("the relay's connection to 127.0.0.1:%d was refused at %s, and a connection was accepted right after",
			s.place.Port, s.past.refused.UTC().Format(time.TimeOnly+"Z")),
		"see whether the server was restarted or reloaded at that time; if not, its queue of connections was full: raise its backlog, or start more workers")}
}

// lost is about an app that was ready and is not, or was not in between.
func lost(s *sight) []protocol.Finding {
	const cause = "the app was ready and was lost"
	if s.exit != nil {
		return []protocol.Finding{s.finding("PORT12", protocol.SeverityError, cause+": it ended",
			exitText(s.exit)+", "+seconds(s.exitAge())+" after its start"+s.memoryHint()+s.lastWord(), s.exitFix())}
	}
	if !s.past.lostAt.IsZero() {
		return []protocol.Finding{s.finding("PORT12", protocol.SeverityError, cause+": "+s.obstacle(),
			fmt.Sprintf("%s was ready until %s%s", named(s.past.server, s.past.here.PID), clock(s.past.lostAt), s.lastWord()),
			"see in the app's last lines why it ceased to take connections")}
	}
	gaps := s.past.gaps
	for len(gaps) > 0 && s.at.Sub(gaps[0].to) > reported {
		gaps = gaps[1:]
	}
	if len(gaps) == 0 {
		return nil
	}
	last := gaps[len(gaps)-1]
	evidence := fmt.Sprintf("it took no connections from %s for %s", clock(last.from), seconds(last.to.Sub(last.from)))
	if last.before != last.after {
		evidence += fmt.Sprintf(", and %s has taken the place of process %d", named(s.past.server, last.after), last.before)
	}
	severity, what := protocol.SeverityWarning, "the app took no connections for a while after it had been ready"
	if len(gaps) >= 3 {
		severity = protocol.SeverityError
		what = fmt.Sprintf("the app crashes and starts again: %d times within %v", len(gaps), reported)
	}
	return []protocol.Finding{s.finding("PORT12", severity, what, evidence+s.memoryHint(),
		"see in the app's output why its server ended; let the platform restart it rather than a loop in the command")}
}

func clock(t time.Time) string { return t.UTC().Format(time.TimeOnly + "Z") }

// outOfMemory is how runtimes and kernels say so.
var outOfMemory = []string{"out of memory", "OutOfMemoryError", "JavaScript heap", "Killed", "signal 9", "SIGKILL", "MemoryError"}

func (s *sight) memoryHint() string {
	for _, line := range s.lines {
		for _, phrase := range outOfMemory {
			if line.Stream != "postern" && strings.Contains(line.Text, phrase) {
				return "; its output speaks of memory or of a kill: " + clip(line.Text)
			}
		}
	}
	return ""
}
