package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/posternhq/postern/e2e/rig"
	"github.com/posternhq/postern/protocol/api"
)

// rolloutSite is a relay with several agents that call all the time.
type rolloutSite struct {
	*site
	port   string
	agents []egressAgent
}

// manifestFor allows these names, on the site's port, and says how a new version comes
// into force.
func (s *rolloutSite) manifestFor(rollout string, names ...string) string {
	var allow []string
	for _, name := range names {
		allow = append(allow, fmt.Sprintf("%q", "http://"+name+":"+s.port))
	}
	text := loopbackManifest([]string{s.port}, map[string]string{"shop": "{allow: [" + strings.Join(allow, ", ") + "]}"})
	if rollout != "" {
		text += "  rollout: " + rollout + "\n"
	}
	return text
}

func newRolloutSite(t *testing.T, agents int, rollout string, names ...string) *rolloutSite {
	t.Helper()
	s := &rolloutSite{port: portOf(rig.Serve(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})))}
	s.site = newSite(t, s.manifestFor(rollout, names...), "a.shop.test", "b.shop.test", "c.shop.test")
	for n := range agents {
		s.agents = append(s.agents, startEgressAgent(t, s.Relay, rig.AgentConfig{Instance: fmt.Sprintf("web.%d", n+1), Tunnels: 1}))
	}
	s.AwaitPolicy(t, s.operator, agents, 1)
	return s
}

// status is what a request of agent n to name is answered with.
func (s *rolloutSite) status(n int, name string) int {
	resp, _, err := getThrough(s.agents[n].Proxy, "http://"+name+":"+s.port+"/")
	if err != nil {
		return 0
	}
	return resp.StatusCode
}

// apply has the CLI apply a text.
func (s *rolloutSite) apply(t *testing.T, text string, flags ...string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "manifest.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out := rig.Postern(t, s.adminEnv(), append([]string{"apply", "-f", file}, flags...)...)
	if out.Code != 0 {
		t.Fatalf("apply: %s%s", out.Stdout, out.Stderr)
	}
}

// awaitVersion waits until the version has this status.
func (s *rolloutSite) awaitVersion(t *testing.T, within time.Duration, number int64, status string) api.ManifestVersion {
	t.Helper()
	var found api.ManifestVersion
	rig.Eventually(t, within, fmt.Sprintf("version %d %s", number, status), func() error {
		var list api.ManifestList
		if err := s.Get(s.operator, "/api/v1/manifest/versions", &list); err != nil {
			return err
		}
		for _, v := range list.Versions {
			if v.Number == number && v.Status == status {
				found = v
				return nil
			}
		}
		return fmt.Errorf("there are %+v", list.Versions)
	})
	return found
}

