package inbox

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/posternhq/postern/relay"
)

// near is for moments that are kept in milliseconds somewhere.
func near(got, want time.Duration) bool {
	return got >= want && got <= want+5*time.Millisecond
}

func TestAnEventIsDeliveredAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.run()
		defer f.halt()
		f.receive("1")
		d := f.store.one()
		if d.State != relay.DeliveryDone || d.Attempt != 1 || d.LastStatus != 200 {
			t.Errorf("delivery %+v", d)
		}
		a := f.store.recorded()[0]
		if a.Delivery != d.ID || a.Outcome != relay.OutcomeDone || a.Status != 200 || string(a.Body) != "the answer" {
			t.Errorf("attempt %+v", a)
		}
		if at := f.callList()[0].at; at != 0 {
			t.Errorf("it took %v", at)
		}
	})
}

func TestAFailureIsTriedAgainOnTheSchedule(t *testing.T) {
	for _, tt := range []struct {
		name   string
		random float64
		want   []time.Duration // when the app is called
	}{
		{"no jitter", 0.5, []time.Duration{0, 7 * time.Second, 67 * time.Second}},
		{"shortest", 0, []time.Duration{0, 5600 * time.Millisecond, 53600 * time.Millisecond}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, func(c *Config) { c.Random = func() float64 { return tt.random } })
				f.ep.Retry.Schedule = []time.Duration{7 * time.Second, time.Minute}
				f.app = answer(500)
				f.run()
				defer f.halt()
				f.receive("1")
				f.pass(time.Hour)
				calls := f.callList()
				if len(calls) != len(tt.want) {
					t.Fatalf("%d calls, want %d", len(calls), len(tt.want))
				}
				for i, c := range calls {
					if !near(c.at, tt.want[i]) {
						t.Errorf("call %d at %v, want %v", i+1, c.at, tt.want[i])
					}
					if got := c.r.Header.Get("Postern-Attempt"); got != fmt.Sprint(i+1) {
						t.Errorf("call %d has Postern-Attempt %q", i+1, got)
					}
				}
				if d := f.store.one(); d.State != relay.DeliveryDead || d.Attempt != 3 {
					t.Errorf("at the end the delivery is %+v", d)
				}
				if !strings.Contains(f.log.String(), "delivery given up") {
					t.Error("nothing in the log says that it was given up")
				}
			})
		})
	}
}

// A retry must not have to wait for the poll because another event came while
// it was waiting.
func TestALaterEventDoesNotMakeARetryLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, func(c *Config) { c.Poll = time.Hour })
		f.ep.Retry.Schedule = []time.Duration{7 * time.Second}
		f.app = answer(500)
		f.run()
		defer f.halt()
		f.receive("1")
		f.set(func() { f.app = answer(200) })
		f.pass(time.Second)
		f.receive("2")
		f.pass(6*time.Second + 5*time.Millisecond)
		if got := f.bodies(); got != "1 2 1" {
			t.Errorf("the app saw %q", got)
		}
	})
}

func TestRetryAfterIsHonoured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.app = answer(503, "Retry-After", "90")
		f.run()
		defer f.halt()
		f.receive("1")
		f.pass(89 * time.Second)
		if n := len(f.callList()); n != 1 {
			t.Errorf("%d calls before the app asked for one", n)
		}
		f.pass(time.Second + 5*time.Millisecond)
		if n := len(f.callList()); n != 2 {
			t.Errorf("%d calls, want the second when the app asked for it", n)
		}
	})
}

func TestWithoutAnAgentNobodyClaims(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.connected = false
		f.run()
		defer f.halt()
		f.receive("1")
		f.pass(72 * time.Hour)
		if n := f.store.claimCount(); n != 0 {
			t.Errorf("%d claims", n)
		}
		if d := f.store.one(); d.State != relay.DeliveryReady || d.Attempt != 0 {
			t.Errorf("delivery %+v", d)
		}
		f.set(func() { f.connected = true })
		f.inbox.AgentConnected(testApp)
		f.settle()
		if d := f.store.one(); d.State != relay.DeliveryDone {
			t.Errorf("the agent is there, and the delivery is %+v", d)
		}
	})
}

