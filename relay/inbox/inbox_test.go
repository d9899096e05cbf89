package inbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/posternhq/postern/relay"
)

func TestReceiveStoresTheEventAsItCame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.ep.OrderBy = "/customer/id"
		in := incoming(`{"customer":{"id":"cus_7"}}` + "\r\n\x00\xff")
		in.Target = "/a%2Fb?x=%zz&x=2"
		in.Header["X-Twice"] = []string{"b", "a"}
		in.Header.Set("Dedupe", "evt_provider")
		in.ReceivedAt = f.start.Add(-time.Minute)
		receipt, _, err := f.inbox.Receive(t.Context(), f.ep, in)
		if err != nil || receipt.Duplicate || receipt.ID == "" {
			t.Fatalf("Receive = %+v, %v", receipt, err)
		}
		e, d := f.store.events[receipt.ID], f.store.one()
		if string(e.Body) != string(in.Body) || e.Target != in.Target || e.Method != "POST" ||
			e.PublicURL != in.PublicURL || e.RemoteIP != in.RemoteIP || !e.ReceivedAt.Equal(in.ReceivedAt) ||
			e.Type != "test" || e.DedupeKey != "evt_provider" || !e.Verified || e.App != testApp || e.Endpoint != testEndpoint {
			t.Errorf("event %+v", e)
		}
		if want := in.ReceivedAt.Add(30 * 24 * time.Hour); !e.ExpiresAt.Equal(want) {
			t.Errorf("it expires at %v, want %v", e.ExpiresAt, want)
		}
		want := []relay.Field{{Name: "Dedupe", Value: "evt_provider"}, {Name: "Signature", Value: "good"},
			{Name: "X-Twice", Value: "b"}, {Name: "X-Twice", Value: "a"}}
		if len(e.Header) != len(want) {
			t.Fatalf("header %v", e.Header)
		}
		for i := range want {
			if e.Header[i] != want[i] {
				t.Errorf("header line %d is %v, want %v", i, e.Header[i], want[i])
			}
		}
		if d.Event != e.ID || d.State != relay.DeliveryReady || d.OrderKey != "cus_7" || d.NextAt.After(time.Now()) {
			t.Errorf("delivery %+v", d)
		}
	})
}

func TestReceiveRefusals(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*fixture, *relay.Incoming)
		code   relay.Code
		text   string
	}{
		{"bad signature", func(_ *fixture, in *relay.Incoming) { in.Header.Set("Signature", "bad") }, relay.BadSignature, "the header Signature is not good"},
		{"store down", func(f *fixture, _ *relay.Incoming) { f.store.fail(errors.New("disk full")) }, relay.Unavailable, "the event could not be stored"},
		{"store down with a code of its own", func(f *fixture, _ *relay.Incoming) { f.store.fail(relay.Errorf(relay.Conflict, "x")) }, relay.Unavailable, "the event could not be stored"},
		{"body too long", func(f *fixture, in *relay.Incoming) { f.ep.MaxBody, in.Body = 3, []byte("1234") }, relay.TooLarge, "the body is longer than 3 bytes"},
		{"a way out of the endpoint's path", func(_ *fixture, in *relay.Incoming) { in.Target = "/../admin" }, relay.Invalid, "the path does not stay below the endpoint's"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t)
				in := incoming("1")
				tt.change(f, &in)
				_, _, err := f.inbox.Receive(t.Context(), f.ep, in)
				var e *relay.Error
				if !errors.As(err, &e) || e.Code != tt.code || e.Message != tt.text {
					t.Errorf("Receive: %v, want %s: %s", err, tt.code, tt.text)
				}
				if len(f.store.events) != 0 {
					t.Errorf("%d events were stored", len(f.store.events))
				}
			})
		})
	}
}

func TestAStoreThatIsDownKeepsItsCauseForTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		cause := errors.New("disk full")
		f.store.fail(cause)
		if _, _, err := f.inbox.Receive(t.Context(), f.ep, incoming("1")); !errors.Is(err, cause) {
			t.Errorf("Receive: %v, want the cause in it", err)
		}
	})
}

