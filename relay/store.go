package relay

import (
	"context"
	"time"
)

// Store keeps everything that outlives the process. Implementations are
// relay/sqlite and, for several nodes, relay/postgres; relay/storetest is the
// suite both must pass. All methods are safe for concurrent use, return an
// *Error with code NotFound or Conflict where documented, and wrap every other
// failure. A caller treats those others as "store down": 503, never a 4xx.
type Store interface {
	AppStore
	TokenStore
	EventStore
	Close() error
}

// AppStore remembers which apps were ever known.
type AppStore interface {
	// EnsureApp records the app if it is new; it never changes an existing one.
	EnsureApp(ctx context.Context, id AppID, now time.Time) error
	// Apps lists all recorded apps by id. Only ID and CreatedAt are set.
	Apps(ctx context.Context) ([]App, error)
}

// TokenStore keeps issued tokens, so that they can be listed and revoked.
type TokenStore interface {
	CreateToken(ctx context.Context, t Token) error
	// RevokeToken marks the token revoked; NotFound when there is none.
	// Revoking twice keeps the first time.
	RevokeToken(ctx context.Context, id TokenID, now time.Time) error
	// Tokens lists every token, newest first.
	Tokens(ctx context.Context) ([]Token, error)
	// RevokedTokens lists the ids of revoked tokens that have not yet expired
	// at now: the set a verifier must know.
	RevokedTokens(ctx context.Context, now time.Time) ([]TokenID, error)
}

// NewEvent is an event with the deliveries that come with it, committed as one.
type NewEvent struct {
	Event      Event
	Deliveries []Delivery
	// Attempts, for events that were answered live (sync mode), already ended.
	Attempts []Attempt
}

// Receipt says what CreateEvents did with one NewEvent.
type Receipt struct {
	ID        EventID // of the stored event: the first one's when Duplicate
	Duplicate bool    // an event with this endpoint and DedupeKey was stored before
	Requeued  bool    // the duplicate's dead or cancelled deliveries are ready again
}

// Lease is a delivery together with its event, claimed for one attempt.
type Lease struct {
	Delivery Delivery
	Event    Event
}

// Claim asks for deliveries to work on.
type Claim struct {
	Owner    string    // node name
	App      AppID     // only of this app ...
	Endpoint string    // ... and this endpoint
	Limit    int       // at most this many
	Now      time.Time // deliveries due at Now or before
	Until    time.Time // the lease ends then
}

// Finish ends an attempt. Next is what Delivery.Next made of it; its LeaseGen is
// the one that was claimed, and the store refuses any other.
type Finish struct {
	Attempt Attempt
	Next    Delivery
}

// Backlog is one endpoint's unfinished work.
type Backlog struct {
	App      AppID
	Endpoint string
	Waiting  int       // ready and leased
	NextAt   time.Time // earliest NextAt among the ready ones; zero when none
}

// EventFilter selects events for a list. Zero fields select everything.
type EventFilter struct {
	App      AppID
	Endpoint string
	Before   EventID // page: only events older than this one
	Limit    int     // default 100, at most 1000
}

// EventStore is the webhook inbox.
type EventStore interface {
	// CreateEvents commits all of events in one transaction, durable when it
	// returns: power may fail the next instant. Receipts are in the order given.
	// An event whose (App, Endpoint, DedupeKey) is already stored, or comes twice
	// in the same call, is not stored again; if deliveries of the stored one are
	// dead or cancelled they become ready at once, with a fresh schedule.
	CreateEvents(ctx context.Context, events []NewEvent) ([]Receipt, error)

	// ClaimDeliveries leases due deliveries, oldest first. A delivery with an
	// OrderKey is claimable only when no older unfinished one of the same app,
	// endpoint and key exists. No two claims return the same delivery.
	ClaimDeliveries(ctx context.Context, c Claim) ([]Lease, error)
	// FinishAttempt records the attempt and moves the delivery; Conflict when
	// the delivery is not leased with Next.LeaseGen any more.
	FinishAttempt(ctx context.Context, f Finish) error
	// ExtendLease moves the end of a lease; Conflict when the lease was lost.
	ExtendLease(ctx context.Context, id DeliveryID, gen int64, until time.Time) error
	// ReleaseLeases makes ready whatever owner holds, and returns how many. A
	// node calls it at its start, for what a crash left, and at its end.
	ReleaseLeases(ctx context.Context, owner string) (int, error)
	// ReclaimExpired makes ready the leases that ended before now.
	ReclaimExpired(ctx context.Context, now time.Time) (int, error)
	// Backlogs lists the endpoints with unfinished deliveries.
	Backlogs(ctx context.Context) ([]Backlog, error)

	// Event gets one event with its body; NotFound when there is none.
	Event(ctx context.Context, id EventID) (Event, error)
	// Events lists events, newest first, without their bodies.
	Events(ctx context.Context, f EventFilter) ([]Event, error)
	// Deliveries lists the deliveries of one event, oldest first.
	Deliveries(ctx context.Context, id EventID) ([]Delivery, error)
	// Attempts lists the attempts of one delivery in order.
	Attempts(ctx context.Context, id DeliveryID) ([]Attempt, error)
}
