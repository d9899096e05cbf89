package node

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestEmptyConfigHasTheDocumentedDefaults(t *testing.T) {
	s, err := Config{}.check()
	if err != nil {
		t.Fatal(err)
	}
	for what, pair := range map[string][2]string{
		"listen":       {s.Listen, "127.0.0.1:8080"},
		"public URL":   {s.public.String(), "http://localhost:8080"},
		"apps domain":  {s.AppsDomain, "localhost"},
		"data":         {s.Data, "./postern-data"},
		"admin listen": {s.AdminListen, "127.0.0.1:9090"},
		"certificate":  {s.cert + s.key, ""},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s is %q, want %q", what, pair[0], pair[1])
		}
	}
	if s.Idle != 5*time.Minute || s.Grace != 25*time.Second || len(s.trusted) != 0 {
		t.Errorf("idle %v, grace %v, trusted %v", s.Idle, s.Grace, s.trusted)
	}
}

func TestConfigThatCannotWorkIsRefused(t *testing.T) {
	for _, test := range []struct {
		name string
		cfg  Config
		want []string // in the error; none: it is good
	}{
		{"a public URL with a slash behind it", Config{PublicURL: "https://relay.example.com/"}, nil},
		{"a public URL with a port", Config{PublicURL: "http://relay.example.com:8443"}, nil},
		{"a public URL without a scheme", Config{PublicURL: "relay.example.com"}, []string{"public URL", "https://"}},
		{"a public URL of another scheme", Config{PublicURL: "wss://relay.example.com"}, []string{"public URL", "https://"}},
		{"a public URL without a host", Config{PublicURL: "https://"}, []string{"public URL"}},
		{"a public URL with a path", Config{PublicURL: "https://example.com/relay"}, []string{"public URL", "nothing behind it"}},
		{"a public URL with a query", Config{PublicURL: "https://example.com?x=1"}, []string{"public URL", "nothing behind it"}},
		{"a public URL that cannot be read", Config{PublicURL: "https://[::1"}, []string{"public URL"}},
		{"proxies as addresses and ranges", Config{TrustedProxies: " 10.0.0.0/8, 192.0.2.1 ,,2001:db8::/32"}, nil},
		{"proxies that are names", Config{TrustedProxies: "10.0.0.0/8,router.example"}, []string{"trusted proxies", `"router.example"`}},
		{"proxies of an impossible range", Config{TrustedProxies: "10.0.0.0/33"}, []string{"trusted proxies", `"10.0.0.0/33"`}},
		{"TLS off", Config{TLS: "off"}, nil},
		{"TLS with two files", Config{TLS: "cert.pem,key.pem"}, nil},
		{"TLS with one file", Config{TLS: "cert.pem"}, []string{"TLS", "cert.pem,key.pem"}},
		{"TLS without a key", Config{TLS: "cert.pem,"}, []string{"TLS", "cert.pem,key.pem"}},
		{"TLS by ACME", Config{TLS: "acme:ops@example.com"}, []string{"does not fetch certificates"}},
		{"three faults at once", Config{PublicURL: "x", TrustedProxies: "y", TLS: "z"}, []string{"public URL", "trusted proxies", "TLS"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			n, err := New(test.cfg)
			if len(test.want) == 0 {
				if err != nil || n == nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			if err == nil || n != nil {
				t.Fatal("not refused")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
		})
	}
}

func TestConfigIsRead(t *testing.T) {
	s, err := Config{
		PublicURL: "https://relay.example.com/", AppsDomain: ".Apps.Example.COM.",
		TrustedProxies: "10.1.2.3/8, 192.0.2.1", TLS: "cert.pem,key.pem",
	}.check()
	if err != nil {
		t.Fatal(err)
	}
	if got := s.public.String(); got != "https://relay.example.com" {
		t.Errorf("public URL %q", got)
	}
	if s.AppsDomain != "apps.example.com" {
		t.Errorf("apps domain %q", s.AppsDomain)
	}
	want := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.0.2.1/32")}
	if !slices.Equal(s.trusted, want) {
		t.Errorf("trusted %v, want %v", s.trusted, want)
	}
	if s.cert != "cert.pem" || s.key != "key.pem" {
		t.Errorf("certificate %q, key %q", s.cert, s.key)
	}
}

func TestAppsAreReachedUnderTheirDomainOnTheRelaysPort(t *testing.T) {
	for _, test := range []struct{ public, want string }{
		{"https://relay.example.com", "https://shop.apps.example.com"},
		{"http://localhost:8080", "http://shop.apps.example.com:8080"},
	} {
		n, err := New(Config{PublicURL: test.public, AppsDomain: "apps.example.com"})
		if err != nil {
			t.Fatal(err)
		}
		if got := n.appURL("shop"); got != test.want {
			t.Errorf("%s: %s, want %s", test.public, got, test.want)
		}
	}
}
