package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// The targets, in the order in which they are printed.
const (
	targetDirect  = "direct"  // client → app
	targetProxy1  = "proxy1"  // client → reverse proxy → app
	targetProxy2  = "proxy2"  // client → reverse proxy → reverse proxy → app
	targetPostern = "postern" // client → relay → agent → app
)

// targetBaseline is no target of its own: under this name stands what the inbox's
// measures are compared with, which is another thing in each of them.
const targetBaseline = "baseline"

var allTargets = []string{targetDirect, targetProxy1, targetProxy2, targetPostern}

const (
	startsWithin = 15 * time.Second
	buildsWithin = 5 * time.Minute
)

// target is one way to the app, up and answering.
type target struct {
	name  string
	addr  string
	host  string     // the Host header of its requests
	hops  []*process // between client and app, the client's side first
	admin string     // address of the relay's admin listener; postern only
	relay string     // URL that agents dial; postern only
	token string     // an agent's token; postern only
}

// fleet owns the app, the binaries and all children that are up for long.
type fleet struct {
	dir  string     // logs, binaries and the relays' data; removed by close
	bin  string     // folder with postern and postern-relay; empty until built
	root string     // the product's module, where they are built from
	app  string     // address of the app
	idle idleAgents // opens idle agents; nil leaves their row out

	sizes inboxSizes // how much the inbox measures store
	full  string     // data of a relay that has stored a lot; empty until made

	fullFirst bool // who came first in the last comparison with it

	built    error // why building failed, kept so that it is tried once
	children []*process
}

func newFleet(ctx context.Context, root, bin, dir string) (*fleet, error) {
	dir, err := os.MkdirTemp(dir, "postern-bench-")
	if err != nil {
		return nil, err
	}
	f := &fleet{dir: dir, root: root, bin: bin, idle: holdIdleAgents}
	app, err := f.server(ctx, "app", roleApp)
	if err != nil {
		f.close()
		return nil, err
	}
	f.app = app.addr
	return f, nil
}

// close ends every child that is still up, the last started first.
func (f *fleet) close() {
	for len(f.children) > 0 {
		f.end(f.children[len(f.children)-1])
	}
	_ = os.RemoveAll(f.dir)
}

// end ends one child.
func (f *fleet) end(p *process) {
	p.stop()
	for i, child := range f.children {
		if child == p {
			f.children = append(f.children[:i], f.children[i+1:]...)
			return
		}
	}
}

// stop ends a target's hops and leaves the app.
func (f *fleet) stop(t *target) {
	for i := len(t.hops) - 1; i >= 0; i-- {
		f.end(t.hops[i])
	}
}

