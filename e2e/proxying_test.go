package e2e

import (
	"bufio"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/posternhq/postern/e2e/rig"
)

// relayName is a name that only the proxies can resolve. It is not loopback,
// because that would be reached without any proxy.
const relayName = "relay.test"

// connectProxy is an HTTP proxy that knows CONNECT and nothing else. It takes
// user and password when both are set.
type connectProxy struct {
	relay          string // where relayName is
	user, password string
	asked          atomic.Int64 // tunnels it made
	refused        atomic.Int64 // requests without the right password
	other          atomic.Int64 // requests that were not CONNECT to the relay
}

func (p *connectProxy) serve(conn net.Conn) {
	in := bufio.NewReader(conn)
	req, err := http.ReadRequest(in)
	if err != nil {
		return
	}
	host, _, _ := net.SplitHostPort(req.Host)
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte(p.user+":"+p.password))
	switch {
	case req.Method != http.MethodConnect || host != relayName:
		p.other.Add(1)
		io.WriteString(conn, "HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n")
	case p.user != "" && req.Header.Get("Proxy-Authorization") != want:
		p.refused.Add(1)
		io.WriteString(conn, "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n")
	default:
		p.asked.Add(1)
		io.WriteString(conn, "HTTP/1.1 200 Connection established\r\n\r\n")
		join(conn, in, p.relay)
	}
}

// join carries bytes between conn and target until both directions have ended.
func join(conn net.Conn, in io.Reader, target string) {
	up, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer up.Close()
	back := make(chan struct{})
	go func() {
		defer close(back)
		io.Copy(conn, up)
		conn.Close()
	}()
	io.Copy(up, in)
	up.Close()
	<-back
}

// socksProxy speaks as much of SOCKS 5 as an agent needs (RFC 1928, RFC 1929).
type socksProxy struct {
	relay          string
	user, password string
	asked          atomic.Int64
	refused        atomic.Int64
	other          atomic.Int64 // requests for something else than the relay's name
}

func (p *socksProxy) serve(conn net.Conn) {
	in := bufio.NewReader(conn)
	if err := p.greet(conn, in); err != nil {
		return
	}
	head := make([]byte, 5) // version, command, reserved, address type, length of the name
	if _, err := io.ReadFull(in, head); err != nil {
		return
	}
	name := make([]byte, int(head[4])+2) // and the port
	if _, err := io.ReadFull(in, name); err != nil {
		return
	}
	if head[1] != 1 || head[3] != 3 || string(name[:len(name)-2]) != relayName {
		p.other.Add(1) // not CONNECT, or an address that the agent resolved itself
		conn.Write([]byte{5, 2, 0, 1, 0, 0, 0, 0, 0, 0})
		return
	}
	p.asked.Add(1)
	conn.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
	join(conn, in, p.relay)
}

var errAuth = errors.New("no acceptable method, or a wrong password")

func (p *socksProxy) greet(conn net.Conn, in *bufio.Reader) error {
	head := make([]byte, 2)
	if _, err := io.ReadFull(in, head); err != nil {
		return err
	}
	methods := make([]byte, head[1])
	if _, err := io.ReadFull(in, methods); err != nil {
		return err
	}
	if p.user == "" {
		_, err := conn.Write([]byte{5, 0})
		return err
	}
	if !strings.ContainsRune(string(methods), 2) {
		p.refused.Add(1)
		conn.Write([]byte{5, 0xff})
		return errAuth
	}
	conn.Write([]byte{5, 2})
	var words [2]string
	in.Discard(1) // the version of the subnegotiation
	for i := range words {
		n, err := in.ReadByte()
		if err != nil {
			return err
		}
		word := make([]byte, n)
		if _, err := io.ReadFull(in, word); err != nil {
			return err
		}
		words[i] = string(word)
	}
	if words[0] != p.user || words[1] != p.password {
		p.refused.Add(1)
		conn.Write([]byte{1, 1})
		return errAuth
	}
	_, err := conn.Write([]byte{1, 0})
	return err
}

// proxied is what the two proxies have in common for a test.
type proxied struct {
	addr                  string
	asked, refused, other *atomic.Int64
}

func startConnectProxy(t *testing.T, r *rig.Relay, user, password string) proxied {
	p := &connectProxy{relay: r.Addr, user: user, password: password}
	return proxied{rig.ServeRaw(t, p.serve), &p.asked, &p.refused, &p.other}
}

func startSOCKSProxy(t *testing.T, r *rig.Relay, user, password string) proxied {
	p := &socksProxy{relay: r.Addr, user: user, password: password}
	return proxied{rig.ServeRaw(t, p.serve), &p.asked, &p.refused, &p.other}
}

