package e2e

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/e2e/rig"
)

// wayOut is a client of the agent's proxy, below what client libraries let one do.
type wayOut struct {
	net.Conn
	r *bufio.Reader
}

// callProxy connects to the proxy at addr; everything must be over within limit.
func callProxy(addr string, limit time.Duration) (*wayOut, error) {
	conn, err := net.DialTimeout("tcp", addr, limit)
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(limit))
	return &wayOut{conn, bufio.NewReader(conn)}, nil
}

// Read implements io.Reader behind an answer's head.
func (c *wayOut) Read(p []byte) (int, error) { return c.r.Read(p) }

// answer reads an answer's head and, unless it opens a tunnel, its body.
func (c *wayOut) answer(method string) (*http.Response, string, error) {
	resp, err := http.ReadResponse(c.r, &http.Request{Method: method})
	if err != nil {
		return nil, "", err
	}
	if resp.StatusCode == http.StatusSwitchingProtocols || method == http.MethodConnect && resp.StatusCode == http.StatusOK {
		return resp, "", nil
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	return resp, string(body), err
}

// refused is a tunnel that was not given.
type refused struct {
	Status int
	Header http.Header
	Body   string
}

func (r *refused) Error() string {
	return fmt.Sprintf("status %d, Proxy-Status %q, body %.300s", r.Status, r.Header.Get("Proxy-Status"), r.Body)
}

// tunnelTo opens a tunnel to target through the proxy at addr; the error is a
// *refused when the proxy says no.
func tunnelTo(addr, target string, limit time.Duration) (*wayOut, error) {
	c, err := callProxy(addr, limit)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, target)
	resp, body, err := c.answer(http.MethodConnect)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = &refused{resp.StatusCode, resp.Header, body}
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// wantRefused fails the test unless err is a refusal with this status and this in its
// Proxy-Status or body.
func wantRefused(t testing.TB, err error, status int, word string) *refused {
	t.Helper()
	var r *refused
	if !errors.As(err, &r) {
		t.Fatalf("not refused, but %v", err)
	}
	if r.Status != status || !strings.Contains(r.Header.Get("Proxy-Status")+r.Body, word) {
		t.Errorf("%v, want %d and %q", r, status, word)
	}
	return r
}

// socksReply is what a SOCKS5 server said: of the methods when that was no, else of
// the request.
type socksReply struct {
	Method byte
	Rep    byte
	Asked  bool // the request was answered, with Rep
}

// socksTo does the handshake and asks for a tunnel: request is everything behind the
// version.
func (c *wayOut) socksTo(methods, request []byte) (socksReply, error) {
	c.Write(append([]byte{5, byte(len(methods))}, methods...))
	var chosen [2]byte
	if _, err := io.ReadFull(c.r, chosen[:]); err != nil {
		return socksReply{}, err
	}
	if chosen[1] == 0xff {
		return socksReply{Method: 0xff}, nil
	}
	c.Write(append([]byte{5}, request...))
	var head [4]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return socksReply{Method: chosen[1]}, err
	}
	rest := map[byte]int{1: 4, 4: 16}[head[3]]
	if head[3] == 3 {
		n, err := c.r.ReadByte()
		if err != nil {
			return socksReply{}, err
		}
		rest = int(n)
	}
	_, err := io.CopyN(io.Discard, c.r, int64(rest)+2)
	return socksReply{chosen[1], head[1], true}, err
}

// socksRequest is a request's bytes behind the version.
func socksRequest(cmd byte, atyp, addr string, port uint16) ([]byte, error) {
	out := []byte{cmd, 0}
	switch atyp {
	case "domain":
		out = append(append(out, 3, byte(len(addr))), addr...)
	case "ipv4", "ipv6":
		ip := net.ParseIP(addr)
		if ip == nil {
			return nil, fmt.Errorf("no address: %s", addr)
		}
		if four := ip.To4(); atyp == "ipv4" {
			out = append(append(out, 1), four...)
		} else {
			out = append(append(out, 4), ip.To16()...)
		}
	default:
		return nil, fmt.Errorf("no address type %s", atyp)
	}
	return binary.BigEndian.AppendUint16(out, port), nil
}

// echoed sends text and waits for the same.
func (c *wayOut) echoed(text string) error {
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	got := make([]byte, len(text))
	n, err := io.ReadFull(c, got)
	if err != nil {
		return fmt.Errorf("after %q: %w", got[:n], err)
	}
	if !bytes.Equal(got, []byte(text)) {
		return fmt.Errorf("got %q back", got)
	}
	return nil
}

// egressAgent is an agent without a child whose proxy a test speaks to itself.
type egressAgent struct {
	*rig.Agent
	Proxy string
}

// startEgressAgent starts postern agent with its proxy on a port of the test's.
func startEgressAgent(t testing.TB, r *rig.Relay, cfg rig.AgentConfig) egressAgent {
	t.Helper()
	proxy := rig.FreeAddr(t)
	cfg.Flags = append(cfg.Flags[:len(cfg.Flags):len(cfg.Flags)], "--egress-listen", proxy)
	return egressAgent{r.StartAgent("127.0.0.1:9", cfg), proxy}
}

// egressEnv is the environment of relays in these tests: their own name server, and
// an address of their own that nobody has.
func egressEnv(d *rig.DNS) []string {
	return []string{"POSTERN_RESOLVER=" + d.URL, "POSTERN_EGRESS_ADDRESSES=203.0.113.9"}
}

// loopbackManifest lets apps call ports on loopback; the rest are lines of
// apps.<app>.egress, in YAML's flow style.
func loopbackManifest(ports []string, apps map[string]string) string {
	var b strings.Builder
	b.WriteString("version: 1\napps:\n")
	for app, egress := range apps {
		fmt.Fprintf(&b, "  %s:\n    egress: %s\n", app, egress)
	}
	fmt.Fprintf(&b, "egress:\n  allow_ranges: [{range: 127.0.0.1/32, ports: [%s], reason: the destinations of this test}]\n", strings.Join(ports, ", "))
	return b.String()
}

// echo serves a destination that sends back what it gets, and its end.
func echo(conn net.Conn) {
	io.Copy(conn, conn)
	conn.(*net.TCPConn).CloseWrite()
}
