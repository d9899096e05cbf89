package selftest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/posternhq/postern/agent"
	"github.com/posternhq/postern/protocol"
)

// prepare makes all that the relay needs.
func (t *trial) prepare(ctx context.Context) (Disk, error) {
	if _, err := os.Stat(t.cfg.Data); errors.Is(err, os.ErrNotExist) {
		t.made = true
	}
	if err := os.MkdirAll(t.cfg.Data, 0o700); err != nil {
		return Disk{}, err
	}
	var err error
	if t.dir, err = os.MkdirTemp(t.cfg.Data, "selftest-"); err != nil {
		return Disk{}, err
	}
	disk, err := MeasureDisk(t.dir)
	if err != nil {
		return disk, err
	}
	addr, err := freeAddr()
	if err != nil {
		return disk, err
	}
	t.secret = "whsec_" + rand.Text()
	manifest := filepath.Join(t.dir, "manifest.yaml")
	if err := os.WriteFile(manifest, []byte(t.manifest()), 0o600); err != nil {
		return disk, err
	}
	t.relay = &Relay{URL: "http://" + addr, Process: Process{Command: []string{t.cfg.Binary, "serve"}, Env: []string{
		"POSTERN_DATA=" + filepath.Join(t.dir, "data"),
		"POSTERN_MANIFEST=" + manifest,
		"POSTERN_LISTEN=" + addr,
		"POSTERN_PUBLIC_URL=http://" + addr,
		"POSTERN_ADMIN_LISTEN=off",
		"POSTERN_LOG_LEVEL=warn",
		secretVariable + "=" + t.secret,
	}}}
	cmd := exec.CommandContext(ctx, t.cfg.Binary, "token", "create", "--app", appID, "--scope", "agent")
	cmd.Env = append(Environment(), t.relay.Env...)
	cmd.SysProcAttr = childAttributes()
	var said bytes.Buffer
	cmd.Stderr = &said
	token, err := cmd.Output()
	if err != nil {
		return disk, fmt.Errorf("make a token for the agent: %w: %s", err, bytes.TrimSpace(said.Bytes()))
	}
	t.token = strings.TrimSpace(string(token))
	return disk, nil
}

const (
	appID          = "selftest"
	secretVariable = "SELFTEST_SECRET"
	keysPerSender  = 4
)

// manifest has an endpoint that keeps the order of its accounts, one that does
// not, and one whose senders get the app's own answer when it is quick. The schedules are long enough for an app that fails now and then:
// what is given up would count as lost.
func (t *trial) manifest() string {
	schedule := strings.TrimSuffix(strings.Repeat("100ms, ", 20)+strings.Repeat("1s, ", 30), ", ")
	endpoint := "{provider: stripe, secrets: [{env: " + secretVariable + "}], retry: {schedule: [" + schedule + "]}, "
	return "version: 1\napps:\n  " + appID + ":\n    endpoints:\n" +
		"      ordered: " + endpoint + "mode: store, order_by: /account}\n" +
		"      plain: " + endpoint + "mode: store}\n" +
		"      live: " + endpoint + "mode: hybrid}\n"
}

// ports are below those that the kernel gives to outgoing connections: a relay
// that comes back must not find an agent's own connection on its port.
const (
	firstPort = 12000
	portCount = 20000
)

func freeAddr() (string, error) {
	var err error
	for range 100 {
		addr := fmt.Sprintf("127.0.0.1:%d", firstPort+mathrand.IntN(portCount))
		var l net.Listener
		if l, err = net.Listen("tcp", addr); err == nil {
			return addr, l.Close()
		}
	}
	return "", err
}

// serveApp starts the app. It fails now and then, so that there are repeats that
// no crash has made.
func (t *trial) serveApp() (stop func(), target string, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, "", err
	}
	s := &http.Server{
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          log.New(io.Discard, "", 0),
		Handler: &App{
			Observe: func(d Delivery) error { t.ledger.Observe(d); return nil },
			Status: func(Delivery) int {
				if mathrand.IntN(50) == 0 {
					return http.StatusInternalServerError
				}
				return http.StatusOK
			},
		},
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		s.Serve(l)
	}()
	return func() { s.Close(); <-served }, l.Addr().String(), nil
}

// connect starts the agent and waits for its first tunnel.
func (t *trial) connect(ctx context.Context, target string) (stop func(), err error) {
	a := agent.New(agent.Config{
		Relay: t.relay.URL, Token: t.token, Target: target,
		Hello: protocol.Hello{Instance: "selftest.1", BootID: rand.Text()},
		Env:   func(string) string { return "" }, // no proxy is in the way
	})
	running, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- a.Run(running) }()
	stop = func() {
		a.Close()
		cancel()
		<-ended
	}
	timer := time.NewTimer(startsWithin)
	defer timer.Stop()
	select {
	case <-a.Ready():
		return stop, nil
	case err = <-ended:
		cancel()
		return nil, fmt.Errorf("the agent gave up: %w", err)
	case <-timer.C:
		err = errors.New("the agent does not connect")
	case <-ctx.Done():
		err = ctx.Err()
	}
	stop()
	return nil, err
}

func (t *trial) load() *Load {
	sign := Stripe(t.secret, size)
	hooks := t.relay.URL + "/hooks/" + appID
	return &Load{
		Ledger: t.ledger, Senders: t.cfg.Senders, Rate: t.cfg.Rate, Seed: t.cfg.Seed,
		Targets: []Target{
			{URL: hooks + "/ordered", Keys: keysPerSender, Make: sign, Repeats: true},
			{URL: hooks + "/plain", Make: sign, Repeats: true},
			{URL: hooks + "/live", Make: sign, Repeats: true},
		},
	}
}

// size is the length of a body: a few kilobytes as a rule, and now and then more
// than is stored together with others.
func size(r *mathrand.Rand) int {
	if r.IntN(100) == 0 {
		return 300_000
	}
	return 200 + r.IntN(4000)
}
