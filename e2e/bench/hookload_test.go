package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stripe/stripe-go/v85/webhook"
)

func hookTarget(t *testing.T, handler http.Handler) load {
	l := webhooks(serve(t, handler).addr, 700, shortPace)
	l.Conns = 4
	return l
}

func TestStripesOwnLibraryAcceptsTheWebhooks(t *testing.T) {
	t.Parallel()
	m := newHookMaker(webhooks("127.0.0.1:1", hookSize, shortPace))
	seen := map[string]bool{}
	for range 100 {
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(m.next(time.Now()))))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r.Body)
		if err != nil || len(body) != hookSize || r.URL.Path != hookPath {
			t.Fatalf("%s with %d bytes: %v", r.URL, len(body), err)
		}
		event, err := webhook.ConstructEventWithOptions(body, r.Header.Get("Stripe-Signature"), hookSecret,
			webhook.ConstructEventOptions{IgnoreAPIVersionMismatch: true})
		if err != nil {
			t.Fatalf("%v: %s", err, body)
		}
		if seen[event.ID] {
			t.Errorf("the id %s comes twice", event.ID)
		}
		seen[event.ID] = true
	}
}

func TestAWebhookLoadCountsOnlyNewEvents(t *testing.T) {
	t.Parallel()
	if r := runHere(t, hookTarget(t, emptyHandler())); r.Errors > 0 || r.Ops == 0 {
		t.Errorf("the baseline's answers: %+v", r)
	}
	for want, answer := range map[string]http.HandlerFunc{
		"status 503": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "full", http.StatusServiceUnavailable) },
		"status 200": func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"id":"evt_1"}`) },
		"duplicate": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusAccepted)
			fmt.Fprint(w, `{"id":"evt_1","duplicate":true}`)
		},
		"no event's id": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusAccepted)
			fmt.Fprint(w, `{}`)
		},
	} {
		r := runHere(t, hookTarget(t, answer))
		if r.Ops > 0 || r.Errors == 0 || !strings.Contains(r.FirstError, want) {
			t.Errorf("%s: %+v", want, r)
		}
	}
}

// In a closed loop a server that stops for a while stops its clients, and only
// one request of each is slow. Here all count that should have begun meanwhile.
func TestAStallCountsForEveryRequestThatItHeldBack(t *testing.T) {
	t.Parallel()
	var stalled atomic.Int32
	l := hookTarget(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if stalled.Add(1) == 40 { // behind the warm-up
			<-time.After(400 * time.Millisecond)
		}
		emptyHandler().ServeHTTP(w, r)
	}))
	l.Conns, l.Rate = 1, 200
	l.Warmup, l.Window = 100*time.Millisecond, 600*time.Millisecond
	open := runHere(t, l)
	if open.Errors > 0 || open.P50 < 100*time.Millisecond {
		t.Errorf("with a rate: %+v", open)
	}
	stalled.Store(0)
	l.Rate = 0
	if closed := runHere(t, l); closed.Errors > 0 || closed.P50 > 100*time.Millisecond {
		t.Errorf("without a rate: %+v", closed)
	}
}

func TestTurnsKeepTheirDistance(t *testing.T) {
	t.Parallel()
	p := pacer{every: 2 * time.Millisecond}
	first := p.turn()
	for i := 1; i <= 20; i++ {
		turn := p.turn()
		if turn.Sub(first) != time.Duration(i)*p.every {
			t.Fatalf("turn %d is %v behind the first", i, turn.Sub(first))
		}
		if late := time.Since(turn); late < 0 {
			t.Fatalf("turn %d begins %v early", i, -late)
		}
	}
	if at := (&pacer{}).turn(); time.Since(at) > time.Second {
		t.Error("without a rate a turn is not now")
	}
}

func TestAnAppTellsTheTimeBetweenArrivals(t *testing.T) {
	t.Parallel()
	app := serve(t, newHookApp())
	r := &hookRelay{target: &target{}, app: app.addr}
	for _, attempt := range []string{"1", "1", "2", "1"} {
		request, err := http.NewRequest(http.MethodPost, "http://"+app.addr+"/webhooks/stripe", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Postern-Attempt", attempt)
		if _, err := get(request); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := r.arrivals(t.Context(), ""); n != 3 || err != nil {
		t.Errorf("%d arrivals, %v", n, err)
	}
	if took, err := r.arrivals(t.Context(), "?from=1&to=3"); took <= 0 || err != nil {
		t.Errorf("%d ns, %v", took, err)
	}
	for _, query := range []string{"?from=1&to=4", "?from=0&to=1", "?from=2&to=1", "?to=x"} {
		if took, err := r.arrivals(t.Context(), query); err == nil {
			t.Errorf("%s: %d", query, took)
		}
	}
}
