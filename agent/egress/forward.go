package egress

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/posternhq/postern/protocol/policy"
)

// Forward is a named forward: what connects to Local is in a tunnel to Target. It is
// for programs that know no proxy, such as database drivers.
type Forward struct {
	Local  string // 127.0.0.1:15432; loopback only, port 0 is any
	Target string // db.partner:5432
}

// ParseForward reads "15432=db.partner:5432" or "127.0.0.1:15432=db.partner:5432".
func ParseForward(s string) (Forward, error) {
	local, target, ok := strings.Cut(s, "=")
	if !ok {
		return Forward{}, fmt.Errorf("forward %q: expected LOCALPORT=HOST:PORT, such as 15432=db.partner:5432", s)
	}
	if !strings.Contains(local, ":") {
		local = "127.0.0.1:" + local
	}
	host, port, err := net.SplitHostPort(local)
	if err != nil {
		return Forward{}, fmt.Errorf("forward %q: %q is no local port", s, local)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return Forward{}, fmt.Errorf("forward %q: local port %q, expected a number up to 65535", s, port)
	}
	if a, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !a.IsLoopback()) {
		return Forward{}, fmt.Errorf("forward %q: it listens on loopback only, and %q is not", s, host)
	}
	t, err := policy.ParseTunnel(target)
	if err != nil {
		return Forward{}, fmt.Errorf("forward %q: %w", s, err)
	}
	return Forward{Local: local, Target: t.HostPort()}, nil
}

// forward is one that is bound.
type forward struct {
	target   policy.Target
	listener net.Listener
}

func (p *Proxy) newForward(f Forward) (*forward, error) {
	t, err := policy.ParseTunnel(f.Target)
	if err != nil {
		return nil, err
	}
	l, err := listenLoopback(f.Local)
	if err != nil {
		return nil, err
	}
	return &forward{target: t, listener: l}, nil
}

func (p *Proxy) serveForward(ctx context.Context, conn net.Conn, f *forward) {
	p.tunnel(ctx, &call{conn: conn, from: "forward", target: f.target, answer: mute{}})
}

// mute is the answer to whoever speaks a protocol of his own: a connection that stays,
// or is reset.
type mute struct{}

func (mute) connected(net.Conn) error { return nil }

func (mute) refuse(conn net.Conn, _ *policy.Refusal) { cut(conn) }
