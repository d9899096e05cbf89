package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/posternhq/postern/protocol/outbound"
)

const second = time.Second

func TestAddressesOfANameAndHowLongTheyHold(t *testing.T) {
	t.Parallel()
	s := startServer(t, map[string][]string{
		"both.test. A":    {"both.test. 300 IN A 93.184.216.34"},
		"both.test. AAAA": {"both.test. 120 IN AAAA 2606:2800:220:1::1"},

		"four.test. A":    {"four.test. 77 IN A 93.184.216.34", "four.test. 66 IN A 93.184.216.35"},
		"four.test. AAAA": {},

		"six.test. A":    {},
		"six.test. AAAA": {"six.test. 30 IN AAAA 2606:2800:220:1::1"},

		"broken-six.test. A": {"broken-six.test. 88 IN A 93.184.216.34"}, // NXDOMAIN for AAAA

		"alias.test. A": {
			"alias.test. 300 IN CNAME middle.test.",
			"middle.test. 20 IN CNAME edge.example.net.",
			"edge.example.net. 60 IN A 93.184.216.36",
		},
		"alias.test. AAAA": {"alias.test. 300 IN CNAME middle.test.", "middle.test. 20 IN CNAME edge.example.net."},

		// In another order, in other letters, and with what nobody asked for.
		"odd.test. A": {
			"edge.example.net. 60 IN A 93.184.216.37",
			"other.test. 1 IN A 93.184.216.99",
			"ODD.test. 300 IN CNAME EDGE.example.net.",
			"odd.test. 1 IN A 93.184.216.98",
			"edge.example.net. 50 IN TXT \"x\"",
		},
		"odd.test. AAAA": {},

		"mapped.test. A":    {},
		"mapped.test. AAAA": {"mapped.test. 40 IN AAAA ::ffff:10.0.0.1"},

		"never.test. A":    {"never.test. 2147483648 IN A 93.184.216.34"},
		"never.test. AAAA": {},
	})
	r := resolver(t, s)
	for _, test := range []struct {
		name  string
		addrs string
		ttl   time.Duration
	}{
		{"both.test", "93.184.216.34 2606:2800:220:1::1", 120 * second},
		{"four.test", "93.184.216.34 93.184.216.35", 66 * second},
		{"six.test", "2606:2800:220:1::1", 30 * second},
		{"broken-six.test", "93.184.216.34", 88 * second},
		{"alias.test", "93.184.216.36", 20 * second},
		{"odd.test", "93.184.216.37", 60 * second},
		{"mapped.test", "::ffff:10.0.0.1", 40 * second},
		{"never.test", "93.184.216.34", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			a, err := r.Lookup(t.Context(), test.name)
			if err != nil {
				t.Fatal(err)
			}
			if got := join(a.Addrs); got != test.addrs || a.TTL != test.ttl {
				t.Errorf("got %s for %v, expected %s for %v", got, a.TTL, test.addrs, test.ttl)
			}
		})
	}
}

func join(addrs []netip.Addr) string {
	var list []string
	for _, a := range addrs {
		list = append(list, a.String())
	}
	return strings.Join(list, " ")
}

// lookupError looks a name up that has no addresses.
func lookupError(t *testing.T, r *Resolver, name string) *outbound.LookupError {
	t.Helper()
	a, err := r.Lookup(t.Context(), name)
	var failed *outbound.LookupError
	if !errors.As(err, &failed) {
		t.Fatalf("look up %s: got %v and error %v, expected a *LookupError", name, a.Addrs, err)
	}
	if strings.Contains(err.Error(), "<nil>") || !strings.Contains(err.Error(), name) {
		t.Errorf("look up %s: the error says %q", name, err)
	}
	return failed
}

