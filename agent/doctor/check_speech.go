package doctor

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/posternhq/postern/protocol"
)

// checkSpeech is about what the app says on its port: PORT13 to PORT16.
func checkSpeech(s *sight) []protocol.Finding {
	if !s.place.Serves || s.loopback != open || !s.ours() {
		return nil
	}
	if s.past.tls {
		return []protocol.Finding{s.finding("PORT13", protocol.SeverityError,
			"the app speaks TLS on PORT, where plain HTTP is sent",
			fmt.Sprintf("%v answers a TLS handshake with TLS", s.target()),
			s.fix(func(f *Framework) string { return f.TLS }))}
	}
	var list []protocol.Finding
	if held := s.past.idle; held > 0 && held < idleLimit {
		list = append(list, s.finding("PORT14", protocol.SeverityWarning,
			"the app closes idle connections before the router does, which loses requests (H13, H18)",
			fmt.Sprintf("an idle connection was closed after %s; Heroku's router keeps its own for %s", seconds(held), seconds(idleLimit)),
			s.fix(func(f *Framework) string { return f.Idle })))
	}
	if wrong := wrongHost(s); wrong != nil {
		return append(list, *wrong)
	}
	return append(list, wrongPath(s)...)
}

// hintsTLS reports whether the app's output looks like TLS trouble. That is no proof
// and only a reason to ask.
func hintsTLS(lines []protocol.Line) bool {
	for _, line := range lines {
		for _, phrase := range []string{"TLS handshake error", "SSL routines", "HTTP request was sent to HTTPS", "SSLError", "https://0.0.0.0:", "https://localhost:", "https://[::]:"} {
			if line.Stream != "postern" && strings.Contains(line.Text, phrase) {
				return true
			}
		}
	}
	return false
}

// hostWords are how frameworks refuse a host name.
var hostWords = []string{"HTTP_HOST", "DisallowedHost", "ALLOWED_HOSTS", "Blocked host", "Blocked request. This host", "Invalid Host", "Invalid hostname", "Host not permitted", "host is not allowed"}

func speaksOfHost(text []byte) bool {
	for _, phrase := range hostWords {
		if bytes.Contains(text, []byte(phrase)) {
			return true
		}
	}
	return false
}

// wrongHost finds an app that refuses requests for their Host alone: another Host
// was answered well, or the refusal says so.
func wrongHost(s *sight) *protocol.Finding {
	a := s.answer
	if a == nil || a.status != 400 && a.status != 403 && a.status != 421 {
		return nil
	}
	evidence := fmt.Sprintf("GET %s with Host: %s was answered %s", s.place.ReadyPath, a.host, a)
	words := speaksOfHost(a.body)
	for _, line := range s.lines {
		words = words || line.Stream != "postern" && strings.Contains(line.Text, a.host) && speaksOfHost([]byte(line.Text))
	}
	switch local := s.past.local; {
	case local.good():
		evidence += fmt.Sprintf(", with Host: %s %s", local.host, local)
	case words:
		evidence += ", and the answer speaks of the host name"
	default:
		return nil
	}
	f := s.finding("PORT15", protocol.SeverityError, "the app refuses the host name "+a.host, evidence,
		s.fix(func(f *Framework) string { return f.Hosts }))
	return &f
}

// exact are the platforms whose health check takes 200 and nothing else.
var exact = map[string]bool{"railway": true, "cf": true}

func wrongPath(s *sight) []protocol.Finding {
	a := s.answer
	if a == nil {
		if path := s.place.ReadyPath; path != "" && usablePath(path) == "" {
			return []protocol.Finding{s.finding("PORT16", protocol.SeverityError, "the health path is not a path", fmt.Sprintf("it is %.60q", path),
				"set --ready-path (POSTERN_READY_PATH) to something like /healthz")}
		}
		return nil
	}
	cause, severity := "the health path does not answer well", protocol.SeverityError
	switch {
	case exact[s.place.Platform] && a.good() && a.status != 200:
		cause = fmt.Sprintf("the health path answers, but %s wants 200", s.place.name())
	case a.good():
		return nil
	case a.status >= 500 || a.status == 0: // it may still be warming up
		if s.past.booted == 0 && s.at.Sub(s.past.answered) < s.place.patience() && s.age < s.place.limit() {
			return nil
		}
	}
	return []protocol.Finding{s.finding("PORT16", severity, cause,
		fmt.Sprintf("GET %s with Host: %s was answered %s", s.place.ReadyPath, a.host, a),
		"let the path answer 200 without a login, a redirect or a query to other services; or name another one with --ready-path")}
}
