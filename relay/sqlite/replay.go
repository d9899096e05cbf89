package sqlite

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/posternhq/postern/relay"
)

const (
	insertReplay = `INSERT INTO replay (id, app, made_by, created_at, filter, destination, rate, state, planned,
			cursor, cursor_seq, made, done, dead, cancelled)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`
	replayColumns = `id, app, made_by, created_at, filter, destination, rate, state, planned,
		cursor, made, done, dead, cancelled, cursor_seq`
	selectReplay  = `SELECT ` + replayColumns + ` FROM replay WHERE id = ?`
	selectReplays = `SELECT ` + replayColumns + ` FROM replay ORDER BY seq DESC LIMIT 100`
	selectOfApp   = `SELECT ` + replayColumns + ` FROM replay WHERE app = ? ORDER BY seq DESC LIMIT 100`
	moveReplay    = `UPDATE replay SET state = ?, cursor = ?, cursor_seq = ?, made = ? WHERE id = ?`

	selectSource = `SELECT id, app, endpoint, body_gone FROM event WHERE seq = ?`
	// The order key is the event's, whichever delivery has it.
	selectKey = `SELECT order_key FROM delivery WHERE event_seq = ? ORDER BY lane <> ?, seq LIMIT 1`

	selectOfReplay = `SELECT d.seq, d.event_seq, d.lane, d.order_key, d.blocked, d.replay, d.state, d.lease_gen, d.attempts
		FROM delivery d WHERE d.replay = ? AND d.state = 0 LIMIT ?`
)

const (
	replayEvents = 20_000 // that one step for a text looks at
	cancelStep   = 200    // deliveries cancelled in one transaction
)

// storedFilter is the JSON form of an EventFilter in the table replay. What a
// sender chose need not be UTF-8; times are microseconds.
type storedFilter struct {
	App      relay.AppID           `json:"app,omitempty"`
	Endpoint string                `json:"endpoint,omitempty"`
	IDs      []relay.EventID       `json:"ids,omitempty"`
	Type     []byte                `json:"type,omitempty"`
	States   []relay.DeliveryState `json:"states,omitempty"`
	Refused  *bool                 `json:"refused,omitempty"`
	Since    *int64                `json:"since,omitempty"`
	Until    *int64                `json:"until,omitempty"`
	Text     []byte                `json:"text,omitempty"`
	Before   relay.EventID         `json:"before,omitempty"`
	After    relay.EventID         `json:"after,omitempty"`
	Limit    int                   `json:"limit,omitempty"`
	To       *string               `json:"to,omitempty"` // the destination
}

func encodeFilter(f *relay.EventFilter) string {
	s := storedFilter{App: f.App, Endpoint: f.Endpoint, IDs: f.IDs, Type: []byte(f.Type), States: f.States,
		Refused: f.Refused, Text: []byte(f.Text), Before: f.Before, After: f.After, Limit: f.Limit, To: f.Destination}
	if !f.Since.IsZero() {
		s.Since = new(ceilMicro(f.Since))
	}
	if !f.Until.IsZero() {
		s.Until = new(ceilMicro(f.Until))
	}
	out, _ := json.Marshal(s) // nothing in it can fail
	return string(out)
}

func decodeFilter(text string) (relay.EventFilter, error) {
	var s storedFilter
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return relay.EventFilter{}, fmt.Errorf("read a replay's filter: %w", err)
	}
	f := relay.EventFilter{App: s.App, Endpoint: s.Endpoint, IDs: s.IDs, Type: string(s.Type), States: s.States,
		Refused: s.Refused, Text: string(s.Text), Before: s.Before, After: s.After, Limit: s.Limit, Destination: s.To}
	if s.Since != nil {
		f.Since = time.UnixMicro(*s.Since).UTC()
	}
	if s.Until != nil {
		f.Until = time.UnixMicro(*s.Until).UTC()
	}
	return f, nil
}

// storedReplay is a replay with how far it looked.
type storedReplay struct {
	relay.Replay
	cursor int64
}

