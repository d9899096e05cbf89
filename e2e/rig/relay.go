package rig

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// StartsWithin bounds how long a process may take until it answers. Machines
// that test are busy.
const StartsWithin = 20 * time.Second

// RelayConfig says how to start a relay. The zero value is a relay without a
// manifest.
type RelayConfig struct {
	Manifest string   // YAML, written into Relay.Manifest; "" for none
	Env      []string // POSTERN_HEARTBEAT=1s, ...; later entries win
}

// Relay is one postern-relay serve, over all its restarts.
type Relay struct {
	*Process // the current one; replaced by Restart

	Addr     string // of the public listener, 127.0.0.1:port
	Port     string // of Addr
	URL      string // http://Addr, for agents
	Admin    string // of the admin listener
	Data     string // its data folder
	Manifest string // the manifest's file, "" without one; the relay watches it

	t   testing.TB
	env []string
}

// StartRelay starts a relay with a fresh data folder and waits until it is
// ready.
func StartRelay(t testing.TB, cfg RelayConfig) *Relay {
	t.Helper()
	for range 5 {
		r := newRelay(t, cfg)
		err := r.start()
		if err == nil {
			return r
		}
		if !strings.Contains(r.Log.String(), "address already in use") {
			t.Fatal(err)
		}
	}
	t.Fatal("no free ports")
	return nil
}

// newRelay prepares a relay on ports that were free a moment ago.
func newRelay(t testing.TB, cfg RelayConfig) *Relay {
	t.Helper()
	dir := t.TempDir()
	r := &Relay{t: t, Addr: FreeAddr(t), Admin: FreeAddr(t), Data: filepath.Join(dir, "data")}
	r.URL = "http://" + r.Addr
	_, r.Port, _ = net.SplitHostPort(r.Addr)
	r.env = []string{
		"POSTERN_DATA=" + r.Data,
		"POSTERN_LISTEN=" + r.Addr,
		"POSTERN_ADMIN_LISTEN=" + r.Admin,
		"POSTERN_PUBLIC_URL=" + r.URL,
		"POSTERN_APPS_DOMAIN=localhost",
	}
	if cfg.Manifest != "" {
		r.Manifest = filepath.Join(dir, "postern.yaml")
		if err := os.WriteFile(r.Manifest, []byte(cfg.Manifest), 0o600); err != nil {
			t.Fatal(err)
		}
		r.env = append(r.env, "POSTERN_MANIFEST="+r.Manifest)
	}
	r.env = append(r.env, cfg.Env...)
	return r
}

// start starts the process and waits for /readyz.
func (r *Relay) start() error {
	var log *Log
	if r.Process != nil {
		log = r.Log
	}
	p, err := start(r.t, command{name: "postern-relay", path: Binary(r.t, "postern-relay"), args: []string{"serve"}, env: r.env, log: log})
	if err != nil {
		return err
	}
	r.Process = p
	return until(StartsWithin, p.done, r.Ready)
}

// Ready is nil when /readyz answers 200.
func (r *Relay) Ready() error {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(r.URL + "/readyz")
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("/readyz answers %s", resp.Status)
	}
	return nil
}

// Restart starts a relay that was stopped or killed again, with the same ports
// and data and with more environment, and waits until it is ready.
func (r *Relay) Restart(env ...string) {
	r.t.Helper()
	if r.Running() {
		r.t.Fatal("restart a relay that runs: Stop or Kill it first")
	}
	r.env = append(r.env, env...)
	if err := r.start(); err != nil {
		r.t.Fatalf("restart the relay: %v", err)
	}
}

// Verb runs an offline verb, "token list", on the relay's data and returns what
// it printed.
func (r *Relay) Verb(args ...string) string {
	r.t.Helper()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(r.t.Context(), Binary(r.t, "postern-relay"), args...)
	cmd.Env, cmd.Stderr = append(cleanEnvironment(), r.env...), &stderr
	cmd.SysProcAttr = childAttributes()
	out, err := cmd.Output()
	if err != nil {
		r.t.Fatalf("postern-relay %s: %v: %s", strings.Join(args, " "), err, stderr.Bytes())
	}
	return strings.TrimSpace(string(out))
}

// Token makes an agent's token for app. Flags may say more: --ttl, --scope.
func (r *Relay) Token(app string, flags ...string) string {
	r.t.Helper()
	return r.Verb(append([]string{"token", "create", "--app", app}, flags...)...)
}

// ports counts through numbers below those that the kernel gives to outgoing
// connections (32768 and up on Linux): a relay that is restarted on its port
// must not find an agent's own connection there. The start is random because
// several test binaries may run at once.
var (
	ports     atomic.Int64
	portsFrom = sync.OnceValue(func() int64 { return rand.Int64N(portCount) })
)

const (
	firstPort = 12000
	portCount = 20000
)

// FreeAddr is a loopback address that nobody listens on, and that nobody else
// in this process is given.
func FreeAddr(t testing.TB) string {
	t.Helper()
	for range 1000 {
		addr := fmt.Sprintf("127.0.0.1:%d", firstPort+(portsFrom()+ports.Add(1))%portCount)
		if l, err := net.Listen("tcp", addr); err == nil {
			l.Close()
			return addr
		}
	}
	t.Fatal("no free port")
	return ""
}
