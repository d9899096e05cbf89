package relay

import (
	"crypto/sha256"
	"net/http"
	"time"
)

// EventID names a received webhook; it is stable over every retry and replay.
type EventID string

// DeliveryID names the duty to hand one event to one destination.
type DeliveryID string

// ReplayID names a Replay.
type ReplayID string

// NewEventID makes an EventID ("evt_...").
func NewEventID(now time.Time) EventID { return EventID(newID("evt_", now)) }

// NewDeliveryID makes a DeliveryID ("dlv_...").
func NewDeliveryID(now time.Time) DeliveryID { return DeliveryID(newID("dlv_", now)) }

// NewReplayID makes a ReplayID ("rpl_...").
func NewReplayID(now time.Time) ReplayID { return ReplayID(newID("rpl_", now)) }

// Field is one header line. A slice of them keeps duplicates and their order.
type Field struct{ Name, Value string }

// Event is a webhook as it arrived. Header and Body are the sender's own bytes:
// signatures cover them, so nothing here is ever re-encoded.
type Event struct {
	ID         EventID
	App        AppID
	Endpoint   string
	ReceivedAt time.Time

	Method    string
	Target    string // path after /hooks/<app>/<endpoint> with the query, as sent; may be empty
	PublicURL string // the whole URL the sender used; URL-signing providers need it
	Header    []Field
	Body      []byte
	RemoteIP  string

	Type      string    // the provider's event type, "" when it has none
	SentAt    time.Time // the provider's own timestamp, zero when it has none
	DedupeKey string    // the provider's delivery id, "" when it has none
	Verified  bool      // a signature was checked and holds

	// Refusal says why the webhook was turned away; "" for an accepted one. A
	// refused event has no deliveries and no DedupeKey: it is kept to be looked at.
	Refusal string

	BodyExpiresAt time.Time // when retention may delete the body, if nothing waits for it
	ExpiresAt     time.Time // when retention deletes everything
	BodySize      int64     // bytes received; the body itself may be gone or left out
}

// BodyHash is the SHA-256 of the body, kept beside it to notice damage.
func (e *Event) BodyHash() [32]byte { return sha256.Sum256(e.Body) }

// DeliveryState is where a Delivery stands. The numbers are stored.
type DeliveryState int

// The states. Ready and Leased are unfinished; the others are final, though a
// dead delivery can be made ready again by hand or by the provider's redelivery.
const (
	DeliveryReady     DeliveryState = 0 // waits for NextAt and for an agent
	DeliveryLeased    DeliveryState = 1 // one worker is trying it
	DeliveryDone      DeliveryState = 2 // the app answered 2xx
	DeliveryDead      DeliveryState = 3 // the retry schedule is used up
	DeliveryCancelled DeliveryState = 4 // an operator gave it up
)

func (s DeliveryState) String() string {
	switch s {
	case DeliveryReady:
		return "ready"
	case DeliveryLeased:
		return "leased"
	case DeliveryDone:
		return "done"
	case DeliveryDead:
		return "dead"
	case DeliveryCancelled:
		return "cancelled"
	}
	return "unknown"
}

// Trigger says why a Delivery exists. The numbers are stored.
type Trigger int

// The triggers.
const (
	TriggerLive   Trigger = 0 // the sender sent the event
	TriggerReplay Trigger = 1 // somebody asked for it again
)

func (t Trigger) String() string {
	if t == TriggerReplay {
		return "replay"
	}
	return "live"
}

// Delivery is the duty to hand one event to one destination.
type Delivery struct {
	ID          DeliveryID
	Event       EventID
	App         AppID
	Endpoint    string
	Destination string // name of an Endpoint's Destination; "" is the app
	OrderKey    string // deliveries to one destination with equal keys keep their order; "" has none
	Trigger     Trigger
	Replay      ReplayID // the Replay that made it; "" when none did

	State      DeliveryState
	Attempt    int       // counted attempts so far
	NextAt     time.Time // not before this
	LeaseOwner string    // node that holds it while leased
	LeaseUntil time.Time
	LeaseGen   int64 // fencing token: every transition names the generation it saw
	LastStatus int   // HTTP status of the last attempt, 0 when there was none
	LastError  string
}

// Outcome says how an attempt ended. The numbers are stored.
type Outcome int

