package admin

import (
	"context"
	"math"
	"slices"

	"github.com/posternhq/postern/protocol/api"
	"github.com/posternhq/postern/relay"
)

// Limits of a replay.
const (
	maxReplayEvents = 1000 // that are named one by one
	maxTextEvents   = 5000 // that a text selects
	sampleSize      = 5
	minReplayRate   = 0.01 // a second
	maxReplayRate   = 10000
)

// planReplay counts what a request selects and stores it as a plan. The
// selection is fixed with it: what arrives later is not part of it.
func (s *Server) planReplay(c *call) (any, error) {
	req := c.body.(*api.ReplayRequest)
	app, err := c.pick(req.App)
	if err != nil {
		return nil, err
	}
	f, err := s.selection(c.ctx(), app, req)
	if err != nil {
		return nil, err
	}
	now := s.cfg.Now()
	plan := relay.Replay{
		ID: relay.NewReplayID(now), App: f.App, By: string(c.who.Token), CreatedAt: now,
		Filter: f, Destination: req.Destination, Rate: req.Rate, State: relay.ReplayPlanned,
	}
	if plan.Planned, err = s.cfg.Store.CountEvents(c.ctx(), f); err != nil {
		return nil, err
	}
	f.Limit = sampleSize
	sample, err := s.cfg.Store.Events(c.ctx(), f)
	if err != nil {
		return nil, err
	}
	if err := s.cfg.Store.CreateReplay(c.ctx(), plan); err != nil {
		return nil, err
	}
	view := replayView(plan)
	for _, l := range sample {
		v := s.sight(l.Event)
		view.Sample = append(view.Sample, eventView(&v.Event, l.Deliveries))
	}
	return view, nil
}

// selection checks req and is what it selects.
func (s *Server) selection(ctx context.Context, app relay.AppID, req *api.ReplayRequest) (relay.EventFilter, error) {
	criteria := req.Endpoint != "" || req.Type != "" || len(req.States) > 0 || req.Since != nil || req.Until != nil || req.Text != ""
	chosen := 0
	for _, is := range []bool{len(req.Events) > 0, criteria, req.All} {
		if is {
			chosen++
		}
	}
	switch {
	case chosen == 0:
		return relay.EventFilter{}, relay.Errorf(relay.Invalid, "say what to deliver again: events, or endpoint, type, states, since, until or text, or all")
	case chosen > 1:
		return relay.EventFilter{}, relay.Errorf(relay.Invalid, "give either events, or criteria, or all")
	case req.Rate != 0 && (math.IsNaN(req.Rate) || req.Rate < minReplayRate || req.Rate > maxReplayRate):
		return relay.EventFilter{}, relay.Errorf(relay.Invalid, "rate is deliveries a second, from %v to %v; 0 is as fast as they go", minReplayRate, maxReplayRate)
	case len(req.Events) > 0:
		return s.namedEvents(ctx, app, req)
	}
	f, err := s.criteria(app, req)
	if err != nil || f.Text == "" {
		return f, err
	}
	return s.withoutGuessing(ctx, f)
}

// namedEvents selects events by their ids. All must be there, of one app and
// accepted. A developer's app is theirs; for an administrator the events say it.
func (s *Server) namedEvents(ctx context.Context, app relay.AppID, req *api.ReplayRequest) (relay.EventFilter, error) {
	f := relay.EventFilter{App: app}
	for _, id := range req.Events {
		if !validID(id) {
			return f, relay.Errorf(relay.NotFound, "there is no event %s", quoted(id))
		}
		if !slices.Contains(f.IDs, relay.EventID(id)) {
			f.IDs = append(f.IDs, relay.EventID(id))
		}
		if len(f.IDs) > maxReplayEvents {
			return f, relay.Errorf(relay.Invalid, "at most %d events can be named; select them by criteria", maxReplayEvents)
		}
	}
	f.Limit = maxReplayEvents
	listed, err := s.cfg.Store.Events(ctx, f)
	f.Limit = 0
	if err != nil {
		return f, err
	}
	for _, id := range f.IDs {
		i := slices.IndexFunc(listed, func(l relay.Listed) bool { return l.Event.ID == id })
		if i < 0 {
			return f, relay.Errorf(relay.NotFound, "there is no event %s", quoted(string(id)))
		}
		e := listed[i].Event
		if f.App == "" {
			f.App = e.App
		}
		if e.App != f.App {
			return f, relay.Errorf(relay.Invalid, "the events are of several apps; make a replay for each")
		}
		if e.Refusal != "" {
			return f, relay.Errorf(relay.Invalid, "the event %s was refused, and what was refused is never delivered", id)
		}
		if err := s.checkDestination(e.App, e.Endpoint, req.Destination); err != nil {
			return f, err
		}
	}
	accepted(&f)
	return f, nil
}

