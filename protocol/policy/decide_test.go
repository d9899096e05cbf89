package policy_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/protocol/policy"
)

var noon = time.Date(2027, 1, 31, 12, 0, 0, 0, time.UTC)

func call(t testing.TB, s string) policy.Call {
	t.Helper()
	method, url, ok := strings.Cut(s, " ")
	if !ok {
		method, url = "", s
	}
	c, err := policy.ParseCall(url)
	if err != nil {
		t.Fatalf("%s: %v", s, err)
	}
	if method != "" {
		c.Method = method
	}
	return c
}

// shop is a policy with one of everything.
func shop(mode policy.Mode) *policy.Policy {
	return &policy.Policy{
		App: "shop", Declared: true, Mode: mode,
		Deny: []policy.Deny{
			{Where: "egress.deny.hosts[0]", Host: "*.evil.example"},
			{Where: "egress.deny.hosts[1]", Host: "bad.example", Reason: "it is bad"},
			{Where: "egress.deny.hosts[2]", Host: "half.example", Port: 25},
			{Where: "egress.deny.hosts[3]", Host: "old.example", Until: noon},
			{Where: "egress.deny.hosts[4]", Host: "a.*.tree.example"},
			{Where: "egress.deny.hosts[5]", Host: "93.184.216.70"},
			{Where: "egress.deny.ranges[0]", Range: netip.MustParsePrefix("93.184.217.0/24")},
			{Where: "egress.deny.ranges[1]", Range: netip.MustParsePrefix("::ffff:93.184.218.0/120")},
			{Where: "egress.deny.ranges[2]", Range: netip.MustParsePrefix("2a00:bad::/32")},
			{Where: "egress.deny.ranges[3]", Range: netip.MustParsePrefix("10.1.2.4/32")},
		},
		Allow: []policy.Rule{
			{Where: "allow[0]", Line: 10, Scheme: policy.HTTPS, Host: "api.example.com", Port: 443},
			{Where: "allow[1]", Line: 11, Scheme: policy.HTTPS, Host: "*.wild.example", Port: 443},
			{Where: "allow[2]", Line: 12, Scheme: policy.HTTPS, Host: "ec2.*.cloud.example", Port: 443},
			{Where: "allow[3]", Line: 13, Scheme: policy.HTTP, Host: "plain.example", Port: 80, HTTP: []policy.HTTPRule{
				{Methods: []string{"GET", "HEAD"}, Paths: []string{"/v1/charges/**"}},
				{Methods: []string{"POST"}, Paths: []string{"/v1/charges"}},
				{Methods: []string{"GET"}, Paths: []string{"/v2/*/item"}},
				{Methods: []string{"OPTIONS"}},
				{Paths: []string{"/public"}},
			}},
			{Where: "allow[4]", Line: 14, Scheme: policy.TCP, Host: "db.example.com", Port: 5432},
			{Where: "allow[5]", Line: 15, Scheme: policy.HTTPS, Host: "gone.example", Port: 443, Expires: noon},
			{Where: "allow[6]", Line: 16, Scheme: policy.HTTPS, Host: "opened.example", Port: 443, Intercept: true},
			{Where: "allow[7]", Line: 17, Scheme: policy.TCP, Host: "pg.internal", Port: 5432},
			{Where: "allow[8]", Line: 18, Scheme: policy.HTTPS, Host: "*.corp", Port: 443},
			{Where: "allow[9]", Line: 19, Scheme: policy.HTTPS, Host: "localhost", Port: 443},
			{Where: "allow[10]", Line: 20, Scheme: policy.HTTPS, Host: "bad.example", Port: 443},
			{Where: "allow[11]", Line: 21, Scheme: policy.HTTPS, Host: "1.1.1.1", Port: 443},
			{Where: "allow[12]", Line: 22, Scheme: policy.TCP, Host: "10.1.2.3", Port: 5432},
			{Where: "allow[13]", Line: 23, Scheme: policy.HTTP, Host: "free.example", Port: 80},
			{Where: "allow[14]", Line: 24, Scheme: policy.TCP, Host: "10.1.2.4", Port: 5432},
			{Where: "allow[15]", Line: 25, Scheme: policy.TCP, Host: "metadata", Port: 80},
			{Where: "allow[16]", Line: 26, Scheme: policy.HTTPS, Host: "seen.example", Port: 443, HTTP: []policy.HTTPRule{{Methods: []string{"GET"}}}},
		},
		Holes: []policy.Hole{
			{Where: "egress.allow_ranges[0]", Range: netip.MustParsePrefix("10.1.2.0/24"), Ports: []uint16{5432}},
			{Where: "egress.allow_ranges[1]", Range: netip.MustParsePrefix("64:ff9b::/96"), Ports: []uint16{443}},
		},
		Own: []netip.Addr{netip.MustParseAddr("93.184.216.99"), netip.MustParseAddr("2a00:1::1"), netip.MustParseAddr("10.1.2.9")},
	}
}

