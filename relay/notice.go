package relay

import "time"

// NoticeKind says what happened.
type NoticeKind string

// The kinds.
const (
	NoticeReceived NoticeKind = "received" // an event was stored
	NoticeRefused  NoticeKind = "refused"  // a webhook was turned away; Event.Refusal says why
	NoticeAttempt  NoticeKind = "attempt"  // an attempt ended; Delivery is as it is after it
)

// Notice tells those who watch that something happened to an event. Notices are
// for people: one may be lost, the store is what counts.
type Notice struct {
	Kind     NoticeKind
	At       time.Time
	Event    Event     // with its body when received; nobody changes it
	Delivery *Delivery // of an attempt
	Attempt  *Attempt
}
