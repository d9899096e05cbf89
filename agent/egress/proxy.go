package egress

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/posternhq/postern/protocol"
	"github.com/posternhq/postern/protocol/outbound"
	"github.com/posternhq/postern/protocol/policy"
)

// Config is what a Proxy needs. Open and Ready are required.
type Config struct {
	// Open starts a stream to the relay. It does not wait for the Reply, and fails at
	// once when no tunnel is open.
	Open func(ctx context.Context, o protocol.Open) (*protocol.Stream, error)
	// Ready is closed when the first tunnel is open. Calls that come before wait for
	// it, up to five seconds; once one has waited in vain, the others do not.
	Ready <-chan struct{}

	Listen   string    // where the app finds the proxy; loopback only; default 127.0.0.1:0
	Forwards []Forward // named forwards

	App, Instance, Version string // for records of calls; Version is the agent's own

	Logger *slog.Logger // default: discard
}

// pseudonym names the agent in Proxy-Status.
const pseudonym = "postern-agent"

// Proxy is the app's way out. Make one with Listen, then call Run.
type Proxy struct {
	cfg      Config
	log      *slog.Logger
	listener net.Listener
	forwards []*forward
	own      []netip.AddrPort // where we listen

	requests *requests // absolute form
	dialer   *outbound.Dialer
	journal  *journal
	denials  *seldom // what the log has been told
	proven   *proven // where tunnels have led lately

	snapshot atomic.Pointer[snapshot] // nil: no policy yet
	taking   sync.Mutex               // held while a policy is taken
	vain     atomic.Bool              // a call has waited for the first tunnel in vain

	live liveCalls

	mu     sync.Mutex
	conns  map[net.Conn]struct{} // guarded by mu; the app's
	closed bool                  // guarded by mu
	done   chan struct{}         // closed by Close
	ctx    context.Context       // ends with Close
	end    context.CancelFunc    // of ctx

	serving sync.WaitGroup // of conns
}

// Listen binds everything. Connections are taken once Run is called.
func Listen(cfg Config) (*Proxy, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	p := &Proxy{
		cfg: cfg, log: cfg.Logger,
		dialer:  &outbound.Dialer{Resolver: outbound.NewCache(outbound.System(), outbound.CacheConfig{})},
		denials: newSeldom(),
		proven:  newProven(),
		conns:   map[net.Conn]struct{}{},
		done:    make(chan struct{}),
	}
	p.ctx, p.end = context.WithCancel(context.Background())
	p.journal = newJournal(p.openStream, p.log)
	p.requests = newRequests(p)
	if err := p.bind(); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

func (p *Proxy) bind() error {
	l, err := listenLoopback(cmp.Or(p.cfg.Listen, "127.0.0.1:0"))
	if err != nil {
		return fmt.Errorf("egress proxy: %w", err)
	}
	p.listener = l
	p.own = append(p.own, addrPort(l))
	for _, f := range p.cfg.Forwards {
		bound, err := p.newForward(f)
		if err != nil {
			return fmt.Errorf("forward to %s: %w", f.Target, err)
		}
		p.forwards = append(p.forwards, bound)
		p.own = append(p.own, addrPort(bound.listener))
	}
	return nil
}

// listenLoopback listens on addr and nowhere that another machine reaches: whoever
// reaches it speaks as the app.
func listenLoopback(addr string) (net.Listener, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("listen on %q: expected an address such as 127.0.0.1:3128", addr)
	}
	if host == "localhost" {
		host = "127.0.0.1"
	}
	if a, err := netip.ParseAddr(host); err != nil || !a.IsLoopback() {
		return nil, fmt.Errorf("listen on %q: only loopback is allowed, such as 127.0.0.1:%s; whoever reaches it speaks as this app", addr, port)
	}
	return net.Listen("tcp", net.JoinHostPort(host, port))
}

