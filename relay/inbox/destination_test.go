package inbox

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/posternhq/postern/relay"
)

// newFanOutFixture is a fixture whose endpoint has two URLs besides: "all" gets
// every event, "some" those of the type "test" only.
func newFanOutFixture(t *testing.T, change ...func(*Config)) *fixture {
	f := newFixture(t, change...)
	only, err := relay.ParseFilter("type=other")
	if err != nil {
		t.Fatal(err)
	}
	f.ep.Destinations = []relay.Destination{
		{Name: "all", URL: "https://audit.example/in?key=1", MaxInFlight: 4, Retry: relay.DefaultRetry},
		{Name: "some", URL: "https://other.example", Filter: only, MaxInFlight: 4, Retry: relay.DefaultRetry},
	}
	return f
}

func TestOtherDestinationsGetTheEventToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFanOutFixture(t)
		f.connected = false // which is the app's trouble alone
		f.run()
		defer f.halt()
		in := incoming("1")
		in.Target = "/deeper?x=1"
		if s := f.send(t.Context(), in); s.status() != 202 {
			t.Fatalf("the sender got %d", s.status())
		}
		copies := f.copyList()
		if len(copies) != 1 || len(f.callList()) != 0 {
			t.Fatalf("%d copies and %d calls, want one copy", len(copies), len(f.callList()))
		}
		c := copies[0]
		if c.r.URL.String() != "https://audit.example/in?key=1" || c.r.Host != "audit.example" || c.r.Method != "POST" || c.body != "1" {
			t.Errorf("%s %s to %s with body %q", c.r.Method, c.r.URL, c.r.Host, c.body)
		}
		for name, want := range map[string]string{
			"Signature": "good", "X-Forwarded-Host": "hooks.example", "Postern-Verified": "true",
			"Postern-Event-Id": string(f.store.deliveries[0].Event),
		} {
			if got := c.r.Header.Get(name); got != want {
				t.Errorf("%s is %q, want %q", name, got, want)
			}
		}
		if len(f.store.deliveries) != 2 || f.store.deliveries[0].Destination != "" || f.store.deliveries[0].ID == f.store.deliveries[1].ID {
			t.Errorf("deliveries %v", f.store.deliveries)
		}
	})
}

// Whatever happens at another destination: the sender and the app do not notice.
func TestADestinationThatFailsHoldsNobodyUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, g := newFanOutFixture(t), &gate{}
		f.ep.Mode, f.ep.Destinations[0].MaxInFlight, f.elsewhere = relay.ModeHybrid, 1, g.serve
		f.run()
		defer f.halt()
		for range 5 {
			if s := f.send(t.Context(), incoming("x")); s.status() != 200 || s.took != 0 {
				t.Errorf("the sender got %d after %v", s.status(), s.took)
			}
		}
		if len(f.callList()) != 5 || g.count() != 1 {
			t.Errorf("%d calls of the app, %d at the destination", len(f.callList()), g.count())
		}
		for range 5 {
			g.open(1)
		}
		if n := f.store.count(relay.DeliveryDone); n != 10 {
			t.Errorf("%d of 10 are done", n)
		}
	})
}

func TestASyncEventGoesToTheOthersToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFanOutFixture(t)
		f.ep.Mode = relay.ModeSync
		f.run()
		defer f.halt()
		v, err := f.inbox.Check(t.Context(), f.ep, incoming("1"))
		if err != nil {
			t.Fatal(err)
		}
		draft := f.inbox.Draft(f.ep, incoming("1"), v)
		if _, err := f.inbox.RecordSync(t.Context(), draft, relay.Attempt{Outcome: relay.OutcomeRejected, Status: 500}); err != nil {
			t.Fatal(err)
		}
		f.settle()
		if len(f.copyList()) != 1 || len(f.callList()) != 0 {
			t.Errorf("%d copies and %d calls", len(f.copyList()), len(f.callList()))
		}
		if f.store.count(relay.DeliveryDead) != 1 || f.store.count(relay.DeliveryDone) != 1 {
			t.Errorf("deliveries %v %v", *f.store.deliveries[0], *f.store.deliveries[1])
		}
	})
}

