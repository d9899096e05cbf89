//go:build linux

package buildpack

import (
	"bufio"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stripe/stripe-go/v85/webhook"

	"github.com/posternhq/postern/e2e/rig"
)

const (
	stripeSecret = "whsec_of_the_examples"
	githubSecret = "the examples' own"
)

const manifest = `
version: 1
apps:
  shop:
    endpoints:
      stripe: {provider: stripe, secrets: [{env: STRIPE_WHSEC}], resign: true}
      github: {provider: github, secrets: [{env: GITHUB_SECRET}]}
`

// Each example is deployed as on Heroku: the buildpack puts the agent into its
// folder, the Procfile's line starts it, Stripe and GitHub call the relay, and a
// new release stops it.
func TestExamplesTakeWebhooksThroughTheRelay(t *testing.T) {
	t.Parallel()
	release := publish(t)
	for _, example := range []struct {
		name    string
		needs   [][2]string
		prepare func(t *testing.T, build string) // what the language's own buildpack does
		goodbye string
	}{
		{"go", nil, func(t *testing.T, build string) {
			// As heroku/go does: it installs a module's programs into bin.
			mustRun(t, call{args: []string{"go", "build", "-buildvcs=false", "-o", "bin/", "."}, dir: build, env: append(os.Environ(), "CGO_ENABLED=0")})
		}, "shop: done"},
		{"node", [][2]string{{"node", "nodejs"}}, nil, "done"},
		{"python", [][2]string{{"gunicorn", "gunicorn python3-flask"}}, needFlask, "done"},
		{"ruby", [][2]string{{"ruby", "ruby"}, {"puma", "puma"}}, func(t *testing.T, build string) {
			// Debian's gems stand in for those of Gemfile.lock, so without Bundler.
			file := filepath.Join(build, "Procfile")
			write(t, file, strings.Replace(read(t, file), "bundle exec ", "", 1))
		}, "- Goodbye!"},
	} {
		t.Run(example.name, func(t *testing.T) {
			t.Parallel()
			for _, n := range example.needs {
				need(t, n[0], n[1])
			}
			build := filepath.Join(t.TempDir(), "app")
			copyTree(t, filepath.Join(root, "deploy/examples", example.name), build)
			if example.prepare != nil {
				example.prepare(t, build)
			}
			release.compile(t, build, t.TempDir(), map[string]string{"POSTERN_AGENT_URL": release.url()}).want(t, 0, "installed")
			app := startShop(t, build)
			app.takesWebhooks(t)
			app.checksForItself(t)
			app.finishesOnTERM(t)
			app.dyno.await(t, example.goodbye)
		})
	}
}

// shop is an example that runs behind a relay.
type shop struct {
	relay *rig.Relay
	dyno  *dyno
	addr  string // where the app itself listens
}

func startShop(t *testing.T, build string) *shop {
	t.Helper()
	r := rig.StartRelay(t, rig.RelayConfig{Manifest: manifest, Env: []string{"STRIPE_WHSEC=" + stripeSecret, "GITHUB_SECRET=" + githubSecret}})
	s := &shop{relay: r, addr: rig.FreeAddr(t)}
	_, port, _ := net.SplitHostPort(s.addr)
	s.dyno = startDyno(t, build, "web", "PORT="+port, "DYNO=web.1", "POSTERN_RELAY="+r.URL, "POSTERN_TOKEN="+r.Token("shop"),
		"STRIPE_WHSEC="+stripeSecret, "GITHUB_SECRET="+githubSecret)
	r.Log.Wait(t, rig.StartsWithin, 0, 2, `msg="tunnel open"`, "instance=web.1")
	for pid, name := range s.dyno.processes(t) {
		if name == "bash" || name == "sh" {
			t.Errorf("a shell (%s, %d) stands between the platform's signals and the agent", name, pid)
		}
	}
	return s
}

