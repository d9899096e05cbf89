package main

import (
	"bytes"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
)

// smallBody is the answer to GET /small, 128 bytes.
var smallBody = strings.Repeat("0123456789abcdef", 8)

// appBlock is what GET /bytes streams.
var appBlock = bytes.Repeat([]byte("postern."), 16<<10)

// appHandler is the app behind every target: the least a Go server can do.
//
//	GET  /small      128 bytes
//	GET  /bytes?n=N  N bytes with Content-Length
//	POST /sink       reads everything, answers the count in decimal
//	GET  /stall      begins an answer of 1 MiB and never goes on
func appHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /small", appSmall)
	mux.HandleFunc("GET /bytes", appBytes)
	mux.HandleFunc("POST /sink", appSink)
	mux.HandleFunc("GET /stall", appStall)
	return mux
}

func appSmall(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain")
	w.Header().Set("Content-Length", strconv.Itoa(len(smallBody)))
	_, _ = w.Write([]byte(smallBody))
}

func appBytes(w http.ResponseWriter, r *http.Request) {
	left, err := strconv.ParseInt(r.URL.Query().Get("n"), 10, 64)
	if err != nil || left < 0 {
		http.Error(w, "n must be a number of bytes", http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(left, 10))
	for left > 0 {
		n, err := w.Write(appBlock[:min(left, int64(len(appBlock)))])
		if err != nil {
			return // the client left
		}
		left -= int64(n)
	}
}

// sinkBuffers spares the app from being the bottleneck of uploads: io.Discard
// would read in pieces of 8 KiB.
var sinkBuffers = sync.Pool{New: func() any { return new([128 << 10]byte) }}

func appSink(w http.ResponseWriter, r *http.Request) {
	buf := sinkBuffers.Get().(*[128 << 10]byte)
	defer sinkBuffers.Put(buf)
	var total int64
	for {
		n, err := r.Body.Read(buf[:])
		total += int64(n)
		if err != nil {
			break // a body cut short makes a count that the client refuses
		}
	}
	fmt.Fprint(w, total)
}

func appStall(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Length", strconv.Itoa(1<<20))
	_, _ = w.Write(appBlock[:1])
	_ = http.NewResponseController(w).Flush()
	<-r.Context().Done()
}
