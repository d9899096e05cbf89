package sqlite

import (
	"context"
	"fmt"
	"time"

	"github.com/posternhq/postern/relay"
)

const (
	insertDelivery = `INSERT INTO delivery (id, event_seq, lane, state, blocked, order_key, origin, replay, attempt,
			attempts, next_at, lease_owner, lease_until, lease_gen, last_status, last_error)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?, ?, ?, ?)`
	selectUnfinished = `SELECT 1 FROM delivery WHERE lane = ? AND order_key = ? AND state IN (0,1) LIMIT 1`

	// The columns of scanDelivery, from "delivery d", "lane l" and "event e".
	deliveryColumns = `d.id, e.id, l.app, l.endpoint, l.destination, d.order_key, d.origin, d.replay, d.state,
		d.attempt, d.next_at, d.lease_owner, d.lease_until, d.lease_gen, d.last_status, d.last_error`
	deliveryTables   = `delivery d JOIN lane l ON l.seq = d.lane JOIN event e ON e.seq = d.event_seq`
	selectDelivery   = `SELECT ` + deliveryColumns + ` FROM ` + deliveryTables + ` WHERE d.id = ?`
	selectDeliveries = `SELECT ` + deliveryColumns + `
		FROM event e JOIN delivery d ON d.event_seq = e.seq JOIN lane l ON l.seq = d.lane
		WHERE e.id = ? ORDER BY d.seq`

	selectPlace = `SELECT d.seq, d.event_seq, d.lane, d.order_key, d.blocked, d.replay, d.state, d.lease_gen, d.attempts
		FROM delivery d WHERE d.id = ?`

	selectPlaceBySeq = `SELECT d.seq, d.event_seq, d.lane, d.order_key, d.blocked, d.replay, d.state, d.lease_gen, d.attempts
		FROM delivery d WHERE d.seq = ?`

	finishDelivery = `UPDATE delivery SET state = ?, attempt = ?, next_at = ?, lease_owner = NULL,
			lease_until = NULL, last_status = ?, last_error = ?, attempts = ? WHERE seq = ?`
	selectFailed = `SELECT d.seq, d.event_seq, d.lane, d.order_key, d.blocked, d.replay, d.state, d.lease_gen, d.attempts
		FROM delivery d WHERE d.event_seq = ? AND d.state IN (3,4) AND d.origin = 0
			AND NOT EXISTS (SELECT 1 FROM delivery n
				WHERE n.event_seq = d.event_seq AND n.lane = d.lane AND n.seq > d.seq AND n.state IN (0,1,2))`
	// LeaseGen stays: whoever held the delivery before must not finish it now.
	requeueDelivery = `UPDATE delivery SET state = 0, attempt = 0, next_at = ?, lease_owner = NULL, lease_until = NULL
		WHERE seq = ?`
	cancelDelivery = `UPDATE delivery SET state = 4 WHERE seq = ?`

	blockKey = `UPDATE delivery SET blocked = 1
		WHERE lane = ? AND order_key = ? AND state IN (0,1) AND blocked = 0`
	unblockOldest = `UPDATE delivery SET blocked = 0 WHERE seq = (
			SELECT seq FROM delivery
			WHERE lane = ? AND order_key = ? AND state IN (0,1) AND blocked = 1
			ORDER BY seq LIMIT 1)`
)

// place is what moving a delivery needs to know of it.
type place struct {
	seq, event, lane int64
	orderKey         []byte // nil: no order is kept
	blocked          bool
	replay           relay.ReplayID
	state            relay.DeliveryState
	gen              int64
	attempts         int64 // the highest number among its attempts
}

func scanPlace(r *row) place {
	return place{seq: r.int(), event: r.int(), lane: r.int(), orderKey: r.bytes(), blocked: r.int() != 0,
		replay: relay.ReplayID(r.str()), state: relay.DeliveryState(r.int()), gen: r.int(),
		attempts: r.int()}
}

// find reads the place of one delivery; ok is false when there is none.
func (t *tx) find(id relay.DeliveryID) (p place, ok bool, err error) {
	ok, err = t.one(func(r *row) { p = scanPlace(r) }, selectPlace, id)
	return p, ok, err
}

// moved counts what a delivery's way from p.state to state changes, and gives its
// place in the order of its key to the next one when it ends.
func (t *tx) moved(p *place, state relay.DeliveryState) error {
	d := delta{replay: p.replay}
	if was, is := unfinished(p.state), unfinished(state); was != is {
		d.lane, d.waiting = p.lane, 1
		if was {
			d.waiting = -1
		}
	}
	count(&d, p.state, -1)
	count(&d, state, 1)
	t.deltas = append(t.deltas, d)
	if p.orderKey == nil || !unfinished(p.state) || unfinished(state) || p.blocked {
		return nil // nobody's turn changes
	}
	if _, err := t.exec(unblockOldest, p.lane, p.orderKey); err != nil {
		return fmt.Errorf("settle the order: %w", err)
	}
	return nil
}

