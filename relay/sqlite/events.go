package sqlite

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"

	"github.com/posternhq/postern/relay"
)

const (
	insertEvent = `INSERT INTO event (id, app, endpoint, received_at, method, target, public_url, header,
			body_len, body_sha256, remote_ip, type, sent_at, dedupe_key, verified, expires_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (app, endpoint, dedupe_key) WHERE dedupe_key IS NOT NULL DO NOTHING
		RETURNING seq`
	insertBody      = `INSERT INTO event_body (event_seq, codec, data) VALUES (?, 0, ?)`
	selectDuplicate = `SELECT seq, id FROM event WHERE app = ? AND endpoint = ? AND dedupe_key = ?`

	// The columns of eventFields and of storedBody, from "event e" and
	// "event_body b".
	eventColumns = `e.id, e.app, e.endpoint, e.received_at, e.method, e.target, e.public_url, e.header,
		e.remote_ip, e.type, e.sent_at, e.dedupe_key, e.verified, e.expires_at`
	bodyColumns = `e.body_len, e.body_sha256, b.codec, b.data`

	selectEvent = `SELECT ` + eventColumns + `, ` + bodyColumns + `
		FROM event e LEFT JOIN event_body b ON b.event_seq = e.seq WHERE e.id = ?`
	selectEventSeq = `SELECT seq FROM event WHERE id = ?`
)

// Bounds of EventFilter.Limit.
const (
	defaultLimit = 100
	maxLimit     = 1000
)

// codecRaw marks a body that is stored as it came. Other numbers are for bodies
// kept in another form or place (compressed, in a file).
const codecRaw = 0

// errDamaged says that the stored body is not the one that was received.
var errDamaged = errors.New("the stored body is damaged")