// decisions are calls under shop, and what becomes of them in each mode.
var decisions = []struct {
	call                  string
	enforce, report, open string // allow, would, or a cause
	where                 string // in mode enforce
}{
	{"https://api.example.com", "allow", "allow", "allow", "allow[0]"},
	{"https://api.example.com:8443", "denied", "would", "allow", "default"},
	{"http://api.example.com/", "denied", "would", "allow", "default"},
	{"tcp://api.example.com:80", "denied", "would", "allow", "default"},
	{"https://www.api.example.com", "denied", "would", "allow", "default"},
	{"https://a.wild.example", "allow", "allow", "allow", "allow[1]"},
	{"https://a.b.wild.example", "allow", "allow", "allow", "allow[1]"},
	{"https://wild.example", "denied", "would", "allow", "default"},
	{"https://evilwild.example", "denied", "would", "allow", "default"},
	{"https://ec2.eu.cloud.example", "allow", "allow", "allow", "allow[2]"},
	{"https://ec2.a.b.cloud.example", "denied", "would", "allow", "default"},
	{"https://ec2.cloud.example", "denied", "would", "allow", "default"},
	{"https://a.ec2.eu.cloud.example", "denied", "would", "allow", "default"},
	{"tcp://db.example.com:5432", "allow", "allow", "allow", "allow[4]"},
	{"https://db.example.com:5432", "allow", "allow", "allow", "allow[4]"},
	{"http://db.example.com:5432/", "denied", "would", "allow", "allow[4]"},
	{"tcp://plain.example:80", "denied", "would", "allow", "allow[3]"},
	{"https://gone.example", "denied", "would", "allow", "default"},
	{"https://opened.example", "denied", "denied", "denied", "allow[6]"},
	{"https://seen.example", "denied", "denied", "denied", "allow[16]"},
	{"https://other.example", "denied", "would", "allow", "default"},
	// Requests.
	{"GET http://plain.example/v1/charges/ch_1", "allow", "allow", "allow", "allow[3]"},
	{"HEAD http://plain.example/v1/charges/a/b", "allow", "allow", "allow", "allow[3]"},
	{"GET http://plain.example/v1/charges/ch_1?x=/../y", "allow", "allow", "allow", "allow[3]"},
	{"GET http://plain.example/v1/ch%61rges/ch_1", "allow", "allow", "allow", "allow[3]"},
	{"GET http://plain.example/v1/charges", "denied", "would", "allow", "allow[3]"},
	{"GET http://plain.example/v1/charges/", "denied", "would", "allow", "allow[3]"},
	{"POST http://plain.example/v1/charges", "allow", "allow", "allow", "allow[3]"},
	{"POST http://plain.example/v1/charges/", "denied", "would", "allow", "allow[3]"},
	{"POST http://plain.example/v1/charges/ch_1", "denied", "would", "allow", "allow[3]"},
	{"post http://plain.example/v1/charges", "denied", "would", "allow", "allow[3]"},
	{"GET http://plain.example/V1/charges/ch_1", "denied", "would", "allow", "allow[3]"},
	{"GET http://plain.example/v1/chargesx/ch_1", "denied", "would", "allow", "allow[3]"},
	{"GET http://plain.example/v2/7/item", "allow", "allow", "allow", "allow[3]"},
	{"GET http://plain.example/v2/7/8/item", "denied", "would", "allow", "allow[3]"},
	{"GET http://plain.example/v2//item", "denied", "would", "allow", "allow[3]"},
	{"GET http://plain.example/v2/7/item/", "denied", "would", "allow", "allow[3]"},
	{"DELETE http://plain.example/public", "allow", "allow", "allow", "allow[3]"},
	{"OPTIONS http://plain.example/a//b", "allow", "allow", "allow", "allow[3]"}, // that line names no paths
	{"GET http://plain.example", "denied", "would", "allow", "allow[3]"},
	{"GET http://plain.example:8080/public", "denied", "would", "allow", "default"},
	{"GET http://free.example/a/../b//c;d", "allow", "allow", "allow", "allow[13]"},
	// Denied in every mode.
	{"https://x.evil.example", "denied", "denied", "denied", "egress.deny.hosts[0]"},
	{"http://a.b.evil.example/", "denied", "denied", "denied", "egress.deny.hosts[0]"},
	{"https://evil.example", "denied", "would", "allow", "default"},
	{"https://bad.example", "denied", "denied", "denied", "egress.deny.hosts[1]"},
	{"http://bad.example:81/", "denied", "denied", "denied", "egress.deny.hosts[1]"},
	{"tcp://half.example:25", "denied", "denied", "denied", "egress.deny.hosts[2]"},
	{"tcp://half.example:26", "denied", "would", "allow", "default"},
	{"https://old.example", "denied", "would", "allow", "default"}, // that deny is over
	{"https://a.x.tree.example", "denied", "denied", "denied", "egress.deny.hosts[4]"},
	{"https://a.x.y.tree.example", "denied", "would", "allow", "default"},
	// Names that are not for the outside.
	{"https://localhost", "denied", "denied", "denied", "names"}, // whatever a line says
	{"https://localhost.", "denied", "denied", "denied", "names"},
	{"https://a.localhost", "denied", "denied", "denied", "names"},
	{"https://localhost.localdomain", "denied", "denied", "denied", "names"},
	{"https://ip6-loopback", "denied", "denied", "denied", "names"},
	{"tcp://pg.internal:5432", "allow", "allow", "allow", "allow[7]"},
	{"tcp://pg.internal:22", "denied", "denied", "denied", "names"},
	{"https://pg.internal", "denied", "denied", "denied", "names"},
	{"https://git.corp", "denied", "denied", "denied", "names"}, // a pattern is not its name
	{"https://corp", "denied", "denied", "denied", "names"},
	{"https://metadata.google.internal", "denied", "denied", "denied", "names"},
	{"https://metadata", "denied", "denied", "denied", "names"},
	{"tcp://metadata:80", "allow", "allow", "allow", "allow[15]"},
	{"http://metadata/", "denied", "denied", "denied", "names"},
	{"https://printer.local", "denied", "denied", "denied", "names"},
	{"https://nas.home.arpa", "denied", "denied", "denied", "names"},
	{"https://home.arpa", "denied", "denied", "denied", "names"},
	{"https://web.shop.app.localspace", "denied", "denied", "denied", "names"},
	{"https://internal.example", "denied", "would", "allow", "default"},
	{"https://xlocalhost.example", "denied", "would", "allow", "default"},
	// Addresses.
	{"https://1.1.1.1", "allow", "allow", "allow", "allow[11]"},
	{"https://[::ffff:1.1.1.1]", "allow", "allow", "allow", "allow[11]"},
	{"https://1.1.1.2", "denied", "would", "allow", "default"},
	{"https://10.0.0.1", "prohibited_address", "prohibited_address", "prohibited_address", "addresses"},
	{"tcp://10.1.2.3:5432", "allow", "allow", "allow", "allow[12]"},
	{"tcp://10.1.2.3:5433", "prohibited_address", "prohibited_address", "prohibited_address", "addresses"},
	{"tcp://10.1.2.5:5432", "denied", "would", "allow", "default"}, // a hole is no line
	{"tcp://10.1.2.4:5432", "prohibited_address", "prohibited_address", "prohibited_address", "egress.deny.ranges[3]"},
	{"tcp://10.1.2.9:5432", "loop", "loop", "loop", "addresses"}, // nor is it one to the relay
	{"https://93.184.216.70", "prohibited_address", "prohibited_address", "prohibited_address", "egress.deny.hosts[5]"},
	{"https://93.184.217.1", "prohibited_address", "prohibited_address", "prohibited_address", "egress.deny.ranges[0]"},
	{"https://93.184.218.1", "prohibited_address", "prohibited_address", "prohibited_address", "egress.deny.ranges[1]"},
	{"https://93.184.219.1", "denied", "would", "allow", "default"},
	{"https://[2a00:bad:1::1]", "prohibited_address", "prohibited_address", "prohibited_address", "egress.deny.ranges[2]"},
	{"https://93.184.216.99", "loop", "loop", "loop", "addresses"},
	{"tcp://93.184.216.99:22", "loop", "loop", "loop", "addresses"},
	{"https://[2a00:1::1]", "loop", "loop", "loop", "addresses"},
	{"https://[64:ff9b::8.8.8.8]", "denied", "would", "allow", "default"}, // through the hole
	{"tcp://[64:ff9b::8.8.8.8]:80", "prohibited_address", "prohibited_address", "prohibited_address", "addresses"},
	{"https://[64:ff9b::169.254.169.254]", "prohibited_address", "prohibited_address", "prohibited_address", "addresses"},
	{"https://[64:ff9b::93.184.216.99]", "loop", "loop", "loop", "addresses"},
}