// Somebody may be able to wake an app that sleeps, but only when there is work.
func TestAnAbsentAppIsAskedForOnlyWhileSomethingIsDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int32
		f := newFixture(t, func(c *Config) { c.Absent = func(relay.AppID) { asked.Add(1) } })
		f.connected = false
		f.run()
		defer f.halt()
		f.pass(time.Minute)
		if n := asked.Load(); n != 0 {
			t.Fatalf("asked for %d times without any work", n)
		}
		f.receive("1")
		f.pass(time.Minute)
		if n := asked.Load(); n < 2 || n > 30 {
			t.Fatalf("asked for %d times in a minute with a webhook waiting", n)
		}
		f.set(func() { f.connected = true })
		f.inbox.AgentConnected(testApp)
		f.pass(time.Minute)
		asked.Store(0)
		f.set(func() { f.connected = false })
		f.pass(time.Minute)
		if n := asked.Load(); n != 0 {
			t.Errorf("asked for %d times after all was delivered", n)
		}
	})
}

func TestAnAgentThatNobodyAnnouncedIsFoundByThePoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.connected = false
		f.run()
		defer f.halt()
		f.receive("1")
		f.set(func() { f.connected = true })
		f.pass(5 * time.Second)
		if got := f.bodies(); got != "1" {
			t.Errorf("the app saw %q", got)
		}
	})
}

func TestAReconnectedAppIsGivenMoreAndMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, g := newFixture(t), &gate{}
		f.app, f.connected = g.serve, false
		f.run()
		defer f.halt()
		f.receive(strings.Fields(strings.Repeat("x ", 40))...)
		f.set(func() { f.connected = true })
		f.inbox.AgentConnected(testApp)
		f.settle()
		for _, want := range []int{1, 2, 4, 8, 8, 8} {
			if n := g.count(); n != want {
				t.Errorf("%d at the app, want %d", n, want)
			}
			g.open(want)
		}
		// A second agent is no reason to begin again, a lost one is.
		f.inbox.AgentConnected(testApp)
		f.settle()
		if n := g.count(); n != 8 {
			t.Errorf("%d at the app after a second agent came", n)
		}
		f.set(func() { f.connected = false })
		g.open(8)
		if n := g.count(); n != 0 {
			t.Errorf("%d at the app without an agent", n)
		}
		f.set(func() { f.connected = true })
		f.inbox.AgentConnected(testApp)
		f.settle()
		if n := g.count(); n != 1 {
			t.Errorf("%d at the app that just came back", n)
		}
		g.open(1)
	})
}

func TestMaxInFlightIsNeverExceeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, g := newFixture(t), &gate{}
		f.app = g.serve
		f.ep.MaxInFlight = 3
		f.run()
		defer f.halt()
		f.receive(strings.Fields(strings.Repeat("x ", 50))...)
		for i := 0; f.store.count(relay.DeliveryDone) < 50 && i < 100; i++ {
			g.open(1 + i%3)
			f.inbox.AgentConnected(testApp)
			f.settle()
		}
		if f.store.count(relay.DeliveryDone) != 50 {
			t.Errorf("%d of 50 are done", f.store.count(relay.DeliveryDone))
		}
		if g.most != 3 {
			t.Errorf("up to %d were at the app at once, want 3", g.most)
		}
	})
}

func TestTheRateIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.ep.Rate, f.ep.MaxInFlight = 2, 100
		f.run()
		defer f.halt()
		f.receive(strings.Fields(strings.Repeat("x ", 12))...)
		for second := range 6 {
			if n, want := len(f.callList()), 2+2*second; n != want {
				t.Errorf("%d calls after %d s, want %d", n, second, want)
			}
			f.pass(time.Second)
		}
	})
}

func TestEventsWithTheSameKeyWaitForEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, func(c *Config) { c.Poll = time.Hour })
		f.ep.OrderBy = "/k"
		f.ep.Retry.Schedule = []time.Duration{7 * time.Second}
		f.app = answer(500)
		f.run()
		defer f.halt()
		f.receive(`{"k":"a","n":1}`)
		f.set(func() { f.app = answer(200) })
		f.receive(`{"k":"a","n":2}`, `{"k":"b","n":3}`, `{"k":"a","n":4}`)
		if got, want := f.bodies(), `{"k":"a","n":1} {"k":"b","n":3}`; got != want {
			t.Errorf("the app saw %s, want %s", got, want)
		}
		f.pass(7*time.Second + 5*time.Millisecond)
		want := `{"k":"a","n":1} {"k":"b","n":3} {"k":"a","n":1} {"k":"a","n":2} {"k":"a","n":4}`
		if got := f.bodies(); got != want {
			t.Errorf("the app saw %s, want %s", got, want)
		}
	})
}

func TestAnAppThatCannotBeReachedCostsNoAttempt(t *testing.T) {
	for _, code := range []relay.Code{relay.NoAgent, relay.AppRefused, relay.Draining, relay.Overloaded} {
		t.Run(string(code), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t)
				f.app = refuse(fmt.Errorf("dial: %w", relay.Errorf(code, "not now")))
				f.run()
				defer f.halt()
				f.receive(strings.Fields(strings.Repeat("x ", 20))...)
				f.pass(10 * time.Minute)
				if n := f.store.count(relay.DeliveryReady); n != 20 {
					t.Errorf("%d of 20 still wait", n)
				}
				for _, d := range f.store.deliveries {
					if d.Attempt != 0 {
						t.Fatalf("delivery %+v", *d)
					}
				}
				// The backlog must not be spent on finding out the same again.
				if n := len(f.callList()); n > 65 {
					t.Errorf("%d calls in ten minutes", n)
				}
				f.set(func() { f.app = answer(200) })
				f.pass(maxPause + 2*time.Second)
				if n := f.store.count(relay.DeliveryDone); n != 20 {
					t.Errorf("%d of 20 are done after the app came back", n)
				}
			})
		})
	}
}

// A dyno that starts is another chance at once, also beside one whose app is
// broken.
func TestANewAgentEndsThePause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.app = refuse(relay.Errorf(relay.AppRefused, "not now"))
		f.run()
		defer f.halt()
		f.receive("1")
		f.pass(time.Minute)
		for n := len(f.callList()); len(f.callList()) == n; {
			f.pass(100 * time.Millisecond) // until just after one of the rare attempts
		}
		f.pass(2 * time.Second)
		f.set(func() { f.app = answer(200) })
		f.inbox.AgentConnected("another")
		f.settle()
		if d := f.store.one(); d.State == relay.DeliveryDone {
			t.Error("another app's agent ended the pause")
		}
		f.inbox.AgentConnected(testApp)
		f.settle()
		if d := f.store.one(); d.State != relay.DeliveryDone {
			t.Errorf("delivery %+v", d)
		}
	})
}

func TestASilentAppIsATimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, g := newFixture(t), &gate{}
		f.app = g.serve
		f.run()
		defer f.halt()
		f.receive("1")
		f.pass(60 * time.Second)
		as := f.store.recorded()
		if len(as) != 1 || as[0].Outcome != relay.OutcomeTimeout || as[0].EndedAt.Sub(as[0].StartedAt) != time.Minute {
			t.Fatalf("attempts %+v", as)
		}
		if d := f.store.one(); d.Attempt != 1 || d.State != relay.DeliveryReady {
			t.Errorf("delivery %+v", d)
		}
		g.open(1)
	})
}