// count adds n to the replay's count of deliveries in this state.
func count(d *delta, s relay.DeliveryState, n int64) {
	switch s {
	case relay.DeliveryDone:
		d.done += n
	case relay.DeliveryDead:
		d.dead += n
	case relay.DeliveryCancelled:
		d.cancelled += n
	}
}

func unfinished(s relay.DeliveryState) bool {
	return s == relay.DeliveryReady || s == relay.DeliveryLeased
}

// canLease reports whether there are leased ones among new deliveries and none
// of them has to wait for an older one of its key.
func (t *tx) canLease(all []relay.Delivery) (bool, error) {
	leased := false
	for i := range all {
		d := &all[i]
		if d.State != relay.DeliveryLeased {
			continue
		}
		leased = true
		if d.OrderKey == "" {
			continue
		}
		for _, e := range all[:i] {
			if unfinished(e.State) && e.App == d.App && e.Endpoint == d.Endpoint &&
				e.Destination == d.Destination && e.OrderKey == d.OrderKey {
				return false, nil
			}
		}
		lane, err := t.lane(laneName{d.App, d.Endpoint, d.Destination})
		if err != nil {
			return false, err
		}
		if older, err := t.number(selectUnfinished, lane, []byte(d.OrderKey)); err != nil || older != 0 {
			return false, err
		}
	}
	return leased, nil
}

// addDelivery stores d and returns its row. It is the youngest of its key, so
// that any unfinished one blocks it.
func (t *tx) addDelivery(event int64, d *relay.Delivery) (int64, error) {
	lane, err := t.makeLane(laneName{d.App, d.Endpoint, d.Destination})
	if err != nil {
		return 0, err
	}
	var blocked int64
	if d.OrderKey != "" && unfinished(d.State) {
		if blocked, err = t.number(selectUnfinished, lane, []byte(d.OrderKey)); err != nil {
			return 0, err
		}
	}
	res, err := t.exec(insertDelivery, d.ID, event, lane, d.State, blocked, bytesArg(d.OrderKey), d.Trigger,
		textArg(string(d.Replay)), d.Attempt, d.NextAt.UnixMicro(), textArg(d.LeaseOwner), timeArg(d.LeaseUntil),
		d.LeaseGen, d.LastStatus, d.LastError)
	if err != nil {
		return 0, err
	}
	n := delta{replay: d.Replay}
	if unfinished(d.State) {
		n.lane, n.waiting = lane, 1
	}
	count(&n, d.State, 1)
	t.deltas = append(t.deltas, n)
	return res.last, nil
}

// FinishAttempt implements relay.EventStore. The store numbers the attempt when
// Attempt.Number is 0.
func (s *Store) FinishAttempt(ctx context.Context, f relay.Finish) error {
	n := &f.Next
	if f.Attempt.Delivery != n.ID {
		return fmt.Errorf("finish attempt: the attempt is of delivery %q, the next state of %q", f.Attempt.Delivery, n.ID)
	}
	if n.State == relay.DeliveryLeased {
		return fmt.Errorf("finish attempt: delivery %s would stay leased", n.ID)
	}
	a := readyAttempt(&f.Attempt)
	return s.write(ctx, "finish attempt", func(t *tx) error {
		p, ok, err := t.find(n.ID)
		if err != nil {
			return err
		}
		if !ok || p.state != relay.DeliveryLeased || p.gen != n.LeaseGen {
			return lostLease(n.ID, n.LeaseGen)
		}
		number, err := a.number(p.attempts)
		if err != nil {
			return err
		}
		if _, err := t.exec(finishDelivery, n.State, n.Attempt, n.NextAt.UnixMicro(), n.LastStatus,
			n.LastError, max(number, p.attempts), p.seq); err != nil {
			return err
		}
		if err := t.insertAttempt(p.seq, number, a); err != nil {
			return err
		}
		return t.moved(&p, n.State)
	})
}

// requeueEvent makes the dead and cancelled live deliveries of an event ready, due
// at now, and returns how many there were. One that a replay has made good since,
// or is about to, stays as it is.
func (t *tx) requeueEvent(event int64, now time.Time) (int, error) {
	all, err := list(context.Background(), t.conn, scanPlace, selectFailed, event)
	if err != nil {
		return 0, err
	}
	for i := range all {
		if err := t.requeue(&all[i], now); err != nil {
			return 0, err
		}
	}
	return len(all), nil
}

