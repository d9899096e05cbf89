package protocol_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/protocol"
)

// testProxy is an HTTP CONNECT or SOCKS5 proxy on loopback that carries every
// connection to one address, whatever name it is asked for.
type testProxy struct {
	net.Listener
	to       string
	user     string      // "name:password", "" asks for none
	answer   string      // in place of 200, and no tunnel
	hang     bool        // says nothing at all
	asked    chan string // what the agent wanted to be connected to
	finished chan struct{}
}

// startProxy runs p with serve until the test ends.
func startProxy(t *testing.T, p *testProxy, secure bool, serve func(*testProxy, net.Conn) bool) *testProxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if secure {
		l = tls.NewListener(l, serverTLS(t))
	}
	p.Listener, p.asked, p.finished = l, make(chan string, 4), make(chan struct{})
	t.Cleanup(func() { close(p.finished); l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go p.handle(c, serve)
		}
	}()
	return p
}

func (p *testProxy) handle(c net.Conn, serve func(*testProxy, net.Conn) bool) {
	defer c.Close()
	if p.hang {
		<-p.finished
		return
	}
	if !serve(p, c) {
		return
	}
	far, err := net.Dial("tcp", p.to)
	if err != nil {
		return
	}
	defer far.Close()
	go io.Copy(far, c)
	io.Copy(c, far)
}

func serveCONNECT(p *testProxy, c net.Conn) bool {
	req, err := http.ReadRequest(bufio.NewReader(c))
	if err != nil || req.Method != http.MethodConnect {
		io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
		return false
	}
	p.asked <- req.RequestURI
	want := ""
	if p.user != "" {
		want = "Basic " + base64.StdEncoding.EncodeToString([]byte(p.user))
	}
	switch {
	case req.Header.Get("Authorization") != "":
		io.WriteString(c, "HTTP/1.1 400 the token is not for the proxy\r\n\r\n")
	case req.Header.Get("Proxy-Authorization") != want:
		io.WriteString(c, "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
	case p.answer != "":
		io.WriteString(c, p.answer)
	default:
		io.WriteString(c, "HTTP/1.1 200 Connection established\r\n\r\n")
		return true
	}
	return false
}

// serveSOCKS is RFC 1928 with the password of RFC 1929.
func serveSOCKS(p *testProxy, c net.Conn) bool {
	methods := readN(c, int(readN(c, 2)[1]))
	if p.user == "" {
		c.Write([]byte{5, 0})
	} else {
		if !bytes.Contains(methods, []byte{2}) {
			c.Write([]byte{5, 0xff})
			return false
		}
		c.Write([]byte{5, 2})
		readN(c, 1)
		user := string(readN(c, int(readN(c, 1)[0])))
		password := string(readN(c, int(readN(c, 1)[0])))
		if user+":"+password != p.user {
			c.Write([]byte{1, 1})
			return false
		}
		c.Write([]byte{1, 0})
	}
	request := readN(c, 4)
	var host string
	switch request[3] {
	case 1:
		host = "address " + net.IP(readN(c, 4)).String()
	case 3:
		host = "name " + string(readN(c, int(readN(c, 1)[0])))
	}
	port := binary.BigEndian.Uint16(readN(c, 2))
	p.asked <- fmt.Sprintf("%s:%d", host, port)
	c.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
	return true
}

// readN reads n bytes; after an error they are zeros, which no peer expects.
func readN(r io.Reader, n int) []byte {
	buf := make([]byte, n)
	io.ReadFull(r, buf)
	return buf
}

func env(pairs ...string) func(string) string {
	return func(name string) string {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1]
			}
		}
		return ""
	}
}

