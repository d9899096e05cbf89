package sqlite

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/posternhq/postern/relay"
)

const (
	// The lane is found first, so that this reads the index delivery_ready in its
	// order and stops.
	selectReady = `SELECT d.seq, e.body_len FROM delivery d JOIN event e ON e.seq = d.event_seq
		WHERE d.lane = ? AND d.state = 0 AND d.blocked = 0 AND d.next_at <= ?
		ORDER BY d.next_at, d.seq LIMIT ?`
	leaseDelivery = `UPDATE delivery SET state = 1, lease_owner = ?, lease_until = ?, lease_gen = lease_gen + 1
		WHERE seq = ?`
	selectLease = `SELECT ` + deliveryColumns + `, ` + eventColumns + `, ` + bodyColumns + `
		FROM delivery d JOIN lane l ON l.seq = d.lane JOIN event e ON e.seq = d.event_seq
			LEFT JOIN event_body b ON b.event_seq = e.seq
		WHERE d.seq = ?`
	buryDelivery = `UPDATE delivery SET state = 3, lease_owner = NULL, lease_until = NULL, last_error = ?
		WHERE seq = ?`
	returnLease = `UPDATE delivery SET state = 0, lease_owner = NULL, lease_until = NULL WHERE seq = ? AND state = 1
		AND lease_owner = ?`

	extendLease = `UPDATE delivery SET lease_until = ? WHERE id = ? AND state = 1 AND lease_gen = ?`

	releaseLeases = `UPDATE delivery SET state = 0, lease_owner = NULL, lease_until = NULL
		WHERE state = 1 AND lease_owner = ?`
	reclaimExpired = `UPDATE delivery SET state = 0, lease_owner = NULL, lease_until = NULL
		WHERE state = 1 AND lease_until < ?`
)

// ClaimDeliveries implements relay.EventStore. The writer only leases; the events
// with their bodies are read afterwards, by the caller, while it goes on. A
// delivery whose stored body is damaged is not returned: it is dead from then on,
// so that it neither reaches an app nor stops those behind it.
func (s *Store) ClaimDeliveries(ctx context.Context, c relay.Claim) ([]relay.Lease, error) {
	if c.Limit <= 0 {
		return nil, nil
	}
	var seqs []int64
	err := s.write(ctx, "claim deliveries", func(t *tx) (err error) {
		seqs, err = t.claim(&c)
		return err
	})
	if err != nil || len(seqs) == 0 {
		return nil, err
	}
	leases, damaged, err := s.load(ctx, seqs)
	if err == nil && len(damaged) > 0 {
		err = s.bury(ctx, damaged)
	}
	if err != nil {
		// Whoever called does not know what it holds, and nobody else may have it.
		undo := context.WithoutCancel(ctx)
		return nil, errors.Join(fmt.Errorf("claim deliveries: %w", err), s.giveBack(undo, seqs, c.Owner))
	}
	return leases, nil
}

// claim leases what is due and returns its rows.
func (t *tx) claim(c *relay.Claim) (seqs []int64, err error) {
	lane, err := t.lane(laneName{c.App, c.Endpoint, c.Destination})
	if err != nil || lane == 0 {
		return nil, err
	}
	var bytes int64
	err = t.each(context.Background(), func(r *row) error {
		seq, size := r.int(), r.int()
		if bytes += size; c.MaxBytes > 0 && bytes > c.MaxBytes && len(seqs) > 0 {
			return errStop
		}
		seqs = append(seqs, seq)
		return nil
	}, selectReady, lane, c.Now.UnixMicro(), c.Limit)
	if err != nil {
		return nil, err
	}
	for _, seq := range seqs {
		if _, err := t.exec(leaseDelivery, c.Owner, c.Until.UnixMicro(), seq); err != nil {
			return nil, err
		}
	}
	return seqs, nil
}

// load reads claimed deliveries with their events. One whose event is gone since
// is left out.
func (s *Store) load(ctx context.Context, seqs []int64) (leases []relay.Lease, damaged []int64, err error) {
	err = s.pool.read(ctx, func(c *conn) error {
		for _, seq := range seqs {
			var l relay.Lease
			var b storedBody
			found, err := c.one(func(r *row) {
				l.Delivery, l.Event, b = scanDelivery(r), scanEvent(r), scanBody(r)
			}, selectLease, seq)
			if err != nil {
				return err
			}
			if !found {
				continue
			}
			if l.Event.Body, err = s.bodies.open(&b); errors.Is(err, errDamaged) || err == nil && b.gone {
				s.log.Error("delivery given up, its stored body is damaged",
					"event", l.Event.ID, "delivery", l.Delivery.ID, "app", l.Delivery.App)
				damaged = append(damaged, seq)
				continue
			}
			if err != nil {
				return fmt.Errorf("event %s: %w", l.Event.ID, err)
			}
			leases = append(leases, l)
		}
		return nil
	})
	return leases, damaged, err
}

// bury makes leased deliveries dead whose body is damaged.
func (s *Store) bury(ctx context.Context, seqs []int64) error {
	return s.write(ctx, "give up damaged deliveries", func(t *tx) error {
		for _, seq := range seqs {
			var p place
			found, err := t.one(func(r *row) { p = scanPlace(r) }, selectPlaceBySeq, seq)
			if err != nil {
				return err
			}
			if !found || p.state != relay.DeliveryLeased {
				continue
			}
			if _, err := t.exec(buryDelivery, errDamaged.Error(), seq); err != nil {
				return err
			}
			if err := t.moved(&p, relay.DeliveryDead); err != nil {
				return err
			}
		}
		return nil
	})
}

// giveBack makes ready again what a failed claim leased.
func (s *Store) giveBack(ctx context.Context, seqs []int64, owner string) error {
	return s.write(ctx, "give leases back", func(t *tx) error {
		for _, seq := range seqs {
			if _, err := t.exec(returnLease, seq, owner); err != nil {
				return err
			}
		}
		return nil
	})
}

// ExtendLease implements relay.EventStore.
func (s *Store) ExtendLease(ctx context.Context, id relay.DeliveryID, gen int64, until time.Time) error {
	return s.write(ctx, "extend lease", func(t *tx) error {
		res, err := t.exec(extendLease, until.UnixMicro(), id, gen)
		if err == nil && res.changed == 0 {
			err = lostLease(id, gen)
		}
		return err
	})
}

// ReleaseLeases implements relay.EventStore.
func (s *Store) ReleaseLeases(ctx context.Context, owner string) (n int, err error) {
	err = s.write(ctx, "release leases", func(t *tx) error {
		res, err := t.exec(releaseLeases, owner)
		n = int(res.changed)
		return err
	})
	return n, err
}

// ReclaimExpired implements relay.EventStore.
func (s *Store) ReclaimExpired(ctx context.Context, now time.Time) (n int, err error) {
	err = s.write(ctx, "reclaim expired leases", func(t *tx) error {
		res, err := t.exec(reclaimExpired, now.UnixMicro())
		n = int(res.changed)
		return err
	})
	return n, err
}
