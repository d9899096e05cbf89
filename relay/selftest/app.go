package selftest

import (
	"io"
	"net/http"
)

// maxBody is more than any sender here sends.
const maxBody = 8 << 20

// App is the app that gets the webhooks, as an http.Handler.
type App struct {
	// Observe writes a delivery down for good; required. When it fails, the app
	// answers 500: what nobody knows of was not taken.
	Observe func(Delivery) error
	// Status is what the app answers to a delivery; default 200.
	Status func(Delivery) int
}

func (a *App) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return // what has not arrived whole was not delivered
	}
	d, status := deliveryOf(r.Header, body), http.StatusOK
	if a.Status != nil {
		status = a.Status(d)
	}
	d.OK = status/100 == 2
	if err := a.Observe(d); err != nil {
		status = http.StatusInternalServerError
	}
	w.WriteHeader(status)
}
