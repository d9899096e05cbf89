package protocol_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/protocol"
)

// patience is how long a test waits for what happens at once on a healthy
// machine.
const patience = 20 * time.Second

// testCA signs every certificate of these tests. It is also the system's root
// pool: an HTTPS proxy is verified against that, whatever DialConfig.TLS says.
var testCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "protocol")
	if err != nil {
		panic(err)
	}
	makeCA(filepath.Join(dir, "ca.pem"))
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// makeCA fills testCA and makes it the system's only root. It must run before
// anything asks for the system's roots, which are read once.
func makeCA(file string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		panic(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(crand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	testCA.cert, testCA.key, testCA.pool = cert, key, x509.NewCertPool()
	testCA.pool.AddCert(cert)
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		panic(err)
	}
	os.Setenv("SSL_CERT_FILE", file)
	os.Setenv("SSL_CERT_DIR", filepath.Dir(file))
}

// serverTLS is a certificate of testCA for relay.test and 127.0.0.1.
func serverTLS(t testing.TB) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"relay.test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(crand.Reader, tmpl, testCA.cert, &key.PublicKey, testCA.key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
}

// accepted is what the relay's end of a handshake came to.
type accepted struct {
	sess *protocol.Session
	err  error
}

// relayPeer is a relay on a real socket that does nothing but handshakes. The
// test runs the sessions.
type relayPeer struct {
	*httptest.Server
	sessions chan accepted
	tokens   chan string // Authorization of every request
}

// newRelay starts a relay; a nil welcome accepts everybody.
func newRelay(t testing.TB, secure bool, cfg protocol.AcceptConfig) *relayPeer {
	t.Helper()
	if cfg.Welcome == nil {
		cfg.Welcome = func(protocol.Hello) (protocol.Welcome, error) {
			return protocol.Welcome{Session: "s1", Node: "n1"}, nil
		}
	}
	p := &relayPeer{sessions: make(chan accepted, 16), tokens: make(chan string, 16)}
	p.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.tokens <- r.Header.Get("Authorization")
		s, err := protocol.Accept(w, r, cfg)
		p.sessions <- accepted{s, err}
	}))
	if secure {
		p.TLS = serverTLS(t)
		p.StartTLS()
	} else {
		p.Start()
	}
	t.Cleanup(p.Close)
	return p
}

// next is the next session, closed when the test ends.
func (p *relayPeer) next(t testing.TB) *protocol.Session {
	t.Helper()
	a := receive(t, p.sessions, "a session at the relay")
	if a.err != nil {
		t.Fatalf("accept: %v", a.err)
	}
	t.Cleanup(func() { a.sess.Close(protocol.CodeShutdown, "test over") })
	return a.sess
}

// named is the relay's URL with the name relay.test, which only a proxy can
// resolve. Loopback addresses are never sent through a proxy.
func (p *relayPeer) named() string {
	_, port, _ := net.SplitHostPort(p.Listener.Addr().String())
	scheme, _, _ := strings.Cut(p.URL, ":")
	return scheme + "://relay.test:" + port
}

// receive waits for one value and fails the test when there is none.
func receive[T any](t testing.TB, from <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(patience):
		t.Fatalf("no %s after %v", what, patience)
		panic("unreachable")
	}
}

// eventually polls until ok and fails the test when it never is.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not after %v: %s", patience, what)
		}
	}
}

func testHello() protocol.Hello {
	return protocol.Hello{Instance: "web.1", BootID: "0123456789abcdef", Tunnels: 1}
}

// connect makes both ends of a session over loopback TCP.
func connect(t testing.TB, agentCfg, relayCfg protocol.Config) (agent, relay *protocol.Session) {
	t.Helper()
	p := newRelay(t, false, protocol.AcceptConfig{Config: relayCfg})
	agent, err := protocol.Dial(context.Background(), protocol.DialConfig{
		Config: agentCfg, URL: p.URL, Token: "token", Hello: testHello(),
	})
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	t.Cleanup(func() { agent.Close(protocol.CodeShutdown, "test over") })
	return agent, p.next(t)
}

var goroutineID = regexp.MustCompile(`(?m)^goroutine (\d+) `)

// ours are the goroutines that the packages under test are running, by id.
func ours() map[string]string {
	buf := make([]byte, 4<<20)
	buf = buf[:runtime.Stack(buf, true)]
	found := map[string]string{}
	for _, g := range bytes.Split(buf, []byte("\n\n")) {
		for _, mark := range []string{"postern/protocol.", "/yamux", "coder/websocket."} {
			if m := goroutineID.FindSubmatch(g); m != nil && bytes.Contains(g, []byte(mark)) {
				found[string(m[1])] = string(g)
			}
		}
	}
	return found
}

// leaks returns a func that fails the test unless everything started in between
// ends soon. Tests that use it must not be parallel.
func leaks(t testing.TB) (check func()) {
	before := ours()
	return func() {
		t.Helper()
		left := map[string]string{}
		for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			left = ours()
			for id := range before {
				delete(left, id)
			}
			if len(left) == 0 {
				return
			}
		}
		var stacks strings.Builder
		for _, g := range left {
			fmt.Fprintf(&stacks, "%s\n\n", g)
		}
		t.Errorf("%d goroutines are left:\n%s", len(left), stacks.String())
	}
}
