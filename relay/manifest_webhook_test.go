package relay

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestTheWebhookKeysAreRead(t *testing.T) {
	t.Parallel()
	m := mustParse(t, readTestdata(t, "webhooks.yaml"), testOptions())
	if got, want := m.Apps["shop"].Quota, (Quota{Bytes: 10 << 30, Waiting: 100_000}); got != want {
		t.Errorf("the quota is %+v, want %+v", got, want)
	}
	want := Endpoint{
		App: "shop", Name: "partner", Provider: "hmac", Secrets: []Secret{"whsec_test"},
		Mode: ModeHybrid, Path: "/webhooks/partner",
		HMAC: &HMACScheme{
			Header: "X-Partner-Signature", Prefix: "sha512=", Separator: ", ",
			Algorithm: "sha512", Encoding: "base64", KeyFormat: "hex", Signed: "{timestamp}.{id}.{body}",
			TimestampHeader: "X-Partner-Time", TimestampUnit: "ms", IDHeader: "X-Partner-Id", TypeHeader: "X-Partner-Event",
		},
		VerifyToken: "whsec_old", WebhookID: "8PT597110X687430LKGECATA", Tolerance: 10 * time.Minute,
		MaxInFlight: DefaultMaxInFlight, Retry: DefaultRetry, Breaker: Breaker{Pause: time.Minute},
		Deadline: 2500 * time.Millisecond, MaxBody: DefaultMaxBody, AllowUnsubscribe: true,
		Redact:    Redaction{Headers: []string{"Authorization", "x-api-key"}, Body: []string{"/card/number", "/items/*/email"}},
		Retention: Retention{Bodies: 36 * time.Hour, Events: 90 * 24 * time.Hour},
		Destinations: []Destination{
			{
				Name: "audit", URL: "https://audit.example.com/hook?key=1",
				MaxInFlight: DefaultMaxInFlight, Retry: DefaultRetry, Breaker: DefaultBreaker,
			},
			{
				Name: "staging_2", URL: "http://127.0.0.1:9000", Filter: mustFilter(t, `type=invoice.* header:X-Tenant!="a b"`),
				Redact: Redaction{Body: []string{"/card"}}, Resign: true, MaxInFlight: 2, Rate: 1,
				Retry: RetryPolicy{Schedule: []time.Duration{time.Second}}, Breaker: Breaker{Failures: 3, Pause: DefaultBreaker.Pause},
			},
		},
	}
	if got, _ := m.Endpoint("shop", "partner"); !reflect.DeepEqual(got, want) {
		t.Errorf("the endpoint is\n%+v, want\n%+v", got, want)
	}
}

// oneEndpoint is a manifest whose endpoint's value begins in column 10 of line 5.
func oneEndpoint(value string) string {
	return "version: 1\napps:\n  a:\n    endpoints:\n      e: " + value + "\n"
}

func TestAShortSchemeGetsDefaults(t *testing.T) {
	t.Parallel()
	m := mustParse(t, []byte(oneEndpoint("{provider: hmac, secrets: [{env: STRIPE_WHSEC}], hmac: {header: X-Sig, timestamp: {header: X-T}}}")), testOptions())
	want := &HMACScheme{
		Header: "X-Sig", Algorithm: "sha256", Encoding: "hex", KeyFormat: "raw", Signed: "{body}",
		TimestampHeader: "X-T", TimestampUnit: "s",
	}
	if got := m.Apps["a"].Endpoints["e"].HMAC; !reflect.DeepEqual(got, want) {
		t.Errorf("the scheme is %+v, want %+v", got, want)
	}
}

