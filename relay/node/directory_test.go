package node

import (
	"log/slog"
	"sync"
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

// Anybody may ask for any name: that must not be a query each.
func TestDirectoryAsksTheStoreAtMostOnceInAWhile(t *testing.T) {
	t.Parallel()
	ours, theirs := openedTwice(t)
	d := newDirectory(ours, slog.New(slog.DiscardHandler))
	d.App("unknown") // asks
	if err := theirs.EnsureApp(t.Context(), "shop", time.Now()); err != nil {
		t.Fatal(err)
	}
	d.mu.Lock()
	d.asked = time.Now().Add(time.Hour) // so that the test cannot be too slow for it
	d.mu.Unlock()
	if _, ok := d.App("shop"); ok {
		t.Error("the store was asked again at once")
	}
	d.mu.Lock()
	d.asked = time.Now().Add(-2 * askAgain)
	d.mu.Unlock()
	if _, ok := d.App("shop"); !ok {
		t.Error("the store was not asked again after a while")
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
