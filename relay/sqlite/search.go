package sqlite

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/posternhq/postern/relay"
)

// Bounds of EventFilter.Limit.
const (
	defaultLimit = 100
	maxLimit     = 1000
)

// A search for text opens every event that the other conditions leave. Events
// stops it after so many, or so long, and returns what it has found by then:
// further pages follow from there only if something was found. CountEvents and
// replays go on to the end.
const (
	textEvents = 100_000
	textTime   = 5 * time.Second
	textChunk  = 500 // events in one read, so that each stays short
)

// search is an EventFilter made into conditions on "event e".
type search struct {
	where []string
	args  []any
	text  string
	up    bool // oldest first
}

func (q *search) add(cond string, args ...any) {
	q.where, q.args = append(q.where, cond), append(q.args, args...)
}

// compile makes the conditions of f without its page.
func (c *conn) compile(f *relay.EventFilter) (*search, error) {
	q := &search{text: f.Text, where: []string{"true"}}
	inList := q.inList(f)
	plus := "" // "+" keeps SQLite from another index than that of the list
	if inList {
		plus = "+"
	}
	if f.App != "" {
		q.add(plus+"e.app = ?", f.App)
	}
	if f.Endpoint != "" {
		q.add(plus+"e.endpoint = ?", f.Endpoint)
	}
	if prefix, ok := strings.CutSuffix(f.Type, "*"); ok && prefix != "" {
		q.add("substr(e.type, 1, ?) = ?", len(prefix), []byte(prefix))
	} else if f.Type != "" && !ok {
		q.add("e.type = ?", []byte(f.Type))
	}
	if f.Refused != nil && *f.Refused {
		q.add("e.refusal <> ''")
	} else if f.Refused != nil {
		q.add("e.refusal = ''")
	}
	return q, q.between(c, f.Since, f.Until)
}

// inList adds the conditions which name the events that come into question, if
// there are such.
func (q *search) inList(f *relay.EventFilter) (found bool) {
	if len(f.IDs) > 0 {
		ids, _ := json.Marshal(f.IDs) // strings always have a JSON form
		q.add("e.seq IN (SELECT i.seq FROM event i WHERE i.id IN (SELECT value FROM json_each(?)))", string(ids))
		found = true
	}
	if len(f.States) == 0 {
		return found
	}
	var in []string
	for _, s := range f.States {
		in = append(in, fmt.Sprint(int(s)))
	}
	slices.Sort(in)
	latest := "d.event_seq = e.seq AND d.state IN (" + strings.Join(slices.Compact(in), ",") + ")" +
		" AND NOT EXISTS (SELECT 1 FROM delivery n WHERE n.event_seq = e.seq AND n.lane = d.lane AND n.seq > d.seq)"
	if f.Destination != nil {
		q.add("EXISTS (SELECT 1 FROM delivery d JOIN lane l ON l.seq = d.lane WHERE l.destination = ? AND "+latest+")", *f.Destination)
	} else {
		q.add("EXISTS (SELECT 1 FROM delivery d WHERE " + latest + ")")
	}
	if slices.Contains(f.States, relay.DeliveryDone) { // most are
		return found
	}
	var parts []string
	for s := relay.DeliveryReady; s <= relay.DeliveryCancelled; s++ {
		if slices.Contains(f.States, s) {
			parts = append(parts, withState[s]...)
		}
	}
	if len(parts) == 0 {
		q.add("false")
		return found
	}
	q.add("e.seq IN (" + strings.Join(parts, " UNION ALL ") + ")")
	return true
}

// withState lists the events that have a delivery in some state, out of the
// partial indexes, in which those that are done are not.
var withState = map[relay.DeliveryState][]string{
	relay.DeliveryReady: {
		"SELECT event_seq FROM delivery INDEXED BY delivery_ready WHERE state = 0 AND blocked = 0",
		"SELECT event_seq FROM delivery INDEXED BY delivery_order" +
			" WHERE state IN (0,1) AND order_key IS NOT NULL AND blocked = 1 AND state = 0",
	},
	relay.DeliveryLeased:    {"SELECT event_seq FROM delivery INDEXED BY delivery_lease WHERE state = 1"},
	relay.DeliveryDead:      {"SELECT event_seq FROM delivery INDEXED BY delivery_failed WHERE state IN (3,4) AND state = 3"},
	relay.DeliveryCancelled: {"SELECT event_seq FROM delivery INDEXED BY delivery_failed WHERE state IN (3,4) AND state = 4"},
}