func TestAgentReachesTheRelayThroughEachKindOfProxy(t *testing.T) {
	for name, test := range map[string]struct {
		scheme, user string
		variable     string
		secureRelay  bool
		want         string // what the proxy is asked for, the port left out
	}{
		"http":                         {"http", "", "HTTP_PROXY", false, "relay.test"},
		"http, TLS inside":             {"http", "", "HTTPS_PROXY", true, "relay.test"},
		"http with password":           {"http", "joe:p@ss word", "http_proxy", false, "relay.test"},
		"https":                        {"https", "", "https_proxy", true, "relay.test"},
		"https with password":          {"https", "joe:geheim", "HTTP_PROXY", false, "relay.test"},
		"socks5 is given the name":     {"socks5", "", "HTTP_PROXY", false, "name relay.test"},
		"socks5h with password":        {"socks5h", "joe:geheim", "HTTPS_PROXY", true, "name relay.test"},
		"ALL_PROXY when nothing else":  {"socks5", "", "ALL_PROXY", true, "name relay.test"},
		"all_proxy for plain http too": {"http", "", "all_proxy", false, "relay.test"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			relay := newRelay(t, test.secureRelay, protocol.AcceptConfig{})
			serve := serveCONNECT
			if strings.HasPrefix(test.scheme, "socks") {
				serve = serveSOCKS
			}
			p := startProxy(t, &testProxy{to: relay.Listener.Addr().String(), user: test.user}, test.scheme == "https", serve)
			via := url.URL{Scheme: test.scheme, Host: p.Addr().String()}
			if user, password, ok := strings.Cut(test.user, ":"); ok {
				via.User = url.UserPassword(user, password)
			}
			agent, err := protocol.Dial(t.Context(), protocol.DialConfig{
				URL: relay.named(), Token: "token", Hello: testHello(),
				Env: env(test.variable, via.String()), TLS: &tls.Config{RootCAs: testCA.pool},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer agent.Close(protocol.CodeShutdown, "")
			asked := receive(t, p.asked, "question to the proxy")
			if host, _, _ := strings.Cut(asked, ":"); host != test.want {
				t.Errorf("the proxy was asked for %q, expected %q", asked, test.want)
			}
			run(t, agent, relay.next(t), protocol.Handler{Stream: echo})
		})
	}
}

func TestProxyThatDoesNotHelpIsNamedWithoutItsPassword(t *testing.T) {
	const password = "geheim-77"
	for name, test := range map[string]struct {
		proxy testProxy
		serve func(*testProxy, net.Conn) bool
		via   string // scheme and user
		want  string
	}{
		"wrong password": {testProxy{user: "joe:other"}, serveCONNECT, "http://joe:" + password, "407"},
		"no password":    {testProxy{user: "joe:other"}, serveCONNECT, "http://", "407"},
		"bad gateway": {testProxy{user: "joe:" + password, answer: "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\nnope"},
			serveCONNECT, "http://joe:" + password, "502 Bad Gateway"},
		"talks before the tunnel": {testProxy{answer: "HTTP/1.1 200 OK\r\n\r\nhello"}, serveCONNECT, "http://", "before the tunnel began"},
		"is not a proxy":          {testProxy{}, func(_ *testProxy, c net.Conn) bool { io.WriteString(c, "SSH-2.0-x\r\n"); return false }, "http://", "CONNECT"},
		"endless answer": {testProxy{}, func(_ *testProxy, c net.Conn) bool {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nX: "+strings.Repeat("x", 100<<10))
			return false
		}, "http://", "CONNECT"},
		"socks wrong password": {testProxy{user: "joe:other"}, serveSOCKS, "socks5://joe:" + password, "authentication failed"},
		"socks asks for one":   {testProxy{user: "joe:other"}, serveSOCKS, "socks5://", "authentication"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := startProxy(t, &test.proxy, false, test.serve)
			scheme, user, _ := strings.Cut(test.via, "://")
			if user != "" {
				user += "@"
			}
			err := dialFails(t, protocol.DialConfig{URL: "http://relay.test", Env: env("HTTP_PROXY", scheme+"://"+user+p.Addr().String())})
			if !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), p.Addr().String()) {
				t.Errorf("%v: expected %q and the proxy's address", err, test.want)
			}
			if strings.Contains(err.Error(), password) || strings.Contains(err.Error(), base64.StdEncoding.EncodeToString([]byte("joe:"+password))) {
				t.Errorf("%v: holds the proxy's password", err)
			}
		})
	}
}

