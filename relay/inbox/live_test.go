package inbox

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/posternhq/postern/relay"
)

// newLiveFixture is a fixture in hybrid mode whose provider waits ten seconds,
// and takes 410 for the end of the subscription.
func newLiveFixture(t *testing.T) *fixture {
	f := newFixture(t, func(c *Config) {
		c.Poll = time.Hour
		c.Facts = func(string) relay.ProviderFacts {
			return relay.ProviderFacts{Deadline: 10 * time.Second, Drops: []int{410}}
		}
	})
	f.ep.Mode = relay.ModeHybrid
	return f
}

func TestALiveAnswerIsTheSenders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newLiveFixture(t)
		f.app = answer(207, "X-App", "1", "Connection", "X-Hop", "X-Hop", "1", "Keep-Alive", "5", "Content-Length", "10")
		f.run()
		defer f.halt()
		s := f.send(t.Context(), incoming("1"))
		if s.status() != 207 || string(s.answer.Body) != "the answer" ||
			!slices.Equal(s.answer.Header, []relay.Field{{Name: "X-App", Value: "1"}}) {
			t.Errorf("the sender got %d, %+v", s.status(), s.answer)
		}
		d := f.store.one()
		if d.State != relay.DeliveryDone || d.Attempt != 1 || d.LeaseGen != 1 || len(f.callList()) != 1 {
			t.Errorf("delivery %+v after %d calls", d, len(f.callList()))
		}
		if as := f.store.recorded(); len(as) != 1 || as[0].Status != 207 || string(as[0].Body) != "the answer" {
			t.Errorf("attempts %+v", as)
		}
		if n := f.store.claimCount(); n != 0 {
			t.Errorf("%d claims for a delivery that was never ready", n)
		}
	})
}

// The heart of hybrid mode: an app that is too slow for the sender executes the
// event once all the same.
func TestALateAnswerStillDecides(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, g := newLiveFixture(t), &gate{}
		f.app = g.serve
		f.run()
		defer f.halt()
		s := f.send(t.Context(), incoming("1"))
		f.pass(7999 * time.Millisecond)
		if s.status() != 0 {
			t.Fatalf("the sender got %d before the deadline", s.status())
		}
		f.pass(time.Millisecond)
		if s.status() != 202 || s.took != 8*time.Second || s.receipt.ID == "" {
			t.Errorf("the sender got %d after %v", s.status(), s.took)
		}
		f.pass(30 * time.Second)
		g.open(1)
		if d := f.store.one(); d.State != relay.DeliveryDone || d.Attempt != 1 || len(f.callList()) != 1 {
			t.Errorf("delivery %+v after %d calls", d, len(f.callList()))
		}
	})
}

func TestHowLongALiveSenderWaits(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ own, provider, want time.Duration }{
		{0, 0, 8 * time.Second},
		{0, 10 * time.Second, 8 * time.Second},
		{0, 2 * time.Second, 1500 * time.Millisecond},
		{0, 600 * time.Millisecond, 300 * time.Millisecond},
		{25 * time.Second, 10 * time.Second, 25 * time.Second},
	} {
		f := newFixture(t, func(c *Config) {
			c.Facts = func(string) relay.ProviderFacts { return relay.ProviderFacts{Deadline: tt.provider} }
		})
		if got := f.inbox.liveTime(relay.Endpoint{Deadline: tt.own}); got != tt.want {
			t.Errorf("endpoint %v, provider %v: %v, want %v", tt.own, tt.provider, got, tt.want)
		}
	}
}

// The sender waits since the webhook arrived, not since it was stored.
func TestTheDeadlineCountsFromTheArrival(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, g := newLiveFixture(t), &gate{}
		f.app = g.serve
		f.run()
		defer f.halt()
		in := incoming("1")
		in.ReceivedAt = time.Now().Add(-3 * time.Second)
		s := f.send(t.Context(), in)
		f.pass(5 * time.Second)
		if s.status() != 202 {
			t.Errorf("the sender got %d", s.status())
		}
		g.open(1)
	})
}

