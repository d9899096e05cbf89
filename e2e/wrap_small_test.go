package e2e

import (
	"os"
	"testing"
	"time"

	"github.com/posternhq/postern/e2e/rig"
)

// What an agent may cost beside an app that is idle and logs.
const (
	idleMemory  = 20 << 10 // KiB
	idleThreads = 12
)

// idleFor is how long the app is idle: POSTERN_IDLE=10m is the real thing.
func idleFor(t *testing.T) time.Duration {
	t.Helper()
	text := os.Getenv("POSTERN_IDLE")
	if text == "" {
		return 20 * time.Second
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("POSTERN_IDLE: %v", err)
	}
	return d
}

// chatty serves and writes some twenty lines a second, as a small app does.
const chatty = `
i=0
while :; do
	i=$((i+1))
	echo "$i method=GET path=/orders/$i status=200 duration=12ms request_id=c0ffee$i user=42"
	sleep 0.05
done &
trap "kill $!" EXIT
"$@"`

func TestAnIdleAgentStaysSmall(t *testing.T) {
	if rig.Race() {
		t.Skip("the race detector needs memory of its own")
	}
	t.Parallel()
	r := rig.StartRelay(t, rig.RelayConfig{})
	app := faultAppCommand(t, "", 0)
	app.Args = append([]string{"/bin/sh", "-c", chatty, "sh"}, app.Args...)
	agent := r.StartRun(app, rig.AgentConfig{Env: []string{"DYNO=web.1", "HEROKU_APP_NAME=shop"}})
	if s := ask(r.Addr, r.AppHost("shop"), "/?size=100000"); !s.ok() {
		t.Fatalf("a request saw %v", s)
	}
	lines := agent.Log.Count(0, "method=GET")
	began := time.Now()
	most, over := int64(0), time.NewTimer(idleFor(t))
	defer over.Stop()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			rss, threads := agent.Status("VmRSS"), agent.Status("Threads")
			if most = max(most, rss); threads > idleThreads {
				t.Fatalf("%d threads after %v", threads, time.Since(began))
			}
			continue
		case <-over.C:
		}
		break
	}
	rss, threads := agent.Status("VmRSS"), agent.Status("Threads")
	logged := agent.Log.Count(0, "method=GET") - lines
	t.Logf("after %v and %d lines: %s resident, at most %s; %d threads",
		time.Since(began).Round(time.Second), logged, mib(rss<<10), mib(most<<10), threads)
	if rss > idleMemory || threads > idleThreads {
		t.Errorf("that is more than %s and %d threads", mib(idleMemory<<10), idleThreads)
	}
	if logged < int(time.Since(began)/time.Second)*8 {
		t.Errorf("the app has written only %d lines: this test shows nothing", logged)
	}
	if s := ask(r.Addr, r.AppHost("shop"), "/"); !s.ok() {
		t.Errorf("after that a request saw %v", s)
	}
}
