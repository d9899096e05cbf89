package dns

import (
	"context"
	"errors"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/posternhq/postern/protocol/outbound"
)

// Resolver asks name servers. It is safe for many goroutines.
type Resolver struct {
	servers servers
	slots   chan struct{}   // one for each question under way
	rounds  []time.Duration // how long a server has for its answer, the first time, the second …
	grace   time.Duration   // how long one family is waited for when the other is there
	first   atomic.Uint32   // which server is asked first
}

const (
	// maxQuestions are under way at most; each has a socket.
	maxQuestions = 256
	// familyGrace follows RFC 8305, section 3, with more patience: what is answered here
	// is cached.
	familyGrace = 150 * time.Millisecond
	// halfTTL is how long an answer holds that lacks a family which did not come in time.
	halfTTL = 5 * time.Second
	// maxAddrs are taken of one answer.
	maxAddrs = 32
)

// New returns a Resolver that asks server: udp://address:port, or tcp://address:port,
// or several with commas between them, which are tried in this order until one
// answers. Without a port it is 53. "" are the servers of /etc/resolv.conf, which is read again when it has
// changed.
func New(server string) (*Resolver, error) {
	r := &Resolver{
		slots:  make(chan struct{}, maxQuestions),
		rounds: []time.Duration{time.Second, 3 * time.Second}, // packets get lost
		grace:  familyGrace,
	}
	if server == "" {
		r.servers = &systemServers{path: "/etc/resolv.conf"}
		return r, nil
	}
	fixed, err := parseServers(server)
	if err != nil {
		return nil, err
	}
	r.servers = fixed
	return r, nil
}

// half is the outcome of one question of a lookup.
type half struct {
	addrs []netip.Addr
	ttl   time.Duration
	err   *outbound.LookupError // nil: addrs
}

// Lookup asks for both families at once. When one has come, the other is waited for a
// moment only; what is missing then is asked for again soon, by a short TTL.
func (r *Resolver) Lookup(ctx context.Context, name string) (outbound.Answer, error) {
	if !askable(name) {
		return outbound.Answer{}, &outbound.LookupError{
			Name: name, NotFound: true, TTL: halfTTL, Err: errors.New("this is not a name that can be looked up"),
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	four, six := make(chan half, 1), make(chan half, 1)
	go r.family(ctx, name, dns.TypeA, four)
	go r.family(ctx, name, dns.TypeAAAA, six)
	var a, b *half
	var enough <-chan time.Time
	for a == nil || b == nil {
		select {
		case h := <-four:
			a, four = &h, nil
		case h := <-six:
			b, six = &h, nil
		case <-enough:
			cancel() // the one that is missing comes at once, with an error
			enough = nil
		}
		if have := cmpOr(a, b); have != nil && have.err == nil && enough == nil && ctx.Err() == nil {
			timer := time.NewTimer(r.grace)
			defer timer.Stop()
			enough = timer.C
		}
	}
	cancel()
	return merge(name, *a, *b)
}

// cmpOr returns the first that is there.
func cmpOr(a, b *half) *half {
	if a != nil {
		return a
	}
	return b
}

func (r *Resolver) family(ctx context.Context, name string, kind uint16, out chan<- half) {
	out <- r.ask(ctx, name, kind)
}

// merge makes one answer of two.
func merge(name string, a, b half) (outbound.Answer, error) {
	if a.err != nil && b.err != nil {
		return outbound.Answer{}, mergeErrors(name, a.err, b.err)
	}
	answer := outbound.Answer{TTL: -1}
	for _, h := range []half{a, b} {
		ttl := h.ttl
		if h.err != nil {
			if h.err.NotFound {
				continue // it has no addresses of this family
			}
			ttl = halfTTL
		}
		if answer.TTL < 0 || ttl < answer.TTL {
			answer.TTL = ttl
		}
		answer.Addrs = append(answer.Addrs, h.addrs...)
	}
	return answer, nil
}

// mergeErrors says why there is no address of either family. That there is none must
// have been said of both, unless the name does not exist at all.
func mergeErrors(name string, a, b *outbound.LookupError) *outbound.LookupError {
	for _, e := range []*outbound.LookupError{a, b} {
		if e.NotFound && errors.Is(e.Err, errNoName) {
			return e
		}
	}
	if a.NotFound && b.NotFound {
		return &outbound.LookupError{Name: name, NotFound: true, TTL: min(a.TTL, b.TTL), Err: a.Err}
	}
	if a.NotFound {
		return b
	}
	return a
}

// askable reports whether name goes into a message as it is, without escapes.
func askable(name string) bool {
	for i := range len(name) {
		switch c := name[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_', c == '.':
		default:
			return false
		}
	}
	_, ok := dns.IsDomainName(name)
	return ok && name != "" && name[len(name)-1] != '.'
}
