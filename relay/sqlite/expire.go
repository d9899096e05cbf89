package sqlite

import (
	"context"
	"fmt"
	"time"

	"github.com/posternhq/postern/relay"
)

const (
	selectDue = `SELECT seq, app, body_len, body_gone, body_expires_at, expires_at FROM event
		WHERE due_at <= ? ORDER BY due_at LIMIT ?`
	selectBodyFile = `SELECT data FROM event_body WHERE event_seq = ? AND codec = 2`
	deleteBody     = `DELETE FROM event_body WHERE event_seq = ?`
	forgetBody     = `UPDATE event SET body_gone = 1, due_at = expires_at WHERE seq = ?`
	postpone       = `UPDATE event SET due_at = coalesce(min(?, expires_at), ?) WHERE seq = ?`
	selectOpen     = `SELECT 1 FROM delivery WHERE event_seq = ? AND state IN (0,1) LIMIT 1`
	forgetAnswers  = `UPDATE attempt SET header = '[]', body = x'' WHERE seq > ? AND seq < ?`

	selectDeliverySeqs = `SELECT seq FROM delivery WHERE event_seq = ?`
	selectPlaces       = `SELECT d.seq, d.event_seq, d.lane, d.order_key, d.blocked, d.replay, d.state, d.lease_gen, d.attempts
		FROM delivery d WHERE d.event_seq = ?`
	deleteAttempts = `DELETE FROM attempt WHERE seq > ? AND seq < ?`
	deleteDelivery = `DELETE FROM delivery WHERE seq = ?`
	deleteEvent    = `DELETE FROM event WHERE seq = ?`
)

const (
	// A body that somebody waits for is looked at again after this time.
	bodyPatience = time.Hour
	// Pages without content are used again; what is more than keepFree of them
	// goes back to the file system, some with each step.
	keepFree   = 4096
	vacuumStep = 256
)

// dueEvent is an event at which retention looks.
type dueEvent struct {
	seq         int64
	app         relay.AppID
	size        int64
	gone        bool
	body, whole time.Time
}

// Expire implements relay.EventStore. The app's answers go with the body. A body
// that a delivery waits for is looked at again an hour later. Places in the order
// of a key are settled, and what another process leased is given up as well: its
// FinishAttempt is Conflict.
func (s *Store) Expire(ctx context.Context, now time.Time, limit int) (done relay.Expired, err error) {
	if limit <= 0 {
		return relay.Expired{}, nil
	}
	var files []string
	err = s.write(ctx, "expire", func(t *tx) error {
		done, files = relay.Expired{}, nil
		all, err := list(context.Background(), t.conn, scanDue, selectDue, now.UnixMicro(), 2*limit)
		if err != nil {
			return err
		}
		for i := range all {
			file, err := t.expire(&all[i], now, limit, &done)
			if err != nil {
				return err
			}
			if file != "" {
				files = append(files, file)
			}
		}
		return t.vacuum()
	})
	if err != nil {
		return relay.Expired{}, err
	}
	s.bodies.remove(files)
	return done, nil
}

func scanDue(r *row) dueEvent {
	return dueEvent{seq: r.int(), app: relay.AppID(r.str()), size: r.int(), gone: r.int() != 0, body: r.time(), whole: r.time()}
}

// expire does what is due to one event, unless that was done to limit others, and
// returns the name of a file to delete.
func (t *tx) expire(e *dueEvent, now time.Time, limit int, done *relay.Expired) (file string, err error) {
	if !e.whole.IsZero() && !e.whole.After(now) {
		if done.Events == limit {
			return "", nil
		}
		done.Events++
		return t.deleteEvent(e, done)
	}
	if done.Bodies == limit {
		return "", nil
	}
	open, err := t.number(selectOpen, e.seq)
	if err != nil {
		return "", err
	}
	if open != 0 {
		later := now.Add(bodyPatience).UnixMicro()
		_, err := t.exec(postpone, later, later, e.seq)
		return "", err
	}
	done.Bodies++
	seqs, err := list(context.Background(), t.conn, (*row).int, selectDeliverySeqs, e.seq)
	if err != nil {
		return "", err
	}
	for _, seq := range seqs {
		if _, err := t.exec(forgetAnswers, seq<<attemptBits, (seq+1)<<attemptBits); err != nil {
			return "", err
		}
	}
	if file, err = t.deleteBody(e); err != nil {
		return "", err
	}
	_, err = t.exec(forgetBody, e.seq)
	t.deltas = append(t.deltas, delta{app: e.app, bytes: -e.size})
	return file, err
}

// deleteEvent deletes an event with all that belongs to it.
func (t *tx) deleteEvent(e *dueEvent, done *relay.Expired) (file string, err error) {
	places, err := list(context.Background(), t.conn, scanPlace, selectPlaces, e.seq)
	if err != nil {
		return "", err
	}
	for i := range places {
		p := &places[i]
		if _, err := t.exec(deleteAttempts, p.seq<<attemptBits, (p.seq+1)<<attemptBits); err != nil {
			return "", err
		}
		if _, err := t.exec(deleteDelivery, p.seq); err != nil {
			return "", err
		}
		if !unfinished(p.state) {
			continue // a replay's counts stay
		}
		done.GivenUp++
		if err := t.moved(p, relay.DeliveryCancelled); err != nil {
			return "", err
		}
	}
	if file, err = t.deleteBody(e); err != nil {
		return "", err
	}
	if _, err := t.exec(deleteEvent, e.seq); err != nil {
		return "", err
	}
	d := delta{app: e.app, events: -1}
	if !e.gone {
		d.bytes = -e.size
	}
	t.deltas = append(t.deltas, d)
	return file, nil
}

// deleteBody deletes the row of a body and returns the name of its file.
func (t *tx) deleteBody(e *dueEvent) (file string, err error) {
	if e.gone {
		return "", nil
	}
	if e.size >= largeBody {
		if _, err := t.one(func(r *row) { file = r.str() }, selectBodyFile, e.seq); err != nil {
			return "", err
		}
	}
	_, err = t.exec(deleteBody, e.seq)
	return file, err
}

// vacuum gives some free pages back to the file system.
func (t *tx) vacuum() error {
	free, err := t.number("PRAGMA freelist_count")
	if err != nil || free <= keepFree {
		return err
	}
	if _, err := t.exec(fmt.Sprintf("PRAGMA incremental_vacuum(%d)", vacuumStep)); err != nil {
		return fmt.Errorf("give free pages back: %w", err)
	}
	return nil
}