// takesWebhooks sends one of each sender through the relay.
func (s *shop) takesWebhooks(t *testing.T) {
	t.Helper()
	client := s.relay.Client()
	for endpoint, hook := range map[string]struct{ body, id, kind string }{
		"stripe": {`{"id":"evt_77","object":"event","type":"charge.succeeded"}`, "evt_77", "charge.succeeded"},
		"github": {`{"ref":"refs/heads/main"}`, "7b0d6d60-77", "push"},
	} {
		resp := post(t, client, s.relay.HookURL("shop", endpoint), hook.body, sign(endpoint, hook.body, hook.id))
		if resp.StatusCode != http.StatusAccepted {
			t.Fatalf("%s was answered %s", endpoint, resp.Status)
		}
		s.dyno.await(t, "webhook handled", "from="+endpoint, "id="+hook.id, "type="+hook.kind)
	}
	resp, err := client.Get(s.relay.AppURL("shop", "/"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	page, _ := io.ReadAll(resp.Body)
	for _, shown := range []string{"evt_77", "7b0d6d60-77", s.relay.AppHost("shop")} {
		if resp.StatusCode != http.StatusOK || !strings.Contains(string(page), shown) {
			t.Errorf("the page (%s) does not show %s: %s", resp.Status, shown, page)
		}
	}
}

// checksForItself sends to the app and not to the relay.
func (s *shop) checksForItself(t *testing.T) {
	t.Helper()
	const stripe, github = `{"id":"evt_78","object":"event","type":"charge.failed"}`, `{"ref":"refs/heads/other"}`
	forged := http.Header{"Stripe-Signature": {"t=1,v1=00"}}
	old := time.Now().Add(-time.Hour)
	late := http.Header{"Stripe-Signature": {fmt.Sprintf("t=%d,v1=%s", old.Unix(), hmacOf(stripeSecret, fmt.Sprintf("%d.%s", old.Unix(), stripe)))}}
	late.Set("Postern-Received-At", old.Format(time.RFC3339Nano)) // anybody can write this here
	otherKey := sign("github", github, "d-2")
	otherKey.Set("Idempotency-Key", "k-1")
	sameKey := sign("github", github, "d-3")
	sameKey.Set("Idempotency-Key", "k-1")
	for _, test := range []struct {
		name, path, body string
		header           http.Header
		status           int
		said             []string
	}{
		{"unsigned", "/webhooks/github", github, nil, 401, []string{"webhook refused", "does not match"}},
		{"forged", "/webhooks/stripe", stripe, forged, 401, []string{"webhook refused", "does not match"}},
		{"changed", "/webhooks/github", github + " ", sign("github", github, "d-1"), 401, []string{"webhook refused", "does not match"}},
		{"recorded an hour ago", "/webhooks/stripe", stripe, late, 401, []string{"webhook refused", "too old"}},
		{"new", "/webhooks/stripe", stripe, sign("stripe", stripe, ""), 204, []string{"webhook handled", "id=evt_78"}},
		{"again", "/webhooks/stripe", stripe, sign("stripe", stripe, ""), 204, []string{"webhook known already", "id=evt_78"}},
		{"under a key", "/webhooks/github", github, otherKey, 204, []string{"webhook handled", "id=d-2"}},
		{"under the same key", "/webhooks/github", github, sameKey, 204, []string{"webhook known already", "id=d-3"}},
		{"too long", "/webhooks/github", strings.Repeat("x", 2<<20), nil, 413, nil},
	} {
		resp := post(t, http.DefaultClient, "http://"+s.addr+test.path, test.body, test.header)
		if resp.StatusCode != test.status && !(test.status == 413 && resp.StatusCode == 400) {
			t.Errorf("%s: answered %s, expected %d", test.name, resp.Status, test.status)
		}
		if test.said != nil {
			s.dyno.await(t, test.said...)
		}
	}
}

// finishesOnTERM has a webhook under way while the platform stops the dyno: its
// body is still missing when SIGTERM comes, three times and to every process.
func (s *shop) finishesOnTERM(t *testing.T) {
	t.Helper()
	const body = `{"ref":"refs/heads/last"}`
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(rig.StartsWithin))
	header := sign("github", body, "d-last")
	fmt.Fprintf(conn, "POST /webhooks/github HTTP/1.1\r\nHost: shop\r\nExpect: 100-continue\r\nConnection: close\r\nContent-Length: %d\r\n", len(body))
	header.Write(conn)
	io.WriteString(conn, "\r\n")
	answers := bufio.NewReader(conn)
	if line, err := answers.ReadString('\n'); err != nil || !strings.Contains(line, " 100 ") {
		t.Fatalf("the app does not ask for the body: %q, %v", line, err)
	}
	answers.ReadString('\n') // the end of the 100
	for range 3 {
		s.dyno.broadcast(t, syscall.SIGTERM)
	}
	rig.Eventually(t, rig.StartsWithin, "the app takes no more connections", func() error {
		conn, err := net.Dial("tcp", s.addr)
		if err != nil {
			return nil
		}
		conn.Close()
		return fmt.Errorf("it took one")
	})
	io.WriteString(conn, body)
	resp, err := http.ReadResponse(answers, nil)
	if err != nil {
		t.Fatalf("the webhook under way was not answered: %v", err)
	}
	if resp.StatusCode != http.StatusNoContent {
		t.Errorf("the webhook under way was answered %s", resp.Status)
	}
	if code := s.dyno.exitCode(t, rig.StartsWithin); code != 0 {
		t.Errorf("exit code %d after SIGTERM, expected 0", code)
	}
	s.dyno.await(t, "webhook handled", "id=d-last")
}

// sign makes a sender's headers for body.
func sign(endpoint, body, id string) http.Header {
	if endpoint == "stripe" {
		signed := webhook.GenerateTestSignedPayload(&webhook.UnsignedPayload{Payload: []byte(body), Secret: stripeSecret, Timestamp: time.Now()})
		return http.Header{"Stripe-Signature": {signed.Header}}
	}
	return http.Header{
		"X-Github-Event": {"push"}, "X-Github-Delivery": {id},
		"X-Hub-Signature-256": {"sha256=" + hmacOf(githubSecret, body)},
	}
}

func hmacOf(secret, text string) string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(text))
	return hex.EncodeToString(mac.Sum(nil))
}

func post(t *testing.T, client *http.Client, url, body string, header http.Header) *http.Response {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range header {
		r.Header[name] = values
	}
	r.Header.Set("Content-Type", "application/json")
	r.Close = true
	resp, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	return resp
}

func needFlask(t *testing.T, _ string) {
	t.Helper()
	if r := run(t, call{args: []string{"/usr/bin/python3", "-c", "import flask"}}); r.code != 0 {
		t.Skip("Flask is not installed (Debian: apt-get install python3-flask)")
	}
}
