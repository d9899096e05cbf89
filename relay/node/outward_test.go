package node

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestFetchIsBounded(t *testing.T) {
	t.Parallel()
	mux := http.NewServeMux()
	mux.HandleFunc("/cert.pem", func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("PEM")) })
	mux.HandleFunc("/full", func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, maxFetched)) })
	mux.HandleFunc("/long", func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, maxFetched+1)) })
	mux.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/cert.pem", http.StatusFound) })
	server := httptest.NewTLSServer(mux)
	defer server.Close()
	f := newFetcher()
	f.client.Transport = server.Client().Transport
	for _, tt := range []struct {
		url, err string
		size     int
	}{
		{server.URL + "/cert.pem", "", 3},
		{server.URL + "/full", "", maxFetched},
		{server.URL + "/long", "longer than", 0},
		{server.URL + "/moved", "not followed", 0},
		{server.URL + "/nothing", "404", 0},
		{strings.Replace(server.URL, "https", "http", 1) + "/cert.pem", "only https", 0},
		{"file:///etc/passwd", "only https", 0},
	} {
		body, err := f.fetch(t.Context(), tt.url)
		if len(body) != tt.size || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("fetch(%s) = %d bytes, %v; want %d bytes, error %q", tt.url, len(body), err, tt.size, tt.err)
		}
	}
}
