package main

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// hookApp is a fast app that takes webhooks and notes when.
//
//	POST …                    a webhook; 200
//	GET  /arrivals            how many there were
//	GET  /arrivals?from=&to=  nanoseconds from the one to the other; 404 before that
//
// Repeats count once: only first attempts are noted.
type hookApp struct {
	mu       sync.Mutex
	arrivals []time.Time
}

func newHookApp() http.Handler {
	app := &hookApp{arrivals: make([]time.Time, 0, 1<<18)}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /", app.take)
	mux.HandleFunc("GET /arrivals", app.tell)
	return mux
}

func (a *hookApp) take(w http.ResponseWriter, r *http.Request) {
	_, err := io.Copy(io.Discard, r.Body)
	if err != nil || r.Header.Get("Postern-Attempt") != "1" {
		return
	}
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.arrivals = append(a.arrivals, now)
}

func (a *hookApp) tell(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !r.URL.Query().Has("to") {
		fmt.Fprint(w, len(a.arrivals))
		return
	}
	from, err := strconv.Atoi(r.URL.Query().Get("from"))
	to, err2 := strconv.Atoi(r.URL.Query().Get("to"))
	if err != nil || err2 != nil || from < 1 || to < from {
		http.Error(w, "from and to number arrivals, the first is 1", http.StatusBadRequest)
		return
	}
	if to > len(a.arrivals) {
		http.Error(w, fmt.Sprintf("%d arrivals so far", len(a.arrivals)), http.StatusNotFound)
		return
	}
	fmt.Fprint(w, int64(a.arrivals[to-1].Sub(a.arrivals[from-1])))
}

// emptyHandler is the least an HTTP server can do with a webhook: it reads it
// and answers as the relay would, without having kept anything.
func emptyHandler() http.Handler {
	answer := []byte(`{"id":"` + hookIDPrefix + `01jd5m8x9q0000000000000000"}` + "\n")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusAccepted)
		_, _ = w.Write(answer)
	})
}
