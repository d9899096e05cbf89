package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/posternhq/postern/e2e/rig"
)

// load is a crowd of clients that ask a loadApp one request after another, of
// all sorts, each with an id of its own.
type load struct {
	answers tally

	addr, host string
	ended      chan struct{}
	once       sync.Once // closes ended
	running    sync.WaitGroup

	mu  sync.Mutex
	ids []string // guarded by mu; of the requests that were sent
}

// sorts are the requests of a load, in turns.
var sorts = []struct {
	method, target string
	send, receive  int // bytes
}{
	{http.MethodGet, "/?size=10", 0, 10},
	{http.MethodPost, "/", 100, 0},
	{http.MethodGet, "/?size=200000", 0, 200000},
	{http.MethodPost, "/?size=10", 200000, 10},
	{http.MethodGet, "/?ms=300", 0, 0},
	{http.MethodPost, "/?ms=300&size=200000", 1000, 200000},
}

// startLoad starts the clients; stop ends them.
func startLoad(t testing.TB, addr, host string, clients int) *load {
	l := &load{addr: addr, host: host, ended: make(chan struct{})}
	t.Cleanup(l.end)
	for n := range clients {
		l.running.Go(func() { l.client(n) })
	}
	return l
}

// client asks until stop.
func (l *load) client(n int) {
	c := &caller{addr: l.addr, host: l.host}
	defer c.close()
	body := bytes.Repeat([]byte{byte('a' + n%26)}, 200000)
	for i := 0; ; i++ {
		select {
		case <-l.ended:
			return
		default:
		}
		sort := sorts[(n+i)%len(sorts)]
		id := fmt.Sprintf("%d-%d", n, i)
		l.mu.Lock()
		l.ids = append(l.ids, id)
		l.mu.Unlock()
		s := c.call(sort.method, sort.target, http.Header{idHeader: {id}}, body[:sort.send])
		if s.ok() && !bytes.Equal(s.Body, loadAnswer(body[:sort.send], sort.receive)) {
			s.Err = fmt.Errorf("a wrong answer of %d bytes to %s %s", len(s.Body), sort.method, sort.target)
		}
		s.Body = nil // there are many
		l.answers.add(s)
		if s.Status == 0 {
			l.pause() // nobody listens
		}
	}
}

// pause keeps clients of a relay that is away from spinning.
func (l *load) pause() {
	timer := time.NewTimer(5 * time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-l.ended:
	}
}

// stop waits for the requests under way and ends the clients.
func (l *load) stop() {
	l.end()
	l.running.Wait()
}

func (l *load) end() { l.once.Do(func() { close(l.ended) }) }

// awaitAnswers waits until there are n answers in all.
func (l *load) awaitAnswers(t testing.TB, n int) {
	t.Helper()
	rig.Eventually(t, 3*wait, "the load", func() error {
		if have := len(l.answers.list()); have < n {
			return fmt.Errorf("%d of %d answers", have, n)
		}
		return nil
	})
}

// awaitSuccess waits until a request that began after since was answered.
func (l *load) awaitSuccess(t testing.TB, since time.Time) {
	t.Helper()
	rig.Eventually(t, 3*wait, "the load", func() error {
		for _, s := range l.answers.list() {
			if s.ok() && s.From.After(since) {
				return nil
			}
		}
		return errors.New("nothing is answered")
	})
}

// checkNoneTwice fails the test when an app has had a request more than once, or
// never had one that was answered.
func (l *load) checkNoneTwice(t testing.TB, apps *ledger) {
	t.Helper()
	missing, twice := 0, 0
	for _, id := range l.ids {
		switch n := apps.count(id); {
		case n == 0:
			missing++
		case n > 1:
			twice++
		}
	}
	if twice > 0 {
		t.Errorf("%d of %d requests were at an app more than once", twice, len(l.ids))
	}
	if failed := len(l.answers.failures()); missing > failed {
		t.Errorf("%d requests never reached an app, but only %d failed", missing, failed)
	}
}
