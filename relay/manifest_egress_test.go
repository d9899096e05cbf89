package relay

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/protocol/policy"
)

func TestEverythingThatARuleCanSay(t *testing.T) {
	t.Parallel()
	m := mustParse(t, []byte(`version: 1
apps:
  shop:
    egress:
      mode: report
      sni: allowlisted
      allow:
        - a.example
        - http://b.example
        - {host: "http://c.example:8080", upgrade: true, rules: [{methods: [GET, POST], paths: [/v1/**, /health]}], quota: partner}
        - {host: https://d.example, via: direct, on_relay_loss: direct, optimistic: false, expires: 2027-01-31, owner: data, limits: {rps: 0.5, connects: 2, upload_per_hour: 1GiB}}
        - {host: tcp://10.1.2.3:5432, expires: 2027-01-31T18:00:00+02:00}
        - https://[2001:db8::1]
      deny: [x.example, https://y.example, "z.example:8443", 198.51.100.0/24, 203.0.113.9]
egress:
  deny: {hosts: ["*.evil.example"], ranges: [192.0.2.0/24]}
  allow_ranges: [{range: 10.1.2.3/32, ports: [5432, 5433], reason: ours}]
  quotas: {partner: {rps: 10, burst: 20, wait: 2s}, other: {rps: 1}}
  rollout: {canary: 10%, for: 1h, rollback_if_deny_rate: 2x}
`), testOptions())
	allow := "apps.shop.egress.allow"
	want := Egress{
		Declared: true, Mode: policy.Report, SNI: policy.SNIAllowlisted,
		Allow: []policy.Rule{
			{Where: allow + "[0]", Line: 8, Scheme: policy.HTTPS, Host: "a.example", Port: 443},
			{Where: allow + "[1]", Line: 9, Scheme: policy.HTTP, Host: "b.example", Port: 80},
			{Where: allow + "[2]", Line: 10, Scheme: policy.HTTP, Host: "c.example", Port: 8080, Upgrade: true, Quota: "partner",
				HTTP: []policy.HTTPRule{{Methods: []string{"GET", "POST"}, Paths: []string{"/v1/**", "/health"}}}},
			{Where: allow + "[3]", Line: 11, Scheme: policy.HTTPS, Host: "d.example", Port: 443, Via: "direct", OnRelayLoss: "direct",
				Wait: true, Owner: "data", Expires: time.Date(2027, 2, 1, 0, 0, 0, 0, time.UTC),
				Limits: policy.Limits{RPS: 0.5, Connects: 2, UploadHour: 1 << 30}},
			{Where: allow + "[4]", Line: 12, Scheme: policy.TCP, Host: "10.1.2.3", Port: 5432, Expires: time.Date(2027, 1, 31, 16, 0, 0, 0, time.UTC)},
			{Where: allow + "[5]", Line: 13, Scheme: policy.HTTPS, Host: "2001:db8::1", Port: 443},
		},
		Deny: []policy.Deny{
			{Where: "apps.shop.egress.deny[0]", Line: 14, Host: "x.example"},
			{Where: "apps.shop.egress.deny[1]", Line: 14, Host: "y.example", Port: 443},
			{Where: "apps.shop.egress.deny[2]", Line: 14, Host: "z.example", Port: 8443},
			{Where: "apps.shop.egress.deny[3]", Line: 14, Range: prefix("198.51.100.0/24")},
			{Where: "apps.shop.egress.deny[4]", Line: 14, Range: prefix("203.0.113.9/32")},
		},
	}
	if got := m.Apps["shop"].Egress; !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
	all := GlobalEgress{
		Deny: []policy.Deny{
			{Where: "egress.deny.hosts[0]", Line: 16, Host: "*.evil.example"},
			{Where: "egress.deny.ranges[0]", Line: 16, Range: prefix("192.0.2.0/24")},
		},
		Holes:   []policy.Hole{{Where: "egress.allow_ranges[0]", Line: 17, Range: prefix("10.1.2.3/32"), Ports: []uint16{5432, 5433}, Reason: "ours"}},
		Quotas:  []policy.Quota{{Name: "partner", RPS: 10, Burst: 20, Wait: 2 * time.Second}, {Name: "other", RPS: 1, Wait: time.Second}},
		Rollout: Rollout{Canary: 0.1, For: time.Hour, DenyRate: 2},
	}
	if !reflect.DeepEqual(m.Egress, all) {
		t.Errorf("for all apps\n%+v\nwant\n%+v", m.Egress, all)
	}
	if len(m.Unused) != 0 {
		t.Errorf("not acted on: %q", m.Unused)
	}
	p := m.PolicyOf("shop")
	if p.App != "shop" || !p.Declared || p.Mode != policy.Report || len(p.Allow) != 6 || len(p.Deny) != 7 || len(p.Holes) != 1 || len(p.Quotas) != 2 {
		t.Errorf("policy is %+v", p)
	}
}

