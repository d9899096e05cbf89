package rig

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"testing"
	"time"
)

var discardLog = log.New(io.Discard, "", 0)

// AppURL is where an app is reached: AppURL("shop", "/cart?id=1").
func (r *Relay) AppURL(app, target string) string {
	return "http://" + r.AppHost(app) + target
}

// AppHost is an app's Host header.
func (r *Relay) AppHost(app string) string { return app + ".localhost:" + r.Port }

// HookURL is where an endpoint takes webhooks.
func (r *Relay) HookURL(app, endpoint string) string { return r.URL + "/hooks/" + app + "/" + endpoint }

// Client is an outside client: it connects to the relay whatever the host, as
// <app>.localhost resolves in a browser. It changes nothing by itself: no
// redirects, no compression, no limit of time.
func (r *Relay) Client() *http.Client {
	tr := &http.Transport{
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return r.dial(ctx) },
		DisableCompression: true, MaxIdleConnsPerHost: 64,
		// Longer than any test of 100 Continue waits.
		ExpectContinueTimeout: time.Minute,
	}
	r.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func (r *Relay) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", r.Addr)
}

// Dial is a connection to the public listener for tests below HTTP. It has a
// deadline of within, and is closed when the test ends.
func (r *Relay) Dial(t testing.TB, within time.Duration) *net.TCPConn {
	t.Helper()
	conn, err := r.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(within))
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.TCPConn)
}

// Eventually tries probe until it succeeds and fails the test after within.
func Eventually(t testing.TB, within time.Duration, what string, probe func() error) {
	t.Helper()
	if err := until(within, nil, probe); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// until tries probe until it succeeds, over is closed or within has passed.
func until(within time.Duration, over <-chan struct{}, probe func() error) error {
	timer := time.NewTimer(within)
	defer timer.Stop()
	again := time.NewTicker(15 * time.Millisecond)
	defer again.Stop()
	for {
		err := probe()
		if err == nil {
			return nil
		}
		select {
		case <-again.C:
		case <-over:
			return fmt.Errorf("the process ended: %w", err)
		case <-timer.C:
			return fmt.Errorf("not within %v: %w", within, err)
		}
	}
}

// Receive takes the next value of c and fails the test after within.
func Receive[T any](t testing.TB, within time.Duration, what string, c <-chan T) T {
	t.Helper()
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case v := <-c:
		return v
	case <-timer.C:
		t.Fatalf("%s: nothing within %v", what, within)
		panic("unreachable")
	}
}