func TestProxyThatHangsCostsTheDialTimeout(t *testing.T) {
	for _, scheme := range []string{"http", "https", "socks5"} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			p := startProxy(t, &testProxy{hang: true}, false, nil)
			start := time.Now()
			err := dialFails(t, protocol.DialConfig{URL: "http://relay.test", DialTimeout: 100 * time.Millisecond,
				Env: env("HTTP_PROXY", scheme+"://"+p.Addr().String())})
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("%v after %v, expected 100 ms", err, took)
			}
		})
	}
}

func TestProxyIsChosenFromTheEnvironment(t *testing.T) {
	for name, test := range map[string]struct {
		env    []string
		target string
		want   string // "" is direct; "!…" an error that contains the rest
	}{
		"nothing set":              {nil, "https://relay.example", ""},
		"by scheme, https":         {[]string{"HTTP_PROXY", "http://a", "HTTPS_PROXY", "http://b"}, "https://relay.example", "http://b"},
		"by scheme, http":          {[]string{"HTTP_PROXY", "http://a", "HTTPS_PROXY", "http://b"}, "http://relay.example", "http://a"},
		"lower case wins":          {[]string{"HTTPS_PROXY", "http://upper", "https_proxy", "http://lower"}, "https://relay.example", "http://lower"},
		"the scheme's beats all":   {[]string{"HTTPS_PROXY", "http://b", "all_proxy", "http://c"}, "https://relay.example", "http://b"},
		"ALL_PROXY otherwise":      {[]string{"HTTP_PROXY", "http://a", "ALL_PROXY", "http://c"}, "https://relay.example", "http://c"},
		"all_proxy wins":           {[]string{"ALL_PROXY", "http://C", "all_proxy", "http://c"}, "https://relay.example", "http://c"},
		"NO_PROXY beats ALL_PROXY": {[]string{"ALL_PROXY", "http://c", "NO_PROXY", "example"}, "https://relay.example", ""},
		"NO_PROXY with a port":     {[]string{"HTTPS_PROXY", "http://b", "NO_PROXY", "relay.example:444"}, "https://relay.example", "http://b"},
		"no_proxy wins":            {[]string{"HTTPS_PROXY", "http://b", "NO_PROXY", "*", "no_proxy", "other.example"}, "https://relay.example", "http://b"},
		"NO_PROXY for everything":  {[]string{"HTTPS_PROXY", "http://b", "NO_PROXY", "*"}, "https://relay.example", ""},
		"loopback is direct":       {[]string{"HTTP_PROXY", "http://a"}, "http://127.0.0.1:8080", ""},
		"without a scheme":         {[]string{"HTTPS_PROXY", "proxy.example:3128"}, "https://relay.example", "http://proxy.example:3128"},
		"socks5h":                  {[]string{"ALL_PROXY", "socks5h://s:1080"}, "https://relay.example", "socks5h://s:1080"},
		"unknown scheme":           {[]string{"HTTPS_PROXY", "ftp://u:geheim@proxy"}, "https://relay.example", `!scheme "ftp" is not known`},
		"password not encoded":     {[]string{"HTTPS_PROXY", "http://u:100%geheim@proxy"}, "https://relay.example", "!percent-encoding"},
		"the other scheme's fault": {[]string{"HTTP_PROXY", "http://u:100%geheim@proxy"}, "https://relay.example", ""},
		"faulty but not used":      {[]string{"HTTPS_PROXY", "http://u:100%geheim@proxy", "NO_PROXY", "*"}, "https://relay.example", ""},
	} {
		t.Run(name, func(t *testing.T) {
			target, _ := url.Parse(test.target)
			u, err := protocol.Proxy(env(test.env...), target)
			if want, fails := strings.CutPrefix(test.want, "!"); fails {
				if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "geheim") {
					t.Errorf("error %v, expected %q and no password", err, want)
				}
				return
			}
			if got := fmt.Sprint(u); err != nil || got != test.want && !(u == nil && test.want == "") {
				t.Errorf("got %v, %v, expected %q", u, err, test.want)
			}
		})
	}
}
