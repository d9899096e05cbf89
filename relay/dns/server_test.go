package dns

import (
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// nameServer is a recursive name server of the test's own, over UDP and TCP.
type nameServer struct {
	addr string // address:port of both

	mu    sync.Mutex
	asked []query // guarded by mu
	// Guarded by mu: what is answered. zone has the records in the answer of a question
	// ("www.example.test. A"), as in a zone file; a question that is not there gets
	// NXDOMAIN. instead of that, odd does whatever it likes when it is set.
	zone map[string][]string
	odd  func(w dns.ResponseWriter, q *dns.Msg)
}

// query is one question that came.
type query struct {
	network, question string
	id                uint16
	from              string
}

func startServer(t *testing.T, zone map[string][]string) *nameServer {
	t.Helper()
	s := &nameServer{zone: zone}
	packets, listener := listenBoth(t)
	s.addr = packets.LocalAddr().String()
	servers := []*dns.Server{{PacketConn: packets, Handler: s}, {Listener: listener, Handler: s}}
	for _, srv := range servers {
		started := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		done := make(chan error, 1)
		go func() { done <- srv.ActivateAndServe() }()
		<-started
		t.Cleanup(func() {
			srv.Shutdown()
			if err := <-done; err != nil {
				t.Errorf("name server: %v", err)
			}
		})
	}
	return s
}

// listenBoth finds a port that is free for UDP and TCP.
func listenBoth(t *testing.T) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 20 {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		packets, err := net.ListenPacket("udp", listener.Addr().String())
		if err == nil {
			return packets, listener
		}
		listener.Close()
	}
	t.Fatal("no port is free for both UDP and TCP")
	return nil, nil
}

func (s *nameServer) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	question := q.Question[0].Name + " " + dns.TypeToString[q.Question[0].Qtype]
	s.mu.Lock()
	s.asked = append(s.asked, query{w.RemoteAddr().Network(), question, q.Id, w.RemoteAddr().String()})
	odd := s.odd
	s.mu.Unlock()
	if odd != nil {
		odd(w, q)
		return
	}
	w.WriteMsg(s.reply(q))
}

// reply is the honest answer.
func (s *nameServer) reply(q *dns.Msg) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	m.RecursionAvailable = true
	s.mu.Lock()
	records, ok := s.zone[q.Question[0].Name+" "+dns.TypeToString[q.Question[0].Qtype]]
	s.mu.Unlock()
	if !ok {
		m.Rcode = dns.RcodeNameError
		m.Ns = append(m.Ns, record("test. 900 IN SOA ns.test. admin.test. 1 7200 3600 86400 3"))
	}
	for _, text := range records {
		m.Answer = append(m.Answer, record(text))
	}
	return m
}

func record(text string) dns.RR {
	rr, err := dns.NewRR(text)
	if err != nil {
		panic(err)
	}
	return rr
}

// questions returns what came so far, "udp www.example.test. A".
func (s *nameServer) questions() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []string
	for _, q := range s.asked {
		list = append(list, q.network+" "+q.question)
	}
	return list
}

func (s *nameServer) count(part string) int {
	n := 0
	for _, q := range s.questions() {
		if strings.Contains(q, part) {
			n++
		}
	}
	return n
}

// resolver asks the servers given. It has more patience than a real one, so that a busy
// machine is not taken for a silent server.
func resolver(t *testing.T, list ...*nameServer) *Resolver {
	t.Helper()
	var urls []string
	for _, s := range list {
		urls = append(urls, "udp://"+s.addr)
	}
	r, err := New(strings.Join(urls, ","))
	if err != nil {
		t.Fatal(err)
	}
	r.rounds, r.grace = []time.Duration{10 * time.Second, 10 * time.Second}, 10*time.Second
	return r
}
