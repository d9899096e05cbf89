package wake

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/posternhq/postern/relay"
)

// platform starts an app some time after it was visited, and then its agent
// connects.
type platform struct {
	boots   time.Duration // from the visit to the answer
	agent   time.Duration // from the answer to the agent; negative: never
	err     error         // the answer
	visits  atomic.Int32
	running atomic.Int32 // visits under way
	most    atomic.Int32 // of those, at once
	up      atomic.Bool
	w       *Waker
}

func (p *platform) visit(ctx context.Context, _ string) error {
	p.visits.Add(1)
	if n := p.running.Add(1); n > p.most.Load() {
		p.most.Store(n)
	}
	defer p.running.Add(-1)
	select {
	case <-time.After(p.boots):
	case <-ctx.Done():
		return ctx.Err()
	}
	if p.err == nil && p.agent >= 0 {
		time.AfterFunc(p.agent, p.comes)
	}
	return p.err
}

func (p *platform) comes() {
	p.up.Store(true)
	p.w.Arrived("shop")
}

func (p *platform) waker(url string) *Waker {
	p.w = New(Config{
		URL: func(relay.AppID) string { return url }, Visit: p.visit,
		Connected: func(relay.AppID) bool { return p.up.Load() },
	})
	return p.w
}

func TestOneVisitWakesAnAppHoweverManyAsk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &platform{boots: 20 * time.Second, agent: time.Second}
		w := p.waker("https://shop.example.com")
		defer w.Close()
		for range 100 {
			if !w.Wake("shop") {
				t.Fatal("an app with a public URL is not woken")
			}
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(time.Hour)
		if n := p.visits.Load(); n != 1 {
			t.Errorf("%d visits, want 1", n)
		}
		// It sleeps again, and is woken again.
		p.up.Store(false)
		w.Wake("shop")
		time.Sleep(time.Minute)
		if n := p.visits.Load(); n != 2 || !p.up.Load() {
			t.Errorf("after another sleep: %d visits, up %v", n, p.up.Load())
		}
	})
}

func TestAnAppWithoutAPublicURLIsNotWoken(t *testing.T) {
	p := &platform{}
	w := p.waker("")
	defer w.Close()
	if w.Wake("shop") || p.visits.Load() != 0 {
		t.Error("something was visited")
	}
}

func TestAnAppThatDoesNotComeIsVisitedEverMoreRarelyAndThenLeftAlone(t *testing.T) {
	for name, p := range map[string]*platform{
		"no answer": {err: errors.New("connection refused")},
		"no agent":  {agent: -1},
		"too slow":  {boots: time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := p.waker("https://shop.example.com")
				defer w.Close()
				w.Wake("shop")
				time.Sleep(2 * time.Hour)
				first := p.visits.Load()
				if first < 4 || first > 8 || p.most.Load() != 1 {
					t.Errorf("%d visits in two hours, %d at once; want 4 to 8, one at a time", first, p.most.Load())
				}
				w.Wake("shop") // somebody needs it again
				time.Sleep(time.Second)
				if p.visits.Load() != first+1 {
					t.Error("an app that was left alone is not woken again")
				}
			})
		})
	}
}

// An app may sleep again before anybody has looked whether it woke up.
func TestAnAppThatFallsAsleepAtOnceIsWokenAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &platform{boots: time.Second, agent: 0}
		w := p.waker("https://shop.example.com")
		defer w.Close()
		for n := range int32(3) {
			w.Wake("shop")
			time.Sleep(1001 * time.Millisecond)
			if p.visits.Load() != n+1 || !p.up.Swap(false) {
				t.Fatalf("waking %d: %d visits", n+1, p.visits.Load())
			}
		}
	})
}

func TestAnAppThatIsHereAlreadyIsNotVisited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &platform{}
		w := p.waker("https://shop.example.com")
		defer w.Close()
		p.up.Store(true)
		w.Wake("shop")
		time.Sleep(time.Minute)
		if n := p.visits.Load(); n != 0 {
			t.Errorf("%d visits", n)
		}
	})
}

func TestCloseEndsTheWaking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &platform{boots: time.Hour}
		w := p.waker("https://shop.example.com")
		w.Wake("shop")
		synctest.Wait()
		w.Close() // synctest would find a goroutine that is left
		if w.Wake("shop") {
			t.Error("woken after Close")
		}
	})
}