// A version that a share of the agents refuses more by is taken back by itself; one
// that does no harm is in force for all when its time is over.
func TestACanaryIsRolledBackWhenItRefusesMore(t *testing.T) {
	t.Parallel()
	const agents = 8
	const rollout = "{canary: 50%, for: 1m, rollback_if_deny_rate: 2x}"
	s := newRolloutSite(t, agents, rollout, "a.shop.test", "b.shop.test")
	var refusals [agents]atomic.Int64
	stop := make(chan struct{})
	var calling sync.WaitGroup
	for n := range agents {
		calling.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(40 * time.Millisecond):
				}
				s.status(n, "a.shop.test")
				if s.status(n, "b.shop.test") == http.StatusForbidden {
					refusals[n].Add(1)
				}
			}
		})
	}
	end := sync.OnceFunc(func() { close(stop); calling.Wait() })
	t.Cleanup(end)

	applied := time.Now()
	s.apply(t, s.manifestFor(rollout, "a.shop.test"), "--note", "b is not called any more")
	v := s.awaitVersion(t, 30*time.Second, 2, "rolled_back")
	t.Logf("rolled back %v after it was applied: %s", time.Since(applied).Round(time.Millisecond), v.Note)
	status := s.AwaitPolicy(t, s.operator, agents, 1)
	if status.Version != 1 || status.Canary != 0 {
		t.Errorf("version %d is running, %d is a canary", status.Version, status.Canary)
	}
	hit := 0
	for n := range agents {
		if refusals[n].Load() > 0 {
			hit++
		}
	}
	rig.Eventually(t, 2*time.Second, "the version before, everywhere", func() error {
		for n := range agents {
			if got := s.status(n, "b.shop.test"); got != http.StatusOK {
				return fmt.Errorf("agent %d has status %d after the rollback", n+1, got)
			}
		}
		return nil
	})
	if hit == 0 || hit == agents {
		t.Errorf("%d of %d agents had the canary", hit, agents)
	}
	t.Logf("%d of %d agents had the canary", hit, agents)
	end()

	s.apply(t, s.manifestFor("{canary: 50%, for: 1s, rollback_if_deny_rate: 2x}", "a.shop.test", "b.shop.test", "c.shop.test"))
	s.awaitVersion(t, 20*time.Second, 3, "running")
	s.AwaitPolicy(t, s.operator, agents, 3)
	for n := range agents {
		if got := s.status(n, "c.shop.test"); got != http.StatusOK {
			t.Errorf("agent %d has status %d after the canary's time", n+1, got)
		}
	}
	if out := rig.Postern(t, s.adminEnv(), "manifest", "history"); out.Code != 0 || !strings.Contains(out.Stdout, "rolled_back") || !strings.Contains(out.Stdout, "were refused") {
		t.Errorf("history: %d, %s%s", out.Code, out.Stdout, out.Stderr)
	}
	if out := rig.Postern(t, s.adminEnv(), "manifest", "rollback"); out.Code != 0 {
		t.Fatalf("rollback: %s%s", out.Stdout, out.Stderr)
	}
	rig.Eventually(t, 2*time.Second, "the version before", func() error {
		for n := range agents {
			if got := s.status(n, "c.shop.test"); got != http.StatusForbidden {
				return fmt.Errorf("agent %d has status %d", n+1, got)
			}
		}
		return nil
	})
	s.checkCounts(t, 0)
}

// The file is watched: what it says is in force at the relay and at every agent soon.
func TestAChangedFileIsInForceWithinTwoSeconds(t *testing.T) {
	t.Parallel()
	const agents = 3
	s := newRolloutSite(t, agents, "", "a.shop.test")
	inForce := func(name string, want int) time.Duration {
		t.Helper()
		began := time.Now()
		rig.Eventually(t, wait, "the new text in force", func() error {
			for n := range agents {
				if got := s.status(n, name); got != want {
					return fmt.Errorf("agent %d has status %d for %s, want %d", n+1, got, name, want)
				}
			}
			return nil
		})
		return time.Since(began)
	}
	inForce("b.shop.test", http.StatusForbidden)
	for range 3 {
		s.Rewrite(s.manifestFor("", "a.shop.test", "b.shop.test"))
		if took := inForce("b.shop.test", http.StatusOK); took > 2*time.Second {
			t.Errorf("a line more was in force after %v", took)
		} else {
			t.Logf("a line more was in force after %v", took.Round(time.Millisecond))
		}
		s.Rewrite(s.manifestFor("", "a.shop.test"))
		if took := inForce("b.shop.test", http.StatusForbidden); took > 2*time.Second {
			t.Errorf("a line less was in force after %v", took)
		}
	}
	before, err := s.EgressStatus(s.operator)
	if err != nil {
		t.Fatal(err)
	}
	// One with an error changes nothing.
	s.Rewrite(s.manifestFor("", "a.shop.test", "b.shop.test") + "nonsense: 1\n")
	s.Log.Wait(t, wait, 0, 1, "nonsense")
	if after, err := s.EgressStatus(s.operator); err != nil || after.Version != before.Version {
		t.Errorf("version %d, before %d, %v", after.Version, before.Version, err)
	}
	inForce("a.shop.test", http.StatusOK)
	inForce("b.shop.test", http.StatusForbidden)
	rig.Eventually(t, wait, "the measure of the last change", func() error {
		status, err := s.EgressStatus(s.operator)
		if err == nil && (status.AppliedMS < 0 || status.AppliedMS > 2000) {
			err = fmt.Errorf("applied within %v ms", status.AppliedMS)
		}
		return err
	})
	s.checkCounts(t, 0)
}