func TestAnAgentReachesItsRelayThroughAProxy(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		start          func(t *testing.T, r *rig.Relay, user, password string) proxied
		env            string // %s is the proxy's address
		user, password string
	}{
		"CONNECT, by HTTP_PROXY":              {startConnectProxy, "HTTP_PROXY=http://%s", "", ""},
		"CONNECT, by http_proxy, bare":        {startConnectProxy, "http_proxy=%s", "", ""},
		"CONNECT, by ALL_PROXY":               {startConnectProxy, "ALL_PROXY=http://%s", "", ""},
		"CONNECT with a password":             {startConnectProxy, "HTTP_PROXY=http://ann:s%%40crt@%s", "ann", "s@crt"},
		"SOCKS, by ALL_PROXY":                 {startSOCKSProxy, "ALL_PROXY=socks5://%s", "", ""},
		"SOCKS, by all_proxy, names resolved": {startSOCKSProxy, "all_proxy=socks5h://%s", "", ""},
		"SOCKS, by HTTP_PROXY":                {startSOCKSProxy, "HTTP_PROXY=socks5://%s", "", ""},
		"SOCKS with a password":               {startSOCKSProxy, "ALL_PROXY=socks5://ann:s%%40crt@%s", "ann", "s@crt"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := rig.StartRelay(t, rig.RelayConfig{})
			proxy := test.start(t, r, test.user, test.password)
			agent := r.StartAgent(rig.Serve(t, http.HandlerFunc(serveMirror)), rig.AgentConfig{
				URL: "http://" + net.JoinHostPort(relayName, r.Port),
				Env: []string{fmt.Sprintf(test.env, proxy.addr)},
			})
			if got := look(t, r.Client(), newRequest(t, http.MethodPost, r.AppURL("shop", "/x"), strings.NewReader("hello"))); got.Body != "hello" {
				t.Errorf("the app got %q", got.Body)
			}
			if n := proxy.asked.Load(); n != int64(agent.Tunnels) {
				t.Errorf("%d tunnels went through the proxy, expected %d", n, agent.Tunnels)
			}
			if n := proxy.refused.Load() + proxy.other.Load(); n > 0 {
				t.Errorf("the proxy was asked for %d other things", n)
			}
			if agent.Stop() != 0 || strings.Contains(agent.Log.String(), "s@crt") || strings.Contains(agent.Log.String(), "s%40crt") {
				t.Error("the agent failed at the end, or its log has the proxy's password")
			}
		})
	}
}

func TestAProxyThatRefusesIsSaidAndTriedAgain(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		start func(t *testing.T, r *rig.Relay, user, password string) proxied
		env   string
		says  string
	}{
		"CONNECT": {startConnectProxy, "HTTP_PROXY=http://ann:wr0ng@%s", "407"},
		"SOCKS":   {startSOCKSProxy, "ALL_PROXY=socks5://ann:wr0ng@%s", "proxy"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := rig.StartRelay(t, rig.RelayConfig{})
			proxy := test.start(t, r, "ann", "s@crt")
			agent := r.StartAgent(rig.FreeAddr(t), rig.AgentConfig{
				URL: "http://" + net.JoinHostPort(relayName, r.Port), Tunnels: 1, NoWait: true,
				Env: []string{fmt.Sprintf(test.env, proxy.addr)},
			})
			rig.Eventually(t, soon, "further attempts", func() error {
				if n := proxy.refused.Load(); n < 3 {
					return fmt.Errorf("%d attempts so far", n)
				}
				return nil
			})
			agent.Log.Wait(t, soon, 0, 1, "relay not reached", test.says)
			if !agent.Running() || strings.Contains(agent.Log.String(), "wr0ng") {
				t.Error("the agent has ended, or its log has the proxy's password")
			}
		})
	}
}

func TestALoopbackRelayAndNO_PROXYAreReachedDirectly(t *testing.T) {
	t.Parallel()
	r := rig.StartRelay(t, rig.RelayConfig{})
	var asked atomic.Int64
	proxy := rig.ServeRaw(t, func(net.Conn) { asked.Add(1) })
	app := rig.Serve(t, http.HandlerFunc(serveMirror))
	r.StartAgent(app, rig.AgentConfig{Env: []string{"HTTP_PROXY=http://" + proxy, "ALL_PROXY=socks5://" + proxy}})
	r.StartAgent(app, rig.AgentConfig{
		URL: "http://" + net.JoinHostPort("localhost", r.Port),
		Env: []string{"HTTP_PROXY=http://" + proxy, "NO_PROXY=localhost,.internal"},
	})
	look(t, r.Client(), newRequest(t, http.MethodGet, r.AppURL("shop", "/"), nil))
	if n := asked.Load(); n > 0 {
		t.Errorf("the proxy was asked %d times", n)
	}
}
