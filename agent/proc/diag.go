package proc

import (
	"encoding/binary"
	"net/netip"
)

// Messages of sock_diag(7), linux/inet_diag.h.
const (
	diagRequestLen = 56 // struct inet_diag_req_v2
	diagMessageLen = 72 // struct inet_diag_msg
	diagListen     = 10 // TCP_LISTEN
	familyFour     = 2  // AF_INET, on Linux
	familySix      = 10 // AF_INET6
)

// diagRequest asks for all listening TCP sockets of a family.
func diagRequest(family byte) []byte {
	req := make([]byte, diagRequestLen)
	req[0] = family
	req[1] = 6                                                 // IPPROTO_TCP
	binary.NativeEndian.PutUint32(req[4:8], 1<<diagListen)     // idiag_states
	binary.NativeEndian.PutUint32(req[48:52], uint32(1<<32-1)) // idiag_cookie: none
	binary.NativeEndian.PutUint32(req[52:56], uint32(1<<32-1))
	return req
}

// parseDiag reads one answer; its attributes, behind the fixed part, are passed over.
func parseDiag(msg []byte) (Socket, bool) {
	if len(msg) < diagMessageLen || int(msg[1]) >= len(states) || msg[1] == 0 {
		return Socket{}, false
	}
	s := Socket{
		State: states[msg[1]],
		UID:   int(binary.NativeEndian.Uint32(msg[64:68])),
		Inode: uint64(binary.NativeEndian.Uint32(msg[68:72])),
	}
	port := binary.BigEndian.Uint16(msg[4:6])
	switch msg[0] {
	case familyFour:
		s.Local = netip.AddrPortFrom(netip.AddrFrom4([4]byte(msg[8:12])), port)
	case familySix:
		s.IPv6 = true
		s.Local = netip.AddrPortFrom(netip.AddrFrom16([16]byte(msg[8:24])).Unmap(), port)
	default:
		return Socket{}, false
	}
	return s, true
}
