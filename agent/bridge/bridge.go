package bridge

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// defaultDialTimeout is plenty on the way to oneself: an app that takes so long has a
	// full backlog.
	defaultDialTimeout = 5 * time.Second

	// maxConns is the default of Config.MaxConns at the most: 17 KB each when idle.
	maxConns = 4096

	// filesPerConn is what one connection needs: two sockets, and a pipe for each
	// direction that is being spliced.
	filesPerConn = 6

	// lastCall is how long Drain goes on to accept: those who are connected already, as
	// far as they know, and only wait in the kernel's queue.
	lastCall = 100 * time.Millisecond

	// acceptPause is the longest wait after an accept that failed for want of something.
	acceptPause = time.Second
)

// Config says where a Bridge leads. Only Target must be set.
type Config struct {
	// Target is where the app is, host:port. It is asked for each connection, from
	// several goroutines; "" takes none.
	Target func() string

	MaxConns    int           // connections at a time, more wait in the kernel's queue; default 4096, less with few files
	DialTimeout time.Duration // for the connection to the app; default 5 s

	// Refused is told of each connection that the app did not take. It is called from
	// several goroutines and must not block.
	Refused func(err error)

	Logger *slog.Logger // default: silent
}

// Bridge is a set of listening sockets and the connections that came from them. Made by
// Listen or ListenRescue, it serves once: Run, and Drain or Close to end that.
type Bridge struct {
	cfg       Config
	listeners []*net.TCPListener
	slots     chan struct{} // one for each connection there may be
	work      sync.WaitGroup
	ended     chan struct{} // closed when Run has returned

	mu       sync.Mutex
	pairs    map[*pair]struct{}
	running  bool
	cancel   func()        // ends what is being dialed
	draining chan struct{} // closed when no more connections are to be accepted
	drained  bool          // draining is closed
	closed   bool

	refused atomic.Bool // the app did not take the last connection; so that the log says it once
}

// Listen binds local, such as ":46443": all addresses, of IPv4 and IPv6 both where the
// system has both. Connections are accepted by Run; until then the kernel queues them.
func Listen(ctx context.Context, local string, cfg Config) (*Bridge, error) {
	l, err := listen(ctx, "tcp", local)
	if err != nil {
		return nil, err
	}
	return newBridge(cfg, l), nil
}

func newBridge(cfg Config, listeners ...*net.TCPListener) *Bridge {
	if cfg.MaxConns <= 0 {
		cfg.MaxConns = defaultMaxConns()
	}
	if cfg.DialTimeout <= 0 {
		cfg.DialTimeout = defaultDialTimeout
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Bridge{
		cfg:       cfg,
		listeners: listeners,
		slots:     make(chan struct{}, cfg.MaxConns),
		ended:     make(chan struct{}),
		pairs:     map[*pair]struct{}{},
		draining:  make(chan struct{}),
	}
}

func listen(ctx context.Context, network, local string) (*net.TCPListener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, network, local)
	if err != nil {
		return nil, fmt.Errorf("bridge: %w", err)
	}
	return l.(*net.TCPListener), nil
}

// defaultMaxConns leaves most files to the rest of the agent where there are few.
func defaultMaxConns() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur/(2*filesPerConn) > maxConns {
		return maxConns
	}
	return max(int(limit.Cur)/(2*filesPerConn), 1)
}

// Addrs are where the bridge listens.
func (b *Bridge) Addrs() []net.Addr {
	addrs := make([]net.Addr, len(b.listeners))
	for i, l := range b.listeners {
		addrs[i] = l.Addr()
	}
	return addrs
}

// Run passes connections on until Drain, Close or the end of ctx, which is as good as
// Close. It returns when every connection has ended.
func (b *Bridge) Run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if !b.begin(cancel) {
		return
	}
	defer close(b.ended)
	defer context.AfterFunc(ctx, b.close)()
	for _, l := range b.listeners {
		b.work.Go(func() { b.accept(ctx, l) })
	}
	b.work.Wait()
}

func (b *Bridge) begin(cancel func()) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.running || b.drained {
		return false
	}
	b.running, b.cancel = true, cancel
	return true
}

// Drain accepts no more connections, and returns when those that there are have ended.
// The end of ctx resets the rest, and is the error then.
func (b *Bridge) Drain(ctx context.Context) error {
	if !b.drain() {
		b.close()
		return nil
	}
	select {
	case <-b.ended:
		return nil
	case <-ctx.Done():
		b.close()
		<-b.ended
		return fmt.Errorf("drain the bridge: %w", ctx.Err())
	}
}

// drain ends the accepting; false when there is none.
func (b *Bridge) drain() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.running {
		return false
	}
	if !b.drained {
		b.drained = true
		close(b.draining)
		for _, l := range b.listeners {
			l.SetDeadline(time.Now().Add(lastCall))
		}
	}
	return true
}

// Close gives the port back, resets every connection, and waits for Run.
func (b *Bridge) Close() {
	running := b.drain()
	b.close()
	if running {
		<-b.ended
	}
}

func (b *Bridge) close() {
	b.mu.Lock()
	b.closed = true
	if !b.drained {
		b.drained = true
		close(b.draining)
	}
	if b.running {
		b.cancel()
	}
	pairs := make([]*pair, 0, len(b.pairs))
	for p := range b.pairs {
		pairs = append(pairs, p)
	}
	b.mu.Unlock()
	for _, l := range b.listeners {
		l.Close()
	}
	for _, p := range pairs {
		p.reset()
	}
}

// accept takes connections from one listener until the bridge drains, and closes it.
func (b *Bridge) accept(ctx context.Context, l *net.TCPListener) {
	defer l.Close()
	pause := time.Duration(0)
	for b.room() {
		client, err := l.AcceptTCP()
		if err == nil {
			pause = 0
			b.work.Go(func() { b.carry(ctx, client) })
			continue
		}
		<-b.slots
		if b.isDraining() {
			return
		}
		// accept(2) fails for want of files or memory, and with the errors of a connection
		// that is gone already. All of that passes.
		if pause == 0 {
			b.cfg.Logger.Warn("connection cannot be accepted", "err", err)
		}
		pause = min(max(2*pause, time.Millisecond), acceptPause)
		select {
		case <-time.After(pause):
		case <-b.draining:
		}
	}
}

// room waits until there may be one more connection; false when none will be taken.
// While the bridge drains there may still be, for the last call.
func (b *Bridge) room() bool {
	select {
	case b.slots <- struct{}{}:
		return true
	default:
	}
	select {
	case b.slots <- struct{}{}:
		return true
	case <-b.draining:
		return false
	}
}

func (b *Bridge) isDraining() bool {
	select {
	case <-b.draining:
		return true
	default:
		return false
	}
}
