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
	LastWordsStore
	EgressStore
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
	// Leased says that the deliveries which came as leased are. It is false for a
	// duplicate, and when an older one of the same order key goes first: then they
	// are ready instead.
	Leased bool
}

// Lease is a delivery together with its event, claimed for one attempt.
type Lease struct {
	Delivery Delivery
	Event    Event
}

// Claim asks for deliveries to work on.
type Claim struct {
	Owner       string    // node name
	App         AppID     // only of this app,
	Endpoint    string    // this endpoint
	Destination string    // and this destination
	Limit       int       // at most this many
	MaxBytes    int64     // of bodies, but always one delivery; 0: no limit
	Now         time.Time // deliveries due at Now or before
	Until       time.Time // the lease ends then
}

// Finish ends an attempt. Next is what Delivery.Next made of it; its LeaseGen is
// the one that was claimed, and the store refuses any other.
type Finish struct {
	Attempt Attempt
	Next    Delivery
}

// Backlog is the unfinished work for one destination.
type Backlog struct {
	App         AppID
	Endpoint    string
	Destination string
	Waiting     int       // ready and leased
	NextAt      time.Time // earliest NextAt among the claimable ones; zero when none
}

// EventFilter selects events. Zero fields select everything; all that are set
// must hold.
type EventFilter struct {
	App      AppID
	Endpoint string
	IDs      []EventID       // only these
	Type     string          // exact, or a prefix with * behind it
	States   []DeliveryState // the latest delivery to some destination is in one of these
	// Destination, when set, is the one whose deliveries States is about; "" is the app.
	Destination *string
	Refused     *bool     // only refused ones, or only accepted ones
	Since       time.Time // received at this time or later
	Until       time.Time // received before this time
	Text        string    // in the body, a header, the target, the type or the dedupe key; case counts

	Before EventID // page: only events committed before this one; NotFound when there is none
	After  EventID // page: only events committed after it, oldest first
	Limit  int     // default 100, at most 1000
}

// Listed is an event in a list: without its body, with its deliveries.
type Listed struct {
	Event      Event
	Deliveries []Delivery // oldest first
}

// Usage is what an app has in the store.
type Usage struct {
	App     AppID
	Events  int
	Bytes   int64 // of bodies
	Waiting int   // unfinished deliveries
}

// Expired counts what one step of retention did.
type Expired struct {
	Bodies  int // deleted
	Events  int // deleted with all that belongs to them
	GivenUp int // unfinished deliveries of those
}

// EventStore is the webhook inbox.
type EventStore interface {
	// CreateEvents commits all of events in one transaction, durable when it
	// returns: power may fail the next instant. Receipts are in the order given.
	// Deliveries are ready, final, or leased by the caller for an attempt that it
	// makes at once; see Receipt.Leased. The code Unavailable says that the disk is
	// nearly full.
	// An event whose (App, Endpoint, DedupeKey) is already stored, or comes twice
	// in the same call, is not stored again. Those of the stored one's deliveries
	// that are dead or cancelled become ready at once, with a fresh schedule, unless
	// a replay delivered the event to that destination since, or waits to; a body
	// that retention deleted comes back with them.
	CreateEvents(ctx context.Context, events []NewEvent) ([]Receipt, error)

	// ClaimDeliveries leases due deliveries, longest due first. A delivery with an
	// OrderKey is claimable only when no older unfinished one of the same app,
	// endpoint, destination and key exists. No two claims return the same delivery.
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
	// Backlogs lists the destinations with unfinished deliveries.
	Backlogs(ctx context.Context) ([]Backlog, error)
	// RequeueDelivery makes a dead or cancelled delivery ready, due now, with a
	// fresh schedule; Conflict when it is neither, or its event's body is gone.
	RequeueDelivery(ctx context.Context, id DeliveryID, now time.Time) (Delivery, error)
	// CancelDelivery gives a ready delivery up; Conflict when it is not ready.
	CancelDelivery(ctx context.Context, id DeliveryID) (Delivery, error)
	// Expire deletes up to limit bodies and up to limit events whose time is over
	// at now, in one short transaction. A body that an unfinished delivery waits
	// for stays until its event goes.
	Expire(ctx context.Context, now time.Time, limit int) (Expired, error)
	// Room reports whether an event of size bytes could be stored now, with the
	// error that CreateEvents would give. It costs next to nothing.
	Room(ctx context.Context, size int64) error
	// Usage lists what each app has stored. It costs the same however much that is.
	Usage(ctx context.Context) ([]Usage, error)

	// Event gets one event with its body; NotFound when there is none. A body that
	// retention deleted is nil while BodySize says what it was.
	Event(ctx context.Context, id EventID) (Event, error)
	// Events lists events, newest first unless After is set.
	Events(ctx context.Context, f EventFilter) ([]Listed, error)
	// CountEvents counts what Events would list without its page and limit, except
	// events whose body is gone.
	CountEvents(ctx context.Context, f EventFilter) (int, error)
	// Delivery gets one delivery; NotFound when there is none.
	Delivery(ctx context.Context, id DeliveryID) (Delivery, error)
	// Deliveries lists the deliveries of one event, oldest first.
	Deliveries(ctx context.Context, id EventID) ([]Delivery, error)
	// Attempts lists the attempts of one delivery in order.
	Attempts(ctx context.Context, id DeliveryID) ([]Attempt, error)

	ReplayStore
}

// ReplayStore keeps replays.
type ReplayStore interface {
	// CreateReplay stores r as it is.
	CreateReplay(ctx context.Context, r Replay) error
	// Replay gets one with its counts; NotFound when there is none.
	Replay(ctx context.Context, id ReplayID) (Replay, error)
	// Replays lists an app's replays, newest first, at most 100; "" lists all apps'.
	Replays(ctx context.Context, app AppID) ([]Replay, error)
	// StartReplay makes a planned replay running; Conflict when it is not planned.
	StartReplay(ctx context.Context, id ReplayID) (Replay, error)
	// StepReplay makes ready deliveries, due now, for the next events of a running
	// replay, at most limit of them, in the order they were committed, and moves
	// its cursor. It is done when none is left. Events whose body is gone are
	// passed over. Conflict when it is not running.
	StepReplay(ctx context.Context, id ReplayID, limit int, now time.Time) (Replay, error)
	// CancelReplay ends a planned or running replay and cancels those of its
	// deliveries that are ready; of a done one it only cancels the deliveries.
	CancelReplay(ctx context.Context, id ReplayID) (Replay, error)
}