func TestAnEndpointWithoutAModeHasItsProviders(t *testing.T) {
	t.Parallel()
	believing := ManifestOptions{Env: testEnv}
	tests := []struct {
		name, value string
		opts        ManifestOptions
		want        Mode
	}{
		{"hybrid", "{provider: stripe, secrets: [{env: STRIPE_WHSEC}]}", testOptions(), ModeHybrid},
		{"sync", "{provider: discord, secrets: [{env: STRIPE_WHSEC}]}", testOptions(), ModeSync},
		{"a provider without one", "{provider: sns}", testOptions(), ModeStore},
		{"no provider", "{provider: none}", testOptions(), ModeStore},
		{"an unchecked provider", "{provider: stripe, secrets: [{env: STRIPE_WHSEC}]}", believing, ModeStore},
		{"a mode that is written", "{provider: discord, mode: store, secrets: [{env: STRIPE_WHSEC}]}", testOptions(), ModeStore},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m := mustParse(t, []byte(oneEndpoint(tt.value)), tt.opts)
			if got := m.Apps["a"].Endpoints["e"].Mode; got != tt.want {
				t.Errorf("the mode is %q, want %q", got, tt.want)
			}
		})
	}
}

func TestWebhookValuesInAllTheirForms(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, keys string
		got        func(Endpoint) any
		want       any
	}{
		{"a number of days", "retention: {events: 45d}", func(e Endpoint) any { return e.Retention.Events }, 45 * 24 * time.Hour},
		{"days and hours", "tolerance: 1d2h30m", func(e Endpoint) any { return e.Tolerance }, 26*time.Hour + 30*time.Minute},
		{"bodies go with their events", "retention: {events: 1d}", func(e Endpoint) any { return e.Retention }, Retention{Bodies: 24 * time.Hour, Events: 24 * time.Hour}},
		{"bodies alone", "retention: {bodies: 30d}", func(e Endpoint) any { return e.Retention }, Retention{Bodies: 720 * time.Hour, Events: 720 * time.Hour}},
		{"an empty section", "retention: ", func(e Endpoint) any { return e.Retention }, DefaultRetention},
		{"the shortest deadline", "deadline: 100ms", func(e Endpoint) any { return e.Deadline }, 100 * time.Millisecond},
		{"the longest deadline", "deadline: 1m", func(e Endpoint) any { return e.Deadline }, time.Minute},
		{"the longest pause", "breaker: {pause: 10m}", func(e Endpoint) any { return e.Breaker }, Breaker{Failures: 10, Pause: MaxBreakerPause}},
		{"an empty breaker", "breaker: {}", func(e Endpoint) any { return e.Breaker }, DefaultBreaker},
		{"an empty list of destinations", "fan_out: []", func(e Endpoint) any { return len(e.Destinations) }, 0},
		{"a schedule of the user's own has no floor", "retry: {schedule: [1s]}", func(e Endpoint) any { return e.Retry.Floor }, time.Duration(0)},
		{"an unchecked provider may be signed anew", "resign: true", func(e Endpoint) any { return e.Resign }, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m := mustParse(t, []byte(oneEndpoint("{provider: none, "+tt.keys+"}")), ManifestOptions{})
			if got := tt.got(m.Apps["a"].Endpoints["e"]); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestDurations(t *testing.T) {
	t.Parallel()
	good := map[string]time.Duration{
		"7d": 7 * 24 * time.Hour, "0d": 0, "1d12h": 36 * time.Hour, "1d0.5h": 24*time.Hour + 30*time.Minute, "90s": 90 * time.Second, "0": 0,
	}
	for s, want := range good {
		if got, ok := parseDuration(s); !ok || got != want {
			t.Errorf("%q is %v, %v, want %v", s, got, ok, want)
		}
	}
	for _, s := range []string{"", "d", "1.5d", "-1d", "+1d", "1d-1h", "1d+1h", "1d24h", "1d1d", "1 d", "1h1d", "65536d", "99999999999999999999d", "7D", "soon"} {
		if got, ok := parseDuration(s); ok {
			t.Errorf("%q is accepted as %v", s, got)
		}
	}
	for d, want := range map[time.Duration]string{
		24 * time.Hour: "24h", 48 * time.Hour: "2d", 36 * time.Hour: "36h", 90 * time.Minute: "1h30m", 100 * time.Millisecond: "100ms",
	} {
		if got := shortDuration(d); got != want {
			t.Errorf("%v is printed as %q, want %q", time.Duration(d), got, want)
		}
	}
}

func TestASizeCannotOverflow(t *testing.T) {
	t.Parallel()
	if n, expected := parseSize("2147483647TiB"); n <= 0 || expected != "" {
		t.Errorf("got %d, %q", n, expected)
	}
	got := parseErrors(t, "version: 1\napps: {a: {quota: {bytes: 2147483647TiB}}}\n", testOptions())
	if want := `m.yaml:2:27: apps.a.quota.bytes: expected a size from 1B to 16TiB, found "2147483647TiB"`; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestWhatIsWrongInAQuota(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, value, want string }{
		{"a number", "5", "m.yaml:2:19: apps.a.quota: expected a mapping, found a number"},
		{"an unknown key", "{byte: 1GiB}", `m.yaml:2:20: apps.a.quota: unknown key "byte"; expected one of bytes, waiting; did you mean "bytes"?`},
		{"no bytes", "{bytes: 0}", "m.yaml:2:27: apps.a.quota.bytes: expected a whole number from 1 to 17592186044416, found 0"},
		{"bytes in words", "{bytes: much}", `m.yaml:2:27: apps.a.quota.bytes: expected a size such as 512KiB, 10MiB or 1GB, found "much"`},
		{"nothing may wait", "{waiting: 0}", "m.yaml:2:29: apps.a.quota.waiting: expected a whole number from 1 to 1000000000, found 0"},
		{"a text that waits", "{waiting: 10k}", `m.yaml:2:29: apps.a.quota.waiting: expected a whole number, found "10k"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := parseErrors(t, "version: 1\napps: {a: {quota: "+tt.value+"}}\n", testOptions()); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

func TestWhatIsWrongInAScheme(t *testing.T) {
	t.Parallel()
	const at = "apps.a.endpoints.e.hmac"
	long := strings.Repeat("x", 1025)
	tests := []struct{ name, value, want string }{ // value begins in column 8 of line 8
		{"a text", "X-Sig", "m.yaml:8:15: " + at + ": expected a mapping, found a text"},
		{"nothing", "", `m.yaml:8:9: ` + at + `: expected the key "header", which is missing`},
		{"an unknown key", "{header: X, algo: sha1}", `m.yaml:8:27: ` + at + `: unknown key "algo"; expected one of header, prefix, separator, algorithm, encoding, key, signed, timestamp, id_header, type_header`},
		{"a header that is none", "{header: 'X Sig'}", `m.yaml:8:24: ` + at + `.header: expected the name of a header such as Authorization, found "X Sig"`},
		{"a prefix that is a number", "{header: X, prefix: 1}", `m.yaml:8:35: ` + at + `.prefix: expected a text in front of the signature of at most 64 visible characters, found a number; put it in quotes`},
		{"a separator that is long", "{header: X, separator: '123456789'}", `m.yaml:8:38: ` + at + `.separator: expected a text between signatures of at most 8 characters, found "123456789"`},
		{"an unknown algorithm", "{header: X, algorithm: md5}", `m.yaml:8:38: ` + at + `.algorithm: expected one of sha256, sha1, sha384, sha512, found "md5"`},
		{"an unknown encoding", "{header: X, encoding: base32}", `m.yaml:8:37: ` + at + `.encoding: expected one of hex, base64, base64url, found "base32"; did you mean "base64"?`},
		{"an unknown form of the key", "{header: X, key: text}", `m.yaml:8:32: ` + at + `.key: expected one of raw, hex, base64, found "text"`},
		{"a template without the body", "{header: X, signed: '{url}'}", `m.yaml:8:35: ` + at + `.signed: expected a text of at most 1024 bytes with {body} in it, found "{url}"`},
		{"a template that is long", "{header: X, signed: '{body}" + long + "'}", `m.yaml:8:35: ` + at + `.signed: expected a text of at most 1024 bytes with {body} in it, found "{body}` + long[:54] + `…"`},
		{"an unknown part", "{header: X, signed: '{time}{body}'}", `m.yaml:8:35: ` + at + `.signed: unknown part "{time}"; expected one of {body}, {timestamp}, {id}, {method}, {url}, {path}`},
		{"a time from nowhere", "{header: X, signed: '{timestamp}{body}'}", `m.yaml:8:35: ` + at + `.signed: expected the key timestamp beside this one, which says what {timestamp} is`},
		{"an id from nowhere", "{header: X, signed: '{id}{body}'}", `m.yaml:8:35: ` + at + `.signed: expected the key id_header beside this one, which says what {id} is`},
		{"a time that is a text", "{header: X, timestamp: X-T}", `m.yaml:8:38: ` + at + `.timestamp: expected a mapping, found a text`},
		{"a time without a header", "{header: X, timestamp: {unit: s}}", `m.yaml:8:27: ` + at + `.timestamp: expected the key "header", which is missing`},
		{"a time in an unknown unit", "{header: X, timestamp: {header: T, unit: us}}", `m.yaml:8:56: ` + at + `.timestamp.unit: expected one of s, ms, rfc3339, found "us"; did you mean "s"?`},
		{"an id in no header", "{header: X, id_header: ''}", `m.yaml:8:38: ` + at + `.id_header: expected the name of a header such as Authorization, found ""`},
		{"a type in no header", "{header: X, type_header: 7}", `m.yaml:8:40: ` + at + `.type_header: expected the name of a header such as Authorization, found a number; put it in quotes`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			data := oneEndpoint("\n        provider: hmac\n        secrets: [{env: STRIPE_WHSEC}]\n        hmac: " + tt.value)
			if got := parseErrors(t, data, testOptions()); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

func TestWhatIsWrongWithAWebhooksKeys(t *testing.T) {
	t.Parallel()
	const at = "apps.a.endpoints.e"
	const secrets = "secrets: [{env: STRIPE_WHSEC}]"
	tests := []struct{ name, value, want string }{ // value begins in column 10 of line 5
		{"hmac without a scheme", "{provider: hmac, " + secrets + "}", "m.yaml:5:7: " + at + ": provider hmac needs to know how the sender signs; expected hmac: {header: NAME}"},
		{"a scheme without hmac", "{provider: none, hmac: {header: X}}", "m.yaml:5:27: " + at + ".hmac: expected provider: hmac with this key, found provider none, which has a scheme of its own"},
		{"paypal without an id", "{provider: paypal}", "m.yaml:5:7: " + at + ": provider paypal signs the webhook's id and does not send it; expected webhook_id: ID"},
		{"an id with a blank", "{provider: paypal, webhook_id: 'a b'}", `m.yaml:5:41: ` + at + `.webhook_id: expected a webhook id of 1 to 255 characters without blanks, found "a b"`},
		{"an id that is a number", "{provider: paypal, webhook_id: 5}", `m.yaml:5:41: ` + at + `.webhook_id: expected a webhook id of 1 to 255 characters without blanks, found a number; put it in quotes`},
		{"a token in the open, which is not shown", "{provider: none, verify_token: hunter2}", "m.yaml:5:41: " + at + ".verify_token: expected {env: NAME} or {file: /path}, found a text; a secret itself is never written here"},
		{"a token that is not set", "{provider: none, verify_token: {env: NOPE}}", "m.yaml:5:47: " + at + ".verify_token.env: the environment variable NOPE is not set"},
		{"a tolerance of nothing", "{provider: none, tolerance: 0s}", `m.yaml:5:38: ` + at + `.tolerance: expected a duration from 1s to 7d, found "0s"`},
		{"a tolerance without a time", "{provider: hmac, " + secrets + ", hmac: {header: X}, tolerance: 5m}", "m.yaml:5:78: " + at + ".tolerance: expected {timestamp} in hmac.signed with this key: a time that nobody signed proves nothing"},
		{"a deadline that is short", "{provider: none, deadline: 99ms}", `m.yaml:5:37: ` + at + `.deadline: expected a duration from 100ms to 1m, found "99ms"`},
		{"a deadline that is long", "{provider: none, deadline: 61s}", `m.yaml:5:37: ` + at + `.deadline: expected a duration from 100ms to 1m, found "61s"`},
		{"a deadline without a unit", "{provider: none, deadline: 3}", `m.yaml:5:37: ` + at + `.deadline: expected a duration such as 30s, 10m, 2h or 7d, found a number; put it in quotes`},
		{"an unsubscription as a text", "{provider: none, allow_unsubscribe: maybe}", `m.yaml:5:46: ` + at + `.allow_unsubscribe: expected true or false, found "maybe"`},
		{"a breaker that is a number", "{provider: none, breaker: 5}", "m.yaml:5:36: " + at + ".breaker: expected a mapping, found a number"},
		{"a breaker with an unknown key", "{provider: none, breaker: {failure: 5}}", `m.yaml:5:37: ` + at + `.breaker: unknown key "failure"; expected one of failures, pause; did you mean "failures"?`},
		{"fewer than no failures", "{provider: none, breaker: {failures: -1}}", "m.yaml:5:47: " + at + ".breaker.failures: expected a whole number from 0 to 1000, found -1"},
		{"a pause that is long", "{provider: none, breaker: {pause: 11m}}", `m.yaml:5:44: ` + at + `.breaker.pause: expected a duration from 1ms to 10m, found "11m"`},
		{"a redaction that is a list", "{provider: none, redact: [/a]}", "m.yaml:5:35: " + at + ".redact: expected a mapping, found a list"},
		{"a redaction with an unknown key", "{provider: none, redact: {header: [A]}}", `m.yaml:5:36: ` + at + `.redact: unknown key "header"; expected one of headers, body; did you mean "headers"?`},
		{"a redacted header that is none", "{provider: none, redact: {headers: ['a:']}}", `m.yaml:5:46: ` + at + `.redact.headers[0]: expected the name of a header such as Authorization, found "a:"`},
		{"a redacted pointer that is none", "{provider: none, redact: {body: [/a, b]}}", `m.yaml:5:47: ` + at + `.redact.body[1]: expected a JSON pointer such as /data/object/id, found "b"`},
		{"redacted pointers that are a text", "{provider: none, redact: {body: /a}}", `m.yaml:5:42: ` + at + `.redact.body: expected a list, found a text`},
		{"a retention that is a text", "{provider: none, retention: 7d}", "m.yaml:5:38: " + at + ".retention: expected a mapping, found a text"},
		{"a retention with an unknown key", "{provider: none, retention: {days: 7}}", `m.yaml:5:39: ` + at + `.retention: unknown key "days"; expected one of bodies, events`},
		{"a retention in weeks", "{provider: none, retention: {events: 2w}}", `m.yaml:5:47: ` + at + `.retention.events: expected a duration such as 30s, 10m, 2h or 7d, found "2w"`},
		{"a retention beyond the limit", "{provider: none, retention: {events: 3651d}}", `m.yaml:5:47: ` + at + `.retention.events: expected a duration from 1s to 3650d, found "3651d"`},
		{"bodies that outlive their events", "{provider: none, retention: {bodies: 8d, events: 7d}}", `m.yaml:5:47: ` + at + `.retention.bodies: expected at most what events is, 7d, found 8d`},
		{"bodies that outlive the default of events", "{provider: none, retention: {bodies: 31d}}", `m.yaml:5:47: ` + at + `.retention.bodies: expected at most what events is, 30d, found 31d`},
		{"signing anew without the key", "{provider: discord, " + secrets + ", resign: true}", "m.yaml:5:70: " + at + ".resign: expected false; discord cannot be signed anew: only the sender has the key, or the signature or its time is part of the body"},
		{"signing anew without a signature", "{provider: none, resign: true}", "m.yaml:5:35: " + at + ".resign: expected false; provider none knows no signature that could be made anew"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := parseErrors(t, oneEndpoint(tt.value), testOptions()); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

func TestWhatIsWrongWithADestination(t *testing.T) {
	t.Parallel()
	const at = "apps.a.endpoints.e.fan_out"
	const good = "name: d, url: https://d.example"
	url := func(u, problem string) (string, string) {
		return "[{name: d, url: " + u + "}]", "m.yaml:7:34: " + at + "[0].url: expected a URL such as https://hooks.example.com/stripe" + problem
	}
	type test struct{ name, value, want string } // value begins in column 18 of line 7
	tests := []test{
		{"a mapping", "{" + good + "}", "m.yaml:7:18: " + at + ": expected a list, found a mapping"},
		{"a text", "[https://d.example]", "m.yaml:7:19: " + at + "[0]: expected a mapping, found a text"},
		{"nothing but a name", "[{name: d}]", `m.yaml:7:19: ` + at + `[0]: expected the key "url", which is missing`},
		{"nothing but a URL", "[{url: https://d.example}]", `m.yaml:7:19: ` + at + `[0]: expected the key "name", which is missing`},
		{"an unknown key", "[{" + good + ", mode: sync}]", `m.yaml:7:53: ` + at + `[0]: unknown key "mode"; expected one of name, url, filter, redact, resign, max_in_flight, rate, retry, breaker`},
		{"a name in capitals", "[{name: D, url: https://d.example}]", `m.yaml:7:26: ` + at + `[0].name: expected a name of 1 to 63 characters a-z, 0-9, - and _, found "D"`},
		{"a name twice", "[{" + good + "},\n          {" + good + "}]", `m.yaml:8:18: ` + at + `[1].name: expected a name of its own, "d" is taken on line 7 already`},
		{"too many", "[" + strings.Repeat("{"+good+"}, ", 21) + "]", "m.yaml:7:18: " + at + ": expected at most 20 items, found 21"},
		{"a filter that is wrong", "[{" + good + ", filter: 'type=a /b'}]", `m.yaml:7:61: ` + at + `[0].filter: expected = or != and a value, at character 10 of the filter`},
		{"a filter that is a list", "[{" + good + ", filter: [a]}]", `m.yaml:7:61: ` + at + `[0].filter: expected a filter such as type=invoice.*, found a list`},
		{"a redaction that is wrong", "[{" + good + ", redact: {body: [a]}}]", `m.yaml:7:69: ` + at + `[0].redact.body[0]: expected a JSON pointer such as /data/object/id, found "a"`},
		{"signing anew without the key", "[{" + good + ", resign: true}]", `m.yaml:7:61: ` + at + `[0].resign: expected false; discord cannot be signed anew: only the sender has the key, or the signature or its time is part of the body`},
		{"nothing in flight", "[{" + good + ", max_in_flight: 0}]", `m.yaml:7:68: ` + at + `[0].max_in_flight: expected a whole number from 1 to 1000, found 0`},
		{"a rate without a unit", "[{" + good + ", rate: fast}]", `m.yaml:7:59: ` + at + `[0].rate: expected a rate such as 50/s, 100/m or 2000/h, found "fast"`},
		{"a retry without a schedule", "[{" + good + ", retry: {}}]", `m.yaml:7:53: ` + at + `[0].retry: expected the key "schedule", which is missing`},
		{"a breaker that is wrong", "[{" + good + ", breaker: {failures: 1001}}]", `m.yaml:7:73: ` + at + `[0].breaker.failures: expected a whole number from 0 to 1000, found 1001`},
	}
	for u, problem := range map[string]string{
		"5":                           ", found a number; put it in quotes",
		"''":                          ", which begins with https:// or http://",
		"d.example/x":                 ", which begins with https:// or http://",
		"ftp://d.example":             ", which begins with https:// or http://",
		"https:d.example":             ", with a host",
		"https:///x":                  ", with a host",
		"'https://:443/x'":            ", with a host",
		"https://u:hunter2@d.example": ", without a user and password",
		"https://u@d.example":         ", without a user and password",
		"'https://d.example/#x'":      ", without a fragment",
		"'https://d.example/#'":       ", without a fragment",
		"'https://d.example/a b'":     ", without blanks and in ASCII",
		"https://ü.example":           ", without blanks and in ASCII",
		"https://d.example:0":         ", with a port from 1 to 65535",
		"https://d.example:65536":     ", with a port from 1 to 65535",
		"'https://d.example:'":        ", with a port from 1 to 65535",
		"https://d.example:x":         ", found one that is malformed",
		"'https://[::1/'":             ", found one that is malformed",
		"https://d.example/" + strings.Repeat("x", 2048): ", of at most 2048 characters",
	} {
		value, want := url(u, problem)
		tests = append(tests, test{fmt.Sprintf("the URL %.30s", u), value, want})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			data := oneEndpoint("\n        {provider: discord, secrets: [{env: STRIPE_WHSEC}],\n        fan_out: " + tt.value + "}")
			if got := parseErrors(t, data, testOptions()); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}
