package outbound

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"syscall"

	"github.com/posternhq/postern/protocol/policy"
)

// lookupRefusal says why t's name has no addresses. ctx is the caller's own: when it
// has ended, that is the reason.
func lookupRefusal(ctx context.Context, t policy.Target, err error) *policy.Refusal {
	var failed *LookupError
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return policy.NewRefusal(policy.Cut, "the call was given up while "+t.Host+" was looked up")
	case !errors.As(err, &failed):
		failed = &LookupError{NotFound: err == nil, Timeout: isTimeout(err)}
		if err == nil {
			failed.Err = ErrNoAddress
		}
	}
	switch {
	case failed.Timeout:
		return policy.NewRefusal(policy.DNSTimeout, "the name servers did not answer in time for "+t.Host)
	case failed.NotFound && errors.Is(failed.Err, ErrNoAddress):
		return policy.NewRefusal(policy.NoSuchName, "the name "+t.Host+" has no address")
	case failed.NotFound:
		return policy.NewRefusal(policy.NoSuchName, "the name "+t.Host+" does not exist")
	}
	return policy.NewRefusal(policy.NoSuchName, "the name servers could not answer for "+t.Host)
}

// Why an attempt failed, from the least to the most telling: that a host refuses says
// more than that another of its addresses has no route.
const (
	unreachable = iota
	silent
	refused
	exhausted
)

// dialRefusal says why none of t's addresses could be reached.
func (d *Dialer) dialRefusal(ctx context.Context, t policy.Target, failures []attempt) *policy.Refusal {
	if errors.Is(ctx.Err(), context.Canceled) {
		return policy.NewRefusal(policy.Cut, "the call was given up while "+t.HostPort()+" was dialed")
	}
	telling := slices.MaxFunc(failures, func(a, b attempt) int { return cmp.Compare(a.kind(), b.kind()) })
	tried := ""
	if len(failures) > 1 {
		tried = fmt.Sprintf(" (%d addresses tried)", len(failures))
	}
	switch telling.kind() {
	case exhausted:
		return policy.NewRefusal(policy.Unavailable, "no connection to "+t.HostPort()+" can be opened now: "+plain(telling.err))
	case refused:
		return policy.NewRefusal(policy.Refused, t.HostPort()+" refused the connection"+tried)
	case silent:
		return policy.NewRefusal(policy.DialTimeout, fmt.Sprintf("%s did not answer within %v%s", t.HostPort(), d.timeout(), tried))
	}
	return policy.NewRefusal(policy.Unreachable, t.HostPort()+" cannot be reached: "+plain(telling.err)+tried)
}

func (a attempt) kind() int {
	switch {
	case isAny(a.err, syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM):
		return exhausted
	case errors.Is(a.err, syscall.EADDRNOTAVAIL) && is4(a.addr.Addr()):
		return exhausted // no port is free; of IPv6, that there is no IPv6 here
	case isAny(a.err, syscall.ECONNREFUSED, syscall.ECONNRESET):
		return refused
	case isTimeout(a.err):
		return silent
	}
	return unreachable
}

func isAny(err error, of ...error) bool {
	return slices.ContainsFunc(of, func(e error) bool { return errors.Is(err, e) })
}

// isTimeout includes a context that has ended: a race that was not won ends all
// attempts at once.
func isTimeout(err error) bool {
	var slow interface{ Timeout() bool }
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) ||
		errors.As(err, &slow) && slow.Timeout()
}

// plain is what the system says of a failed attempt, without the names of system
// calls, of networks, and of sockets.
func plain(err error) string {
	var number syscall.Errno
	var call *os.SyscallError
	var op *net.OpError
	switch {
	case errors.As(err, &number):
		return number.Error()
	case errors.As(err, &call) && call.Err != nil:
		return call.Err.Error()
	case errors.As(err, &op) && op.Err != nil:
		return op.Err.Error()
	}
	return err.Error()
}