func TestDecide(t *testing.T) {
	for _, c := range decisions {
		for mode, want := range map[policy.Mode]string{policy.Enforce: c.enforce, policy.Report: c.report, policy.Open: c.open} {
			compiled := policy.Compile(shop(mode))
			d := compiled.Decide(call(t, c.call), noon)
			if got := outcome(d); got != want {
				t.Errorf("%s %s: %s (%s), want %s", mode, c.call, got, d.Reason, want)
			}
			if mode == policy.Enforce && d.Where != c.where {
				t.Errorf("%s: decided by %s, want %s", c.call, d.Where, c.where)
			}
			if d.Reason == "" {
				t.Errorf("%s %s: no reason", mode, c.call)
			}
			if r := d.Refusal(compiled, call(t, c.call)); (r == nil) != d.Allow {
				t.Errorf("%s %s: refusal %v", mode, c.call, r)
			}
		}
	}
}

func outcome(d policy.Decision) string {
	switch {
	case d.Allow && d.Would:
		return "would"
	case d.Allow:
		return "allow"
	}
	return string(d.Cause)
}

func TestDecideAmbiguousPaths(t *testing.T) {
	p := shop(policy.Enforce)
	p.Allow = []policy.Rule{{Scheme: policy.HTTP, Host: "plain.example", Port: 80, HTTP: []policy.HTTPRule{{Paths: []string{"/**"}}}}}
	c := policy.Compile(p)
	for path, ok := range map[string]bool{
		"": true, "/": true, "/a": true, "/a/": true, "/a/b": true, "/a%20b": true, "/100%25": true, "/100%25/x": true,
		"/%c3%a4": true, "/a.b": true, "/.well-known/x": true, "/...": true, "/a:b@c": true, "/a,b=c&d": true,
		"a": false, "*": false, "//a": false, "/a//b": false, "/a//": false, "/.": false, "/..": false, "/a/../b": false, "/a/./b": false, "/a/..": false,
		"/%2e": false, "/a/%2E%2e/b": false, "/a/.%2e/b": false, "/a%2fb": false, "/a%2F..%2Fb": false, "/a%5cb": false, "/a\\b": false,
		"/a;b": false, "/a/..;/b": false, "/a%3bb": false, "/a%00": false, "/a%0ab": false, "/a%7f": false, "/a\tb": false, "/a b": false,
		"/%252e": false, "/a%252fb": false, "/%": false, "/%2": false, "/%zz": false, "/%u002e": false, "/%c0%ae": false, "/%c0%af": false, "/%ff": false,
	} {
		d := c.Decide(policy.Call{Target: policy.Target{Form: policy.Request, Host: "plain.example", Port: 80}, Method: "GET", Path: path}, noon)
		if d.Allow != ok {
			t.Errorf("%q: allow is %v (%s)", path, d.Allow, d.Reason)
		}
	}
}

