package sqlite

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/posternhq/postern/relay"
)

const (
	// "state IN (0,1)" beside "state = 0" tells SQLite that the partial index
	// delivery_waiting has every row that is asked for.
	claimDeliveries = `UPDATE delivery SET state = 1, lease_owner = ?, lease_until = ?, lease_gen = lease_gen + 1
		WHERE seq IN (
			SELECT seq FROM delivery
			WHERE app = ? AND endpoint = ? AND state IN (0,1) AND state = 0 AND blocked = 0 AND next_at <= ?
			ORDER BY next_at, seq LIMIT ?)
		RETURNING seq, next_at`
	selectLease = `SELECT ` + deliveryColumns + `, ` + eventColumns + `, ` + bodyColumns + `
		FROM delivery d JOIN event e ON e.seq = d.event_seq LEFT JOIN event_body b ON b.event_seq = e.seq
		WHERE d.seq = ?`
	buryDelivery = `UPDATE delivery SET state = 3, lease_owner = NULL, lease_until = NULL, last_error = ?
		WHERE seq = ?`

	extendLease = `UPDATE delivery SET lease_until = ? WHERE id = ? AND state = 1 AND lease_gen = ?`

	releaseLeases = `UPDATE delivery SET state = 0, lease_owner = NULL, lease_until = NULL
		WHERE state = 1 AND lease_owner = ?`
	reclaimExpired = `UPDATE delivery SET state = 0, lease_owner = NULL, lease_until = NULL
		WHERE state = 1 AND lease_until < ?`

	selectBacklogs = `SELECT app, endpoint, count(*), min(CASE WHEN state = 0 THEN next_at END)
		FROM delivery WHERE state IN (0,1) GROUP BY app, endpoint ORDER BY app, endpoint`
)

// claimed is a row that ClaimDeliveries took.
type claimed struct{ seq, nextAt int64 }

// ClaimDeliveries implements relay.EventStore. Oldest is what is due longest. A
// delivery whose stored body is damaged is not returned: it is dead from then
// on, so that it neither reaches an app nor stops those behind it.
func (s *Store) ClaimDeliveries(ctx context.Context, c relay.Claim) ([]relay.Lease, error) {
	if c.Limit <= 0 {
		return nil, nil
	}
	var leases []relay.Lease
	err := s.write(ctx, "claim deliveries", func(tx *sql.Tx) error {
		rows, err := list(ctx, tx, scanClaimed, claimDeliveries,
			c.Owner, c.Until.UnixMicro(), c.App, c.Endpoint, c.Now.UnixMicro(), c.Limit)
		if err != nil || len(rows) == 0 {
			return err
		}
		slices.SortFunc(rows, func(a, b claimed) int { // RETURNING has no order
			return cmp.Or(cmp.Compare(a.nextAt, b.nextAt), cmp.Compare(a.seq, b.seq))
		})
		leases, err = s.load(ctx, tx, rows)
		return err
	})
	if err != nil {
		return nil, err
	}
	return leases, nil
}

// load reads the claimed deliveries with their events and buries the damaged.
func (s *Store) load(ctx context.Context, tx *sql.Tx, rows []claimed) ([]relay.Lease, error) {
	stmt, err := tx.PrepareContext(ctx, selectLease) // closed by the transaction's end
	if err != nil {
		return nil, err
	}
	var leases []relay.Lease
	for _, row := range rows {
		var l relay.Lease
		var b storedBody
		fields := slices.Concat(deliveryFields(&l.Delivery), eventFields(&l.Event), b.fields())
		if err := stmt.QueryRowContext(ctx, row.seq).Scan(fields...); err != nil {
			return nil, err
		}
		l.Event.Body, err = b.open()
		if errors.Is(err, errDamaged) {
			s.log.Error("delivery given up, its stored body is damaged",
				"event", l.Event.ID, "delivery", l.Delivery.ID, "app", l.Delivery.App)
			if err := bury(ctx, tx, row.seq, &l.Delivery, err); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("event %s: %w", l.Event.ID, err)
		}
		leases = append(leases, l)
	}
	return leases, nil
}

// bury makes d dead because of why.
func bury(ctx context.Context, tx *sql.Tx, seq int64, d *relay.Delivery, why error) error {
	if _, err := tx.ExecContext(ctx, buryDelivery, why.Error(), seq); err != nil {
		return fmt.Errorf("give up delivery %s: %w", d.ID, err)
	}
	k := orderKey{app: d.App, endpoint: d.Endpoint}
	if d.OrderKey != "" {
		k.key = []byte(d.OrderKey)
	}
	return k.settle(ctx, tx)
}

// ExtendLease implements relay.EventStore.
func (s *Store) ExtendLease(ctx context.Context, id relay.DeliveryID, gen int64, until time.Time) error {
	return s.write(ctx, "extend lease", func(tx *sql.Tx) error {
		changed, err := exec(ctx, tx, extendLease, until.UnixMicro(), id, gen)
		if err == nil && changed == 0 {
			err = lostLease(id, gen)
		}
		return err
	})
}

// ReleaseLeases implements relay.EventStore.
func (s *Store) ReleaseLeases(ctx context.Context, owner string) (n int, err error) {
	err = s.write(ctx, "release leases", func(tx *sql.Tx) (err error) {
		n, err = exec(ctx, tx, releaseLeases, owner)
		return err
	})
	return n, err
}

// ReclaimExpired implements relay.EventStore.
func (s *Store) ReclaimExpired(ctx context.Context, now time.Time) (n int, err error) {
	err = s.write(ctx, "reclaim expired leases", func(tx *sql.Tx) (err error) {
		n, err = exec(ctx, tx, reclaimExpired, now.UnixMicro())
		return err
	})
	return n, err
}

// Backlogs implements relay.EventStore. It reads one index entry for each
// unfinished delivery, and none of the finished ones.
func (s *Store) Backlogs(ctx context.Context) ([]relay.Backlog, error) {
	backlogs, err := list(ctx, s.reader, scanBacklog, selectBacklogs)
	if err != nil {
		return nil, fmt.Errorf("list backlogs: %w", err)
	}
	return backlogs, nil
}

func scanClaimed(row scanner) (c claimed, err error) {
	err = row.Scan(&c.seq, &c.nextAt)
	return c, err
}

func scanBacklog(row scanner) (b relay.Backlog, err error) {
	err = row.Scan(&b.App, &b.Endpoint, &b.Waiting, micros{&b.NextAt})
	return b, err
}
