package sqlite

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/posternhq/postern/relay"
)

// large is a body that gets a file.
func large(c byte) []byte { return bytes.Repeat([]byte{c}, largeBody) }

// files lists the folder of large bodies.
func files(t *testing.T, s *Store) []string {
	t.Helper()
	entries, err := os.ReadDir(s.bodies.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, filepath.Join(s.bodies.dir, e.Name()))
	}
	return names
}

func TestALargeBodyIsAFileThatOnlyItsOwnerMayRead(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	if err := createOne(s, append(events(1, 1, "", large('a')), events(2, 1, "", large('b')[1:])...)...)(); err != nil {
		t.Fatal(err)
	}
	names := files(t, s)
	if len(names) != 1 {
		t.Fatalf("files %v", names)
	}
	folder, err1 := os.Stat(s.bodies.dir)
	file, err2 := os.Stat(names[0])
	if err1 != nil || err2 != nil || folder.Mode().Perm() != 0o700 || file.Mode().Perm() != 0o600 || file.Size() != largeBody {
		t.Errorf("folder %v %v, file %v %v", folder.Mode(), err1, file.Mode(), err2)
	}
	for i, want := range map[int][]byte{1: large('a'), 2: large('b')[1:]} {
		e, err := s.Event(t.Context(), eventID(i))
		if err != nil || !bytes.Equal(e.Body, want) || e.BodySize != int64(len(want)) {
			t.Errorf("event %d: %d bytes, %v", i, len(e.Body), err)
		}
	}
	leases, err := s.ClaimDeliveries(t.Context(), benchClaim(5))
	if err != nil || len(leases) != 2 || !bytes.Equal(leases[0].Event.Body, large('a')) {
		t.Errorf("claimed %d, %v", len(leases), err)
	}
}

func TestADamagedOrMissingFileIsNeverDelivered(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(path string) error{
		"another byte": func(path string) error { return os.WriteFile(path, append(large('a')[1:], 'x'), 0o600) },
		"cut":          func(path string) error { return os.Truncate(path, largeBody-1) },
		"longer":       func(path string) error { return os.Truncate(path, largeBody+1) },
		"gone":         os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := openTemp(t)
			if err := createOne(s, append(events(1, 1, "k", large('a')), events(2, 1, "k", nil)...)...)(); err != nil {
				t.Fatal(err)
			}
			if err := damage(files(t, s)[0]); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Event(t.Context(), eventID(1)); !errors.Is(err, errDamaged) {
				t.Errorf("get event: %v", err)
			}
			if leases, err := s.ClaimDeliveries(t.Context(), benchClaim(5)); err != nil || len(leases) != 0 {
				t.Fatalf("claimed %+v, %v", leases, err)
			}
			d, err := s.Delivery(t.Context(), events(1, 1, "", nil)[0].Deliveries[0].ID)
			if err != nil || d.State != relay.DeliveryDead || d.LastError != errDamaged.Error() {
				t.Errorf("delivery %+v, %v", d, err)
			}
			if leases, err := s.ClaimDeliveries(t.Context(), benchClaim(5)); err != nil || len(leases) != 1 {
				t.Errorf("the next of the key: %+v, %v", leases, err)
			}
		})
	}
}

func TestNoFileIsLeftOfWhatWasNotStored(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	if err := createOne(s, events(1, 1, "", large('a'))...)(); err != nil {
		t.Fatal(err)
	}
	if receipts, err := s.CreateEvents(t.Context(), events(1, 1, "", large('b'))); err != nil || !receipts[0].Duplicate {
		t.Fatalf("%+v, %v", receipts, err)
	}
	bad := append(events(2, 1, "", large('c')), events(1, 1, "", large('d'))...)
	bad[1].Event.DedupeKey = ""
	if err := createOne(s, bad...)(); err == nil {
		t.Fatal("an id was stored twice")
	}
	if names := files(t, s); len(names) != 1 {
		t.Errorf("files %v", names)
	}
}

func TestAFileGoesAfterItsRow(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	all := append(events(1, 1, "", large('a')), events(2, 1, "", large('b'))...)
	all[0].Deliveries[0].State, all[0].Event.ExpiresAt = relay.DeliveryDone, benchTime().Add(24*time.Hour)
	all[1].Event.ExpiresAt = benchTime().Add(time.Hour)
	if err := createOne(s, all...)(); err != nil {
		t.Fatal(err)
	}
	done, err := s.Expire(t.Context(), benchTime().Add(time.Hour), 10)
	if err != nil || done != (relay.Expired{Bodies: 1, Events: 1, GivenUp: 1}) {
		t.Errorf("expired %+v, %v", done, err)
	}
	if names := files(t, s); len(names) != 0 {
		t.Errorf("files %v", names)
	}
}

func TestOpenSweepsOldFilesWithoutARow(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	if err := createOne(s, events(1, 1, "", large('a'))...)(); err != nil {
		t.Fatal(err)
	}
	stored := files(t, s)[0]
	left, young := filepath.Join(s.bodies.dir, "left"), filepath.Join(s.bodies.dir, "young")
	for _, path := range []string{left, young} {
		if err := writeFile(path, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	old := time.Now().Add(-2 * sweepAge)
	for _, path := range []string{stored, left} {
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
	}
	again, err := Open(t.Context(), Config{Path: s.writer.path}) // while another store has it open
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	for path, want := range map[string]bool{stored: true, young: true, left: false} {
		if _, err := os.Stat(path); (err == nil) != want {
			t.Errorf("%s: %v", filepath.Base(path), err)
		}
	}
}

// A process that stood still between writing the file and the transaction, for
// longer than a sweeper of another process has patience.
func TestAnEventWhoseFileWasSweptIsNotStored(t *testing.T) {
	t.Parallel()
	s := openTemp(t)
	release := hold(t, s)
	ended := start(t, s, 1, createOne(s, events(1, 1, "", large('a'))...))
	for _, path := range files(t, s) {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	release()
	if err := <-ended; err == nil || relay.CodeOf(err) != "" {
		t.Fatalf("got %v", err)
	}
	if _, err := s.Event(t.Context(), eventID(1)); relay.CodeOf(err) != relay.NotFound {
		t.Fatalf("got %v", err)
	}
}
