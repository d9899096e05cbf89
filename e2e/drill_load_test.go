package e2e

import (
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/posternhq/postern/e2e/rig"
)

// drillLoad is the traffic of a small shop: visitors in a hurry, reports that
// take their time, and a provider that sends webhooks.
type drillLoad struct {
	answers tally

	addr, host, relay string
	ended             chan struct{}
	once              sync.Once // closes ended
	running           sync.WaitGroup

	mu       sync.Mutex
	byCopy   map[string]int // guarded by mu; answers of each copy
	slow     map[string]int // guarded by mu; those that took a second or two
	accepted []string       // guarded by mu; ids of webhooks
	refused  []string       // guarded by mu; what a webhook saw besides 202
}

const (
	drillVisitors = 6
	drillReports  = 4
	drillPause    = 10 * time.Millisecond // of a visitor between two requests
	webhookEvery  = 40 * time.Millisecond
)

func startDrillLoad(t testing.TB, r *rig.Relay) *drillLoad {
	l := &drillLoad{
		addr: r.Addr, host: r.AppHost("shop"), relay: r.Addr, ended: make(chan struct{}),
		byCopy: map[string]int{}, slow: map[string]int{},
	}
	t.Cleanup(l.stop)
	for n := range drillVisitors {
		l.running.Go(func() { l.visitor(n) })
	}
	for n := range drillReports {
		l.running.Go(func() { l.reports(n) })
	}
	l.running.Go(l.provider)
	return l
}

// visitor asks one quick page after the other, and posts a form now and then.
func (l *drillLoad) visitor(n int) {
	c := &caller{addr: l.addr, host: l.host}
	defer c.close()
	for i := 0; l.pause(drillPause); i++ {
		if (n+i)%3 == 0 {
			l.note(c.call(http.MethodPost, "/?ms=20", nil, make([]byte, 2000)), false)
		} else {
			l.note(c.call(http.MethodGet, "/?ms=5", nil, nil), false)
		}
	}
}

// reports asks for what takes one to two seconds.
func (l *drillLoad) reports(n int) {
	c := &caller{addr: l.addr, host: l.host}
	defer c.close()
	for i := n; l.pause(drillPause); i++ {
		l.note(c.call(http.MethodGet, fmt.Sprintf("/?ms=%d", 1000+250*(i%5)), nil, nil), true)
	}
}

func (l *drillLoad) provider() {
	c := &caller{addr: l.addr, host: l.relay}
	defer c.close()
	for n := 0; l.pause(webhookEvery); n++ {
		l.webhook(c, n)
	}
}

func (l *drillLoad) note(s seen, slow bool) {
	l.mu.Lock()
	if s.ok() {
		l.byCopy[string(s.Body)]++
		if slow {
			l.slow[string(s.Body)]++
		}
	}
	l.mu.Unlock()
	l.answers.add(s)
}

// pause is false when the load is over.
func (l *drillLoad) pause(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-l.ended:
		return false
	}
}

// stop waits for the requests under way and ends the load.
func (l *drillLoad) stop() {
	l.once.Do(func() { close(l.ended) })
	l.running.Wait()
}

// awaitAnswers waits for n answers of a copy from now on.
func (l *drillLoad) awaitAnswers(t testing.TB, name string, n int) {
	t.Helper()
	l.await(t, name, n, l.byCopy)
}

// awaitSlow waits for n slow answers of a copy from now on.
func (l *drillLoad) awaitSlow(t testing.TB, name string, n int) {
	t.Helper()
	l.await(t, name, n, l.slow)
}

func (l *drillLoad) await(t testing.TB, name string, n int, counts map[string]int) {
	t.Helper()
	now := func() int {
		l.mu.Lock()
		defer l.mu.Unlock()
		return counts[name]
	}
	before := now()
	rig.Eventually(t, 3*wait, "answers of the "+name+" copy", func() error {
		if have := now() - before; have < n {
			return fmt.Errorf("%d of %d", have, n)
		}
		return nil
	})
}