func TestNamesWithoutAddressesAreToldFromServersThatFail(t *testing.T) {
	t.Parallel()
	loop := []string{"loop.test. 9 IN CNAME pool.test.", "pool.test. 9 IN CNAME loop.test."}
	s := startServer(t, map[string][]string{
		"empty.test. A": {}, "empty.test. AAAA": {},
		"text.test. A": {"text.test. 9 IN TXT \"x\""}, "text.test. AAAA": {},
		"loop.test. A": loop, "loop.test. AAAA": loop,
	})
	r := resolver(t, s)
	for _, name := range []string{"nowhere.test", "empty.test", "text.test", "loop.test"} {
		if e := lookupError(t, r, name); !e.NotFound || e.Timeout {
			t.Errorf("%s: got %+v, expected that there is no such name or address", name, e)
		}
	}
	// RFC 2308: as long as the zone says, here 3 s.
	if e := lookupError(t, r, "nowhere.test"); e.TTL != 3*second {
		t.Errorf("NXDOMAIN holds for %v, expected 3s", e.TTL)
	}

	for _, code := range []int{dns.RcodeServerFailure, dns.RcodeRefused, dns.RcodeNotImplemented, 13} {
		s.set(func(w dns.ResponseWriter, q *dns.Msg) { w.WriteMsg(new(dns.Msg).SetRcode(q, code)) })
		if e := lookupError(t, r, "any.test"); e.NotFound || e.Timeout {
			t.Errorf("code %d: got %+v, expected that servers failed", code, e)
		}
	}
	s.set(func(w dns.ResponseWriter, q *dns.Msg) { w.WriteMsg(new(dns.Msg).SetReply(q)) }) // a referral to nowhere
	if e := lookupError(t, r, "any.test"); e.NotFound || e.Timeout {
		t.Errorf("lame server: got %+v, expected that it failed", e)
	}
	s.set(func(dns.ResponseWriter, *dns.Msg) {})
	r.rounds = []time.Duration{200 * time.Millisecond, 200 * time.Millisecond}
	if e := lookupError(t, r, "any.test"); e.NotFound || !e.Timeout {
		t.Errorf("silent server: got %+v, expected a timeout", e)
	}
}

func (s *nameServer) set(odd func(dns.ResponseWriter, *dns.Msg)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.odd = odd
}

// One family fails while the other says it has nothing: there may be addresses.
func TestNoAddressOfOneFamilyIsNoAnswerForTheOther(t *testing.T) {
	t.Parallel()
	s := startServer(t, map[string][]string{"half.test. AAAA": {}})
	s.set(func(w dns.ResponseWriter, q *dns.Msg) {
		if q.Question[0].Qtype == dns.TypeA {
			w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeServerFailure))
			return
		}
		w.WriteMsg(s.reply(q))
	})
	if e := lookupError(t, resolver(t, s), "half.test"); e.NotFound {
		t.Errorf("got %+v, expected that the servers failed", e)
	}
}

func TestAnAnswerThatDoesNotFitIsAskedForOverTCP(t *testing.T) {
	t.Parallel()
	var many []string
	for i := range 40 {
		many = append(many, fmt.Sprintf("many.test. 60 IN A 93.184.217.%d", i))
	}
	s := startServer(t, map[string][]string{"many.test. A": many, "many.test. AAAA": {}})
	for _, broken := range []bool{false, true} {
		s.set(func(w dns.ResponseWriter, q *dns.Msg) {
			m := s.reply(q)
			if w.RemoteAddr().Network() == "udp" && q.Question[0].Qtype == dns.TypeA {
				m.Truncated = true
				m.Answer = m.Answer[:2] // what there was room for is not to be used
				packet, err := m.Pack()
				if err != nil {
					t.Error(err)
				}
				if broken {
					packet = packet[:len(packet)-3]
				}
				w.Write(packet)
				return
			}
			w.WriteMsg(m)
		})
		a, err := resolver(t, s).Lookup(t.Context(), "many.test")
		if err != nil || len(a.Addrs) != maxAddrs {
			t.Errorf("cut within a record: %v: got %d addresses and error %v, expected %d", broken, len(a.Addrs), err, maxAddrs)
		}
		if n := s.count("tcp many.test. AAAA"); n != 0 {
			t.Errorf("%d questions over TCP whose answer had fit", n)
		}
	}
	if n := s.count("tcp many.test. A"); n != 2 {
		t.Errorf("%d questions over TCP, expected 2", n)
	}
}

func TestTCPFromTheStart(t *testing.T) {
	t.Parallel()
	s := startServer(t, map[string][]string{"a.test. A": {"a.test. 60 IN A 93.184.216.34"}, "a.test. AAAA": {}})
	r, err := New("tcp://" + s.addr)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Lookup(t.Context(), "a.test"); err != nil {
		t.Fatal(err)
	}
	if n := s.count("udp"); n != 0 {
		t.Errorf("%d questions over UDP", n)
	}
	s.set(func(w dns.ResponseWriter, q *dns.Msg) {
		m := s.reply(q)
		m.Question[0].Name = "b.test."
		w.WriteMsg(m)
	})
	if e := lookupError(t, r, "a.test"); e.NotFound || e.Timeout {
		t.Errorf("wrong question over TCP: got %+v, expected that the server failed", e)
	}
}

