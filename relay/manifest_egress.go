package relay

import (
	"net/netip"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// The sections that this version does not act on. They are checked, so that a
// file that is accepted today is not refused by the version that acts on them,
// and their values are dropped. Each check reports whether the section is there.

// checkEgress checks apps.<app>.egress.
func (r *manifestReader) checkEgress(p place) bool {
	f := r.fields(p, "mode", "allow", "deny", "limits")
	r.choice(f["mode"], "enforce", "report", "open")
	for _, item := range r.items(f["allow"], maxListed) {
		if item.node.Kind == yaml.MappingNode {
			r.checkAllowRule(item)
			continue
		}
		r.checkTarget(item)
	}
	for _, item := range r.items(f["deny"], maxListed) {
		r.checkTarget(item)
	}
	r.checkLimits(f["limits"])
	return p.given()
}

// checkAllowRule checks {host: ..., intercept: true, rules: [...], secret: ...}.
func (r *manifestReader) checkAllowRule(p place) {
	f := r.fields(p, "host", "intercept", "rules", "secret")
	r.require(p, f, "host")
	if f["host"].given() {
		parsed(r, f["host"], expectedPattern, parsePattern)
	}
	r.boolean(f["intercept"])
	for _, rule := range r.items(f["rules"], maxListed) {
		g := r.fields(rule, "methods", "paths")
		for _, m := range r.items(g["methods"], maxListed) {
			parsed(r, m, expectedMethod, parseMethod)
		}
		for _, path := range r.items(g["paths"], maxListed) {
			parsed(r, path, expectedPath, parsePath)
		}
	}
	if secret := f["secret"]; secret.given() {
		name, ok := r.text(secret, "the name of a secret")
		if ok && !r.named[name] {
			r.fail(secret, "expected the name of a secret in the top-level secrets section, found %s", quote(name))
		}
	}
}

func (r *manifestReader) checkLimits(p place) {
	f := r.fields(p, "rps", "burst", "tunnels", "upload_bytes")
	const most = 1_000_000
	if rps := f["rps"]; rps.given() {
		tag := rps.node.ShortTag()
		n, ok := parseDecimal(rps.node.Value)
		if rps.node.Kind != yaml.ScalarNode || tag != "!!int" && tag != "!!float" || !ok || n <= 0 || n > most {
			r.expected(rps, "a number of requests a second from above 0 to 1000000")
		}
	}
	r.integerIn(f["burst"], 0, 1, most)
	r.integerIn(f["tunnels"], 0, 1, most)
	r.size(f["upload_bytes"], 0, 1<<40)
}

// checkDebug checks apps.<app>.debug.
func (r *manifestReader) checkDebug(p place) bool {
	f := r.fields(p, "allow", "approval", "max_duration")
	for _, item := range r.items(f["allow"], maxListed) {
		r.choice(item, "shell", "exec", "forward", "files", "logs", "profile")
	}
	r.choice(f["approval"], "none", "required")
	r.duration(f["max_duration"], 0, time.Second, 24*time.Hour)
	return p.given()
}

// checkGlobalEgress checks the top-level egress section.
func (r *manifestReader) checkGlobalEgress(p place) bool {
	f := r.fields(p, "deny", "allow_ranges", "tests", "rollout")

	deny := r.fields(f["deny"], "hosts", "ranges")
	for _, item := range r.items(deny["hosts"], maxListed) {
		parsed(r, item, expectedPattern, parsePattern)
	}
	r.readRanges(deny["ranges"])

	for _, item := range r.items(f["allow_ranges"], maxListed) {
		hole := r.fields(item, "range", "ports", "reason")
		r.require(item, hole, "range")
		if hole["range"].given() {
			parsed(r, hole["range"], expectedRange, parseRange)
		}
		for _, port := range r.items(hole["ports"], maxListed) {
			r.integerIn(port, 0, 1, 65535)
		}
		if hole["reason"].given() {
			r.text(hole["reason"], "a reason in words")
		}
	}
	for _, item := range r.items(f["tests"], maxListed) {
		r.checkEgressTest(item)
	}
	r.checkRollout(f["rollout"])
	return p.given()
}

func (r *manifestReader) checkEgressTest(p place) {
	f := r.fields(p, "app", "target", "expect")
	r.require(p, f, "app", "target", "expect")
	if app := f["app"]; app.given() {
		if name, ok := r.text(app, "the name of an app"); ok && !r.apps[AppID(name)] {
			r.fail(app, "expected the name of an app in the apps section, found %s", quote(name))
		}
	}
	if f["target"].given() {
		r.checkTarget(f["target"])
	}
	r.choice(f["expect"], "allow", "deny")
}

func (r *manifestReader) checkRollout(p place) {
	f := r.fields(p, "canary", "for", "rollback_if_deny_rate")
	if f["canary"].given() {
		parsed(r, f["canary"], expectedPercent, func(s string) (float64, string) {
			digits, ok := strings.CutSuffix(s, "%")
			n, valid := parseDecimal(digits)
			if !ok || !valid || n <= 0 || n > 100 {
				return 0, expectedPercent
			}
			return n, ""
		})
	}
	r.duration(f["for"], 0, time.Second, 7*24*time.Hour)
	if f["rollback_if_deny_rate"].given() {
		parsed(r, f["rollback_if_deny_rate"], expectedFactor, func(s string) (float64, string) {
			digits, ok := strings.CutSuffix(s, "x")
			n, valid := parseDecimal(digits)
			if !ok || !valid || n <= 0 {
				return 0, expectedFactor
			}
			return n, ""
		})
	}
}

const (
	expectedPercent = "a percentage such as 10%, at most 100%"
	expectedFactor  = "a factor such as 2x"
	expectedMethod  = "an HTTP method in capitals such as GET"
	expectedPattern = "a host name such as api.example.com, *.example.com or an address"
	expectedTarget  = "a target such as https://api.example.com, tcp://db.example.com:5432 or *.example.com"
	expectedFormat  = "a text in which {secret} stands for the value"
	expectedHeader  = "the name of a header such as Authorization"
)

func parseMethod(s string) (string, string) {
	if s == "" || len(s) > 32 || !allOf(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZ-") {
		return "", expectedMethod
	}
	return s, ""
}

// parsePattern reads a host name, one that begins with the whole label "*", or
// an address.
func parsePattern(s string) (string, string) {
	if addr, err := netip.ParseAddr(s); err == nil && addr.Zone() == "" {
		return s, ""
	}
	if _, expected := parseHost(strings.TrimPrefix(s, "*.")); expected != "" {
		return "", expectedPattern
	}
	return s, ""
}

// checkTarget reads what a rule allows or denies: scheme://host[:port], or a
// host with or without a port.
func (r *manifestReader) checkTarget(p place) {
	if p.node.Kind == yaml.ScalarNode && strings.Contains(p.node.Value, "@") {
		// Not shown: what stands before the @ is a password.
		r.fail(p, "expected a target without a user and password")
		return
	}
	parsed(r, p, expectedTarget, parseTarget)
}

func parseTarget(s string) (string, string) {
	scheme, rest, hasScheme := strings.Cut(s, "://")
	if !hasScheme {
		scheme, rest = "", s
	} else if scheme != "https" && scheme != "http" && scheme != "tcp" {
		return "", "a target that begins with https://, http:// or tcp://"
	}
	if hasScheme && strings.Contains(rest, "/") {
		return "", "a target without a path; paths belong to the rules of an intercepted host"
	}
	host, port := splitPort(rest)
	if scheme == "tcp" && port == "" {
		return "", "a target with a port such as tcp://db.example.com:5432"
	}
	if port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return "", "a target with a port from 1 to 65535"
		}
	}
	if _, expected := parsePattern(host); expected != "" {
		return "", expectedTarget
	}
	return s, ""
}

