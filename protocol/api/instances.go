package api

import (
	"time"

	"github.com/posternhq/postern/protocol"
)

// Instance is one running copy of an app whose agent is connected.
type Instance struct {
	App      string `json:"app"`
	Instance string `json:"instance"` // "web.1"
	BootID   string `json:"boot_id"`

	Platform string `json:"platform,omitempty"`
	Process  string `json:"process,omitempty"`
	Release  string `json:"release,omitempty"`
	Commit   string `json:"commit,omitempty"`
	Region   string `json:"region,omitempty"`
	Agent    string `json:"agent,omitempty"` // its program and version

	Since    time.Time `json:"since"`
	Tunnels  int       `json:"tunnels"`
	Draining bool      `json:"draining,omitempty"` // it is on its way out
	InFlight int       `json:"in_flight"`
	State    string    `json:"state"` // ready, starting or failed
	Why      string    `json:"why,omitempty"`

	Findings []protocol.Finding `json:"findings,omitempty"` // of the port doctor, worst first
	Vitals   *protocol.Vitals   `json:"vitals,omitempty"`   // the latest sample
}

// InstanceList is what is connected, by app and name.
type InstanceList struct {
	Instances []Instance `json:"instances"`
}

// LogLine is one line of an instance's output. Its SSE event name is "line".
type LogLine struct {
	Instance string `json:"instance"`
	BootID   string `json:"boot_id"`
	protocol.Line
}

// LogNotice says what happened to a stream of logs besides lines. Its SSE event
// name is Kind.
type LogNotice struct {
	Kind     string `json:"kind"`               // one of the kinds below
	Instance string `json:"instance,omitempty"` // "" of LogNone, LogLimit and LogEnd
	BootID   string `json:"boot_id,omitempty"`
	Release  string `json:"release,omitempty"`
	Why      string `json:"why,omitempty"` // one sentence
}

// The kinds of a LogNotice.
const (
	LogOpen       = "open"       // the lines of this instance follow from here on
	LogGone       = "gone"       // this instance has ended, or its agent was lost
	LogUnreadable = "unreadable" // this instance is connected and its lines cannot be had
	LogNone       = "none"       // no agent of the app is connected, at this moment
	LogLimit      = "limit"      // there are more instances than one stream reads
	LogEnd        = "end"        // all lines that were asked for have come; the stream ends
)

// LogLineEvent is the SSE event name of a LogLine.
const LogLineEvent = "line"

// LastWords is how an instance ended, and what was known of it then.
type LastWords struct {
	ID       string `json:"id"`
	App      string `json:"app"`
	Instance string `json:"instance"`
	BootID   string `json:"boot_id"`

	Platform string `json:"platform,omitempty"`
	Process  string `json:"process,omitempty"`
	Release  string `json:"release,omitempty"`
	Commit   string `json:"commit,omitempty"`
	Region   string `json:"region,omitempty"`

	StartedAt time.Time `json:"started_at"`
	EndedAt   time.Time `json:"ended_at"`

	Exit     *protocol.Exit     `json:"exit"` // null: the agent was lost before it could say
	Reason   string             `json:"reason"`
	Lines    []protocol.Line    `json:"lines"`
	Memory   []MemoryPoint      `json:"memory"`          // oldest first
	Limit    int64              `json:"limit,omitempty"` // of its container's memory, bytes
	Sockets  []protocol.Socket  `json:"sockets"`         // open at the end
	Findings []protocol.Finding `json:"findings"`
}

// MemoryPoint is the app's resident memory at one moment, in bytes.
type MemoryPoint struct {
	At  time.Time `json:"at"`
	RSS int64     `json:"rss"`
}

// LastWordsList is how instances ended, newest first.
type LastWordsList struct {
	LastWords []LastWords `json:"last_words"`
}
