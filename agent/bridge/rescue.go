package bridge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"syscall"
)

// ListenRescue binds port so that the platform's router finds it, wherever the app has
// left it free:
//
//   - on all addresses, when the app listens on another port;
//   - on all of IPv4, when the app holds the port for IPv6 alone;
//   - on each address of the network interfaces, when the app holds the port on
//     127.0.0.1: all of them at once would include that one, which the kernel refuses.
//
// The error is that of the last attempt, when there is no such place.
func ListenRescue(ctx context.Context, port int, cfg Config) (*Bridge, error) {
	return rescue(ctx, port, cfg, net.InterfaceAddrs)
}

func rescue(ctx context.Context, port int, cfg Config, interfaces func() ([]net.Addr, error)) (*Bridge, error) {
	number := strconv.Itoa(port)
	for _, network := range []string{"tcp", "tcp4"} {
		l, err := listen(ctx, network, ":"+number)
		if err == nil {
			return newBridge(cfg, l), nil
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			return nil, err
		}
	}
	addrs, err := interfaces()
	if err != nil {
		return nil, fmt.Errorf("bridge: list the network interfaces: %w", err)
	}
	var listeners []*net.TCPListener
	err = errors.New("bridge: no network interface but the loopback one")
	for _, addr := range addrs {
		network, ok := addr.(*net.IPNet)
		if !ok || !network.IP.IsGlobalUnicast() {
			continue // loopback, or local to one link, where no router asks
		}
		l, failed := listen(ctx, "tcp", net.JoinHostPort(network.IP.String(), number))
		if failed != nil {
			err = failed
			continue
		}
		listeners = append(listeners, l)
	}
	if len(listeners) == 0 {
		return nil, err
	}
	return newBridge(cfg, listeners...), nil
}
