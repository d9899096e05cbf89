package forward

import (
	"net"

	"golang.org/x/sys/unix"

	"github.com/posternhq/postern/protocol"
)

// tcpClose is the state of a connection that is over (net/tcp_states.h).
const tcpClose = 7

// takenOf asks the kernel what the app's side has acknowledged (tcp(7), TCP_INFO). An
// app that has closed its socket acknowledges nothing that comes later: its kernel
// answers with a reset.
func takenOf(conn net.Conn) protocol.Taken {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil
	}
	taken := func() (bytes int64, gone bool) {
		bytes = -1
		raw.Control(func(fd uintptr) {
			if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
				bytes, gone = int64(info.Bytes_acked), info.State == tcpClose
			}
		})
		return bytes, gone && bytes >= 0
	}
	if bytes, _ := taken(); bytes < 0 {
		return nil // a sandbox that has no such call
	}
	return taken
}
