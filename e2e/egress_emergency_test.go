package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/e2e/rig"
	"github.com/posternhq/postern/protocol/api"
)

const (
	streamName = "stream.shop.test"
	otherName  = "other.shop.test"
)

// streamSite has destinations that send without end: one in a tunnel, one in an HTTP
// answer; and the number of connections that the second one holds.
type streamSite struct {
	*site
	agent       egressAgent
	tcp, http   string // ports
	connections func() int64
}

func newStreamSite(t testing.TB) *streamSite {
	t.Helper()
	raw := portOf(rig.ServeRaw(t, func(conn net.Conn) {
		for {
			if _, err := conn.Write([]byte("more and more ")); err != nil {
				return
			}
			<-time.After(5 * time.Millisecond)
		}
	}))
	open := newConnCount(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/stream" {
			io.WriteString(w, "short")
			return
		}
		for r.Context().Err() == nil {
			io.WriteString(w, "more and more ")
			w.(http.Flusher).Flush()
			<-time.After(5 * time.Millisecond)
		}
	}))
	clear := portOf(open.addr)
	s := &streamSite{tcp: raw, http: clear, connections: open.live}
	s.site = newSite(t, loopbackManifest([]string{raw, clear}, map[string]string{
		"shop": fmt.Sprintf(`{allow: ["tcp://%s:%s", "http://%s:%s", "http://%s:%s"]}`,
			streamName, raw, streamName, clear, otherName, clear),
	}), streamName, otherName)
	s.agent = s.site.agent(t, rig.AgentConfig{})
	return s
}

// transfer is a download that goes on until somebody ends it.
type transfer struct {
	kind  string
	ended chan error
}

// downloads starts one through a tunnel and one as a request, and waits until bytes
// come.
func (s *streamSite) downloads(t testing.TB) []transfer {
	t.Helper()
	tunnel, err := tunnelTo(s.agent.Proxy, streamName+":"+s.tcp, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tunnel.Close() })
	request, err := callProxy(s.agent.Proxy, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { request.Close() })
	fmt.Fprintf(request, "GET http://%s:%s/stream HTTP/1.1\r\nHost: x\r\n\r\n", streamName, s.http)
	resp, err := http.ReadResponse(request.r, nil)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%v, %v", resp, err)
	}
	return []transfer{watch(t, "tunnel", tunnel), watch(t, "request", resp.Body)}
}

// watch reads r to its end, once some bytes have come.
func watch(t testing.TB, kind string, r io.Reader) transfer {
	t.Helper()
	if _, err := io.CopyN(io.Discard, r, 28); err != nil {
		t.Fatalf("%s: %v", kind, err)
	}
	d := transfer{kind, make(chan error, 1)}
	go func() {
		_, err := io.Copy(io.Discard, r)
		d.ended <- err
	}()
	return d
}

