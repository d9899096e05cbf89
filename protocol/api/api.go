// Package api has the JSON of the relay's HTTP API, for both ends: the relay
// that writes it and the command line that reads it. It is types only.
//
//	GET    /api/v1/events                  → EventList       ?app endpoint type state refused since until text before limit
//	GET    /api/v1/events/stream           → server-sent events, each a Notice   ?app endpoint filter bodies resign url
//	GET    /api/v1/events/{id}             → EventDetail
//	GET    /api/v1/events/{id}/export      → a file          ?as=curl|har|go  &target=URL
//	POST   /api/v1/replays                 ReplayRequest → Replay (state planned)
//	GET    /api/v1/replays                 → ReplayList      ?app
//	GET    /api/v1/replays/{id}            → Replay
//	POST   /api/v1/replays/{id}/start      → Replay
//	POST   /api/v1/replays/{id}/cancel     → Replay
//	POST   /api/v1/deliveries/{id}/requeue → Delivery        a dead one gets a fresh schedule
//	POST   /api/v1/deliveries/{id}/cancel  → Delivery
//	GET    /api/v1/instances               → InstanceList    ?app
//	GET    /api/v1/logs                    → server-sent events, each a LogLine or a LogNotice   ?app instance lines follow
//	GET    /api/v1/lastwords               → LastWordsList   ?app instance limit
//
// Every request has "Authorization: Bearer <token>" of a developer of the app or
// of an administrator. Without the parameter app, a developer's own app is
// meant, and an administrator sees all. Errors are ErrorAnswer. Times are RFC
// 3339 in UTC; durations are milliseconds.
//
// The stream begins now, or behind the event in the header Last-Event-ID; when
// that one is gone, the answer is 404 with the reason event_gone. It has a
// comment every 15 s, and is to be connected to again when it ends. With
// ?resign=1, notices of received events have header lines that sign them by the
// endpoint's secrets; with the header Postern-Resign-Secret, by that one. They are
// for the address ?url= of the developer's app: below its path if it has one,
// else at the endpoint's own path (app_target). ?target= of an export is read
// the same way.
//
// The logs are those of the instances that are connected, merged by time. Of each
// come the latest ?lines that its agent keeps, and with ?follow=1 what it writes
// from then on; instances that come later are picked up. While no agent of the app
// is connected there is a LogNone. A stream that does not follow ends with a
// LogEnd; one that ends without was cut. It has the same comments.
package api

import "time"

// Event is a received webhook, redacted as its endpoint says.
type Event struct {
	ID         string    `json:"id"`
	App        string    `json:"app"`
	Endpoint   string    `json:"endpoint"`
	ReceivedAt time.Time `json:"received_at"`
	Method     string    `json:"method"`
	Target     string    `json:"target"` // what followed /hooks/<app>/<endpoint>
	RemoteIP   string    `json:"remote_ip"`
	Type       string    `json:"type,omitempty"`
	DedupeKey  string    `json:"dedupe_key,omitempty"`
	Verified   bool      `json:"verified"`
	Refusal    string    `json:"refusal,omitempty"` // why it was turned away, and the likely cause
	BodySize   int64     `json:"body_size"`         // bytes

	State      string     `json:"state"` // of the event as a whole: refused, or its most urgent delivery's, of each destination the newest
	Deliveries []Delivery `json:"deliveries,omitempty"`
}

// EventDetail is an Event with its request and what happened to it.
type EventDetail struct {
	Event
	PublicURL string      `json:"public_url"`
	Header    [][2]string `json:"header"`
	AppTarget string      `json:"app_target,omitempty"` // path and query at the app: the endpoint's path and Target
	Body      *Body       `json:"body"`                 // null when it is not there to be shown
	BodyNote  string      `json:"body_note,omitempty"`  // why Body is null: retention deleted it, or it is hidden
	ExpiresAt time.Time   `json:"expires_at"`
	Attempts  []Attempt   `json:"attempts"` // of all deliveries, in order
}

// Body is bytes as text where they are UTF-8, else in base64.
type Body struct {
	Text   string `json:"text,omitempty"`
	Base64 []byte `json:"base64,omitempty"`
}

// Bytes are the body's own.
func (b *Body) Bytes() []byte {
	if b == nil {
		return nil
	}
	if b.Base64 != nil {
		return b.Base64
	}
	return []byte(b.Text)
}

