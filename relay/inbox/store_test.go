package inbox

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/posternhq/postern/relay"
)

// memStore is a relay.EventStore in memory, with the promises that the real
// ones make. Only what the inbox calls is written; the rest is left nil.
type memStore struct {
	relay.EventStore

	mu         sync.Mutex
	events     map[relay.EventID]relay.Event
	deliveries []*relay.Delivery // oldest first
	attempts   []relay.Attempt

	replays []relay.Replay
	steps   []step
	old     int         // events whose time is over
	expired []time.Time // when some of them were deleted

	claims    []relay.Claim
	extended  int
	released  int // calls of ReleaseLeases
	delay     time.Duration
	down      error
	downCalls int // how many calls were refused because of down
}

func newMemStore() *memStore {
	return &memStore{events: make(map[relay.EventID]relay.Event)}
}

// fail makes every call fail with err, or work again with nil.
func (s *memStore) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = err
}

// age makes the time of n events be over.
func (s *memStore) age(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.old = n
}

// aged is how many of those are left, and when others were deleted.
func (s *memStore) aged() (left int, deleted []time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.old, slices.Clone(s.expired)
}

// slow makes every call that writes take so long, all of them at once as with a
// group commit.
func (s *memStore) slow(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.delay = d
}

func (s *memStore) commit() {
	s.mu.Lock()
	d := s.delay
	s.mu.Unlock()
	time.Sleep(d)
}

func (s *memStore) refuse(ctx context.Context) error {
	if s.down != nil {
		s.downCalls++
		return s.down
	}
	return ctx.Err()
}

func (s *memStore) CreateEvents(ctx context.Context, events []relay.NewEvent) ([]relay.Receipt, error) {
	s.commit()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.refuse(ctx); err != nil {
		return nil, err
	}
	var receipts []relay.Receipt
	for _, n := range events {
		if r, known := s.duplicateLocked(n.Event); known {
			receipts = append(receipts, r)
			continue
		}
		e := n.Event
		e.Body = bytes.Clone(e.Body)
		s.events[e.ID] = e
		r := relay.Receipt{ID: e.ID}
		for _, d := range n.Deliveries {
			if d.State == relay.DeliveryLeased {
				if r.Leased = !s.olderLocked(d); !r.Leased {
					d.State, d.LeaseOwner, d.LeaseUntil, d.LeaseGen = relay.DeliveryReady, "", time.Time{}, 0
				}
			}
			s.deliveries = append(s.deliveries, &d)
		}
		s.attempts = append(s.attempts, n.Attempts...)
		receipts = append(receipts, r)
	}
	return receipts, nil
}

func (s *memStore) duplicateLocked(e relay.Event) (relay.Receipt, bool) {
	if e.DedupeKey == "" {
		return relay.Receipt{}, false
	}
	for _, old := range s.events {
		if old.App != e.App || old.Endpoint != e.Endpoint || old.DedupeKey != e.DedupeKey {
			continue
		}
		r := relay.Receipt{ID: old.ID, Duplicate: true}
		for _, d := range s.deliveries {
			if d.Event == old.ID && (d.State == relay.DeliveryDead || d.State == relay.DeliveryCancelled) {
				d.State, d.Attempt, d.NextAt, r.Requeued = relay.DeliveryReady, 0, e.ReceivedAt, true
			}
		}
		return r, true
	}
	return relay.Receipt{}, false
}

func (s *memStore) ClaimDeliveries(ctx context.Context, c relay.Claim) ([]relay.Lease, error) {
	s.commit()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.claims = append(s.claims, c)
	if err := s.refuse(ctx); err != nil {
		return nil, err
	}
	var leases []relay.Lease
	var size int64
	busy := map[string]bool{} // keys of older unfinished deliveries
	for _, d := range s.deliveries {
		if d.App != c.App || d.Endpoint != c.Endpoint || d.Destination != c.Destination || d.State > relay.DeliveryLeased {
			continue
		}
		free := d.OrderKey == "" || !busy[d.OrderKey]
		busy[d.OrderKey] = true
		if d.State == relay.DeliveryLeased || !free || d.NextAt.After(c.Now) || len(leases) == c.Limit {
			continue
		}
		size += int64(len(s.events[d.Event].Body))
		if c.MaxBytes > 0 && size > c.MaxBytes && len(leases) > 0 {
			break
		}
		d.State, d.LeaseOwner, d.LeaseUntil = relay.DeliveryLeased, c.Owner, c.Until
		d.LeaseGen++
		leases = append(leases, relay.Lease{Delivery: *d, Event: s.events[d.Event]})
	}
	return leases, nil
}

func (s *memStore) FinishAttempt(ctx context.Context, f relay.Finish) error {
	s.commit()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.refuse(ctx); err != nil {
		return err
	}
	d := s.leasedLocked(f.Next.ID, f.Next.LeaseGen)
	if d == nil {
		return relay.Errorf(relay.Conflict, "not leased with this generation")
	}
	*d = f.Next
	s.attempts = append(s.attempts, f.Attempt)
	return nil
}

func (s *memStore) ExtendLease(ctx context.Context, id relay.DeliveryID, gen int64, until time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.refuse(ctx); err != nil {
		return err
	}
	d := s.leasedLocked(id, gen)
	if d == nil {
		return relay.Errorf(relay.Conflict, "not leased with this generation")
	}
	d.LeaseUntil = until
	s.extended++
	return nil
}