// start brings one target up and returns when it answers as it should.
func (f *fleet) start(ctx context.Context, name string) (*target, error) {
	t := &target{name: name, addr: f.app, host: "bench.localhost"}
	var err error
	switch name {
	case targetDirect:
	case targetProxy1:
		err = f.startProxies(ctx, t, 1)
	case targetProxy2:
		err = f.startProxies(ctx, t, 2)
	case targetPostern:
		err = f.startPostern(ctx, t)
	default:
		err = fmt.Errorf("no such target: %s", name)
	}
	if err == nil {
		err = t.untilAnswering(ctx)
	}
	if err != nil {
		f.stop(t)
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return t, nil
}

// startProxies puts n baseline hops in front of t.
func (f *fleet) startProxies(ctx context.Context, t *target, n int) error {
	for i := n; i > 0; i-- {
		hop, err := f.server(ctx, fmt.Sprintf("%s-hop%d", t.name, i), roleProxy, t.addr)
		if err != nil {
			return err
		}
		t.hops = append([]*process{hop.process}, t.hops...)
		t.addr = hop.addr
	}
	return nil
}

// served is a child that listens on addr.
type served struct {
	*process
	addr string
}

// server starts this binary as a server and waits for its address.
func (f *fleet) server(ctx context.Context, name, role string, args ...string) (served, error) {
	c, err := roleCommand(f.dir, name, role, args...)
	if err != nil {
		return served{}, err
	}
	p, err := f.child(ctx, c)
	if err != nil {
		return served{}, err
	}
	addr, err := p.line(ctx, startsWithin)
	if err != nil {
		f.end(p)
		return served{}, err
	}
	return served{p, addr}, nil
}

func (f *fleet) child(ctx context.Context, c command) (*process, error) {
	p, err := startProcess(ctx, c)
	if err == nil {
		f.children = append(f.children, p)
	}
	return p, err
}

// startPostern starts a relay with an empty store and one agent for the app.
//
//	startPostern → build → startRelay → newToken
//	             → startAgent
func (f *fleet) startPostern(ctx context.Context, t *target) error {
	if err := f.build(ctx); err != nil {
		return err
	}
	data, err := os.MkdirTemp(f.dir, "data-")
	if err != nil {
		return err
	}
	if err := f.startRelay(ctx, t, data); err != nil {
		return err
	}
	return f.startAgent(ctx, t, f.app)
}

// startAgent starts an agent for the app at addr.
func (f *fleet) startAgent(ctx context.Context, t *target, addr string) error {
	agent, err := f.child(ctx, command{
		name: "agent",
		path: filepath.Join(f.bin, "postern"),
		args: []string{"agent", "--to", addr},
		env:  []string{"POSTERN_RELAY=" + t.relay, "POSTERN_TOKEN=" + t.token, "POSTERN_INSTANCE=bench.1"},
		dir:  f.dir,
	})
	if err != nil {
		return err
	}
	t.hops = append(t.hops, agent)
	return nil
}

// startRelay starts a relay on the folder data and makes the token of an agent.
func (f *fleet) startRelay(ctx context.Context, t *target, data string, more ...string) error {
	free, err := freeAddresses(2)
	if err != nil {
		return err
	}
	t.addr, t.admin, t.relay = free[0], free[1], "http://"+free[0]
	env := append(more,
		"POSTERN_DATA="+data,
		"POSTERN_LISTEN="+t.addr,
		"POSTERN_ADMIN_LISTEN="+t.admin,
		"POSTERN_PUBLIC_URL="+t.relay,
		"POSTERN_APPS_DOMAIN=localhost",
	)
	path := filepath.Join(f.bin, "postern-relay")
	relay, err := f.child(ctx, command{name: "relay", path: path, args: []string{"serve"}, env: env, dir: f.dir})
	if err != nil {
		return err
	}
	t.hops = append(t.hops, relay)
	if err := t.until(ctx, "ready", func(ctx context.Context) error { return ready(ctx, t.relay+"/readyz") }); err != nil {
		return err
	}
	t.token, err = newToken(ctx, path, env)
	return err
}

// newToken has the relay's offline verb print an agent's token.
func newToken(ctx context.Context, relay string, env []string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, startsWithin)
	defer cancel()
	cmd := exec.CommandContext(ctx, relay, "token", "create", "--app", "bench", "--scope", "agent")
	cmd.Env = append(cleanEnvironment(), env...)
	cmd.SysProcAttr = childAttributes()
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return "", fmt.Errorf("create token: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// build compiles the product once, unless its binaries were given.
func (f *fleet) build(ctx context.Context) error {
	if f.bin != "" || f.built != nil {
		return f.built
	}
	ctx, cancel := context.WithTimeout(ctx, buildsWithin)
	defer cancel()
	bin := filepath.Join(f.dir, "bin")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", bin+string(filepath.Separator), "./cmd/postern", "./cmd/postern-relay")
	cmd.Dir = f.root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.SysProcAttr = childAttributes()
	if out, err := cmd.CombinedOutput(); err != nil {
		f.built = fmt.Errorf("build the product: %w: %s", err, out)
		return f.built
	}
	f.bin = bin
	return nil
}

// untilAnswering returns when GET /small brings the app's own answer.
func (t *target) untilAnswering(ctx context.Context) error {
	return t.until(ctx, "answering", func(ctx context.Context) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+t.addr+"/small", nil)
		if err != nil {
			return err
		}
		request.Host = t.host
		body, err := get(request)
		if err == nil && body != smallBody {
			err = fmt.Errorf("another answer than the app's: %.200q", body)
		}
		return err
	})
}

// until tries probe until it succeeds, a hop ends or startsWithin is over.
func (t *target) until(ctx context.Context, what string, probe func(context.Context) error) error {
	return t.untilWithin(ctx, startsWithin, what, probe)
}

// untilWithin is until with another limit.
func (t *target) untilWithin(ctx context.Context, limit time.Duration, what string, probe func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		err := probe(ctx)
		if err == nil {
			return nil
		}
		if died := t.alive(); died != nil {
			return died
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return fmt.Errorf("not %s within %v: %w", what, limit, err)
		}
	}
}

// alive returns an error if a hop has ended.
func (t *target) alive() error {
	for _, hop := range t.hops {
		if err := hop.running(); err != nil {
			return err
		}
	}
	return nil
}

func ready(ctx context.Context, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	_, err = get(request)
	return err
}

// get returns the body of a 200, at most 64 KiB of it.
func get(request *http.Request) (string, error) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, 64<<10))
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %s: %.200s", answer.Status, body)
	}
	return string(body), err
}

// freeAddresses returns n loopback addresses that nobody listens on now.
func freeAddresses(n int) ([]string, error) {
	var free []string
	for range n {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer listener.Close()
		free = append(free, listener.Addr().String())
	}
	return free, nil
}
