package outbound

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"
)

// Resolver finds the addresses of a name. The name is canonical, as policy.Target has
// it, and absolute: search domains are never tried. An answer without an address is
// an error.
type Resolver interface {
	Lookup(ctx context.Context, name string) (Answer, error) // error: *LookupError
}

// Answer is what a name stands for at the moment.
type Answer struct {
	Addrs []netip.Addr  // at least one; the resolver's, not to be changed
	TTL   time.Duration // how long it holds
}

// LookupError says why a name has no addresses.
type LookupError struct {
	Name string
	// NotFound is set when name servers say that there is no such name, or that it has
	// no addresses. Otherwise they failed, and the same question may be answered later.
	NotFound bool
	Timeout  bool          // no name server answered in time
	TTL      time.Duration // of NotFound: how long it holds, where known
	Err      error         // what happened, in plain words; may be nil
}

func (e *LookupError) Error() string {
	switch {
	case e.Err != nil:
		return "look up " + e.Name + ": " + e.Err.Error()
	case e.NotFound:
		return "look up " + e.Name + ": no such name"
	case e.Timeout:
		return "look up " + e.Name + ": no name server answered in time"
	}
	return "look up " + e.Name + ": the name servers failed"
}

func (e *LookupError) Unwrap() error { return e.Err }

// systemTTL is how long an answer of System holds: net.Resolver does not tell.
const systemTTL = 30 * time.Second

// System returns the resolver of the system, as the standard library reads its
// settings, without cgo. Every answer has the same TTL of 30 seconds.
func System() Resolver { return system{resolver: &net.Resolver{PreferGo: true}} }

type system struct{ resolver *net.Resolver }

func (s system) Lookup(ctx context.Context, name string) (Answer, error) {
	found, err := s.resolver.LookupNetIP(ctx, "ip", name+".") // the dot keeps search domains out
	if err != nil {
		return Answer{}, systemError(name, err)
	}
	addrs := make([]netip.Addr, 0, len(found))
	for _, a := range found {
		addrs = append(addrs, a.Unmap()) // net.IP writes IPv4 in 16 bytes at times
	}
	if len(addrs) == 0 {
		return Answer{}, &LookupError{Name: name, NotFound: true, Err: ErrNoAddress}
	}
	return Answer{Addrs: addrs, TTL: systemTTL}, nil
}

// ErrNoAddress is the Err of a LookupError when there is such a name, with nothing to
// connect to.
var ErrNoAddress = errors.New("the name has no address")

func systemError(name string, err error) *LookupError {
	e := &LookupError{Name: name}
	var failed *net.DNSError
	if errors.As(err, &failed) {
		e.NotFound, e.Timeout = failed.IsNotFound, failed.IsTimeout
		if !e.NotFound && !e.Timeout {
			e.Err = errors.New(failed.Err) // the whole would name the name twice
		}
		return e
	}
	if e.Timeout = errors.Is(err, context.DeadlineExceeded); !e.Timeout {
		e.Err = err
	}
	return e
}
