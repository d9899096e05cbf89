package policy_test

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/posternhq/postern/protocol/policy"
)

// checkTarget holds what was accepted to its canonical form, and sees it judged.
func checkTarget(t *testing.T, in string, got policy.Target) {
	t.Helper()
	if got.Port == 0 || got.Addr.IsValid() == (got.Host != "") {
		t.Fatalf("%q is %+v", in, got)
	}
	if a := got.Addr; a.IsValid() && (a.Is4In6() || a.Zone() != "") {
		t.Fatalf("%q is the address %s", in, a)
	}
	if h := got.Host; h != "" {
		if h != strings.ToLower(h) || strings.HasSuffix(h, ".") || len(h) > 253 {
			t.Fatalf("%q is the name %q", in, h)
		}
		for i := range len(h) {
			if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz0123456789-_.", rune(h[i])) {
				t.Fatalf("%q is the name %q", in, h)
			}
		}
		if a, err := netip.ParseAddr(h); err == nil {
			t.Fatalf("%q is a name, and the address %s", in, a)
		}
		last := h[strings.LastIndexByte(h, '.')+1:]
		if strings.Trim(last, "0123456789") == "" {
			t.Fatalf("%q is a name that ends in a number: %q", in, h)
		}
	}
	again, err := policy.ParseTunnel(got.HostPort())
	again.Form = got.Form
	if err != nil || again != got {
		t.Fatalf("%q is %s, which is %+v, %v when it is read again", in, got.HostPort(), again, err)
	}
	if got.Host != "" {
		if p, err := policy.ParsePattern(got.Host); err != nil || p != got.Host {
			t.Fatalf("%q is %s, which as a pattern is %q, %v", in, got.Host, p, err)
		}
	}
	for _, mode := range []policy.Mode{policy.Enforce, policy.Report, policy.Open} {
		c := policy.Compile(shop(mode))
		for _, path := range []string{"/v1/charges/x", in} {
			call := policy.Call{Target: got, Method: "GET", Path: path}
			d := c.Decide(call, noon)
			r := d.Refusal(c, call)
			if (r == nil) != d.Allow {
				t.Fatalf("%q: %+v, refusal %v", in, d, r)
			}
			if d.Allow && got.Addr.IsValid() && policy.Class(got.Addr) != "" && c.CheckAddr(got, got.Addr, noon).Where == "addresses" {
				t.Fatalf("%q is let through to %s: %s", in, got.Addr, policy.Class(got.Addr))
			}
			if r != nil && strings.ContainsAny(r.ProxyStatus("p"), "\r\n\x00") {
				t.Fatalf("%q: %q", in, r.ProxyStatus("p"))
			}
			c.CheckHello(d, got, policy.Hello{SNI: in}, noon)
		}
	}
	// A denied host is denied however it is written.
	c := policy.Compile(&policy.Policy{Declared: true, Mode: policy.Open, Deny: []policy.Deny{{Host: got.Name()}}})
	if c.Decide(policy.Call{Target: got}, noon).Allow {
		t.Fatalf("%q is let through although %s is denied", in, got.Name())
	}
}

func FuzzParseTunnel(f *testing.F) {
	for _, s := range []string{"a.example:443", "[::1]:443", "127.1:80", "①.①.①.①:443", "xn--4ca.test:1", "a.example.:443",
		"denied。test:443", "[::ffff:1.2.3.4]:1", "u@a:1", "exam\u00adple.test:443", "0x7f.1:1", "faß.de:443", "r3---sn.a:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := policy.ParseTunnel(s)
		if err != nil {
			var target *policy.TargetError
			if !errors.As(err, &target) || got != (policy.Target{}) {
				t.Fatalf("%q: %+v, %T", s, got, err)
			}
			return
		}
		checkTarget(t, s, got)
	})
}

func FuzzParseURL(f *testing.F) {
	for _, s := range []string{"http://a.example/", "HTTP://a.example:/x?y", "http://u:p@a.example/", "http://[::1]/", "http://a.example/%2f..;/",
		"http://a\\b/", "http:/a/", "http://a.example?x#y", "http://127.1/", "http://a.example//b/../c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, u, err := policy.ParseURL(s)
		if err != nil {
			var target *policy.TargetError
			if !errors.As(err, &target) || got != (policy.Target{}) || u != nil {
				t.Fatalf("%q: %+v, %v, %T", s, got, u, err)
			}
			return
		}
		checkTarget(t, s, got)
		if u.Scheme != "http" || u.User != nil || u.Opaque != "" || u.Fragment != "" {
			t.Fatalf("%q is %#v", s, u)
		}
		// What is sent on leads to the target that was judged.
		again, err := url.Parse(u.String())
		if err != nil {
			t.Fatalf("%q is %s: %v", s, u, err)
		}
		host := again.Host
		if again.Port() == "" {
			host += ":80"
		}
		if host != got.HostPort() {
			t.Fatalf("%q is %s, and leads to %s", s, got.HostPort(), host)
		}
		if next, v, err := policy.ParseURL(u.String()); err != nil || next != got || v.String() != u.String() {
			t.Fatalf("%q is %s, which is %s %s, %v when it is read again", s, u, next.HostPort(), v, err)
		}
		policy.Compile(shop(policy.Enforce)).Decide(policy.Call{Target: got, Method: "GET", Path: u.EscapedPath()}, noon)
	})
}

