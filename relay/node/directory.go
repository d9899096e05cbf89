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
	next  *look                // guarded by mu; the look that has not begun, nil when nobody waits for one
	last  *look                // guarded by mu; the look begun last
}

// lookGap is the pause between two looks into the store for unknown names.
// Tokens are made by a command beside the running relay, so that new apps
// appear there; anybody may ask for any name, and that must not be a query each.
const lookGap = 50 * time.Millisecond

// look is one reading of the store's apps, shared by all who came before it
// began.
type look struct {
	done  chan struct{} // closed at the end
	ended time.Time     // written before done is closed
}

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
	known, l := d.known[id], d.next
	if !known && l == nil {
		l = &look{done: make(chan struct{})}
		d.next = l
		go d.look(l, d.last)
	}
	d.mu.Unlock()
	if known {
		return relay.App{ID: id}, true
	}
	<-l.done // within the gap and two timeouts of look
	d.mu.Lock()
	defer d.mu.Unlock()
	return relay.App{ID: id}, d.known[id]
}

// look reads the store for those who wait for l, after the look before it. Who
// comes once the reading has begun waits for the next: this one may be too old
// to hold what they know of.
func (d *directory) look(l, before *look) {
	if before != nil {
		<-before.done
		time.Sleep(lookGap - time.Since(before.ended))
	}
	d.mu.Lock()
	d.next, d.last = nil, l
	d.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := d.load(ctx); err != nil {
		d.log.Error("apps not read", "err", err)
	}
	l.ended = time.Now()
	close(l.done)
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