// between adds the conditions on the time. There is no index on it: high_at
// grows with seq, so that a few looks find from where on it is late enough. An
// event may have come in later than one received after it, by lateness at most.
func (q *search) between(c *conn, since, until time.Time) error {
	if !since.IsZero() {
		q.add("e.received_at >= ?", ceilMicro(since))
		first, err := c.firstAt(ceilMicro(since))
		if err != nil {
			return err
		}
		q.add("e.seq >= ?", first)
	}
	if !until.IsZero() {
		q.add("e.received_at < ?", ceilMicro(until))
		late, err := c.number(`SELECT micros FROM lateness`)
		if err != nil {
			return err
		}
		end, err := c.firstAt(ceilMicro(until) + late)
		if err != nil {
			return err
		}
		q.add("e.seq < ?", end)
	}
	return nil
}

// ceilMicro rounds up: stored times are whole microseconds.
func ceilMicro(t time.Time) int64 {
	micros := t.UnixMicro()
	if time.UnixMicro(micros).Before(t) {
		micros++
	}
	return micros
}

// firstAt is the row of the first event whose high_at is at or after at, or one
// behind the last.
func (c *conn) firstAt(at int64) (int64, error) {
	low, err := c.number(`SELECT seq FROM event ORDER BY seq LIMIT 1`)
	if err != nil {
		return 0, err
	}
	end, err := c.number(`SELECT seq FROM event ORDER BY seq DESC LIMIT 1`)
	if err != nil {
		return 0, err
	}
	for end++; low < end; { // it is at low or later, and at end or before
		middle := low + (end-low)/2
		var seq, high int64
		found, err := c.one(func(r *row) { seq, high = r.int(), r.int() },
			`SELECT seq, high_at FROM event WHERE seq >= ? ORDER BY seq LIMIT 1`, middle)
		if err != nil {
			return 0, err
		}
		if !found || high >= at {
			end = middle // rows between middle and seq are not there
		} else {
			low = seq + 1
		}
	}
	return low, nil
}

// hit is an event that a search found, without its body.
type hit struct {
	seq   int64
	event relay.Event
}

// page is one query of a search: up to limit events from one row on.
func (q *search) page(columns, join string, from int64, limit int) (string, []any) {
	where, args := q.where, q.args
	order := " ORDER BY e.seq DESC LIMIT ?"
	if q.up {
		order = " ORDER BY e.seq LIMIT ?"
	}
	if from != 0 && q.up {
		where, args = append(where, "e.seq > ?"), append(args, from)
	} else if from != 0 {
		where, args = append(where, "e.seq < ?"), append(args, from)
	}
	return "SELECT " + columns + " FROM event e" + join + " WHERE " + strings.Join(where, " AND ") + order, append(args, limit)
}

// reach is how far a search came.
type reach struct {
	through int64 // the last event looked at
	end     bool  // there are no more
}

// find visits up to limit events that q selects, behind the row from, 0 for the
// first ones. A search for text looks at no more than most events, 0 for all.
func (s *Store) find(ctx context.Context, q *search, from int64, limit, most int, visit func(hit)) (reach, error) {
	if q.text == "" {
		return s.findPlain(ctx, q, from, limit, visit)
	}
	deadline := time.Now().Add(textTime)
	at := reach{through: from}
	for looked, found := 0, 0; ; {
		chunk, n, err := s.findText(ctx, q, at.through)
		if err != nil {
			return at, err
		}
		for _, h := range chunk {
			if found == limit {
				return at, nil
			}
			at.through = h.seq
			visit(h)
			found++
		}
		if n.end {
			return n, nil
		}
		at, looked = n, looked+textChunk
		if found == limit || most > 0 && (looked >= most || time.Now().After(deadline)) {
			return at, nil
		}
	}
}

func (s *Store) findPlain(ctx context.Context, q *search, from int64, limit int, visit func(hit)) (reach, error) {
	at, n := reach{through: from}, 0
	query, args := q.page("e.seq, "+eventColumns, "", from, limit)
	err := s.pool.read(ctx, func(c *conn) error {
		return c.each(ctx, func(r *row) error {
			h := hit{r.int(), scanEvent(r)}
			at.through = h.seq
			n++
			visit(h)
			return nil
		}, query, args...)
	})
	at.end = n < limit
	return at, err
}

