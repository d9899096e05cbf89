package relay

import (
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/posternhq/postern/protocol/policy"
	"go.yaml.in/yaml/v3"
	"golang.org/x/net/publicsuffix"
)

// maxRules is how many lines an allow or deny list may have.
const maxRules = 100_000

// readEgress reads apps.<app>.egress.
func (r *manifestReader) readEgress(p place) Egress {
	f := r.fields(p, "mode", "sni", "allow", "deny", "limits")
	e := Egress{
		Declared: p.given(),
		Mode:     policy.Mode(r.choice(f["mode"], "enforce", "report", "open")),
		SNI:      policy.SNIMode(r.choice(f["sni"], "match", "allowlisted", "off")),
		Limits:   r.readLimits(f["limits"]),
	}
	for _, item := range r.items(f["allow"], maxRules) {
		e.Allow = append(e.Allow, r.readRule(item))
	}
	for _, item := range r.items(f["deny"], maxRules) {
		e.Deny = append(e.Deny, r.readDeny(item))
	}
	return e
}

// readRule reads one item of an allow list: a target, or a mapping with host and
// what else is to be said of it.
func (r *manifestReader) readRule(p place) policy.Rule {
	if p.node.Kind != yaml.MappingNode {
		return r.readTarget(p, p)
	}
	before := len(r.errs)
	f := r.fields(p, "host", "via", "on_relay_loss", "upgrade", "optimistic", "expires", "owner",
		"limits", "quota", "rules", "intercept", "secret")
	r.require(p, f, "host")
	rule := policy.Rule{Where: p.path, Line: p.node.Line}
	if f["host"].given() {
		rule = r.readTarget(p, f["host"])
	}
	rule.Via = r.direct(f["via"], "relay")
	rule.OnRelayLoss = r.direct(f["on_relay_loss"], "closed")
	rule.Upgrade = r.boolean(f["upgrade"])
	if f["optimistic"].given() {
		rule.Early = r.boolean(f["optimistic"])
		rule.Wait = !rule.Early
	}
	rule.Intercept = r.boolean(f["intercept"])
	rule.Expires = r.date(f["expires"])
	rule.Owner = r.readOwner(f["owner"])
	rule.Limits = r.readLimits(f["limits"])
	rule.Quota = r.readQuotaName(f["quota"])
	for _, item := range r.items(f["rules"], maxListed) {
		rule.HTTP = append(rule.HTTP, r.readHTTPRule(item))
	}
	r.checkSecretName(f["secret"])
	if len(r.errs) == before { // else what is missing may only be misspelt
		r.checkTogether(p, f, rule)
	}
	return rule
}

// checkTogether refuses what has no meaning for the rule's scheme: it would be a
// promise that is not kept.
func (r *manifestReader) checkTogether(p place, f map[string]place, rule policy.Rule) {
	switch {
	case rule.Upgrade && rule.Scheme != policy.HTTP:
		r.fail(f["upgrade"], "expected upgrade only with a host that begins with http://: the relay sees no other requests")
	case len(rule.HTTP) > 0 && rule.Scheme == policy.TCP:
		r.fail(f["rules"], "expected rules only with http://, or https:// and intercept: the relay does not look into tcp://")
	case len(rule.HTTP) > 0 && rule.Scheme == policy.HTTPS && !rule.Intercept:
		r.fail(f["rules"], "expected intercept: true beside rules of an https:// host: without it nobody sees methods and paths")
	case rule.Intercept && rule.Scheme != policy.HTTPS:
		r.fail(f["intercept"], "expected intercept only with https://: the relay sees http:// requests as they are")
	case f["secret"].given() && !rule.Intercept:
		r.fail(f["secret"], "expected intercept: true beside a secret: without it nobody can put it in")
	}
	if rule.Intercept {
		r.unused = append(r.unused, p.path+".intercept")
	}
}

// direct reads a word that is "direct" or the usual thing, which is "".
func (r *manifestReader) direct(p place, usual string) string {
	if r.choice(p, usual, "direct") == "direct" {
		return "direct"
	}
	return ""
}