// Without a time of arrival a tolerance would never be exceeded.
func TestVerifyAlwaysSeesATimeOfArrival(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen []time.Time
		f := newFixture(t, func(c *Config) {
			c.Verify = func(_ context.Context, _ relay.Endpoint, in relay.Incoming) relay.Verdict {
				seen = append(seen, in.ReceivedAt)
				return relay.Verdict{OK: true}
			}
		})
		f.receive("1")
		if _, err := f.inbox.Check(t.Context(), f.ep, incoming("2")); err != nil {
			t.Fatal(err)
		}
		for _, at := range seen {
			if !at.Equal(f.start) {
				t.Errorf("Verify saw %v, want %v", at, f.start)
			}
		}
		if len(seen) != 2 {
			t.Errorf("Verify was called %d times", len(seen))
		}
	})
}

func TestADuplicateIsAcknowledgedAndDeliveredOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.run()
		defer f.halt()
		in := incoming("1")
		in.Header.Set("Dedupe", "same")
		first, _, err := f.inbox.Receive(t.Context(), f.ep, in)
		if err != nil {
			t.Fatal(err)
		}
		f.settle()
		second, _, err := f.inbox.Receive(t.Context(), f.ep, in)
		if err != nil || !second.Duplicate || second.Requeued || second.ID != first.ID {
			t.Errorf("second Receive = %+v, %v; first was %+v", second, err, first)
		}
		f.settle()
		if got := f.bodies(); got != "1" {
			t.Errorf("the app saw %q, want it once", got)
		}
	})
}

// GitHub's "Redeliver" sends the same id again; it must not be swallowed when
// the first delivery was given up.
func TestADuplicateOfADeadDeliveryIsDeliveredAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.ep.Retry = relay.RetryPolicy{}
		f.app = answer(500)
		f.run()
		defer f.halt()
		in := incoming("1")
		in.Header.Set("Dedupe", "same")
		for range 2 {
			if _, _, err := f.inbox.Receive(t.Context(), f.ep, in); err != nil {
				t.Fatal(err)
			}
			f.settle()
			if d := f.store.one(); d.State != relay.DeliveryDead {
				t.Fatalf("delivery %+v, want it dead", d)
			}
		}
		if n := len(f.callList()); n != 2 {
			t.Errorf("the app was called %d times, want 2", n)
		}
	})
}

func TestRecordSync(t *testing.T) {
	for _, tt := range []struct {
		outcome relay.Outcome
		want    relay.DeliveryState
	}{
		{relay.OutcomeDone, relay.DeliveryDone},
		{relay.OutcomeRejected, relay.DeliveryDead},
		{relay.OutcomeUnsent, relay.DeliveryDead},
	} {
		t.Run(tt.outcome.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t)
				f.run()
				defer f.halt()
				in := incoming("1")
				in.Header.Set("Dedupe", "same")
				for range 2 { // the sender tries again, with the same id
					v, err := f.inbox.Check(t.Context(), f.ep, in)
					if err != nil {
						t.Fatal(err)
					}
					draft := f.inbox.Draft(f.ep, in, v)
					r, err := f.inbox.RecordSync(t.Context(), draft, relay.Attempt{Outcome: tt.outcome, Status: 207})
					if err != nil || r.ID != draft.Event.ID {
						t.Fatalf("RecordSync = %+v, %v", r, err)
					}
				}
				f.pass(time.Hour)
				if n := f.store.count(tt.want); n != 2 {
					t.Errorf("%d deliveries are %v, want 2", n, tt.want)
				}
				if n := len(f.store.recorded()); n != 2 {
					t.Errorf("%d attempts are recorded, want 2", n)
				}
				if n := len(f.callList()); n != 0 {
					t.Errorf("the worker delivered %d of them again", n)
				}
			})
		})
	}
}

func TestRecordSyncWithoutAStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.store.fail(errors.New("disk full"))
		_, err := f.inbox.RecordSync(t.Context(), relay.Lease{}, relay.Attempt{})
		if relay.CodeOf(err) != relay.Unavailable {
			t.Errorf("RecordSync: %v", err)
		}
	})
}

