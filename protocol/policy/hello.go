package policy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"
)

// Hello is what a TLS client says of where it wants to go.
type Hello struct {
	SNI string // lower case; "" without one. Nobody has judged yet whether it is a name
	ECH bool   // an encrypted hello is inside, or something made to look like one
}

// maxHello bounds what ReadHello reads.
const maxHello = 64 << 10

// typeHandshake and extensionECH are numbers of RFC 8446, section 5.1, and RFC 9849,
// section 5.
const (
	typeHandshake = 22
	extensionECH  = 0xfe0d
)

var (
	// ErrNotTLS says that the bytes do not begin like a TLS handshake.
	ErrNotTLS = errors.New("the bytes are not TLS")
	// ErrBadHello says that they do, and then are not a hello that can be read.
	ErrBadHello = errors.New("the TLS hello cannot be read")
)

// ReadHello reads the first message of a TLS client, in as many records and reads as it
// comes in, at most 64 KiB. raw is all that was read, in every case: it is to be passed
// on before what comes next, or, after an error, not at all.
//
// The error is ErrNotTLS, which a first byte decides, ErrBadHello, or what r returned.
// r has to have a deadline: a client may say nothing.
func ReadHello(r io.Reader) (h Hello, raw []byte, err error) {
	conn := &recorder{r: r}
	seen := errors.New("seen")
	found := false
	// A client that offers ECH is seen before crypto/tls tries to open what is inside.
	look := func(info *tls.ClientHelloInfo) {
		if !found {
			found = true
			h = Hello{SNI: strings.ToLower(info.ServerName), ECH: slices.Contains(info.Extensions, extensionECH)}
		}
	}
	err = tls.Server(conn, &tls.Config{
		GetEncryptedClientHelloKeys: func(info *tls.ClientHelloInfo) ([]tls.EncryptedClientHelloKey, error) {
			look(info)
			return nil, seen
		},
		GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
			look(info)
			return nil, seen
		},
	}).HandshakeContext(context.Background())
	switch {
	case found:
		return h, conn.raw, nil
	case conn.err != nil:
		return Hello{}, conn.raw, conn.err
	default:
		return Hello{}, conn.raw, fmt.Errorf("%w: %w", ErrBadHello, err)
	}
}

// recorder is a connection that can only be read, and keeps what was. What crypto/tls
// would answer goes nowhere.
type recorder struct {
	r    io.Reader
	raw  []byte
	next error // came with the last bytes
	err  error // was handed out
}

func (c *recorder) Read(p []byte) (int, error) {
	if c.next != nil {
		return c.fail(c.next)
	}
	if len(c.raw) >= maxHello {
		return c.fail(fmt.Errorf("%w: it is longer than %d bytes", ErrBadHello, maxHello))
	}
	n, err := c.r.Read(p[:min(len(p), maxHello-len(c.raw))])
	c.raw = append(c.raw, p[:n]...)
	c.next = err
	// crypto/tls waits for the head of a record. A client that speaks something else may
	// send less, and wait for an answer.
	if len(c.raw) > 0 && c.raw[0] != typeHandshake || len(c.raw) > 1 && c.raw[1] != 3 {
		return c.fail(ErrNotTLS)
	}
	if n == 0 && err != nil {
		return c.fail(err)
	}
	return n, nil
}

func (c *recorder) fail(err error) (int, error) {
	c.err = err
	return 0, err
}

func (c *recorder) Write(p []byte) (int, error)      { return len(p), nil }
func (c *recorder) Close() error                     { return nil }
func (c *recorder) LocalAddr() net.Addr              { return nil }
func (c *recorder) RemoteAddr() net.Addr             { return nil }
func (c *recorder) SetDeadline(time.Time) error      { return nil }
func (c *recorder) SetReadDeadline(time.Time) error  { return nil }
func (c *recorder) SetWriteDeadline(time.Time) error { return nil }

// CheckHello says whether a tunnel may go on, now that its hello is known. d is what
// Decide said of it. It allows all where d.SNI is SNIOff.
//
// In mode enforce the name must be the one that was judged, or, with SNIAllowlisted,
// another for which a line allows tunnels on this port. A target that is an address
// takes any name, and none. Report lets through what differs and says so, open is
// silent. A name that a deny line denies is refused in all of them.
func (c *Compiled) CheckHello(d Decision, t Target, h Hello, now time.Time) Decision {
	if !d.Allow || t.Form != Tunnel || d.SNI == SNIOff || d.SNI == "" {
		return d
	}
	if h.SNI == t.Host && h.SNI != "" {
		return d
	}
	name, _, _ := canonicalHost(h.SNI)
	inner := Target{Form: Tunnel, Host: name, Port: t.Port}
	if name != "" {
		if e := c.emergency.host(inner, now); e != nil {
			return emergency(e)
		}
		if l := c.deny.host(inner, now); l != nil {
			return denied(l, name+", the name in the TLS hello, is denied")
		}
	}
	if t.Addr.IsValid() || d.SNI == SNIAllowlisted && name != "" && c.listed(inner, now) || c.mode == Open {
		return d
	}
	reason := "the TLS hello names no host, and " + t.Host + " was asked for"
	if name != "" {
		reason = "the TLS hello names " + name + ", and " + t.Host + " was asked for"
	} else if h.SNI != "" {
		reason = "the TLS hello names what is not a host, and " + t.Host + " was asked for"
	}
	if c.mode == Report {
		if !d.Would {
			d.Would, d.Reason = true, reason
		}
		return d
	}
	return Decision{Cause: SNIMismatch, Where: d.Where, Line: d.Line, Rule: d.Rule, Reason: reason}
}

// listed reports whether a line allows tunnels to the target.
func (c *Compiled) listed(t Target, now time.Time) bool {
	d := c.Decide(Call{Target: t}, now)
	return d.Allow && !d.Would && d.Rule != nil
}
