package relay

import (
	"github.com/posternhq/postern/protocol/policy"
	"net/netip"
	"os"
	"reflect"
	"testing"
	"time"
)

// testEnv is a world in which the variables of the test manifests are set.
func testEnv(name string) (string, bool) {
	v, ok := map[string]string{
		"DEV_PASSWORD":  "correct horse",
		"STRIPE_WHSEC":  "whsec_test",
		"STRIPE_OLD":    "whsec_old",
		"GITHUB_SECRET": "ghs_test",
		"EMPTY":         "",
	}[name]
	return v, ok
}

var testProviders = []ProviderFacts{
	{Name: "github", NeedsSecret: true, Mode: ModeStore, Resigns: true},
	{Name: "stripe", NeedsSecret: true, Mode: ModeHybrid, Resigns: true},
	{Name: "hmac", NeedsSecret: true, Resigns: true},
	{Name: "discord", NeedsSecret: true, Mode: ModeSync},
	{Name: "paypal", Mode: ModeStore},
	{Name: "meta", NeedsSecret: true, Mode: ModeStore, Resigns: true},
	{Name: "sns"},
}

func testOptions() ManifestOptions {
	return ManifestOptions{Env: testEnv, Providers: testProviders}
}

func readTestdata(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile("testdata/manifest/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func mustParse(t *testing.T, data []byte, opts ManifestOptions) *Manifest {
	t.Helper()
	m, err := ParseManifest("postern.yaml", data, opts)
	if err != nil {
		t.Fatalf("ParseManifest:\n%v", err)
	}
	return m
}

func TestTheFullManifestIsRead(t *testing.T) {
	t.Parallel()
	m := mustParse(t, readTestdata(t, "full.yaml"), testOptions())

	want := App{
		ID:   "shop",
		Team: "payments",
		Ingress: Ingress{
			Hosts:    []string{"shop.example.com"},
			AllowIPs: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")},
			Basic:    &BasicAuth{User: "dev", Password: "correct horse"},
			Protocol: "http1",
		},
		Endpoints: map[string]Endpoint{"stripe": {
			App: "shop", Name: "stripe",
			Provider:    "stripe",
			Secrets:     []Secret{"whsec_test"},
			Mode:        ModeHybrid,
			Path:        "/webhooks/stripe",
			OrderBy:     "/data/object/id",
			MaxInFlight: 8,
			Rate:        50,
			Retry:       RetryPolicy{Schedule: DefaultRetry.Schedule}, // written out, so without the floor
			Breaker:     DefaultBreaker,
			Resign:      true,
			MaxBody:     DefaultMaxBody,
			Retention:   DefaultRetention,
		}},
		Egress: Egress{
			Declared: true, Mode: policy.Enforce, SNI: policy.SNIMatch,
			Allow: []policy.Rule{
				{Where: "apps.shop.egress.allow[0]", Line: 24, Scheme: policy.HTTPS, Host: "api.stripe.com", Port: 443},
				{Where: "apps.shop.egress.allow[1]", Line: 25, Scheme: policy.HTTPS, Host: "*.github.com", Port: 443},
				{Where: "apps.shop.egress.allow[2]", Line: 26, Scheme: policy.TCP, Host: "db.partner.example", Port: 5432},
				{Where: "apps.shop.egress.allow[3]", Line: 27, Scheme: policy.HTTPS, Host: "api.partner.example", Port: 443,
					Intercept: true, HTTP: []policy.HTTPRule{{Methods: []string{"GET"}, Paths: []string{"/v1/**"}}}},
			},
			Deny:   []policy.Deny{{Where: "apps.shop.egress.deny[0]", Line: 28, Host: "*.evil.example"}},
			Limits: policy.Limits{RPS: 50, Burst: 100, Tunnels: 200, UploadBytes: 10 << 20},
		},
	}
	if got := m.Apps["shop"]; !reflect.DeepEqual(got, want) {
		t.Errorf("shop is\n%+v, want\n%+v", got, want)
	}
	unused := []string{"apps.shop.debug", "apps.shop.egress.allow[3].intercept", "secrets"}
	if !reflect.DeepEqual(m.Unused, unused) {
		t.Errorf("Unused = %q, want %q", m.Unused, unused)
	}
}

func TestAShortManifestGetsDefaults(t *testing.T) {
	t.Parallel()
	m := mustParse(t, readTestdata(t, "minimal.yaml"), testOptions())

	got, ok := m.Endpoint("shop", "stripe")
	want := Endpoint{
		App: "shop", Name: "stripe", Provider: "stripe",
		Secrets: []Secret{"whsec_test"},
		Mode:    ModeHybrid, Path: "/webhooks/stripe",
		MaxInFlight: DefaultMaxInFlight, Retry: DefaultRetry, Breaker: DefaultBreaker,
		MaxBody: DefaultMaxBody, Retention: DefaultRetention,
	}
	if !ok || !reflect.DeepEqual(got, want) {
		t.Errorf("endpoint is\n%+v, want\n%+v", got, want)
	}
	if p := m.Apps["shop"].Ingress.Protocol; p != "http1" {
		t.Errorf("protocol is %q, want http1", p)
	}
	if len(m.Unused) != 0 {
		t.Errorf("Unused = %q, want none", m.Unused)
	}
}

func TestAReadManifestDoesNotShareTheDefaultSchedule(t *testing.T) {
	t.Parallel()
	m := mustParse(t, readTestdata(t, "minimal.yaml"), testOptions())
	m.Apps["shop"].Endpoints["stripe"].Retry.Schedule[0] = time.Nanosecond
	if DefaultRetry.Schedule[0] == time.Nanosecond {
		t.Error("changing an endpoint's schedule changed DefaultRetry")
	}
}

func TestAliasesAndMergeKeysAreRead(t *testing.T) {
	t.Parallel()
	m := mustParse(t, readTestdata(t, "anchors.yaml"), testOptions())
	steps := RetryPolicy{Schedule: []time.Duration{time.Second, 10 * time.Second}}

	refunds, _ := m.Endpoint("shop", "refunds")
	if refunds.Provider != "github" || refunds.Mode != ModeStore || refunds.Path != "/webhooks/refunds" {
		t.Errorf("a merged endpoint is %+v", refunds)
	}
	if !reflect.DeepEqual(refunds.Retry, steps) {
		t.Errorf("a merged schedule is %v, want %v", refunds.Retry, steps)
	}
	comments, _ := m.Endpoint("blog", "comments")
	if !reflect.DeepEqual(comments.Retry, steps) {
		t.Errorf("an aliased schedule is %v, want %v", comments.Retry, steps)
	}
}

func TestValuesInAllTheirForms(t *testing.T) {
	t.Parallel()
	endpoint := func(line string) func(*testing.T) Endpoint {
		return func(t *testing.T) Endpoint {
			m := mustParse(t, []byte("version: 1\napps:\n  a:\n    endpoints:\n      e: {provider: none, "+line+"}\n"), testOptions())
			return m.Apps["a"].Endpoints["e"]
		}
	}
	tests := []struct {
		name, line string
		got        func(Endpoint) any
		want       any
	}{
		{"a rate by the second", "rate: 50/s", func(e Endpoint) any { return e.Rate }, 50.0},
		{"a rate by the minute", "rate: 90/m", func(e Endpoint) any { return e.Rate }, 1.5},
		{"a rate by the hour", "rate: 1800/h", func(e Endpoint) any { return e.Rate }, 0.5},
		{"a fraction of a rate", "rate: 0.5/s", func(e Endpoint) any { return e.Rate }, 0.5},
		{"a size in MiB", "max_body: 1MiB", func(e Endpoint) any { return e.MaxBody }, int64(1 << 20)},
		{"a size in kB", "max_body: 64kB", func(e Endpoint) any { return e.MaxBody }, int64(64_000)},
		{"a size in bytes", "max_body: 1024", func(e Endpoint) any { return e.MaxBody }, int64(1024)},
		{"a path with an escape", "path: /a%20b", func(e Endpoint) any { return e.Path }, "/a%20b"},
		{"a pointer with escapes", "order_by: /a~1b/~0", func(e Endpoint) any { return e.OrderBy }, "/a~1b/~0"},
		{"a schedule without steps", "retry: {schedule: []}", func(e Endpoint) any { return len(e.Retry.Schedule) }, 0},
		{"the mode sync", "mode: sync", func(e Endpoint) any { return e.Mode }, ModeSync},
		{"no resigning", "resign: false", func(e Endpoint) any { return e.Resign }, false},
		{"a quoted word where a text is meant", `path: "/true"`, func(e Endpoint) any { return e.Path }, "/true"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := tt.got(endpoint(tt.line)(t)); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestAnAppMayHaveNothing(t *testing.T) {
	t.Parallel()
	m := mustParse(t, []byte("version: 1\napps:\n  shop:\n  123: {ingress: }\n"), testOptions())
	for _, id := range []AppID{"shop", "123"} {
		if app, ok := m.App(id); !ok || app.ID != id {
			t.Errorf("App(%q) = %+v, %v", id, app, ok)
		}
	}
}

func TestAByteOrderMarkIsAllowed(t *testing.T) {
	t.Parallel()
	mustParse(t, []byte("\ufeffversion: 1\napps: {}\n"), testOptions())
}

func TestOneAddressIsARangeOfOne(t *testing.T) {
	t.Parallel()
	m := mustParse(t, []byte("version: 1\napps:\n  a: {ingress: {allow_ips: [203.0.113.9, \"2001:db8::1\"]}}\n"), testOptions())
	got := m.Apps["a"].Ingress.AllowIPs
	want := []netip.Prefix{netip.MustParsePrefix("203.0.113.9/32"), netip.MustParsePrefix("2001:db8::1/128")}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("AllowIPs = %v, want %v", got, want)
	}
}

func TestLookups(t *testing.T) {
	t.Parallel()
	parsed := mustParse(t, []byte("version: 1\napps:\n  shop: {ingress: {hosts: [Shop.Example.com]}}\n  blog:\n"), testOptions())
	literal := &Manifest{Apps: map[AppID]App{"shop": {ID: "shop", Ingress: Ingress{Hosts: []string{"shop.example.com"}}}}}
	tests := []struct {
		name string
		m    *Manifest
		host string
		want AppID
	}{
		{"a host finds its app", parsed, "shop.example.com", "shop"},
		{"letter case does not matter", parsed, "SHOP.example.COM", "shop"},
		{"the root's dot does not matter", parsed, "shop.example.com.", "shop"},
		{"another host finds nothing", parsed, "example.com", ""},
		{"an empty host finds nothing", parsed, "", ""},
		{"a literal manifest finds without an index", literal, "shop.example.com", "shop"},
		{"a literal manifest finds nothing", literal, "example.com", ""},
		{"a nil manifest finds nothing", nil, "shop.example.com", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			app, ok := tt.m.AppByHost(tt.host)
			if app.ID != tt.want || ok != (tt.want != "") {
				t.Errorf("AppByHost(%q) = %q, %v, want %q", tt.host, app.ID, ok, tt.want)
			}
		})
	}
	var none *Manifest
	if _, ok := none.Endpoint("shop", "stripe"); ok {
		t.Error("a nil manifest has an endpoint")
	}
	if _, ok := parsed.Endpoint("blog", "stripe"); ok {
		t.Error("an app without endpoints has one")
	}
}
