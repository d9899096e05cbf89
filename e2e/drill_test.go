package e2e

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/posternhq/postern/e2e/rig"
)

// drill is how one platform replaces a copy of an app by the next.
type drill struct {
	name     string
	old, new []string // the environment of the two copies
	instance string   // what both are called; "" where the host's name is taken
	// eager stops the old copy when the new one is started, not when it is up.
	eager bool
	stop  syscall.Signal
	// all sends the signal to every process, three times.
	all   bool
	grace time.Duration // until everything is killed
}

// drills are the platforms, as their documents say.
var drills = []drill{
	{name: "heroku", eager: true, stop: syscall.SIGTERM, all: true, grace: 30 * time.Second, instance: "web.1",
		old: []string{"DYNO=web.1", "HEROKU_APP_NAME=shop", "HEROKU_RELEASE_VERSION=v1"},
		new: []string{"DYNO=web.1", "HEROKU_APP_NAME=shop", "HEROKU_RELEASE_VERSION=v2"}},
	{name: "render", stop: syscall.SIGTERM, grace: 30 * time.Second,
		old: []string{"RENDER=true", "RENDER_SERVICE_NAME=shop", "RENDER_SERVICE_TYPE=web", "RENDER_INSTANCE_ID=srv-1-old"},
		new: []string{"RENDER=true", "RENDER_SERVICE_NAME=shop", "RENDER_SERVICE_TYPE=web", "RENDER_INSTANCE_ID=srv-1-new"}},
	{name: "fly", stop: syscall.SIGINT, grace: 5 * time.Second,
		old: []string{"FLY_APP_NAME=shop", "FLY_MACHINE_ID=148e21ea7e1089", "FLY_PROCESS_GROUP=app", "FLY_REGION=ams"},
		new: []string{"FLY_APP_NAME=shop", "FLY_MACHINE_ID=9185340f4d3383", "FLY_PROCESS_GROUP=app", "FLY_REGION=ams"}},
	{name: "railway", stop: syscall.SIGTERM, grace: 0,
		old: []string{"RAILWAY_SERVICE_ID=s", "RAILWAY_SERVICE_NAME=shop", "RAILWAY_REPLICA_ID=r-old", "RAILWAY_DEPLOYMENT_ID=d1"},
		new: []string{"RAILWAY_SERVICE_ID=s", "RAILWAY_SERVICE_NAME=shop", "RAILWAY_REPLICA_ID=r-new", "RAILWAY_DEPLOYMENT_ID=d2"}},
	{name: "cloudrun", stop: syscall.SIGTERM, grace: 10 * time.Second,
		old: []string{"K_SERVICE=shop", "K_REVISION=shop-00001-abc", "K_CONFIGURATION=shop"},
		new: []string{"K_SERVICE=shop", "K_REVISION=shop-00002-def", "K_CONFIGURATION=shop"}},
	{name: "cf", stop: syscall.SIGTERM, grace: 10 * time.Second, instance: "web.0",
		old: []string{`VCAP_APPLICATION={"application_name":"shop","process_type":"web","application_version":"v1"}`, "CF_INSTANCE_INDEX=0"},
		new: []string{`VCAP_APPLICATION={"application_name":"shop","process_type":"web","application_version":"v2"}`, "CF_INSTANCE_INDEX=0"}},
	{name: "azure", stop: syscall.SIGTERM, grace: 5 * time.Second,
		old: []string{"WEBSITE_SITE_NAME=shop", "WEBSITE_INSTANCE_ID=a1-old", "WEBSITE_ROLE_INSTANCE_ID=0"},
		new: []string{"WEBSITE_SITE_NAME=shop", "WEBSITE_INSTANCE_ID=a1-new", "WEBSITE_ROLE_INSTANCE_ID=0"}},
	{name: "dokku", stop: syscall.SIGTERM, grace: 30 * time.Second, instance: "web.1",
		old: []string{"DYNO=web.1", "DOKKU_APP_TYPE=herokuish", "GIT_REV=1111111"},
		new: []string{"DYNO=web.1", "DOKKU_APP_TYPE=herokuish", "GIT_REV=2222222"}},
}

// drillManifest stores webhooks before they are delivered, and tries again soon.
const drillManifest = `
version: 1
apps:
  shop:
    endpoints:
      orders:
        provider: none
        mode: store
        retry: {schedule: [200ms, 500ms, 1s, 2s, 4s, 8s]}
      quick:
        provider: none
        mode: store
        retry: {schedule: [200ms, 500ms, 1s, 2s, 4s, 8s]}
`

const (
	drillBoot = 700 * time.Millisecond // of each copy
	// enoughGrace is how much of it lets nothing fail. Below it the number is told.
	enoughGrace = 10 * time.Second
)

// TestADeployLosesNothing replaces a copy of the app under load, as each
// platform does it.
func TestADeployLosesNothing(t *testing.T) {
	for _, d := range drills {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			d.run(t)
		})
	}
}

