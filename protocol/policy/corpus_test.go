package policy_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/protocol/policy"
)

// The corpus says what an egress relay must refuse and what it must let through. Here
// its lines are judged as far as that takes no network; the end-to-end tests run the
// same file through a relay and an agent.

type corpusLine struct {
	number int
	Kind   string
	Input  struct {
		Resolver          map[string][]string        `json:"resolver"`
		RelayOwnAddresses []netip.Addr               `json:"relay_own_addresses"`
		Roles             map[string]json.RawMessage `json:"roles"`

		Addr, Host, Role, Raw, Connect, Location, Cmd, Atyp string
		Request                                             json.RawMessage
		Followed                                            string   `json:"followed_by"`
		AllowRanges                                         []string `json:"allow_ranges"`
		Answers                                             json.RawMessage
		Port                                                uint16
		SNI                                                 string       `json:"sni_policy"`
		Hello                                               *corpusHello `json:"client_hello"`
	}
	Expect string
	Why    string
}

func readCorpus(t *testing.T) (fixture corpusLine, lines []corpusLine) {
	t.Helper()
	f, err := os.Open("testdata/egress-corpus.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	for n := 1; s.Scan(); n++ {
		var kind struct{ Kind string }
		if err := json.Unmarshal(s.Bytes(), &kind); err != nil {
			t.Fatalf("line %d: %v", n, err)
		}
		switch kind.Kind {
		case "fixture", "addr", "host", "dns", "connect", "http", "redirect", "sni", "mitm_inner", "socks5":
		default:
			continue
		}
		l := corpusLine{number: n}
		if err := json.Unmarshal(s.Bytes(), &l); err != nil {
			t.Fatalf("line %d: %v", n, err)
		}
		if l.Kind == "fixture" {
			fixture = l
			continue
		}
		lines = append(lines, l)
	}
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	return fixture, lines
}

// policyOf makes the policy of a role of the fixture.
func policyOf(t *testing.T, fixture corpusLine, role string) *policy.Policy {
	t.Helper()
	var r struct {
		Mode  policy.Mode
		Allow []json.RawMessage
		Deny  []string
	}
	if err := json.Unmarshal(fixture.Input.Roles[role], &r); err != nil {
		t.Fatalf("role %s: %v", role, err)
	}
	p := &policy.Policy{App: "shop", Declared: true, Mode: r.Mode, Own: fixture.Input.RelayOwnAddresses}
	for i, raw := range r.Allow {
		rule := policy.Rule{Where: fmt.Sprintf("apps.shop.egress.allow[%d]", i)}
		var line string
		if json.Unmarshal(raw, &line) == nil {
			scheme, rest, _ := strings.Cut(line, "://")
			rule.Scheme, rule.Host = policy.Scheme(scheme), rest
			rule.Port = map[string]uint16{"https": 443, "http": 80}[scheme]
			if host, port, ok := strings.Cut(rest, ":"); ok {
				n, err := strconv.ParseUint(port, 10, 16)
				if err != nil {
					t.Fatal(err)
				}
				rule.Host, rule.Port = host, uint16(n)
			}
		} else {
			var long struct {
				Host      string
				Intercept bool
				Rules     []policy.HTTPRule
			}
			if err := json.Unmarshal(raw, &long); err != nil {
				t.Fatal(err)
			}
			rule.Scheme, rule.Port, rule.Host = policy.HTTPS, 443, long.Host
			rule.HTTP, rule.Intercept = long.Rules, long.Intercept
		}
		p.Allow = append(p.Allow, rule)
	}
	for i, host := range r.Deny {
		p.Deny = append(p.Deny, policy.Deny{Where: fmt.Sprintf("apps.shop.egress.deny[%d]", i), Host: host})
	}
	return p
}

// verdict is what became of a call, in the words of the corpus.
type verdict struct {
	what     string // allow, deny, deny_nodns, bad_request, terminate
	dial     netip.AddrPort
	decision policy.Decision
	refusal  *policy.Refusal
}

func (v verdict) String() string {
	if v.refusal != nil {
		return v.what + ": " + v.refusal.Error()
	}
	return v.what + " " + v.dial.String()
}

func refused(what string, r *policy.Refusal) verdict { return verdict{what: what, refusal: r} }

