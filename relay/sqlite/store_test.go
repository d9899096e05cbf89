package sqlite_test

import (
	"path/filepath"
	"testing"

	"github.com/posternhq/postern/relay"
	"github.com/posternhq/postern/relay/sqlite"
	"github.com/posternhq/postern/relay/storetest"
)

func TestStoreKeepsItsContract(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) relay.Store {
		return open(t, filepath.Join(t.TempDir(), "postern.db"))
	})
}

// open opens the store and closes it when the test is over.
func open(t *testing.T, path string) *sqlite.Store {
	t.Helper()
	s, err := sqlite.Open(t.Context(), sqlite.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}
