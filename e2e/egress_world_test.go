package e2e

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// world is every address outside: it takes whatever connects to one of its ports and
// writes down to which address, and what came.
type world struct {
	tls *tls.Config

	mu       sync.Mutex
	arrivals []*reached                 // guarded by mu
	reply    func(*http.Request) string // guarded by mu; a whole answer; nil: 200
}

// reached is one connection that reached the world.
type reached struct {
	To netip.AddrPort

	mu       sync.Mutex
	data     []byte     // guarded by mu; what came
	requests []sighting // guarded by mu; of HTTP in clear
	over     chan struct{}
}

// sighting is one HTTP request.
type sighting struct {
	*http.Request
	Body string
	Err  error // the body was cut off
}

// The ports that the world takes.
var worldPorts = []int{22, 25, 80, 443, 853, 3128, 5432, 6379, 8080, 8443}

// newWorld serves all addresses of this network namespace.
func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{tls: &tls.Config{Certificates: []tls.Certificate{selfSigned(t)}}}
	var running sync.WaitGroup
	var listeners []net.Listener
	for _, port := range worldPorts {
		for _, network := range []string{"tcp4", "tcp6"} {
			l, err := net.Listen(network, ":"+strconv.Itoa(port))
			if err != nil {
				t.Fatal(err)
			}
			listeners = append(listeners, l)
			running.Go(func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					a := &reached{To: conn.LocalAddr().(*net.TCPAddr).AddrPort(), over: make(chan struct{})}
					w.mu.Lock()
					w.arrivals = append(w.arrivals, a)
					w.mu.Unlock()
					go w.serve(conn, a)
				}
			})
		}
	}
	t.Cleanup(func() {
		for _, l := range listeners {
			l.Close()
		}
		running.Wait()
	})
	return w
}

// mark is how many connections there were; for since.
func (w *world) mark() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.arrivals)
}

func (w *world) since(mark int) []*reached {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.arrivals[mark:])
}

// answerWith makes all further requests answered by reply; nil is 200.
func (w *world) answerWith(reply func(*http.Request) string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reply = reply
}

// recorded writes down what is read.
type recorded struct {
	net.Conn
	a *reached
}

func (r recorded) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	r.a.mu.Lock()
	defer r.a.mu.Unlock()
	if len(r.a.data) < 1<<20 {
		r.a.data = append(r.a.data, p[:n]...)
	}
	return n, err
}

// buffered is a connection behind the reader that has looked at its first byte.
type buffered struct {
	net.Conn
	r io.Reader
}

func (b buffered) Read(p []byte) (int, error) { return b.r.Read(p) }

// serve speaks TLS, HTTP or nothing at all, by the first byte.
func (w *world) serve(conn net.Conn, a *reached) {
	defer close(a.over)
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	r := bufio.NewReader(recorded{conn, a})
	first, err := r.Peek(1)
	switch {
	case err != nil:
	case first[0] == 22:
		secure := tls.Server(buffered{conn, r}, w.tls)
		if secure.Handshake() == nil {
			io.Copy(secure, secure)
		}
	case first[0] >= 'A' && first[0] <= 'Z':
		w.serveHTTP(conn, r, a)
	default:
		io.Copy(conn, r)
	}
}

// serveHTTP answers one request and hangs up, so that the next probe comes over a
// connection of its own.
func (w *world) serveHTTP(conn net.Conn, r *bufio.Reader, a *reached) {
	req, err := http.ReadRequest(r)
	if err != nil {
		io.WriteString(conn, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		return
	}
	if req.Header.Get("Expect") == "100-continue" {
		io.WriteString(conn, "HTTP/1.1 100 Continue\r\n\r\n")
	}
	body, err := io.ReadAll(io.LimitReader(req.Body, 1<<20))
	a.mu.Lock()
	a.requests = append(a.requests, sighting{req, string(body), err})
	a.mu.Unlock()
	if err != nil {
		return
	}
	w.mu.Lock()
	reply := w.reply
	w.mu.Unlock()
	answer := "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nworld"
	if reply != nil {
		answer = reply(req)
	}
	io.WriteString(conn, answer)
	if strings.HasPrefix(answer, "HTTP/1.1 101") {
		io.Copy(conn, r)
	}
}

// bytes is what came so far.
func (a *reached) bytes() []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.data)
}

// sightings are the requests so far.
func (a *reached) sightings() []sighting {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.requests)
}

// selfSigned is a certificate that nobody trusts, for any of names.
func selfSigned(t testing.TB, names ...string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "the end-to-end tests"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		DNSNames: names, IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}
