package agent

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/posternhq/postern/agent/egress"
	"github.com/posternhq/postern/protocol"
)

// OutletConfig is what an Outlet needs. The zero value is ready.
type OutletConfig struct {
	Listen            string // of the proxy; default a free port on 127.0.0.1
	Forwards          []egress.Forward
	Instance, Version string
	Logger            *slog.Logger // default: discard
}

// Outlet is the app's way out: the proxy beside it, and the agent whose tunnels lead
// to the relay. It is there before the agent, because the app is told where it
// listens, and after it, because an app without a relay must hear so at once.
type Outlet struct {
	*egress.Proxy
	agent atomic.Pointer[Agent] // nil until New
	ready chan struct{}         // closed when the first tunnel is open
	once  sync.Once             // closes ready
}

// NewOutlet binds the proxy's addresses. Give it to an agent by Config.Outlet, and run
// it by Proxy.Run.
func NewOutlet(cfg OutletConfig) (*Outlet, error) {
	o := &Outlet{ready: make(chan struct{})}
	proxy, err := egress.Listen(egress.Config{
		Open: o.open, Ready: o.ready, Listen: cfg.Listen, Forwards: cfg.Forwards,
		Instance: cfg.Instance, Version: cfg.Version, Logger: cfg.Logger,
	})
	if err != nil {
		return nil, err
	}
	o.Proxy = proxy
	return o, nil
}

func (o *Outlet) open(ctx context.Context, open protocol.Open) (*protocol.Stream, error) {
	a := o.agent.Load()
	if a == nil {
		return nil, ErrNoTunnel
	}
	return a.Start(ctx, protocol.FeatureEgress, open)
}

// opened is called when a tunnel has been opened.
func (o *Outlet) opened() { o.once.Do(func() { close(o.ready) }) }
