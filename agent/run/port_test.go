package run_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/agent/run"
)

// Not parallel: a process just forked by another test would hold the reserved port a
// bit longer.
func TestWaitPortReturnsWhenTheAppListens(t *testing.T) {
	reserved, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := reserved.Addr().String()
	reserved.Close()

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ready := make(chan error, 1)
	go func() { ready <- run.WaitPort(ctx, addr) }()
	app, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatalf("the app cannot bind while it is waited for: %v", err)
	}
	defer app.Close()
	if err := <-ready; err != nil {
		t.Error(err)
	}
}

func TestWaitPortGivesUpWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := run.WaitPort(ctx, "127.0.0.1:1") // tcpmux, which nobody runs
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("got %v", err)
	}
}
