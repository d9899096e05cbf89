package policy_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/posternhq/postern/protocol/policy"
)

var (
	label   = strings.Repeat("a", 63)
	longest = label + "." + label + "." + label + "." + label[:61] // 253
)

// tunnels are targets of CONNECT and how they are read; "" for those that are refused.
var tunnels = map[string]string{
	"api.example.com:443":          "api.example.com:443",
	"API.Example.COM:443":          "api.example.com:443",
	"api.example.com.:443":         "api.example.com:443",
	"api.example.com:1":            "api.example.com:1",
	"api.example.com:65535":        "api.example.com:65535",
	"foo_bar.example.com:443":      "foo_bar.example.com:443",
	"_dmarc.example.com:443":       "_dmarc.example.com:443",
	"r3---sn-4g5e.example.com:443": "r3---sn-4g5e.example.com:443",
	"xn--exmple-cua.test:443":      "xn--exmple-cua.test:443",
	"EXÄMPLE.test:443":             "xn--exmple-cua.test:443",
	"faß.de:443":                   "xn--fa-hia.de:443",
	"ｅｘａｍｐｌｅ.test:443":             "example.test:443",
	"exam\u00adple.test:443":       "example.test:443", // a soft hyphen is not there
	"exam\u200bple.test:443":       "example.test:443",
	"example\u3002test:443":        "example.test:443",
	"example.test\uff0e:443":       "example.test:443",
	"1e100.net:443":                "1e100.net:443",
	"1e100:443":                    "1e100:443",
	"123.example:443":              "123.example:443",
	"0x7f.example:443":             "0x7f.example:443",
	"deadbeef:443":                 "deadbeef:443",
	"0xg:443":                      "0xg:443",
	label + ".example:443":         label + ".example:443",
	longest + ":443":               longest + ":443",
	longest + ".:443":              longest + ":443",
	"8.8.8.8:53":                   "8.8.8.8:53",
	"①.①.①.①:443":                  "1.1.1.1:443",
	"１２７.０.０.１:443":                "127.0.0.1:443",
	"[::1]:443":                    "[::1]:443",
	"[0:0:0:0:0:0:0:1]:443":        "[::1]:443",
	"[2001:DB8::1]:443":            "[2001:db8::1]:443",
	"[::ffff:8.8.8.8]:443":         "8.8.8.8:443",
	"[::ffff:808:808]:443":         "8.8.8.8:443",
	"[64:ff9b::8.8.8.8]:443":       "[64:ff9b::808:808]:443",
	"localhost:443":                "localhost:443", // Decide refuses it, by name
	// Errors.
	"":                                        "",
	":":                                       "",
	":443":                                    "",
	"api.example.com":                         "",
	"api.example.com:":                        "",
	"api.example.com:0":                       "",
	"api.example.com:00":                      "",
	"api.example.com:0443":                    "",
	"api.example.com:+443":                    "",
	"api.example.com:-443":                    "",
	"api.example.com: 443":                    "",
	"api.example.com:443 ":                    "",
	"api.example.com:443\t":                   "",
	"api.example.com:65536":                   "",
	"api.example.com:99999":                   "",
	"api.example.com:4294967739":              "", // 443 in 32 bits
	"api.example.com:18446744073709552059":    "", // and in 64
	"api.example.com:0x1bb":                   "",
	"api.example.com:https":                   "",
	"api.example.com:４４３":                     "",
	"api.example.com:443:443":                 "",
	"api.example.com::443":                    "",
	"user@api.example.com:443":                "",
	"user:pw@api.example.com:443":             "",
	"api.example.com:443@evil.test:443":       "",
	"api.example.com:443/":                    "",
	"api.example.com/:443":                    "",
	"api.example.com:443?x":                   "",
	"api.example.com?x:443":                   "",
	"api.example.com#x:443":                   "",
	"api.example.com:443#x":                   "",
	"api.example.com\\:443":                   "",
	"api.example.com\\@evil.test:443":         "",
	"http://api.example.com:443":              "",
	"//api.example.com:443":                   "",
	"/x":                                      "",
	"*":                                       "",
	"*.example.com:443":                       "",
	"api.example.com..:443":                   "",
	".api.example.com:443":                    "",
	".:443":                                   "",
	"..:443":                                  "",
	"a..example.com:443":                      "",
	"-a.example.com:443":                      "",
	"a-.example.com:443":                      "",
	"a.-b-.com:443":                           "",
	"ä-.test:443":                             "",
	"a b.example:443":                         "",
	" a.example:443":                          "",
	"a.example :443":                          "",
	"a\t.example:443":                         "",
	"a\x00.example:443":                       "",
	"a\x7f.example:443":                       "",
	"a\r\n.example:443":                       "",
	"a\u0085.example:443":                     "",
	"a\u00a0.example:443":                     "",
	"a\u2028.example:443":                     "",
	"a\u202e.example:443":                     "",
	"a\xff.example:443":                       "",
	"a\xc0\xae.example:443":                   "",
	"de\u200dnied.test:443":                   "", // a joiner where nothing is to be joined
	"de\u200cnied.test:443":                   "",
	"d%65nied.test:443":                       "",
	"d％65nied.test:443":                       "",
	"a%2eexample:443":                         "",
	"a／b.example:443":                         "",
	"℀.example:443":                           "", // maps to a/c
	"a：443.example:443":                       "",
	"a＠b.example:443":                         "",
	"a,b.example:443":                         "",
	"a!b.example:443":                         "",
	"a~b.example:443":                         "",
	"a'b.example:443":                         "",
	"a(b).example:443":                        "",
	"a$b.example:443":                         "",
	"<a>.example:443":                         "",
	"xn--a.test:443":                          "",
	"xn--.test:443":                           "",
	"xn--abc-.test:443":                       "",
	"xn--localhost-.test:443":                 "",
	label + "a.example:443":                   "",
	longest + "a:443":                         "",
	strings.Repeat("a.", 600) + "example:443": "",
	// Numbers that some take for addresses.
	"0:443":                    "",
	"1:443":                    "",
	"127.1:443":                "",
	"127.0.1:443":              "",
	"2130706433:443":           "",
	"017700000001:443":         "",
	"0177.0.0.1:443":           "",
	"127.0.0.01:443":           "",
	"127.0.0.001:443":          "",
	"127.0.0.1.:443":           "",
	"0x7f.1:443":               "",
	"0x7f000001:443":           "",
	"0X7F000001:443":           "",
	"0x:443":                   "",
	"a.0x:443":                 "",
	"127.0.0.0x1:443":          "",
	"256.0.0.1:443":            "",
	"1.2.3.256:443":            "",
	"1.2.3.4.5:443":            "",
	"1.2.3.4..:443":            "",
	"example.123:443":          "",
	"example.0x1f:443":         "",
	"example.１２３:443":          "",
	"４２９４９６７２９５:443":           "",
	"①②⑦.①:443":                "",
	"99999999999999999999:443": "",
	// Brackets.
	"[]:443":                  "",
	"[::1":                    "",
	"[::1]":                   "",
	"[::1]:":                  "",
	"[::1]443":                "",
	"[::1].:443":              "",
	"[::1].example:443":       "",
	"[::1]]:443":              "",
	"[[::1]]:443":             "",
	"[::1%25lo]:443":          "",
	"[::1%lo]:443":            "",
	"[fe80::1%eth0]:443":      "",
	"[127.0.0.1]:443":         "",
	"[denied.test]:443":       "",
	"[::ffff:127.0.0.01]:443": "",
	"[::ffff:127.1]:443":      "",
	"[:::1]:443":              "",
	"[1::2::3]:443":           "",
	"[12345::]:443":           "",
	"[v1.x]:443":              "",
	"[::1 ]:443":              "",
	"::1:443":                 "",
	"::1":                     "",
	"2001:db8::1:443":         "",
	"a[::1]:443":              "",
}

