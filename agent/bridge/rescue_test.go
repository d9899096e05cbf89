package bridge

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// answer is an app that says its name to everybody and hangs up.
func answer(t *testing.T, l net.Listener, name string) {
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(conn, name)
			conn.Close()
		}
	}()
}

// ask returns what is said at addr.
func ask(t *testing.T, addr string) string {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		t.Errorf("%s: %v", addr, err)
		return ""
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	said, err := io.ReadAll(conn)
	if err != nil {
		t.Errorf("%s: %v", addr, err)
	}
	return string(said)
}

// serve runs a bridge until the test ends.
func serve(t *testing.T, b *Bridge) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-ended })
}

// outside is an address of this machine that others see, as a router would dial it.
func outside(t *testing.T) net.IP {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Skip(err)
	}
	for _, addr := range addrs {
		if n, ok := addr.(*net.IPNet); ok && n.IP.IsGlobalUnicast() && n.IP.To4() != nil {
			return n.IP
		}
	}
	t.Skip("this machine has no address but the loopback one")
	return nil
}

// Not parallel: another test might be given the port in between.
func TestRescue(t *testing.T) {
	for _, test := range []struct {
		name, network, host string
		samePort            bool
		everywhere          bool // at least of IPv4
	}{
		{"an app on another port", "tcp", "127.0.0.1", false, true},
		{"an app on 127.0.0.1", "tcp4", "127.0.0.1", true, false},
		{"an app on ::1", "tcp6", "::1", true, true},
		{"an app on IPv6 alone", "tcp6", "::", true, true}, // made so by the network's name
	} {
		t.Run(test.name, func(t *testing.T) {
			ip := outside(t)
			l, err := net.Listen(test.network, net.JoinHostPort(test.host, "0"))
			if err != nil {
				t.Skip(err)
			}
			answer(t, l, "app")
			port := l.Addr().(*net.TCPAddr).Port
			target := net.JoinHostPort(map[bool]string{true: "::1", false: "127.0.0.1"}[test.network == "tcp6"], strconv.Itoa(port))
			if !test.samePort {
				free, err := net.Listen("tcp", ":0")
				if err != nil {
					t.Fatal(err)
				}
				port = free.Addr().(*net.TCPAddr).Port
				free.Close()
			}
			router := net.JoinHostPort(ip.String(), strconv.Itoa(port))
			if _, err := net.DialTimeout("tcp", router, time.Second); err == nil {
				t.Fatal("the router finds the app without help")
			}
			b, err := ListenRescue(t.Context(), port, Config{Target: func() string { return target }})
			if err != nil {
				t.Fatal(err)
			}
			serve(t, b)
			if got := b.listeners[0].Addr().(*net.TCPAddr).IP.IsUnspecified(); got != test.everywhere {
				t.Errorf("bound %v", b.Addrs())
			}
			if said := ask(t, router); said != "app" {
				t.Errorf("the router is told %q, bound %v", said, b.Addrs())
			}
			if said := ask(t, target); said != "app" {
				t.Errorf("at its own address the app says %q", said)
			}
		})
	}
}

func TestARescueThatIsImpossibleSaysWhy(t *testing.T) {
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	answer(t, l, "app")
	port := l.Addr().(*net.TCPAddr).Port
	loopback := func() ([]net.Addr, error) {
		return []net.Addr{&net.IPNet{IP: net.IPv4(127, 0, 0, 1), Mask: net.CIDRMask(8, 32)}}, nil
	}
	if _, err := rescue(t.Context(), port, Config{}, loopback); err == nil || err.Error() != "bridge: no network interface but the loopback one" {
		t.Errorf("loopback alone: %v", err)
	}
	outside(t)
	if _, err := ListenRescue(t.Context(), port, Config{}); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("everything taken: %v", err)
	}
}

func TestWhatLeadsToTheBridgeItself(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		local, target string
		want          bool
	}{
		{"[::]:80", "127.0.0.1:80", true},
		{"[::]:80", "[::1]:80", true},
		{"[::]:80", "127.0.0.1:81", false},
		{"0.0.0.0:80", "127.0.0.1:80", true},
		{"0.0.0.0:80", "[::ffff:127.0.0.1]:80", true},
		{"0.0.0.0:80", "[::1]:80", false}, // the app that holds IPv6 alone
		{"192.0.2.2:80", "127.0.0.1:80", false},
		{"192.0.2.2:80", "0.0.0.0:80", false},
		{"192.0.2.2:80", "192.0.2.2:80", true},
		{"127.0.0.1:80", "0.0.0.0:80", true},
		{"[::1]:80", "[::]:80", true},
	} {
		if got := covers(netip.MustParseAddrPort(test.local), netip.MustParseAddrPort(test.target)); got != test.want {
			t.Errorf("%s → %s: %v", test.local, test.target, got)
		}
	}
}
