package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/posternhq/postern/e2e/rig"
)

// authority signs certificates that those who have its file trust.
type authority struct {
	File string // PEM
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	pair := selfSigned(t)
	a := &authority{File: filepath.Join(t.TempDir(), "ca.pem"), cert: pair.Leaf, key: pair.PrivateKey.(*ecdsa.PrivateKey)}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Leaf.Raw})
	if err := os.WriteFile(a.File, text, 0o644); err != nil {
		t.Fatal(err)
	}
	return a
}

// issue makes a certificate for names.
func (a *authority) issue(t testing.TB, names ...string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: names[0]},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), DNSNames: names,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// serveTLS is rig.Serve over TLS, with a certificate for names.
func (a *authority) serveTLS(t testing.TB, h http.Handler, names ...string) string {
	t.Helper()
	return a.serveTLSOn(t, "127.0.0.1:0", h, names...)
}

// serveTLSOn is serveTLS on an address, which may not be to be had.
func (a *authority) serveTLSOn(t testing.TB, addr string, h http.Handler, names ...string) string {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Skipf("no %s here: %v", addr, err)
	}
	s := &http.Server{Handler: h, ErrorLog: log.New(io.Discard, "", 0)}
	served := make(chan struct{})
	go func() {
		defer close(served)
		s.Serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{a.issue(t, names...)}}))
	}()
	t.Cleanup(func() {
		s.Close()
		<-served
	})
	return l.Addr().String()
}

// site is a relay whose app may call some destinations of this test on loopback, by
// names of the test's own.
type site struct {
	*rig.Relay
	dns      *rig.DNS
	operator string
}

// newSite starts the relay with the manifest, whose text may name the app's egress
// only: see loopbackManifest.
func newSite(t testing.TB, manifest string, names ...string) *site {
	t.Helper()
	return newSiteWith(t, manifest, nil, names...)
}

// newSiteWith is newSite with more environment for the relay.
func newSiteWith(t testing.TB, manifest string, env []string, names ...string) *site {
	t.Helper()
	d := rig.ServeDNS(t)
	for _, name := range names {
		d.Point(name, "127.0.0.1")
	}
	r := rig.StartRelay(t, rig.RelayConfig{Manifest: manifest, Env: append(egressEnv(d), env...)})
	return &site{r, d, r.Operator()}
}

// agent starts an agent of shop and waits until it decides by the policy.
func (s *site) agent(t testing.TB, cfg rig.AgentConfig) egressAgent {
	t.Helper()
	a := startEgressAgent(t, s.Relay, cfg)
	s.AwaitPolicy(t, s.operator, 1, 1)
	return a
}

// checkCounts fails the test unless every call that was started is logged or in
// flight, and no more than so many are in flight.
func (s *site) checkCounts(t testing.TB, inFlight int64) {
	t.Helper()
	rig.Eventually(t, wait, "calls in flight", func() error {
		status, err := s.EgressStatus(s.operator)
		if err != nil {
			return err
		}
		if status.Started != status.Logged+status.InFlight {
			t.Errorf("%d started, %d logged and %d in flight", status.Started, status.Logged, status.InFlight)
		}
		if status.InFlight > inFlight {
			return &countError{status.InFlight}
		}
		return nil
	})
}

type countError struct{ n int64 }

func (e *countError) Error() string { return "there are " + big.NewInt(e.n).String() }
