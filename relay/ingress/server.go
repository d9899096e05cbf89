// Package ingress is the relay's public door: it takes every request from
// outside, finds out whose it is, and has it answered.
//
//	Server.ServeHTTP     who sent it (trusted proxies), which Host, request id
//	  Host of an app     → access (ranges, password) → proxy → the app's tunnel
//	  our own Host       → /hooks/<app>/<endpoint> → webhook → the inbox or the app
//	                     → everything else: Config.Own
//	  unknown app        → 404
//
// It keeps no record and knows no agent: events go to the inbox, bytes to the
// transport, both handed in.
//
// The one rule to know: nothing a client sends is believed before sanitize has
// run. Postern-* headers are ours alone, and X-Forwarded-* count only when they
// come from a listed proxy.
package ingress

import (
	"cmp"
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/relay"
)

// Directory knows the apps and their endpoints. Its methods are called for every
// request, from many goroutines.
type Directory interface {
	// App finds a known app by id, ByHost one of its own hosts.
	App(relay.AppID) (relay.App, bool)
	AppByHost(host string) (relay.App, bool)
	Endpoint(app relay.AppID, name string) (relay.Endpoint, bool)
}

// Inbox takes webhooks; see relay/inbox for what the methods promise.
type Inbox interface {
	Receive(context.Context, relay.Endpoint, relay.Incoming) (relay.Receipt, *relay.Answer, error)
	Check(context.Context, relay.Endpoint, relay.Incoming) (relay.Verdict, error)
	Draft(relay.Endpoint, relay.Incoming, relay.Verdict) relay.Lease
	Request(context.Context, relay.Endpoint, relay.Lease) (*http.Request, error)
	RecordSync(context.Context, relay.Lease, relay.Attempt) (relay.Receipt, error)
	Admit(ctx context.Context, ep relay.Endpoint, size int64) error
	Withheld(ep relay.Endpoint, status int) bool
}

// Config is what a Server needs. Directory, Inbox, Apps, Own and PublicURL are
// required.
type Config struct {
	Directory Directory
	Inbox     Inbox
	Apps      http.RoundTripper // the app's id is the host of the URL
	Own       http.Handler      // our own paths besides the webhooks
	// Facts are those of a webhook provider; default knows none.
	Facts func(provider string) relay.ProviderFacts

	// Operator reports whether token is one whose holder may see the inside of app;
	// Findings are what the port doctor says of it. Default: nobody.
	Operator func(ctx context.Context, token string, app relay.AppID) bool
	Findings func(app relay.AppID) []protocol.Finding

	PublicURL      *url.URL
	AppsDomain     string         // apps are at <app>.<AppsDomain>
	TrustedProxies []netip.Prefix // whose X-Forwarded-* count
	// Idle is how long a client may neither take nor give a byte while one is
	// due. Default 5 min.
	Idle   time.Duration
	Logger *slog.Logger // default: discard
}

// Server is the public http.Handler.
type Server struct {
	cfg   Config
	own   http.Handler
	proxy http.Handler
	log   *slog.Logger
}

// New makes a Server.
func New(cfg Config) *Server {
	cfg.Idle = cmp.Or(cfg.Idle, 5*time.Minute)
	if cfg.Facts == nil {
		cfg.Facts = func(string) relay.ProviderFacts { return relay.ProviderFacts{} }
	}
	if cfg.Operator == nil || cfg.Findings == nil {
		cfg.Operator = func(context.Context, string, relay.AppID) bool { return false }
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, log: cfg.Logger}
	s.proxy = s.newProxy()
	own := chi.NewRouter()
	own.HandleFunc("/hooks/{app}/{endpoint}", s.serveWebhook)
	own.HandleFunc("/hooks/{app}/{endpoint}/*", s.serveWebhook)
	own.NotFound(cfg.Own.ServeHTTP)
	own.MethodNotAllowed(cfg.Own.ServeHTTP)
	s.own = own
	return s
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if len(r.TransferEncoding) > 0 {
		// A chunked request may have had a Content-Length too; net/http drops it
		// unseen. What reads the length in front of us sees the next request begin
		// elsewhere, so there is none on this connection (RFC 9112, section 6.1).
		w.Header().Set("Connection", "close")
	}
	app, owner := s.route(r.Host)
	c := s.sanitize(r, owner == ownHost && strings.HasPrefix(r.URL.Path, "/api/"))
	r = r.WithContext(context.WithValue(r.Context(), callKey{}, c))
	if r.Method == http.MethodConnect {
		// A proxy's business (RFC 9110, section 9.3.6); what follows is no HTTP.
		w.Header().Set("Connection", "close")
		relay.WriteError(w, c.id, relay.Errorf(relay.BadMethod, "CONNECT is not taken here"))
		return
	}
	switch owner {
	case ownHost:
		s.own.ServeHTTP(w, r)
	case appHost:
		c.app = app
		if err := s.checkAccess(r, c); err != nil {
			refuseAccess(w, c, err)
			return
		}
		s.proxy.ServeHTTP(w, r)
	default:
		relay.WriteError(w, c.id, relay.Errorf(relay.NotFound, "there is no app at %s", r.Host))
	}
}

// call is what is known of one request besides net/http's view.
type call struct {
	id        string
	received  time.Time
	remote    netip.Addr // the client, behind trusted proxies; zero when it cannot be read
	forwarded string     // X-Forwarded-For for the app
	proto     string     // "http" or "https", as the client spoke it
	operator  string     // the Postern-Authorization header, as it came
	app       relay.App  // of an app's host; zero otherwise
}

type callKey struct{}

// callOf is the call of a request that came through ServeHTTP.
func callOf(r *http.Request) *call { return r.Context().Value(callKey{}).(*call) }

// RequestID is the id that ServeHTTP gave r, "" when it did not come through it.
func RequestID(r *http.Request) string {
	if c, ok := r.Context().Value(callKey{}).(*call); ok {
		return c.id
	}
	return ""
}

type connKey struct{}

// ConnContext keeps the client's connection in reach, so that a cut answer can be
// told from an end; it goes into http.Server.ConnContext.
func ConnContext(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, conn)
}

// sanitize strips what only we may say and finds out who the client is. api says
// that the request is for our own API.
func (s *Server) sanitize(r *http.Request, api bool) *call {
	now := time.Now()
	c := &call{id: relay.NewRequestID(now), received: now, proto: "http"}
	if r.TLS != nil {
		c.proto = "https"
	}
	c.operator = r.Header.Get(protocol.HeaderAuthorization)
	secret := r.Header[protocol.HeaderResignSecret]
	stripOwn(r.Header)
	if api && secret != nil {
		r.Header[protocol.HeaderResignSecret] = secret
	}
	peer, _ := netip.ParseAddrPort(r.RemoteAddr)
	c.remote = peer.Addr().Unmap()
	c.forwarded = c.remote.String()
	if s.trusted(c.remote) {
		s.believe(r, c)
	}
	return c
}

// stripOwn removes what only we may say: every header that begins with Postern-,
// and the other spellings of the forwarding headers that rewrite sets. CGI and
// its heirs give an app "_" and "-" as the same character, so that
// Postern_Verified would pass for Postern-Verified.
func stripOwn(h http.Header) {
	for name := range h {
		spelled := strings.ToLower(strings.ReplaceAll(name, "_", "-"))
		ours := strings.HasPrefix(spelled, strings.ToLower(protocol.HeaderPrefix))
		if ours || strings.HasPrefix(spelled, "x-forwarded-") && strings.Contains(name, "_") {
			delete(h, name)
		}
	}
}
