package admin

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/api"
	"github.com/posternhq/postern/protocol/policy"
	"github.com/posternhq/postern/relay"
)

// Policies is what the API asks of the policies in force. by says who asks: the
// token's id and scope. An error with a code is for the caller, one with
// relay.ManifestErrors in its chain is about the text, any other means that the
// store does not answer.
type Policies interface {
	Apply(ctx context.Context, by string, req api.ManifestRequest) (api.ManifestVersion, error)
	Diff(ctx context.Context, req api.ManifestRequest) (api.ManifestDiff, error)
	Rollback(ctx context.Context, by string, req api.RollbackRequest) (api.ManifestVersion, error)
	Promote(ctx context.Context, by string) (api.ManifestVersion, error)
	// Running and Version have the source; NotFound when there is none.
	Running(ctx context.Context) (api.ManifestVersion, error)
	Version(ctx context.Context, number int64) (api.ManifestVersion, error)
	// Versions lists the newest, newest first, without source.
	Versions(ctx context.Context, limit int) (api.ManifestList, error)

	Order(ctx context.Context, by string, req api.OrderRequest) (api.Order, error)
	EndOrder(ctx context.Context, by, id string) (api.Order, error)
	// Orders lists those in force, or the newest besides, of all apps.
	Orders(ctx context.Context, all bool) (api.OrderList, error)

	Learn(ctx context.Context, app relay.AppID, since time.Time) (api.Learned, error)
	// Status has everything but the counts of calls; "" is all apps.
	Status(app relay.AppID) api.EgressStatus
	Audit(ctx context.Context, app relay.AppID, limit int) (api.AuditList, error)
}

// Calls is what the API asks of the calls themselves. App "" is all apps.
type Calls interface {
	Explain(ctx context.Context, app relay.AppID, instance, url, method string) (api.Explanation, error)
	// Recent lists the latest, newest first; "" selects everything.
	Recent(app, target, verdict string, limit int) []protocol.Flow
	// Watch gives what is logged from now on, until ctx ends. What a slow reader does
	// not take is lost.
	Watch(ctx context.Context, app relay.AppID) <-chan protocol.Flow
	Targets(ctx context.Context, app relay.AppID) (api.TargetList, error)
	Usage(ctx context.Context, app relay.AppID, since time.Time) (api.UsageList, error)
	// Counts has started = logged + inFlight at every moment.
	Counts() (started, logged, inFlight int64)
}

// Limits of what is asked about calls.
const (
	defaultList = 100
	maxFlows    = 1000
	maxSpanMS   = 366 * 24 * 60 * 60 * 1000

	usageSpan = 24 * time.Hour
	learnSpan = 7 * 24 * time.Hour
)

func (s *Server) policies() (Policies, error) {
	if s.cfg.Policies == nil {
		return nil, relay.Errorf(relay.NotFound, "this relay keeps no policies for calls to the outside")
	}
	return s.cfg.Policies, nil
}

// calls is who knows the calls of the app that c asks for.
func (s *Server) calls(c *call) (Calls, error) {
	if s.cfg.Calls == nil {
		return nil, relay.Errorf(relay.NotFound, "this relay makes no calls to the outside")
	}
	return s.cfg.Calls, s.knows(c.ctx(), c.app)
}

// oneApp refuses a call that is about all apps.
func oneApp(c *call) error {
	if c.app == "" {
		return relay.Errorf(relay.Invalid, "whose calls? Name the app")
	}
	return nil
}

func (s *Server) explainCall(c *call) (any, error) {
	calls, err := s.calls(c)
	if err = cmp.Or(err, oneApp(c)); err != nil {
		return nil, err
	}
	e, err := calls.Explain(c.ctx(), c.app, c.query.text(paramInstance.name), c.query.text("url"), c.query.text("method"))
	var unread *policy.TargetError
	if errors.As(err, &unread) && relay.CodeOf(err) == "" {
		return nil, relay.Errorf(relay.Invalid, "url: %s", unread.Reason)
	}
	return shown(e, err)
}

func (s *Server) listFlows(c *call) (any, error) {
	calls, err := s.calls(c)
	if err != nil {
		return nil, err
	}
	list := api.FlowList{Flows: []protocol.Flow{}}
	for _, f := range calls.Recent(string(c.app), c.query.text("target"), c.query.text("verdict"), c.query.number("limit", defaultList)) {
		list.Flows = append(list.Flows, flowView(f))
	}
	return list, nil
}