func scanReplay(r *row) storedReplay {
	var s storedReplay
	s.ID, s.App, s.By, s.CreatedAt = relay.ReplayID(r.str()), relay.AppID(r.str()), r.str(), r.time()
	f, err := decodeFilter(r.str())
	if err != nil && r.err == nil {
		r.err = err
	}
	s.Filter, s.Destination, s.Rate, s.State = f, r.str(), r.float(), relay.ReplayState(r.int())
	s.Planned, s.Cursor = int(r.int()), relay.EventID(r.str())
	s.Made, s.Done, s.Dead, s.Cancelled = int(r.int()), int(r.int()), int(r.int()), int(r.int())
	s.cursor = r.int()
	return s
}

// CreateReplay implements relay.ReplayStore. An id that is taken is an error.
func (s *Store) CreateReplay(ctx context.Context, r relay.Replay) error {
	return s.write(ctx, "create replay", func(t *tx) error {
		cursor, err := t.number(selectEventSeq, r.Cursor) // 0, too, when it is gone
		if err != nil {
			return err
		}
		_, err = t.exec(insertReplay, r.ID, r.App, r.By, r.CreatedAt.UnixMicro(), encodeFilter(&r.Filter),
			r.Destination, r.Rate, int(r.State), r.Planned, r.Cursor, cursor, r.Made, r.Done, r.Dead, r.Cancelled)
		return err
	})
}

// Replay implements relay.ReplayStore.
func (s *Store) Replay(ctx context.Context, id relay.ReplayID) (relay.Replay, error) {
	var r storedReplay
	err := s.read(ctx, "get replay", func(c *conn) (err error) {
		r, err = c.replay(id)
		return err
	})
	return r.Replay, err
}

// Replays implements relay.ReplayStore.
func (s *Store) Replays(ctx context.Context, app relay.AppID) (all []relay.Replay, err error) {
	err = s.read(ctx, "list replays", func(c *conn) error {
		query, args := selectReplays, []any(nil)
		if app != "" {
			query, args = selectOfApp, []any{app}
		}
		all, err = list(ctx, c, func(r *row) relay.Replay { return scanReplay(r).Replay }, query, args...)
		return err
	})
	return all, err
}

func (c *conn) replay(id relay.ReplayID) (s storedReplay, err error) {
	found, err := c.one(func(r *row) { s = scanReplay(r) }, selectReplay, id)
	if err == nil && !found {
		err = relay.Errorf(relay.NotFound, "there is no replay %q", id)
	}
	return s, err
}

// StartReplay implements relay.ReplayStore.
func (s *Store) StartReplay(ctx context.Context, id relay.ReplayID) (r relay.Replay, err error) {
	err = s.write(ctx, "start replay", func(t *tx) error {
		stored, err := t.replay(id)
		if err != nil {
			return err
		}
		if stored.State != relay.ReplayPlanned {
			return relay.Errorf(relay.Conflict, "replay %q is %s, only a planned one can be started", id, stored.State)
		}
		stored.State = relay.ReplayRunning
		r = stored.Replay
		return t.moveReplay(&stored)
	})
	return r, err
}

func (t *tx) moveReplay(r *storedReplay) error {
	_, err := t.exec(moveReplay, int(r.State), r.Cursor, r.cursor, r.Made, r.ID)
	return err
}

// errMoved says that a replay made a step meanwhile.
var errMoved = errors.New("the replay moved meanwhile")

// StepReplay implements relay.ReplayStore. The events are found by a read, since
// that may take long, and the deliveries made by a transaction that checks that
// no other step came between. A step for a text may make none and not be done: it
// stops after having looked at replayEvents of them.
func (s *Store) StepReplay(ctx context.Context, id relay.ReplayID, limit int, now time.Time) (relay.Replay, error) {
	for {
		r, err := s.stepReplay(ctx, id, max(limit, 1), now)
		if errors.Is(err, errMoved) {
			continue
		}
		if err != nil {
			return relay.Replay{}, fmt.Errorf("step replay: %w", err)
		}
		return r, nil
	}
}

