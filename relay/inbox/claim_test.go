package inbox

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/posternhq/postern/relay"
)

// A store that commits in 3 ms must not keep an app waiting that answers in 1 ms.
func TestAFastAppIsKeptBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.app = func(r *http.Request) (*http.Response, error) {
			time.Sleep(time.Millisecond)
			return answer(200)(r)
		}
		f.connected = false
		f.run()
		defer f.halt()
		f.receive(strings.Fields(strings.Repeat("x ", 2000))...)
		f.store.slow(3 * time.Millisecond)
		f.set(func() { f.connected = true })
		f.inbox.AgentConnected(testApp)
		f.pass(time.Second)
		// Eight at once, a millisecond each, would be 8000 in the best case.
		if n := f.store.count(relay.DeliveryDone); n < 1900 {
			t.Errorf("%d were delivered in a second", n)
		}
		if n := f.store.claimCount(); n > 120 {
			t.Errorf("it took %d claims", n)
		}
	})
}

func TestWhatIsInHandGoesBackWhenTheAgentLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, g := newFixture(t), &gate{}
		f.run()
		defer f.halt()
		f.receive("1") // an answer at once: a fast app
		f.set(func() { f.app = g.serve })
		f.receive(strings.Fields(strings.Repeat("x ", 50))...)
		if n := f.store.count(relay.DeliveryLeased); n < 10 {
			t.Fatalf("only %d are in hand", n)
		}
		f.set(func() { f.connected = false })
		f.pass(5 * time.Second) // a poll
		if n, at := f.store.count(relay.DeliveryLeased), g.count(); n != at || f.store.count(relay.DeliveryReady) != 50-at {
			t.Errorf("%d are leased and %d ready, want the %d at the app leased", n, f.store.count(relay.DeliveryReady), at)
		}
		g.open(50)
		f.set(func() { f.connected, f.app = true, answer(200) })
		f.inbox.AgentConnected(testApp)
		f.settle()
		if n := f.store.count(relay.DeliveryDone); n != 51 || len(f.callList()) != 51 {
			t.Errorf("%d of 51 are done after %d calls", n, len(f.callList()))
		}
		if n := f.inbox.inHand; n != 0 {
			t.Errorf("%d bytes count as in hand at the end", n)
		}
	})
}

func TestWhatIsHeldInMemoryIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 20 << 20
		f, g := newFixture(t), &gate{}
		f.app, f.ep.MaxInFlight = g.serve, 100
		f.run()
		defer f.halt()
		large := strings.Repeat("x", size)
		for range 6 {
			f.receive(large)
		}
		for range 6 {
			if n := g.count(); n < 1 || n*size > maxInHand+size {
				t.Errorf("%d bodies of %d bytes are at the app", n, size)
			}
			g.open(1)
		}
		if n := f.store.count(relay.DeliveryDone); n != 6 {
			t.Errorf("%d of 6 are done", n)
		}
		if n := f.inbox.inHand; n != 0 {
			t.Errorf("%d bytes count as in hand at the end", n)
		}
	})
}

// One endpoint with large bodies and a slow app must not stop the others.
func TestALaneWithNothingInHandMayAlwaysClaimOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.run()
		defer f.halt()
		f.inbox.mu.Lock()
		f.inbox.inHand = 10 * maxInHand // of others
		f.inbox.mu.Unlock()
		f.receive("1", "2", "3")
		if n := f.store.count(relay.DeliveryDone); n != 3 {
			t.Errorf("%d of 3 are done", n)
		}
		for _, c := range f.store.claims {
			if c.Limit != 1 || c.MaxBytes != 1 {
				t.Errorf("claim of %d with %d bytes", c.Limit, c.MaxBytes)
			}
		}
	})
}

// Claims wait for a commit each, so those of different lanes go together.
func TestClaimsOfDifferentLanesAreMadeTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFanOutFixture(t)
		f.ep.Destinations[1].Filter = relay.Filter{}
		f.run()
		defer f.halt()
		f.store.slow(time.Second)
		f.send(t.Context(), incoming("1"))
		f.pass(time.Second) // the event is stored
		f.pass(time.Second) // and claimed
		if len(f.callList()) != 1 || len(f.copyList()) != 2 {
			t.Errorf("%d calls and %d copies after one claim's time", len(f.callList()), len(f.copyList()))
		}
		f.store.slow(0)
	})
}

func TestManyLanesShareTheClaims(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, func(c *Config) { c.Poll = time.Hour })
		const lanes = 40
		for i := range lanes - 1 {
			f.ep.Destinations = append(f.ep.Destinations, relay.Destination{Name: fmt.Sprint(i), URL: "https://x.example"})
		}
		f.run()
		defer f.halt()
		f.store.slow(time.Second)
		f.send(t.Context(), incoming("1"))
		f.pass(time.Second) // the event is stored
		if n := f.store.claimCount(); n != 0 {
			t.Errorf("%d claims before anything is stored", n)
		}
		f.pass(time.Second)
		if n := f.store.claimCount(); n != maxClaims {
			t.Errorf("%d claims at once, want %d", n, maxClaims)
		}
		// Each lane asks twice, since it got as many as it asked for.
		f.pass(2 * lanes / maxClaims * time.Second)
		if n := len(f.callList()) + len(f.copyList()); n != lanes {
			t.Errorf("%d of %d were delivered", n, lanes)
		}
		f.store.slow(0)
	})
}

// Those that waited with it may want nothing any more, and then nobody else would
// pass the word on.
func TestALaneThatWaitsIsNotForgottenAmongMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, func(c *Config) { c.Poll = time.Hour })
		for i := range 3000 {
			f.ep.Destinations = append(f.ep.Destinations, relay.Destination{Name: fmt.Sprint(i), URL: fmt.Sprintf("https://%d.example", i)})
		}
		f.run()
		defer f.halt()
		f.store.slow(time.Second)
		f.send(t.Context(), incoming("1"))
		f.pass(time.Second) // the event is stored, and the first claims are being made
		var last relay.Destination
		f.inbox.mu.Lock()
		for l := range f.inbox.waiting {
			if l.id.destination != "" {
				last, _ = f.ep.Destination(l.id.destination)
			}
		}
		f.inbox.mu.Unlock()
		f.set(func() { f.ep.Destinations = []relay.Destination{last} })
		f.pass(5 * time.Second)
		copies := f.copyList()
		if len(copies) == 0 || copies[len(copies)-1].r.URL.String() != last.URL {
			t.Errorf("%d copies, none to %s", len(copies), last.URL)
		}
		f.store.slow(0)
		f.pass(time.Second)
	})
}

func TestLanesThatWaitForMemoryGoOnWhenThereIsSome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, g := newFixture(t, func(c *Config) { c.Poll = time.Hour }), &gate{}
		f.ep.MaxInFlight, f.app = 100, g.serve
		f.run()
		defer f.halt()
		f.receive("1")
		g.open(1) // the window is two
		f.inbox.mu.Lock()
		f.inbox.inHand += maxInHand // of another lane
		f.inbox.mu.Unlock()
		f.receive("2", "3")
		if n := g.count(); n != 1 {
			t.Errorf("%d at the app while there is no room, want one", n)
		}
		f.inbox.mu.Lock()
		f.inbox.dropLocked(relay.Event{Body: make([]byte, maxInHand)})
		f.inbox.mu.Unlock()
		f.settle()
		if n := g.count(); n != 2 {
			t.Errorf("%d at the app when there is room again, want two", n)
		}
		g.open(2)
	})
}
