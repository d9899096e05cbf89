package selftest

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const testSecret = "whsec_for_a_test"

// standIn is a relay that does what a test says, and keeps what it got.
type standIn struct {
	*httptest.Server

	mu   sync.Mutex
	got  []received // guarded by mu
	more chan struct{}
}

type received struct {
	path   string
	number string
	header http.Header
	body   []byte
}

// newStandIn answers the nth request, from 0, with answer.
func newStandIn(t *testing.T, answer func(n int, w http.ResponseWriter, got received)) *standIn {
	t.Helper()
	s := &standIn{more: make(chan struct{}, 10000)}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		got := received{r.URL.Path, r.Header.Get(NumberHeader), r.Header.Clone(), body}
		s.mu.Lock()
		n := len(s.got)
		s.got = append(s.got, got)
		s.mu.Unlock()
		answer(n, w, got)
		s.more <- struct{}{}
	}))
	t.Cleanup(s.Close)
	return s
}

// run runs l until the stand-in has had n requests, and returns all it had.
func (s *standIn) run(t *testing.T, l *Load, n int) []received {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		l.Run(ctx)
	}()
	for range n {
		select {
		case <-s.more:
		case <-ctx.Done():
			t.Fatal("too few requests")
		}
	}
	cancel()
	<-ended
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got
}

func accept(w http.ResponseWriter, id string) {
	w.Header().Set("Postern-Event-Id", id)
	w.WriteHeader(http.StatusAccepted)
	fmt.Fprintf(w, `{"id":%q}`, id)
}

func sizeOf(n int) func(*rand.Rand) int { return func(*rand.Rand) int { return n } }

func TestSendersSignWhatTheySendAndTheLedgerKnowsIt(t *testing.T) {
	t.Parallel()
	s := newStandIn(t, func(_ int, w http.ResponseWriter, got received) { accept(w, "evt_"+got.number) })
	l := &Load{Ledger: NewLedger(), Senders: 3, Targets: []Target{
		{URL: s.URL + "/stripe", Make: Stripe(testSecret, sizeOf(500)), Keys: 2},
		{URL: s.URL + "/github", Make: GitHub(testSecret, sizeOf(100))},
	}}
	all := s.run(t, l, 200)
	keys, stripe := map[string]bool{}, 0
	for _, got := range all {
		switch got.path {
		case "/stripe":
			stripe++
			value := got.header.Get("Stripe-Signature")
			at, signature, _ := strings.Cut(strings.TrimPrefix(value, "t="), ",v1=")
			wantSigned(t, signature, at+"."+string(got.body))
			var event struct{ ID, Account string }
			if err := json.Unmarshal(got.body, &event); err != nil || event.ID != "evt_"+got.number || len(got.body) != 500 {
				t.Errorf("%d bytes, id %q, %v", len(got.body), event.ID, err)
			}
			keys[event.Account] = true
		case "/github":
			wantSigned(t, strings.TrimPrefix(got.header.Get("X-Hub-Signature-256"), "sha256="), string(got.body))
			if len(got.body) != 100 || got.header.Get("X-Github-Delivery") == "" {
				t.Errorf("%d bytes, delivery %q", len(got.body), got.header.Get("X-Github-Delivery"))
			}
		}
		l.Ledger.Observe(Delivery{
			Number: deliveryOf(got.header, got.body).Number, OK: true,
			EventID: "evt_" + got.number, DeliveryID: "dlv_" + got.number, IdempotencyKey: got.number,
			Body: DigestBody(got.body), Header: DigestHeader(got.header),
		})
	}
	if len(keys) != 6 || stripe == 0 || stripe == len(all) {
		t.Errorf("%d keys, want 3 senders with 2 each; %d of %d for one endpoint", len(keys), stripe, len(all))
	}
	if found, c := l.Ledger.Check(), l.Ledger.Counts(); len(found) > 0 || c.Acknowledged != len(all) || c.Delivered != len(all) {
		t.Errorf("%+v, %v", c, found)
	}
}

func wantSigned(t *testing.T, signature, signed string) {
	t.Helper()
	mac := hmac.New(sha256.New, []byte(testSecret))
	io.WriteString(mac, signed)
	if signature != hex.EncodeToString(mac.Sum(nil)) {
		t.Errorf("signature %q does not fit", signature)
	}
}

func TestWhatWasNotAcknowledgedIsSentAgainOnlyWhereItIsKnownAgain(t *testing.T) {
	t.Parallel()
	for _, repeating := range []bool{true, false} {
		t.Run(fmt.Sprintf("repeats %v", repeating), func(t *testing.T) {
			t.Parallel()
			s := newStandIn(t, func(n int, w http.ResponseWriter, got received) {
				switch n % 3 {
				case 0:
					w.Header().Set("Retry-After", "1")
					w.WriteHeader(http.StatusServiceUnavailable)
				case 1:
					panic(http.ErrAbortHandler)
				default:
					accept(w, "evt_"+got.number)
				}
			})
			s.Config.ErrorLog = nil
			l := &Load{Ledger: NewLedger(), Senders: 1, Targets: []Target{
				{URL: s.URL, Make: GitHub(testSecret, sizeOf(10)), Repeats: repeating},
			}}
			all := s.run(t, l, 60)
			byNumber := map[string]received{}
			again := 0
			for _, got := range all {
				if first, known := byNumber[got.number]; known {
					again++
					if !slices.Equal(first.body, got.body) || DigestHeader(first.header) != DigestHeader(got.header) {
						t.Errorf("event %s is not the same the second time", got.number)
					}
				}
				byNumber[got.number] = got
			}
			if (again > 0) != repeating {
				t.Errorf("%d of %d were sent again", again, len(all))
			}
			c := l.Ledger.Counts()
			if c.Sent != len(byNumber) || c.Acknowledged == 0 || c.Unavailable == 0 || c.Unanswered == 0 {
				t.Errorf("%+v with %d numbers", c, len(byNumber))
			}
		})
	}
}

func TestAnAnswerThatNamesTwoEventsNamesNone(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		status       int
		header, body string
		want         string
	}{
		"both agree":            {202, "evt_1", `{"id":"evt_1"}`, "evt_1"},
		"they differ":           {202, "evt_1", `{"id":"evt_2"}`, ""},
		"no body":               {202, "evt_1", ``, ""},
		"no header":             {202, "", `{"id":"evt_1"}`, ""},
		"the app's own answer":  {200, "evt_1", `{"id":"order 5"}`, "evt_1"},
		"the app's own failure": {500, "evt_1", `oh`, "evt_1"},
	} {
		resp := &http.Response{StatusCode: test.status, Header: http.Header{"Postern-Event-Id": {test.header}}}
		if got := idIn(resp, []byte(test.body)); got != test.want {
			t.Errorf("%s: id %q, want %q", name, got, test.want)
		}
	}
}

func TestARelayThatDoesNotListenCostsNothing(t *testing.T) {
	t.Parallel()
	addr, err := freeAddr()
	if err != nil {
		t.Fatal(err)
	}
	l := &Load{Ledger: NewLedger(), Senders: 2, Targets: []Target{{URL: "http://" + addr, Make: GitHub(testSecret, sizeOf(10))}}}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	l.Run(ctx)
	if c := l.Ledger.Counts(); c.Sent != 2 || c.Unanswered != 0 || len(l.Ledger.Check()) > 0 {
		t.Errorf("%+v %v", c, l.Ledger.Check())
	}
}