func TestParseTunnel(t *testing.T) {
	for in, want := range tunnels {
		got, err := policy.ParseTunnel(in)
		switch {
		case want == "" && err == nil:
			t.Errorf("%q was read as %s", in, got.HostPort())
		case want != "" && err != nil:
			t.Errorf("%q: %v", in, err)
		case want != "" && got.HostPort() != want:
			t.Errorf("%q is %s, want %s", in, got.HostPort(), want)
		case want != "" && got.Form != policy.Tunnel:
			t.Errorf("%q has form %s", in, got.Form)
		}
		var target *policy.TargetError
		if err != nil && (!errors.As(err, &target) || target.Refusal().Status() != 400) {
			t.Errorf("%q: error %T", in, err)
		}
	}
}

func TestParseURL(t *testing.T) {
	for in, want := range map[string][2]string{ // host:port, and the URL that is sent on
		"http://a.example/":                  {"a.example:80", "http://a.example/"},
		"HTTP://A.Example/X":                 {"a.example:80", "http://a.example/X"},
		"http://a.example":                   {"a.example:80", "http://a.example"},
		"http://a.example?x=1":               {"a.example:80", "http://a.example?x=1"},
		"http://a.example:/":                 {"a.example:80", "http://a.example/"},
		"http://a.example:80/":               {"a.example:80", "http://a.example/"},
		"http://a.example:8080/":             {"a.example:8080", "http://a.example:8080/"},
		"http://a.example./":                 {"a.example:80", "http://a.example/"},
		"http://Ä.example/":                  {"xn--4ca.example:80", "http://xn--4ca.example/"},
		"http://[::ffff:8.8.8.8]/":           {"8.8.8.8:80", "http://8.8.8.8/"},
		"http://[2a00::1]:81/":               {"[2a00::1]:81", "http://[2a00::1]:81/"},
		"http://[2a00::1]/":                  {"[2a00::1]:80", "http://[2a00::1]/"},
		"http://a.example/p@q?u=x@y:z":       {"a.example:80", "http://a.example/p@q?u=x@y:z"},
		"http://a.example/%2f/%41":           {"a.example:80", "http://a.example/%2f/%41"},
		"http://a.example//b":                {"a.example:80", "http://a.example//b"},
		"http://a.example/http://b.example/": {"a.example:80", "http://a.example/http://b.example/"},
		"https://a.example/":                 {},
		"ftp://a.example/":                   {},
		"ws://a.example/":                    {},
		"jar:http://a.example!/":             {},
		"http:/a.example/":                   {},
		"http:a.example":                     {},
		"//a.example/":                       {},
		"/x":                                 {},
		"*":                                  {},
		"":                                   {},
		"a.example:80":                       {},
		"http://":                            {},
		"http:///x":                          {},
		"http://:80/":                        {},
		"http://?x":                          {},
		" http://a.example/":                 {},
		"http ://a.example/":                 {},
		"http://user@a.example/":             {},
		"http://user:secret@a.example/":      {},
		"http://@a.example/":                 {},
		"http://a.example@b.example/":        {},
		"http://a.example#@b.example/":       {},
		"http://a.example/#frag":             {},
		"http://a.example\\b.example/":       {},
		"http://a.example\\@b.example/":      {},
		"http://a.example:70000/":            {},
		"http://a.example:0/":                {},
		"http://a.example:-1/":               {},
		"http://a.example:080/":              {},
		"http://a.example:8o/":               {},
		"http://a.example/a b":               {},
		"http://a.example/a\tb":              {},
		"http://a.example/a\x00b":            {},
		"http://a.example/%zz":               {},
		"http://2130706433/":                 {},
		"http://127.1/":                      {},
		"http://[::1%25lo]/":                 {},
		"http://a%2eexample/":                {},
	} {
		target, u, err := policy.ParseURL(in)
		switch {
		case want[0] == "" && err == nil:
			t.Errorf("%q was read as %s", in, target.HostPort())
		case want[0] == "":
			if strings.Contains(err.Error(), "secret") || u != nil {
				t.Errorf("%q: the error says %v", in, err)
			}
		case err != nil:
			t.Errorf("%q: %v", in, err)
		case target.HostPort() != want[0] || u.String() != want[1] || target.Form != policy.Request:
			t.Errorf("%q is %s %s as %s, want %s", in, target.HostPort(), u, target.Form, want)
		}
	}
}