func TestNewRefusesAConfigThatCannotWork(t *testing.T) {
	t.Parallel()
	defer func() {
		if recover() == nil {
			t.Error("New accepted an empty Config")
		}
	}()
	New(Config{})
}

func TestTheDefaultsAreTheDocumentedOnes(t *testing.T) {
	t.Parallel()
	c := Config{
		Store: newMemStore(), Node: "n", App: http.DefaultTransport,
		Verify:    verifyByHeader,
		Endpoint:  func(relay.AppID, string) (relay.Endpoint, bool) { return relay.Endpoint{}, false },
		Connected: func(relay.AppID) bool { return false },
	}.withDefaults()
	if c.AttemptTimeout != time.Minute || c.DrainTimeout != 10*time.Second || c.Poll != 5*time.Second {
		t.Errorf("defaults %+v", c)
	}
	if r := c.Random(); r < 0 || r >= 1 || c.Now().IsZero() || c.Logger.Enabled(context.Background(), 100) {
		t.Error("Random, Now or Logger has an odd default")
	}
}

func TestOrderKey(t *testing.T) {
	t.Parallel()
	sum := sha256.Sum256([]byte(strings.Repeat("x", 201)))
	longHash := "sha256:" + hex.EncodeToString(sum[:])
	for _, tt := range []struct{ name, pointer, body, want string }{
		{"a string", "/data/object/id", `{"data":{"x":[{"object":1}],"object":{"id":"in_1"}}}`, "in_1"},
		{"a number keeps its digits", "/id", `{"id":12345678901234567890}`, "12345678901234567890"},
		{"a boolean", "/live", `{"live":false}`, "false"},
		{"an element", "/l/1/id", `{"l":[{"id":"a"},{"id":"b"}]}`, "b"},
		{"an element of the top", "/1", `["a","b"]`, "b"},
		{"escapes", "/a~1b/c~0d/~01", `{"a/b":{"c~d":{"~1":"x"}}}`, "x"},
		{"an empty name", "/", `{"":"x"}`, "x"},
		{"no pointer", "", `{"":"x"}`, ""},
		{"not a pointer", "id", `{"id":"x"}`, ""},
		{"nothing there", "/b", `{"a":"x"}`, ""},
		{"past the end", "/2", `["a","b"]`, ""},
		{"the end", "/-", `["a","b"]`, ""},
		{"an index with a zero in front", "/01", `["a","b"]`, ""},
		{"a negative index", "/-1", `["a","b"]`, ""},
		{"into a string", "/a/b", `{"a":"x"}`, ""},
		{"an object", "/a", `{"a":{}}`, ""},
		{"null", "/a", `{"a":null}`, ""},
		{"a form", "/a", `a=x`, ""},
		{"cut off behind it", "/a", `{"a":"x","b":`, "x"},
		{"cut off before it", "/b", `{"a":"x`, ""},
		{"empty", "/a", ``, ""},
		{"too long a pointer", strings.Repeat("/a", 600), strings.Repeat(`{"a":`, 600) + `1` + strings.Repeat(`}`, 600), ""},
		{"a number that may go on", "/a", `{"a":12`, ""},
		{"very deep", "/b", `{"a":` + strings.Repeat(`[`, 20_000), ""},
		{"a long one is hashed", "/a", `{"a":"` + strings.Repeat("x", 201) + `"}`, longHash},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := orderKey(tt.pointer, []byte(tt.body))
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func FuzzOrderKey(f *testing.F) {
	f.Add("/data/object/id", []byte(`{"data":{"object":{"id":"in_1"}}}`))
	f.Add("/l/1", []byte(`{"l":[1,2]}`))
	f.Add("/~01/~", []byte(`[[[`))
	f.Fuzz(func(t *testing.T, pointer string, body []byte) {
		key := orderKey(pointer, body)
		if len(key) > maxOrderKey || strings.Contains(key, "\x00") {
			t.Errorf("key %q does not fit a column", key)
		}
		if key != orderKey(pointer, body) {
			t.Error("the same body gave two keys")
		}
	})
}