// readTarget reads what a rule allows, written at p, as a rule whose place is at.
func (r *manifestReader) readTarget(at, p place) policy.Rule {
	rule := policy.Rule{Where: at.path, Line: at.node.Line}
	t, ok := r.target(p)
	if !ok {
		return rule
	}
	rule.Scheme, rule.Host, rule.Port = t.scheme, t.host, t.port
	switch {
	case rule.Scheme == "":
		rule.Scheme = policy.HTTPS // clear text is allowed by those who write it
	case rule.Scheme == policy.TCP && rule.Port == 0:
		r.fail(p, "expected a target with a port such as tcp://db.example.com:5432, found %s", quote(p.node.Value))
	}
	if rule.Port == 0 {
		rule.Port = 443
		if rule.Scheme == policy.HTTP {
			rule.Port = 80
		}
	}
	if base, wild := strings.CutPrefix(t.host, "*."); wild {
		if suffix, icann := publicsuffix.PublicSuffix(base); suffix == base && (icann || !strings.Contains(base, ".")) {
			r.fail(p, "expected a pattern that is somebody's, found %s: everybody can register names under %s; for every host write mode: open",
				quote(t.host), base)
		}
	}
	return rule
}

// readDeny reads one item of a deny list: a range, or a target without a scheme for
// all of them.
func (r *manifestReader) readDeny(p place) policy.Deny {
	deny := policy.Deny{Where: p.path, Line: p.node.Line}
	if p.node.Kind == yaml.ScalarNode && strings.Contains(p.node.Value, "/") && !strings.Contains(p.node.Value, "://") {
		deny.Range = r.deniedRange(p)
		return deny
	}
	t, ok := r.target(p)
	if !ok {
		return deny
	}
	deny.Host, deny.Port = t.host, t.port
	if deny.Port == 0 {
		deny.Port = map[policy.Scheme]uint16{policy.HTTPS: 443, policy.HTTP: 80}[t.scheme]
	}
	if addr, err := netip.ParseAddr(t.host); err == nil && deny.Port == 0 {
		// Wherever the name that leads there comes from.
		deny.Host, deny.Range = "", netip.PrefixFrom(addr.Unmap(), addr.Unmap().BitLen())
	}
	return deny
}

func (r *manifestReader) deniedRange(p place) netip.Prefix {
	prefix, ok := parsed(r, p, expectedRange, parseRange)
	if ok && prefix.Bits() == 0 {
		r.fail(p, "expected a range that leaves some addresses, found all of a family; to refuse every call leave the allow list empty")
	}
	return prefix
}

// readHTTPRule reads {methods: [GET], paths: [/v1/**]}.
func (r *manifestReader) readHTTPRule(p place) policy.HTTPRule {
	f := r.fields(p, "methods", "paths")
	var rule policy.HTTPRule
	for _, m := range r.items(f["methods"], maxListed) {
		if method, ok := parsed(r, m, expectedMethod, parseMethod); ok {
			rule.Methods = append(rule.Methods, method)
		}
	}
	for _, item := range r.items(f["paths"], maxListed) {
		path, ok := parsed(r, item, expectedPath, parsePath)
		if !ok {
			continue
		}
		if _, err := policy.ParsePath(path); err != nil {
			r.fail(item, "expected a path that can be read in one way only, found %s: %v", quote(path), err)
			continue
		}
		rule.Paths = append(rule.Paths, path)
	}
	return rule
}

func (r *manifestReader) readLimits(p place) policy.Limits {
	f := r.fields(p, "rps", "burst", "connects", "tunnels", "upload_bytes", "upload_per_hour")
	const most = 1_000_000
	return policy.Limits{
		RPS:         r.perSecond(f["rps"], "a number of requests a second from above 0 to 1000000"),
		Burst:       int(r.integerIn(f["burst"], 0, 1, most)),
		Connects:    r.perSecond(f["connects"], "a number of new tunnels a second from above 0 to 1000000"),
		Tunnels:     int(r.integerIn(f["tunnels"], 0, 1, most)),
		UploadBytes: r.size(f["upload_bytes"], 0, 1<<40),
		UploadHour:  r.size(f["upload_per_hour"], 0, 1<<44),
	}
}

// perSecond reads a number above 0; absent is 0.
func (r *manifestReader) perSecond(p place, what string) float64 {
	if !p.given() {
		return 0
	}
	tag := p.node.ShortTag()
	n, ok := parseDecimal(p.node.Value)
	if p.node.Kind != yaml.ScalarNode || tag != "!!int" && tag != "!!float" || !ok || n <= 0 || n > 1_000_000 {
		r.expected(p, what)
		return 0
	}
	return n
}

const expectedDate = "a date such as 2027-01-31, or a time such as 2027-01-31T18:00:00Z"