func TestShutdownLetsRunningAttemptsFinish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, g := newFixture(t), &gate{}
		f.app = g.serve
		f.run()
		f.receive("1", "2") // the second waits: the first fills the window
		f.stop()
		f.pass(9 * time.Second)
		if n := f.store.count(relay.DeliveryLeased); n != 1 {
			t.Fatalf("%d are leased while draining, want 1", n)
		}
		g.open(1)
		f.halt()
		if done, ready := f.store.count(relay.DeliveryDone), f.store.count(relay.DeliveryReady); done != 1 || ready != 1 {
			t.Errorf("%d done and %d ready, want one of each", done, ready)
		}
	})
}

func TestShutdownCancelsAfterTheDeadlineAndLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, g := newFixture(t), &gate{}
		f.app = g.serve
		f.run()
		f.receive("1")
		f.stop()
		before := time.Now()
		f.halt()
		if took := time.Since(before); took != 10*time.Second {
			t.Errorf("Run took %v to stop, want the drain timeout", took)
		}
		if d := f.store.one(); d.State != relay.DeliveryReady || d.Attempt != 0 || len(f.store.recorded()) != 0 {
			t.Errorf("delivery %+v; our own stop is not the event's fault", d)
		}
		// The next process delivers it.
		f.inbox = New(f.inbox.cfg)
		f.app = answer(200)
		f.run()
		defer f.halt()
		if d := f.store.one(); d.State != relay.DeliveryDone {
			t.Errorf("after the restart: %+v", d)
		}
	})
}

// An answer that came just before everything was cancelled is worth writing
// down: otherwise the app gets an event twice that it already took.
func TestAnAnswerThatArrivesWithTheStopIsRecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.app = func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return answer(200)(r)
		}
		f.run()
		f.receive("1")
		f.stop()
		f.halt()
		if d := f.store.one(); d.State != relay.DeliveryDone {
			t.Errorf("delivery %+v", d)
		}
	})
}

func TestWhatACrashLeftIsDeliveredAtTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.receive("1", "2")
		f.store.deliveries[0].State = relay.DeliveryLeased
		f.store.deliveries[0].LeaseOwner = "node-1"
		f.store.deliveries[0].LeaseUntil = f.start.Add(time.Hour)
		f.run()
		defer f.halt()
		if n := f.store.count(relay.DeliveryDone); n != 2 {
			t.Errorf("%d of 2 are done", n)
		}
	})
}

func TestTheExpiredLeaseOfADeadNodeIsReclaimed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.receive("1")
		f.store.deliveries[0].State = relay.DeliveryLeased
		f.store.deliveries[0].LeaseOwner = "node-2"
		f.store.deliveries[0].LeaseUntil = f.start.Add(time.Minute)
		f.run()
		defer f.halt()
		f.pass(59 * time.Second)
		if n := len(f.callList()); n != 0 {
			t.Fatal("another node's lease was ignored")
		}
		f.pass(10 * time.Second)
		if d := f.store.one(); d.State != relay.DeliveryDone {
			t.Errorf("delivery %+v", d)
		}
	})
}

func TestALostLeaseDropsTheAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, g := newFixture(t), &gate{}
		f.app = g.serve
		f.run()
		f.receive("1")
		f.store.stealLeases()
		g.open(1)
		if d := f.store.one(); d.LeaseOwner != "thief" || d.State != relay.DeliveryLeased {
			t.Errorf("the thief's delivery was touched: %+v", d)
		}
		if n := len(f.store.recorded()); n != 0 {
			t.Errorf("%d attempts recorded", n)
		}
		if !strings.Contains(f.log.String(), "attempt dropped") {
			t.Error("nothing in the log says so")
		}
		// Its place is free again.
		f.receive("2")
		if n := g.count(); n != 1 {
			t.Errorf("%d at the app", n)
		}
		g.open(1)
		f.stop()
		if err := <-f.result; err != nil {
			t.Error(err)
		}
	})
}