// CreateEvents implements relay.EventStore. Deliveries belong to the event they
// come with and Attempts to one of its deliveries. An error means that nothing
// of the call is stored.
func (s *Store) CreateEvents(ctx context.Context, events []relay.NewEvent) ([]relay.Receipt, error) {
	if len(events) == 0 {
		return nil, nil
	}
	// Hashing may take long; no other writer shall wait for it.
	hashes := make([][sha256.Size]byte, len(events))
	for i := range events {
		hashes[i] = events[i].Event.BodyHash()
	}
	receipts := make([]relay.Receipt, len(events))
	err := s.write(ctx, "create events", func(tx *sql.Tx) error {
		c, err := newCreator(ctx, tx)
		if err != nil {
			return err
		}
		for i := range events {
			if receipts[i], err = c.create(ctx, &events[i], hashes[i]); err != nil {
				return fmt.Errorf("event %s: %w", events[i].Event.ID, err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return receipts, nil
}

// creator stores events in one transaction, with statements that are prepared
// once for all of them. The transaction's end closes the statements.
type creator struct {
	tx                    *sql.Tx
	event, body, delivery *sql.Stmt
}

func newCreator(ctx context.Context, tx *sql.Tx) (*creator, error) {
	c := &creator{tx: tx}
	for query, stmt := range map[string]**sql.Stmt{
		insertEvent: &c.event, insertBody: &c.body, insertDelivery: &c.delivery,
	} {
		var err error
		if *stmt, err = tx.PrepareContext(ctx, query); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c *creator) create(ctx context.Context, n *relay.NewEvent, hash [sha256.Size]byte) (relay.Receipt, error) {
	e := &n.Event
	var seq int64
	err := c.event.QueryRowContext(ctx, e.ID, e.App, e.Endpoint, e.ReceivedAt.UnixMicro(), e.Method,
		[]byte(e.Target), []byte(e.PublicURL), encodeHeader(e.Header), len(e.Body), hash[:], e.RemoteIP,
		[]byte(e.Type), timeArg(e.SentAt), bytesArg(e.DedupeKey), e.Verified, timeArg(e.ExpiresAt)).Scan(&seq)
	if errors.Is(err, sql.ErrNoRows) {
		return c.duplicate(ctx, e)
	}
	if err != nil {
		return relay.Receipt{}, err
	}
	if _, err := c.body.ExecContext(ctx, seq, notNil(e.Body)); err != nil {
		return relay.Receipt{}, fmt.Errorf("body: %w", err)
	}
	seqs := make(map[relay.DeliveryID]int64, len(n.Deliveries))
	for i := range n.Deliveries {
		d := &n.Deliveries[i]
		if seqs[d.ID], err = c.addDelivery(ctx, seq, d); err != nil {
			return relay.Receipt{}, fmt.Errorf("delivery %s: %w", d.ID, err)
		}
	}
	for i := range n.Attempts {
		a := &n.Attempts[i]
		delivery, ok := seqs[a.Delivery]
		if !ok {
			return relay.Receipt{}, fmt.Errorf("attempt of delivery %s, which does not come with it", a.Delivery)
		}
		if err := addAttempt(ctx, c.tx, delivery, a); err != nil {
			return relay.Receipt{}, fmt.Errorf("attempt of delivery %s: %w", a.Delivery, err)
		}
	}
	return relay.Receipt{ID: e.ID}, nil
}

// duplicate answers for an event whose dedupe key is stored. A provider sends
// again either because it missed our answer, which needs nothing, or because
// somebody pressed its redeliver button after the app had failed for good.
func (c *creator) duplicate(ctx context.Context, e *relay.Event) (relay.Receipt, error) {
	r := relay.Receipt{Duplicate: true}
	var seq int64
	err := c.tx.QueryRowContext(ctx, selectDuplicate, e.App, e.Endpoint, []byte(e.DedupeKey)).Scan(&seq, &r.ID)
	if err != nil {
		return relay.Receipt{}, fmt.Errorf("find the first: %w", err)
	}
	n, err := requeue(ctx, c.tx, seq, e.ReceivedAt)
	if err != nil {
		return relay.Receipt{}, fmt.Errorf("requeue the first: %w", err)
	}
	r.Requeued = n > 0
	return r, nil
}

// Event implements relay.EventStore.
func (s *Store) Event(ctx context.Context, id relay.EventID) (relay.Event, error) {
	var e relay.Event
	var b storedBody
	err := s.reader.QueryRowContext(ctx, selectEvent, id).Scan(append(eventFields(&e), b.fields()...)...)
	if errors.Is(err, sql.ErrNoRows) {
		err = noEvent(id)
	}
	if err == nil {
		e.Body, err = b.open()
	}
	if err != nil {
		return relay.Event{}, fmt.Errorf("get event %s: %w", id, err)
	}
	return e, nil
}

// Events implements relay.EventStore. Newest is what was committed last; an
// unknown EventFilter.Before is NotFound.
func (s *Store) Events(ctx context.Context, f relay.EventFilter) ([]relay.Event, error) {
	var before int64
	if f.Before != "" {
		err := s.reader.QueryRowContext(ctx, selectEventSeq, f.Before).Scan(&before)
		if errors.Is(err, sql.ErrNoRows) {
			err = noEvent(f.Before)
		}
		if err != nil {
			return nil, fmt.Errorf("list events: %w", err)
		}
	}
	query, args := eventsQuery(f, before)
	events, err := list(ctx, s.reader, scanEvent, query, args...)
	if err != nil {
		return nil, fmt.Errorf("list events: %w", err)
	}
	return events, nil
}

// eventsQuery writes only the conditions that are asked for, so that each list
// is read off one index in its order.
func eventsQuery(f relay.EventFilter, before int64) (string, []any) {
	query, args := `SELECT `+eventColumns+` FROM event e WHERE true`, []any(nil)
	if f.App != "" {
		query, args = query+` AND e.app = ?`, append(args, f.App)
	}
	if f.Endpoint != "" {
		query, args = query+` AND e.endpoint = ?`, append(args, f.Endpoint)
	}
	if f.Before != "" {
		query, args = query+` AND e.seq < ?`, append(args, before)
	}
	limit := f.Limit
	if limit <= 0 {
		limit = defaultLimit
	}
	return query + ` ORDER BY e.seq DESC LIMIT ?`, append(args, min(limit, maxLimit))
}

func noEvent(id relay.EventID) error {
	return relay.Errorf(relay.NotFound, "there is no event %q", id)
}

// eventFields are the destinations of eventColumns.
func eventFields(e *relay.Event) []any {
	return []any{&e.ID, &e.App, &e.Endpoint, micros{&e.ReceivedAt}, &e.Method, text{&e.Target}, text{&e.PublicURL},
		header{&e.Header}, &e.RemoteIP, text{&e.Type}, micros{&e.SentAt}, text{&e.DedupeKey}, &e.Verified,
		micros{&e.ExpiresAt}}
}

func scanEvent(row scanner) (e relay.Event, err error) {
	err = row.Scan(eventFields(&e)...)
	return e, err
}

// storedBody is a body as the database has it.
type storedBody struct {
	len   int64
	hash  []byte
	codec sql.NullInt64
	data  []byte
}

// fields are the destinations of bodyColumns.
func (b *storedBody) fields() []any { return []any{&b.len, &b.hash, &b.codec, &b.data} }

// open returns the body after checking that it is the one that was received.
func (b *storedBody) open() ([]byte, error) {
	if b.codec.Valid && b.codec.Int64 != codecRaw {
		return nil, fmt.Errorf("the body is stored in form %d, which this version cannot read", b.codec.Int64)
	}
	if hash := sha256.Sum256(b.data); int64(len(b.data)) != b.len || !bytes.Equal(hash[:], b.hash) {
		return nil, errDamaged
	}
	if len(b.data) == 0 {
		return nil, nil
	}
	return b.data, nil
}

// notNil is b for a column which is NOT NULL: the driver stores nil as NULL.
func notNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}