// judge does what the relay does with a call, with a table for a resolver.
func judge(c *policy.Compiled, call policy.Call, lookup map[string][]string) verdict {
	now := time.Now()
	d := c.Decide(call, now)
	if !d.Allow {
		return refused("deny_nodns", d.Refusal(c, call))
	}
	addrs := []string{call.Target.Addr.String()}
	if call.Target.Host != "" {
		addrs = lookup[call.Target.Host]
	}
	v := refused("dns_error", policy.NewRefusal(policy.NoSuchName, "no address"))
	for _, s := range addrs {
		a := netip.MustParseAddr(s)
		check := c.CheckAddr(call.Target, a, now)
		if check.Allow {
			return verdict{what: "allow", dial: netip.AddrPortFrom(a.Unmap(), call.Target.Port), decision: d}
		}
		v = refused("deny", check.Refusal(c, call))
	}
	return v
}

// meets says whether the verdict is one of those expected.
func (v verdict) meets(expect string) bool {
	for one := range strings.SplitSeq(expect, "|") {
		what, assertion, _ := strings.Cut(one, ":")
		switch {
		case what == "rewrite":
			what = "allow"
		case what == "deny" && v.what == "deny_nodns":
			what = "deny_nodns"
		}
		if what != v.what {
			continue
		}
		dial, isDial := strings.CutPrefix(assertion, "dial=")
		dial, _, _ = strings.Cut(dial, " ")
		dial, _, _ = strings.Cut(dial, ",")
		switch {
		case isDial && v.dial.String() != dial:
		case assertion == "proxy_loop_detected" && v.refusal.ProxyError() != assertion:
		case assertion == "log=enforce_would_deny" && !v.decision.Would:
		default:
			return true
		}
	}
	return false
}

func TestCorpus(t *testing.T) {
	fixture, lines := readCorpus(t)
	judged := map[string]int{}
	for _, l := range lines {
		role := l.Input.Role
		if role == "" {
			role = "enforce"
			if l.Kind == "addr" || l.Kind == "dns" {
				role = "open"
			}
		}
		p := policyOf(t, fixture, role)
		if l.Input.SNI != "" {
			p.SNI = policy.SNIMode(l.Input.SNI)
		}
		for _, s := range l.Input.AllowRanges {
			ap := netip.MustParseAddrPort(s)
			p.Holes = append(p.Holes, policy.Hole{Range: netip.PrefixFrom(ap.Addr(), ap.Addr().BitLen()), Ports: []uint16{ap.Port()}})
		}
		expect := l.Expect
		var run func(t *testing.T) (verdict, bool)
		c := policy.Compile(p)
		switch l.Kind {
		case "addr":
			run = func(t *testing.T) (verdict, bool) { return judgeAddr(c, l), true }
		case "host":
			run = func(t *testing.T) (verdict, bool) {
				return judgeTunnel(c, l.Input.Host+":"+strconv.Itoa(int(l.Input.Port)), fixture.Input.Resolver), true
			}
		case "dns":
			run = func(t *testing.T) (verdict, bool) { return judgeDNS(c, l) }
		case "connect", "http":
			run = func(t *testing.T) (verdict, bool) { return judgeRaw(c, l.Input.Raw, fixture.Input.Resolver) }
		case "redirect":
			expect = "deny|bad_request" // of the call that follows
			if strings.HasPrefix(l.Input.Location, "https://") {
				expect = "allow"
			}
			run = func(t *testing.T) (verdict, bool) {
				return judgeURL(c, l.Input.Location, fixture.Input.Resolver), true
			}
		case "sni":
			run = func(t *testing.T) (verdict, bool) { return judgeSNI(t, c, l, fixture.Input.Resolver) }
		case "mitm_inner":
			run = func(t *testing.T) (verdict, bool) { return judgeInner(c, l) }
		case "socks5":
			run = func(t *testing.T) (verdict, bool) { return judgeSOCKS(c, l, fixture.Input.Resolver) }
		}
		t.Run(fmt.Sprintf("%s line %d", l.Kind, l.number), func(t *testing.T) {
			v, ok := run(t)
			if !ok {
				t.Skip("takes more than a decision: ", l.Why)
			}
			judged[l.Kind]++
			if !v.meets(expect) {
				t.Errorf("%s\ngot  %v\nwant %s", l.Why, v, expect)
			}
		})
	}
	// So that no line is passed over without anybody noticing.
	for kind, least := range map[string]int{"addr": 50, "host": 44, "dns": 12, "connect": 16, "http": 17,
		"redirect": 7, "sni": 12, "mitm_inner": 11, "socks5": 7} {
		if judged[kind] < least {
			t.Errorf("%d lines of kind %s were judged, want at least %d", judged[kind], kind, least)
		}
	}
}

