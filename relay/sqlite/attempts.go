package sqlite

import (
	"context"
	"fmt"
	"time"

	"github.com/posternhq/postern/relay"
)

// attemptBits is the part of an attempt's row number that is the attempt's own
// number; the rest is the delivery's row.
const attemptBits = 24

const (
	numberAttempt = `UPDATE delivery SET attempts = ? WHERE seq = ?`
	selectNumber  = `SELECT attempts FROM delivery WHERE seq = ?`
	insertAttempt = `INSERT INTO attempt (seq, started_at, ended_at, instance, outcome, status, retry_in, header, body, error)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`
	selectAttempts = `SELECT d.id, a.seq - (d.seq << 24), a.started_at, a.ended_at, a.instance, a.outcome, a.status,
			a.retry_in, a.header, a.body, a.error
		FROM delivery d JOIN attempt a ON a.seq > (d.seq << 24) AND a.seq < ((d.seq + 1) << 24)
		WHERE d.id = ? ORDER BY a.seq`
)

// newAttempt is a relay.Attempt made ready outside the transaction.
type newAttempt struct {
	*relay.Attempt
	header string
	body   []byte
}

func readyAttempt(a *relay.Attempt) *newAttempt {
	return &newAttempt{Attempt: a, header: encodeHeader(a.Header), body: notNil(a.Body)}
}

// number is what a is stored under in a delivery whose attempts are numbered up
// to highest: its own number, or the next one.
func (a *newAttempt) number(highest int64) (int64, error) {
	n := int64(a.Number)
	if n == 0 {
		n = highest + 1
	}
	if n < 1 || n >= 1<<attemptBits {
		return 0, fmt.Errorf("an attempt cannot have the number %d", n)
	}
	return n, nil
}

// addAttempt stores an attempt that comes with its delivery.
func (t *tx) addAttempt(delivery int64, a *relay.Attempt) error {
	highest, err := t.number(selectNumber, delivery)
	if err != nil {
		return err
	}
	ready := readyAttempt(a)
	n, err := ready.number(highest)
	if err != nil {
		return err
	}
	if _, err := t.exec(numberAttempt, max(n, highest), delivery); err != nil {
		return err
	}
	return t.insertAttempt(delivery, n, ready)
}

func (t *tx) insertAttempt(delivery, number int64, a *newAttempt) error {
	_, err := t.exec(insertAttempt, delivery<<attemptBits+number, timeArg(a.StartedAt), timeArg(a.EndedAt),
		a.Instance, a.Outcome, a.Status, a.RetryIn.Microseconds(), a.header, a.body, a.Error)
	return err
}

// Attempts implements relay.EventStore.
func (s *Store) Attempts(ctx context.Context, id relay.DeliveryID) (all []relay.Attempt, err error) {
	err = s.read(ctx, fmt.Sprintf("list attempts of %s", id), func(c *conn) error {
		all, err = list(ctx, c, scanAttempt, selectAttempts, id)
		return err
	})
	return all, err
}

func scanAttempt(r *row) relay.Attempt {
	return relay.Attempt{
		Delivery: relay.DeliveryID(r.str()), Number: int(r.int()), StartedAt: r.time(), EndedAt: r.time(),
		Instance: r.str(), Outcome: relay.Outcome(r.int()), Status: int(r.int()),
		RetryIn: time.Duration(r.int()) * time.Microsecond, Header: r.header(), Body: r.bytes(), Error: r.str(),
	}
}