// requeue makes a finished delivery ready, in its old place in the order of its
// key: older than some that may have had their turn since, even leased ones.
// Besides those that just joined at most one was not blocked before, so that the
// cost does not depend on how many wait.
func (t *tx) requeue(p *place, now time.Time) error {
	if _, err := t.exec(requeueDelivery, now.UnixMicro(), p.seq); err != nil {
		return err
	}
	if err := t.moved(p, relay.DeliveryReady); err != nil || p.orderKey == nil {
		return err
	}
	for _, query := range []string{blockKey, unblockOldest} {
		if _, err := t.exec(query, p.lane, p.orderKey); err != nil {
			return fmt.Errorf("settle the order: %w", err)
		}
	}
	return nil
}

// RequeueDelivery implements relay.EventStore. It is Conflict as well when
// retention has deleted the body: there is nothing to deliver.
func (s *Store) RequeueDelivery(ctx context.Context, id relay.DeliveryID, now time.Time) (d relay.Delivery, err error) {
	err = s.write(ctx, "requeue delivery", func(t *tx) error {
		p, ok, err := t.find(id)
		if err == nil && !ok {
			err = noDelivery(id)
		}
		if err != nil {
			return err
		}
		if p.state != relay.DeliveryDead && p.state != relay.DeliveryCancelled {
			return relay.Errorf(relay.Conflict, "delivery %q is %s, only dead and cancelled ones can be requeued", id, p.state)
		}
		gone, err := t.number(`SELECT body_gone FROM event WHERE seq = ?`, p.event)
		if err != nil {
			return err
		}
		if gone != 0 {
			return relay.Errorf(relay.Conflict, "the body of delivery %q is gone, its retention is over", id)
		}
		if err := t.requeue(&p, now); err != nil {
			return err
		}
		d, err = t.delivery(id)
		return err
	})
	return d, err
}

// CancelDelivery implements relay.EventStore.
func (s *Store) CancelDelivery(ctx context.Context, id relay.DeliveryID) (d relay.Delivery, err error) {
	err = s.write(ctx, "cancel delivery", func(t *tx) error {
		p, ok, err := t.find(id)
		if err == nil && !ok {
			err = noDelivery(id)
		}
		if err != nil {
			return err
		}
		if p.state != relay.DeliveryReady {
			return relay.Errorf(relay.Conflict, "delivery %q is %s, only ready ones can be cancelled", id, p.state)
		}
		if err := t.cancel(&p); err != nil {
			return err
		}
		d, err = t.delivery(id)
		return err
	})
	return d, err
}

func (t *tx) cancel(p *place) error {
	if _, err := t.exec(cancelDelivery, p.seq); err != nil {
		return err
	}
	return t.moved(p, relay.DeliveryCancelled)
}

// Delivery implements relay.EventStore.
func (s *Store) Delivery(ctx context.Context, id relay.DeliveryID) (d relay.Delivery, err error) {
	err = s.read(ctx, "get delivery", func(c *conn) error {
		d, err = c.delivery(id)
		return err
	})
	return d, err
}

// Deliveries implements relay.EventStore.
func (s *Store) Deliveries(ctx context.Context, id relay.EventID) (all []relay.Delivery, err error) {
	err = s.read(ctx, "list deliveries", func(c *conn) error {
		all, err = list(ctx, c, scanDelivery, selectDeliveries, id)
		return err
	})
	return all, err
}

func (c *conn) delivery(id relay.DeliveryID) (d relay.Delivery, err error) {
	found, err := c.one(func(r *row) { d = scanDelivery(r) }, selectDelivery, id)
	if err == nil && !found {
		err = noDelivery(id)
	}
	return d, err
}

func noDelivery(id relay.DeliveryID) error {
	return relay.Errorf(relay.NotFound, "there is no delivery %q", id)
}

func lostLease(id relay.DeliveryID, gen int64) error {
	return relay.Errorf(relay.Conflict, "delivery %q is not leased with generation %d any more", id, gen)
}

func scanDelivery(r *row) relay.Delivery {
	return relay.Delivery{
		ID: relay.DeliveryID(r.str()), Event: relay.EventID(r.str()), App: relay.AppID(r.str()),
		Endpoint: r.str(), Destination: r.str(), OrderKey: r.str(), Trigger: relay.Trigger(r.int()),
		Replay: relay.ReplayID(r.str()), State: relay.DeliveryState(r.int()), Attempt: int(r.int()),
		NextAt: r.time(), LeaseOwner: r.str(), LeaseUntil: r.time(), LeaseGen: r.int(),
		LastStatus: int(r.int()), LastError: r.str(),
	}
}