func judgeAddr(c *policy.Compiled, l corpusLine) verdict {
	t, err := policy.ParseHost(l.Input.Addr, l.Input.Port, policy.Tunnel)
	if err != nil {
		return refused("bad_request", policy.NewRefusal(policy.BadTarget, err.Error()))
	}
	literal := judge(c, policy.Call{Target: t}, nil)
	// The same address behind a name.
	named := judge(c, policy.Call{Target: policy.Target{Form: policy.Tunnel, Host: "any.test", Port: l.Input.Port}},
		map[string][]string{"any.test": {l.Input.Addr}})
	if (literal.what == "allow") != (named.what == "allow") {
		return verdict{what: "literal and name differ"}
	}
	return named
}

func judgeTunnel(c *policy.Compiled, authority string, lookup map[string][]string) verdict {
	t, err := policy.ParseTunnel(authority)
	if err != nil {
		return refused("bad_request", policy.NewRefusal(policy.BadTarget, err.Error()))
	}
	return judge(c, policy.Call{Target: t}, lookup)
}

func judgeURL(c *policy.Compiled, url string, lookup map[string][]string) verdict {
	call, err := policy.ParseCall(url)
	if err != nil {
		return refused("bad_request", policy.NewRefusal(policy.BadTarget, err.Error()))
	}
	return judge(c, call, lookup)
}

// judgeDNS takes the first answer of those that are lists of addresses.
func judgeDNS(c *policy.Compiled, l corpusLine) (verdict, bool) {
	var answers [][]string
	if json.Unmarshal(l.Input.Answers, &answers) != nil {
		var one struct{ Answers []string }
		if json.Unmarshal(l.Input.Answers, &one) != nil {
			return verdict{}, false
		}
		answers = [][]string{one.Answers}
	}
	return judge(c, policy.Call{Target: policy.Target{Form: policy.Tunnel, Host: l.Input.Host, Port: l.Input.Port}},
		map[string][]string{l.Input.Host: answers[0]}), true
}

// judgeRaw looks at the request line alone.
func judgeRaw(c *policy.Compiled, raw string, lookup map[string][]string) (verdict, bool) {
	line, head, _ := strings.Cut(raw, "\r\n")
	method, rest, _ := strings.Cut(line, " ")
	i := strings.LastIndexByte(rest, ' ')
	if i < 0 || strings.Contains(head, "Proxy-Authorization") || strings.Count(head, "Host:") > 1 || method == "connect" {
		return verdict{}, false
	}
	if method == "CONNECT" {
		return judgeTunnel(c, rest[:i], lookup), true
	}
	t, u, err := policy.ParseURL(rest[:i])
	if err != nil {
		return refused("bad_request", policy.NewRefusal(policy.BadTarget, err.Error())), true
	}
	return judge(c, policy.Call{Target: t, Method: method, Path: u.EscapedPath()}, lookup), true
}

// judgeInner judges what would be inside an opened tunnel as a request in clear: the
// rules for methods and paths are the same.
func judgeInner(c *policy.Compiled, l corpusLine) (verdict, bool) {
	var raw string
	if json.Unmarshal(l.Input.Request, &raw) != nil {
		return verdict{}, false
	}
	line, head, _ := strings.Cut(raw, "\r\n")
	method, rest, _ := strings.Cut(line, " ")
	path, _, _ := strings.Cut(rest, " ")
	path, _, _ = strings.Cut(path, "?")
	if !strings.Contains(strings.ToLower(head), "host: paths.allowed.test") || strings.Contains(l.Expect, "tls_certificate_error") || method == "CONNECT" {
		return verdict{}, false
	}
	p := *c.Policy()
	p.Allow = append([]policy.Rule(nil), p.Allow...)
	for i := range p.Allow {
		if p.Allow[i].Intercept {
			p.Allow[i].Intercept, p.Allow[i].Scheme, p.Allow[i].Port = false, policy.HTTP, 80
		}
	}
	call := policy.Call{Method: method, Path: path,
		Target: policy.Target{Form: policy.Request, Host: "paths.allowed.test", Port: 80}}
	return judge(policy.Compile(&p), call, map[string][]string{"paths.allowed.test": {"93.184.216.34"}}), true
}

func judgeSOCKS(c *policy.Compiled, l corpusLine, lookup map[string][]string) (verdict, bool) {
	if l.Input.Cmd != "CONNECT" || l.Expect == "terminate" {
		return verdict{}, false
	}
	t, err := policy.ParseHost(l.Input.Addr, l.Input.Port, policy.Tunnel)
	if err != nil {
		return refused("bad_request", policy.NewRefusal(policy.BadTarget, err.Error())), true
	}
	return judge(c, policy.Call{Target: t}, lookup), true
}
