package sqlite

import (
	"context"
	"errors"
	"fmt"

	"github.com/posternhq/postern/relay"
)

const (
	// The columns of scanEvent, from "event e".
	eventColumns = `e.id, e.app, e.endpoint, e.received_at, e.method, e.target, e.public_url, e.header,
		e.remote_ip, e.type, e.sent_at, e.dedupe_key, e.verified, e.refusal, e.body_expires_at, e.expires_at, e.body_len`

	selectEvent = `SELECT ` + eventColumns + `, ` + bodyColumns + `
		FROM event e LEFT JOIN event_body b ON b.event_seq = e.seq WHERE e.id = ?`
	selectEventSeq = `SELECT seq FROM event WHERE id = ?`
)

// Event implements relay.EventStore.
func (s *Store) Event(ctx context.Context, id relay.EventID) (e relay.Event, err error) {
	e, err = s.event(ctx, id)
	if errors.Is(err, errDamaged) {
		// Retention may have deleted the body's file after the row was read.
		e, err = s.event(ctx, id)
	}
	if err != nil {
		return relay.Event{}, fmt.Errorf("get event %s: %w", id, err)
	}
	return e, nil
}

func (s *Store) event(ctx context.Context, id relay.EventID) (e relay.Event, err error) {
	var b storedBody
	err = s.pool.read(ctx, func(c *conn) error {
		found, err := c.one(func(r *row) { e, b = scanEvent(r), scanBody(r) }, selectEvent, id)
		if err == nil && !found {
			err = noEvent(id)
		}
		return err
	})
	if err == nil {
		e.Body, err = s.bodies.open(&b)
	}
	return e, err
}

func scanEvent(r *row) relay.Event {
	return relay.Event{
		ID: relay.EventID(r.str()), App: relay.AppID(r.str()), Endpoint: r.str(), ReceivedAt: r.time(),
		Method: r.str(), Target: r.str(), PublicURL: r.str(), Header: r.header(), RemoteIP: r.str(),
		Type: r.str(), SentAt: r.time(), DedupeKey: r.str(), Verified: r.int() != 0, Refusal: r.str(),
		BodyExpiresAt: r.time(), ExpiresAt: r.time(), BodySize: r.int(),
	}
}

func noEvent(id relay.EventID) error {
	return relay.Errorf(relay.NotFound, "there is no event %q", id)
}
