package node

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/posternhq/postern/relay"
)

// directory knows which apps there are: those of the manifest, and those that
// the store remembers because a token was made or an agent was once connected.
type directory struct {
	store    relay.AppStore
	log      *slog.Logger
	manifest atomic.Pointer[relay.Manifest] // replaced whole, never changed; nil without one

	mu    sync.Mutex
	known map[relay.AppID]bool // guarded by mu; from the store
	asked time.Time            // guarded by mu; when the store was last asked
}

// askAgain is how often an unknown name may make us look into the store. Tokens
// are made by a command beside the running relay, so that new apps appear there.
const askAgain = time.Second

func newDirectory(store relay.AppStore, log *slog.Logger) *directory {
	return &directory{store: store, log: log, known: map[relay.AppID]bool{}}
}

// load reads the known apps from the store.
func (d *directory) load(ctx context.Context) error {
	apps, err := d.store.Apps(ctx)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, a := range apps {
		d.known[a.ID] = true
	}
	return nil
}

// ensure makes id known, for good.
func (d *directory) ensure(ctx context.Context, id relay.AppID) error {
	d.mu.Lock()
	known := d.known[id]
	d.mu.Unlock()
	if known {
		return nil
	}
	if err := d.store.EnsureApp(ctx, id, time.Now()); err != nil {
		return err
	}
	d.mu.Lock()
	d.known[id] = true
	d.mu.Unlock()
	return nil
}

// App implements ingress.Directory.
func (d *directory) App(id relay.AppID) (relay.App, bool) {
	if a, ok := d.manifest.Load().App(id); ok {
		return a, true
	}
	d.mu.Lock()
	known := d.known[id]
	ask := !known && time.Since(d.asked) > askAgain
	if ask {
		d.asked = time.Now()
	}
	d.mu.Unlock()
	if ask {
		known = d.ask(id)
	}
	return relay.App{ID: id}, known
}

func (d *directory) ask(id relay.AppID) bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := d.load(ctx); err != nil {
		d.log.Error("apps not read", "err", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.known[id]
}

// AppByHost implements ingress.Directory.
func (d *directory) AppByHost(host string) (relay.App, bool) {
	return d.manifest.Load().AppByHost(host)
}

// Endpoint implements ingress.Directory.
func (d *directory) Endpoint(app relay.AppID, name string) (relay.Endpoint, bool) {
	return d.manifest.Load().Endpoint(app, name)
}

// quota is what an app may keep in the store.
func (d *directory) quota(id relay.AppID) relay.Quota {
	app, _ := d.manifest.Load().App(id)
	return app.Quota
}