func TestWhenThereIsNoLiveAttempt(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*fixture, *gate)
	}{
		{"no agent", func(f *fixture, _ *gate) { f.set(func() { f.connected = false }) }},
		{"the window is full", func(f *fixture, _ *gate) { f.send(f.t.Context(), incoming("first")) }},
		{"the rate is used up", func(f *fixture, g *gate) {
			f.set(func() { f.ep.Rate = 0.001 })
			f.send(f.t.Context(), incoming("first"))
			g.open(1)
		}},
		{"the app could not be reached just now", func(f *fixture, _ *gate) {
			f.set(func() { f.app = refuse(relay.Errorf(relay.AppRefused, "x")) })
			f.send(f.t.Context(), incoming("first"))
		}},
		{"the breaker is open", func(f *fixture, _ *gate) {
			f.set(func() { f.ep.Breaker = relay.Breaker{Failures: 1, Pause: time.Minute}; f.app = answer(500) })
			f.send(f.t.Context(), incoming("first"))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, g := newLiveFixture(t), &gate{}
				f.app = g.serve
				f.run()
				defer f.halt()
				tt.change(f, g)
				calls := len(f.callList())
				s := f.send(t.Context(), incoming("last"))
				if s.status() != 202 || s.took != 0 {
					t.Errorf("the sender got %d after %v, want 202 at once", s.status(), s.took)
				}
				if n := len(f.callList()); n != calls {
					t.Error("it was tried all the same")
				}
				last := f.store.deliveries[len(f.store.deliveries)-1]
				if last.State != relay.DeliveryReady || last.LeaseGen != 0 {
					t.Errorf("delivery %+v", *last)
				}
				g.open(9)
			})
		})
	}
}

func TestALiveEventWaitsForTheOlderOnesOfItsKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newLiveFixture(t)
		f.ep.OrderBy, f.ep.Retry.Schedule = "/k", []time.Duration{7 * time.Second}
		f.app = answer(500)
		f.run()
		defer f.halt()
		if s := f.send(t.Context(), incoming(`{"k":"a","n":1}`)); s.status() != 500 {
			t.Fatalf("the first sender got %d", s.status())
		}
		f.set(func() { f.app = answer(200) })
		if s := f.send(t.Context(), incoming(`{"k":"a","n":2}`)); s.status() != 202 {
			t.Errorf("the second sender got %d", s.status())
		}
		if s := f.send(t.Context(), incoming(`{"k":"b","n":3}`)); s.status() != 200 {
			t.Errorf("the third sender got %d: the place of the second is not free again", s.status())
		}
		f.pass(8 * time.Second)
		want := `{"k":"a","n":1} {"k":"b","n":3} {"k":"a","n":1} {"k":"a","n":2}`
		if got := f.bodies(); got != want {
			t.Errorf("the app saw %s, want %s", got, want)
		}
	})
}

func TestALiveDuplicateIsAcknowledged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newLiveFixture(t)
		f.run()
		defer f.halt()
		in := incoming("1")
		in.Header.Set("Dedupe", "same")
		first := f.send(t.Context(), in)
		for range 20 { // each must give its place back
			if s := f.send(t.Context(), in); s.status() != 202 || !s.receipt.Duplicate || s.receipt.ID != first.receipt.ID {
				t.Fatalf("the second sender got %d, %+v", s.status(), s.receipt)
			}
		}
		if first.status() != 200 || len(f.callList()) != 1 {
			t.Errorf("the first sender got %d, the app was called %d times", first.status(), len(f.callList()))
		}
		if s := f.send(t.Context(), incoming("2")); s.status() != 200 {
			t.Errorf("another event got %d", s.status())
		}
	})
}

func TestAStoreThatIsDownRefusesALiveEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newLiveFixture(t)
		f.run()
		defer f.halt()
		f.store.fail(errors.New("disk full"))
		for range 20 {
			if s := f.send(t.Context(), incoming("1")); relay.CodeOf(s.err) != relay.Unavailable {
				t.Fatalf("the sender got %d, %v", s.status(), s.err)
			}
		}
		if n := len(f.callList()); n != 0 {
			t.Errorf("the app got %d events that are not stored", n)
		}
		f.store.fail(nil)
		if s := f.send(t.Context(), incoming("2")); s.status() != 200 {
			t.Errorf("afterwards the sender got %d", s.status())
		}
	})
}

func TestALiveAnswerThatIsNotPassedOn(t *testing.T) {
	for _, tt := range []struct {
		name    string
		app     func(*http.Request) (*http.Response, error)
		allow   bool
		want    int
		outcome relay.Outcome
	}{
		{"ends the subscription", answer(410), false, 202, relay.OutcomeRejected},
		{"ends the subscription, as allowed", answer(410), true, 410, relay.OutcomeRejected},
		{"a failure", answer(500), false, 500, relay.OutcomeRejected},
		{"the app refused", refuse(relay.Errorf(relay.AppRefused, "x")), false, 202, relay.OutcomeUnsent},
		{"no agent any more", refuse(relay.Errorf(relay.NoAgent, "x")), false, 202, relay.OutcomeUnsent},
		{"lost", refuse(relay.Errorf(relay.AppReset, "x")), false, 202, relay.OutcomeUnknown},
		{"cut short", body(io.MultiReader(strings.NewReader("half"), errorReader{errors.New("cut")})), false, 202, relay.OutcomeUnknown},
		{"as long as may be", body(strings.NewReader(strings.Repeat("x", maxAnswerRead))), false, 200, relay.OutcomeDone},
		{"too long", body(strings.NewReader(strings.Repeat("x", maxAnswerRead+1))), false, 202, relay.OutcomeDone},
		{"still starting", answer(503, "Retry-After", "1"), false, 202, relay.OutcomeBooting},
		{"an upgrade", answer(101), false, 202, relay.OutcomeRejected},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newLiveFixture(t)
				f.app, f.ep.AllowUnsubscribe = tt.app, tt.allow
				f.inbox.AgentConnected(testApp)
				f.run()
				defer f.halt()
				s := f.send(t.Context(), incoming("1"))
				if s.status() != tt.want || s.took != 0 {
					t.Errorf("the sender got %d after %v, want %d", s.status(), s.took, tt.want)
				}
				if s.answer != nil && tt.name == "as long as may be" && len(s.answer.Body) != maxAnswerRead {
					t.Errorf("the sender got %d bytes", len(s.answer.Body))
				}
				as := f.store.recorded()
				if len(as) != 1 || as[0].Outcome != tt.outcome || len(as[0].Body) > maxAnswerKept {
					t.Errorf("%d attempts, want one that is %v", len(as), tt.outcome)
				}
			})
		})
	}
}