// The outcomes. OutcomeRejected, OutcomeTimeout and OutcomeUnknown use up a step
// of the retry schedule; OutcomeUnsent and OutcomeBooting say nothing about the
// event.
const (
	OutcomeDone     Outcome = 0 // the app answered 2xx
	OutcomeRejected Outcome = 1 // the app answered something else
	OutcomeTimeout  Outcome = 2 // the app was silent too long
	OutcomeUnknown  Outcome = 3 // bytes were sent and the connection was lost
	OutcomeUnsent   Outcome = 4 // no byte reached an app
	OutcomeBooting  Outcome = 5 // 503 from an app that has only just come up
)

func (o Outcome) String() string {
	switch o {
	case OutcomeDone:
		return "done"
	case OutcomeRejected:
		return "rejected"
	case OutcomeTimeout:
		return "timeout"
	case OutcomeUnknown:
		return "unknown"
	case OutcomeUnsent:
		return "unsent"
	case OutcomeBooting:
		return "booting"
	}
	return "invalid"
}

// Counts reports whether o uses up a step of the retry schedule.
func (o Outcome) Counts() bool {
	return o == OutcomeRejected || o == OutcomeTimeout || o == OutcomeUnknown
}

// OutcomeOf says what an attempt means that ended with err and without an answer.
func OutcomeOf(err error) Outcome {
	switch CodeOf(err) {
	case NoAgent, AppStarting, AppRefused, Draining, Overloaded:
		return OutcomeUnsent
	case AppTimeout:
		return OutcomeTimeout
	}
	return OutcomeUnknown
}

// Attempt is one try to deliver.
type Attempt struct {
	Delivery  DeliveryID
	Number    int // 1, 2, ... in the order they ended, uncounted ones included
	StartedAt time.Time
	EndedAt   time.Time
	Instance  string // which agent instance had it, "" when none
	Outcome   Outcome
	Status    int           // HTTP status, 0 when no answer came
	RetryIn   time.Duration // the app's Retry-After, 0 when it sent none
	Header    []Field       // the answer's
	Body      []byte        // the answer's first bytes, at most 64 KiB
	Error     string
}

// RetryPolicy is when to try again after each counted failure.
type RetryPolicy struct {
	Schedule []time.Duration // Schedule[n-1] is waited after counted failure n
	// Floor is the least wait after a timeout or a 429: an app that is too slow is
	// not helped by more work. A schedule of the user's own has none.
	Floor time.Duration
}

// DefaultRetry spreads ten retries over about 28 hours.
var DefaultRetry = RetryPolicy{Schedule: []time.Duration{
	5 * time.Second, 30 * time.Second, 2 * time.Minute, 10 * time.Minute, 30 * time.Minute,
	time.Hour, 2 * time.Hour, 4 * time.Hour, 8 * time.Hour, 12 * time.Hour,
}, Floor: time.Minute}

// Bounds that Next keeps whatever the app asks for.
const (
	uncountedDelay = time.Second // after an attempt of which no byte reached an app
	maxRetryAfter  = time.Hour
	retryJitter    = 0.2 // each wait is stretched or shrunk by up to a fifth
)

// Next is d after attempt a ended: done, dead, or ready again at a later time.
// random is uniform in [0, 1). It neither reads the clock nor changes d.
func (d Delivery) Next(a Attempt, p RetryPolicy, random float64) Delivery {
	d.LeaseOwner, d.LeaseUntil = "", time.Time{}
	d.LastStatus, d.LastError = a.Status, a.Error
	if a.Outcome.Counts() || a.Outcome == OutcomeDone {
		d.Attempt++
	}
	if a.Outcome == OutcomeDone {
		d.State = DeliveryDone
		return d
	}
	wait := uncountedDelay
	if a.Outcome.Counts() {
		if d.Attempt > len(p.Schedule) {
			d.State = DeliveryDead
			return d
		}
		wait = p.Schedule[d.Attempt-1]
		if a.Outcome == OutcomeTimeout || a.Status == http.StatusTooManyRequests {
			wait = max(wait, p.Floor)
		}
	}
	wait = time.Duration(float64(wait) * (1 - retryJitter + 2*retryJitter*random))
	// The app knows best when it is ready, within reason: never sooner than our
	// own schedule (a confused app must not make us hammer it), never much later.
	if asked := min(a.RetryIn, maxRetryAfter); asked > wait {
		wait = asked
	}
	d.State, d.NextAt = DeliveryReady, a.EndedAt.Add(wait)
	return d
}