// Whatever an operator denies in an emergency ends within a second, and does not begin
// again until the deny is over.
func TestAnEmergencyDenyCutsARunningDownload(t *testing.T) {
	t.Parallel()
	s := newStreamSite(t)
	for _, what := range []string{streamName, "127.0.0.0/30", "app:shop"} {
		t.Run(what, func(t *testing.T) {
			running := s.downloads(t)
			s.short(t, otherName) // leaves a connection in the relay's pool
			before := time.Now()
			out := rig.Postern(t, s.adminEnv(), "egress", "deny", what, "--for", "1h", "--reason", "the key has leaked", "--json")
			if out.Code != 0 {
				t.Fatalf("deny: %s%s", out.Stdout, out.Stderr)
			}
			order := s.order(t, what)
			for _, d := range running {
				err := rig.Receive(t, wait, "the end of the "+d.kind, d.ended)
				if took := time.Since(order.CreatedAt); took > time.Second {
					t.Errorf("the %s ended %v after the order", d.kind, took)
				}
				if err == nil {
					t.Errorf("the %s seems to have ended as it should", d.kind)
				}
			}
			t.Logf("ended %v after the command was given", time.Since(before).Round(time.Millisecond))
			s.wantDenied(t, what)
			if what != streamName {
				rig.Eventually(t, wait, "an empty pool", func() error {
					if n := s.connections(); n > 0 {
						return fmt.Errorf("%d connections to the destination are open", n)
					}
					return nil
				})
			} else {
				s.short(t, otherName) // which nobody has denied
			}
			if list := rig.Postern(t, s.adminEnv(), "egress", "deny", "--list"); !strings.Contains(list.Stdout, order.ID) || !strings.Contains(list.Stdout, "the key has leaked") {
				t.Errorf("the list is %q", list.Stdout)
			}
			if out := rig.Postern(t, s.adminEnv(), "egress", "deny", "--end", order.ID); out.Code != 0 {
				t.Fatalf("end: %s%s", out.Stdout, out.Stderr)
			}
			rig.Eventually(t, 2*time.Second, "calls after the end of the deny", func() error {
				conn, err := tunnelTo(s.agent.Proxy, streamName+":"+s.tcp, wait)
				if err == nil {
					conn.Close()
				}
				return err
			})
		})
	}
	var audit api.AuditList
	if err := s.Get(s.operator, "/api/v1/audit", &audit); err != nil {
		t.Fatal(err)
	}
	denies := 0
	for _, e := range audit.Entries {
		if e.Action == "egress.deny" {
			denies++
		}
	}
	if denies != 3 {
		t.Errorf("the audit has %d emergency denies: %+v", denies, audit.Entries)
	}
	s.checkCounts(t, 0)
}

// wantDenied fails the test if a new call gets through. One that is denied for its
// address may be told after it was told that it is connected: the agent knows none.
func (s *streamSite) wantDenied(t testing.TB, what string) {
	t.Helper()
	conn, err := tunnelTo(s.agent.Proxy, streamName+":"+s.tcp, wait)
	if err != nil || !strings.Contains(what, "/") {
		wantRefused(t, err, http.StatusForbidden, "emergency")
	} else {
		defer conn.Close()
		if n, err := conn.Read(make([]byte, 1)); n > 0 || isTimeout(err) {
			t.Errorf("a new tunnel brings %d bytes, %v", n, err)
		}
	}
	resp, body, err := getThrough(s.agent.Proxy, "http://"+streamName+":"+s.http+"/short")
	if err != nil || resp.StatusCode != http.StatusForbidden || !strings.Contains(body, "emergency_deny") {
		t.Errorf("a new request sees %v, %q, %v", resp, body, err)
	}
}

func (s *site) adminEnv() []string {
	return []string{"POSTERN_RELAY=" + s.URL, "POSTERN_TOKEN=" + s.operator}
}

// order finds the live order for what.
func (s *site) order(t testing.TB, what string) api.Order {
	t.Helper()
	var list api.OrderList
	if err := s.Get(s.operator, "/api/v1/egress/orders", &list); err != nil {
		t.Fatal(err)
	}
	for _, o := range list.Orders {
		if o.What == what && o.Live {
			return o
		}
	}
	t.Fatalf("no order for %s in %+v", what, list.Orders)
	return api.Order{}
}

// short does a request whose answer ends.
func (s *streamSite) short(t testing.TB, name string) {
	t.Helper()
	resp, body, err := getThrough(s.agent.Proxy, "http://"+name+":"+s.http+"/short")
	if err != nil || resp.StatusCode != http.StatusOK || body != "short" {
		t.Errorf("%v, %q, %v", resp, body, err)
	}
}

// getThrough is one GET in absolute form over a connection of its own.
func getThrough(proxy, url string) (*http.Response, string, error) {
	conn, err := callProxy(proxy, wait)
	if err != nil {
		return nil, "", err
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", url)
	resp, body, err := conn.answer(http.MethodGet)
	if err != nil && errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return resp, body, err
}