// splitPort takes host, host:port, [v6], [v6]:port or a bare v6 address apart.
func splitPort(s string) (host, port string) {
	if rest, ok := strings.CutPrefix(s, "["); ok {
		host, after, closed := strings.Cut(rest, "]")
		if !closed || after != "" && !strings.HasPrefix(after, ":") {
			return "", ""
		}
		return host, strings.TrimPrefix(after, ":")
	}
	if strings.Count(s, ":") > 1 {
		return s, ""
	}
	host, port, _ = strings.Cut(s, ":")
	return host, port
}

// checkSecrets checks the top-level secrets section and notes its names. The
// values are not resolved: nothing uses them yet, and a variable that nothing
// uses need not be set.
func (r *manifestReader) checkSecrets(p place) bool {
	p.secret = true
	for _, e := range r.entries(p) {
		if _, expected := parseName(e.name); expected != "" {
			r.failAt(e.key, p.path, "expected %s", expected)
			continue
		}
		r.named[e.name] = true
		if !r.isSecretMapping(e) {
			continue
		}
		f := r.fields(e, append([]string{"header", "format"}, secretKinds...)...)
		r.readSource(e, f)
		if f["header"].given() {
			parsed(r, f["header"], expectedHeader, parseHeaderName)
		}
		if f["format"].given() {
			parsed(r, f["format"], expectedFormat, func(s string) (string, string) {
				if !strings.Contains(s, "{secret}") || hasControl(s) {
					return "", expectedFormat
				}
				return s, ""
			})
		}
	}
	return p.given()
}

// parseHeaderName reads a token (RFC 9110, section 5.6.2).
func parseHeaderName(s string) (string, string) {
	for _, c := range s {
		if c <= ' ' || c >= 0x7f || strings.ContainsRune("\"(),/:;<=>?@[\\]{}", c) {
			return "", expectedHeader
		}
	}
	if s == "" || len(s) > 256 {
		return "", expectedHeader
	}
	return s, ""
}