func (s *Store) stepReplay(ctx context.Context, id relay.ReplayID, limit int, now time.Time) (r relay.Replay, err error) {
	var from storedReplay
	var q *search
	err = s.pool.snapshot(ctx, func(c *conn) (err error) {
		if from, err = c.replay(id); err != nil {
			return err
		}
		q, err = c.compile(&from.Filter)
		return err
	})
	if err != nil {
		return relay.Replay{}, err
	}
	if from.State != relay.ReplayRunning {
		return relay.Replay{}, notRunning(&from)
	}
	q.up = true
	q.add("e.body_gone = 0")
	var seqs []int64
	// One more than is made tells whether that was all.
	at, err := s.find(ctx, q, from.cursor, limit+1, replayEvents, func(h hit) { seqs = append(seqs, h.seq) })
	if err != nil {
		return relay.Replay{}, err
	}
	if len(seqs) > limit {
		seqs = seqs[:limit]
		at = reach{through: seqs[limit-1]}
	}
	err = s.writer.queue.do(ctx, &op{run: func(t *tx) error {
		stored, err := t.replay(id)
		if err != nil {
			return err
		}
		if stored.State != relay.ReplayRunning {
			return notRunning(&stored)
		}
		if stored.cursor != from.cursor {
			return errMoved
		}
		for _, seq := range seqs {
			if err := t.replayEvent(&stored, seq, now); err != nil {
				return err
			}
		}
		stored.cursor = at.through
		if at.end {
			stored.State = relay.ReplayDone
		}
		r = stored.Replay
		return t.moveReplay(&stored)
	}})
	return r, err
}

func notRunning(r *storedReplay) error {
	return relay.Errorf(relay.Conflict, "replay %q is %s, not running", r.ID, r.State)
}

// replayEvent makes one delivery. An event that retention took since is passed
// over.
func (t *tx) replayEvent(r *storedReplay, seq int64, now time.Time) error {
	var gone bool
	d := relay.Delivery{ID: relay.NewDeliveryID(now), Destination: r.Destination,
		Trigger: relay.TriggerReplay, Replay: r.ID, NextAt: now}
	found, err := t.one(func(row *row) {
		d.Event, d.App, d.Endpoint, gone = relay.EventID(row.str()), relay.AppID(row.str()), row.str(), row.int() != 0
	}, selectSource, seq)
	if err != nil || !found || gone {
		return err
	}
	lane, err := t.makeLane(laneName{d.App, d.Endpoint, d.Destination})
	if err != nil {
		return err
	}
	if _, err := t.one(func(row *row) { d.OrderKey = row.str() }, selectKey, seq, lane); err != nil {
		return err
	}
	if _, err := t.addDelivery(seq, &d); err != nil {
		return fmt.Errorf("event %s: %w", d.Event, err)
	}
	r.Cursor, r.Made = d.Event, r.Made+1
	return nil
}

// CancelReplay implements relay.ReplayStore. The deliveries are cancelled some at
// a time, so that others can write in between.
func (s *Store) CancelReplay(ctx context.Context, id relay.ReplayID) (relay.Replay, error) {
	err := s.write(ctx, "cancel replay", func(t *tx) error {
		r, err := t.replay(id)
		if err != nil || r.State == relay.ReplayDone || r.State == relay.ReplayCancelled {
			return err
		}
		r.State = relay.ReplayCancelled
		return t.moveReplay(&r)
	})
	for more := true; more && err == nil; {
		err = s.write(ctx, "cancel replay", func(t *tx) error {
			places, err := list(context.Background(), t.conn, scanPlace, selectOfReplay, id, cancelStep)
			if err != nil {
				return err
			}
			more = len(places) == cancelStep
			for i := range places {
				if err := t.cancel(&places[i]); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err != nil {
		return relay.Replay{}, err
	}
	return s.Replay(ctx, id)
}
