package node

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"runtime"
	"strings"
	"testing"
)

func TestOneRelayRunsOnADataFolder(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("there is no such lock on Windows")
	}
	data := t.TempDir()
	first, err := lockData(t.Context(), data, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := lockData(gone, data, slog.New(slog.DiscardHandler)); !errors.Is(err, errLocked) {
		t.Errorf("a second relay, told to stop: %v", err)
	}
	// The next one waits, and says so.
	said := make(chan string, 1)
	got := make(chan error, 1)
	go func() {
		second, err := lockData(t.Context(), data, slog.New(slog.NewTextHandler(sayOnce{said}, nil)))
		if err == nil {
			second.Close()
		}
		got <- err
	}()
	if line := <-said; !strings.Contains(line, "another relay runs on this data folder") {
		t.Errorf("said %q", line)
	}
	first.Close()
	if err := <-got; err != nil {
		t.Errorf("after the first has gone: %v", err)
	}
}

// sayOnce passes the first line on.
type sayOnce struct{ to chan string }

func (s sayOnce) Write(p []byte) (int, error) {
	select {
	case s.to <- string(bytes.Clone(p)):
	default:
	}
	return len(p), nil
}
