package rig

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// Answer is what a DNS server says of a name. The zero value is NOERROR without an
// address.
type Answer struct {
	Addrs []string // IPv4 for A, everything else for AAAA; ::ffff:10.0.0.1 is an AAAA
	CNAME string   // a name that stands between
	TTL   uint32   // seconds
	RCode dnsmessage.RCode
}

// DNS is a name server on loopback, over UDP and TCP, that knows what it is told and
// remembers what it is asked.
type DNS struct {
	URL string // udp://127.0.0.1:port, for POSTERN_RESOLVER

	mu    sync.Mutex
	names map[string]*dnsName // guarded by mu; by name, lower case, without a dot at the end
	asked []string            // guarded by mu; "name TYPE" of every question
}

type dnsName struct {
	steps []Answer
	asked map[dnsmessage.Type]int
}

// ServeDNS starts a name server that knows no name.
func ServeDNS(t testing.TB) *DNS {
	t.Helper()
	d := &DNS{names: map[string]*dnsName{}}
	for range 10 {
		l := listen(t)
		conn, err := net.ListenPacket("udp", l.Addr().String())
		if err != nil {
			l.Close()
			continue
		}
		d.URL = "udp://" + l.Addr().String()
		var running sync.WaitGroup
		running.Go(func() { d.serveUDP(conn) })
		running.Go(func() { d.serveTCP(l, &running) })
		t.Cleanup(func() {
			conn.Close()
			l.Close()
			running.Wait()
		})
		return d
	}
	t.Fatal("no port is free for UDP and TCP")
	return nil
}

// Set says what a name leads to: the first question is answered by the first of
// steps, and so on; the last one stays. A and AAAA are counted apart.
func (d *DNS) Set(name string, steps ...Answer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.names[strings.ToLower(name)] = &dnsName{steps: steps, asked: map[dnsmessage.Type]int{}}
}

// Point is Set with addresses that hold for good.
func (d *DNS) Point(name string, addrs ...string) { d.Set(name, Answer{Addrs: addrs, TTL: 60}) }

// Mark is how many questions there were; for Asked.
func (d *DNS) Mark() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.asked)
}

// Asked lists the questions since mark, each "name TYPE".
func (d *DNS) Asked(mark int) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]string(nil), d.asked[mark:]...)
}

func (d *DNS) serveUDP(conn net.PacketConn) {
	buf := make([]byte, 4096)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		if out := d.answer(buf[:n]); out != nil {
			conn.WriteTo(out, from)
		}
	}
}

func (d *DNS) serveTCP(l net.Listener, running *sync.WaitGroup) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		running.Go(func() {
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(10 * time.Second))
			var size [2]byte
			for {
				if _, err := io.ReadFull(conn, size[:]); err != nil {
					return
				}
				question := make([]byte, binary.BigEndian.Uint16(size[:]))
				if _, err := io.ReadFull(conn, question); err != nil {
					return
				}
				out := d.answer(question)
				conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(out))), out...))
			}
		})
	}
}

// answer is nil for what is no question.
func (d *DNS) answer(question []byte) []byte {
	var p dnsmessage.Parser
	head, err := p.Start(question)
	if err != nil || head.Response {
		return nil
	}
	q, err := p.Question()
	if err != nil {
		return nil
	}
	name := strings.ToLower(strings.TrimSuffix(q.Name.String(), "."))
	step := d.step(name, q.Type)
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{
		ID: head.ID, Response: true, Authoritative: true, RecursionDesired: head.RecursionDesired,
		RecursionAvailable: true, RCode: step.RCode,
	})
	b.StartQuestions()
	b.Question(q)
	b.StartAnswers()
	step.write(&b, q)
	out, err := b.Finish()
	if err != nil {
		return nil
	}
	return out
}

// step takes down the question and says what is true of name now.
func (d *DNS) step(name string, kind dnsmessage.Type) Answer {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked = append(d.asked, name+" "+strings.TrimPrefix(kind.String(), "Type"))
	known := d.names[name]
	if known == nil {
		return Answer{RCode: dnsmessage.RCodeNameError}
	}
	n := known.asked[kind]
	known.asked[kind]++
	return known.steps[min(n, len(known.steps)-1)]
}

func (a Answer) write(b *dnsmessage.Builder, q dnsmessage.Question) {
	head := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: a.TTL}
	if a.CNAME != "" {
		target := dnsmessage.MustNewName(a.CNAME + ".")
		b.CNAMEResource(head, dnsmessage.CNAMEResource{CNAME: target})
		head.Name = target
	}
	for _, s := range a.Addrs {
		addr := netip.MustParseAddr(s)
		switch {
		case addr.Is4() && q.Type == dnsmessage.TypeA:
			b.AResource(head, dnsmessage.AResource{A: addr.As4()})
		case !addr.Is4() && q.Type == dnsmessage.TypeAAAA:
			b.AAAAResource(head, dnsmessage.AAAAResource{AAAA: addr.As16()})
		}
	}
}
