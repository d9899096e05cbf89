package tunnel

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/relay"
)

func starting(h protocol.Hello) protocol.Hello {
	h.State = protocol.StateStarting
	return h
}

// tell lets the agent of l say how its app is, and waits until that is known.
func (l *link) tell(t *testing.T, state protocol.AppState, why string) {
	t.Helper()
	if err := l.agent.SetState(state, why); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	if got, _ := l.tunnel.AppState(); got != state {
		t.Fatalf("the relay knows the app as %s, want %s", got, state)
	}
}

func TestNothingIsSentToAnAppThatIsStarting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var connected []relay.AppID
		r := NewRegistry(Limits{}, func(id relay.AppID) { connected = append(connected, id) })
		l := connect(t, r, "shop", starting(hello("web.1", "a", 0)), protocol.Handler{})
		if r.Connected("shop") || len(connected) != 0 {
			t.Fatal("an app that is starting counts as connected")
		}
		got := make(chan error, 1)
		go func() {
			tun, err := r.acquire(t.Context(), "shop", &attempts{})
			if err == nil {
				r.release(tun)
			}
			got <- err
		}()
		time.Sleep(3 * time.Second)
		select {
		case err := <-got:
			t.Fatalf("a request did not wait for the app: %v", err)
		default:
		}
		l.tell(t, protocol.StateReady, "")
		if err := <-got; err != nil {
			t.Errorf("a request that waited for the app: %v", err)
		}
		if !r.Connected("shop") || !slices.Equal(connected, []relay.AppID{"shop"}) {
			t.Errorf("ready app: connected %v, told of %v", r.Connected("shop"), connected)
		}
	})
}

func TestARequestWaitsForAStartingAppOnlySoLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRegistry(Limits{}, nil)
		connect(t, r, "shop", starting(hello("web.1", "a", 0)), protocol.Handler{})
		begun := time.Now()
		_, err := r.acquire(t.Context(), "shop", &attempts{})
		if relay.CodeOf(err) != relay.AppStarting || time.Since(begun) != 8*time.Second {
			t.Errorf("after %v: %v, want %s after 8 s", time.Since(begun), err, relay.AppStarting)
		}
	})
}

func TestAnAppThatFailedIsRefusedAtOnceAndSaysWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRegistry(Limits{}, nil)
		l := connect(t, r, "shop", hello("web.1", "a", 0), protocol.Handler{})
		l.tell(t, protocol.StateFailed, "node listens on 3000, not on 5000")
		begun := time.Now()
		_, err := r.acquire(t.Context(), "shop", &attempts{})
		if relay.CodeOf(err) != relay.AppRefused || time.Since(begun) > 0 {
			t.Errorf("after %v: %v, want %s at once", time.Since(begun), err, relay.AppRefused)
		}
		var shown *relay.Error
		if !errors.As(err, &shown) || strings.Contains(shown.Message, "3000") || !strings.Contains(err.Error(), "3000") {
			t.Errorf("the log says %q, the client %q: the reason is for the log only", err, shown.Message)
		}
		if r.Connected("shop") {
			t.Error("an app that failed counts as connected: its webhooks would be tried in vain")
		}
		// Somebody who waits hears of it too.
		l.tell(t, protocol.StateStarting, "")
		got := make(chan error, 1)
		go func() { _, err := r.acquire(t.Context(), "shop", &attempts{}); got <- err }()
		synctest.Wait()
		l.tell(t, protocol.StateFailed, "gone")
		if err := <-got; relay.CodeOf(err) != relay.AppRefused {
			t.Errorf("who waited: %v, want %s", err, relay.AppRefused)
		}
	})
}

// At a deploy the new copy is connected long before its app listens. Until then
// the old one has the work.
func TestASuccessorThatIsStartingLeavesTheWorkToTheOldOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRegistry(Limits{}, nil)
		old := connect(t, r, "shop", hello("web.1", "a", 0), protocol.Handler{})
		successor := connect(t, r, "shop", starting(hello("web.1", "b", 0)), protocol.Handler{})
		for range 4 {
			if got := acquireNow(t, r); got != old.tunnel {
				t.Fatal("work went to the copy that is still starting")
			}
		}
		if old.tunnel.current() != live {
			t.Fatalf("the old one is in state %d before the new one is ready", old.tunnel.current())
		}
		successor.tell(t, protocol.StateReady, "")
		if got := acquireNow(t, r); got != successor.tunnel {
			t.Error("work goes on to the old copy")
		}
		if old.tunnel.current() != replaced {
			t.Errorf("the old one is in state %d, want replaced", old.tunnel.current())
		}
	})
}

// A platform that stops every process at once makes the app deaf a moment before its
// agent can say so. The request that came in between waits for the next copy.
func TestARefusalThatIsExplainedByAStopIsWaitedOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRegistry(Limits{}, nil)
		old := connect(t, r, "shop", hello("web.1", "a", 0), protocol.Handler{})
		past := &attempts{}
		tun, err := r.acquire(t.Context(), "shop", past)
		if err != nil {
			t.Fatal(err)
		}
		r.release(tun)
		if !past.again(tun, &protocol.Error{Code: protocol.CodeRefused, Message: "nothing listens", Unsent: true}) {
			t.Fatal("a refused request may go elsewhere")
		}
		got := make(chan error, 1)
		go func() {
			tun, err := r.acquire(t.Context(), "shop", past)
			if err == nil {
				r.release(tun)
			}
			got <- err
		}()
		time.Sleep(refusalTime / 2)
		old.tunnel.advance(draining)
		r.wake("shop")
		time.Sleep(3 * time.Second)
		connect(t, r, "shop", hello("web.1", "b", 0), protocol.Handler{})
		if err := <-got; err != nil {
			t.Errorf("%v, want the next copy", err)
		}
	})
}

