package node

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/outbound"
	"github.com/posternhq/postern/relay"
	"github.com/posternhq/postern/relay/auth"
	"github.com/posternhq/postern/relay/dns"
	"github.com/posternhq/postern/relay/egress"
	"github.com/posternhq/postern/relay/policies"
	"github.com/posternhq/postern/relay/provider"
	"github.com/posternhq/postern/relay/tunnel"
)

// buildEgress makes what judges and carries the apps' calls to the outside.
func (n *Node) buildEgress(keys *auth.Keyring) error {
	resolver, err := dns.New(n.cfg.Resolver)
	if err != nil {
		return fmt.Errorf("resolver: %w", err)
	}
	n.policies = policies.New(policies.Config{
		Store:  n.store,
		Parse:  n.parseManifest,
		Apply:  n.applyManifest,
		Own:    n.ownAddresses,
		Sign:   keys.Sign,
		Agents: func() []relay.Instance { return n.registry.Instances("") },
		Cut:    func() int { return n.egress.Cut() },
		Logger: n.cfg.Logger,
	})
	n.egress = egress.New(egress.Config{
		Policy:    n.policies.Of,
		Observe:   n.policies.Observe,
		Dialer:    &outbound.Dialer{Resolver: outbound.NewCache(resolver, outbound.CacheConfig{})},
		Store:     n.store,
		Team:      func(app relay.AppID) string { a, _ := n.directory.manifest.Load().App(app); return a.Team },
		Pseudonym: "postern-" + n.name,
		Logger:    n.cfg.Logger,
	})
	return nil
}

// manifestOptions are how this node reads manifests.
func (n *Node) manifestOptions() relay.ManifestOptions {
	return relay.ManifestOptions{
		Env: n.cfg.Env, ReadFile: readRegular, Providers: provider.All(), AppsDomain: n.cfg.AppsDomain,
	}
}

// parseManifest reads a text that did not come from the watched file.
func (n *Node) parseManifest(source []byte) (*relay.Manifest, error) {
	return relay.ParseManifest("manifest", source, n.manifestOptions())
}

// ownAddresses are where this relay itself is reached: what was configured, and the
// interfaces'. They are asked for at every change of policies, since machines get
// and lose addresses.
func (n *Node) ownAddresses() []netip.Addr {
	own := slices.Clone(n.cfg.egress)
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		n.cfg.Logger.Warn("the addresses of the interfaces are not known", "err", err)
	}
	for _, a := range addrs {
		if ip, ok := a.(*net.IPNet); ok {
			// Loopback is refused by its class, where a hole in that may be meant.
			if addr, ok := netip.AddrFromSlice(ip.IP); ok && !addr.Unmap().IsLoopback() {
				own = append(own, addr.Unmap().WithZone(""))
			}
		}
	}
	slices.SortFunc(own, netip.Addr.Compare)
	return slices.Compact(own)
}

// tellPolicy keeps the agent behind a tunnel up to date. One tunnel of each agent is
// enough: a new one takes its number when it is lost.
func (n *Node) tellPolicy(ctx context.Context, t *tunnel.Tunnel) {
	if t.Number() != 0 || !t.Has(protocol.FeatureEgress) {
		return
	}
	for ctx.Err() == nil {
		s, err := t.Tell(ctx, protocol.Open{Kind: protocol.KindPolicy})
		if err != nil {
			return // the session is over, or on its way
		}
		if err := s.AwaitReply(ctx); err != nil {
			s.Close()
			return // it has no way out beside its app, or has gone
		}
		n.policies.Serve(ctx, t.App(), t.Instance(), s)
		select { // an agent that took nothing for long may recover
		case <-time.After(tellAgain):
		case <-ctx.Done():
		}
	}
}

// tellAgain is the pause before an agent that did not take its policy is given it
// again.
const tellAgain = 2 * time.Second

// serveStream takes the streams that agents open.
func (n *Node) serveStream(ctx context.Context, t *tunnel.Tunnel, s *protocol.Stream) {
	switch s.Kind() {
	case protocol.KindReport:
		n.instances.Serve(ctx, t.App(), s)
	case protocol.KindEgress:
		n.egress.ServeTunnel(ctx, t.App(), t.Instance(), s)
	case protocol.KindEgressHTTP:
		n.egress.ServeHTTP(ctx, t.App(), t.Instance(), s)
	case protocol.KindFlows:
		n.egress.TakeFlows(ctx, t.App(), t.Instance(), s)
	default:
		s.Refuse(protocol.CodeUnsupported, "this relay does not serve streams of kind "+string(s.Kind()))
	}
}

// metrics writes what is counted, in the text format of Prometheus.
func (n *Node) metrics(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	n.egress.WriteMetrics(w)
	n.policies.WriteMetrics(w)
}