func TestWhoeverIsNotDeclaredMayCallNowhere(t *testing.T) {
	t.Parallel()
	m := mustParse(t, []byte("version: 1\napps: {shop: {}}\negress: {deny: {hosts: [x.example]}}\n"), testOptions())
	for name, m := range map[string]*Manifest{"no manifest": nil, "no section": m} {
		p := m.PolicyOf("shop")
		if p.Declared || p.Mode != policy.Enforce || len(p.Allow) != 0 {
			t.Errorf("%s: %+v", name, p)
		}
	}
}

func TestTheManifestsOwnTestsAreJudged(t *testing.T) {
	t.Parallel()
	const text = `version: 1
apps:
  shop: {egress: {allow: [https://a.example, {host: "http://b.example", rules: [{methods: [GET], paths: [/v1/**]}]}, {host: old.example, expires: 2026-01-01}]}}
  lab: {egress: {mode: report}}
egress:
  tests:
    - {app: shop, target: %s, expect: %s}
`
	opts := testOptions()
	opts.Now = func() time.Time { return time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC) }
	for _, tt := range []struct{ target, verdict string }{
		{"https://a.example", "allow"}, {"https://a.example:8443", "deny"}, {"http://a.example", "deny"},
		{"http://b.example/v1/x", "allow"}, {"http://b.example/v2", "deny"}, {"https://old.example", "deny"},
		{"tcp://a.example:22", "deny"}, {"https://127.0.0.1", "deny"},
	} {
		wrong := map[string]string{"allow": "deny", "deny": "allow"}[tt.verdict]
		if _, err := ParseManifest("m.yaml", fmt.Appendf(nil, text, tt.target, tt.verdict), opts); err != nil {
			t.Errorf("%s: %v", tt.target, err)
		}
		_, err := ParseManifest("m.yaml", fmt.Appendf(nil, text, tt.target, wrong), opts)
		if err == nil || !strings.Contains(err.Error(), "m.yaml:7:7: egress.tests[0]: expected "+wrong) {
			t.Errorf("%s, expecting %s: %v", tt.target, wrong, err)
		}
	}
}

func TestLinesThatEndAreSpokenOfBefore(t *testing.T) {
	t.Parallel()
	m := mustParse(t, []byte("version: 1\napps: {shop: {egress: {allow: [{host: a.example, expires: 2027-01-30, owner: data}]}}}\n"), testOptions())
	end := time.Date(2027, 1, 31, 0, 0, 0, 0, time.UTC)
	for at, want := range map[time.Time]string{
		end.Add(-8 * 24 * time.Hour): "",
		end.Add(-6 * 24 * time.Hour): "apps.shop.egress.allow[0] (line 2, a.example, owner data) ends at 2027-01-31T00:00:00Z",
		end:                          "apps.shop.egress.allow[0] (line 2, a.example, owner data) has ended at 2027-01-31T00:00:00Z",
	} {
		if got := strings.Join(m.Warnings(at), "; "); got != want {
			t.Errorf("at %v: %q, want %q", at, got, want)
		}
	}
}

func TestAHundredThousandLinesAreRead(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	b.WriteString("version: 1\napps:\n  shop:\n    egress:\n      allow:\n")
	for i := range maxRules {
		fmt.Fprintf(&b, "        - https://host-%d.partner.example\n", i)
	}
	began := time.Now()
	m := mustParse(t, []byte(b.String()), testOptions())
	if n := len(m.Apps["shop"].Egress.Allow); n != maxRules {
		t.Errorf("%d lines", n)
	}
	t.Logf("%d bytes in %v", b.Len(), time.Since(began).Round(time.Millisecond))
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
