package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/posternhq/postern/relay"
)

const (
	// A new delivery is the youngest of its key, so that any unfinished one blocks it.
	insertDelivery = `INSERT INTO delivery (id, event_seq, app, endpoint, state, order_key, attempt, next_at,
			lease_owner, lease_until, lease_gen, last_status, last_error, blocked)
		VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, EXISTS (
			SELECT 1 FROM delivery
			WHERE app = ?3 AND endpoint = ?4 AND order_key = ?6 AND state IN (0,1)))
		RETURNING seq`

	// The columns of deliveryFields, from "delivery d" and "event e".
	deliveryColumns = `d.id, e.id, d.app, d.endpoint, d.order_key, d.state, d.attempt, d.next_at,
		d.lease_owner, d.lease_until, d.lease_gen, d.last_status, d.last_error`
	selectDeliveries = `SELECT ` + deliveryColumns + `
		FROM event e JOIN delivery d ON d.event_seq = e.seq WHERE e.id = ? ORDER BY d.seq`

	// LeaseGen stays: whoever held the delivery before must not finish it now.
	// Its place in the order of its key is settled afterwards.
	requeueDeliveries = `UPDATE delivery SET state = 0, attempt = 0, next_at = ?, lease_owner = NULL,
			lease_until = NULL
		WHERE event_seq = ? AND state IN (3,4)
		RETURNING app, endpoint, order_key`

	finishDelivery = `UPDATE delivery SET state = ?, attempt = ?, next_at = ?, lease_owner = NULL,
			lease_until = NULL, last_status = ?, last_error = ?
		WHERE id = ? AND state = 1 AND lease_gen = ?
		RETURNING seq, app, endpoint, order_key`

	blockKey = `UPDATE delivery SET blocked = 1
		WHERE app = ? AND endpoint = ? AND order_key = ? AND state IN (0,1) AND blocked = 0`
	unblockOldest = `UPDATE delivery SET blocked = 0 WHERE seq = (
			SELECT seq FROM delivery
			WHERE app = ? AND endpoint = ? AND order_key = ? AND state IN (0,1) AND blocked = 1
			ORDER BY seq LIMIT 1)`

	insertAttempt = `INSERT INTO attempt (delivery_seq, number, started_at, ended_at, instance, outcome, status,
			retry_in, header, body, error)
		VALUES (?1, coalesce(nullif(?2, 0), (SELECT coalesce(max(number), 0) + 1 FROM attempt WHERE delivery_seq = ?1)),
			?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)`
	selectAttempts = `SELECT d.id, a.number, a.started_at, a.ended_at, a.instance, a.outcome, a.status,
			a.retry_in, a.header, a.body, a.error
		FROM delivery d JOIN attempt a ON a.delivery_seq = d.seq WHERE d.id = ? ORDER BY a.number`
)

// orderKey names deliveries that keep their order among one another.
type orderKey struct {
	app      relay.AppID
	endpoint string
	key      []byte // nil: no order is kept
}

// settle restores what the column blocked promises after the set of unfinished
// deliveries of k changed: the oldest is the only one not blocked. Besides those
// that just joined at most one was not blocked before, so that the cost does not
// depend on how many wait.
func (k orderKey) settle(ctx context.Context, tx *sql.Tx) error {
	if k.key == nil {
		return nil
	}
	for _, query := range []string{blockKey, unblockOldest} {
		if _, err := tx.ExecContext(ctx, query, k.app, k.endpoint, k.key); err != nil {
			return fmt.Errorf("settle the order: %w", err)
		}
	}
	return nil
}

// addDelivery stores d and returns its row.
func (c *creator) addDelivery(ctx context.Context, event int64, d *relay.Delivery) (seq int64, err error) {
	err = c.delivery.QueryRowContext(ctx, d.ID, event, d.App, d.Endpoint, d.State, bytesArg(d.OrderKey),
		d.Attempt, d.NextAt.UnixMicro(), textArg(d.LeaseOwner), timeArg(d.LeaseUntil), d.LeaseGen,
		d.LastStatus, d.LastError).Scan(&seq)
	return seq, err
}

