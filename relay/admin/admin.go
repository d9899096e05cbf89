package admin

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/relay"
)

// Prefix is in front of every path of the API.
const Prefix = "/api/v1"

// Inbox is what the API asks of the inbox. An error with a code is for the
// caller, any other means that the store does not answer.
type Inbox interface {
	// Subscribe gives the notices of one app, or of all for "". The channel is
	// bounded: what a slow reader does not take is lost. The function ends it.
	Subscribe(app relay.AppID) (<-chan relay.Notice, func())
	StartReplay(ctx context.Context, id relay.ReplayID) (relay.Replay, error)
	CancelReplay(ctx context.Context, id relay.ReplayID) (relay.Replay, error)
	Requeue(ctx context.Context, id relay.DeliveryID) (relay.Delivery, error)
	CancelDelivery(ctx context.Context, id relay.DeliveryID) (relay.Delivery, error)
}

// Store is what the API asks of the store.
type Store interface {
	relay.EventStore
	relay.LastWordsStore
}

// Agents are the instances of apps that are connected now. An error with a code
// is for the caller.
type Agents interface {
	// Instances lists those of one app, or of all for "", with what they report.
	Instances(app relay.AppID) []relay.Instance
	// OpenInstance starts a stream to one of them and waits until its agent has
	// accepted it.
	OpenInstance(ctx context.Context, app relay.AppID, instance, bootID string, o protocol.Open) (net.Conn, error)
}

// Config is what a Server needs. Store, Inbox, Endpoint and Authorize are
// required.
type Config struct {
	Store Store
	Inbox Inbox
	// Agents may be nil: then none is connected.
	Agents Agents
	// Policies and Calls may be nil: then their routes answer 404.
	Policies Policies
	Calls    Calls
	// Known reports whether there is, or was, such an app. Default: every one is.
	Known func(context.Context, relay.AppID) (bool, error)
	// Endpoint finds an endpoint in the manifest as it is now.
	Endpoint func(app relay.AppID, name string) (relay.Endpoint, bool)
	// Resign signs an event anew, as if it were sent at now to url; the lines
	// replace those of the same names. Default changes nothing.
	Resign func(ep relay.Endpoint, e relay.Event, url string, now time.Time) ([]relay.Field, error)

	// Authorize checks the request's token. Its *relay.Error is the answer.
	Authorize func(*http.Request) (relay.Principal, error)
	// Admit may refuse a request of a principal that asks too often. Default: none.
	Admit func(relay.Principal) error
	// RequestID is the id that a request has already. Default: a new one.
	RequestID func(*http.Request) string

	Now    func() time.Time // default time.Now
	Logger *slog.Logger     // default discards
}

func (c Config) withDefaults() Config {
	if c.Store == nil || c.Inbox == nil || c.Endpoint == nil || c.Authorize == nil {
		panic("admin: Config lacks a required field")
	}
	if c.Agents == nil {
		c.Agents = noAgents{}
	}
	if c.Known == nil {
		c.Known = func(context.Context, relay.AppID) (bool, error) { return true, nil }
	}
	if c.Resign == nil {
		c.Resign = func(relay.Endpoint, relay.Event, string, time.Time) ([]relay.Field, error) { return nil, nil }
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.RequestID == nil {
		c.RequestID = func(*http.Request) string { return "" }
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// noAgents are the agents of a relay that has none.
type noAgents struct{}

func (noAgents) Instances(relay.AppID) []relay.Instance { return nil }

func (noAgents) OpenInstance(context.Context, relay.AppID, string, string, protocol.Open) (net.Conn, error) {
	return nil, relay.Errorf(relay.NoAgent, "no agent is connected")
}

// Server is the API's http.Handler. It sees whole paths, so it is mounted at
// Prefix without taking that off.
type Server struct {
	cfg       Config
	mux       http.Handler
	heartbeat time.Duration // of streams; tests shorten it

	ctx   context.Context // ends with Close; streams end with it
	close context.CancelFunc

	mu      sync.Mutex
	streams map[relay.TokenID]int // open ones; guarded by mu
}

// New makes a Server and starts nothing. It panics when a required field of cfg
// is missing.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg.withDefaults(), heartbeat: heartbeat, streams: make(map[relay.TokenID]int)}
	s.ctx, s.close = context.WithCancel(context.Background())
	s.mux = s.newMux(routes)
	return s
}

// Close ends all streams, and every later one at its start. http.Server.Shutdown
// waits for requests and ends none, so it takes this one along:
//
//	public.RegisterOnShutdown(api.Close)
func (s *Server) Close() { s.close() }
