package outbound

import (
	"io"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// Conn is a connection that Dialer opened. It has what a *net.TCPConn has besides a
// net.Conn as far as the connection below can do it.
type Conn struct {
	net.Conn
	Addr netip.AddrPort // what was checked and dialed
	DNS  time.Duration  // how long the lookup took; 0 for an address
	Dial time.Duration  // how long it took from then until the connection was there
}

// CloseWrite ends the direction towards the other end; a connection that cannot do
// that is closed.
func (c *Conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Conn.Close()
}

// SetLinger says what Close does with bytes that were not sent yet, see
// net.TCPConn.SetLinger: 0 makes it an abort. Without TCP it does nothing.
func (c *Conn) SetLinger(sec int) error {
	if tcp, ok := c.Conn.(interface{ SetLinger(int) error }); ok {
		return tcp.SetLinger(sec)
	}
	return nil
}

// ReadFrom lets the kernel move the bytes of another socket where it can.
func (c *Conn) ReadFrom(r io.Reader) (int64, error) {
	if to, ok := c.Conn.(io.ReaderFrom); ok {
		return to.ReadFrom(r)
	}
	return io.Copy(struct{ io.Writer }{c.Conn}, r)
}

// SyscallConn gives access to the socket.
func (c *Conn) SyscallConn() (syscall.RawConn, error) {
	if raw, ok := c.Conn.(syscall.Conn); ok {
		return raw.SyscallConn()
	}
	return nil, syscall.EINVAL
}