func addrPort(l net.Listener) netip.AddrPort {
	a := l.Addr().(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// Addr is where the proxy listens.
func (p *Proxy) Addr() netip.AddrPort { return p.own[0] }

// Forwards are the named forwards with the ports that were bound.
func (p *Proxy) Forwards() []Forward {
	list := make([]Forward, len(p.forwards))
	for i, f := range p.forwards {
		list[i] = Forward{Local: addrPort(f.listener).String(), Target: f.target.HostPort()}
	}
	return list
}

// Run serves until ctx ends or Close is called. Everything it started is gone when it
// returns, all calls included.
func (p *Proxy) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, p.Close)()
	var running sync.WaitGroup
	running.Go(func() { p.journal.run(ctx) })
	running.Go(func() { p.requests.serve() })
	for _, f := range p.forwards {
		running.Go(func() {
			p.accept(f.listener, func(conn net.Conn) { p.serveForward(ctx, conn, f) })
		})
	}
	p.accept(p.listener, func(conn net.Conn) { p.serveConn(ctx, conn) })
	<-p.done
	p.serving.Wait()
	cancel()
	running.Wait()
	return nil
}

// Close stops listening and ends all calls.
func (p *Proxy) Close() {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return
	}
	p.closed = true
	open := slices.Collect(maps.Keys(p.conns))
	p.mu.Unlock()
	close(p.done)
	p.end()
	if p.listener != nil {
		p.listener.Close()
	}
	for _, f := range p.forwards {
		f.listener.Close()
	}
	p.requests.close()
	for _, conn := range open {
		cut(conn)
	}
}

// acceptPause is how long accept waits when the process has no descriptors left.
const acceptPause = 50 * time.Millisecond

// accept takes connections until the listener is closed.
func (p *Proxy) accept(l net.Listener, serve func(net.Conn)) {
	for {
		conn, err := l.Accept()
		switch {
		case err == nil:
			p.start(conn, serve)
		case errors.Is(err, net.ErrClosed):
			return
		default:
			p.log.Warn("connection of the app not taken", "err", err)
			select {
			case <-time.After(acceptPause):
			case <-p.done:
				return
			}
		}
	}
}

// start serves conn in a goroutine of its own. serve ends conn, or gives it on to
// somebody who calls forget.
func (p *Proxy) start(conn net.Conn, serve func(net.Conn)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		conn.Close()
		return
	}
	p.conns[conn] = struct{}{}
	p.serving.Go(func() { serve(conn) })
}

// forget ends conn.
func (p *Proxy) forget(conn net.Conn) {
	conn.Close()
	p.mu.Lock()
	delete(p.conns, conn)
	p.mu.Unlock()
}

// isOwn reports whether t leads back to where we listen.
func (p *Proxy) isOwn(t policy.Target) bool {
	for _, a := range p.own {
		if t.Port == a.Port() && (t.Addr == a.Addr() || t.Host == "localhost" || t.Addr.IsValid() && t.Addr.IsUnspecified()) {
			return true
		}
	}
	return false
}

// readyWait is how long a call waits for the first tunnel.
const readyWait = 5 * time.Second

// openStream is Config.Open, which waits for the first tunnel a while.
func (p *Proxy) openStream(ctx context.Context, o protocol.Open) (*protocol.Stream, error) {
	select {
	case <-p.cfg.Ready:
	default:
		p.awaitTunnel(ctx)
	}
	return p.cfg.Open(ctx, o)
}

func (p *Proxy) awaitTunnel(ctx context.Context) {
	if p.vain.Load() {
		return
	}
	timer := time.NewTimer(readyWait)
	defer timer.Stop()
	select {
	case <-p.cfg.Ready:
	case <-timer.C:
		p.vain.Store(true)
	case <-ctx.Done():
	case <-p.done:
	}
}

// cut closes conn so that its other end sees an abort and not an end.
func cut(conn net.Conn) {
	if tcp, ok := conn.(interface{ SetLinger(int) error }); ok {
		tcp.SetLinger(0)
	}
	conn.Close()
}
