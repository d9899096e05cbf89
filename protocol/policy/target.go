package policy

import (
	"net/netip"
	"strconv"
)

// Form is how a call asks for its way out.
type Form string

// The forms.
const (
	Tunnel  Form = "tunnel"  // bytes that nobody reads: CONNECT, SOCKS, a named forward
	Request Form = "request" // an HTTP request in absolute form, http://
)

// Target is where a call wants to go. Host and Addr exclude each other.
type Target struct {
	Form Form
	Host string     // lower case, ASCII, without a dot at its end; "" when the target is an address
	Addr netip.Addr // without zone, unmapped
	Port uint16     // 1 to 65535
}

// Name is the host or the address, as it is written in rules and logs.
func (t Target) Name() string {
	if t.Addr.IsValid() {
		return t.Addr.String()
	}
	return t.Host
}

// HostPort is host:port, with brackets around IPv6.
func (t Target) HostPort() string {
	if t.Addr.IsValid() {
		return netip.AddrPortFrom(t.Addr, t.Port).String()
	}
	return t.Host + ":" + strconv.Itoa(int(t.Port))
}