func TestParseHost(t *testing.T) {
	for _, c := range []struct {
		host string
		port uint16
		want string
	}{
		{"a.example", 443, "a.example:443"},
		{"A.Example.", 443, "a.example:443"},
		{"::1", 443, "[::1]:443"},
		{"::ffff:127.0.0.1", 443, "127.0.0.1:443"},
		{"127.0.0.1", 443, "127.0.0.1:443"},
		{"", 443, ""},
		{"a.example", 0, ""},
		{"[::1]", 443, ""},
		{"::1%lo", 443, ""},
		{"a.example:443", 22, ""},
		{"1.2.3.4:443", 22, ""},
		{"2130706433", 443, ""},
		{"u@a.example", 443, ""},
		{"a.example/x", 443, ""},
		{strings.Repeat("a", 255), 443, ""},
	} {
		got, err := policy.ParseHost(c.host, c.port, policy.Tunnel)
		if (err != nil) != (c.want == "") || err == nil && got.HostPort() != c.want {
			t.Errorf("%q %d is %s, %v; want %s", c.host, c.port, got.HostPort(), err, c.want)
		}
	}
}

func TestParseCall(t *testing.T) {
	for in, want := range map[string]string{
		"https://a.example":                "tunnel a.example:443  ",
		"https://a.example:8443/x?y#z":     "tunnel a.example:8443  ",
		"HTTPS://A.example":                "tunnel a.example:443  ",
		"http://a.example":                 "request a.example:80 GET ",
		"http://a.example:81/v1/%41?key=1": "request a.example:81 GET /v1/%41",
		"tcp://db.example:5432":            "tunnel db.example:5432  ",
		"tcp://[2a00::1]:5432":             "tunnel [2a00::1]:5432  ",
		"tcp://db.example":                 "",
		"tcp://db.example:5432/x":          "",
		"https://user:secret@a.example":    "",
		"https://a.example:0":              "",
		"ftp://a.example":                  "",
		"a.example":                        "",
		"a.example:443":                    "",
		"":                                 "",
		"https://":                         "",
	} {
		c, err := policy.ParseCall(in)
		got := ""
		if err == nil {
			got = string(c.Target.Form) + " " + c.Target.HostPort() + " " + c.Method + " " + c.Path
		}
		if got != want {
			t.Errorf("%q is %q (%v), want %q", in, got, err, want)
		}
	}
}

