package sqlite

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/posternhq/postern/relay"
)

func TestEventsAreRefusedBeforeTheDiskIsFull(t *testing.T) {
	t.Parallel()
	if _, err := freeBytes(t.TempDir()); err != nil {
		t.Skipf("this system does not say how much is free: %v", err)
	}
	path := filepath.Join(t.TempDir(), "postern.db")
	s, err := Open(t.Context(), Config{Path: path, MinFree: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := createOne(s, events(1, 1, "", nil)...)(); err != nil {
		t.Fatal(err)
	}
	full, err := Open(t.Context(), Config{Path: path, MinFree: 1 << 60})
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	_, err = full.CreateEvents(t.Context(), events(2, 1, "", large('a')))
	var refusal *relay.Error
	if !errors.As(err, &refusal) || refusal.Code != relay.Unavailable || refusal.Reason != "disk_full" {
		t.Fatalf("got %v", err)
	}
	if names := files(t, full); len(names) != 0 {
		t.Errorf("files %v", names)
	}
	// What makes room, and what delivers, goes on.
	leases, err := full.ClaimDeliveries(t.Context(), benchClaim(5))
	if err != nil || len(leases) != 1 {
		t.Fatalf("claimed %+v, %v", leases, err)
	}
	if err := full.FinishAttempt(t.Context(), benchFinish(leases[0].Delivery)); err != nil {
		t.Fatal(err)
	}
	if done, err := full.Expire(t.Context(), events(1, 1, "", nil)[0].Event.ExpiresAt, 10); err != nil || done.Events != 1 {
		t.Fatalf("expired %+v, %v", done, err)
	}
}

func TestWhatWasTakenSinceTheLastLookIsCounted(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	free, err := freeBytes(dir)
	if err != nil {
		t.Skipf("this system does not say how much is free: %v", err)
	}
	d := disk{dir: dir, min: free / 2}
	refused := 0
	for range 4 {
		if d.room(free/5) != nil {
			refused++
		}
	}
	if refused == 0 || refused == 4 {
		t.Errorf("%d of 4 were refused", refused)
	}
}
