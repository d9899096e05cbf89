package relay

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// parseErrors gives the error text of a manifest that must be refused.
func parseErrors(t *testing.T, data string, opts ManifestOptions) string {
	t.Helper()
	m, err := ParseManifest("m.yaml", []byte(data), opts)
	if err == nil {
		t.Fatalf("accepted:\n%s", data)
	}
	if m != nil {
		t.Error("a refused manifest came with a value")
	}
	return err.Error()
}

func TestAFileThatIsNoManifest(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, data, want string }{
		{"an empty file", "", "m.yaml:1:1: the file is empty; expected a mapping with the keys version and apps"},
		{"only comments", "# nothing\n", "m.yaml:1:1: the file is empty; expected a mapping with the keys version and apps"},
		{"a list", "- a\n", "m.yaml:1:1: expected a mapping with the keys version and apps, found a list"},
		{"a tab", "version: 1\napps:\n\tshop:\n",
			"m.yaml:3:1: expected a key or value: indent with spaces, not tabs, and quote a text that begins with @, ` or %"},
		{"a text that begins with @", "version: 1\napps:\n  a: {team: @b}\n",
			"m.yaml:3:13: expected a key or value: indent with spaces, not tabs, and quote a text that begins with @, ` or %"},
		{"a list that is not closed", "version: 1\napps:\n  a:\n    ingress:\n      hosts: [a, b\n    team: x\n",
			"m.yaml:5:7: expected , or ] to go on with or close the list that begins with ["},
		{"wrong indentation", "version: 1\napps:\n  a:\n    team: x\n   ingress: {}\n",
			"m.yaml:5:4: expected another key at the same indentation as the keys above, or the end of the section"},
		{"wrong indentation below a list over two lines", "version: 1\napps:\n  a:\n    ingress:\n      hosts: [a,\n        b]\n   team: x\n",
			"m.yaml:7:4: expected another key at the same indentation as the keys above, or the end of the section"},
		{"two colons", "version: 1\napps:\n  a:\n    team: x: y\n",
			"m.yaml:4:5: expected no second \": \" on this line and no deeper indentation than above; quote a text that has \": \" in it"},
		{"a quote that is not closed", "version: 1\napps:\n  a:\n    team: \"x\n\n  b:\n",
			"m.yaml:4:5: expected the closing quote of the text that begins here"},
		{"a bracket alone", "]", "m.yaml:1:1: expected a value"},
		{"a control character", "version: 1\napps: {a: {team: \"é\x01\"}}\n", "m.yaml:2:20: expected printable text, found the control character U+0001"},
		{"bytes that are not UTF-8", "version: 1\n# \xff\n", "m.yaml:2:3: expected UTF-8 text, found the byte 0xff"},
		{"two documents", "version: 1\napps: {}\n---\nversion: 1\n", "m.yaml:3:1: expected one YAML document, found a second one"},
		{"a broken second document", "version: 1\napps: {}\n---\na: [\n", "m.yaml:4:1: expected a value"},
		{"a file over the limit", "version: 1 " + strings.Repeat(" ", MaxManifestSize), "m.yaml:1:1: expected a file of at most 8 MiB, found 8388619 bytes"},
		{"an unknown anchor", "version: 1\napps: # *x\n  a: *x\n", "m.yaml:3:6: expected an anchor that was defined above; quote a text that begins with *"},
		{"an anchor in itself", "version: 1\napps: &x {a: *x}\n", "m.yaml:2:14: expected an alias of something else, found one of what it is part of"},
		{"a merge of a text", "version: 1\napps: {<<: x}\n", "m.yaml:2:12: expected << to name a mapping, found a text"},
		{"a tag", "version: 1\napps: {a: {team: !secret x}}\n", "m.yaml:2:18: expected a value without a tag; quote a text that begins with !"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := parseErrors(t, tt.data, ManifestOptions{}); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

func TestABillionLaughs(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	b.WriteString("version: 1\na0: &a0 [x, x, x, x, x, x, x, x, x, x]\n")
	for i := 1; i < 12; i++ {
		fmt.Fprintf(&b, "a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 10), ", "))
	}
	got := parseErrors(t, b.String(), ManifestOptions{})
	if want := "expected aliases that add at most 10000 values to the file"; !strings.Contains(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestWhatIsWrongAtTheTop(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, data, want string }{
		{"no version", "apps: {}\n", `m.yaml:1:1: expected the key "version", which is missing`},
		{"another version, and nothing else is looked at", "version: 2\nwhatever: 1\n", "m.yaml:1:10: version: expected 1, the only version there is, found 2"},
		{"a version in quotes", "version: \"1\"\napps: {}\n", `m.yaml:1:10: version: expected a whole number, found "1"`},
		{"no apps", "version: 1\n", `m.yaml:1:1: expected the key "apps", which is missing`},
		{"apps without a value", "version: 1\napps:\n", "m.yaml:2:1: apps: expected a mapping of app names, found nothing; to declare no app write {}"},
		{"apps as a list", "version: 1\napps: [shop]\n", "m.yaml:2:7: apps: expected a mapping, found a list"},
		{"an unknown key", "version: 1\napps: {}\nfoo: 1\n", `m.yaml:3:1: unknown key "foo"; expected one of version, apps, egress, secrets`},
		{"a mistyped key", "version: 1\napps: {}\negres: {}\n", `m.yaml:3:1: unknown key "egres"; expected one of version, apps, egress, secrets; did you mean "egress"?`},
		{"a duplicate key", "version: 1\napps: {}\nversion: 1\n", `m.yaml:3:1: duplicate key "version"; expected it once, it is on line 1 already`},
		{"an app twice", "version: 1\napps:\n  a:\n  b:\n  a:\n", `m.yaml:5:3: apps: duplicate key "a"; expected it once, it is on line 3 already`},
		{"a list as a key", "version: 1\napps:\n  ? [a]\n  : {}\n", "m.yaml:3:5: apps: expected a name as key, found a list"},
		{"an app name in capitals", "version: 1\napps: {Shop: {}}\n", `m.yaml:2:8: apps: expected an app name of 1 to 63 characters a-z, 0-9 and inner hyphens, found "Shop"`},
		{"a name that would break the line", "version: 1\napps: {\"a\\nb\": {}}\n", `m.yaml:2:8: apps: expected an app name of 1 to 63 characters a-z, 0-9 and inner hyphens, found "a\nb"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := parseErrors(t, tt.data, testOptions()); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

func TestWhatIsWrongInAnApp(t *testing.T) {
	t.Parallel()
	const head = "version: 1\napps:\n  a:\n" // the line under test is line 4
	tests := []struct{ name, line, want string }{
		{"an app that is a text", "    shop", `m.yaml:4:5: apps.a: expected a mapping, found a text`},
		{"a public URL that is none", "    public_url: shop.onrender.com", `m.yaml:4:17: apps.a.public_url: expected a URL such as https://hooks.example.com/stripe, which begins with https:// or http://`},
		{"a public URL of the relay's own", "    public_url: https://a.apps.example/", `m.yaml:4:17: apps.a.public_url: expected the address at the app's own platform, a.apps.example is an address of this relay`},
		{"a mistyped section", "    endpoint: {}", `m.yaml:4:5: apps.a: unknown key "endpoint"; expected one of team, public_url, ingress, endpoints, quota, egress, debug; did you mean "endpoints"?`},
		{"a team that is a number", "    team: 4711", "m.yaml:4:11: apps.a.team: expected a team name of 1 to 64 characters, found a number; put it in quotes"},
		{"a team without a value", "    team:", "m.yaml:4:5: apps.a.team: expected a team name of 1 to 64 characters, found nothing"},
		{"a team that is a list", "    team: [x]", "m.yaml:4:11: apps.a.team: expected a team name of 1 to 64 characters, found a list"},
		{"hosts that are a text", "    ingress: {hosts: a.example.com}", "m.yaml:4:22: apps.a.ingress.hosts: expected a list, found a text"},
		{"a host with a scheme", "    ingress: {hosts: [\"https://a.example.com\"]}", `m.yaml:4:23: apps.a.ingress.hosts[0]: expected a host name such as shop.example.com without a scheme, found "https://a.example.com"`},
		{"a host with a port", "    ingress: {hosts: [\"a.example.com:80\"]}", `m.yaml:4:23: apps.a.ingress.hosts[0]: expected a host name such as shop.example.com without a port, found "a.example.com:80"`},
		{"a wildcard host", "    ingress: {hosts: [\"*.example.com\"]}", `m.yaml:4:23: apps.a.ingress.hosts[0]: expected a host name such as shop.example.com; a wildcard is not possible here, found "*.example.com"`},
		{"a host outside ASCII", "    ingress: {hosts: [ü.example.com]}", `m.yaml:4:23: apps.a.ingress.hosts[0]: expected a host name such as shop.example.com in its ASCII (punycode) form, found "ü.example.com"`},
		{"a host that is an address", "    ingress: {hosts: [203.0.113.9]}", `m.yaml:4:23: apps.a.ingress.hosts[0]: expected a host name such as shop.example.com, found "203.0.113.9"`},
		{"a host twice in one app", "    ingress: {hosts: [x.example, X.example]}", "m.yaml:4:34: apps.a.ingress.hosts[1]: expected a host that is named once, x.example is apps.a's on line 4 already"},
		{"a host of two apps", "    ingress: {hosts: [x.example]}\n  b:\n    ingress: {hosts: [x.example]}", "m.yaml:6:23: apps.b.ingress.hosts[0]: expected a host that is named once, x.example is apps.a's on line 4 already"},
		{"a host that is another app's built-in name", "    ingress: {hosts: [b.apps.example]}\n  b:", "m.yaml:4:23: apps.a.ingress.hosts[0]: expected a host of this app, b.apps.example is the built-in name of apps.b"},
		{"a range that is none", "    ingress: {allow_ips: [10.0.0.0/33]}", `m.yaml:4:27: apps.a.ingress.allow_ips[0]: expected an address range such as 203.0.113.0/24, or one address, found "10.0.0.0/33"`},
		{"a range with bits below its mask", "    ingress: {allow_ips: [203.0.113.9/24]}", `m.yaml:4:27: apps.a.ingress.allow_ips[0]: expected a range without bits below its mask; did you mean 203.0.113.0/24 or 203.0.113.9/32?, found "203.0.113.9/24"`},
		{"an empty list of ranges", "    ingress: {allow_ips: []}", "m.yaml:4:26: apps.a.ingress.allow_ips: expected at least one range; to let everybody in leave the key out"},
		{"an unknown protocol", "    ingress: {protocol: h2}", `m.yaml:4:25: apps.a.ingress.protocol: expected one of http1, h2c, found "h2"; did you mean "h2c"?`},
		{"an empty auth", "    ingress: {auth: {}}", `m.yaml:4:15: apps.a.ingress.auth: expected the key "basic", which is missing`},
		{"a user without a password", "    ingress: {auth: {basic: {user: dev}}}", `m.yaml:4:22: apps.a.ingress.auth.basic: expected the key "password", which is missing`},
		{"a user with a colon", "    ingress: {auth: {basic: {user: \"a:b\", password: {env: DEV_PASSWORD}}}}", `m.yaml:4:36: apps.a.ingress.auth.basic.user: expected a user name without : and control characters, found "a:b"`},
		{"an endpoint in capitals", "    endpoints: {Stripe: {provider: none}}", `m.yaml:4:17: apps.a.endpoints: expected a name of 1 to 63 characters a-z, 0-9, - and _, found "Stripe"`},
		{"a debug right that is unknown", "    debug: {allow: [shel]}", `m.yaml:4:21: apps.a.debug.allow[0]: expected one of shell, exec, forward, files, logs, profile, found "shel"; did you mean "shell"?`},
		{"a debug approval that is unknown", "    debug: {approval: no}", `m.yaml:4:23: apps.a.debug.approval: expected one of none, required, found "no"`},
		{"a debug session without end", "    debug: {max_duration: 48h}", `m.yaml:4:27: apps.a.debug.max_duration: expected a duration from 1s to 24h, found "48h"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			opts := testOptions()
			opts.AppsDomain = "apps.example"
			if got := parseErrors(t, head+tt.line+"\n", opts); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

func TestWhatIsWrongInAnEndpoint(t *testing.T) {
	t.Parallel()
	const at = "apps.a.endpoints.e"
	tests := []struct{ name, value, want string }{ // value begins in column 10 of line 5
		{"nothing", "", `m.yaml:5:7: apps.a.endpoints.e: expected the key "provider", which is missing`},
		{"a mistyped key", "{provider: none, max_inflight: 3}", `m.yaml:5:27: ` + at + `: unknown key "max_inflight"; expected one of provider, secrets, hmac, verify_token, webhook_id, tolerance, mode, deadline, allow_unsubscribe, path, order_by, max_in_flight, rate, retry, breaker, resign, max_body, redact, retention, fan_out; did you mean "max_in_flight"?`},
		{"an unknown provider", "{provider: strpe, secrets: [{env: STRIPE_WHSEC}]}", `m.yaml:5:21: ` + at + `.provider: unknown provider "strpe"; expected one of discord, github, hmac, meta, none, paypal, sns, stripe; did you mean "stripe"?`},
		{"a provider without a secret", "{provider: stripe}", `m.yaml:5:7: ` + at + `: provider stripe needs a secret; expected secrets: [{env: NAME}], or provider: none to accept everything`},
		{"a provider with an empty list of secrets", "{provider: stripe, secrets: []}", `m.yaml:5:7: ` + at + `: provider stripe needs a secret; expected secrets: [{env: NAME}], or provider: none to accept everything`},
		{"an unknown mode", "{provider: none, mode: stored}", `m.yaml:5:33: ` + at + `.mode: expected one of store, hybrid, sync, found "stored"; did you mean "store"?`},
		{"a path without a slash", "{provider: none, path: hook}", `m.yaml:5:33: ` + at + `.path: expected a path that begins with / and has no query, found "hook"`},
		{"a path with a query", "{provider: none, path: '/a?b=c'}", `m.yaml:5:33: ` + at + `.path: expected a path that begins with / and has no query, found "/a?b=c"`},
		{"a path that is a host", "{provider: none, path: //evil.example}", `m.yaml:5:33: ` + at + `.path: expected a path that begins with / and has no query, found "//evil.example"`},
		{"a path with half an escape", "{provider: none, path: /a%2}", `m.yaml:5:33: ` + at + `.path: expected a path in which each % begins an escape such as %20, found "/a%2"`},
		{"a pointer without a slash", "{provider: none, order_by: id}", `m.yaml:5:37: ` + at + `.order_by: expected a JSON pointer such as /data/object/id, found "id"`},
		{"a pointer with a bare tilde", "{provider: none, order_by: /a~}", `m.yaml:5:37: ` + at + `.order_by: expected a JSON pointer such as /data/object/id, with ~ written as ~0, found "/a~"`},
		{"nothing in flight", "{provider: none, max_in_flight: 0}", `m.yaml:5:42: ` + at + `.max_in_flight: expected a whole number from 1 to 1000, found 0`},
		{"in flight as a text", "{provider: none, max_in_flight: lots}", `m.yaml:5:42: ` + at + `.max_in_flight: expected a whole number, found "lots"`},
		{"a number too large for any integer", "{provider: none, max_in_flight: 99999999999999999999}", `m.yaml:5:42: ` + at + `.max_in_flight: expected a whole number, found the value "99999999999999999999"`},
		{"a rate without a unit", "{provider: none, rate: 50}", `m.yaml:5:33: ` + at + `.rate: expected a rate such as 50/s, 100/m or 2000/h, found a number; put it in quotes`},
		{"a rate by the day", "{provider: none, rate: 50/d}", `m.yaml:5:33: ` + at + `.rate: expected a rate such as 50/s, 100/m or 2000/h, found "50/d"`},
		{"a rate of nothing", "{provider: none, rate: 0/s}", `m.yaml:5:33: ` + at + `.rate: expected a rate such as 50/s, 100/m or 2000/h, found "0/s"`},
		{"a rate of infinity", "{provider: none, rate: inf/s}", `m.yaml:5:33: ` + at + `.rate: expected a rate such as 50/s, 100/m or 2000/h, found "inf/s"`},
		{"a rate beyond the limit", "{provider: none, rate: 1000001/s}", `m.yaml:5:33: ` + at + `.rate: expected a rate of at most 1000000/s, found "1000001/s"`},
		{"a retry that is a list", "{provider: none, retry: [5s]}", `m.yaml:5:34: ` + at + `.retry: expected a mapping, found a list`},
		{"a schedule without a value", "{provider: none, retry: {schedule: }}", `m.yaml:5:35: ` + at + `.retry.schedule: expected a list of durations, found nothing; to never retry write []`},
		{"a pause without a unit", "{provider: none, retry: {schedule: [5]}}", `m.yaml:5:46: ` + at + `.retry.schedule[0]: expected a duration such as 30s, 10m, 2h or 7d, found a number; put it in quotes`},
		{"a pause in words", "{provider: none, retry: {schedule: [5s, soon]}}", `m.yaml:5:50: ` + at + `.retry.schedule[1]: expected a duration such as 30s, 10m, 2h or 7d, found "soon"`},
		{"a pause of more than a week", "{provider: none, retry: {schedule: [169h]}}", `m.yaml:5:46: ` + at + `.retry.schedule[0]: expected a duration from 1ms to 7d, found "169h"`},
		{"a negative pause", "{provider: none, retry: {schedule: [-5s]}}", `m.yaml:5:46: ` + at + `.retry.schedule[0]: expected a duration from 1ms to 7d, found "-5s"`},
		{"yes instead of true", "{provider: none, resign: yes}", `m.yaml:5:35: ` + at + `.resign: expected true or false, found "yes"`},
		{"a size in words", "{provider: none, max_body: 1 megabyte}", `m.yaml:5:37: ` + at + `.max_body: expected a size such as 512KiB, 10MiB or 1GB, found "1 megabyte"`},
		{"a size beyond the limit", "{provider: none, max_body: 1GiB}", `m.yaml:5:37: ` + at + `.max_body: expected a size from 1B to 256MiB, found "1GiB"`},
		{"a date where a text belongs", "{provider: none, path: 2020-01-01}", `m.yaml:5:33: ` + at + `.path: expected a path that begins with / and has no query, found a date; put it in quotes`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			data := "version: 1\napps:\n  a:\n    endpoints:\n      e: " + tt.value + "\n"
			if got := parseErrors(t, data, testOptions()); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

func TestWhatIsWrongInEgress(t *testing.T) {
	t.Parallel()
	const head = "version: 1\napps: {a: {egress: "
	tests := []struct{ name, data, want string }{
		{"a mistyped key", head + "{alow: []}}}", `m.yaml:2:21: apps.a.egress: unknown key "alow"; expected one of mode, sni, allow, deny, limits; did you mean "allow"?`},
		{"an unknown mode", head + "{mode: off}}}", `m.yaml:2:27: apps.a.egress.mode: expected one of enforce, report, open, found "off"`},
		{"a target with a path", head + "{allow: [https://a.example/x]}}}", `m.yaml:2:29: apps.a.egress.allow[0]: expected a target without a path; paths belong to the rules beside a host, found "https://a.example/x"`},
		{"a tcp target without a port", head + "{allow: [tcp://a.example]}}}", `m.yaml:2:29: apps.a.egress.allow[0]: expected a target with a port such as tcp://db.example.com:5432, found "tcp://a.example"`},
		{"a target with a port too large", head + "{allow: [https://a.example:65536]}}}", `m.yaml:2:29: apps.a.egress.allow[0]: expected a target with a port from 1 to 65535, found "https://a.example:65536"`},
		{"a target of another scheme", head + "{allow: [ftp://a.example]}}}", `m.yaml:2:29: apps.a.egress.allow[0]: expected a target that begins with https://, http:// or tcp://, found "ftp://a.example"`},
		{"a star within a label", head + "{deny: [\"a*.example\"]}}}", `m.yaml:2:28: apps.a.egress.deny[0]: expected a target such as https://api.example.com, tcp://db.example.com:5432 or *.example.com, found "a*.example"`},
		{"a target with a password, which is not shown", head + "{allow: [\"https://u:hunter2@a.example\"]}}}", `m.yaml:2:29: apps.a.egress.allow[0]: expected a target without a user and password`},
		{"a rule without a host", head + "{allow: [{intercept: true}]}}}", `m.yaml:2:29: apps.a.egress.allow[0]: expected the key "host", which is missing`},
		{"a rule with an unknown secret", head + "{allow: [{host: a.example, secret: s}]}}}", `m.yaml:2:55: apps.a.egress.allow[0].secret: expected the name of a secret in the top-level secrets section, found "s"`},
		{"a method in small letters", head + "{allow: [{host: a.example, rules: [{methods: [get]}]}]}}}", `m.yaml:2:66: apps.a.egress.allow[0].rules[0].methods[0]: expected an HTTP method in capitals such as GET, found "get"`},
		{"a limit that is a text", head + "{limits: {rps: fast}}}}", `m.yaml:2:35: apps.a.egress.limits.rps: expected a number of requests a second from above 0 to 1000000, found "fast"`},
		{"a limit that is a mapping", head + "{limits: {rps: {}}}}}", `m.yaml:2:35: apps.a.egress.limits.rps: expected a number of requests a second from above 0 to 1000000, found a mapping`},
		{"a denied range that is none", "version: 1\napps: {}\negress: {deny: {ranges: [x]}}", `m.yaml:3:26: egress.deny.ranges[0]: expected an address range such as 203.0.113.0/24, or one address, found "x"`},
		{"a hole without a range", "version: 1\napps: {}\negress: {allow_ranges: [{ports: [1]}]}", `m.yaml:3:25: egress.allow_ranges[0]: expected the key "range", which is missing`},
		{"a hole with a port too large", "version: 1\napps: {}\negress: {allow_ranges: [{range: 10.0.0.1, ports: [65536]}]}", `m.yaml:3:51: egress.allow_ranges[0].ports[0]: expected a whole number from 1 to 65535, found 65536`},
		{"a test of an unknown app", "version: 1\napps: {}\negress: {tests: [{app: b, target: https://x.example, expect: allow}]}", `m.yaml:3:24: egress.tests[0].app: expected the name of an app in the apps section, found "b"`},
		{"a hole without ports", "version: 1\napps: {}\negress: {allow_ranges: [{range: 10.0.0.1}]}", `m.yaml:3:25: egress.allow_ranges[0]: expected the key "ports", which is missing`},
		{"a hole with no port", "version: 1\napps: {}\negress: {allow_ranges: [{range: 10.0.0.1, ports: []}]}", `m.yaml:3:50: egress.allow_ranges[0].ports: expected at least one port`},
		{"everything is allowed", head + "{allow: ['*']}}}", `m.yaml:2:29: apps.a.egress.allow[0]: expected a pattern that leaves some hosts; for every host write mode: open, found "*"`},
		{"a pattern that anybody can register under", head + "{allow: ['*.com']}}}", `m.yaml:2:29: apps.a.egress.allow[0]: expected a pattern that is somebody's, found "*.com": everybody can register names under com; for every host write mode: open`},
		{"a pattern under a public suffix of two labels", head + "{allow: ['https://*.co.uk']}}}", `m.yaml:2:29: apps.a.egress.allow[0]: expected a pattern that is somebody's, found "*.co.uk": everybody can register names under co.uk; for every host write mode: open`},
		{"a host in capitals with a dot", head + "{allow: ['Example.COM.']}}}", `m.yaml:2:29: apps.a.egress.allow[0]: expected the canonical form "example.com", found "Example.COM."`},
		{"a range of everything", "version: 1\napps: {}\negress: {deny: {ranges: [0.0.0.0/0]}}", `m.yaml:3:26: egress.deny.ranges[0]: expected a range that leaves some addresses, found all of a family; to refuse every call leave the allow list empty`},
		{"upgrade of what is not seen", head + "{allow: [{host: https://a.example, upgrade: true}]}}}", `m.yaml:2:64: apps.a.egress.allow[0].upgrade: expected upgrade only with a host that begins with http://: the relay sees no other requests`},
		{"rules of what is not seen", head + "{allow: [{host: a.example, rules: [{methods: [GET]}]}]}}}", `m.yaml:2:54: apps.a.egress.allow[0].rules: expected intercept: true beside rules of an https:// host: without it nobody sees methods and paths`},
		{"a secret that nobody can put in", head + "{allow: [{host: a.example, secret: s}]}}}\nsecrets: {s: {env: A}}", `m.yaml:2:55: apps.a.egress.allow[0].secret: expected intercept: true beside a secret: without it nobody can put it in`},
		{"an unknown quota", head + "{allow: [{host: a.example, quota: q}]}}}", `m.yaml:2:54: apps.a.egress.allow[0].quota: expected the name of a quota in the egress section's quotas, found "q"`},
		{"an end that is no date", head + "{allow: [{host: a.example, expires: soon}]}}}", `m.yaml:2:56: apps.a.egress.allow[0].expires: expected a date such as 2027-01-31, or a time such as 2027-01-31T18:00:00Z, found "soon"`},
		{"a test that fails", "version: 1\napps: {a: {egress: {allow: [https://a.example]}}}\negress: {tests: [{app: a, target: https://b.example, expect: allow}]}", `m.yaml:3:18: egress.tests[0]: expected allow for "https://b.example", found deny by default: `},
		{"a test of an app that may do nothing", "version: 1\napps: {a: {}}\negress: {tests: [{app: a, target: https://b.example, expect: allow}]}", `m.yaml:3:18: egress.tests[0]: expected allow for "https://b.example", found deny by default: `},
		{"a rollout to more than all", "version: 1\napps: {}\negress: {rollout: {canary: 101%}}", `m.yaml:3:28: egress.rollout.canary: expected a percentage such as 10%, at most 100%, found "101%"`},
		{"a rollback without a factor", "version: 1\napps: {}\negress: {rollout: {rollback_if_deny_rate: 2}}", `m.yaml:3:43: egress.rollout.rollback_if_deny_rate: expected a factor such as 2x, found a number; put it in quotes`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := parseErrors(t, tt.data, testOptions())
			// The sentence of a decision is package policy's own.
			if got != tt.want && !(strings.HasSuffix(tt.want, ": ") && strings.HasPrefix(got, tt.want)) {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

func TestTargetsInAllTheirForms(t *testing.T) {
	t.Parallel()
	accepted := []string{
		"https://api.example.com", "http://api.example.com:8080", "tcp://db.example.com:5432", "*.example.com",
		"https://*.example.com", "api.example.com:443", "203.0.113.9", "tcp://203.0.113.9:22", "2001:db8::1",
		"https://[2001:db8::1]", "tcp://[2001:db8::1]:5432", "api.*.example.com",
	}
	refused := []string{
		"", "*", "https://", "api.x*.example.com", "https://[2001:db8::1", "tcp://[2001:db8::1]", "tcp://[2001:db8::1]x:1",
		"api.example.com:0", "api.example.com:http", "https://a.example/", "HTTPS://a.example", "a b.example", "fe80::1%eth0",
	}
	check := func(target string) error {
		_, err := ParseManifest("m.yaml", []byte("version: 1\napps: {a: {egress: {deny: ['"+target+"']}}}\n"), testOptions())
		return err
	}
	for _, target := range accepted {
		if err := check(target); err != nil {
			t.Errorf("%q: %v", target, err)
		}
	}
	for _, target := range refused {
		if check(target) == nil {
			t.Errorf("%q is accepted", target)
		}
	}
}

func TestALongValueIsCutInAnError(t *testing.T) {
	t.Parallel()
	got := parseErrors(t, "version: 1\napps: {}\n"+strings.Repeat("é", 200)+": 1\n", testOptions())
	want := `m.yaml:3:1: unknown key "` + strings.Repeat("é", 60) + `…"; expected one of version, apps, egress, secrets`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestAMissingValueAtTheEndPointsIntoTheFile(t *testing.T) {
	t.Parallel()
	got := parseErrors(t, "version: 1\napps:\n  a:\n    ingress:\n      hosts:\n        -\n", testOptions())
	want := "m.yaml:6:10: apps.a.ingress.hosts[0]: expected a host name such as shop.example.com, found nothing"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestAllErrorsComeSortedByPosition(t *testing.T) {
	t.Parallel()
	got := parseErrors(t, "version: 1\napps:\n  a:\n    debug: {approval: x}\n    team: 1\n    foo: 1\negress: 1\n", testOptions())
	want := strings.Join([]string{
		`m.yaml:4:23: apps.a.debug.approval: expected one of none, required, found "x"`,
		`m.yaml:5:11: apps.a.team: expected a team name of 1 to 64 characters, found a number; put it in quotes`,
		`m.yaml:6:5: apps.a: unknown key "foo"; expected one of team, public_url, ingress, endpoints, quota, egress, debug`,
		`m.yaml:7:9: egress: expected a mapping, found a number`,
	}, "\n")
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestErrorsAreBoundedAndTyped(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	b.WriteString("version: 1\napps: {}\n")
	for i := range 5000 {
		fmt.Fprintf(&b, "k%d: 1\n", i)
	}
	_, err := ParseManifest("m.yaml", []byte(b.String()), ManifestOptions{})
	var list ManifestErrors
	if !errors.As(err, &list) {
		t.Fatalf("error is a %T", err)
	}
	if len(list) != 20 {
		t.Errorf("%d errors, want 20", len(list))
	}
	if list[0].Line != 3 || list[0].Column != 1 || list[0].File != "m.yaml" {
		t.Errorf("the first is %+v", list[0])
	}
}

func TestAManifestWithoutANameHasOneInErrors(t *testing.T) {
	t.Parallel()
	_, err := ParseManifest("", nil, ManifestOptions{})
	if err == nil || !strings.HasPrefix(err.Error(), "manifest:1:1: ") {
		t.Errorf("got %v", err)
	}
}
