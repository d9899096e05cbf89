package rig

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
)

// AgentConfig says how to start an agent. Zero fields have defaults.
type AgentConfig struct {
	App      string   // default "shop"
	Token    string   // default: a new one for App
	URL      string   // of the relay; default its own, else something in between
	Instance string   // default: one of its own
	Tunnels  int      // default 2, as the product's; below 0 the flag is not given
	Flags    []string // more flags
	Env      []string // more environment
	// NoWait returns at once, for agents that are not to connect, or not yet.
	NoWait bool
	// NoPort starts postern run without PORT, as platforms do that give none.
	NoPort bool
	// Under is what starts the agent, with its arguments: unshare, setpriv. The
	// process of the Agent is then that one, unless it becomes the agent.
	Under []string
}

// Agent is one postern agent or postern run.
type Agent struct {
	*Process
	Instance string
	Tunnels  int
	Target   string // where the app listens

	relay *Relay
}

var instances atomic.Int64

// StartAgent runs postern agent --to target and waits until all its tunnels
// are open.
func (r *Relay) StartAgent(target string, cfg AgentConfig) *Agent {
	r.t.Helper()
	return r.startAgent(cfg, target, "agent", func(flags []string) []string {
		return append(append([]string{"agent"}, flags...), "--to", target)
	})
}

// StartRun runs postern run -- app and waits until all its tunnels are open and
// the app listens. See AppCommand for an app.
func (r *Relay) StartRun(app Command, cfg AgentConfig) *Agent {
	r.t.Helper()
	target := FreeAddr(r.t)
	_, port, _ := net.SplitHostPort(target)
	env := append([]string{"PORT=" + port}, app.Env...)
	if cfg.NoPort {
		env = env[1:]
	}
	cfg.Env = append(env, cfg.Env...)
	a := r.startAgent(cfg, target, "run", func(flags []string) []string {
		return append(append(append([]string{"run"}, flags...), "--"), app.Args...)
	})
	if !cfg.NoWait {
		a.AwaitApp()
	}
	return a
}

// AwaitApp waits until the agent has said that its app listens.
func (a *Agent) AwaitApp() {
	a.t.Helper()
	if err := a.Log.wait(StartsWithin, 0, 1, a.done, `msg="app listens"`, "by=postern"); err != nil {
		a.t.Fatalf("the app of %s does not listen: %v", a.Name, err)
	}
}

func (r *Relay) startAgent(cfg AgentConfig, target, verb string, args func(flags []string) []string) *Agent {
	r.t.Helper()
	if cfg.App == "" {
		cfg.App = "shop"
	}
	if cfg.Token == "" {
		cfg.Token = r.Token(cfg.App)
	}
	if cfg.URL == "" {
		cfg.URL = r.URL
	}
	if cfg.Instance == "" {
		cfg.Instance = fmt.Sprintf("web.%d.", instances.Add(1))
	}
	if cfg.Tunnels == 0 {
		cfg.Tunnels = 2
	}
	mark := r.Log.Len()
	line := append(cfg.Under[:len(cfg.Under):len(cfg.Under)], Binary(r.t, "postern"))
	if cfg.Tunnels > 0 {
		cfg.Flags = append([]string{"--tunnels", strconv.Itoa(cfg.Tunnels)}, cfg.Flags...)
	}
	line = append(line, args(cfg.Flags)...)
	p, err := start(r.t, command{
		name: "postern " + verb,
		path: line[0],
		args: line[1:],
		env:  append([]string{"POSTERN_RELAY=" + cfg.URL, "POSTERN_TOKEN=" + cfg.Token, "POSTERN_INSTANCE=" + cfg.Instance}, cfg.Env...),
	})
	if err != nil {
		r.t.Fatal(err)
	}
	a := &Agent{Process: p, Instance: cfg.Instance, Tunnels: cfg.Tunnels, Target: target, relay: r}
	if !cfg.NoWait {
		a.AwaitTunnels(mark)
	}
	return a
}

// AwaitTunnels waits until the relay has counted in all tunnels of the agent
// since mark, a length of the relay's log.
func (a *Agent) AwaitTunnels(mark int) {
	a.t.Helper()
	// The relay's word and not the agent's: the agent is welcomed just before the
	// relay sends requests to it.
	err := a.relay.Log.wait(StartsWithin, mark, a.Tunnels, a.done, `msg="tunnel open"`, "instance="+a.Instance+" ")
	if err != nil {
		a.t.Fatalf("%s does not connect: %v", a.Name, err)
	}
}

// Command is a program for postern run.
type Command struct {
	Args []string
	Env  []string
}

// AppCommand is this test binary as an app: a process that listens on PORT and
// hands every connection to target, an address from Serve or ServeRaw. On
// SIGTERM it takes no more connections, finishes those it has, and exits 0. It
// needs Main in TestMain.
func AppCommand(t testing.TB, target string) Command {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return Command{Args: []string{self}, Env: []string{shimVariable + "=" + target}}
}