func (s *memStore) leasedLocked(id relay.DeliveryID, gen int64) *relay.Delivery {
	for _, d := range s.deliveries {
		if d.ID == id && d.State == relay.DeliveryLeased && d.LeaseGen == gen {
			return d
		}
	}
	return nil
}

func (s *memStore) ReleaseLeases(ctx context.Context, owner string) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.released++
	if err := s.refuse(ctx); err != nil {
		return 0, err
	}
	return s.readyLocked(func(d *relay.Delivery) bool { return d.LeaseOwner == owner }), nil
}

func (s *memStore) ReclaimExpired(ctx context.Context, now time.Time) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.refuse(ctx); err != nil {
		return 0, err
	}
	return s.readyLocked(func(d *relay.Delivery) bool { return d.LeaseUntil.Before(now) }), nil
}

func (s *memStore) readyLocked(which func(*relay.Delivery) bool) int {
	n := 0
	for _, d := range s.deliveries {
		if d.State == relay.DeliveryLeased && which(d) {
			d.State, d.LeaseOwner, d.LeaseUntil = relay.DeliveryReady, "", time.Time{}
			n++
		}
	}
	return n
}

func (s *memStore) Backlogs(ctx context.Context) ([]relay.Backlog, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.refuse(ctx); err != nil {
		return nil, err
	}
	var all []relay.Backlog
	for _, d := range s.deliveries {
		if d.State > relay.DeliveryLeased {
			continue
		}
		i := slices.IndexFunc(all, func(b relay.Backlog) bool { return b.App == d.App && b.Endpoint == d.Endpoint })
		if i < 0 {
			i = len(all)
			all = append(all, relay.Backlog{App: d.App, Endpoint: d.Endpoint, Destination: d.Destination})
		}
		all[i].Waiting++
		if d.State == relay.DeliveryReady && (all[i].NextAt.IsZero() || d.NextAt.Before(all[i].NextAt)) {
			all[i].NextAt = d.NextAt
		}
	}
	return all, nil
}

// olderLocked reports whether an unfinished delivery has d's place and key.
func (s *memStore) olderLocked(d relay.Delivery) bool {
	return d.OrderKey != "" && slices.ContainsFunc(s.deliveries, func(o *relay.Delivery) bool {
		return o.State <= relay.DeliveryLeased && laneOf(*o) == laneOf(d) && o.OrderKey == d.OrderKey
	})
}

func (s *memStore) Expire(ctx context.Context, _ time.Time, limit int) (relay.Expired, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.refuse(ctx); err != nil {
		return relay.Expired{}, err
	}
	n := min(limit, s.old)
	s.old -= n
	if n > 0 {
		s.expired = append(s.expired, time.Now())
	}
	return relay.Expired{Events: n}, nil
}

func (s *memStore) Usage(ctx context.Context) ([]relay.Usage, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.refuse(ctx); err != nil {
		return nil, err
	}
	u := relay.Usage{App: testApp}
	for _, e := range s.events {
		u.Events++
		u.Bytes += int64(len(e.Body))
	}
	for _, d := range s.deliveries {
		if d.State <= relay.DeliveryLeased {
			u.Waiting++
		}
	}
	return []relay.Usage{u}, nil
}

func (s *memStore) RequeueDelivery(ctx context.Context, id relay.DeliveryID, now time.Time) (relay.Delivery, error) {
	return s.change(ctx, id, func(d *relay.Delivery) bool {
		dead := d.State == relay.DeliveryDead || d.State == relay.DeliveryCancelled
		if dead {
			d.State, d.Attempt, d.NextAt = relay.DeliveryReady, 0, now
		}
		return dead
	})
}

func (s *memStore) CancelDelivery(ctx context.Context, id relay.DeliveryID) (relay.Delivery, error) {
	return s.change(ctx, id, func(d *relay.Delivery) bool {
		ready := d.State == relay.DeliveryReady
		if ready {
			d.State = relay.DeliveryCancelled
		}
		return ready
	})
}

func (s *memStore) change(ctx context.Context, id relay.DeliveryID, what func(*relay.Delivery) bool) (relay.Delivery, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.refuse(ctx); err != nil {
		return relay.Delivery{}, err
	}
	for _, d := range s.deliveries {
		if d.ID == id {
			if !what(d) {
				return relay.Delivery{}, relay.Errorf(relay.Conflict, "it is %v", d.State)
			}
			return *d, nil
		}
	}
	return relay.Delivery{}, relay.Errorf(relay.NotFound, "there is no delivery %s", id)
}

// one is the only delivery there is.
func (s *memStore) one() relay.Delivery {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.deliveries) != 1 {
		panic("not one delivery")
	}
	return *s.deliveries[0]
}

// count is how many deliveries are in state.
func (s *memStore) count(state relay.DeliveryState) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, d := range s.deliveries {
		if d.State == state {
			n++
		}
	}
	return n
}

func (s *memStore) recorded() []relay.Attempt {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.attempts)
}

func (s *memStore) claimCount() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.claims)
}

// stealLeases does what another node does after the leases expired.
func (s *memStore) stealLeases() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.deliveries {
		if d.State == relay.DeliveryLeased {
			d.LeaseGen++
			d.LeaseOwner = "thief"
			d.LeaseUntil = d.LeaseUntil.Add(time.Hour)
		}
	}
}
