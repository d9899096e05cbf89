package main

import (
	"io"
	"log"
	"net/http"
)

// rates asks somebody else's server, at RATES_URL, and passes the answer on. The
// program says nothing about proxies: Go's client takes them from the environment,
// where postern run puts its own.
func (s *shop) rates(w http.ResponseWriter, r *http.Request) {
	if s.ratesURL == "" {
		http.Error(w, "RATES_URL is not set", http.StatusNotFound)
		return
	}
	url := s.ratesURL + r.URL.Query().Get("of")
	ask, err := http.NewRequestWithContext(r.Context(), http.MethodGet, url, nil)
	if err != nil {
		http.Error(w, "RATES_URL is not a URL", http.StatusInternalServerError)
		return
	}
	answer, err := http.DefaultClient.Do(ask)
	if err != nil {
		log.Printf("rates not had url=%s reason=%q", url, err)
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer answer.Body.Close()
	log.Printf("rates asked for url=%s status=%d", url, answer.StatusCode)
	w.WriteHeader(answer.StatusCode)
	io.Copy(w, io.LimitReader(answer.Body, maxBody))
}