func TestADestinationThatLeftTheManifestKeepsItsDeliveries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFanOutFixture(t)
		f.elsewhere = answer(500)
		f.ep.Destinations[0].Retry.Schedule = []time.Duration{time.Minute}
		f.run()
		defer f.halt()
		f.receive("1")
		left := f.ep.Destinations
		f.set(func() { f.ep.Destinations, f.elsewhere = nil, answer(200) })
		f.pass(time.Hour)
		if n := len(f.copyList()); n != 1 {
			t.Fatalf("%d copies to a destination that is not there", n)
		}
		f.set(func() { f.ep.Destinations = left })
		f.pass(5 * time.Second)
		if n := f.store.count(relay.DeliveryDone); n != 2 {
			t.Errorf("%d of 2 are done", n)
		}
	})
}

func TestWithoutATransportForURLsTheirDeliveriesWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFanOutFixture(t, func(c *Config) { c.URLs = nil })
		f.run()
		defer f.halt()
		f.receive("1")
		f.pass(time.Minute)
		if f.store.count(relay.DeliveryDone) != 1 || f.store.count(relay.DeliveryReady) != 1 {
			t.Errorf("deliveries %v %v", *f.store.deliveries[0], *f.store.deliveries[1])
		}
	})
}

func TestRedactionComesBeforeTheNewSignature(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var signed relay.Event
		var url string
		f := newFanOutFixture(t, func(c *Config) {
			c.Resign = func(_ relay.Endpoint, e relay.Event, u string, now time.Time) ([]relay.Field, error) {
				signed, url = e, u
				return []relay.Field{{Name: "Signature", Value: "new"}, {Name: "signature", Value: "second"}}, nil
			}
		})
		f.ep.Destinations[0].Resign = true
		f.ep.Destinations[0].Redact = relay.Redaction{Headers: []string{"X-Secret"}, Body: []string{"/card"}}
		f.run()
		defer f.halt()
		in := incoming(`{"card":"4242","n":1}`)
		in.Header.Set("X-Secret", "1")
		f.send(t.Context(), in)
		c := f.copyList()[0]
		if c.body != string(signed.Body) || strings.Contains(c.body, "4242") || !strings.Contains(c.body, `"n":1`) ||
			c.r.Header.Get("X-Secret") == "1" {
			t.Errorf("the destination got %q, signed was %q", c.body, signed.Body)
		}
		if got := c.r.Header.Values("Signature"); !slices.Equal(got, []string{"new", "second"}) || url != "https://audit.example/in?key=1" {
			t.Errorf("signatures %q for %s", got, url)
		}
		own := f.callList()[0]
		if own.body != string(in.Body) || own.r.Header.Get("X-Secret") != "1" || own.r.Header.Get("Signature") != "good" {
			t.Errorf("the app got %q, %v", own.body, own.r.Header)
		}
	})
}

func TestResigningIsForTheURLThatTheAppBelievesIn(t *testing.T) {
	t.Parallel()
	var url string
	var at time.Time
	f := newFixture(t, func(c *Config) {
		c.Resign = func(_ relay.Endpoint, _ relay.Event, u string, now time.Time) ([]relay.Field, error) {
			url, at = u, now
			return nil, nil
		}
	})
	f.ep.Resign = true
	for _, tt := range []struct{ target, want string }{
		{"", "https://hooks.example/webhooks/stripe"},
		{"/a%2Fb?x=%7b", "https://hooks.example/webhooks/stripe/a%2Fb?x=%7b"},
		{"?", "https://hooks.example/webhooks/stripe?"},
	} {
		in := incoming("1")
		in.Target = tt.target
		r, err := f.inbox.Request(t.Context(), f.ep, f.inbox.Draft(f.ep, in, relay.Verdict{}))
		if err != nil || url != tt.want || at.IsZero() || r.Header.Get("Signature") != "good" {
			t.Errorf("target %q: signed for %q, want %q; error %v", tt.target, url, tt.want, err)
		}
	}
}