// Whoever can send packets to our port must not be able to answer, nor to end a
// lookup, without knowing what we asked.
func TestPacketsThatDoNotFitTheQuestionAreIgnored(t *testing.T) {
	t.Parallel()
	forged := "93.184.216.66"
	for _, test := range []struct {
		name  string
		forge func(m *dns.Msg) // from the honest answer, with another address
	}{
		{"wrong id", func(m *dns.Msg) { m.Id ^= 1 }},
		{"wrong name in the question", func(m *dns.Msg) { m.Question[0].Name = "other.test." }},
		{"wrong type in the question", func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeTXT }},
		{"wrong class in the question", func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }},
		{"no question", func(m *dns.Msg) { m.Question = nil }},
		{"two questions", func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }},
		{"a question itself", func(m *dns.Msg) { m.Response = false }},
		{"another operation", func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }},
		{"wrong id and a failure", func(m *dns.Msg) { m.Id ^= 1; m.Rcode = dns.RcodeServerFailure; m.Answer = nil }},
		{"wrong id and NXDOMAIN", func(m *dns.Msg) { m.Id ^= 1; m.Rcode = dns.RcodeNameError; m.Answer = nil }},
		{"wrong id, truncated", func(m *dns.Msg) { m.Id ^= 1; m.Truncated = true; m.Answer = nil }},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := startServer(t, map[string][]string{
				"a.test. A": {"a.test. 60 IN A 93.184.216.34"}, "a.test. AAAA": {},
			})
			s.set(func(w dns.ResponseWriter, q *dns.Msg) {
				m := s.reply(q)
				m.Answer = []dns.RR{record("a.test. 60 IN A " + forged)}
				test.forge(m)
				w.WriteMsg(m)
				w.Write([]byte{1, 2, 3})                  // shorter than a header
				w.Write([]byte(strings.Repeat("x", 100))) // longer, and nothing
				w.WriteMsg(s.reply(q))
			})
			a, err := resolver(t, s).Lookup(t.Context(), "a.test")
			if err != nil || join(a.Addrs) != "93.184.216.34" {
				t.Errorf("got %s and error %v, expected the honest answer", join(a.Addrs), err)
			}
			if n := len(s.questions()); n != 2 {
				t.Errorf("%d questions, expected one for each family: %q", n, s.questions())
			}
		})
	}
}

func TestIDsAndPortsAreRandom(t *testing.T) {
	t.Parallel()
	zone := map[string][]string{}
	for i := range 50 {
		name := fmt.Sprintf("n%d.test.", i)
		zone[name+" A"], zone[name+" AAAA"] = []string{name + " 60 IN A 93.184.216.34"}, nil
	}
	s := startServer(t, zone)
	r := resolver(t, s)
	for i := range 50 {
		if _, err := r.Lookup(t.Context(), fmt.Sprintf("n%d.test", i)); err != nil {
			t.Fatal(err)
		}
	}
	ids, ports, steps := map[uint16]bool{}, map[string]bool{}, map[uint16]bool{}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, q := range s.asked {
		ids[q.id], ports[q.from] = true, true
		if i > 0 {
			steps[q.id-s.asked[i-1].id] = true
		}
	}
	// A hundred of 65 536: more than five twice is not chance.
	if len(ids) < 95 || len(steps) < 95 || len(ports) < 80 {
		t.Errorf("of %d questions: %d ids with %d steps between them, %d ports", len(s.asked), len(ids), len(steps), len(ports))
	}
}

func TestTheNextServerIsAskedWhenOneFails(t *testing.T) {
	t.Parallel()
	zone := map[string][]string{"a.test. A": {"a.test. 60 IN A 93.184.216.34"}, "a.test. AAAA": {}}
	for name, odd := range map[string]func(dns.ResponseWriter, *dns.Msg){
		"silent": func(dns.ResponseWriter, *dns.Msg) {},
		"fails":  func(w dns.ResponseWriter, q *dns.Msg) { w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bad, good := startServer(t, zone), startServer(t, zone)
			bad.set(odd)
			r := resolver(t, bad, good)
			if name == "silent" {
				r.rounds[0] = 500 * time.Millisecond
			}
			if _, err := r.Lookup(t.Context(), "a.test"); err != nil {
				t.Fatal(err)
			}
			before := len(bad.questions())
			if _, err := r.Lookup(t.Context(), "a.test"); err != nil {
				t.Fatal(err)
			}
			if n := len(bad.questions()); n != before {
				t.Errorf("the server that failed was asked first again: %q", bad.questions())
			}
			// The other fails now: then the first is good enough again.
			bad.set(nil)
			good.set(odd)
			if _, err := r.Lookup(t.Context(), "a.test"); err != nil {
				t.Error(err)
			}
		})
	}
}

// NXDOMAIN is an answer. Another server is not asked for a better one.
func TestNoSuchNameIsNotAskedOfTheNextServer(t *testing.T) {
	t.Parallel()
	first, next := startServer(t, nil), startServer(t, nil)
	lookupError(t, resolver(t, first, next), "nowhere.test")
	if n := len(next.questions()); n != 0 {
		t.Errorf("the next server was asked %d times", n)
	}
}

