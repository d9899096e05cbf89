package main

import (
	"html/template"
	"io"
	"log"
	"net/http"
	"slices"
	"sync"
	"time"
)

// shop is the app: it remembers the latest webhooks and shows them.
type shop struct {
	stripeSecret string // "whsec_…", from Stripe's dashboard
	githubSecret string // as typed in at GitHub
	ratesURL     string // of somebody else's server; "" for none

	mu     sync.Mutex
	seen   map[string]bool // guarded by mu; keys of the events that were handled
	latest []received      // guarded by mu; newest first, at most keep
}

// received is a webhook that was handled.
type received struct {
	From, Type, ID string
	At             time.Time
}

const (
	keep    = 20      // webhooks on the page
	maxBody = 1 << 20 // of a webhook, bytes
)

func (s *shop) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.page)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok\n") })
	mux.HandleFunc("POST /webhooks/stripe", s.webhook("stripe", s.verifyStripe))
	mux.HandleFunc("POST /webhooks/github", s.webhook("github", s.verifyGitHub))
	mux.HandleFunc("GET /rates", s.rates)
	return mux
}

// verifier checks a webhook's signature and reads its id and type.
type verifier func(r *http.Request, body []byte) (id, kind string, err error)

// webhook answers 2xx only when the event was handled: anything else makes the
// sender, or Postern, try again.
func (s *shop) webhook(from string, verify verifier) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if err != nil {
			http.Error(w, "the body is too long or broke off", http.StatusBadRequest)
			return
		}
		id, kind, err := verify(r, body)
		if err != nil {
			log.Printf("webhook refused from=%s reason=%q", from, err)
			http.Error(w, err.Error(), http.StatusUnauthorized)
			return
		}
		if s.handle(eventKey(r, from, id), received{From: from, Type: kind, ID: id, At: time.Now()}) {
			log.Printf("webhook handled from=%s id=%s type=%s", from, id, kind)
		} else {
			log.Printf("webhook known already from=%s id=%s", from, id)
		}
		w.WriteHeader(http.StatusNoContent)
	}
}

// eventKey is the same for every delivery of one event.
func eventKey(r *http.Request, from, id string) string {
	if key := r.Header.Get("Idempotency-Key"); key != "" {
		id = key
	}
	return from + "/" + id
}

// handle does what an event asks for, once: webhooks come at least once, and
// sometimes twice. A real app keeps the keys in its database, in the transaction
// that does the work.
func (s *shop) handle(key string, e received) (first bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen[key] {
		return false
	}
	if s.seen == nil {
		s.seen = map[string]bool{}
	}
	s.seen[key] = true
	s.latest = slices.Insert(s.latest, 0, e)
	s.latest = s.latest[:min(len(s.latest), keep)]
	return true
}

func (s *shop) page(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	latest := slices.Clone(s.latest)
	s.mu.Unlock()
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	err := page.Execute(w, map[string]any{"Host": r.Host, "Latest": latest})
	if err != nil {
		log.Println("page not written:", err)
	}
}

var page = template.Must(template.New("page").Parse(`<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Shop</title>
<style>body { font: 1rem/1.6 system-ui, sans-serif; max-width: 40rem; margin: 4rem auto; padding: 0 1rem }
td { padding-right: 1.5rem }</style>
<h1>Shop</h1>
<p>You reached this app as {{.Host}}.</p>
<h2>Webhooks</h2>
{{if .Latest}}<table>{{range .Latest}}
<tr><td>{{.At.Format "15:04:05"}}<td>{{.From}}<td>{{.Type}}<td>{{.ID}}{{end}}
</table>{{else}}<p>None yet.</p>{{end}}
</html>
`))
