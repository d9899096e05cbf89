package sqlite

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/posternhq/postern/relay"
)

const (
	insertOrder = `INSERT INTO egress_order (id, kind, app, what, reason, owner, made_by, created_at, until, ended_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`
	endOrder = `UPDATE egress_order SET ended_at = ? WHERE id = ?`

	orderColumns     = `seq, id, kind, app, what, reason, owner, made_by, created_at, until, ended_at`
	selectOrder      = `SELECT ` + orderColumns + ` FROM egress_order WHERE id = ?`
	selectOrders     = `SELECT ` + orderColumns + ` FROM egress_order ORDER BY seq DESC LIMIT 1000`
	selectLiveOrders = `SELECT ` + orderColumns + ` FROM egress_order WHERE ended_at IS NULL AND until > ?`
)

// storedOrder is an order with its place among the others.
type storedOrder struct {
	relay.Order
	seq int64
}

// CreateOrder implements relay.EgressStore. An id that is taken is an error.
func (s *Store) CreateOrder(ctx context.Context, o relay.Order) error {
	return s.write(ctx, "create order", func(t *tx) error {
		_, err := t.exec(insertOrder, o.ID, o.Kind, o.App, o.What, o.Reason, o.Owner, o.By,
			o.CreatedAt.UnixMicro(), o.Until.UnixMicro(), timeArg(o.EndedAt))
		return err
	})
}

// EndOrder implements relay.EgressStore.
func (s *Store) EndOrder(ctx context.Context, id string, now time.Time) (o relay.Order, err error) {
	err = s.write(ctx, "end order", func(t *tx) error {
		found, err := t.one(func(r *row) { o = scanOrder(r).Order }, selectOrder, id)
		switch {
		case err != nil:
			return err
		case !found:
			return relay.Errorf(relay.NotFound, "there is no order %q", id)
		case !o.Live(now):
			return relay.Errorf(relay.Conflict, "the order %s is over", id)
		}
		o.EndedAt = time.UnixMicro(now.UnixMicro()).UTC()
		_, err = t.exec(endOrder, now.UnixMicro(), id)
		return err
	})
	if err != nil {
		return relay.Order{}, err
	}
	return o, nil
}

// Orders implements relay.EgressStore.
func (s *Store) Orders(ctx context.Context, now time.Time, all bool) ([]relay.Order, error) {
	query, args := selectLiveOrders, []any{now.UnixMicro()}
	if all {
		query, args = selectOrders, nil
	}
	var stored []storedOrder
	err := s.read(ctx, "list orders", func(c *conn) (err error) {
		stored, err = list(ctx, c, scanOrder, query, args...)
		return err
	})
	if err != nil {
		return nil, err
	}
	// Those in force come by their end.
	slices.SortFunc(stored, func(a, b storedOrder) int { return cmp.Compare(b.seq, a.seq) })
	var orders []relay.Order
	for _, o := range stored {
		orders = append(orders, o.Order)
	}
	return orders, nil
}

func scanOrder(r *row) storedOrder {
	return storedOrder{seq: r.int(), Order: relay.Order{
		ID: r.str(), Kind: relay.OrderKind(r.str()), App: relay.AppID(r.str()), What: r.str(), Reason: r.str(),
		Owner: r.str(), By: r.str(), CreatedAt: r.time(), Until: r.time(), EndedAt: r.time(),
	}}
}
