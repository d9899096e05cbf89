// Package web holds the relay's user interface: pages built from the sources
// beside it into dist, and embedded here. What is committed in dist is one
// placeholder page, so that the relay builds without Node.
//
// It serves files and nothing else; the pages talk to the HTTP API.
package web

import (
	_ "embed"
	"net/http"
)

//go:embed dist/index.html
var index []byte

// Index serves the start page.
func Index(w http.ResponseWriter, _ *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	h.Set("X-Content-Type-Options", "nosniff")
	w.Write(index)
}
