package selftest

import (
	"fmt"
	"net/http"
	"slices"
	"sync"
)

// Kind says what is wrong.
type Kind string

// The kinds of violations.
const (
	Lost          Kind = "lost"           // acknowledged, and the app never took it
	BodyDiffers   Kind = "body differs"   // from what was sent
	HeaderDiffers Kind = "header differs" // in the sender's own lines
	IDDiffers     Kind = "id differs"     // one event came under several ids
	KeyDiffers    Kind = "key differs"    // one event came with several idempotency keys
	OutOfOrder    Kind = "out of order"   // an event overtook an older one of its order key
	NeverSent     Kind = "never sent"     // the app got what no sender made
	NoID          Kind = "no id"          // a 2xx that does not name an event of its own
	Refused       Kind = "refused"        // a good webhook was answered 4xx
	NoRetryAfter  Kind = "no retry after" // a 503 that does not say when to come again
	Redirected    Kind = "strange answer" // neither 2xx nor an error
)

// Violation is one breach of the promise.
type Violation struct {
	Kind   Kind   `json:"kind"`
	Number int64  `json:"number"` // of the event; 0 when it has none
	Event  string `json:"event"`  // its id, as far as known
	Detail string `json:"detail"`
}

func (v Violation) String() string {
	return fmt.Sprintf("%s: event %d %s: %s", v.Kind, v.Number, v.Event, v.Detail)
}

// Ledger is what happened. All methods are safe for concurrent use.
type Ledger struct {
	mu     sync.Mutex
	clock  int64              // guarded by mu; counts everything that is written down
	events map[int64]*history // guarded by mu
	ids    map[string]int64   // guarded by mu; acknowledged id → number
	found  []Violation        // guarded by mu; what needs no waiting to be judged
	counts Counts             // guarded by mu
}

// Counts is how much happened.
type Counts struct {
	Sent         int `json:"sent"`         // events, each once
	Acknowledged int `json:"acknowledged"` // events with a 2xx
	Delivered    int `json:"delivered"`    // acknowledged events that the app took
	Twice        int `json:"twice"`        // of those, how many it took more than once
	Deliveries   int `json:"deliveries"`   // requests the app got, repeats and refused ones included
	Unasked      int `json:"unasked"`      // delivered events that were never acknowledged
	Unanswered   int `json:"unanswered"`   // sends without an answer: the connection broke
	Unavailable  int `json:"unavailable"`  // sends answered 503
	Failed       int `json:"failed"`       // sends answered with any other 5xx
}

// history is one event's. The times are of the ledger's clock, 0 for never.
type history struct {
	Event
	sent  int64 // first
	acked int64 // first
	taken int64 // first delivery that the app answered 2xx

	id          string // event id, as first heard
	deliveryID  string
	idempotency string
	seen, ok    int // deliveries
}

// NewLedger makes an empty Ledger.
func NewLedger() *Ledger {
	return &Ledger{events: map[int64]*history{}, ids: map[string]int64{}}
}

// tickLocked is the next time.
func (l *Ledger) tickLocked() int64 {
	l.clock++
	return l.clock
}

func (l *Ledger) violateLocked(kind Kind, number int64, id, format string, args ...any) {
	l.found = append(l.found, Violation{kind, number, id, fmt.Sprintf(format, args...)})
}

// Send writes down that e is about to be sent, perhaps not for the first time.
// Only events that the relay can tell are the same may be sent twice.
func (l *Ledger) Send(e Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.events[e.Number] == nil {
		l.events[e.Number] = &history{Event: e, sent: l.tickLocked()}
		l.counts.Sent++
	}
}

// Answer writes down the relay's answer to the last Send of the event: id is the
// event's as the relay calls it.
func (l *Ledger) Answer(number int64, status int, id string, header http.Header) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.events[number]
	switch {
	case h == nil:
		panic(fmt.Sprintf("selftest: an answer to event %d, which was not sent", number))
	case status == http.StatusServiceUnavailable:
		l.counts.Unavailable++
		if header.Get("Retry-After") == "" {
			l.violateLocked(NoRetryAfter, number, id, "503 without Retry-After")
		}
	case status >= 500:
		l.counts.Failed++
	case status >= 400:
		l.violateLocked(Refused, number, id, "answered %d", status)
	case status/100 != 2:
		l.violateLocked(Redirected, number, id, "answered %d", status)
	default:
		l.acknowledgeLocked(h, id)
	}
}

func (l *Ledger) acknowledgeLocked(h *history, id string) {
	if h.acked == 0 {
		h.acked = l.tickLocked()
		l.counts.Acknowledged++
		if h.ok > 0 {
			// It was taken before its sender heard of it, and is no longer unasked.
			l.counts.Unasked--
			l.countTakenLocked(h)
		}
	}
	other, taken := l.ids[id]
	switch {
	case id == "":
		l.violateLocked(NoID, h.Number, "", "acknowledged without an event id")
	case taken && other != h.Number:
		l.violateLocked(NoID, h.Number, id, "acknowledged with the id of event %d", other)
	default:
		l.ids[id] = h.Number
	}
	l.sameLocked(h, IDDiffers, &h.id, id, "event id")
}