func TestAnEventThatCannotBeSignedAnewGoesOutAsItCame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, func(c *Config) {
			c.Resign = func(relay.Endpoint, relay.Event, string, time.Time) ([]relay.Field, error) {
				return nil, errors.New("no secret")
			}
		})
		f.ep.Resign = true
		f.run()
		defer f.halt()
		f.receive("1", "2", "3")
		for _, c := range f.callList() {
			if c.r.Header.Get("Signature") != "good" {
				t.Errorf("header %v", c.r.Header)
			}
		}
		if n := strings.Count(f.log.String(), "cannot be signed anew"); n != 1 || len(f.callList()) != 3 {
			t.Errorf("it is in the log %d times for %d deliveries", n, len(f.callList()))
		}
	})
}

func TestTheBreakerLeavesAFailingAppAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.ep.Breaker = relay.Breaker{Failures: 5, Pause: 30 * time.Second}
		f.ep.Retry.Schedule = []time.Duration{time.Hour}
		f.app = answer(500)
		f.run()
		defer f.halt()
		f.receive(strings.Fields(strings.Repeat("x ", 40))...)
		opened := len(f.callList())
		if opened < 5 || opened > 12 {
			t.Errorf("the app was called %d times before the breaker opened", opened)
		}
		f.pass(29 * time.Second)
		if n := len(f.callList()) - opened; n != 0 {
			t.Errorf("%d calls while the breaker is open", n)
		}
		if n := f.store.count(relay.DeliveryLeased); n != 0 {
			t.Errorf("%d are leased while the breaker is open", n)
		}
		f.pass(2 * time.Second)
		if n := len(f.callList()) - opened; n != 1 {
			t.Errorf("%d calls after the pause, want one probe", n)
		}
		f.pass(57 * time.Second)
		f.set(func() { f.app = answer(200) })
		f.pass(4 * time.Second)
		if n := f.store.count(relay.DeliveryDone); n != 39-opened {
			t.Errorf("%d of %d are done after the app works again", n, 39-opened)
		}
		log := f.log.String()
		for text, want := range map[string]int{"breaker opened": 1, "breaker stays open": 1, "breaker closed": 1} {
			if n := strings.Count(log, text); n != want {
				t.Errorf("%q is in the log %d times, want %d", text, n, want)
			}
		}
	})
}

// A new agent is likely a new release, which may work.
func TestANewAgentIsProbedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.ep.Breaker = relay.Breaker{Failures: 1, Pause: 5 * time.Minute}
		f.app = answer(500)
		f.run()
		defer f.halt()
		f.receive("1")
		f.pass(time.Minute)
		f.set(func() { f.app = answer(200) })
		f.inbox.AgentConnected(testApp)
		f.settle()
		if n := f.store.count(relay.DeliveryDone); n != 1 {
			t.Error("nothing was delivered")
		}
	})
}

func TestA503OfAnAppThatJustCameUpIsNotCounted(t *testing.T) {
	for _, tt := range []struct {
		name   string
		app    func(*http.Request) (*http.Response, error)
		before time.Duration // the app has been up for so long
		counts bool
	}{
		{"just up", answer(503, "Retry-After", "7"), 0, false},
		{"a minute ago", answer(503, "Retry-After", "7"), time.Minute, true},
		{"asks for nothing", answer(503), 0, true},
		{"another failure", answer(500, "Retry-After", "7"), 0, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t)
				f.connected, f.app = false, tt.app
				f.run()
				defer f.halt()
				f.set(func() { f.connected = true })
				f.inbox.AgentConnected(testApp)
				f.pass(tt.before)
				f.receive("1")
				d, a := f.store.one(), f.store.recorded()[0]
				if (d.Attempt == 1) != tt.counts || (a.Outcome == relay.OutcomeBooting) == tt.counts {
					t.Errorf("delivery %+v after an attempt that is %v", d, a.Outcome)
				}
				if wait := d.NextAt.Sub(a.EndedAt); wait < 5*time.Second || wait > 10*time.Second {
					t.Errorf("it waits %v", wait)
				}
			})
		})
	}
}

func TestABootingAppIsNotWaitedForTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.app = answer(503, "Retry-After", "3600")
		f.inbox.AgentConnected(testApp)
		f.run()
		defer f.halt()
		f.receive("1")
		if d := f.store.one(); d.Attempt != 0 || time.Until(d.NextAt) != bootTime {
			t.Errorf("delivery %+v waits %v", d, time.Until(d.NextAt))
		}
	})
}
