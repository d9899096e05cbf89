package inbox

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/posternhq/postern/relay"
)

// bad is a webhook with this body whose signature does not hold.
func bad(body string) relay.Incoming {
	in := incoming(body)
	in.Header.Set("Signature", "bad")
	in.Header.Set("Dedupe", "same")
	return in
}

// refused lists the refused events that are stored.
func (s *memStore) refused() []relay.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []relay.Event
	for _, e := range s.events {
		if e.Refusal != "" {
			all = append(all, e)
		}
	}
	return all
}

func TestARefusedWebhookIsKeptAndExplained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, func(c *Config) {
			c.Explain = func(_ relay.Endpoint, in relay.Incoming) string {
				return "The secret number 2 would match " + string(in.Body) + "."
			}
		})
		f.ep.OrderBy = "/k"
		f.run()
		defer f.halt()
		s := f.send(t.Context(), bad("body"))
		if relay.CodeOf(s.err) != relay.BadSignature {
			t.Fatalf("the sender got %v", s.err)
		}
		all := f.store.refused()
		if len(all) != 1 || len(f.store.deliveries) != 0 {
			t.Fatalf("%d refused events and %d deliveries", len(all), len(f.store.deliveries))
		}
		e := all[0]
		want := "the header Signature is not good. The secret number 2 would match body."
		if e.Refusal != want || string(e.Body) != "body" || e.BodySize != 4 || e.DedupeKey != "" || e.Verified || e.App != testApp {
			t.Errorf("event %+v", e)
		}
		if e.BodyExpiresAt.Sub(e.ReceivedAt) != refusedBodyTime || e.ExpiresAt.Sub(e.ReceivedAt) != relay.DefaultRetention.Events {
			t.Errorf("it expires at %v and %v", e.BodyExpiresAt, e.ExpiresAt)
		}
		if s := f.send(t.Context(), incoming("good")); s.status() != 202 || s.receipt.Duplicate {
			t.Errorf("a good one with the same id got %d, %+v", s.status(), s.receipt)
		}
	})
}

// Everybody can send what is refused, so it must not fill the disk.
func TestRefusedWebhooksAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.run()
		defer f.halt()
		notices, cancel := f.inbox.Subscribe("")
		defer cancel()
		for range 50 {
			f.send(t.Context(), bad("x"))
		}
		if n := len(f.store.refused()); n != refusedBurst {
			t.Errorf("%d are kept, want %d", n, refusedBurst)
		}
		if n := len(notices); n != 50 {
			t.Errorf("%d notices, want one for each", n)
		}
		f.pass(3 * time.Second)
		for range 50 {
			f.send(t.Context(), bad("x"))
		}
		if n := len(f.store.refused()); n != refusedBurst+3 {
			t.Errorf("%d are kept three seconds later, want %d", n, refusedBurst+3)
		}
	})
}

func TestTheBodiesOfRefusedWebhooksAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		explained := 0
		f := newFixture(t, func(c *Config) {
			c.Explain = func(relay.Endpoint, relay.Incoming) string { explained++; return "" }
		})
		f.run()
		defer f.halt()
		f.send(t.Context(), bad(strings.Repeat("x", maxRefusedBody+1)))
		if e := f.store.refused()[0]; len(e.Body) != 0 || e.BodySize != maxRefusedBody+1 {
			t.Errorf("a body of %d bytes kept as %d", e.BodySize, len(e.Body))
		}
		for range 6 {
			f.send(t.Context(), bad(strings.Repeat("x", maxRefusedBody)))
		}
		kept := 0
		for _, e := range f.store.refused() {
			kept += len(e.Body)
		}
		if kept != refusedBytes || explained != 6 {
			t.Errorf("%d bytes are kept, want %d; %d are explained", kept, refusedBytes, explained)
		}
	})
}

func TestARefusalDoesNotWaitForAnything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, func(c *Config) {
			c.Explain = func(relay.Endpoint, relay.Incoming) string { time.Sleep(time.Hour); return "" }
		})
		f.run()
		for range 100 {
			f.pass(time.Second)
			if s := f.send(t.Context(), bad("x")); relay.CodeOf(s.err) != relay.BadSignature {
				t.Fatalf("the sender got %d", s.status())
			}
		}
		f.stop()
		f.pass(2 * time.Hour) // the hour that Explain takes here is nobody's limit
		f.halt()
	})
}

func TestWhatIsNotKept(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*fixture, *relay.Incoming)
	}{
		{"a browser's visit", func(_ *fixture, in *relay.Incoming) { in.Method = "GET" }},
		{"too large", func(f *fixture, _ *relay.Incoming) { f.ep.MaxBody = 2 }},
		{"a path that leads away", func(_ *fixture, in *relay.Incoming) { in.Target = "/../x" }},
		{"over the quota", func(f *fixture, _ *relay.Incoming) {
			f.inbox.cfg.Quota = func(relay.AppID) relay.Quota { return relay.Quota{Bytes: 1} }
			f.receive("1")
		}},
		{"no store", func(f *fixture, _ *relay.Incoming) { f.store.fail(errors.New("down")) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t)
				f.run()
				in := bad("body")
				tt.change(f, &in)
				f.send(t.Context(), in)
				f.store.fail(nil)
				f.pass(time.Minute)
				if n := len(f.store.refused()); n != 0 {
					t.Errorf("%d are kept", n)
				}
				f.halt()
			})
		})
	}
}