// body is an app that answers 200 with r.
func body(r io.Reader) func(*http.Request) (*http.Response, error) {
	return func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 200, Header: http.Header{}, Body: io.NopCloser(r)}, nil
	}
}

func TestWithheldIsForTheModesOfTheIngressToo(t *testing.T) {
	t.Parallel()
	f := newLiveFixture(t)
	if !f.inbox.Withheld(relay.Endpoint{}, 410) || f.inbox.Withheld(relay.Endpoint{}, 404) ||
		f.inbox.Withheld(relay.Endpoint{AllowUnsubscribe: true}, 410) {
		t.Error("Withheld does not follow the provider's facts")
	}
}

func TestASenderThatGoesAwayDoesNotEndTheAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, g := newLiveFixture(t), &gate{}
		f.app = g.serve
		f.run()
		defer f.halt()
		ctx, leave := context.WithCancel(t.Context())
		s := f.send(ctx, incoming("1"))
		leave()
		f.settle()
		if s.status() == 0 {
			t.Error("Receive still waits")
		}
		g.open(1)
		if d := f.store.one(); d.State != relay.DeliveryDone || len(f.callList()) != 1 {
			t.Errorf("delivery %+v after %d calls", d, len(f.callList()))
		}
	})
}

// A sender that was gone before the commit must not leave a lease behind.
func TestASenderThatIsGoneAlreadyIsServedAllTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newLiveFixture(t)
		f.run()
		defer f.halt()
		ctx, leave := context.WithCancel(t.Context())
		leave()
		f.send(ctx, incoming("1"))
		if d := f.store.one(); d.State != relay.DeliveryDone {
			t.Errorf("delivery %+v", d)
		}
	})
}

func TestLiveRequestsCountAsInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, g := newLiveFixture(t), &gate{}
		f.ep.MaxInFlight = 2
		f.app = g.serve
		f.run()
		defer f.halt()
		f.send(t.Context(), incoming("0"))
		g.open(1) // the window is two now
		for range 4 {
			f.send(t.Context(), incoming("x"))
		}
		if n := g.count(); n != 2 {
			t.Errorf("%d at the app, want 2", n)
		}
		for range 5 {
			g.open(2)
		}
		if n := f.store.count(relay.DeliveryDone); n != 5 || g.most != 2 {
			t.Errorf("%d of 5 are done, up to %d were at the app at once", n, g.most)
		}
	})
}

// Without a running worker nobody would keep the lease or end the attempt.
func TestThereIsNoLiveAttemptWhileStopping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, g := newLiveFixture(t), &gate{}
		f.app = g.serve
		if s := f.send(t.Context(), incoming("0")); s.status() != 202 || len(f.callList()) != 0 {
			t.Errorf("before Run the sender got %d", s.status())
		}
		f.run()
		f.stop()
		f.settle()
		s := f.send(t.Context(), incoming("1"))
		if s.status() != 202 || s.took != 0 {
			t.Errorf("while stopping the sender got %d after %v", s.status(), s.took)
		}
		g.open(1)
		f.halt()
		if n := f.store.count(relay.DeliveryReady); n != 1 {
			t.Errorf("%d are ready, want the last one", n)
		}
	})
}

func TestTheNextLiveEventOfAKeyIsLiveToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newLiveFixture(t)
		f.ep.OrderBy = "/k"
		f.run()
		defer f.halt()
		f.store.slow(5 * time.Millisecond)
		for n := range 5 {
			s := f.send(t.Context(), incoming(`{"k":1}`))
			for s.status() == 0 {
				f.pass(time.Millisecond)
			}
			if s.status() != 200 {
				t.Errorf("sender %d got %d", n, s.status())
			}
		}
	})
}