func TestParsePattern(t *testing.T) {
	for in, want := range map[string]string{
		"api.example.com":      "api.example.com",
		"API.Example.COM.":     "api.example.com",
		"*.Example.COM":        "*.example.com",
		"*.example.com.":       "*.example.com",
		"ec2.*.amazonaws.com":  "ec2.*.amazonaws.com",
		"*.s3.*.amazonaws.com": "*.s3.*.amazonaws.com",
		"*.*.example.com":      "*.*.example.com",
		"*.com":                "*.com", // too wide for an allow list, right in a deny list
		"*.exämple.test":       "*.xn--exmple-cua.test",
		"*。example。test":       "*.example.test",
		"localhost":            "localhost",
		"127.0.0.1":            "127.0.0.1",
		"::1":                  "::1",
		"[2001:DB8::1]":        "2001:db8::1",
		"::ffff:10.0.0.1":      "10.0.0.1",
		"":                     "",
		"*":                    "",
		"*.":                   "",
		"*.*":                  "",
		"example.*":            "",
		"bob.ex*ample.com":     "",
		"*example.com":         "",
		"**.example.com":       "",
		"*..example.com":       "",
		"10.0.0.*":             "",
		"*.0.0.1":              "",
		"10.0.0.0/8":           "",
		"127.1":                "",
		"a.example:443":        "",
		"https://a.example":    "",
		"[a.example]":          "",
		"fe80::1%eth0":         "",
		"a b.example":          "",
		".example.com":         "",
		"*.-a.example":         "",
	} {
		got, err := policy.ParsePattern(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q is %q, %v; want %q", in, got, err, want)
		}
	}
}

func TestParsePath(t *testing.T) {
	for in, ok := range map[string]bool{
		"/": true, "/**": true, "/v1/**": true, "/v1/*/x": true, "/v1/charges": true, "/v1/charges/": true, "/a%20b": true,
		"": false, "v1": false, "**": false, "/v1/**/x": false, "/v1/ch*": false, "/v1/../x": false, "/v1/%2e": false,
		"/v1//x": false, "/v1?x": false, "/v1;x": false, "/v1%2fx": false, "/%zz": false,
	} {
		if _, err := policy.ParsePath(in); (err == nil) != ok {
			t.Errorf("%q: %v", in, err)
		}
	}
}
