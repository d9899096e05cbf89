package dns

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"

	"github.com/miekg/dns"

	"github.com/posternhq/postern/protocol/outbound"
	"github.com/posternhq/postern/protocol/policy"
)

// The resolver as a relay has it: behind the cache, below the dialer.

// dialer returns one over r that remembers what it was to connect to.
func dialer(r outbound.Resolver) (d *outbound.Dialer, dialed *[]string) {
	dialed = new([]string)
	var mu sync.Mutex
	return &outbound.Dialer{Resolver: r, DialAddr: func(_ context.Context, a netip.AddrPort) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		*dialed = append(*dialed, a.String())
		ours, theirs := net.Pipe()
		theirs.Close()
		return ours, nil
	}}, dialed
}

func compiled(change func(*policy.Policy)) *policy.Compiled {
	p := policy.Policy{App: "shop", Declared: true, Mode: policy.Open}
	change(&p)
	return policy.Compile(&p)
}

func unchanged(*policy.Policy) {}

func target(name string) policy.Target {
	return policy.Target{Form: policy.Tunnel, Host: name, Port: 443}
}

// A server that gives every question another answer: a public address for the check,
// and what lies behind the relay for the dial.
func TestRebinding(t *testing.T) {
	t.Parallel()
	for _, first := range []string{"93.184.216.34", "127.0.0.1"} {
		s := startServer(t, nil)
		answers := []string{first, "127.0.0.1", "93.184.216.35"}
		var mu sync.Mutex
		s.set(func(w dns.ResponseWriter, q *dns.Msg) {
			m := new(dns.Msg).SetReply(q)
			m.RecursionAvailable = true
			if q.Question[0].Qtype == dns.TypeA {
				mu.Lock()
				m.Answer = append(m.Answer, record("rebind.test. 0 IN A "+answers[0]))
				answers = answers[1:]
				mu.Unlock()
			}
			w.WriteMsg(m)
		})
		d, dialed := dialer(outbound.NewCache(resolver(t, s), outbound.CacheConfig{}))
		conn, err := d.Dial(t.Context(), compiled(unchanged), target("rebind.test"))
		if n := s.count(" A"); n != 2 { // one of them is AAAA
			t.Errorf("asked %q, expected each family once", s.questions())
		}
		if first == "127.0.0.1" {
			var refused *policy.Refusal
			if !errors.As(err, &refused) || refused.Cause != policy.Prohibited || len(*dialed) > 0 {
				t.Errorf("error %v after dialing %v, expected a prohibited address", err, *dialed)
			}
			continue
		}
		if err != nil || len(*dialed) != 1 || (*dialed)[0] != "93.184.216.34:443" {
			t.Errorf("dialed %v, error %v", *dialed, err)
			continue
		}
		conn.Close()
	}
}

func TestACachedAnswerIsCheckedUnderThePolicyOfTheMoment(t *testing.T) {
	t.Parallel()
	s := startServer(t, map[string][]string{
		"a.test. A":    {"a.test. 300 IN CNAME internal.corp.", "internal.corp. 300 IN A 10.1.0.1", "internal.corp. 300 IN A 93.184.216.34"},
		"a.test. AAAA": {},
	})
	d, dialed := dialer(outbound.NewCache(resolver(t, s), outbound.CacheConfig{}))
	for _, step := range []struct {
		change func(*policy.Policy)
		dialed string
	}{
		{unchanged, "93.184.216.34:443"},
		{func(p *policy.Policy) {
			p.Deny = []policy.Deny{{Where: "egress.deny.ranges[0]", Range: netip.MustParsePrefix("93.184.216.0/24")}}
		}, ""},
		{func(p *policy.Policy) {
			p.Own = []netip.Addr{netip.MustParseAddr("93.184.216.34")}
			p.Holes = []policy.Hole{{Where: "egress.holes[0]", Range: netip.MustParsePrefix("10.1.0.0/16"), Ports: []uint16{443}}}
		}, "10.1.0.1:443"},
	} {
		*dialed = nil
		conn, err := d.Dial(t.Context(), compiled(step.change), target("a.test"))
		if step.dialed == "" {
			if err == nil || len(*dialed) > 0 {
				t.Errorf("dialed %v, expected a refusal", *dialed)
			}
			continue
		}
		if err != nil || len(*dialed) != 1 || (*dialed)[0] != step.dialed {
			t.Errorf("dialed %v, error %v, expected %s", *dialed, err, step.dialed)
			continue
		}
		conn.Close()
	}
	if n := len(s.questions()); n != 2 {
		t.Errorf("asked %q, expected each family once", s.questions())
	}
}

func TestAThousandLookupsAreOneQuestionForEachFamily(t *testing.T) {
	t.Parallel()
	s := startServer(t, map[string][]string{"a.test. A": {"a.test. 60 IN A 93.184.216.34"}, "a.test. AAAA": {}})
	c := outbound.NewCache(resolver(t, s), outbound.CacheConfig{})
	var all sync.WaitGroup
	start := make(chan struct{})
	for range 1000 {
		all.Go(func() {
			<-start
			if _, err := c.Lookup(t.Context(), "a.test"); err != nil {
				t.Error(err)
			}
		})
	}
	close(start)
	all.Wait()
	if n := len(s.questions()); n != 2 {
		t.Errorf("%d questions, expected 2", n)
	}
}
