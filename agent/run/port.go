package run

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// WaitPort returns nil as soon as something accepts TCP connections at addr, such
// as "127.0.0.1:3000". It asks after 10 ms, then ever more rarely up to every 500 ms,
// and gives up only with ctx, naming the last refusal. It cannot tell whose listener
// it found.
func WaitPort(ctx context.Context, addr string) error {
	dialer := &net.Dialer{Timeout: time.Second, Control: shareAddress}
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, 500*time.Millisecond) {
		refused := probe(ctx, dialer, addr)
		if refused == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w (last: %v)", addr, ctx.Err(), refused)
		case <-time.After(pause):
		}
	}
}

// probe connects and hangs up.
func probe(ctx context.Context, dialer *net.Dialer, addr string) error {
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	if conn.LocalAddr().String() == conn.RemoteAddr().String() {
		return errors.New("the probe met itself")
	}
	return nil
}

// shareAddress keeps the probe from taking the app's port. While nobody listens on a
// port of the ephemeral range (Heroku's are), the kernel may give that very number to
// the probe, which then connects to itself; what remains is a socket in TIME_WAIT that
// makes the app's bind fail for a minute. With SO_REUSEADDR here, a server that sets
// it too, as nearly all do, may bind all the same.
func shareAddress(_, _ string, conn syscall.RawConn) error {
	var failed error
	err := conn.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	})
	return errors.Join(err, failed)
}