// A worker dyno is connected to be looked at. To a webhook it is nobody.
func TestAWorkerIsNobodyToSendTo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRegistry(Limits{}, nil)
		woken := false
		r.Absent = func(relay.AppID) bool { woken = true; return false }
		worker := hello("worker.1", "a", 0)
		worker.State = protocol.StateNone
		connect(t, r, "shop", worker, protocol.Handler{})
		time.Sleep(time.Minute)
		if _, err := r.acquire(t.Context(), "shop", &attempts{}); relay.CodeOf(err) != relay.NoAgent || !woken {
			t.Errorf("%v, asked for the app: %v; want %s and yes", err, woken, relay.NoAgent)
		}
		web := connect(t, r, "shop", hello("web.1", "b", 0), protocol.Handler{})
		if got := acquireNow(t, r); got != web.tunnel {
			t.Error("work went to the worker")
		}
	})
}

func TestASleepingAppIsWokenAndWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRegistry(Limits{ParkFor: time.Second}, nil)
		woken := 0
		r.Absent = func(relay.AppID) bool { woken++; return true }
		time.Sleep(time.Minute) // the last agent left long ago: nobody would be parked
		got := make(chan error, 1)
		go func() {
			tun, err := r.acquire(t.Context(), "shop", &attempts{})
			if err == nil {
				r.release(tun)
			}
			got <- err
		}()
		time.Sleep(20 * time.Second)
		connect(t, r, "shop", hello("web.1", "a", 0), protocol.Handler{})
		if err := <-got; err != nil || woken != 1 {
			t.Errorf("%v after %d calls, want one call and the agent", err, woken)
		}
		// One that does not sleep is not waited for.
		r.Absent = func(relay.AppID) bool { return false }
		if _, err := r.acquire(t.Context(), "books", &attempts{}); relay.CodeOf(err) != relay.NoAgent {
			t.Errorf("an app that nobody wakes: %v", err)
		}
	})
}

func TestInstancesAreListedOncePerBoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRegistry(Limits{}, nil)
		first := connect(t, r, "shop", starting(hello("web.1", "a", 0)), protocol.Handler{})
		time.Sleep(time.Second)
		connect(t, r, "shop", starting(hello("web.1", "a", 1)), protocol.Handler{})
		connect(t, r, "shop", hello("web.2", "b", 0), protocol.Handler{})
		connect(t, r, "books", hello("web.1", "c", 0), protocol.Handler{})
		first.tell(t, protocol.StateReady, "")
		in := r.Instances("shop")
		if len(in) != 2 || in[0].Name != "web.1" || in[0].Tunnels != 2 || in[0].State != protocol.StateReady || in[0].Draining {
			t.Fatalf("instances of shop: %+v", in)
		}
		if all := r.Instances(""); len(all) != 3 || all[0].App != "books" {
			t.Errorf("all instances: %+v", all)
		}
	})
}

func TestAStreamGoesToTheInstanceThatIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRegistry(Limits{}, nil)
		asked := make(chan string, 4)
		h := func(name string) protocol.Handler {
			return protocol.Handler{Stream: func(_ context.Context, s *protocol.Stream) {
				asked <- name
				s.Accept()
				s.CloseWrite()
			}}
		}
		failed := connect(t, r, "shop", hello("web.1", "a", 0), h("web.1 of boot a"))
		failed.tell(t, protocol.StateFailed, "")
		connect(t, r, "shop", hello("web.2", "b", 0), h("web.2"))
		open := func(instance, boot string) error {
			c, err := r.OpenInstance(t.Context(), "shop", instance, boot, protocol.Open{Kind: protocol.KindLogs, Logs: &protocol.LogQuery{}})
			if err == nil {
				c.Close()
			}
			return err
		}
		if err := open("web.1", ""); err != nil || <-asked != "web.1 of boot a" {
			t.Errorf("an app that failed is the one to be looked at: %v", err)
		}
		time.Sleep(time.Second)
		connect(t, r, "shop", hello("web.1", "c", 0), h("web.1 of boot c"))
		for boot, want := range map[string]string{"": "web.1 of boot c", "0123456789-a": "web.1 of boot a"} {
			if err := open("web.1", boot); err != nil {
				t.Errorf("boot %q: %v", boot, err)
			} else if got := <-asked; got != want {
				t.Errorf("boot %q went to %s", boot, got)
			}
		}
		if err := open("web.9", ""); relay.CodeOf(err) != relay.NotFound {
			t.Errorf("an instance that is not there: %v", err)
		}
		if n := failed.tunnel.InFlight(); n != 0 {
			t.Errorf("%d streams in flight after all were closed", n)
		}
	})
}
