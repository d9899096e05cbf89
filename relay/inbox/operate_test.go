package inbox

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/posternhq/postern/relay"
)

func TestADeadDeliveryIsTriedAgainAtOnceByHand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, func(c *Config) { c.Poll = time.Hour })
		f.ep.Retry, f.app = relay.RetryPolicy{}, answer(500)
		f.run()
		defer f.halt()
		f.receive("1")
		id := f.store.one().ID
		f.set(func() { f.app = answer(200) })
		if d, err := f.inbox.Requeue(t.Context(), id); err != nil || d.State != relay.DeliveryReady {
			t.Fatalf("Requeue = %+v, %v", d, err)
		}
		f.settle()
		if d := f.store.one(); d.State != relay.DeliveryDone {
			t.Errorf("delivery %+v", d)
		}
		if _, err := f.inbox.Requeue(t.Context(), id); relay.CodeOf(err) != relay.Conflict {
			t.Errorf("of a done one: %v", err)
		}
	})
}

func TestWhatWaitsBehindACancelledDeliveryGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, func(c *Config) { c.Poll = time.Hour })
		f.ep.OrderBy, f.app = "/k", answer(500)
		f.run()
		defer f.halt()
		f.receive(`{"k":1,"n":1}`, `{"k":1,"n":2}`)
		f.set(func() { f.app = answer(200) })
		if _, err := f.inbox.CancelDelivery(t.Context(), f.store.deliveries[0].ID); err != nil {
			t.Fatal(err)
		}
		f.settle()
		if got, want := f.bodies(), `{"k":1,"n":1} {"k":1,"n":2}`; got != want {
			t.Errorf("the app saw %s, want %s", got, want)
		}
	})
}

func TestOldEventsAreDeletedInSteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.store.age(3*expireStep + 7)
		f.run()
		defer f.halt()
		f.pass(time.Second)
		left, at := f.store.aged()
		if left != 0 || len(at) != 4 {
			t.Fatalf("%d are left after %d steps", left, len(at))
		}
		for i := range at[1:] {
			if pause := at[i+1].Sub(at[i]); pause < expirePause {
				t.Errorf("a pause of %v between two steps", pause)
			}
		}
		f.store.age(1)
		f.pass(expireEvery - time.Second)
		if left, _ := f.store.aged(); left != 1 {
			t.Error("it comes by more often than it should")
		}
		f.pass(time.Second)
		if left, _ := f.store.aged(); left != 0 {
			t.Error("it does not come by again")
		}
	})
}

func TestRetentionIsTheEndpoints(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	for _, tt := range []struct{ set, want relay.Retention }{
		{relay.Retention{}, relay.DefaultRetention},
		{relay.Retention{Bodies: 2 * day, Events: 90 * day}, relay.Retention{Bodies: 2 * day, Events: 90 * day}},
		{relay.Retention{Events: 3 * day}, relay.Retention{Bodies: 3 * day, Events: 3 * day}},
	} {
		e := eventOf(relay.Endpoint{Retention: tt.set}, relay.Incoming{ReceivedAt: t0}, relay.Verdict{}, t0)
		if e.BodyExpiresAt.Sub(t0) != tt.want.Bodies || e.ExpiresAt.Sub(t0) != tt.want.Events {
			t.Errorf("%+v: expires after %v and %v", tt.set, e.BodyExpiresAt.Sub(t0), e.ExpiresAt.Sub(t0))
		}
	}
}

func TestWatchersHearWhatHappens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.run()
		defer f.halt()
		all, cancelAll := f.inbox.Subscribe("")
		defer cancelAll()
		mine, cancelMine := f.inbox.Subscribe(testApp)
		other, cancelOther := f.inbox.Subscribe("another")
		defer cancelOther()
		in := incoming("1")
		in.Header.Set("Dedupe", "same")
		f.send(t.Context(), in)
		f.send(t.Context(), in) // a duplicate is nothing new
		f.send(t.Context(), bad("2"))
		for _, c := range []<-chan relay.Notice{all, mine} {
			if len(c) != 3 {
				t.Fatalf("%d notices, want 3", len(c))
			}
			if n := <-c; n.Kind != relay.NoticeReceived || string(n.Event.Body) != "1" || n.At.IsZero() {
				t.Errorf("first %+v", n)
			}
			if n := <-c; n.Kind != relay.NoticeAttempt || n.Delivery.State != relay.DeliveryDone || n.Attempt.Status != 200 ||
				n.Event.ID != n.Delivery.Event || n.Event.Body != nil {
				t.Errorf("second %+v", n)
			}
			if n := <-c; n.Kind != relay.NoticeRefused || n.Event.Refusal == "" {
				t.Errorf("third %+v", n)
			}
		}
		if len(other) != 0 {
			t.Errorf("%d notices of another app's", len(other))
		}
		cancelMine()
		cancelMine()
		if _, open := <-mine; open {
			t.Error("the channel is not closed")
		}
		// A reader that does not read holds nobody up.
		f.receive(strings.Fields(strings.Repeat("x ", 2*noticeBuffer))...)
		if len(all) != noticeBuffer || f.store.count(relay.DeliveryDone) != 2*noticeBuffer+1 {
			t.Errorf("%d notices wait, %d are delivered", len(all), f.store.count(relay.DeliveryDone))
		}
	})
}

func TestADeliveryWhoseBodyIsGoneIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.connected, f.ep.OrderBy = false, "/k"
		f.run()
		defer f.halt()
		f.receive(`{"k":1,"n":1}`, `{"k":1,"n":2}`, ``)
		gone := f.store.deliveries[0]
		e := f.store.events[gone.Event]
		e.Body = nil
		f.store.events[e.ID] = e
		f.set(func() { f.connected = true })
		f.inbox.AgentConnected(testApp)
		f.settle()
		if gone.State != relay.DeliveryDead || !strings.Contains(gone.LastError, "body is gone") || gone.Attempt != 0 {
			t.Errorf("delivery %+v", *gone)
		}
		if got, want := f.bodies(), `{"k":1,"n":2} `; got != want {
			t.Errorf("the app saw %q, want %q", got, want)
		}
	})
}

// It must not take the poll to find what waited behind it for the order's sake.
func TestWhatWaitsBehindADeliveryWithoutABodyGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, func(c *Config) { c.Poll = time.Hour })
		f.ep.OrderBy = "/k"
		f.run()
		defer f.halt()
		f.receive("x", "x", "x") // the app takes several at once by now
		for n := range 2 {
			draft := f.inbox.Draft(f.ep, incoming(fmt.Sprintf(`{"k":1,"n":%d}`, n)), relay.Verdict{})
			if n == 0 {
				draft.Event.Body = nil
			}
			e := relay.NewEvent{Event: draft.Event, Deliveries: []relay.Delivery{draft.Delivery}}
			if _, err := f.store.CreateEvents(t.Context(), []relay.NewEvent{e}); err != nil {
				t.Fatal(err)
			}
		}
		f.inbox.hint(laneID{app: testApp, endpoint: testEndpoint}, time.Now())
		f.settle()
		if got, want := f.bodies(), `x x x {"k":1,"n":1}`; got != want {
			t.Errorf("the app saw %s, want %s", got, want)
		}
	})
}