// requeue makes the dead and cancelled deliveries of an event ready, due at
// now, and returns how many there were.
func requeue(ctx context.Context, tx *sql.Tx, event int64, now time.Time) (int, error) {
	keys, err := list(ctx, tx, scanOrderKey, requeueDeliveries, now.UnixMicro(), event)
	if err != nil {
		return 0, err
	}
	for _, k := range keys {
		if err := k.settle(ctx, tx); err != nil {
			return 0, err
		}
	}
	return len(keys), nil
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
	return s.write(ctx, "finish attempt", func(tx *sql.Tx) error {
		var seq int64
		var k orderKey
		err := tx.QueryRowContext(ctx, finishDelivery, n.State, n.Attempt, n.NextAt.UnixMicro(), n.LastStatus, n.LastError,
			n.ID, n.LeaseGen).Scan(&seq, &k.app, &k.endpoint, &k.key)
		if errors.Is(err, sql.ErrNoRows) {
			return lostLease(n.ID, n.LeaseGen)
		}
		if err != nil {
			return err
		}
		if err := addAttempt(ctx, tx, seq, &f.Attempt); err != nil {
			return err
		}
		if n.State == relay.DeliveryReady {
			return nil // still unfinished: it keeps its place
		}
		return k.settle(ctx, tx)
	})
}

// Deliveries implements relay.EventStore.
func (s *Store) Deliveries(ctx context.Context, id relay.EventID) ([]relay.Delivery, error) {
	deliveries, err := list(ctx, s.reader, scanDelivery, selectDeliveries, id)
	if err != nil {
		return nil, fmt.Errorf("list deliveries of %s: %w", id, err)
	}
	return deliveries, nil
}

// Attempts implements relay.EventStore.
func (s *Store) Attempts(ctx context.Context, id relay.DeliveryID) ([]relay.Attempt, error) {
	attempts, err := list(ctx, s.reader, scanAttempt, selectAttempts, id)
	if err != nil {
		return nil, fmt.Errorf("list attempts of %s: %w", id, err)
	}
	return attempts, nil
}

func addAttempt(ctx context.Context, tx *sql.Tx, delivery int64, a *relay.Attempt) error {
	_, err := tx.ExecContext(ctx, insertAttempt, delivery, a.Number, timeArg(a.StartedAt), timeArg(a.EndedAt),
		a.Instance, a.Outcome, a.Status, a.RetryIn.Microseconds(), encodeHeader(a.Header), notNil(a.Body), a.Error)
	return err
}

func lostLease(id relay.DeliveryID, gen int64) error {
	return relay.Errorf(relay.Conflict, "delivery %q is not leased with generation %d any more", id, gen)
}

// deliveryFields are the destinations of deliveryColumns.
func deliveryFields(d *relay.Delivery) []any {
	return []any{&d.ID, &d.Event, &d.App, &d.Endpoint, text{&d.OrderKey}, &d.State, &d.Attempt, micros{&d.NextAt},
		text{&d.LeaseOwner}, micros{&d.LeaseUntil}, &d.LeaseGen, &d.LastStatus, &d.LastError}
}

func scanDelivery(row scanner) (d relay.Delivery, err error) {
	err = row.Scan(deliveryFields(&d)...)
	return d, err
}

func scanOrderKey(row scanner) (k orderKey, err error) {
	err = row.Scan(&k.app, &k.endpoint, &k.key)
	return k, err
}

func scanAttempt(row scanner) (a relay.Attempt, err error) {
	var retryMicros int64
	err = row.Scan(&a.Delivery, &a.Number, micros{&a.StartedAt}, micros{&a.EndedAt}, &a.Instance, &a.Outcome, &a.Status,
		&retryMicros, header{&a.Header}, &a.Body, &a.Error)
	a.RetryIn = time.Duration(retryMicros) * time.Microsecond
	if len(a.Body) == 0 {
		a.Body = nil
	}
	return a, err
}
