package relay

import "time"

// ReplayState is where a Replay stands. The numbers are stored.
type ReplayState int

// The states. A Replay is made as a plan, which counts and does nothing.
const (
	ReplayPlanned   ReplayState = 0
	ReplayRunning   ReplayState = 1 // deliveries are being made
	ReplayDone      ReplayState = 2 // all of them were made; they may still wait
	ReplayCancelled ReplayState = 3
)

func (s ReplayState) String() string {
	switch s {
	case ReplayPlanned:
		return "planned"
	case ReplayRunning:
		return "running"
	case ReplayDone:
		return "done"
	case ReplayCancelled:
		return "cancelled"
	}
	return "unknown"
}

// Replay delivers stored events once more, each by a new Delivery.
type Replay struct {
	ID          ReplayID
	App         AppID
	By          string // who asked
	CreatedAt   time.Time
	Filter      EventFilter // which events; Until is fixed when it is planned
	Destination string      // "" is the app
	Rate        float64     // deliveries made a second; 0: as fast as they go
	State       ReplayState
	Planned     int // events that the filter found, whose bodies are still there

	// How far it is.
	Cursor    EventID // the last event that a delivery was made for
	Made      int     // deliveries made
	Done      int     // of them: the app said 2xx
	Dead      int     // given up
	Cancelled int
}