func TestAServerThatKnowsNoEDNSIsAskedWithout(t *testing.T) {
	t.Parallel()
	s := startServer(t, map[string][]string{"a.test. A": {"a.test. 60 IN A 93.184.216.34"}, "a.test. AAAA": {}})
	s.set(func(w dns.ResponseWriter, q *dns.Msg) {
		if q.IsEdns0() != nil {
			w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeFormatError))
			return
		}
		w.WriteMsg(s.reply(q))
	})
	if _, err := resolver(t, s).Lookup(t.Context(), "a.test"); err != nil {
		t.Error(err)
	}
}

// A firewall that swallows questions for AAAA must not cost every lookup its time.
func TestAFamilyThatDoesNotComeIsNotWaitedForLong(t *testing.T) {
	t.Parallel()
	zone := map[string][]string{
		"a.test. A":    {"a.test. 300 IN A 93.184.216.34"},
		"a.test. AAAA": {"a.test. 300 IN AAAA 2606:2800:220:1::1"},
	}
	for _, swallowed := range []uint16{dns.TypeA, dns.TypeAAAA} {
		t.Run(dns.TypeToString[swallowed], func(t *testing.T) {
			t.Parallel()
			s := startServer(t, zone)
			s.set(func(w dns.ResponseWriter, q *dns.Msg) {
				if q.Question[0].Qtype != swallowed {
					w.WriteMsg(s.reply(q))
				}
			})
			r := resolver(t, s)
			r.rounds, r.grace = []time.Duration{time.Minute}, familyGrace
			a, err := r.Lookup(t.Context(), "a.test")
			if err != nil || len(a.Addrs) != 1 || a.TTL != halfTTL {
				t.Errorf("got %v for %v and error %v, expected one address for %v", a.Addrs, a.TTL, err, halfTTL)
			}
		})
	}
}

// And one that is only slow, while the other has nothing, is waited for.
func TestASlowFamilyIsWaitedForWhenTheOtherHasNothing(t *testing.T) {
	t.Parallel()
	s := startServer(t, map[string][]string{"a.test. A": {}, "a.test. AAAA": {"a.test. 300 IN AAAA 2606:2800:220:1::1"}})
	empty := make(chan struct{})
	s.set(func(w dns.ResponseWriter, q *dns.Msg) {
		if q.Question[0].Qtype == dns.TypeAAAA {
			<-empty
			// The resolver's grace is over by then.
			time.AfterFunc(2*familyGrace, func() { w.WriteMsg(s.reply(q)) })
			return
		}
		w.WriteMsg(s.reply(q))
		close(empty)
	})
	r := resolver(t, s)
	r.grace = familyGrace
	if a, err := r.Lookup(t.Context(), "a.test"); err != nil || a.TTL != 300*second {
		t.Errorf("got %v for %v and error %v", a.Addrs, a.TTL, err)
	}
}

func TestALookupEndsWithItsContext(t *testing.T) {
	t.Parallel()
	s := startServer(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	s.set(func(dns.ResponseWriter, *dns.Msg) { cancel() })
	r := resolver(t, s)
	r.rounds = []time.Duration{time.Hour}
	if _, err := r.Lookup(ctx, "a.test"); err == nil {
		t.Error("got an answer")
	}
	// All slots are free again.
	if n := len(r.slots); n != 0 {
		t.Errorf("%d questions are still under way", n)
	}
}

// What a message would read otherwise than the policy did is not asked at all.
func TestNamesThatNeedEscapesAreNotAsked(t *testing.T) {
	t.Parallel()
	s := startServer(t, nil)
	r := resolver(t, s)
	for _, name := range []string{"", ".", "a.test.", `a\.b.test`, "a b.test", "A.test", "a..test", "münchen.test",
		"a\x00.test", strings.Repeat("a", 64) + ".test", strings.Repeat("a.", 130) + "test"} {
		if e := lookupError(t, r, name); !e.NotFound {
			t.Errorf("%q: got %+v, expected that there is no such name", name, e)
		}
	}
	if asked := s.questions(); len(asked) != 0 {
		t.Errorf("asked %q", asked)
	}
	if e := lookupError(t, r, "foo_bar.test"); !e.NotFound || s.count("foo_bar.test. A") != 2 {
		t.Errorf("an underscore: %+v, asked %q", e, s.questions())
	}
}

func TestSearchDomainsAreNeverTried(t *testing.T) {
	t.Parallel()
	s := startServer(t, nil)
	lookupError(t, resolver(t, s), "a")
	asked := s.questions()
	slices.Sort(asked)
	if !slices.Equal(asked, []string{"udp a. A", "udp a. AAAA"}) {
		t.Errorf("asked %q", asked)
	}
}