func (d *drill) run(t *testing.T) {
	ledgerFile := filepath.Join(t.TempDir(), "ledger")
	r := rig.StartRelay(t, rig.RelayConfig{Manifest: drillManifest})
	old := d.copy(t, r, "old", d.old, ledgerFile)
	awaitHealthy(t, old)
	l := startDrillLoad(t, r)
	l.awaitAnswers(t, "old", 40)
	l.awaitSlow(t, "old", drillReports/2) // the others are at any point of theirs

	next := d.copy(t, r, "new", d.new, ledgerFile)
	if !d.eager {
		awaitHealthy(t, next)
	}
	stopped := time.Now()
	code, took := d.stopCopy(t, old)
	awaitHealthy(t, next)
	l.awaitAnswers(t, "new", 40)
	l.awaitSlow(t, "new", 2) // and the slow ones of the switch are over
	l.stop()

	answered, failed := l.answers.list(), l.answers.failures()
	across := 0
	for _, s := range answered {
		if s.From.Before(stopped) && s.From.Add(s.Took).After(stopped) {
			across++
		}
	}
	if across == 0 {
		t.Error("nothing was under way at the switch: this drill shows nothing")
	}
	t.Logf("drill: %s: %d of %d requests failed; %d were under way at the switch; the old copy took %v of %v and left with %d",
		d.name, len(failed), len(answered), across, took.Round(time.Millisecond), d.grace, code)
	for n, s := range failed {
		if n < 10 {
			t.Logf("%v before the switch a request began that saw %v after %v",
				stopped.Sub(s.From).Round(time.Millisecond), s, s.Took.Round(time.Millisecond))
		}
	}
	if d.grace >= enoughGrace {
		if len(failed) > 0 {
			t.Errorf("%d requests failed: %v", len(failed), &l.answers)
		}
		if code != 0 {
			t.Errorf("the old copy left with %d", code)
		}
	}
	l.checkWebhooks(t, r, ledgerFile)
	d.checkTerms(t, readLedger(t, ledgerFile))
}

// copy starts one copy of the app in the environment of its platform.
func (d *drill) copy(t *testing.T, r *rig.Relay, name string, env []string, ledgerFile string) *rig.Agent {
	t.Helper()
	return r.StartRun(drillCommand(t, name, drillBoot, ledgerFile), rig.AgentConfig{
		NoWait: true, Env: append([]string{"POSTERN_INSTANCE="}, env...),
	})
}

// awaitHealthy waits as a platform does: for an answer of the app itself on its
// port.
func awaitHealthy(t *testing.T, a *rig.Agent) {
	t.Helper()
	rig.Eventually(t, rig.StartsWithin, "the app's health", func() error {
		if s := ask(a.Target, "localhost", "/"); !s.ok() {
			return fmt.Errorf("saw %v", s)
		}
		return nil
	})
}

// stopCopy stops a copy as the platform does, and kills what is left when the
// grace is over. It returns how long it took and the code, -1 when it was killed.
func (d *drill) stopCopy(t *testing.T, a *rig.Agent) (code int, took time.Duration) {
	t.Helper()
	began := time.Now()
	if d.all {
		for range 3 {
			rig.SignalEach(a.Tree(), d.stop)
			<-time.After(150 * time.Millisecond) // how far apart they are
		}
	} else {
		a.Signal(d.stop)
	}
	timer := time.NewTimer(d.grace)
	defer timer.Stop()
	select {
	case <-a.Done():
		return a.ExitCode(time.Second), time.Since(began)
	case <-timer.C:
		a.KillTree()
		return -1, d.grace
	}
}

// checkTerms: the app hears of its end once from us, where it hears of it at
// all. Some servers take the second SIGTERM for an order to hurry.
func (d *drill) checkTerms(t *testing.T, l *ledger) {
	t.Helper()
	got, most := l.count("SIGTERM old"), 1
	if d.all {
		most = 3 // the platform's own
	}
	if got > most {
		t.Errorf("the app was sent %d SIGTERM, want at most %d", got, most)
	}
	if d.grace >= enoughGrace && got == 0 {
		t.Error("the app was never told to stop")
	}
	if l.count("SIGTERM new") > 0 {
		t.Error("the new copy was told to stop")
	}
}

// checkWebhooks: every webhook that was accepted has been dealt with by the app,
// and none was given up.
func (l *drillLoad) checkWebhooks(t *testing.T, r *rig.Relay, ledgerFile string) {
	t.Helper()
	l.mu.Lock()
	accepted, refused := l.accepted, l.refused
	l.mu.Unlock()
	if len(accepted) == 0 || len(refused) > 0 {
		t.Errorf("%d webhooks were accepted, %d refused: %.300q", len(accepted), len(refused), strings.Join(refused, "; "))
	}
	rig.Eventually(t, 3*wait, "all webhooks at the app", func() error {
		apps := readLedger(t, ledgerFile)
		lost, twice := 0, 0
		for _, id := range accepted {
			switch apps.count(id) {
			case 0:
				lost++
			case 1:
			default:
				twice++
			}
		}
		if lost > 0 {
			return fmt.Errorf("%d of %d are not there", lost, len(accepted))
		}
		t.Logf("%d webhooks, none lost, %d delivered more than once", len(accepted), twice)
		return nil
	})
	var dead struct{ Events []struct{ ID string } }
	if err := r.Get(r.Token("shop", "--scope", "developer"), "/api/v1/events?state=dead", &dead); err != nil {
		t.Error(err)
	}
	if len(dead.Events) > 0 {
		t.Errorf("%d webhooks are dead", len(dead.Events))
	}
}

// webhook sends one, and notes what became of it. Every other one takes the app
// a moment: some are under way whenever a copy is killed.
func (l *drillLoad) webhook(c *caller, n int) {
	endpoint := [...]string{"orders?ms=250", "quick"}[n%2]
	s := c.call(http.MethodPost, "/hooks/shop/"+endpoint, http.Header{"Content-Type": {"text/plain"}}, fmt.Appendf(nil, "webhook %d", n))
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.Err != nil || s.Status != http.StatusAccepted {
		l.refused = append(l.refused, s.String())
		return
	}
	l.accepted = append(l.accepted, s.Header.Get("Postern-Event-Id"))
}
