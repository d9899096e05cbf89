package selftest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// startsWithin bounds how long a relay may take until it is ready.
const startsWithin = 60 * time.Second

// Relay is a relay as a child process.
type Relay struct {
	Process
	URL string // where it will be reached; required
}

// Start starts the process and waits until it is ready.
func (r *Relay) Start(ctx context.Context) error {
	if err := r.Process.Start(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startsWithin)
	defer cancel()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		err := r.ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-r.Done():
			return fmt.Errorf("the relay ended while it started: %w", r.Ended())
		case <-ctx.Done():
			r.Kill()
			return fmt.Errorf("the relay is not ready: %w", err)
		case <-again.C:
		}
	}
}

func (r *Relay) ready(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.URL+"/readyz", nil)
	if err != nil {
		return err
	}
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New("it answers " + resp.Status)
	}
	return nil
}
