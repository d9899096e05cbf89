package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/miekg/dns"

	"github.com/posternhq/postern/protocol/outbound"
)

// maxUDP is the largest answer over UDP that we ask for: one that is not fragmented
// anywhere (RFC 9715, section 3.2).
const maxUDP = 1232

// readUDP is how much of a packet we read: some servers send more than they are asked to.
const readUDP = 4096

// ask puts one question to the servers until one of them knows. It begins with the
// one that knew last: one that is gone would cost every lookup its time.
func (r *Resolver) ask(ctx context.Context, name string, kind uint16) half {
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-ctx.Done():
		return half{err: &outbound.LookupError{Name: name, Timeout: true, Err: errBusy}}
	}
	list, err := r.servers.list()
	if err != nil {
		return half{err: &outbound.LookupError{Name: name, Err: err}}
	}
	failed := &outbound.LookupError{Name: name}
	first := int(r.first.Load())
	for _, limit := range r.rounds {
		for i := range list {
			s := list[(first+i)%len(list)]
			answer, err := r.exchange(ctx, s, name, kind, limit)
			if err == nil {
				if i > 0 {
					r.first.Store(uint32((first + i) % len(list)))
				}
				return read(name, kind, answer)
			}
			// A server that says it cannot tells more than one that says nothing.
			if timeout := isTimeout(err); !timeout || failed.Err == nil {
				if timeout {
					err = errSilent
				}
				failed.Err, failed.Timeout = fmt.Errorf("name server %s: %w", s.addr, err), timeout
			}
			if ctx.Err() != nil {
				return half{err: failed}
			}
		}
	}
	return half{err: failed}
}

var (
	errBusy   = errors.New("too many names are looked up at once")
	errSilent = errors.New("it did not answer in time")
)

// exchange asks one server. The answer's code is NOERROR or NXDOMAIN.
func (r *Resolver) exchange(ctx context.Context, s server, name string, kind uint16, limit time.Duration) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), kind)
	q.SetEdns0(maxUDP, false)
	m, err := once(ctx, s.network, s.addr, q)
	if err == nil && (m.Rcode == dns.RcodeFormatError || m.Rcode == dns.RcodeNotImplemented) {
		// A server from before EDNS (RFC 6891, section 7).
		q.Id, q.Extra = dns.Id(), nil
		m, err = once(ctx, s.network, s.addr, q)
	}
	if err == nil && m.Truncated && s.network == "udp" {
		q.Id = dns.Id()
		m, err = once(ctx, "tcp", s.addr, q)
	}
	switch {
	case err != nil:
		return nil, err
	case m.Rcode == dns.RcodeNameError:
		return m, nil
	case m.Rcode != dns.RcodeSuccess:
		return nil, rcodeError(m.Rcode)
	case len(m.Answer) == 0 && !m.Authoritative && !m.RecursionAvailable:
		return nil, errLame
	}
	return m, nil
}

var errLame = errors.New("it neither knows the answer nor asks others")

// rcodeError is how a server says that it cannot.
type rcodeError int

func (e rcodeError) Error() string {
	if s, ok := dns.RcodeToString[int(e)]; ok {
		return "it answered " + s
	}
	return fmt.Sprintf("it answered with code %d", int(e))
}

// once sends q and waits for the answer to it, until ctx ends.
func once(ctx context.Context, network, addr string, q *dns.Msg) (*dns.Msg, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	c := &dns.Conn{Conn: conn, UDPSize: readUDP}
	if err := c.WriteMsg(q); err != nil {
		return nil, err
	}
	for {
		packet, err := c.ReadMsgHeader(nil)
		switch {
		case errors.Is(err, dns.ErrShortRead) && network == "udp":
			continue
		case err != nil:
			return nil, err
		}
		m := new(dns.Msg)
		broken := m.Unpack(packet) != nil
		// One that was truncated may end in the middle of a record.
		if matches(m, q) && (!broken || m.Truncated && network == "udp") {
			return m, nil
		}
		if network != "udp" {
			return nil, errMismatch // nobody but the server can have sent it
		}
	}
}

var errMismatch = errors.New("it answered something else than was asked")

func isTimeout(err error) bool {
	var slow interface{ Timeout() bool }
	return errors.Is(err, context.Canceled) || errors.As(err, &slow) && slow.Timeout()
}
