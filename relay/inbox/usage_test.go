package inbox

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/posternhq/postern/relay"
)

func TestAnAppThatUsedUpItsQuotaIsRefused(t *testing.T) {
	for _, tt := range []struct {
		name  string
		quota relay.Quota
		want  int // webhooks of ten bytes that are taken while there is no agent
		after int // and how many more when they were delivered
	}{
		{"no limit", relay.Quota{}, 10, 10},
		{"bytes", relay.Quota{Bytes: 35}, 4, 0},
		{"waiting", relay.Quota{Waiting: 3}, 3, 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, func(c *Config) { c.Quota = func(relay.AppID) relay.Quota { return tt.quota } })
				f.connected = false
				f.run()
				defer f.halt()
				send := func() int {
					taken := 0
					for range 10 {
						s := f.send(t.Context(), incoming("0123456789"))
						if s.status() == 202 {
							taken++
							continue
						}
						var e *relay.Error
						if !errors.As(s.err, &e) || e.Code != relay.Unavailable || e.Reason != "quota" {
							t.Fatalf("the sender got %v", s.err)
						}
					}
					return taken
				}
				if n := send(); n != tt.want || len(f.store.events) != tt.want {
					t.Errorf("%d were taken and %d stored, want %d", n, len(f.store.events), tt.want)
				}
				f.pass(6 * time.Second) // a poll, which finds what is counted already
				if n := send(); tt.want < 10 && n != 0 {
					t.Errorf("%d more were taken", n)
				}
				f.set(func() { f.connected = true })
				f.inbox.AgentConnected(testApp)
				f.settle()
				f.set(func() { f.connected = false })
				if n := send(); n != tt.after {
					t.Errorf("%d were taken after all was delivered, want %d", n, tt.after)
				}
			})
		})
	}
}

func TestASyncEventOverTheQuotaIsNotRecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, func(c *Config) { c.Quota = func(relay.AppID) relay.Quota { return relay.Quota{Bytes: 1} } })
		f.receive("1")
		draft := f.inbox.Draft(f.ep, incoming("2"), relay.Verdict{})
		if _, err := f.inbox.RecordSync(t.Context(), draft, relay.Attempt{}); relay.CodeOf(err) != relay.Unavailable {
			t.Errorf("RecordSync: %v", err)
		}
	})
}

// A store that cannot be asked must not make what was accepted since be
// forgotten.
func TestAFailedMeasurementForgetsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, func(c *Config) { c.Quota = func(relay.AppID) relay.Quota { return relay.Quota{Bytes: 2} } })
		f.receive("1", "2")
		f.store.fail(errors.New("down"))
		f.run()
		f.store.fail(nil)
		if s := f.send(t.Context(), incoming("3")); relay.CodeOf(s.err) != relay.Unavailable {
			t.Errorf("the sender got %d", s.status())
		}
		f.halt()
	})
}