func TestFirstLineThatFitsDecides(t *testing.T) {
	rules := []policy.Rule{
		{Where: "gone", Scheme: policy.HTTPS, Host: "a.b.example", Port: 443, Expires: noon.Add(-time.Second)},
		{Where: "tcp", Scheme: policy.TCP, Host: "a.b.example", Port: 25},
		{Where: "inner", Scheme: policy.HTTPS, Host: "a.*.example", Port: 443},
		{Where: "exact", Scheme: policy.HTTPS, Host: "a.b.example", Port: 443},
		{Where: "wild", Scheme: policy.HTTPS, Host: "*.b.example", Port: 443},
	}
	for from, want := range []string{"inner", "inner", "inner", "exact", "wild"} {
		c := policy.Compile(&policy.Policy{Declared: true, Mode: policy.Enforce, Allow: rules[from:]})
		d := c.Decide(call(t, "https://a.b.example"), noon)
		if d.Where != want || d.Rule == nil || d.Rule.Where != want {
			t.Errorf("from line %d on: %s, want %s", from, d.Where, want)
		}
	}
}

func TestUndeclaredAndEmpty(t *testing.T) {
	for name, c := range map[string]*policy.Compiled{
		"nil":        policy.Compile(nil),
		"empty":      policy.Compile(&policy.Policy{}),
		"undeclared": policy.Compile(&policy.Policy{App: "shop", Mode: policy.Open}),
	} {
		d := c.Decide(call(t, "https://a.example"), noon)
		if d.Allow || d.Cause != policy.Undeclared {
			t.Errorf("%s: %+v", name, d)
		}
		if d := c.Decide(policy.Call{}, noon); d.Allow || d.Cause != policy.BadTarget {
			t.Errorf("%s: a call to nowhere is %+v", name, d)
		}
		if c.Policy() == nil {
			t.Errorf("%s: no policy", name)
		}
	}
	c := policy.Compile(&policy.Policy{Declared: true, Mode: "lenient"})
	if d := c.Decide(call(t, "https://a.example"), noon); d.Allow {
		t.Error("an unknown mode lets through")
	}
}