// An app that answers byte by byte keeps its lease, and an attempt whose lease
// is lost all the same is cut off.
func TestTheLeaseOfALongAttemptIsExtendedUntilItIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		body := newTrickle(30 * time.Second)
		f.app = func(r *http.Request) (*http.Response, error) {
			body.ctx = r.Context()
			return &http.Response{StatusCode: 200, Body: body}, nil
		}
		f.run()
		f.receive("1")
		f.pass(5 * time.Minute)
		if d := f.store.one(); f.store.extended != 6 || d.State != relay.DeliveryLeased || d.LeaseGen != 1 || !d.LeaseUntil.After(time.Now()) {
			t.Fatalf("extended %d times: %+v", f.store.extended, d)
		}
		f.store.stealLeases()
		f.pass(time.Minute)
		if !strings.Contains(f.log.String(), errLeaseLost.Error()) {
			t.Errorf("the attempt was not cut off; log: %s", f.log)
		}
		f.stop()
		if err := <-f.result; err != nil {
			t.Error(err)
		}
	})
}

func TestATrickleHasAnEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		body := newTrickle(30 * time.Second)
		f.app = func(r *http.Request) (*http.Response, error) {
			body.ctx = r.Context()
			return &http.Response{StatusCode: 200, Body: body}, nil
		}
		f.run()
		defer f.halt()
		f.receive("1")
		f.pass(maxAttempt*time.Minute + time.Second)
		as := f.store.recorded()
		if len(as) == 0 || as[0].Outcome != relay.OutcomeTimeout || as[0].Status != 200 {
			t.Errorf("attempts %+v, want a timeout", as)
		}
	})
}

// What happened at the app cannot be learned a second time, so a store that is
// down for a moment must not cost it.
func TestAnOutcomeWaitsForTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, g := newFixture(t), &gate{}
		f.app = g.serve
		f.run()
		defer f.halt()
		f.receive("1")
		f.store.fail(errors.New("disk full"))
		g.open(1)
		f.pass(20 * time.Second)
		f.store.fail(nil)
		f.pass(10 * time.Second)
		if d := f.store.one(); d.State != relay.DeliveryDone || len(f.callList()) != 1 {
			t.Errorf("delivery %+v after %d calls", d, len(f.callList()))
		}
	})
}

func TestAStoreThatIsDownIsNotAskedInALoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.receive("1")
		f.store.fail(errors.New("down"))
		f.run()
		defer f.halt()
		f.pass(time.Minute)
		if n := f.store.downCalls; n > 120 {
			t.Errorf("%d calls in a minute", n)
		}
		f.store.fail(nil)
		f.pass(5 * time.Second)
		if d := f.store.one(); d.State != relay.DeliveryDone {
			t.Errorf("delivery %+v", d)
		}
	})
}

func TestRunSaysWhenItCouldNotGiveTheLeasesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.run()
		down := errors.New("down")
		f.store.fail(down)
		f.stop()
		if err := <-f.result; !errors.Is(err, down) {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestAnEndpointThatLeftTheManifestKeepsItsEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.run()
		defer f.halt()
		f.set(func() { f.known = false })
		f.receive("1")
		f.pass(time.Minute)
		if n := f.store.claimCount(); n != 0 {
			t.Errorf("%d claims", n)
		}
		f.set(func() { f.known = true })
		f.pass(5 * time.Second)
		if d := f.store.one(); d.State != relay.DeliveryDone {
			t.Errorf("delivery %+v", d)
		}
	})
}

// An idle inbox asks the store once a poll, and nothing else happens.
func TestAnIdleInboxIsIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.run()
		defer f.halt()
		f.receive("1")
		before := f.store.claimCount()
		f.pass(time.Hour)
		if n := f.store.claimCount() - before; n != 0 {
			t.Errorf("%d claims in an hour without work", n)
		}
	})
}
