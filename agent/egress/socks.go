package egress

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"

	"encoding/binary"

	"github.com/posternhq/postern/protocol/policy"
)

// SOCKS5, RFC 1928: no authentication, CONNECT only. Names are not looked up here.
const (
	socksVersion = 5
	socksConnect = 1
	socksIPv4    = 1
	socksName    = 3
	socksIPv6    = 4
	socksNoAuth  = 0
	socksNone    = 0xff

	socksOK          = 0
	socksFailure     = 1
	socksNoCommand   = 7
	socksNoAddresses = 8
)

// socksError is a request that gets a reply that is not policy's.
type socksError struct {
	reply   byte
	message string
}

func (e *socksError) Error() string { return e.message }

// readSOCKSGreeting reads the version and the methods, and reports whether the client
// can do without authentication.
func readSOCKSGreeting(r io.Reader) (noAuth bool, err error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return false, err
	}
	if head[0] != socksVersion {
		return false, fmt.Errorf("SOCKS version %d, expected 5", head[0])
	}
	var methods [255]byte
	if _, err := io.ReadFull(r, methods[:head[1]]); err != nil {
		return false, err
	}
	return bytes.IndexByte(methods[:head[1]], socksNoAuth) >= 0, nil
}

// readSOCKSRequest reads what the client wants. A *socksError has the reply; a
// *policy.TargetError is about the target; any other error is the connection's.
func readSOCKSRequest(r io.Reader) (policy.Target, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return policy.Target{}, err
	}
	if head[0] != socksVersion || head[2] != 0 {
		return policy.Target{}, &socksError{socksFailure, "malformed request"}
	}
	host, err := readSOCKSHost(r, head[3])
	if err != nil {
		return policy.Target{}, err
	}
	var port [2]byte
	if _, err := io.ReadFull(r, port[:]); err != nil {
		return policy.Target{}, err
	}
	if head[1] != socksConnect {
		return policy.Target{}, &socksError{socksNoCommand, fmt.Sprintf("command %d, only CONNECT is served", head[1])}
	}
	return policy.ParseHost(host, binary.BigEndian.Uint16(port[:]), policy.Tunnel)
}

// readSOCKSHost reads an address of kind as text.
func readSOCKSHost(r io.Reader, kind byte) (string, error) {
	var raw [255]byte
	n := 0
	switch kind {
	case socksIPv4:
		n = 4
	case socksIPv6:
		n = 16
	case socksName:
		if _, err := io.ReadFull(r, raw[:1]); err != nil {
			return "", err
		}
		n = int(raw[0])
	default:
		return "", &socksError{socksNoAddresses, fmt.Sprintf("address of type %d", kind)}
	}
	if _, err := io.ReadFull(r, raw[:n]); err != nil {
		return "", err
	}
	if kind == socksName {
		return string(raw[:n]), nil
	}
	a, _ := netip.AddrFromSlice(raw[:n])
	return a.String(), nil
}

// serveSOCKS serves a connection whose first byte is 5.
func (p *Proxy) serveSOCKS(ctx context.Context, conn net.Conn, br *bufio.Reader) {
	noAuth, err := readSOCKSGreeting(br)
	if err == nil && !noAuth {
		takeRest(br)
		conn.Write([]byte{socksVersion, socksNone})
		p.bye(conn)
		return
	}
	if err == nil {
		_, err = conn.Write([]byte{socksVersion, socksNoAuth})
	}
	var target policy.Target
	if err == nil {
		target, err = readSOCKSRequest(br)
	}
	early := takeRest(br)
	var bad *socksError
	var unreadable *policy.TargetError
	switch {
	case err == nil:
		p.tunnel(ctx, &call{conn: conn, from: "socks", target: target, early: early, answer: socksAnswer{}})
		return
	case errors.As(err, &bad):
		p.log.Debug("SOCKS request refused", "reason", err)
		writeSOCKS(conn, bad.reply)
	case errors.As(err, &unreadable):
		p.badTarget("socks", err)
		writeSOCKS(conn, refusalOf(err).SOCKS())
	case errors.Is(err, os.ErrDeadlineExceeded):
		writeSOCKS(conn, socksFailure)
	}
	p.bye(conn)
}

// socksAnswer answers a SOCKS request.
type socksAnswer struct{}

func (socksAnswer) connected(conn net.Conn) error { return writeSOCKS(conn, socksOK) }

func (socksAnswer) refuse(conn net.Conn, r *policy.Refusal) { writeSOCKS(conn, r.SOCKS()) }

// writeSOCKS writes a reply. The address in it is nobody's: it is the relay's that is
// connected, if any.
func writeSOCKS(conn net.Conn, reply byte) error {
	_, err := conn.Write([]byte{socksVersion, reply, 0, socksIPv4, 0, 0, 0, 0, 0, 0})
	return err
}
