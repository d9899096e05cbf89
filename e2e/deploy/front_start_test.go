package deploy

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/posternhq/postern/e2e/rig"
)

// front is a proxy that runs with a sample file, TLS and all.
type front struct {
	port string
	url  string // https://localhost:port, the relay's own
	ca   string // file with the certificate that signed the front's
	pool *x509.CertPool
}

// proxies are the programs that there are samples for.
var proxies = []struct {
	name  string
	start func(t *testing.T, program string, relay *rig.Relay) *front
	holds bool // keeps requests while the relay restarts
}{
	{name: "nginx", start: startNginx},
	{name: "caddy", start: startCaddy, holds: true},
}

// program finds a program, or skips the test and says what to install. Debian
// has servers in sbin, which is not in everybody's path.
func program(t testing.TB, name, pkg string) string {
	t.Helper()
	for _, try := range []string{name, "/usr/sbin/" + name} {
		if path, err := exec.LookPath(try); err == nil {
			return path
		}
	}
	t.Skipf("%s is not installed (Debian: apt-get install %s)", name, pkg)
	return ""
}

// newFront has a free port and a certificate for localhost and *.localhost, in
// dir/cert.pem and dir/key.pem.
func newFront(t *testing.T, dir string) *front {
	t.Helper()
	_, port, _ := net.SplitHostPort(rig.FreeAddr(t))
	f := &front{port: port, url: "https://localhost:" + port, ca: filepath.Join(dir, "cert.pem"), pool: x509.NewCertPool()}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "sample"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"localhost", "*.localhost"},
		IsCA:     true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	f.pool.AppendCertsFromPEM(cert)
	write(t, f.ca, string(cert))
	write(t, filepath.Join(dir, "key.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})))
	return f
}

// startNginx runs nginx with deploy/nginx/postern.conf.
func startNginx(t *testing.T, program string, relay *rig.Relay) *front {
	dir := t.TempDir()
	f := newFront(t, dir)
	_, plain, _ := net.SplitHostPort(rig.FreeAddr(t))
	sample := swap(t, read(t, "deploy/nginx/postern.conf"),
		"listen 80;", "listen 127.0.0.1:"+plain+";", "listen [::]:80;", "",
		"listen 443 ssl http2;", "listen 127.0.0.1:"+f.port+" ssl http2;", "listen [::]:443 ssl http2;", "",
		"127.0.0.1:8080", relay.Addr,
		"relay.example.com *.apps.example.com", "localhost *.localhost",
		"/etc/letsencrypt/live/relay.example.com/fullchain.pem", f.ca,
		"/etc/letsencrypt/live/relay.example.com/privkey.pem", filepath.Join(dir, "key.pem"))
	write(t, filepath.Join(dir, "postern.conf"), sample)
	user := ""
	if os.Getuid() == 0 {
		user = "user root;\n" // its workers are to read what is in the test's folder
	}
	temp := ""
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		temp += fmt.Sprintf("%s_temp_path %s/%s;\n", kind, dir, kind)
	}
	config := filepath.Join(dir, "nginx.conf")
	write(t, config, user+"daemon off;\nworker_processes 1;\npid "+dir+"/pid;\nerror_log stderr info;\n"+
		"events {}\nhttp {\naccess_log off;\n"+temp+"include "+dir+"/postern.conf;\n}\n")
	if out, err := exec.CommandContext(t.Context(), program, "-t", "-q", "-e", "stderr", "-c", config).CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("nginx -t: %v\n%s", err, out)
	}
	startServer(t, f, program, nil, "-e", "stderr", "-c", config)
	wantRedirect(t, "127.0.0.1:"+plain)
	return f
}

// wantRedirect checks that plain HTTP is sent to HTTPS.
func wantRedirect(t *testing.T, addr string) {
	t.Helper()
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+"/cart?id=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "shop.localhost"
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if got := resp.Header.Get("Location"); resp.StatusCode != http.StatusMovedPermanently || got != "https://shop.localhost/cart?id=1" {
		t.Errorf("plain HTTP: %s to %q", resp.Status, got)
	}
}

// startCaddy runs Caddy with deploy/caddy/Caddyfile.
func startCaddy(t *testing.T, program string, relay *rig.Relay) *front {
	dir := t.TempDir()
	f := newFront(t, dir)
	sample := swap(t, read(t, "deploy/caddy/Caddyfile"),
		"\temail ops@example.com\n", "\tadmin off\n\tdefault_bind 127.0.0.1\n\tauto_https disable_redirects\n",
		"relay.example.com, shop.apps.example.com {", fmt.Sprintf("https://localhost:%s, https://*.localhost:%s {\n\ttls %s %s/key.pem", f.port, f.port, f.ca, dir),
		"127.0.0.1:8080", relay.Addr)
	config := filepath.Join(dir, "Caddyfile")
	write(t, config, sample)
	env := []string{"HOME=" + dir, "XDG_DATA_HOME=" + dir, "XDG_CONFIG_HOME=" + dir}
	startServer(t, f, program, env, "run", "--adapter", "caddyfile", "--config", config)
	return f
}

// logged is a process's output.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// startServer starts the proxy and waits until the relay answers through it.
func startServer(t *testing.T, f *front, program string, env []string, args ...string) {
	t.Helper()
	log := &logged{}
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = log, log, time.Second
	endWithUs(cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		cmd.Wait()
	}()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM) // nginx ends its workers only when asked
		select {
		case <-done:
		case <-time.After(5 * time.Second):
			cmd.Process.Kill()
			<-done
		}
		if t.Failed() {
			t.Logf("log of %s:\n%s", program, log)
		}
	})
	client := f.client(t, false)
	rig.Eventually(t, rig.StartsWithin, "the relay through "+filepath.Base(program), func() error {
		select {
		case <-done:
			t.Fatalf("%s ended", program)
		default:
		}
		resp, err := client.Get(f.url + "/readyz")
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("/readyz answers %s", resp.Status)
		}
		return nil
	})
}

// client is an outside client that finds the front under every name.
func (f *front) client(t *testing.T, http2 bool) *http.Client {
	tr := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", "127.0.0.1:"+f.port)
		},
		TLSClientConfig:    &tls.Config{RootCAs: f.pool},
		ForceAttemptHTTP2:  http2,
		DisableCompression: true,
	}
	if !http2 {
		tr.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// app is where an app is reached.
func (f *front) app(path string) string {
	return strings.Replace(f.url, "localhost", "shop.localhost", 1) + path
}
