package sqlite

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"time"

	"github.com/posternhq/postern/relay"
)

const (
	insertEvent = `INSERT INTO event (id, app, endpoint, received_at, method, target, public_url, header,
			body_len, body_sha256, remote_ip, type, sent_at, dedupe_key, verified, expires_at,
			refusal, body_expires_at, due_at, high_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (app, endpoint, dedupe_key) WHERE dedupe_key IS NOT NULL DO NOTHING`
	insertBody      = `INSERT INTO event_body (event_seq, codec, data) VALUES (?, ?, ?)`
	selectDuplicate = `SELECT seq, id, body_gone FROM event WHERE app = ? AND endpoint = ? AND dedupe_key = ?`
	restoreEvent    = `UPDATE event SET header = ?, body_len = ?, body_sha256 = ?, body_gone = 0,
			body_expires_at = ?, due_at = coalesce(min(?, expires_at), ?, expires_at) WHERE seq = ?`

	selectHigh = `SELECT high_at FROM event ORDER BY seq DESC LIMIT 1`
)

// newEvent is a relay.NewEvent made ready outside the transaction.
type newEvent struct {
	*relay.NewEvent
	body   sealed
	header string
	stored bool // its row refers to body
}

// CreateEvents implements relay.EventStore. Deliveries belong to the event they
// come with and Attempts to one of its deliveries. An error means that nothing
// of the call is stored, or that the commit failed in a way of which only a
// restart can tell the outcome.
func (s *Store) CreateEvents(ctx context.Context, events []relay.NewEvent) ([]relay.Receipt, error) {
	if len(events) == 0 {
		return nil, nil
	}
	all, size, err := s.ready(ctx, events)
	if err != nil {
		s.forget(all)
		return nil, fmt.Errorf("create events: %w", err)
	}
	receipts := make([]relay.Receipt, len(events))
	ran := false
	err = s.writer.queue.do(ctx, &op{ingest: true, bytes: size, run: func(t *tx) error {
		ran = false
		for i := range all {
			var err error
			if receipts[i], err = s.create(t, &all[i]); err != nil {
				return fmt.Errorf("event %s: %w", all[i].Event.ID, err)
			}
		}
		ran = true
		return nil
	}})
	if err != nil {
		if !ran { // otherwise the commit failed, and a restart may find it done
			s.forget(all)
		}
		return nil, fmt.Errorf("create events: %w", err)
	}
	for i := range all {
		if !all[i].stored {
			s.forget(all[i : i+1])
		}
	}
	return receipts, nil
}

// ready hashes and encodes, and makes large bodies durable, so that no other
// writer waits for it. What it returns beside an error are files to forget.
func (s *Store) ready(ctx context.Context, events []relay.NewEvent) (all []newEvent, inBatch int64, err error) {
	if err := ctx.Err(); err != nil {
		return nil, 0, err
	}
	var size int64
	for i := range events {
		size += int64(len(events[i].Event.Body))
	}
	if err := s.disk.room(size); err != nil {
		return nil, 0, err
	}
	all = make([]newEvent, 0, len(events))
	var bodies []sealed
	for i := range events {
		n := newEvent{NewEvent: &events[i], header: encodeHeader(events[i].Event.Header)}
		if n.body, err = s.bodies.seal(events[i].Event.Body); err != nil {
			return all, 0, fmt.Errorf("event %s: %w", events[i].Event.ID, err)
		}
		inBatch += int64(len(n.body.data) + len(n.header) + 512)
		all, bodies = append(all, n), append(bodies, n.body)
	}
	return all, inBatch, s.bodies.sync(bodies)
}

// forget deletes the files of events that were not stored.
func (s *Store) forget(all []newEvent) {
	for i := range all {
		if b := &all[i].body; b.codec == codecFile {
			s.bodies.remove([]string{string(b.data)})
		}
	}
}

