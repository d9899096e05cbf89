package outbound

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// nameServer answers questions over UDP, by hand. relay/dns has the tests with all the
// ways in which real ones answer.
type nameServer struct {
	conn  net.PacketConn
	rcode byte
	four  []byte // addresses of every name
	six   []byte

	mu    sync.Mutex
	asked map[string]bool // guarded by mu; names with a dot behind every label
}

func startNameServer(t *testing.T, s *nameServer) *net.Resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.conn, s.asked = conn, map[string]bool{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.serve()
	}()
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

func (s *nameServer) serve() {
	packet := make([]byte, 4096)
	for {
		_, from, err := s.conn.ReadFrom(packet)
		if err != nil {
			return
		}
		name, end := "", 12
		for packet[end] != 0 {
			name += string(packet[end+1:end+1+int(packet[end])]) + "."
			end += 1 + int(packet[end])
		}
		end += 5
		s.mu.Lock()
		s.asked[name] = true
		s.mu.Unlock()
		data := s.four
		if kind := binary.BigEndian.Uint16(packet[end-4:]); kind == 28 {
			data = s.six
		}
		answer := append([]byte{packet[0], packet[1], 0x81, 0x80 | s.rcode, 0, 1, 0, 0, 0, 0, 0, 0}, packet[12:end]...)
		if data != nil && s.rcode == 0 {
			answer[7] = 1
			answer = append(answer, 0xc0, 12, packet[end-4], packet[end-3], 0, 1, 0, 0, 0, 60, 0, byte(len(data)))
			answer = append(answer, data...)
		}
		s.conn.WriteTo(answer, from)
	}
}

func TestTheSystemsResolver(t *testing.T) {
	t.Parallel()
	s := &nameServer{four: []byte{93, 184, 216, 34}, six: net.ParseIP("2606:2800:220:1::1")}
	r := system{resolver: startNameServer(t, s)}
	a, err := r.Lookup(t.Context(), "api.postern-test.example")
	if err != nil || len(a.Addrs) != 2 || a.TTL != 30*time.Second {
		t.Fatalf("got %+v and error %v", a, err)
	}
	for _, addr := range a.Addrs {
		if addr.Is4In6() || addr.String() != four1 && addr.String() != six1 {
			t.Errorf("address %v", addr)
		}
	}

	nowhere := system{resolver: startNameServer(t, &nameServer{rcode: 3})}
	var failed *LookupError
	if _, err := nowhere.Lookup(t.Context(), "gone.postern-test.example"); !errors.As(err, &failed) || !failed.NotFound {
		t.Errorf("NXDOMAIN: error %v", err)
	}
	empty := &nameServer{}
	if _, err := (system{resolver: startNameServer(t, empty)}).Lookup(t.Context(), "a"); !errors.As(err, &failed) || !failed.NotFound {
		t.Errorf("without addresses: error %v", err)
	}
	empty.mu.Lock()
	defer empty.mu.Unlock()
	if len(empty.asked) != 1 || !empty.asked["a."] {
		t.Errorf("asked %v, expected that search domains are not tried", empty.asked)
	}
	broken := system{resolver: startNameServer(t, &nameServer{rcode: 2})}
	if _, err := broken.Lookup(t.Context(), "a.postern-test.example"); !errors.As(err, &failed) || failed.NotFound {
		t.Errorf("SERVFAIL: error %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Lookup(ctx, "a.postern-test.example"); !errors.As(err, &failed) || failed.NotFound {
		t.Errorf("with a context that has ended: error %v", err)
	}
}

func TestALookupErrorSaysWhatHappened(t *testing.T) {
	t.Parallel()
	for words, e := range map[string]*LookupError{
		"look up a.example: no such name":                    {Name: "a.example", NotFound: true},
		"look up a.example: the name has no address":         {Name: "a.example", NotFound: true, Err: ErrNoAddress},
		"look up a.example: no name server answered in time": {Name: "a.example", Timeout: true},
		"look up a.example: the name servers failed":         {Name: "a.example"},
		"look up a.example: no such host":                    systemError("a.example", errors.New("no such host")),
		"look up b.example: server misbehaving":              systemError("b.example", &net.DNSError{Err: "server misbehaving", Name: "b.example.", Server: "192.0.2.1:53"}),
		"look up c.example: no name server answered in time": systemError("c.example", &net.DNSError{Err: "i/o timeout", IsTimeout: true}),
		"look up d.example: no name server answered in time": systemError("d.example", context.DeadlineExceeded),
		"look up e.example: no such name":                    systemError("e.example", &net.DNSError{Err: "no such host", IsNotFound: true}),
	} {
		if e.Error() != words || strings.Contains(e.Error(), "<nil>") {
			t.Errorf("got %q, expected %q", e, words)
		}
	}
}
