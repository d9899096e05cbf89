package relay

import (
	"strconv"
	"strings"
	"time"

	"github.com/posternhq/postern/protocol/policy"
)

// readGlobalEgress reads the top-level egress section. The names of its quotas were
// collected before.
func (r *manifestReader) readGlobalEgress(p place) GlobalEgress {
	f := r.fields(p, "deny", "allow_ranges", "quotas", "tests", "rollout")
	var g GlobalEgress
	deny := r.fields(f["deny"], "hosts", "ranges")
	for _, item := range r.items(deny["hosts"], maxRules) {
		if host, ok := parsed(r, item, expectedPattern, parsePattern); ok {
			g.Deny = append(g.Deny, policy.Deny{Where: item.path, Line: item.node.Line, Host: host})
		}
	}
	for _, item := range r.items(deny["ranges"], maxRules) {
		g.Deny = append(g.Deny, policy.Deny{Where: item.path, Line: item.node.Line, Range: r.deniedRange(item)})
	}
	for _, item := range r.items(f["allow_ranges"], maxListed) {
		g.Holes = append(g.Holes, r.readHole(item))
	}
	for _, e := range r.entries(f["quotas"]) {
		g.Quotas = append(g.Quotas, r.readPartnerQuota(e))
	}
	for _, item := range r.items(f["tests"], maxListed) {
		g.Tests = append(g.Tests, r.readEgressTest(item))
	}
	g.Rollout = r.readRollout(f["rollout"])
	return g
}

// collectQuotas notes the names of egress.quotas, which rules refer to.
func (r *manifestReader) collectQuotas(p place) {
	if !p.given() {
		return
	}
	for i := 0; i+1 < len(p.node.Content); i += 2 {
		if p.node.Content[i].Value != "quotas" {
			continue
		}
		for _, e := range (&manifestReader{}).entries(p.child("quotas", p.node.Content[i], p.node.Content[i+1])) {
			r.quotas[e.name] = true
		}
	}
}

// readHole reads {range: 10.1.2.3/32, ports: [5432], reason: our own database}.
func (r *manifestReader) readHole(p place) policy.Hole {
	f := r.fields(p, "range", "ports", "reason")
	r.require(p, f, "range", "ports")
	hole := policy.Hole{Where: p.path, Line: p.node.Line}
	if f["range"].given() {
		hole.Range, _ = parsed(r, f["range"], expectedRange, parseRange)
	}
	for _, port := range r.items(f["ports"], maxListed) {
		hole.Ports = append(hole.Ports, uint16(r.integerIn(port, 0, 1, 65535)))
	}
	if f["ports"].given() && f["ports"].empty() {
		r.fail(f["ports"], "expected at least one port")
	}
	if f["reason"].given() {
		hole.Reason, _ = r.text(f["reason"], "a reason in words")
	}
	return hole
}

// maxQuotaWait is how long a call may wait for its turn: clients give up later than
// that.
const maxQuotaWait = 30 * time.Second

// readPartnerQuota reads partner: {rps: 10, burst: 20, wait: 1s}.
func (r *manifestReader) readPartnerQuota(p place) policy.Quota {
	if _, expected := parseName(p.name); expected != "" {
		r.failAt(p.key, "egress.quotas", "expected %s, found %s", expected, quote(p.name))
	}
	f := r.fields(p, "rps", "burst", "wait")
	r.require(p, f, "rps")
	return policy.Quota{
		Name:  p.name,
		RPS:   r.perSecond(f["rps"], "a number of requests a second from above 0 to 1000000"),
		Burst: int(r.integerIn(f["burst"], 0, 1, 1_000_000)),
		Wait:  r.duration(f["wait"], time.Second, 0, maxQuotaWait),
	}
}

func (r *manifestReader) readEgressTest(p place) EgressTest {
	f := r.fields(p, "app", "target", "expect")
	r.require(p, f, "app", "target", "expect")
	test := EgressTest{Line: p.node.Line, place: p}
	if app := f["app"]; app.given() {
		name, ok := r.text(app, "the name of an app")
		if ok && !r.apps[AppID(name)] {
			r.fail(app, "expected the name of an app in the apps section, found %s", quote(name))
			ok = false
		}
		if ok {
			test.App = AppID(name)
		}
	}
	if t := f["target"]; t.given() {
		if test.Target, _ = r.text(t, expectedCall); test.Target != "" {
			if _, err := policy.ParseCall(test.Target); err != nil {
				r.fail(t, "expected %s: %v", expectedCall, err)
				test.Target = ""
			}
		}
	}
	test.Allow = r.choice(f["expect"], "allow", "deny") == "allow"
	return test
}

const expectedCall = "what is called, such as https://api.example.com, http://api.example.com/v1 or tcp://db.example.com:5432"

// runTests judges the manifest's own calls by what it says.
func (r *manifestReader) runTests(m *Manifest) {
	compiled := map[AppID]*policy.Compiled{}
	for _, test := range m.Egress.Tests {
		if test.App == "" || test.Target == "" {
			continue // refused already
		}
		c := compiled[test.App]
		if c == nil {
			p := m.PolicyOf(test.App)
			c = policy.Compile(&p)
			compiled[test.App] = c
		}
		call, _ := policy.ParseCall(test.Target)
		if call.Method == "" {
			call.Method = "GET"
		}
		d := c.Decide(call, r.now())
		if d.Allow && call.Target.Addr.IsValid() {
			if at := c.CheckAddr(call.Target, call.Target.Addr, r.now()); !at.Allow {
				d = at
			}
		}
		if allowed := d.Allow && !d.Would; allowed != test.Allow {
			verdict := map[bool]string{true: "allow", false: "deny"}
			where := d.Where
			if d.Line > 0 {
				where += " on line " + strconv.Itoa(d.Line)
			}
			r.fail(test.place, "expected %s for %s, found %s by %s: %s",
				verdict[test.Allow], quote(test.Target), verdict[allowed], where, d.Reason)
		}
	}
}

func (r *manifestReader) now() time.Time {
	if r.opts.Now != nil {
		return r.opts.Now()
	}
	return time.Now()
}

const (
	expectedPercent = "a percentage such as 10%, at most 100%"
	expectedFactor  = "a factor such as 2x"
)

func (r *manifestReader) readRollout(p place) Rollout {
	f := r.fields(p, "canary", "for", "rollback_if_deny_rate")
	var out Rollout
	if f["canary"].given() {
		percent, _ := parsed(r, f["canary"], expectedPercent, func(s string) (float64, string) {
			digits, ok := strings.CutSuffix(s, "%")
			n, valid := parseDecimal(digits)
			if !ok || !valid || n <= 0 || n > 100 {
				return 0, expectedPercent
			}
			return n, ""
		})
		out.Canary = percent / 100
	}
	out.For = r.duration(f["for"], 10*time.Minute, time.Second, 7*24*time.Hour)
	if f["rollback_if_deny_rate"].given() {
		out.DenyRate, _ = parsed(r, f["rollback_if_deny_rate"], expectedFactor, func(s string) (float64, string) {
			digits, ok := strings.CutSuffix(s, "x")
			n, valid := parseDecimal(digits)
			if !ok || !valid || n <= 0 {
				return 0, expectedFactor
			}
			return n, ""
		})
	}
	return out
}
