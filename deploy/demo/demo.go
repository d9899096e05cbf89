package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// demo is what the steps share.
type demo struct {
	bin    string // folder of the built programs
	folder string // temporary; the relay's data and manifest
	port   string // of the relay
	env    []string
	client *http.Client

	// Filled in by the steps.
	token     string     // the agent's
	developer string     // the developer's token
	processes []*process // in the order they were started
	relay     *process
	app       *process
	partner   *partner
	stripeID  string // of the events sent
	githubID  string
}

// manifest is what the relay is told of the app.
const manifest = `version: 1
apps:
  shop:
    endpoints:
      stripe:
        provider: stripe
        secrets: [{env: STRIPE_WHSEC}]
      github:
        provider: github
        secrets: [{env: GITHUB_SECRET}]
    egress:
      allow: [http://rates.partner.test:PORT]
egress:
  allow_ranges: [{range: 127.0.0.1/32, ports: [PORT], reason: the demo's partner is on this machine}]
  tests: [{app: shop, target: http://elsewhere.test, expect: deny}]
`

// Secrets for this run only, as the providers would make them.
var (
	stripeSecret = "whsec_" + rand.Text()
	githubSecret = rand.Text()
)

// newDemo prepares everything that cannot fail halfway.
func newDemo(bin, port string) (*demo, error) {
	if port == "" {
		port = "8080"
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return nil, fmt.Errorf("DEMO_PORT=%q: expected 1 to 65535, or 0 for any that is free", port)
	}
	port, err := freePort(port)
	if err != nil {
		return nil, err
	}
	folder, err := os.MkdirTemp("", "postern-demo-")
	if err != nil {
		return nil, err
	}
	d := &demo{bin: bin, folder: folder, port: port, env: cleanEnv(), client: &http.Client{Transport: toLoopback()}}
	if d.partner, err = startPartner(); err != nil {
		d.close()
		return nil, err
	}
	text := strings.ReplaceAll(manifest, "PORT", d.partner.port)
	if err := os.WriteFile(d.file("postern.yaml"), []byte(text), 0o600); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

// freePort makes sure of port, or finds one for "0".
func freePort(port string) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		return "", fmt.Errorf("port %s is not free (%w); choose another one: DEMO_PORT=8081 make demo", port, err)
	}
	defer l.Close()
	_, port, err = net.SplitHostPort(l.Addr().String())
	return port, err
}

// cleanEnv is our environment without what would configure the children in ways
// the demo does not expect.
func cleanEnv() []string {
	var env []string
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		if name != "PORT" && name != "HOST" && name != "DATABASE_URL" &&
			!strings.HasPrefix(name, "POSTERN_") && !strings.HasSuffix(strings.ToUpper(name), "_PROXY") {
			env = append(env, entry)
		}
	}
	return append(env, "STRIPE_WHSEC="+stripeSecret, "GITHUB_SECRET="+githubSecret)
}

// toLoopback connects to this machine whatever the URL's host says, as browsers
// do for names under localhost; resolvers do not all.
func toLoopback() *http.Transport {
	return &http.Transport{
		Proxy: nil,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			_, port, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, err
			}
			return (&net.Dialer{}).DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
		},
	}
}

// close ends what was started, the last one first: the app's agent takes its
// leave while the relay is still there.
func (d *demo) close() {
	if d.partner != nil {
		defer d.partner.close()
	}
	for i := len(d.processes) - 1; i >= 0; i-- {
		d.processes[i].stop()
	}
	if err := os.RemoveAll(d.folder); err != nil {
		fmt.Fprintln(os.Stderr, "temporary folder not removed:", err)
	}
}

func (d *demo) file(name string) string       { return filepath.Join(d.folder, name) }
func (d *demo) program(name string) string    { return filepath.Join(d.bin, name) }
func (d *demo) url(label string) string       { return "http://" + label + "localhost:" + d.port }
func (d *demo) hook(endpoint string) string   { return d.url("") + "/hooks/shop/" + endpoint }
func (d *demo) with(extra ...string) []string { return append(append([]string{}, d.env...), extra...) }