// countTakenLocked counts a taken event that was acknowledged.
func (l *Ledger) countTakenLocked(h *history) {
	l.counts.Delivered++
	if h.ok > 1 {
		l.counts.Twice++
	}
}

// sameLocked holds a value against the one first heard.
func (l *Ledger) sameLocked(h *history, kind Kind, first *string, value, what string) {
	if *first == "" {
		*first = value
	}
	if value != *first {
		l.violateLocked(kind, h.Number, h.id, "%s %q, before %q", what, value, *first)
	}
}

// Unanswered writes down that the last Send of the event brought no answer.
func (l *Ledger) Unanswered(number int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts.Unanswered++
}

// Observe writes down that the app was given d. The order of calls is the order
// of deliveries.
func (l *Ledger) Observe(d Delivery) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts.Deliveries++
	now := l.tickLocked()
	h := l.events[d.Number]
	if h == nil {
		l.violateLocked(NeverSent, d.Number, d.EventID, "the app got it as delivery %q", d.DeliveryID)
		return
	}
	h.seen++
	if d.Body != h.Body {
		l.violateLocked(BodyDiffers, h.Number, d.EventID, "attempt %s has body %s, sent was %s", d.Attempt, d.Body, h.Body)
	}
	if d.Header != h.Header {
		l.violateLocked(HeaderDiffers, h.Number, d.EventID, "attempt %s has header %s, sent was %s", d.Attempt, d.Header, h.Header)
	}
	if d.EventID == "" || d.DeliveryID == "" || d.IdempotencyKey == "" {
		l.violateLocked(IDDiffers, h.Number, d.EventID, "attempt %s lacks an id: event %q, delivery %q, idempotency key %q",
			d.Attempt, d.EventID, d.DeliveryID, d.IdempotencyKey)
	}
	l.sameLocked(h, IDDiffers, &h.id, d.EventID, "event id")
	l.sameLocked(h, IDDiffers, &h.deliveryID, d.DeliveryID, "delivery id")
	l.sameLocked(h, KeyDiffers, &h.idempotency, d.IdempotencyKey, "idempotency key")
	if d.OK {
		l.takeLocked(h, now)
	}
}

// takeLocked notes that the app said 2xx to an event.
func (l *Ledger) takeLocked(h *history, now int64) {
	h.ok++
	if h.ok == 1 {
		h.taken = now
	}
	switch {
	case h.acked == 0 && h.ok == 1:
		l.counts.Unasked++
	case h.acked > 0 && h.ok == 1:
		l.counts.Delivered++
	case h.acked > 0 && h.ok == 2:
		l.counts.Twice++
	}
}

// Counts is how much has happened so far.
func (l *Ledger) Counts() Counts {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.counts
}

// Waiting is how many acknowledged events the app has not taken yet.
func (l *Ledger) Waiting() int {
	c := l.Counts()
	return c.Acknowledged - c.Delivered
}

// Check judges everything, by the event's number. It is called when nothing more
// is to come: what has not arrived by then is lost.
func (l *Ledger) Check() []Violation {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := append([]Violation{}, l.found...) // an empty list, not none, as JSON
	keys := map[string][]*history{}
	for _, h := range l.events {
		if h.acked > 0 && h.taken == 0 {
			all = append(all, Violation{Lost, h.Number, h.id,
				fmt.Sprintf("acknowledged; the app got it %d times and never took it", h.seen)})
		}
		if h.Key != "" {
			keys[h.Key] = append(keys[h.Key], h)
		}
	}
	for _, events := range keys {
		all = append(all, overtaken(events)...)
	}
	slices.SortStableFunc(all, func(a, b Violation) int {
		return int(min(1, max(-1, a.Number-b.Number)))
	})
	return all
}

// overtaken finds the events of one key that the app took before an older one.
// Older is what was acknowledged before the other was first sent: of two that
// were under way together, either may be first. An event that never arrived is
// lost and not late.
func overtaken(events []*history) []Violation {
	acked := slices.DeleteFunc(slices.Clone(events), func(h *history) bool { return h.acked == 0 || h.taken == 0 })
	slices.SortFunc(acked, func(a, b *history) int { return int(a.acked - b.acked) })
	slices.SortFunc(events, func(a, b *history) int { return int(a.sent - b.sent) })
	var found []Violation
	var latest *history // of the older ones, the one that was taken last
	for _, h := range events {
		for len(acked) > 0 && acked[0].acked < h.sent {
			if latest == nil || acked[0].taken > latest.taken {
				latest = acked[0]
			}
			acked = acked[1:]
		}
		if h.taken > 0 && latest != nil && h.taken < latest.taken {
			found = append(found, Violation{OutOfOrder, h.Number, h.id,
				fmt.Sprintf("taken before event %d %s of the same key %q", latest.Number, latest.id, h.Key)})
		}
	}
	return found
}
