package protocol

import (
	"encoding/json"
	"io"
	"time"
	"unicode/utf8"
)

// Report is one message of a stream of KindReport or KindLogs: what an agent
// tells about the app beside it. Any of the fields may be set.
type Report struct {
	Lines    []Line    `json:"lines,omitempty"`    // oldest first
	Vitals   *Vitals   `json:"vitals,omitempty"`   // a sample of what the app uses
	Findings *Findings `json:"findings,omitempty"` // replaces the findings before it
	Exit     *Exit     `json:"exit,omitempty"`     // the last report: the app has ended
}

// Line is one line of the app's output, secrets masked.
type Line struct {
	At     time.Time `json:"at"`
	Stream string    `json:"stream"`           // stdout, stderr, or postern for the agent's own
	Text   string    `json:"text"`             // without the line's end; at most MaxLine bytes, invalid UTF-8 replaced
	Cut    bool      `json:"cut,omitempty"`    // the line was longer
	Missed int       `json:"missed,omitempty"` // lines of this stream that were dropped just before this one
}

// MaxLine is the longest text of a Line, in bytes.
const MaxLine = 8 << 10

// Vitals is what the processes of the app use together at one moment.
type Vitals struct {
	At        time.Time `json:"at"`
	RSS       int64     `json:"rss"`             // resident memory, bytes
	Limit     int64     `json:"limit,omitempty"` // memory limit of the container, bytes; 0: none is known
	CPU       int64     `json:"cpu_ms"`          // user and system time so far, milliseconds
	Processes int       `json:"processes"`
	Threads   int       `json:"threads"`
	Sockets   []Socket  `json:"sockets,omitempty"` // at most MaxSockets of them
}

// Socket is one TCP socket of the app.
type Socket struct {
	PID    int    `json:"pid"`
	State  string `json:"state"` // LISTEN, ESTABLISHED, CLOSE_WAIT, …
	Local  string `json:"local"`
	Remote string `json:"remote,omitempty"`
}

// MaxSockets is how many sockets a Vitals lists.
const MaxSockets = 64

// Severity is how bad a finding is.
type Severity string

// The severities.
const (
	SeverityError   Severity = "error"   // the app cannot be reached, or will be killed
	SeverityWarning Severity = "warning" // it works today and will bite
	SeverityNote    Severity = "note"    // worth knowing
)

// Findings are all that the port doctor has to say at one moment.
type Findings struct {
	At   time.Time `json:"at"`
	List []Finding `json:"list"` // worst first; at most MaxFindings
}

// MaxFindings is how many findings there are at most.
const MaxFindings = 32

// Finding is one mistake that the port doctor found and can prove.
type Finding struct {
	Code      string   `json:"code"` // PORT01 … PORT20, EGR01 … EGR04
	Severity  Severity `json:"severity"`
	Cause     string   `json:"cause"`               // one line
	Evidence  string   `json:"evidence"`            // what was seen
	Fix       string   `json:"fix"`                 // what to change, for the framework
	Framework string   `json:"framework,omitempty"` // what the app was recognised as
}

// Exit is how the app ended.
type Exit struct {
	At     time.Time `json:"at"`
	Code   int       `json:"code"`             // as the wrapper's own: 128+n for signal n
	Signal string    `json:"signal,omitempty"` // SIGKILL, …
	Reason string    `json:"reason"`           // one sentence: what it looks like
	Asked  bool      `json:"asked,omitempty"`  // a stop was under way
}

// LogQuery says what a stream of KindLogs is to carry.
type LogQuery struct {
	Lines  int  `json:"lines"`            // of what is kept, at most so many of the latest
	Follow bool `json:"follow,omitempty"` // and then what comes, until the stream is closed
}

// WriteReport writes r as one message or more: lines that do not fit into one are
// spread over several, and every other part is a message of its own behind them.
// Findings that do not fit are left out from the end.
func WriteReport(w io.Writer, r Report) error {
	var out []byte
	for lines := r.Lines; len(lines) > 0; {
		n, msg := fitLines(out, lines)
		out, lines = msg, lines[n:]
	}
	if r.Vitals != nil {
		out = appendFit(out, r.Vitals.Sockets, func(s []Socket) Report {
			v := *r.Vitals
			v.Sockets = s
			return Report{Vitals: &v}
		})
	}
	if r.Findings != nil {
		out = appendFit(out, r.Findings.List, func(f []Finding) Report {
			return Report{Findings: &Findings{At: r.Findings.At, List: f}}
		})
	}
	if r.Exit != nil {
		e := *r.Exit
		e.Reason = clip(e.Reason)
		out = appendFit(out, nil, func([]Line) Report { return Report{Exit: &e} })
	}
	if len(out) == 0 {
		return nil
	}
	_, err := w.Write(out)
	return err
}

// fitLines appends one message with as many of the lines as go into it, and
// returns how many.
func fitLines(out []byte, lines []Line) (int, []byte) {
	size := 16 // of what is around them
	for n, line := range lines {
		body, _ := json.Marshal(line) // strings, numbers and a time
		if size += len(body) + 1; size <= MaxFrame {
			continue
		}
		if n > 0 {
			lines = lines[:n]
			break
		}
		line.Text, line.Cut = clipTo(line.Text, MaxLine/8), true // JSON writes some bytes as six
		lines = []Line{line}
		break
	}
	msg, err := appendFrame(out, Report{Lines: lines})
	if err != nil {
		return len(lines), out // a year beyond 9999
	}
	return len(lines), msg
}

// appendFit appends the report made of list, or of as much of it as fits.
func appendFit[T any](out []byte, list []T, report func([]T) Report) []byte {
	for {
		msg, err := appendFrame(out, report(list))
		if err == nil {
			return msg
		}
		if len(list) == 0 {
			return out
		}
		list = list[:len(list)-1]
	}
}

func clipTo(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// ReadReport reads one message that WriteReport wrote. io.EOF is the end of the
// stream between two of them.
func ReadReport(r io.Reader) (Report, error) {
	body, err := readFrame(r, nil)
	if err != nil {
		return Report{}, err
	}
	return DecodeReport(body)
}

// DecodeReport reads the JSON of a Report and checks its limits.
func DecodeReport(body []byte) (Report, error) {
	var r Report
	if err := decodeJSON(body, &r); err != nil {
		return Report{}, err
	}
	for i := range r.Lines {
		if len(r.Lines[i].Text) > MaxLine {
			return Report{}, Errorf(CodeBadMessage, "line of %d bytes, at most %d are allowed", len(r.Lines[i].Text), MaxLine)
		}
	}
	if v := r.Vitals; v != nil && len(v.Sockets) > MaxSockets {
		return Report{}, Errorf(CodeBadMessage, "%d sockets, at most %d are allowed", len(v.Sockets), MaxSockets)
	}
	if f := r.Findings; f != nil && len(f.List) > MaxFindings {
		return Report{}, Errorf(CodeBadMessage, "%d findings, at most %d are allowed", len(f.List), MaxFindings)
	}
	return r, nil
}
