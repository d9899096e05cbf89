package admin

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/api"
	"github.com/posternhq/postern/relay"
)

// How a stream works. Notices of the inbox are hints that may be lost or come out
// of order, so what a reader gets is read from the store, behind a cursor:
//
//	streamEvents   Subscribe → where to begin (Last-Event-ID, else the newest event)
//	stream.run     head → catchUp → loop
//	  notice       gather all that wait → catchUp → the attempts among them
//	  heartbeat    may the token still → catchUp, for lost notices → mark or beat
//	  catchUp      Store.Events After the cursor, in the order they were committed
//
// That makes resuming and being live the same thing, without a gap or a repeat,
// and a slow reader costs a position instead of memory. Attempts are news only:
// those missed are in the event's detail.

const (
	heartbeat     = 15 * time.Second
	streamPage    = 100 // events read at once
	streamGather  = 256 // notices taken at once
	maxPerToken   = 32  // streams
	maxStreams    = 1000
	maxSecret     = 1 << 10
	headerLast    = "Last-Event-ID"
	headerResign  = protocol.HeaderResignSecret
	reasonMissing = "event_gone"
)

// stream is one reader of the stream. Its goroutine is the request's.
type stream struct {
	s       *Server
	filter  relay.Filter
	bodies  bool
	resign  bool         // fill Notice.Resigned
	secret  relay.Secret // sign with it; "" takes the endpoint's own
	address string       // of the developer's app; "" is the public one

	notices <-chan relay.Notice
	end     func() // unsubscribes, gives the place back

	scope  relay.EventFilter // app and endpoint
	cursor relay.EventID     // all events up to it were looked at; "" before the first one
	at     time.Time         // when that one came
	told   relay.EventID     // the last id that the reader knows

	out *eventWriter
}

// streamEvents opens a stream; run serves it.
func (s *Server) streamEvents(c *call) (any, error) {
	st := &stream{s: s, scope: relay.EventFilter{App: c.app, Endpoint: c.query.text("endpoint")}}
	var err error
	if st.filter, err = relay.ParseFilter(c.query.text("filter")); err != nil {
		return nil, relay.Errorf(relay.Invalid, "filter: %v", err)
	}
	st.bodies, _ = c.query.flag("bodies")
	st.resign, _ = c.query.flag("resign")
	st.address = c.query.text("url")
	if secret := c.r.Header.Get(headerResign); secret != "" {
		if len(secret) > maxSecret {
			return nil, relay.Errorf(relay.Invalid, "the secret in %s is too long", headerResign)
		}
		st.resign, st.secret = true, relay.Secret(secret)
	}
	if err := s.takePlace(c.who.Token); err != nil {
		return nil, err
	}
	notices, unsubscribe := s.cfg.Inbox.Subscribe(c.app)
	st.notices = notices
	st.end = func() {
		unsubscribe()
		s.givePlace(c.who.Token)
	}
	// After subscribing: nothing can fall between the two.
	if err := st.begin(c.ctx(), relay.EventID(c.r.Header.Get(headerLast))); err != nil {
		st.end()
		return nil, err
	}
	return st, nil
}

// takePlace counts a stream of token. Each holds a connection and a goroutine.
func (s *Server) takePlace(token relay.TokenID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return relay.Errorf(relay.Draining, "the relay is stopping; try again")
	}
	all := 0
	for _, n := range s.streams {
		all += n
	}
	if s.streams[token] >= maxPerToken || all >= maxStreams {
		return relay.Errorf(relay.RateLimited, "too many streams are open; at most %d for one token", maxPerToken)
	}
	s.streams[token]++
	return nil
}

func (s *Server) givePlace(token relay.TokenID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.streams[token]--; s.streams[token] == 0 {
		delete(s.streams, token)
	}
}

// begin sets the cursor: behind last, or at the newest event there is.
func (st *stream) begin(ctx context.Context, last relay.EventID) error {
	f := st.scope
	f.Limit = 1
	if last != "" {
		gone := &relay.Error{Code: relay.NotFound, Reason: reasonMissing,
			Message: "the event to resume behind is not there any more; connect without " + headerLast + ", and list what you missed"}
		if !validID(string(last)) {
			return gone
		}
		f.After = last
		if _, err := st.s.cfg.Store.Events(ctx, f); relay.CodeOf(err) == relay.NotFound {
			return gone
		} else if err != nil {
			return err
		}
		st.cursor, st.told, st.at = last, last, st.s.cfg.Now()
		return nil
	}
	newest, err := st.s.cfg.Store.Events(ctx, f)
	if err == nil && len(newest) > 0 {
		st.cursor, st.at = newest[0].Event.ID, newest[0].Event.ReceivedAt
	}
	return err
}