func TestEmergency(t *testing.T) {
	until := noon.Add(time.Hour)
	p := shop(policy.Open)
	p.Emergency = []policy.Deny{
		{ID: "den_1", Where: "emergency den_1", Host: "api.example.com", Until: until, Reason: "they were broken into"},
		{ID: "den_2", Where: "emergency den_2", Range: netip.MustParsePrefix("93.184.216.0/26"), Until: until},
		{ID: "den_3", Where: "emergency den_3", Host: "*.wild.example", Until: noon}, // over
		{ID: "den_4", Where: "emergency den_4", Range: netip.MustParsePrefix("10.1.2.3/32"), Until: until},
	}
	c := policy.Compile(p)
	for s, want := range map[string]string{
		"https://api.example.com":   "emergency_deny",
		"http://api.example.com/":   "emergency_deny",
		"tcp://api.example.com:1":   "emergency_deny",
		"https://x.api.example.com": "allow",
		"https://a.wild.example":    "allow",
		"https://93.184.216.34":     "emergency_deny",
		"tcp://10.1.2.3:5432":       "emergency_deny", // it beats a hole
	} {
		if got := outcome(c.Decide(call(t, s), noon)); got != want {
			t.Errorf("%s: %s, want %s", s, got, want)
		}
		if got := outcome(c.Decide(call(t, s), until)); got == "emergency_deny" {
			t.Errorf("%s: it does not end", s)
		}
	}

	named := call(t, "https://cdn.example").Target
	for _, x := range []struct {
		target policy.Target
		dialed string
		allow  bool
	}{
		{call(t, "https://api.example.com").Target, "", false},
		{call(t, "https://api.example.com").Target, "1.2.3.4", false},
		{named, "", true},
		{named, "93.184.216.64", true},
		{named, "93.184.216.63", false},
		{named, "::ffff:93.184.216.63", false},
		{named, "10.0.0.1", true}, // only emergencies are asked
		{call(t, "https://x.evil.example").Target, "", true},
		{call(t, "https://93.184.216.34").Target, "", false},
	} {
		var a netip.Addr
		if x.dialed != "" {
			a = netip.MustParseAddr(x.dialed)
		}
		if d := c.CheckEmergency(x.target, a, noon); d.Allow != x.allow || !d.Allow && d.Cause != policy.Emergency {
			t.Errorf("%s at %q: %+v", x.target.HostPort(), x.dialed, d)
		}
	}
	if d := c.CheckAddr(named, netip.MustParseAddr("93.184.216.1"), noon); d.Cause != policy.Emergency {
		t.Errorf("the looked-up address: %+v", d)
	}

	p = shop(policy.Open)
	p.Emergency = []policy.Deny{{Where: "emergency den_5", All: true, Until: until}}
	c = policy.Compile(p)
	if got := outcome(c.Decide(call(t, "https://any.example"), noon)); got != "emergency_deny" {
		t.Errorf("app denied whole: %s", got)
	}
	if c.CheckEmergency(named, netip.Addr{}, noon).Allow {
		t.Error("app denied whole: an open call goes on")
	}
}

