package sqlite

import (
	"context"

	"github.com/posternhq/postern/relay"
)

const (
	// One look at the head of delivery_ready for each lane that has something.
	selectBacklogs = `SELECT l.app, l.endpoint, l.destination, l.waiting,
			(SELECT d.next_at FROM delivery d WHERE d.lane = l.seq AND d.state = 0 AND d.blocked = 0
			ORDER BY d.next_at LIMIT 1)
		FROM lane l WHERE l.waiting > 0`
	// Two tables with one row for each app and for each lane.
	selectUsage = `SELECT u.app, u.events, u.bytes,
			(SELECT coalesce(sum(l.waiting), 0) FROM lane l WHERE l.app = u.app)
		FROM usage u WHERE u.events > 0`
)

// Backlogs implements relay.EventStore. Its cost grows with the destinations and
// not with what waits there.
func (s *Store) Backlogs(ctx context.Context) (all []relay.Backlog, err error) {
	err = s.read(ctx, "list backlogs", func(c *conn) error {
		all, err = list(ctx, c, scanBacklog, selectBacklogs)
		return err
	})
	return all, err
}

// Usage implements relay.EventStore. The counts are kept by the transactions that
// change them.
func (s *Store) Usage(ctx context.Context) (all []relay.Usage, err error) {
	err = s.read(ctx, "list usage", func(c *conn) error {
		all, err = list(ctx, c, scanUsage, selectUsage)
		return err
	})
	return all, err
}

func scanBacklog(r *row) relay.Backlog {
	return relay.Backlog{App: relay.AppID(r.str()), Endpoint: r.str(), Destination: r.str(),
		Waiting: int(r.int()), NextAt: r.time()}
}

func scanUsage(r *row) relay.Usage {
	return relay.Usage{App: relay.AppID(r.str()), Events: int(r.int()), Bytes: r.int(), Waiting: int(r.int())}
}