// run serves the stream until its reader, its token or the server ends it.
func (st *stream) run(c *call, w http.ResponseWriter) {
	defer st.end()
	ctx, cancel := context.WithCancel(c.ctx())
	defer cancel()
	defer context.AfterFunc(st.s.ctx, cancel)()
	var err error
	if st.out, err = newEventWriter(w, c.r); err == nil {
		err = st.loop(ctx, c.r)
	}
	if err != nil && ctx.Err() == nil {
		st.s.cfg.Logger.Debug("event stream ended", "request_id", c.id, "token", c.who.Token, "err", err)
	}
}

func (st *stream) loop(ctx context.Context, r *http.Request) error {
	if err := st.settle(ctx); err != nil {
		return err
	}
	beat := time.NewTicker(st.s.heartbeat)
	defer beat.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case n, open := <-st.notices:
			if !open {
				return nil // the inbox stops
			}
			if err := st.handle(ctx, st.gather(n)); err != nil {
				return err
			}
		case <-beat.C:
			if _, err := st.s.cfg.Authorize(r); err != nil {
				return err // the token has expired, or was revoked
			}
			if err := st.settle(ctx); err != nil {
				return err
			}
			if err := st.out.beat(); err != nil {
				return err
			}
		}
	}
}

// gather takes what else is waiting, so that many notices cost one query.
func (st *stream) gather(first relay.Notice) []relay.Notice {
	batch := []relay.Notice{first}
	for len(batch) < streamGather {
		select {
		case n, open := <-st.notices:
			if !open {
				return batch // the next receive finds out again
			}
			batch = append(batch, n)
		default:
			return batch
		}
	}
	return batch
}

