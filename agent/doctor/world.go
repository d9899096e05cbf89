package doctor

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/posternhq/postern/agent/proc"
)

// world is everything a doctor touches: the kernel's word, connections, files.
type world struct {
	take       func(pid int) (proc.Snapshot, error)
	ports      func(pid int) ([]proc.Socket, error)
	holds      func(proc.Socket) bool
	holder     func(inode uint64) (proc.Process, error)
	sockets    func([]proc.Process) ([]proc.Socket, error)
	signals    func(pid int) (caught, ignored uint64, err error)
	runnable   func(pid int) bool
	executable func(pid int) string
	environ    func(pid int) []string
	dial       func(ctx context.Context, addr netip.AddrPort) (net.Conn, error)
	addresses  func() []netip.Addr // of the machine's interfaces, without the loopback
	lookup     func(ctx context.Context, host string) ([]netip.Addr, error)
	file       func(name string) []byte // nil when it is not a file that can be read
}

func realWorld() world {
	return world{
		take: proc.Take, ports: proc.Ports, holds: proc.Holds, holder: proc.Holder, sockets: proc.Sockets,
		signals: proc.Signals, runnable: proc.Runnable, executable: proc.Executable, environ: proc.Environ,
		dial: dial, addresses: addresses, lookup: lookup, file: readFile,
	}
}

// dialTimeout is for connections within one machine.
const dialTimeout = time.Second

// errSelf is a connection that met itself, which means that nobody listens.
var errSelf = errors.New("the probe met itself")

// dial connects to the app. While nobody listens on a port of the ephemeral range
// (Heroku's are), the kernel may give that very number to the caller, who then is
// connected to himself; what remains is a socket in TIME_WAIT that makes the app's
// bind fail for a minute. SO_REUSEADDR lets a server that sets it too, as nearly all
// do, bind all the same.
func dial(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	dialer := net.Dialer{Timeout: dialTimeout, Control: shareAddress, KeepAlive: -1}
	conn, err := dialer.DialContext(ctx, "tcp", addr.String())
	if err != nil {
		return nil, err
	}
	if conn.LocalAddr().String() == conn.RemoteAddr().String() {
		conn.Close()
		return nil, errSelf
	}
	return conn, nil
}

func shareAddress(_, _ string, conn syscall.RawConn) error {
	var failed error
	err := conn.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	})
	return errors.Join(err, failed)
}

// maxAddresses bounds how many interface addresses are dialed.
const maxAddresses = 4

func addresses() []netip.Addr {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var list []netip.Addr
	for _, a := range all {
		prefix, err := netip.ParsePrefix(a.String())
		if err != nil {
			continue
		}
		ip := prefix.Addr().Unmap()
		if ip.Is4() && !ip.IsLoopback() && !ip.IsLinkLocalUnicast() && len(list) < maxAddresses {
			list = append(list, ip)
		}
	}
	return list
}

// lookup resolves a name within a second.
func lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
}

// maxFile is how much is read of a file of the app.
const maxFile = 64 << 10

// readFile reads the beginning of a regular file. Whatever else bears its name, a
// pipe for one, could make us wait.
func readFile(name string) []byte {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return nil
	}
	if raw == nil {
		raw = []byte{}
	}
	return raw
}
