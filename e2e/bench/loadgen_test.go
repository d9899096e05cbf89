package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

var shortPace = pace{10 * time.Millisecond, 50 * time.Millisecond}

// serve returns a target that is the handler.
func serve(t *testing.T, handler http.Handler) *target {
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return &target{name: t.Name(), addr: server.Listener.Addr().String(), host: "bench.localhost"}
}

func runHere(t *testing.T, l load) loadResult {
	l.Grace = 5 * time.Second
	return l.run(t.Context(), func() {})
}

func TestLoadCountsWhatTheAppServed(t *testing.T) {
	t.Parallel()
	app := serve(t, appHandler())
	loads := map[string]load{
		"small":    app.smallLoad(4, shortPace),
		"download": app.bulkLoad("download", 2, 3<<20, shortPace),
		"upload":   app.bulkLoad("upload", 2, 3<<20, shortPace),
	}
	for name, l := range loads {
		r := runHere(t, l)
		if r.Errors > 0 || r.Total == 0 || r.Total < r.Ops || r.Bytes == 0 {
			t.Errorf("%s: %+v", name, r)
		}
		if name == "small" && (r.P50 <= 0 || r.P99 < r.P50 || r.Max < r.P99) {
			t.Errorf("latencies out of order: %+v", r)
		}
	}
}

func TestLoadAgreesWithTheAppOnTheNumberOfRequests(t *testing.T) {
	t.Parallel()
	seen := make(chan struct{}, 1<<20)
	app := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "bench.localhost" {
			t.Errorf("Host %q", r.Host)
		}
		seen <- struct{}{}
		appSmall(w, r)
	}))
	r := runHere(t, app.smallLoad(4, shortPace))
	if r.Errors > 0 || r.Total != int64(len(seen)) {
		t.Errorf("counted %d requests and %d errors, the app served %d", r.Total, r.Errors, len(seen))
	}
}

func TestLoadNoticesAnAppThatAnswersWrong(t *testing.T) {
	t.Parallel()
	answer := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			w.WriteHeader(status)
			fmt.Fprint(w, body)
		}
	}
	cut := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "128")
		fmt.Fprint(w, smallBody[:100])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	small := func(t *target) load { return t.smallLoad(2, shortPace) }
	download := func(t *target) load { return t.bulkLoad("download", 2, 1000, shortPace) }
	upload := func(t *target) load { return t.bulkLoad("upload", 2, 1000, shortPace) }
	cases := []struct {
		name    string
		handler http.HandlerFunc
		load    func(*target) load
		says    string
	}{
		{"another status", answer(500, smallBody), small, "status 500"},
		{"another success", answer(201, smallBody), small, "status 201"},
		{"one byte less", answer(200, smallBody[1:]), small, "127 bytes instead of 128"},
		{"one byte more", answer(200, smallBody+"x"), small, "129 bytes instead of 128"},
		{"another byte", answer(200, smallBody[:127]+"x"), small, "other bytes"},
		{"a body cut short", cut, small, "early"},
		{"a download of another size", answer(200, "too little"), download, "10 bytes instead of 1000"},
		{"an upload miscounted", answer(200, "0999"), upload, "other bytes"},
		{"no app", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, small, "EOF"},
	}
	for _, c := range cases {
		r := runHere(t, c.load(serve(t, c.handler)))
		if r.Errors == 0 || r.Total > 0 || !strings.Contains(r.FirstError, c.says) {
			t.Errorf("%s: %d errors, %d good answers, first error %q", c.name, r.Errors, r.Total, r.FirstError)
		}
	}
}

func TestLoadNoticesOneWrongAnswerAmongMany(t *testing.T) {
	t.Parallel()
	turn := make(chan int, 1)
	turn <- 0
	app := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := <-turn
		turn <- n + 1
		if n == 20 {
			w.WriteHeader(http.StatusBadGateway)
		}
		appSmall(w, r)
	}))
	r := runHere(t, app.smallLoad(2, pace{0, 200 * time.Millisecond}))
	if r.Errors != 1 || r.Total < 21 {
		t.Errorf("one wrong answer, %d errors among %d", r.Errors, r.Total)
	}
}

func TestLoadOnNobodyGivesUp(t *testing.T) {
	t.Parallel()
	free, err := freeAddresses(1)
	if err != nil {
		t.Fatal(err)
	}
	nobody := &target{addr: free[0]}
	r := runHere(t, nobody.smallLoad(2, shortPace))
	if r.Errors != 2*givesUpAfter || r.Total > 0 {
		t.Errorf("%+v", r)
	}
}

func TestLoadFollowsAServerThatCloses(t *testing.T) {
	t.Parallel()
	app := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		appSmall(w, r)
	}))
	if r := runHere(t, app.smallLoad(2, shortPace)); r.Errors > 0 || r.Total < 2 {
		t.Errorf("%+v", r)
	}
}

func TestLoadDoesNotWaitForeverForAStalledAnswer(t *testing.T) {
	t.Parallel()
	app := serve(t, appHandler())
	l := app.smallLoad(2, shortPace)
	l.Path, l.WantBody, l.WantBytes, l.Grace = "/stall", "", 1<<20, 100*time.Millisecond
	r := l.run(t.Context(), func() {})
	if r.Errors != 2 || !strings.Contains(r.FirstError, "timeout") {
		t.Errorf("%+v", r)
	}
}

func TestLoadEndsItsWindowWhenToldTo(t *testing.T) {
	t.Parallel()
	app := serve(t, appHandler())
	ctx, cancel := context.WithCancel(t.Context())
	r := app.smallLoad(2, pace{0, time.Minute}).run(ctx, cancel)
	if r.Errors > 0 || r.Seconds > 30 {
		t.Errorf("%+v", r)
	}
}

func TestLoadWaitsForTheFirstAnswerOfASlowApp(t *testing.T) {
	t.Parallel()
	app := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(100 * time.Millisecond) // the slow app itself
		appSmall(w, r)
	}))
	r := runHere(t, app.smallLoad(1, pace{0, time.Millisecond}))
	if r.Errors > 0 || r.Ops < 1 || r.P50 < 100*time.Millisecond || r.Seconds < 0.1 {
		t.Errorf("%+v", r)
	}
}