// Delivery is the duty to hand an event to one destination.
type Delivery struct {
	ID          string     `json:"id"`
	Event       string     `json:"event"`
	Destination string     `json:"destination,omitempty"` // "" is the app
	Trigger     string     `json:"trigger"`               // live or replay
	Replay      string     `json:"replay,omitempty"`
	State       string     `json:"state"`             // ready, leased, done, dead or cancelled
	Attempts    int        `json:"attempts"`          // counted ones so far
	NextAt      *time.Time `json:"next_at,omitempty"` // while ready
	LastStatus  int        `json:"last_status,omitempty"`
	LastError   string     `json:"last_error,omitempty"`
}

// Attempt is one try to deliver.
type Attempt struct {
	Delivery  string      `json:"delivery"`
	Number    int         `json:"number,omitempty"` // 1, 2, …; not in the stream
	StartedAt time.Time   `json:"started_at"`
	Millis    int64       `json:"ms"`
	Instance  string      `json:"instance,omitempty"`
	Outcome   string      `json:"outcome"` // done, rejected, timeout, unknown, unsent or booting
	Status    int         `json:"status,omitempty"`
	Header    [][2]string `json:"header,omitempty"`
	Body      *Body       `json:"body,omitempty"` // the answer's first bytes
	Error     string      `json:"error,omitempty"`
}

// EventList is one page, newest first.
type EventList struct {
	Events []Event `json:"events"`
	Next   string  `json:"next,omitempty"` // give it as before for the next page; "" when there is none
}

// Notice is one message of the stream; its SSE event name is Kind and its SSE id
// resumes the stream behind it (Last-Event-ID). One without an SSE id, such as an
// attempt, leaves the last id as it was, and a message of an id alone moves it.
type Notice struct {
	Kind     string       `json:"kind"` // received, refused or attempt
	At       time.Time    `json:"at"`
	Event    *EventDetail `json:"event"`              // Header and Body only where asked for
	Resigned [][2]string  `json:"resigned,omitempty"` // header lines that sign the event anew
	Delivery *Delivery    `json:"delivery,omitempty"`
	Attempt  *Attempt     `json:"attempt,omitempty"`
}

// ReplayRequest selects what to deliver once more. It is a plan until it is
// started.
type ReplayRequest struct {
	App         string     `json:"app,omitempty"`
	Events      []string   `json:"events,omitempty"` // these, or
	All         bool       `json:"all,omitempty"`    // every event of the app, or what has all of
	Endpoint    string     `json:"endpoint,omitempty"`
	Type        string     `json:"type,omitempty"`
	States      []string   `json:"states,omitempty"`
	Since       *time.Time `json:"since,omitempty"`
	Until       *time.Time `json:"until,omitempty"`
	Text        string     `json:"text,omitempty"`
	Destination string     `json:"destination,omitempty"`
	Rate        float64    `json:"rate,omitempty"` // deliveries a second; 0: as fast as they go
}

// Replay is a replay and how far it is.
type Replay struct {
	ID        string    `json:"id"`
	App       string    `json:"app"`
	By        string    `json:"by"`
	CreatedAt time.Time `json:"created_at"`
	State     string    `json:"state"` // planned, running, done or cancelled
	Planned   int       `json:"planned"`
	Made      int       `json:"made"`
	Done      int       `json:"done"`
	Dead      int       `json:"dead"`
	Cancelled int       `json:"cancelled"`
	Rate      float64   `json:"rate,omitempty"`

	Destination string  `json:"destination,omitempty"` // "" is the app
	Sample      []Event `json:"sample,omitempty"`      // the first few, in the answer to the plan
}

// ReplayList is an app's replays, newest first.
type ReplayList struct {
	Replays []Replay `json:"replays"`
}

// ErrorAnswer is the form of every refusal.
type ErrorAnswer struct {
	Error struct {
		Code      string `json:"code"`
		Reason    string `json:"reason,omitempty"`
		Message   string `json:"message"`
		RequestID string `json:"request_id,omitempty"`
		// Errors are what is wrong with the text of a manifest, by position.
		Errors []ManifestProblem `json:"errors,omitempty"`
	} `json:"error"`
}
