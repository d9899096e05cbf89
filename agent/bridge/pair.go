package bridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"
)

// resetDelay is how long the other direction may go on when one has failed.
const resetDelay = 5 * time.Second

// pair is one client and its connection to the app.
type pair struct {
	client, app *net.TCPConn
	broken      atomic.Bool // one direction has not come to its proper end
}

// carry serves one client.
func (b *Bridge) carry(ctx context.Context, client *net.TCPConn) {
	defer func() { <-b.slots }()
	app, err := b.dial(ctx)
	if err != nil {
		client.SetLinger(0)
		client.Close()
		if !b.refused.Swap(true) {
			b.cfg.Logger.Warn("app does not accept connections", "err", err)
		}
		if b.cfg.Refused != nil {
			b.cfg.Refused(err)
		}
		return
	}
	b.refused.Store(false)
	p := &pair{client: client, app: app}
	if !b.add(p) {
		p.reset()
		return
	}
	defer b.remove(p)
	p.join()
}

func (b *Bridge) add(p *pair) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	b.pairs[p] = struct{}{}
	return true
}

func (b *Bridge) remove(p *pair) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.pairs, p)
}

// dial connects to the app.
func (b *Bridge) dial(ctx context.Context) (*net.TCPConn, error) {
	target := b.cfg.Target()
	if target == "" {
		return nil, errors.New("dial the app: its address is not known")
	}
	dialer := &net.Dialer{Timeout: b.cfg.DialTimeout, Control: b.check}
	conn, err := dialer.DialContext(ctx, "tcp", target)
	if err != nil {
		return nil, fmt.Errorf("dial the app: %w", err)
	}
	app := conn.(*net.TCPConn)
	if app.LocalAddr().String() == app.RemoteAddr().String() {
		app.SetLinger(0) // no TIME_WAIT on the app's port
		app.Close()
		return nil, fmt.Errorf("dial the app: nobody listens on %s, the connection met itself", target)
	}
	return app, nil
}

// check looks at a socket before it connects. Our own port must not be the target, as
// after the end of an app that listened beside us: every connection would make another
// one, until nothing is left. And while nobody listens on a port of the ephemeral range,
// the kernel may give that very port to our end; SO_REUSEADDR lets the app bind it after.
func (b *Bridge) check(_, address string, conn syscall.RawConn) error {
	target, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	for _, l := range b.listeners {
		if covers(l.Addr().(*net.TCPAddr).AddrPort(), target) {
			return fmt.Errorf("%s is the bridge itself", target)
		}
	}
	var failed error
	err = conn.Control(func(fd uintptr) {
		failed = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	})
	return errors.Join(err, failed)
}

// covers reports whether connections to target arrive at a listener on local.
func covers(local, target netip.AddrPort) bool {
	if local.Port() != target.Port() {
		return false
	}
	ours, theirs := local.Addr().Unmap(), target.Addr().Unmap()
	switch theirs { // the kernel takes them for its loopback addresses
	case netip.IPv4Unspecified():
		theirs = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	case netip.IPv6Unspecified():
		theirs = netip.IPv6Loopback()
	}
	switch ours {
	case netip.IPv6Unspecified():
		return true // of both families, as net.Listen makes it
	case netip.IPv4Unspecified():
		return theirs.Is4()
	}
	return ours == theirs
}

// join copies both ways until both have ended, and closes.
func (p *pair) join() {
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		p.half(p.client, p.app)
	}()
	p.half(p.app, p.client)
	<-answered
	if p.broken.Load() {
		p.reset()
		return
	}
	p.client.Close()
	p.app.Close()
}

// half copies one direction. Two TCP connections that meet in io.Copy are spliced on
// Linux: the bytes do not come into our memory.
func (p *pair) half(to, from *net.TCPConn) {
	_, err := io.Copy(to, from)
	if err == nil {
		err = to.CloseWrite()
	}
	if err == nil {
		return
	}
	p.broken.Store(true)
	if !connected(from) {
		p.reset() // whoever sent has gone, and takes nothing either
		return
	}
	// The receiver has gone. What it had sent before is still to be read, and ends: a
	// server that does not want the rest of a request answers, closes, and its kernel
	// makes a reset of that. The answer must not be lost.
	until := time.Now().Add(resetDelay)
	to.SetReadDeadline(until)
	from.SetWriteDeadline(until)
}

// connected reports whether the connection has not been reset. Which side of a splice
// has failed is not in its error.
func connected(conn *net.TCPConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	var failed error
	err = raw.Control(func(fd uintptr) { _, failed = syscall.Getpeername(int(fd)) })
	return err == nil && failed == nil
}

// reset breaks both connections off, visibly.
func (p *pair) reset() {
	for _, conn := range []*net.TCPConn{p.client, p.app} {
		conn.SetLinger(0)
		conn.Close()
	}
}