// launch starts a process and remembers it.
func (d *demo) launch(name string, env []string, args ...string) (*process, error) {
	p, err := start(name, env, args...)
	if err == nil {
		d.processes = append(d.processes, p)
	}
	return p, err
}

func (d *demo) startRelay(ctx context.Context) (string, error) {
	var err error
	d.relay, err = d.launch("the relay", d.with(
		"POSTERN_LISTEN=127.0.0.1:"+d.port,
		"POSTERN_PUBLIC_URL="+d.url(""),
		"POSTERN_DATA="+d.file("data"),
		"POSTERN_MANIFEST="+d.file("postern.yaml"),
		"POSTERN_ADMIN_LISTEN=off", // one port less that could be taken
		"POSTERN_GRACE=5s",
		"POSTERN_RESOLVER=udp://"+d.partner.dns.LocalAddr().String(),
	), d.program("postern-relay"), "serve")
	if err != nil {
		return "", err
	}
	return d.url("") + ", data in " + d.folder, d.answers(ctx, d.relay, d.url("")+"/readyz")
}

// makeTokens makes one for the agent and one for whoever looks at the events.
func (d *demo) makeTokens(ctx context.Context) (string, error) {
	for scope, token := range map[string]*string{"agent": &d.token, "developer": &d.developer} {
		cmd := exec.CommandContext(ctx, d.program("postern-relay"), "token", "create", "--app", "shop", "--scope", scope, "--ttl", "24h")
		cmd.Env = d.with("POSTERN_DATA=" + d.file("data"))
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			return "", fmt.Errorf("postern-relay token create: %w: %s", err, &stderr)
		}
		*token = strings.TrimSpace(string(out))
	}
	// Also for another terminal, which the token must not be typed into.
	if err := os.WriteFile(d.file("developer.token"), []byte(d.developer), 0o600); err != nil {
		return "", err
	}
	return "one for the agent, one for a developer, good for 24 hours", nil
}

func (d *demo) startApp(ctx context.Context) (string, error) {
	var err error
	d.app, err = d.launch("the app and its agent", d.with(
		"POSTERN_RELAY="+d.url(""), "POSTERN_TOKEN="+d.token, "POSTERN_GRACE=5s", "HOST=127.0.0.1",
		"RATES_URL=http://"+partnerHost+":"+d.partner.port,
	), d.program("postern"), "run", "--", d.program("demo/shop"))
	if err != nil {
		return "", err
	}
	return d.url("shop."), d.answers(ctx, d.app, d.url("shop.")+"/healthz")
}

// answers waits until url is answered with 200, for as long as p lives. The
// address is the contract, so that is what is asked; log lines may change.
func (d *demo) answers(ctx context.Context, p *process, url string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-p.done:
			cancel() // nobody will answer any more
		case <-ctx.Done():
		}
	}()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		status, _, err := d.get(ctx, url)
		if err == nil && status == http.StatusOK {
			return nil
		}
		if err == nil {
			err = fmt.Errorf("answered %d", status)
		}
		select {
		case <-again.C:
			continue
		case <-ctx.Done():
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended: %w", p.name, p.err)
		default:
			return fmt.Errorf("%s is not answered: %w", url, err)
		}
	}
}

func (d *demo) get(ctx context.Context, url string) (status int, body []byte, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, nil, err
	}
	return d.do(r)
}

func (d *demo) do(r *http.Request) (status int, body []byte, err error) {
	resp, err := d.client.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode, body, err
}

func (d *demo) fetchPage(ctx context.Context) (string, error) {
	status, body, err := d.get(ctx, d.url("shop.")+"/")
	switch {
	case err != nil:
		return "", err
	case status != http.StatusOK:
		return "", fmt.Errorf("%s answered %d: %s", d.url("shop."), status, bytes.TrimSpace(body))
	case !bytes.Contains(body, []byte(d.stripeID)) || !bytes.Contains(body, []byte(d.githubID)):
		return "", errors.New("the page does not show both webhooks")
	}
	return d.url("shop.") + "/ lists both webhooks", nil
}
