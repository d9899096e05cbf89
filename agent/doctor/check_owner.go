package doctor

import (
	"fmt"
	"regexp"
	"strconv"
	"syscall"

	"github.com/posternhq/postern/agent/proc"
	"github.com/posternhq/postern/protocol"
)

// checkOwner is about other processes: PORT09, PORT18.
func checkOwner(s *sight) []protocol.Finding {
	var list []protocol.Finding
	if s.place.Serves && s.place.Port != 0 {
		list = append(list, wrongOwner(s)...)
	}
	return append(list, shellInFront(s)...)
}

// portTaken is how runtimes say EADDRINUSE, with the number where they give it.
var portTaken = regexp.MustCompile(`(?i)EADDRINUSE|address already in use|address in use|connection in use|port \d+ is (?:already )?in use|port \d+ was already in use|only one usage of each socket address`)

// portIn finds the number in such a line: behind a colon, "port", or a bracket.
var portIn = regexp.MustCompile(`(?i)(?:port:?\s+|[\w\].*: ]:|', )(\d{3,5})\b`)

// takenIn returns the latest line that says so, and the port it names, 0 if none.
func takenIn(lines []protocol.Line) (text string, port int) {
	for i := len(lines) - 1; i >= 0; i-- {
		line := lines[i]
		if line.Stream == "postern" || !portTaken.MatchString(line.Text) {
			continue
		}
		if m := portIn.FindAllStringSubmatch(line.Text, -1); m != nil {
			port, _ = strconv.Atoi(m[len(m)-1][1])
		}
		return line.Text, port
	}
	return "", 0
}

func wrongOwner(s *sight) []protocol.Finding {
	port := s.place.Port
	text, number := takenIn(s.lines)
	if len(s.alien) > 0 && (s.exit == nil || text != "") {
		if len(s.mine) > 0 && s.ours() && !shared(s) {
			return nil // on another address, where nothing for the app goes
		}
		who, l := named(s.holder.Name, s.holder.PID), s.alien[0]
		cause := fmt.Sprintf("port %d belongs to another process: %s", port, who)
		if len(s.mine) > 0 {
			cause = fmt.Sprintf("another process listens on port %d as well, and gets some of the connections: %s", port, who)
		}
		fix := "stop it; if it is part of the app, let the app run it in the foreground"
		if s.holder.PID != 0 {
			fix += fmt.Sprintf("; if it was left by an earlier start, `kill %d`", s.holder.PID)
		}
		return []protocol.Finding{s.finding("PORT09", protocol.SeverityError, cause,
			fmt.Sprintf("%s, of user %d, listens on %v and is not below the app's process %d", who, l.UID, l.Local, s.pid), fix)}
	}
	if s.ready() {
		return nil
	}
	if text == "" || len(s.mine) > 0 {
		return nil // or it came right
	}
	cause := fmt.Sprintf("the app could not listen on port %d: the address is in use", port)
	switch {
	case number == 0:
		cause = "the app could not listen: the address it wanted is in use"
	case number != port:
		cause = fmt.Sprintf("the app could not listen on port %d, which is in use and is not PORT, %d", number, port)
	}
	return []protocol.Finding{s.finding("PORT09", protocol.SeverityError, cause,
		"the app's output: "+clip(text),
		"let the app listen on PORT once only: not in every worker, and not beside a second server in the same command")}
}

// shared reports whether others listen at the very address at which the app does, as
// SO_REUSEPORT allows.
func shared(s *sight) bool {
	mine := s.listener()
	for _, l := range s.alien {
		if l.Local == mine.Local && l.IPv6 == mine.IPv6 {
			return true
		}
	}
	return false
}

// clip shortens a line of the app's for a finding.
func clip(text string) string {
	const most = 200
	runes := []rune(text)
	if len(runes) <= most {
		return text
	}
	return string(runes[:most]) + "…"
}

// shell looks for one on the way from the first process down to the server. One that
// catches SIGTERM has a trap for it and knows what it does.
func (s *sight) shell() proc.Process {
	if len(s.tree) < 2 {
		return proc.Process{}
	}
	server := s.server()
	for p := server; p.PPID != 0 && p.PID != s.pid; {
		parent, ok := s.process(p.PPID)
		if !ok {
			break
		}
		if isShell(parent) {
			caught, _, err := s.world.signals(parent.PID)
			if err == nil && caught&(1<<(syscall.SIGTERM-1)) == 0 {
				return parent
			}
		}
		p = parent
	}
	return proc.Process{}
}

// shellInFront waits until the app listens, or has had time to: a shell that does
// its work first and then says exec is as it should be.
func shellInFront(s *sight) []protocol.Finding {
	if s.barrier.PID == 0 || s.exit != nil {
		return nil
	}
	if !s.ready() && s.age < s.place.patience() {
		return nil
	}
	server := s.server()
	shell := named(program(s.barrier), s.barrier.PID)
	return []protocol.Finding{s.finding("PORT18", protocol.SeverityWarning,
		"a shell stands in front of the app: it does not pass SIGTERM on, nor wait for the app to finish",
		fmt.Sprintf("%s is above %s, was not replaced by it, and has no trap for SIGTERM", shell, named(server.Name, server.PID)),
		fmt.Sprintf("begin the last command with exec, so that it takes the shell's place: `exec %s …`; or name the program itself in the Procfile, without sh -c", program(server)))}
}
