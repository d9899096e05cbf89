package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/posternhq/postern/agent"
	"github.com/posternhq/postern/protocol"
)

// holdIdleAgents is the idleAgents of the product: each agent holds as many
// tunnels as the real one does by default.
func holdIdleAgents(ctx context.Context, relay, token string, n int) (func(), error) {
	h := &heldAgents{}
	for i := range n * agent.DefaultTunnels {
		if err := h.add(ctx, relay, token, i/agent.DefaultTunnels, i%agent.DefaultTunnels); err != nil {
			h.release()
			return nil, fmt.Errorf("idle agent %d of %d: %w", i/agent.DefaultTunnels+1, n, err)
		}
	}
	return h.release, nil
}

// heldAgents are sessions that do nothing.
type heldAgents struct {
	sessions []*protocol.Session
	running  sync.WaitGroup
}

func (h *heldAgents) add(ctx context.Context, relay, token string, number, tunnel int) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	s, err := protocol.Dial(ctx, protocol.DialConfig{URL: relay, Token: token, Hello: protocol.Hello{
		Instance: fmt.Sprintf("idle.%d", number), BootID: fmt.Sprintf("boot-%08d", number),
		Tunnel: tunnel, Tunnels: agent.DefaultTunnels,
	}})
	if err != nil {
		return err
	}
	h.sessions = append(h.sessions, s)
	h.running.Go(func() { _ = s.Run(context.WithoutCancel(ctx), protocol.Handler{}) })
	return nil
}

// release closes all at once and waits.
func (h *heldAgents) release() {
	for _, s := range h.sessions {
		h.running.Go(func() { _ = s.Close(protocol.CodeShutdown, "bench over") })
	}
	h.running.Wait()
}
