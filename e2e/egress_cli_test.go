package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/posternhq/postern/e2e/rig"
	"github.com/posternhq/postern/protocol/api"
)

// What apps have called is seen, explained and learned from by the CLI, and a text is
// tried on it before it is applied.
func TestTheCLITellsOfCallsAndWhatAChangeWouldDo(t *testing.T) {
	t.Parallel()
	const a, b, c = "a.shop.test", "b.shop.test", "c.shop.test"
	port := portOf(rig.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") })))
	text := func(mode string, names ...string) string {
		var allow []string
		for _, name := range names {
			allow = append(allow, fmt.Sprintf("%q", "http://"+name+":"+port))
		}
		return loopbackManifest([]string{port}, map[string]string{"shop": "{mode: " + mode + ", allow: [" + strings.Join(allow, ", ") + "]}"})
	}
	s := newSite(t, text("report", a), a, b, c)
	agent := s.agent(t, rig.AgentConfig{})
	for _, name := range []string{a, a, b} {
		if resp, body, err := getThrough(agent.Proxy, "http://"+name+":"+port+"/path?token=hush"); err != nil || body != "hello" {
			t.Errorf("%v, %q, %v", resp, body, err)
		}
	}
	s.checkCounts(t, 0)
	cli := func(want int, args ...string) string {
		t.Helper()
		out := rig.Postern(t, s.adminEnv(), args...)
		if out.Code != want {
			t.Errorf("postern %q ends with %d: %s%s", args, out.Code, out.Stdout, out.Stderr)
		}
		if strings.Contains(out.Stdout+out.Stderr, "hush") {
			t.Errorf("postern %q shows a query: %s", args, out.Stdout)
		}
		return out.Stdout
	}
	has(t, "log", cli(0, "egress", "log", "--app", "shop"), a+":"+port, b+":"+port, "enforce would refuse it")
	s.awaitCalls(t, 3)
	has(t, "usage", cli(0, "egress", "usage", "--app", "shop"), a+":"+port, b+":"+port)
	has(t, "learn", cli(0, "egress", "learn", "--app", "shop", "--since", "1h"), "http://"+a+":"+port, "http://"+b+":"+port)
	file := filepath.Join(t.TempDir(), "postern.yaml")
	write := func(manifest string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(manifest), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(text("enforce", a))
	var diff api.ManifestDiff
	if err := json.Unmarshal([]byte(cli(0, "manifest", "diff", "-f", file, "--since", "24h", "--json")), &diff); err != nil {
		t.Fatal(err)
	}
	if len(diff.Flips) != 1 || !strings.HasSuffix(diff.Flips[0].Target, b+":"+port) || diff.Flips[0].From != "report" || diff.Flips[0].To != "deny" {
		t.Errorf("the change flips %+v", diff.Flips)
	}
	cli(0, "apply", "-f", file, "--note", "enforce")
	s.AwaitPolicy(t, s.operator, 1, 2)
	if resp, _, err := getThrough(agent.Proxy, "http://"+b+":"+port+"/"); err != nil || resp.StatusCode != http.StatusForbidden {
		t.Errorf("%v, %v", resp, err)
	}
	var e api.Explanation
	if err := json.Unmarshal([]byte(cli(0, "egress", "explain", "http://"+b+":"+port+"/", "--app", "shop", "--json")), &e); err != nil || e.Verdict != "deny" || e.Status != 403 || !strings.Contains(e.Suggestion, b) {
		t.Errorf("explain: %+v, %v", e, err)
	}
	cli(0, "egress", "allow", "http://"+c+":"+port, "--app", "shop", "--for", "1h", "--owner", "team", "--reason", "a trial")
	rig.Eventually(t, wait, "the exception", func() error {
		resp, body, err := getThrough(agent.Proxy, "http://"+c+":"+port+"/")
		if err == nil && body != "hello" {
			err = fmt.Errorf("status %d, %s", resp.StatusCode, body)
		}
		return err
	})
	// A text whose own tests fail is refused whole.
	write(text("enforce", a) + "  tests: [{app: shop, target: \"http://" + b + ":" + port + "\", expect: allow}]\n")
	out := rig.Postern(t, s.adminEnv(), "apply", "-f", file)
	if out.Code != 1 || !strings.Contains(out.Stderr, b) {
		t.Errorf("apply of a text that fails its tests: %d, %s%s", out.Code, out.Stdout, out.Stderr)
	}
	has(t, "status", cli(0, "egress", "status"), "2")
	s.checkCounts(t, 0)
}

// has fails the test unless text has all of words.
func has(t testing.TB, what, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("%s has no %q:\n%s", what, w, text)
		}
	}
}

// awaitCalls waits until so many calls of shop are in the store, which they reach every
// second.
func (s *site) awaitCalls(t testing.TB, want int64) {
	t.Helper()
	rig.Eventually(t, wait, "the calls in the sums", func() error {
		var usage api.UsageList
		if err := s.Get(s.operator, "/api/v1/egress/usage?app=shop", &usage); err != nil {
			return err
		}
		calls := int64(0)
		for _, u := range usage.Usage {
			calls += u.Calls
		}
		if calls != want {
			return fmt.Errorf("%d calls: %+v", calls, usage.Usage)
		}
		return nil
	})
}
