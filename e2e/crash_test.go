package e2e

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/posternhq/postern/e2e/rig"
	"github.com/posternhq/postern/relay/selftest"
)

// crashLoad is how long the killing goes on: POSTERN_E2E_CRASH=10m makes it long.
func crashLoad(t *testing.T) time.Duration {
	t.Helper()
	value := os.Getenv("POSTERN_E2E_CRASH")
	if value == "" {
		return 30 * time.Second
	}
	d, err := time.ParseDuration(value)
	if err != nil || d <= 0 {
		t.Fatalf("POSTERN_E2E_CRASH=%q is no length of time", value)
	}
	return d
}

// crashSeed is where all that is random begins: POSTERN_E2E_SEED repeats a run,
// as far as the machine lets it.
func crashSeed(t *testing.T) uint64 {
	t.Helper()
	seed := rand.Uint64N(1 << 32)
	if value := os.Getenv("POSTERN_E2E_SEED"); value != "" {
		var err error
		if seed, err = strconv.ParseUint(value, 10, 64); err != nil {
			t.Fatalf("POSTERN_E2E_SEED=%q is no number", value)
		}
	}
	t.Logf("POSTERN_E2E_SEED=%d", seed)
	return seed
}

// settlesWithin is how long nothing may come before the rest is called lost.
const settlesWithin = 40 * time.Second

// victim is something to kill, and to start again.
type victim struct {
	name   string
	what   string // two victims with the same are two ways to kill one thing
	weight int
	kill   func() bool // false: there was nothing to kill
	start  func()
	kills  int
}

// The promise of a 2xx, while everything that could break it dies at random
// moments. Duplicates carry the same ids, order per key is kept, bytes arrive as
// they were sent.
func TestWhateverIsKilledWhatWasAcknowledgedIsDelivered(t *testing.T) {
	seed := crashSeed(t)
	s := newCrashSite(t, crashConfig{})
	r := rand.New(rand.NewPCG(seed, 1))
	victims := s.everything(r)
	s.send(&selftest.Load{Targets: s.targets(), Senders: 24, Rate: 500, Seed: seed})
	s.awaitAcknowledged(100)

	for end := time.Now().Add(crashLoad(t)); time.Now().Before(end); {
		<-time.After(200*time.Millisecond + time.Duration(r.Int64N(int64(1200*time.Millisecond))))
		v := choose(r, victims)
		killed := []*victim{v}
		if second := choose(r, victims); second.what != v.what && r.IntN(4) == 0 {
			killed = append(killed, second) // a machine dies whole
		}
		for _, v := range killed {
			if v.kill() {
				v.kills++
			}
		}
		<-time.After(time.Duration(r.Int64N(int64(300 * time.Millisecond))))
		for _, v := range killed {
			v.start()
		}
	}
	s.endLoad()
	ended := time.Now()
	violations := s.settle(settlesWithin)
	c := s.ledger.Counts()
	t.Logf("settled after %v", time.Since(ended).Round(time.Millisecond))
	for _, v := range victims {
		t.Logf("killed %d times: %s", v.kills, v.name)
	}
	t.Logf("%+v", c)
	s.report(violations)
	if c.Acknowledged < 300 || victims[0].kills == 0 {
		t.Error("that proves little")
	}
	s.stopRelay()
}

func choose(r *rand.Rand, victims []*victim) *victim {
	sum := 0
	for _, v := range victims {
		sum += v.weight
	}
	n := r.IntN(sum)
	for _, v := range victims {
		if n -= v.weight; n < 0 {
			return v
		}
	}
	panic("unreachable")
}

// everything starts two copies of the app, one beside an agent and one behind
// postern run, and lists what can be killed.
func (s *crashSite) everything(r *rand.Rand) []*victim {
	postern := rig.Binary(s.t, "postern")
	beside := rig.FreeAddr(s.t)
	app := s.app("app", beside)
	agent := s.process("agent", s.agentEnv("web.1"), postern, "agent", "--to", beside)
	behind := rig.FreeAddr(s.t)
	run := s.process("run", append(s.agentEnv("web.2"), s.appEnv("run-app", behind)...),
		append([]string{postern, "run", "--"}, crashAppCommand()...)...)
	for _, p := range []*selftest.Process{app, agent, run} {
		s.start(p)
	}
	process := func(name string, weight int, p *selftest.Process) *victim {
		return &victim{name: name, what: name, weight: weight,
			kill:  func() bool { p.Kill(); return true },
			start: func() { s.start(p) },
		}
	}
	// postern run ends with its app, whichever of the two is killed.
	down := false
	restart := func() {
		if !down {
			return
		}
		select {
		case <-run.Done():
		case <-time.After(10 * time.Second):
			s.t.Fatal("postern run goes on without its app")
		}
		s.start(run)
		down = false
	}
	wrapper := func() bool {
		os.Remove(s.pidFile("run-app"))
		run.Kill()
		down = true
		return true
	}
	wrapped := func() bool {
		killed := killApp(s.pidFile("run-app"))
		down = down || killed
		return killed
	}
	return []*victim{
		{name: "relay", what: "relay", weight: 40, kill: func() bool { s.relay.Kill(); return true }, start: func() { s.comeBack(r) }},
		{name: "relay, told to stop", what: "relay", weight: 10, kill: func() bool { s.stopRelay(); return true }, start: s.startRelay},
		process("agent", 20, agent),
		process("app", 20, app),
		{name: "postern run", what: "run", weight: 10, kill: wrapper, start: restart},
		{name: "app behind postern run", what: "run", weight: 10, kill: wrapped, start: restart},
	}
}

// stopRelay ends the relay as a deploy does.
func (s *crashSite) stopRelay() {
	s.t.Helper()
	if err := s.relay.Stop(); err != nil {
		s.t.Errorf("the relay stops with %v", err)
	}
}

// comeBack starts the relay. Some of its lives end before it is ready: what it
// does with what it finds must bear that too.
func (s *crashSite) comeBack(r *rand.Rand) {
	s.t.Helper()
	for r.IntN(4) == 0 {
		s.start(&s.relay.Process)
		<-time.After(time.Duration(r.Int64N(int64(150 * time.Millisecond))))
		s.relay.Kill()
	}
	s.startRelay()
}

// oneAgent starts an app and an agent beside it.
func (s *crashSite) oneAgent() {
	addr := rig.FreeAddr(s.t)
	s.start(s.app("app", addr))
	s.start(s.process("agent", s.agentEnv("web.1"), rig.Binary(s.t, "postern"), "agent", "--to", addr))
}
