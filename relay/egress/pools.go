package egress

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/posternhq/postern/protocol/outbound"
	"github.com/posternhq/postern/protocol/policy"
	"github.com/posternhq/postern/relay"
)

// Bounds of a pool.
const (
	idlePerHost  = 64
	idlePerApp   = 512
	idleTime     = 90 * time.Second
	unusedTime   = 2 * idleTime // until a pool without requests is given up
	sessions     = 64           // TLS sessions of an app that may be resumed
	tlsTime      = 10 * time.Second
	maxAnswer    = 256 << 10 // bytes of an answer's head
	continueTime = time.Second
)

// poolKey is whose connections are shared, and by what rules about addresses they
// were dialed. A connection never serves another app, nor a policy under which it
// might not have been dialed.
type poolKey struct {
	app             relay.AppID
	version, serial int64
}

// pools keeps connections for requests.
type pools struct {
	e *Egress

	mu       sync.Mutex
	pools    map[poolKey]*pool                      // guarded by mu
	sessions map[relay.AppID]tls.ClientSessionCache // guarded by mu
	conns    map[*pooled]struct{}                   // guarded by mu; in use and idle
}

// pool is the connections of one poolKey, to all hosts.
type pool struct {
	key       poolKey
	transport *http.Transport
	used      time.Time // guarded by pools.mu
}

// pooled is one connection of a pool.
type pooled struct {
	*outbound.Conn
	of     *pools
	who    client
	target policy.Target
}

func newPools(e *Egress) *pools {
	return &pools{e: e, pools: map[poolKey]*pool{}, sessions: map[relay.AppID]tls.ClientSessionCache{}, conns: map[*pooled]struct{}{}}
}

// of returns the transport for requests of app that were judged by c.
func (p *pools) of(app relay.AppID, c *policy.Compiled) *http.Transport {
	key := poolKey{app, c.Policy().Version, c.Policy().Serial}
	p.mu.Lock()
	defer p.mu.Unlock()
	of := p.pools[key]
	if of == nil {
		of = &pool{key: key, transport: p.transportLocked(app)}
		p.pools[key] = of
	}
	of.used = time.Now()
	return of.transport
}

func (p *pools) transportLocked(app relay.AppID) *http.Transport {
	cache := p.sessions[app]
	if cache == nil {
		cache = tls.NewLRUClientSessionCache(sessions)
		p.sessions[app] = cache
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	return &http.Transport{
		Proxy:                  nil, // never by another one
		DialContext:            p.dial,
		TLSClientConfig:        &tls.Config{RootCAs: p.e.cfg.RootCAs, ClientSessionCache: cache, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    tlsTime,
		DisableCompression:     true, // the app's bytes are the app's
		MaxIdleConns:           idlePerApp,
		MaxIdleConnsPerHost:    idlePerHost,
		IdleConnTimeout:        idleTime,
		ResponseHeaderTimeout:  p.e.cfg.answer,
		ExpectContinueTimeout:  continueTime,
		MaxResponseHeaderBytes: maxAnswer,
		Protocols:              &protocols,
	}
}

// dial opens a connection for the request whose context this is.
func (p *pools) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	opened, err := p.e.cfg.Dialer.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	f := forwardedOf(ctx)
	conn := &pooled{Conn: opened.(*outbound.Conn), of: p, who: client{f.call.app, f.call.instance}, target: f.dial}
	p.mu.Lock()
	p.conns[conn] = struct{}{}
	p.mu.Unlock()
	// An emergency deny that came while it was dialed did not find it here.
	if now := p.e.cfg.Policy(conn.who.app, conn.who.instance); now != f.call.policy {
		if d := now.CheckEmergency(conn.target, conn.Addr.Addr(), p.e.cfg.Now()); !d.Allow {
			conn.Close()
			return nil, d.Refusal(now, policy.Call{Target: conn.target})
		}
	}
	return conn, nil
}

// Close implements net.Conn.
func (c *pooled) Close() error {
	c.of.mu.Lock()
	delete(c.of.conns, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}

// open is how many connections there are, in use and idle.
func (p *pools) open() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns)
}

// cut closes connections that an emergency deny covers, also idle ones, and gives up
// pools whose policy is not in force any more.
func (p *pools) cut(policyOf func(client) *policy.Compiled) {
	p.mu.Lock()
	conns := make([]*pooled, 0, len(p.conns))
	for c := range p.conns {
		conns = append(conns, c)
	}
	p.mu.Unlock()
	current := map[poolKey]bool{}
	now := p.e.cfg.Now()
	for _, c := range conns {
		inForce := policyOf(c.who)
		current[poolKey{c.who.app, inForce.Policy().Version, inForce.Policy().Serial}] = true
		if !inForce.CheckEmergency(c.target, c.Addr.Addr(), now).Allow {
			abort(c.Conn)
			c.Close()
		}
	}
	p.drop(func(of *pool) bool { return !current[of.key] })
}

// tidy gives up pools that nobody used for a while.
func (p *pools) tidy(now time.Time) {
	p.drop(func(of *pool) bool { return now.Sub(of.used) > unusedTime })
	p.mu.Lock()
	defer p.mu.Unlock()
	used := map[relay.AppID]bool{}
	for key := range p.pools {
		used[key.app] = true
	}
	for app := range p.sessions {
		if !used[app] {
			delete(p.sessions, app)
		}
	}
}

func (p *pools) close() { p.drop(func(*pool) bool { return true }) }

// drop gives up pools. Requests that use them go on; connections that are idle, or
// become so, are closed.
func (p *pools) drop(which func(*pool) bool) {
	var dropped []*pool
	p.mu.Lock()
	for key, of := range p.pools {
		if which(of) {
			delete(p.pools, key)
			dropped = append(dropped, of)
		}
	}
	p.mu.Unlock()
	for _, of := range dropped {
		of.transport.CloseIdleConnections()
	}
}