func (s *Store) create(t *tx, n *newEvent) (relay.Receipt, error) {
	e := &n.Event
	n.stored = false
	if err := s.bodies.there(&n.body); err != nil {
		return relay.Receipt{}, err
	}
	high, err := t.highest(e.ReceivedAt)
	if err != nil {
		return relay.Receipt{}, err
	}
	res, err := t.exec(insertEvent, e.ID, e.App, e.Endpoint, e.ReceivedAt.UnixMicro(), e.Method,
		[]byte(e.Target), []byte(e.PublicURL), n.header, n.body.size, n.body.hash[:], e.RemoteIP,
		[]byte(e.Type), timeArg(e.SentAt), bytesArg(e.DedupeKey), e.Verified, timeArg(e.ExpiresAt),
		e.Refusal, timeArg(e.BodyExpiresAt), timeArg(earlier(e.BodyExpiresAt, e.ExpiresAt)), high)
	if err != nil {
		return relay.Receipt{}, err
	}
	if res.changed == 0 {
		return t.duplicate(n)
	}
	seq := res.last
	if _, err := t.exec(insertBody, seq, n.body.codec, n.body.data); err != nil {
		return relay.Receipt{}, fmt.Errorf("body: %w", err)
	}
	n.stored = true
	t.deltas = append(t.deltas, delta{app: e.App, events: 1, bytes: n.body.size})
	r := relay.Receipt{ID: e.ID}
	r.Leased, err = t.addDeliveries(seq, n.NewEvent)
	return r, err
}

// highest is the value of high_at for an event received at at.
func (t *tx) highest(at time.Time) (int64, error) {
	if !t.known {
		high, err := t.number(selectHigh)
		if err != nil {
			return 0, err
		}
		t.high, t.known = high, true
	}
	micros := at.UnixMicro()
	if micros >= t.high || t.high == 0 {
		t.high = micros
	} else if late := t.high - micros; late > t.late {
		t.late = 1<<bits.Len64(uint64(late)) - 1 // rounded up: it shall not grow often
	}
	return t.high, nil
}

// addDeliveries stores the deliveries and attempts that come with an event, and
// reports whether there were leased ones and all of them are.
func (t *tx) addDeliveries(event int64, n *relay.NewEvent) (leased bool, err error) {
	leased, err = t.canLease(n.Deliveries)
	if err != nil {
		return false, err
	}
	seqs := make([]int64, len(n.Deliveries))
	for i := range n.Deliveries {
		d := n.Deliveries[i]
		if d.State == relay.DeliveryLeased && !leased {
			d.State, d.LeaseOwner, d.LeaseUntil = relay.DeliveryReady, "", time.Time{}
		}
		if seqs[i], err = t.addDelivery(event, &d); err != nil {
			return false, fmt.Errorf("delivery %s: %w", d.ID, err)
		}
	}
attempts:
	for i := range n.Attempts {
		a := &n.Attempts[i]
		for j := range n.Deliveries {
			if n.Deliveries[j].ID != a.Delivery {
				continue
			}
			if err := t.addAttempt(seqs[j], a); err != nil {
				return false, fmt.Errorf("attempt of delivery %s: %w", a.Delivery, err)
			}
			continue attempts
		}
		return false, fmt.Errorf("attempt of delivery %s, which does not come with it", a.Delivery)
	}
	return leased, nil
}

// duplicate answers for an event whose dedupe key is stored. A provider sends
// again either because it missed our answer, which needs nothing, or because
// somebody pressed its redeliver button after the app had failed for good. Where
// retention has deleted the body meanwhile, the one that came now takes its place.
func (t *tx) duplicate(n *newEvent) (relay.Receipt, error) {
	e := &n.Event
	r := relay.Receipt{Duplicate: true}
	var seq int64
	var gone bool
	found, err := t.one(func(row *row) {
		seq, r.ID, gone = row.int(), relay.EventID(row.str()), row.int() != 0
	}, selectDuplicate, e.App, e.Endpoint, []byte(e.DedupeKey))
	if err == nil && !found {
		err = errors.New("it is not there")
	}
	if err != nil {
		return relay.Receipt{}, fmt.Errorf("find the first: %w", err)
	}
	requeued, err := t.requeueEvent(seq, e.ReceivedAt)
	if err != nil {
		return relay.Receipt{}, fmt.Errorf("requeue the first: %w", err)
	}
	r.Requeued = requeued > 0
	if r.Requeued && gone {
		until := timeArg(e.BodyExpiresAt)
		if _, err := t.exec(restoreEvent, n.header, n.body.size, n.body.hash[:],
			until, until, until, seq); err != nil {
			return relay.Receipt{}, fmt.Errorf("restore the body: %w", err)
		}
		if _, err := t.exec(insertBody, seq, n.body.codec, n.body.data); err != nil {
			return relay.Receipt{}, fmt.Errorf("restore the body: %w", err)
		}
		n.stored = true
		t.deltas = append(t.deltas, delta{app: e.App, bytes: n.body.size})
	}
	return r, nil
}