func FuzzParseHost(f *testing.F) {
	for _, s := range []string{"a.example", "::1", "127.1", "[::1]", "fe80::1%lo", "①②⑦.⓪.⓪.①", "a.example.", "xn--a", "::ffff:127.0.0.1", "1.2.3.4:5"} {
		f.Add(s, uint16(443))
	}
	f.Fuzz(func(t *testing.T, s string, port uint16) {
		got, err := policy.ParseHost(s, port, policy.Tunnel)
		if err != nil {
			if got != (policy.Target{}) {
				t.Fatalf("%q: %+v, %v", s, got, err)
			}
			return
		}
		checkTarget(t, s, got)
		// The same host is read the same where it stands before a port.
		bracketed := s
		if strings.Contains(s, ":") {
			bracketed = "[" + s + "]"
		}
		_, digits, _ := strings.Cut(policy.Target{Host: "a", Port: port}.HostPort(), ":")
		again, err := policy.ParseTunnel(bracketed + ":" + digits)
		if err != nil || again != got {
			t.Fatalf("%q is %+v, before a port %+v, %v", s, got, again, err)
		}
	})
}

func FuzzParsePattern(f *testing.F) {
	for _, s := range []string{"*.example.com", "a.*.b", "::1", "*", "*.ä.test", "A.B.", "10.0.0.1"} {
		f.Add(s, "x.a.b")
	}
	f.Fuzz(func(t *testing.T, s, host string) {
		p, err := policy.ParsePattern(s)
		if err != nil {
			return
		}
		if again, err := policy.ParsePattern(p); err != nil || again != p {
			t.Fatalf("%q is %q, which is %q, %v", s, p, again, err)
		}
		target, err := policy.ParseHost(host, 443, policy.Tunnel)
		if err != nil || target.Host == "" || strings.Contains(p, ":") {
			return
		}
		c := policy.Compile(&policy.Policy{Declared: true, Mode: policy.Open, Deny: []policy.Deny{{Where: "deny", Host: p}}})
		d := c.Decide(policy.Call{Target: target}, noon)
		if want := fitsSlowly(p, target.Host); d.Where != "names" && (d.Where == "deny") != want {
			t.Fatalf("%q and %q: fits is %v, decided by %s", p, target.Host, want, d.Where)
		}
	})
}

func FuzzReadHello(f *testing.F) {
	f.Add(records(helloMessage(helloSpec{sni: "a.example"}), 1<<14), uint8(0))
	f.Add(records(helloMessage(helloSpec{sni: "a.example", ech: true}), 3), uint8(1))
	f.Add([]byte("GET / HTTP/1.1\r\n"), uint8(2))
	f.Add([]byte{22, 3, 1, 0, 0}, uint8(1))
	f.Fuzz(func(t *testing.T, sent []byte, how uint8) {
		src := bytes.NewReader(sent)
		var r io.Reader = src
		switch how % 3 {
		case 1:
			r = iotest.OneByteReader(r)
		case 2:
			r = iotest.HalfReader(r)
		}
		h, raw, err := policy.ReadHello(r)
		rest, _ := io.ReadAll(src)
		if !bytes.Equal(append(bytes.Clone(raw), rest...), sent) || len(raw) > 64<<10 {
			t.Fatalf("%d bytes were read, %d are left, %d were sent", len(raw), len(rest), len(sent))
		}
		if err != nil {
			if h != (policy.Hello{}) {
				t.Fatalf("%+v, %v", h, err)
			}
			return
		}
		if len(raw) < 5 || raw[0] != 22 || h.SNI != strings.ToLower(h.SNI) {
			t.Fatalf("%+v out of %x", h, raw)
		}
		// However it was cut, the name is the same.
		again, _, err := policy.ReadHello(bytes.NewReader(raw))
		if err != nil || again != h {
			t.Fatalf("%+v, again %+v, %v", h, again, err)
		}
	})
}
