package node

import (
	"encoding/json"
	"net/http"
	"net/http/pprof"
	"sync/atomic"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/relay"
	"github.com/posternhq/postern/relay/admin"
	"github.com/posternhq/postern/relay/ingress"
	"github.com/posternhq/postern/web"
)

// health is what /healthz and /readyz say.
type health struct{ ready atomic.Bool }

func (h *health) alive(w http.ResponseWriter, _ *http.Request) {
	writeStatus(w, http.StatusOK, "ok")
}

func (h *health) readiness(w http.ResponseWriter, _ *http.Request) {
	if !h.ready.Load() {
		writeStatus(w, http.StatusServiceUnavailable, "draining")
		return
	}
	writeStatus(w, http.StatusOK, "ready")
}

func writeStatus(w http.ResponseWriter, status int, word string) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]string{"status": word})
}

// ownRoutes are the relay's paths under its own host, besides the webhooks.
func ownRoutes(h *health, tunnels, api http.Handler, feed http.HandlerFunc) http.Handler {
	r := chi.NewRouter()
	r.Use(middleware.GetHead) // uptime checks ask with HEAD
	r.Get("/healthz", h.alive)
	r.Get("/readyz", h.readiness)
	r.Handle(protocol.TunnelPath, tunnels)
	r.Handle(admin.Prefix+"/*", api)
	r.Get(feedPath, feed)
	r.Get("/", web.Index)
	r.NotFound(func(w http.ResponseWriter, r *http.Request) {
		relay.WriteError(w, ingress.RequestID(r), relay.Errorf(relay.NotFound, "the relay has nothing at %s", r.URL.Path))
	})
	r.MethodNotAllowed(func(w http.ResponseWriter, r *http.Request) {
		relay.WriteError(w, ingress.RequestID(r), relay.Errorf(relay.BadMethod, "%s is not taken here", r.Method))
	})
	return r
}

// adminRoutes are for operators, on a listener of their own.
func adminRoutes(h *health, metrics http.HandlerFunc) http.Handler {
	r := chi.NewRouter()
	r.Get("/healthz", h.alive)
	r.Get("/readyz", h.readiness)
	r.Get("/metrics", metrics)
	r.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	r.HandleFunc("/debug/pprof/profile", pprof.Profile)
	r.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	r.HandleFunc("/debug/pprof/trace", pprof.Trace)
	r.HandleFunc("/debug/pprof/*", pprof.Index)
	return r
}