// criteria selects events by what they are.
func (s *Server) criteria(app relay.AppID, req *api.ReplayRequest) (relay.EventFilter, error) {
	f := relay.EventFilter{App: app, Endpoint: req.Endpoint, Type: req.Type, Text: req.Text, Until: s.cfg.Now()}
	if app == "" {
		return f, relay.Errorf(relay.Invalid, "say which app: a replay is one app's")
	}
	for _, text := range []string{req.Endpoint, req.Type, req.Text} {
		if len(text) > maxText {
			return f, relay.Errorf(relay.Invalid, "endpoint, type and text have at most %d bytes", maxText)
		}
	}
	var err error
	if f.States, err = states(req.States); err != nil {
		return f, err
	}
	if len(f.States) > 0 {
		f.Destination = &req.Destination // what went well there is not to go there again
	}
	if req.Since != nil {
		f.Since = *req.Since
	}
	if req.Until != nil && req.Until.Before(f.Until) {
		f.Until = *req.Until // one in the future would leave the plan open
	}
	if err := checkSpan(f.Since, f.Until); err != nil {
		return f, err
	}
	if req.Endpoint == "" && req.Destination != "" {
		return f, relay.Errorf(relay.Invalid, "a destination is one endpoint's: say which endpoint")
	}
	if req.Endpoint != "" {
		if err := s.checkDestination(app, req.Endpoint, req.Destination); err != nil {
			return f, err
		}
	}
	accepted(&f)
	return f, nil
}

func (s *Server) checkDestination(app relay.AppID, endpoint, destination string) error {
	ep, ok := s.cfg.Endpoint(app, endpoint)
	if !ok {
		return relay.Errorf(relay.Invalid, "the app %s has no endpoint %s in the manifest, so nothing can be delivered", string(app), quoted(endpoint))
	}
	if _, ok := ep.Destination(destination); !ok {
		return relay.Errorf(relay.Invalid, "the endpoint %s has no destination %s", endpoint, quoted(destination))
	}
	return nil
}

// accepted leaves out what was refused: a replay must not be a way around
// verification.
func accepted(f *relay.EventFilter) { f.Refused = new(bool) }

// noEvent is the id of none.
const noEvent = "none"

// withoutGuessing turns a text into the events in which people see it. The count
// of a plan would else answer for what is hidden. An endpoint that hides nothing
// needs none of it.
func (s *Server) withoutGuessing(ctx context.Context, f relay.EventFilter) (relay.EventFilter, error) {
	if ep, ok := s.cfg.Endpoint(f.App, f.Endpoint); ok && ep.Redact.Empty() && len(ep.Secrets) == 0 {
		return f, nil
	}
	listed, next, err := s.findEvents(ctx, f, maxTextEvents)
	if err != nil {
		return f, err
	}
	if next != "" {
		return f, relay.Errorf(relay.Invalid, "too many events have the text, %d so far; narrow the selection, by time for example", len(listed))
	}
	f.Text, f.IDs = "", nil
	for _, l := range listed {
		f.IDs = append(f.IDs, l.Event.ID)
	}
	if len(f.IDs) == 0 {
		f.IDs = []relay.EventID{noEvent} // without ids, the filter would select everything
	}
	return f, nil
}

func (s *Server) listReplays(c *call) (any, error) {
	replays, err := s.cfg.Store.Replays(c.ctx(), c.app)
	if err != nil {
		return nil, err
	}
	list := api.ReplayList{Replays: make([]api.Replay, len(replays))}
	for i, r := range replays {
		list.Replays[i] = replayView(r)
	}
	return list, nil
}

// replay gets the one that the path names, if the token reaches it.
func (s *Server) replay(c *call) (relay.Replay, error) {
	missing := relay.Errorf(relay.NotFound, "there is no replay %s", quoted(c.path()))
	if !validID(c.path()) {
		return relay.Replay{}, missing
	}
	r, err := s.cfg.Store.Replay(c.ctx(), relay.ReplayID(c.path()))
	if relay.CodeOf(err) == relay.NotFound || err == nil && !c.may(r.App) {
		return relay.Replay{}, missing
	}
	return r, err
}

func (s *Server) showReplay(c *call) (any, error) {
	r, err := s.replay(c)
	if err != nil {
		return nil, err
	}
	return replayView(r), nil
}

func (s *Server) startReplay(c *call) (any, error) {
	return s.changeReplay(c, s.cfg.Inbox.StartReplay)
}

func (s *Server) cancelReplay(c *call) (any, error) {
	return s.changeReplay(c, s.cfg.Inbox.CancelReplay)
}

func (s *Server) changeReplay(c *call, change func(context.Context, relay.ReplayID) (relay.Replay, error)) (any, error) {
	r, err := s.replay(c)
	if err != nil {
		return nil, err
	}
	if r, err = change(c.ctx(), r.ID); err != nil {
		return nil, err
	}
	return replayView(r), nil
}
