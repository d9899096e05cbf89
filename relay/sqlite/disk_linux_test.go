package sqlite

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/posternhq/postern/relay"
)

// A disk that is really full, with an event in flight at every moment.
func TestTheStoreRecoversFromAFullDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=6m"); err != nil {
		t.Skipf("no small file system can be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "postern.db")
	s, err := Open(t.Context(), Config{Path: path, MinFree: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var stored []int
	failed := 0
	for i := 0; failed < 20; i++ {
		if i > 5000 {
			t.Fatal("the disk does not get full")
		}
		body := make([]byte, 20<<10)
		if i%5 == 0 {
			body = large('a')
		}
		err := createOne(s, events(i, 1, "", body)...)()
		switch {
		case err == nil:
			stored = append(stored, i)
		case relay.CodeOf(err) != "":
			t.Fatalf("got %v with code %q", err, relay.CodeOf(err))
		default:
			failed++
		}
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := createOne(s, events(9999, 1, "", large('b'))...)(); err != nil {
		t.Fatalf("with space again: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Open(t.Context(), Config{Path: path, MinFree: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	for _, i := range append(stored, 9999) {
		if _, err := again.Event(t.Context(), eventID(i)); err != nil {
			t.Errorf("event %d of %s was acknowledged: %v", i, fmt.Sprint(len(stored)), err)
		}
	}
	if n := len(files(t, again)); n > len(stored) {
		t.Errorf("%d files for %d events", n, len(stored))
	}
}