func (st *stream) handle(ctx context.Context, batch []relay.Notice) error {
	fresh := make(map[relay.EventID]*relay.Event)
	for i := range batch {
		if n := &batch[i]; n.Kind != relay.NoticeAttempt {
			fresh[n.Event.ID] = &n.Event
		}
	}
	if len(fresh) > 0 {
		if err := st.catchUp(ctx, fresh); err != nil {
			return err
		}
	}
	for i := range batch {
		n := &batch[i]
		if st.scope.Endpoint != "" && n.Event.Endpoint != st.scope.Endpoint {
			continue
		}
		var err error
		switch {
		case n.Kind == relay.NoticeAttempt && n.Attempt != nil && n.Delivery != nil:
			err = st.attempt(ctx, n)
		case n.Kind == relay.NoticeRefused && fresh[n.Event.ID] != nil:
			err = st.unstored(ctx, n)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// unstored sends a refusal that catchUp did not find. Of many refusals not all
// are kept. Such a one is in no list, so it has no id.
func (st *stream) unstored(ctx context.Context, n *relay.Notice) error {
	_, err := st.s.cfg.Store.Event(ctx, n.Event.ID)
	if relay.CodeOf(err) == relay.NotFound {
		return st.show(&n.Event, nil, n.At, "")
	}
	return err // nil: it was sent before this notice of it came
}

// settle catches up and tells the reader where it is.
func (st *stream) settle(ctx context.Context) error {
	if err := st.catchUp(ctx, nil); err != nil {
		return err
	}
	if st.cursor == st.told {
		return nil
	}
	st.told = st.cursor
	return st.out.mark(string(st.cursor))
}

// catchUp sends every event behind the cursor. fresh has some of them whole; what
// is left in it afterwards was not there.
func (st *stream) catchUp(ctx context.Context, fresh map[relay.EventID]*relay.Event) error {
	for {
		page, more, err := st.page(ctx)
		if err != nil {
			return err
		}
		for i := range page {
			e := &page[i].Event
			if err := st.event(ctx, page[i], fresh[e.ID]); err != nil {
				return err
			}
			st.cursor, st.at = e.ID, e.ReceivedAt
			delete(fresh, e.ID)
		}
		if !more {
			return nil
		}
	}
}

// page reads the next events, oldest first.
func (st *stream) page(ctx context.Context) (page []relay.Listed, more bool, err error) {
	f := st.scope
	if st.cursor != "" {
		f.After, f.Limit = st.cursor, streamPage
		page, err = st.s.cfg.Store.Events(ctx, f)
		if relay.CodeOf(err) != relay.NotFound {
			return page, len(page) == f.Limit, err
		}
		// Nothing came for so long that retention took the event at the cursor.
		f.After, f.Since = "", st.at.Add(time.Nanosecond)
	}
	// There was nothing when the stream began: all there is now is new.
	f.Limit = maxPage
	page, err = st.s.cfg.Store.Events(ctx, f)
	slices.Reverse(page)
	return page, false, err
}

// event sends one that was received or refused. listed has no body; noticed is
// the same as a notice brought it, or nil.
func (st *stream) event(ctx context.Context, listed relay.Listed, noticed *relay.Event) error {
	e := &listed.Event
	if st.bodies || st.resign || st.filter.String() != "" {
		var err error
		if e, err = st.whole(ctx, e, noticed); err != nil || e == nil {
			return err
		}
	}
	return st.show(e, listed.Deliveries, e.ReceivedAt, e.ID)
}

// show sends what the reader may and wants to see of e.
func (st *stream) show(e *relay.Event, deliveries []relay.Delivery, at time.Time, id relay.EventID) error {
	v := st.s.sight(*e)
	// What is hidden cannot be asked for either.
	if !st.filter.Match(&v.Event) {
		return nil
	}
	n := api.Notice{Kind: string(relay.NoticeReceived), At: at.UTC()}
	if e.Refusal != "" {
		n.Kind = string(relay.NoticeRefused)
	}
	if st.bodies {
		n.Event = v.detailView(e, deliveries)
	} else {
		n.Event = v.summaryView(deliveries)
	}
	if st.resign && e.Refusal == "" {
		n.Resigned = st.signed(&v)
	}
	if id != "" {
		st.told = id
	}
	return st.out.send(n.Kind, string(id), n)
}

// whole is listed with its body; nil when it is gone meanwhile.
func (st *stream) whole(ctx context.Context, listed, noticed *relay.Event) (*relay.Event, error) {
	if listed.BodySize == 0 || listed.Body != nil {
		return listed, nil
	}
	if noticed != nil && noticed.Body != nil {
		e := *listed // the rest as every other reader gets it
		e.Body = noticed.Body
		return &e, nil
	}
	e, err := st.s.cfg.Store.Event(ctx, listed.ID)
	if relay.CodeOf(err) == relay.NotFound {
		return nil, nil
	}
	return &e, err
}

// attempt sends the end of one. It has no id: a reader that resumes does so
// behind an event.
func (st *stream) attempt(ctx context.Context, n *relay.Notice) error {
	e := &n.Event
	if st.filter.String() != "" {
		var err error
		if e, err = st.whole(ctx, e, nil); err != nil || e == nil {
			return err
		}
	}
	v := st.s.sight(*e)
	if !st.filter.Match(&v.Event) {
		return nil
	}
	delivery, attempt := deliveryView(*n.Delivery), attemptView(v.attempt(*n.Attempt), st.bodies)
	view := api.Notice{
		Kind: string(n.Kind), At: n.At.UTC(), Event: v.summaryView([]relay.Delivery{*n.Delivery}),
		Delivery: &delivery, Attempt: &attempt,
	}
	return st.out.send(view.Kind, "", view)
}

// signed are the lines that sign what the reader sees of v, sent to its app now.
func (st *stream) signed(v *seen) [][2]string {
	if v.gone || v.Body == nil && v.BodySize > 0 {
		return nil
	}
	ep, url := v.endpoint, v.PublicURL
	if st.secret != "" {
		ep.Secrets = []relay.Secret{st.secret}
	}
	if st.address != "" {
		url = v.addressAt(st.address)
	}
	fields, err := st.s.cfg.Resign(ep, v.Event, url, st.s.cfg.Now())
	if err != nil {
		st.s.cfg.Logger.Debug("event not signed anew", "event", v.ID, "endpoint", v.endpoint.Name, "err", err)
		return nil
	}
	// Where the "signature" is the secret itself, it stays here.
	own := relay.Event{Header: fields}
	if st.secret == "" && v.endpoint.MaskSecrets(&own) {
		return nil
	}
	return fieldsView(fields)
}
