package e2e

import (
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/posternhq/postern/e2e/rig"
)

// leastTTL is how long the relay keeps an answer at least, whatever that says.
const leastTTL = 5 * time.Second

// A name server that first names an address that is allowed and then one that is not:
// the address that was judged is the address that is dialed, every time.
func TestANameThatTurnsToAnotherAddressReachesNothingThere(t *testing.T) {
	t.Parallel()
	good, port := listenOn(t, "127.0.0.1:0", "good ")
	bad, _ := listenOn(t, "127.0.0.2:"+port, "bad ")
	const name, mixed, late = "rebind.shop.test", "mixed.shop.test", "late.shop.test"
	rule := `{host: "tcp://%s:` + port + `", optimistic: false}`
	s := newSite(t, loopbackManifest([]string{port}, map[string]string{
		"shop": fmt.Sprintf("{allow: ["+rule+", "+rule+", "+rule+"]}", name, mixed, late),
	}))
	s.dns.Set(name, rig.Answer{Addrs: []string{"127.0.0.1"}}, rig.Answer{Addrs: []string{"127.0.0.2"}})
	s.dns.Set(mixed, rig.Answer{Addrs: []string{"127.0.0.2", "127.0.0.1", "::ffff:127.0.0.2", "::1"}})
	s.dns.Set(late, rig.Answer{Addrs: []string{"127.0.0.2"}}, rig.Answer{Addrs: []string{"127.0.0.1"}})
	agent := s.agent(t, rig.AgentConfig{})

	for range 20 {
		conn, err := tunnelTo(agent.Proxy, name+":"+port, wait)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
	asked := s.dns.Asked(0)
	if want := []string{name + " A", name + " AAAA"}; !slices.Equal(slices.Sorted(slices.Values(asked)), want) {
		t.Errorf("20 calls within the least time to live asked %q", asked)
	}
	for range 5 {
		if conn, err := tunnelTo(agent.Proxy, mixed+":"+port, wait); err == nil {
			conn.Close() // the allowed one of several
		}
		_, err := tunnelTo(agent.Proxy, late+":"+port, wait)
		wantRefused(t, err, http.StatusForbidden, "prohibited")
	}
	<-time.After(leastTTL + 200*time.Millisecond)
	rig.Eventually(t, 2*leastTTL, "the second answer to come to be used", func() error {
		conn, err := tunnelTo(agent.Proxy, name+":"+port, wait)
		if err == nil {
			conn.Close()
			return fmt.Errorf("still the first")
		}
		wantRefused(t, err, http.StatusForbidden, "prohibited")
		return nil
	})
	if n := bad.Load(); n > 0 {
		t.Errorf("%d connections reached the address that is not allowed", n)
	}
	if good.Load() < 20 {
		t.Errorf("%d connections reached the address that is allowed", good.Load())
	}
	s.checkCounts(t, 0)
}

// listenOn counts the connections to an address of its own, and returns the port.
func listenOn(t testing.TB, addr, greeting string) (*atomic.Int64, string) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Skipf("no %s here: %v", addr, err)
	}
	n := new(atomic.Int64)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			n.Add(1)
			conn.Write([]byte(greeting))
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return n, portOf(l.Addr().String())
}