// findText looks at one chunk. Bodies in files are read when the connection is
// free again.
func (s *Store) findText(ctx context.Context, q *search, from int64) (found []hit, at reach, err error) {
	at.through = from
	text, n := []byte(q.text), 0
	large := make(map[int]storedBody) // by index into found
	query, args := q.page("e.seq, "+eventColumns+", "+bodyColumns,
		" LEFT JOIN event_body b ON b.event_seq = e.seq", from, textChunk)
	err = s.pool.read(ctx, func(c *conn) error {
		return c.each(ctx, func(r *row) error {
			h := hit{r.int(), scanEvent(r)}
			b := scanBody(r)
			at.through = h.seq
			n++
			switch {
			case inHead(&h.event, q.text) || b.codec == codecRaw && bytes.Contains(b.data, text):
			case b.codec == codecFile:
				large[len(found)] = b
			default:
				return nil
			}
			found = append(found, h)
			return nil
		}, query, args...)
	})
	at.end = n < textChunk
	if err != nil || len(large) == 0 {
		return found, at, err
	}
	kept := found[:0]
	for i, h := range found {
		if b, ok := large[i]; ok {
			body, err := s.bodies.open(&b)
			if err != nil && !errors.Is(err, errDamaged) {
				return nil, at, err
			}
			if !bytes.Contains(body, text) {
				continue
			}
		}
		kept = append(kept, h)
	}
	return kept, at, nil
}

// inHead reports whether text is somewhere in e but in its body.
func inHead(e *relay.Event, text string) bool {
	return strings.Contains(e.Target, text) || strings.Contains(e.Type, text) || strings.Contains(e.DedupeKey, text) ||
		slices.ContainsFunc(e.Header, func(f relay.Field) bool {
			return strings.Contains(f.Name, text) || strings.Contains(f.Value, text)
		})
}

// Events implements relay.EventStore. A search for text is bounded: see
// textEvents.
func (s *Store) Events(ctx context.Context, f relay.EventFilter) ([]relay.Listed, error) {
	all, err := s.events(ctx, &f)
	if err != nil {
		return nil, fmt.Errorf("list events: %w", err)
	}
	return all, nil
}

func (s *Store) events(ctx context.Context, f *relay.EventFilter) (all []relay.Listed, err error) {
	var q *search
	var before, after int64
	err = s.pool.snapshot(ctx, func(c *conn) (err error) {
		if before, err = c.seqOf(f.Before); err != nil {
			return err
		}
		if after, err = c.seqOf(f.After); err != nil {
			return err
		}
		q, err = c.compile(f)
		return err
	})
	if err != nil {
		return nil, err
	}
	from := before
	if q.up = f.After != ""; q.up {
		from = after
		if before != 0 {
			q.add("e.seq < ?", before)
		}
	}
	limit := f.Limit
	if limit <= 0 {
		limit = defaultLimit
	}
	var seqs []int64
	_, err = s.find(ctx, q, from, min(limit, maxLimit), textEvents, func(h hit) {
		all, seqs = append(all, relay.Listed{Event: h.event}), append(seqs, h.seq)
	})
	if err != nil || len(all) == 0 {
		return nil, err
	}
	err = s.pool.read(ctx, func(c *conn) error {
		for i, seq := range seqs {
			if all[i].Deliveries, err = list(context.Background(), c, scanDelivery, selectOfEvent, seq); err != nil {
				return err
			}
		}
		return nil
	})
	return all, err
}

const selectOfEvent = `SELECT ` + deliveryColumns + `
	FROM event e JOIN delivery d ON d.event_seq = e.seq JOIN lane l ON l.seq = d.lane
	WHERE e.seq = ? ORDER BY d.seq`

// seqOf is the row of an event, 0 for "".
func (c *conn) seqOf(id relay.EventID) (int64, error) {
	if id == "" {
		return 0, nil
	}
	seq, err := c.number(selectEventSeq, id)
	if err == nil && seq == 0 {
		err = noEvent(id)
	}
	return seq, err
}

// CountEvents implements relay.EventStore.
func (s *Store) CountEvents(ctx context.Context, f relay.EventFilter) (n int, err error) {
	err = s.count(ctx, &f, &n)
	if err != nil {
		return 0, fmt.Errorf("count events: %w", err)
	}
	return n, nil
}

func (s *Store) count(ctx context.Context, f *relay.EventFilter, n *int) error {
	var q *search
	err := s.pool.snapshot(ctx, func(c *conn) (err error) {
		if q, err = c.compile(f); err != nil {
			return err
		}
		q.add("e.body_gone = 0")
		if q.text != "" {
			return nil
		}
		query := "SELECT count(*) FROM event e WHERE " + strings.Join(q.where, " AND ")
		return c.each(ctx, func(r *row) error { *n = int(r.int()); return nil }, query, q.args...)
	})
	if err != nil || q.text == "" {
		return err
	}
	_, err = s.find(ctx, q, 0, -1, 0, func(hit) { *n++ })
	return err
}