// date reads a date, whose end is meant, or a time; absent is zero.
func (r *manifestReader) date(p place) time.Time {
	if !p.given() {
		return time.Time{}
	}
	if p.node.Kind == yaml.ScalarNode {
		if t, err := time.Parse(time.DateOnly, p.node.Value); err == nil {
			return t.AddDate(0, 0, 1)
		}
		if t, err := time.Parse(time.RFC3339, p.node.Value); err == nil {
			return t.UTC()
		}
	}
	r.expected(p, expectedDate)
	return time.Time{}
}

func (r *manifestReader) readOwner(p place) string {
	if !p.given() {
		return ""
	}
	const what = "who is asked about it, in 1 to 64 characters"
	owner, _ := parsed(r, p, what, func(s string) (string, string) {
		if s == "" || len(s) > maxTeam || strings.TrimSpace(s) != s || hasControl(s) {
			return "", what
		}
		return s, ""
	})
	return owner
}

func (r *manifestReader) readQuotaName(p place) string {
	if !p.given() {
		return ""
	}
	name, ok := r.text(p, "the name of a quota")
	if ok && !r.quotas[name] {
		r.fail(p, "expected the name of a quota in the egress section's quotas, found %s", quote(name))
	}
	return name
}

func (r *manifestReader) checkSecretName(p place) {
	if !p.given() {
		return
	}
	name, ok := r.text(p, "the name of a secret")
	if ok && !r.named[name] {
		r.fail(p, "expected the name of a secret in the top-level secrets section, found %s", quote(name))
	}
}

// target is what a line allows or denies, taken apart.
type target struct {
	scheme policy.Scheme // "": none is written
	host   string        // canonical
	port   uint16        // 0: none is written
}

const (
	expectedMethod  = "an HTTP method in capitals such as GET"
	expectedPattern = "a host name such as api.example.com, *.example.com or an address"
	expectedTarget  = "a target such as https://api.example.com, tcp://db.example.com:5432 or *.example.com"
)

func parseMethod(s string) (string, string) {
	if s == "" || len(s) > 32 || !allOf(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZ-") {
		return "", expectedMethod
	}
	return s, ""
}

// target reads scheme://host[:port], or a host with or without a port.
func (r *manifestReader) target(p place) (target, bool) {
	if p.node.Kind == yaml.ScalarNode && strings.Contains(p.node.Value, "@") {
		// Not shown: what stands before the @ is a password.
		r.fail(p, "expected a target without a user and password")
		return target{}, false
	}
	return parsed(r, p, expectedTarget, parseTarget)
}

func parseTarget(s string) (t target, expected string) {
	scheme, rest, hasScheme := strings.Cut(s, "://")
	if !hasScheme {
		scheme, rest = "", s
	}
	t.scheme = policy.Scheme(scheme)
	if hasScheme && t.scheme != policy.HTTPS && t.scheme != policy.HTTP && t.scheme != policy.TCP {
		return t, "a target that begins with https://, http:// or tcp://"
	}
	if hasScheme && strings.Contains(rest, "/") {
		return t, "a target without a path; paths belong to the rules beside a host"
	}
	host, port := splitPort(rest)
	if t.scheme == policy.TCP && port == "" {
		return t, "a target with a port such as tcp://db.example.com:5432"
	}
	if port != "" {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 || port[0] == '0' {
			return t, "a target with a port from 1 to 65535"
		}
		t.port = uint16(n)
	}
	t.host, expected = parsePattern(host)
	if expected != "" && host != "" && expected == expectedPattern {
		expected = expectedTarget
	}
	return t, expected
}

// parsePattern reads a host name, a pattern of whole labels, or an address. It must be
// written as it will be compared, so that nobody has to guess what it fits.
func parsePattern(s string) (string, string) {
	canonical, err := policy.ParsePattern(s)
	switch {
	case s == "*":
		return "", "a pattern that leaves some hosts; for every host write mode: open"
	case err != nil:
		return "", expectedPattern
	case canonical != s:
		return "", "the canonical form " + quote(canonical)
	}
	return canonical, ""
}

// splitPort takes host, host:port, [v6], [v6]:port or a bare v6 address apart.
func splitPort(s string) (host, port string) {
	if rest, ok := strings.CutPrefix(s, "["); ok {
		host, after, closed := strings.Cut(rest, "]")
		if !closed || after != "" && !strings.HasPrefix(after, ":") || !strings.Contains(host, ":") {
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
