package relay

import (
	"context"
	"time"

	"github.com/posternhq/postern/protocol"
)

// Instance is one running copy of an app, as its agent describes it: a dyno, a
// machine, a laptop. App, Name and BootID together tell it from all others; at a
// deploy two boots of the same name are there for a while.
type Instance struct {
	App    AppID
	Name   string // "web.1"
	BootID string

	Platform, Process, Release, Commit, Region string
	Agent                                      string // its program and version

	Since    time.Time         // when the oldest of its tunnels was opened
	Tunnels  int               // open ones
	Draining bool              // it is on its way out and takes nothing new
	InFlight int               // streams in use
	State    protocol.AppState // ready when any tunnel says so, else the latest word
	Why      string            // of State, one sentence; may be empty

	// From its report; zero when it sends none.
	Findings []protocol.Finding // of the port doctor, worst first
	Vitals   *protocol.Vitals   // the latest sample
}

// LastWords is what the relay knows of an instance that has ended.
type LastWords struct {
	ID       LastWordsID
	App      AppID
	Instance string
	BootID   string

	Platform, Process, Release, Commit, Region string

	StartedAt time.Time // of the report
	EndedAt   time.Time

	Exit     *protocol.Exit // nil: the agent was lost before it could say
	Reason   string         // one sentence for a person, always set
	Lines    []protocol.Line
	Memory   []MemoryPoint     // oldest first
	Limit    int64             // memory limit of its container, bytes; 0: none known
	Sockets  []protocol.Socket // open at the end
	Findings []protocol.Finding
}

// LastWordsID names a LastWords, "lw_…".
type LastWordsID string

// MemoryPoint is the app's resident memory at one moment, in bytes.
type MemoryPoint struct {
	At  time.Time `json:"at"`
	RSS int64     `json:"rss"`
}

// LastWordsFilter selects; zero fields select everything.
type LastWordsFilter struct {
	App      AppID
	Instance string
	Limit    int // newest first; default 20, at most 100
}

// MaxLastWords is how many a store keeps of each app, the newest.
const MaxLastWords = 100

// LastWordsStore keeps how instances ended.
type LastWordsStore interface {
	// SaveLastWords keeps w, durable when it returns, and forgets the oldest ones
	// of the app beyond MaxLastWords. A second one of the same app, instance and
	// boot replaces the first.
	SaveLastWords(ctx context.Context, w LastWords) error
	// LastWords lists those that f selects, newest first.
	LastWords(ctx context.Context, f LastWordsFilter) ([]LastWords, error)
}
