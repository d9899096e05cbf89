package e2e

import (
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/posternhq/postern/e2e/rig"
)

// sleeper is a platform that stops an app nobody visits, and starts it when
// somebody does: the visitor waits meanwhile, as at Heroku's and Render's routers.
type sleeper struct {
	t      *testing.T
	relay  *rig.Relay
	app    rig.Command
	visits atomic.Int32
	secret atomic.Bool // a visitor had an Authorization or a cookie

	mu    sync.Mutex
	agent *rig.Agent // guarded by mu; nil while it sleeps
}

func (s *sleeper) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.visits.Add(1)
	if len(r.Header["Authorization"])+len(r.Header["Cookie"]) > 0 {
		s.secret.Store(true)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.agent == nil {
		s.agent = s.relay.StartRun(s.app, rig.AgentConfig{Instance: "web.1"})
	}
	io.WriteString(w, "good morning")
}

// sleep stops the app as its platform does.
func (s *sleeper) sleep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.agent.Stop()
	s.agent = nil
}

func TestASleepingAppIsWokenForAWebhookAndForARequest(t *testing.T) {
	t.Parallel()
	app := newCollector()
	s := &sleeper{t: t, app: rig.AppCommand(t, rig.Serve(t, app))}
	public := rig.Serve(t, s)
	s.relay = rig.StartRelay(t, rig.RelayConfig{
		Manifest: fmt.Sprintf(`version: 1
apps:
  shop:
    public_url: http://%s/healthz
    endpoints:
      github: {provider: github, secrets: [{env: GITHUB_SECRET}]}
  other: {}
`, public),
		Env: []string{"GITHUB_SECRET=" + githubSecret},
	})
	r := s.relay

	// Three webhooks for an app that has never run: one visit, all delivered.
	for n := range 3 {
		resp, body := post(t, r.Client(), r.HookURL("shop", "github"), signGitHub(fmt.Sprintf("7b0d6d60-000%d", n)))
		wantAccepted(t, resp, body)
	}
	for range 3 {
		app.next(t)
	}
	if n := s.visits.Load(); n != 1 {
		t.Errorf("%d visits for three webhooks, want 1", n)
	}

	// A request comes when it sleeps again, and waits for it.
	s.sleep()
	resp, err := r.Client().Get(r.AppURL("shop", "/cart"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if got := app.next(t); resp.StatusCode != http.StatusOK || got.target != "/cart" {
		t.Errorf("a request to a sleeping app: %s, arrived as %s", resp.Status, got.target)
	}
	if n := s.visits.Load(); n != 2 || s.secret.Load() {
		t.Errorf("%d visits, with secrets: %v; want 2 and none", n, s.secret.Load())
	}
}