// flowView is f as JSON can have it.
func flowView(f protocol.Flow) protocol.Flow {
	f.StartedAt = jsonTime(f.StartedAt)
	return f
}

func (s *Server) listTargets(c *call) (any, error) {
	calls, err := s.calls(c)
	if err != nil {
		return nil, err
	}
	list, err := calls.Targets(c.ctx(), c.app)
	list.Targets = append([]api.Target{}, list.Targets...) // never null
	return shown(list, err)
}

func (s *Server) listCallUsage(c *call) (any, error) {
	calls, err := s.calls(c)
	if err != nil {
		return nil, err
	}
	since, err := s.since(c, usageSpan)
	if err != nil {
		return nil, err
	}
	list, err := calls.Usage(c.ctx(), c.app, since)
	list.Usage = append([]api.Usage{}, list.Usage...) // never null
	return shown(list, err)
}

// since is the parameter of that name; default: so long ago.
func (s *Server) since(c *call, span time.Duration) (time.Time, error) {
	now := s.cfg.Now().UTC()
	since := c.query.time("since")
	if since.IsZero() {
		return now.Add(-span), nil
	}
	if since.After(now) {
		return since, relay.Errorf(relay.Invalid, "since is in the future")
	}
	return since, nil
}

func (s *Server) learnRules(c *call) (any, error) {
	p, err := s.policies()
	if err = cmp.Or(err, oneApp(c)); err == nil {
		err = s.knows(c.ctx(), c.app)
	}
	if err != nil {
		return nil, err
	}
	since, err := s.since(c, learnSpan)
	if err != nil {
		return nil, err
	}
	l, err := p.Learn(c.ctx(), c.app, since)
	l.Rules = append([]api.LearnedRule{}, l.Rules...) // never null
	return shown(l, err)
}

// egressStatus has the counts of calls for those who see the whole relay: nobody
// counts them by app.
func (s *Server) egressStatus(c *call) (any, error) {
	p, err := s.policies()
	if err == nil {
		err = s.knows(c.ctx(), c.app)
	}
	if err != nil {
		return nil, err
	}
	status := p.Status(c.app)
	status.Started, status.Logged, status.InFlight = 0, 0, 0
	if s.cfg.Calls != nil && c.home() == "" {
		status.Started, status.Logged, status.InFlight = s.cfg.Calls.Counts()
	}
	status.Agents = append([]api.EgressAgent{}, status.Agents...) // never null
	return status, nil
}

// flowStream is one reader of calls as they are logged. Its goroutine is the
// request's.
type flowStream struct {
	s   *Server
	app relay.AppID
	out *eventWriter
}

// streamFlows opens a stream of calls; run serves it.
func (s *Server) streamFlows(c *call) (any, error) {
	if _, err := s.calls(c); err != nil {
		return nil, err
	}
	if err := s.takePlace(c.who.Token); err != nil {
		return nil, err
	}
	return &flowStream{s: s, app: c.app}, nil
}

// run serves the stream until its reader, its token or the server ends it.
func (st *flowStream) run(c *call, w http.ResponseWriter) {
	defer st.s.givePlace(c.who.Token)
	ctx, cancel := context.WithCancel(c.ctx())
	defer cancel()
	defer context.AfterFunc(st.s.ctx, cancel)()
	flows := st.s.cfg.Calls.Watch(ctx, st.app) // before the head: who has that misses nothing
	var err error
	if st.out, err = newEventWriter(w, c.r); err == nil {
		err = st.loop(ctx, c.r, flows)
	}
	if err != nil && ctx.Err() == nil {
		st.s.cfg.Logger.Debug("flow stream ended", "request_id", c.id, "token", c.who.Token, "err", err)
	}
}

func (st *flowStream) loop(ctx context.Context, r *http.Request, flows <-chan protocol.Flow) error {
	beat := time.NewTicker(st.s.heartbeat)
	defer beat.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case f, open := <-flows:
			if !open {
				return nil // the relay stops
			}
			if err := st.out.send(api.FlowEvent, "", flowView(f)); err != nil {
				return err
			}
		case <-beat.C:
			if _, err := st.s.cfg.Authorize(r); err != nil {
				return err // the token has expired, or was revoked
			}
			if err := st.out.beat(); err != nil {
				return err
			}
		}
	}
}
