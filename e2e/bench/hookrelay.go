package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

const (
	hookSecret = "whsec_of_the_bench"
	hookPath   = "/hooks/bench/stripe"
	hookSize   = 2 << 10
	hookConns  = 64
	// hookManifest lets the app have as many deliveries at once as there are
	// senders.
	hookManifest = `version: 1
apps:
  bench:
    endpoints:
      stripe:
        provider: stripe
        secrets: [{env: BENCH_WHSEC}]
        mode: store
        max_in_flight: 64
`
)

// hookRelay is a relay with a webhook endpoint, and later an app behind it.
type hookRelay struct {
	*target
	fleet *fleet
	data  string
	app   string // address of its hookApp; "" without
}

// newHookData makes a folder for a relay's data.
func (f *fleet) newHookData() (string, error) { return os.MkdirTemp(f.dir, "inbox-") }

// startHookRelay starts a relay without agents on data.
func (f *fleet) startHookRelay(ctx context.Context, data string) (*hookRelay, error) {
	if err := f.build(ctx); err != nil {
		return nil, err
	}
	manifest := filepath.Join(f.dir, "inbox.yaml")
	if err := os.WriteFile(manifest, []byte(hookManifest), 0o600); err != nil {
		return nil, err
	}
	r := &hookRelay{target: &target{name: "inbox", host: "bench.localhost"}, fleet: f, data: data}
	err := f.startRelay(ctx, r.target, data, "POSTERN_MANIFEST="+manifest, "BENCH_WHSEC="+hookSecret)
	if err != nil {
		r.stop()
		return nil, fmt.Errorf("start a relay for webhooks: %w", err)
	}
	return r, nil
}

// startFreshHookRelay starts one with an empty store.
func (f *fleet) startFreshHookRelay(ctx context.Context) (*hookRelay, error) {
	data, err := f.newHookData()
	if err != nil {
		return nil, err
	}
	return f.startHookRelay(ctx, data)
}

// startApp starts an agent with a fresh hookApp behind it.
func (r *hookRelay) startApp(ctx context.Context) error {
	app, err := r.fleet.server(ctx, "hookapp", roleHooks)
	if err != nil {
		return err
	}
	r.app, r.hops = app.addr, append(r.hops, app.process)
	return r.fleet.startAgent(ctx, r.target, app.addr)
}

// stop ends the relay first, so that it can still finish what it has begun. A
// relay that did not start is nil and has nothing to end.
func (r *hookRelay) stop() {
	if r == nil {
		return
	}
	for _, hop := range r.hops {
		r.fleet.end(hop)
	}
	r.hops = nil
}

// untilConnected returns when requests reach the app.
func (r *hookRelay) untilConnected(ctx context.Context) error {
	return r.until(ctx, "connected", func(ctx context.Context) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.addr+"/arrivals", nil)
		if err != nil {
			return err
		}
		request.Host = r.host
		_, err = get(request)
		return err
	})
}

// arrivals asks the app itself.
func (r *hookRelay) arrivals(ctx context.Context, query string) (int64, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.app+"/arrivals"+query, nil)
	if err != nil {
		return 0, err
	}
	body, err := get(request)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(body, 10, 64)
}

// between waits until the app has had to webhooks and returns the time from
// number from to number to.
func (r *hookRelay) between(ctx context.Context, from, to int) (took time.Duration, err error) {
	err = r.untilWithin(ctx, deliversWithin, fmt.Sprintf("done with %d deliveries", to), func(ctx context.Context) error {
		n, err := r.arrivals(ctx, fmt.Sprintf("?from=%d&to=%d", from, to))
		took = time.Duration(n)
		return err
	})
	return took, err
}

// deliversWithin bounds how long the deliveries of one measure may take.
const deliversWithin = time.Minute

// webhooks is a load of webhooks on addr, which is the relay's or a baseline's.
func webhooks(addr string, size int, p pace) load {
	return load{Addr: addr, Host: addr, Conns: hookConns, Path: hookPath,
		Hook: &hookLoad{Secret: hookSecret, Size: size}, Warmup: p.warmup, Window: p.window}
}

// sendOne sends a single webhook and returns when it was accepted.
func (r *hookRelay) sendOne(ctx context.Context, size int) error {
	l := webhooks(r.addr, size, pace{})
	l.Conns = 1
	g := &generator{load: l, limit: time.Now().Add(startsWithin)}
	w := &worker{g: g, hook: newHookMaker(l)}
	if err := w.connect(); err != nil {
		return err
	}
	defer w.disconnect()
	if err := w.once(); err != nil {
		return fmt.Errorf("send a webhook: %w", err)
	}
	return ctx.Err()
}
