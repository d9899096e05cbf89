package node

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/posternhq/postern/relay"
)

// openedTwice is one data folder with two handles on its store, as a running
// relay and a command beside it have them.
func openedTwice(t *testing.T) (ours, theirs relay.Store) {
	t.Helper()
	data := t.TempDir()
	open := func() relay.Store {
		s, err := OpenStore(t.Context(), data, 0, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	return open(), open()
}

func TestDirectoryFindsAnAppThatAnotherProcessMade(t *testing.T) {
	t.Parallel()
	ours, theirs := openedTwice(t)
	d := newDirectory(ours, slog.New(slog.DiscardHandler))
	if err := d.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := theirs.EnsureApp(t.Context(), "shop", time.Now()); err != nil {
		t.Fatal(err)
	}
	if app, ok := d.App("shop"); !ok || app.ID != "shop" {
		t.Errorf("got %v, %v", app, ok)
	}
	if _, ok := d.App("other"); ok {
		t.Error("an app that nobody made is known")
	}
}

// countingStore counts how often the apps were read.
type countingStore struct {
	relay.Store
	reads atomic.Int64
}

func (s *countingStore) Apps(ctx context.Context) ([]relay.App, error) {
	s.reads.Add(1)
	return s.Store.Apps(ctx)
}

// Anybody may ask for any name: that must not be a query each.
func TestDirectorySharesItsLooksIntoTheStore(t *testing.T) {
	t.Parallel()
	ours, _ := openedTwice(t)
	store := &countingStore{Store: ours}
	d := newDirectory(store, slog.New(slog.DiscardHandler))
	began := time.Now()
	var calls sync.WaitGroup
	for range 2000 {
		calls.Go(func() {
			if _, ok := d.App("unknown"); ok {
				t.Error("an app that nobody made is known")
			}
		})
	}
	calls.Wait()
	if most := int64(time.Since(began)/lookGap) + 2; store.reads.Load() > most {
		t.Errorf("%d reads for 2000 questions in %v, want at most %d", store.reads.Load(), time.Since(began), most)
	}
}

// An app is there for every request that comes after it was made, however many
// come at once and whatever was asked for just before.
func TestDirectoryKnowsAnAppFromTheMomentItIsMade(t *testing.T) {
	t.Parallel()
	ours, theirs := openedTwice(t)
	d := newDirectory(ours, slog.New(slog.DiscardHandler))
	for i := range 5 {
		id := relay.AppID(fmt.Sprintf("shop%d", i))
		var strangers, calls sync.WaitGroup
		strangers.Go(func() { d.App("unknown") })
		if err := theirs.EnsureApp(t.Context(), id, time.Now()); err != nil {
			t.Fatal(err)
		}
		for range 100 {
			calls.Go(func() {
				if _, ok := d.App(id); !ok {
					t.Errorf("%s is not known", id)
				}
			})
		}
		calls.Wait()
		strangers.Wait()
	}
}

func TestAppThatAnAgentConnectedForStaysKnown(t *testing.T) {
	t.Parallel()
	ours, theirs := openedTwice(t)
	d := newDirectory(ours, slog.New(slog.DiscardHandler))
	var calls sync.WaitGroup
	for range 8 {
		calls.Go(func() {
			if err := d.ensure(t.Context(), "shop"); err != nil {
				t.Errorf("ensure: %v", err)
			}
		})
	}
	calls.Wait()
	if _, ok := d.App("shop"); !ok {
		t.Error("not known right after")
	}
	restarted := newDirectory(theirs, slog.New(slog.DiscardHandler))
	if err := restarted.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !restarted.known["shop"] {
		t.Error("not known after a restart")
	}
}

func TestManifestsAppIsKnownWithItsRulesAndOnlyWhileItIsDeclared(t *testing.T) {
	t.Parallel()
	ours, _ := openedTwice(t)
	d := newDirectory(ours, slog.New(slog.DiscardHandler))
	if _, ok := d.Endpoint("shop", "stripe"); ok {
		t.Error("an endpoint without a manifest")
	}
	d.manifest.Store(&relay.Manifest{Apps: map[relay.AppID]relay.App{"shop": {
		ID: "shop", Team: "payments", Ingress: relay.Ingress{Hosts: []string{"shop.example.com"}},
		Endpoints: map[string]relay.Endpoint{"stripe": {App: "shop", Name: "stripe"}},
	}}})
	if app, ok := d.App("shop"); !ok || app.Team != "payments" {
		t.Errorf("by id: %v, %v", app, ok)
	}
	if app, ok := d.AppByHost("shop.example.com"); !ok || app.ID != "shop" {
		t.Errorf("by host: %v, %v", app, ok)
	}
	if ep, ok := d.Endpoint("shop", "stripe"); !ok || ep.Name != "stripe" {
		t.Errorf("endpoint: %v, %v", ep, ok)
	}
	d.manifest.Store(&relay.Manifest{})
	if _, ok := d.App("shop"); ok {
		t.Error("known after the manifest dropped it, though the store never knew it")
	}
}