func TestCheckAddr(t *testing.T) {
	c := policy.Compile(shop(policy.Open))
	for _, x := range []struct {
		addr string
		port uint16
		want string
	}{
		{"93.184.216.34", 443, "allow"},
		{"::ffff:93.184.216.34", 443, "allow"},
		{"::ffff:10.0.0.1", 443, "prohibited_address"},
		{"10.1.2.3", 5432, "allow"},
		{"::ffff:10.1.2.3", 5432, "allow"},
		{"10.1.2.3", 443, "prohibited_address"},
		{"93.184.216.70", 443, "prohibited_address"}, // denied as a host
		{"93.184.217.9", 443, "prohibited_address"},
		{"93.184.216.99", 80, "loop"},
		{"::ffff:93.184.216.99", 80, "loop"},
		{"2a00:1::1%eth0", 443, "loop"},
		{"2a00:2::1%eth0", 443, "prohibited_address"},
		{"64:ff9b::808:808", 443, "allow"},            // a hole for NAT64 …
		{"64:ff9b::a00:1", 443, "prohibited_address"}, // … is none for what is private behind it
		{"64:ff9b::5db8:d901", 443, "prohibited_address"},
		{"127.0.0.1", 443, "prohibited_address"},
	} {
		target := policy.Target{Form: policy.Tunnel, Host: "any.example", Port: x.port}
		if got := outcome(c.CheckAddr(target, netip.MustParseAddr(x.addr), noon)); got != x.want {
			t.Errorf("%s port %d: %s, want %s", x.addr, x.port, got, x.want)
		}
	}
	if d := c.CheckAddr(policy.Target{Form: policy.Tunnel, Host: "a.example", Port: 1}, netip.Addr{}, noon); d.Allow {
		t.Error("no address may be dialed")
	}
}

// A database beside the relay, at its own private address, is let through by a hole
// for that address, whichever holes there are besides.
func TestAHoleForTheRelaysOwnAddress(t *testing.T) {
	own := netip.MustParseAddr("10.1.2.9")
	wide := policy.Hole{Where: "wide", Range: netip.MustParsePrefix("10.0.0.0/8"), Ports: []uint16{5432}}
	exact := policy.Hole{Where: "exact", Range: netip.PrefixFrom(own, 32), Ports: []uint16{5432}}
	for _, test := range []struct {
		holes []policy.Hole
		port  uint16
		cause policy.Cause
	}{
		{nil, 5432, policy.Loop},
		{[]policy.Hole{wide}, 5432, policy.Loop},
		{[]policy.Hole{exact}, 5432, ""},
		{[]policy.Hole{wide, exact}, 5432, ""},
		{[]policy.Hole{exact, wide}, 5432, ""},
		{[]policy.Hole{exact}, 8080, policy.Loop},
	} {
		c := policy.Compile(&policy.Policy{Mode: policy.Open, Declared: true, Own: []netip.Addr{own}, Holes: test.holes})
		target := policy.Target{Form: policy.Tunnel, Host: "db.test", Port: test.port}
		if d := c.CheckAddr(target, own, time.Now()); d.Cause != test.cause || d.Allow != (test.cause == "") {
			t.Errorf("%v port %d: %+v", test.holes, test.port, d)
		}
	}
}
