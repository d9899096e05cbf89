package main

import (
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/posternhq/postern/protocol/api"
)

func init() {
	for route, names := range map[string]string{
		"GET /egress/explain":            "app url method instance",
		"GET /egress/flows":              "app target verdict limit",
		"GET /egress/flows/stream":       "app",
		"GET /egress/usage":              "app since",
		"GET /egress/learn":              "app since",
		"GET /egress/status":             "app",
		"GET /egress/orders":             "all",
		"POST /egress/orders":            "",
		"POST /egress/orders/den_01/end": "",
		"POST /egress/orders/exc_01/end": "",
		"GET /manifest":                  "",
		"GET /manifest/versions":         "limit",
		"GET /manifest/versions/7":       "",
		"POST /manifest/apply":           "",
		"POST /manifest/diff":            "",
		"POST /manifest/rollback":        "",
		"POST /manifest/promote":         "",
	} {
		parameters[route] = names
	}
}

// newCallsAPI is a relay with the routes of calls and of the manifest, and an
// administrator before it.
func newCallsAPI(t *testing.T) *relayAPI {
	r := newRelayAPI(t)
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "POSTERN_EGRESS_") || strings.HasPrefix(name, "POSTERN_MANIFEST_") {
			t.Setenv(name, "")
		}
	}
	t.Setenv("POSTERN_TOKEN", token("admin", ""))
	return r
}

// group runs a verb as the program does: args begin with egress, manifest or apply.
func (d *desk) verb(t *testing.T, args ...string) (code int, err error) {
	t.Helper()
	switch args[0] {
	case "egress":
		code, err = egressGroup().run(t.Context(), d.console, args[1:])
	case "manifest":
		code, err = manifestGroup().run(t.Context(), d.console, args[1:])
	default:
		code, err = appVerb(t.Context(), d.console, applyVerb, args[1:])
	}
	switch {
	case errors.Is(err, errHelp):
		return exitOK, nil
	case errors.As(err, new(usageError)):
		return exitUsage, err
	case err != nil:
		return max(code, exitFailed), err
	}
	return code, nil
}

// screens is what d shows, to be compared with a file.
func (d *desk) screens() string {
	text := d.stdout.String()
	if said := d.stderr.String(); said != "" {
		text += "-- on standard error\n" + said
	}
	return text
}

// callVerbs are all verbs about calls and the manifest.
func callVerbs() []eventVerb {
	return append(slices.Concat(egressGroup().verbs, manifestGroup().verbs), applyVerb)
}

func TestHelpOfTheVerbsAboutCalls(t *testing.T) {
	var text strings.Builder
	for _, g := range []string{"egress", "manifest"} {
		d := newDesk()
		if code, err := d.verb(t, g, "--help"); code != 0 {
			t.Fatal(code, err)
		}
		text.WriteString("$ postern " + g + " --help\n" + d.stdout.String() + "\n")
	}
	for _, v := range callVerbs() {
		d := newDesk()
		if code, err := d.verb(t, append(strings.Fields(v.name), "--help")...); code != 0 {
			t.Fatal(v.name, code, err)
		}
		text.WriteString("$ postern " + v.name + " --help\n" + d.stdout.String() + "\n")
	}
	golden(t, "egress-help.txt", text.String())
	for i, l := range strings.Split(text.String(), "\n") {
		if n := len([]rune(l)); n > 120 {
			t.Errorf("line %d has %d columns: %s", i+1, n, l)
		}
	}
}

func TestFlagsOfCallsHaveVariablesOfTheirGroup(t *testing.T) {
	r := newCallsAPI(t)
	r.on("GET /egress/flows", api.FlowList{})
	t.Setenv("POSTERN_EGRESS_VERDICT", "deny")
	t.Setenv("POSTERN_EGRESS_LIMIT", "7")
	t.Setenv("POSTERN_APP", "shop")
	if code, err := newDesk().verb(t, "egress", "log", "--limit", "9"); code != 0 {
		t.Fatal(code, err)
	}
	if got := r.said(); !slices.Equal(got, []string{"GET /egress/flows?app=shop&limit=9&verdict=deny"}) {
		t.Errorf("asked %q", got)
	}
	t.Setenv("POSTERN_EGRESS_LIMIT", "many")
	if code, err := newDesk().verb(t, "egress", "log"); code != exitUsage || !strings.Contains(err.Error(), `POSTERN_EGRESS_LIMIT="many": expected a number from 1 to 1000`) {
		t.Errorf("%d, %v", code, err)
	}
}

// A command line that cannot be meant is exit code 2, asks the relay nothing, and
// says what is right.
func TestWrongUsageOfCallVerbs(t *testing.T) {
	r := newCallsAPI(t)
	for args, want := range map[string]string{
		"egress":      "which one? postern egress explain https://api.example.com",
		"egress lost": `there is no command "egress lost"; see postern egress --help`,
		"manifest":    "which one? postern manifest diff -f postern.yaml",
		"manifest up": `there is no command "manifest up"`,

		"egress explain":                                  "which URL? postern egress explain https://api.example.com",
		"egress explain a b --app shop":                   `takes one URL, got "b" besides`,
		"egress explain https://x.example":                "whose call? postern egress explain https://x.example --app NAME",
		"egress explain https://ann:s3cret@x.example":     "has a user in it",
		"egress explain x.example --app Shop":             `"Shop" is not the name of an app`,
		"egress explain x.example --bogus":                "there is no flag --bogus; see postern egress explain --help",
		"egress log shop":                                 `egress log takes no arguments, got "shop"`,
		"egress log --verdict maybe":                      `--verdict "maybe": expected allow, report or deny`,
		"egress log -n 0":                                 `--limit "0": expected a number from 1 to 1000`,
		"egress deny":                                     "which host, range or app? postern egress deny api.evil.example --for 1h --reason TEXT",
		"egress deny a.example b.example":                 "takes one host, range or app",
		"egress deny a.example":                           "for how long? --for 1h",
		"egress deny a.example --for 1h":                  "why? --reason TEXT",
		"egress deny a.example --for soon":                `--for "soon": expected a time such as 30m, 1h or 7d`,
		"egress deny a.example --for 0s":                  "expected a time above zero",
		"egress deny a.example --for -1h":                 "expected a time above zero",
		"egress deny a.example --for 9999d":               "expected at most 366 days",
		"egress deny https://u:p@evil.example/x --for 1h": "no URL: postern egress deny evil.example …",
		"egress deny 198.51.100.9/24 --for 1h --reason x": "198.51.100.9/24 has bits below its mask: 198.51.100.0/24 or 198.51.100.9?",
		"egress deny 198.51.100.0/64 --for 1h --reason x": "is neither a host nor a range",
		"egress deny app: --for 1h --reason x":            "which app?",
		"egress deny app:Shop --for 1h --reason x":        `"Shop" is not the name of an app`,
		"egress deny app:shop --app blog --for 1h":        "name different apps",
		"egress deny --all":                               "--all is for --list",
		"egress deny --list a.example":                    "--list shows what is in force",
		"egress deny --list --end den_01":                 "exclude one another",
		"egress deny --end exc_01":                        `"exc_01" is not an id; expected den_…`,
		"egress deny --end ../den_01":                     "is not an id",
		"egress deny --end den_01 --for 1h":               "nothing else",
		"egress allow --end den_01":                       "expected exc_…",
		"egress allow":                                    "which target?",
		"egress allow https://x.example --for 1h":         "why? --reason TEXT",
		"egress allow x --for 1h --reason x --owner ann":  "for which app? --app NAME",
		"egress allow https://u:p@x.example --for 1h":     "has a user in it",
		"egress learn":                                    "whose calls? postern egress learn --app NAME",
		"egress learn --since tomorrow":                   "expected how long ago (1h, 7d)",
		"egress usage --since 2027-01-01":                 "that is in the future",
		"egress status shop":                              "takes no arguments",
		"apply":                                           "which file? postern apply -f postern.yaml",
		"apply --dry-run":                                 "which file? postern apply -f postern.yaml",
		"apply postern.yaml":                              `apply takes no arguments, got "postern.yaml"`,
		"apply -f":                                        "--file needs a value",
		"apply -f x --base 0":                             `--base "0": expected a number`,
		"apply -f x --app shop":                           "there is no flag --app",
		"manifest diff":                                   "which file? postern manifest diff -f postern.yaml",
		"manifest diff -f x --since 0":                    "expected a time above zero",
		"manifest show seven":                             `"seven" is not the number of a version`,
		"manifest show 7 8":                               `takes one version, got "8" besides`,
		"manifest rollback -- -7":                         "is not the number of a version",
		"manifest promote 8":                              "takes no arguments",
		"manifest history --limit 0":                      "expected a number from 1 to 1000",
	} {
		code, err := newDesk().verb(t, strings.Fields(args)...)
		if code != exitUsage || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %d, %v; want %q", args, code, err, want)
		}
		if err != nil && (strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), "u:p@")) {
			t.Errorf("%s: the error shows a password: %v", args, err)
		}
	}
	if got := r.said(); len(got) != 0 {
		t.Errorf("asked %q", got)
	}
}

func TestTimeSpans(t *testing.T) {
	const day = 24 * time.Hour
	for s, want := range map[string]time.Duration{
		"90s": 90 * time.Second, "1h30m": 90 * time.Minute, "7d": 7 * day, "1d12h": 36 * time.Hour, "366d": 366 * day,
		"": 0, "d": 0, "1": 0, "1.5d": 0, "-1d": 0, "1d-1h": 23 * time.Hour, "0d": 0, "1dd": 0, "366d1s": 0, "99999999d": 0, "2562047h": 0, "1w": 0,
	} {
		got, err := timeSpan(s)
		if got != want && err == nil || (err != nil) != (want == 0) {
			t.Errorf("%q: %v, %v; want %v", s, got, err, want)
		}
	}
}

func denied() api.Explanation {
	return api.Explanation{
		App: "shop", URL: "https://api.new.example/v1", Verdict: "deny", Cause: "denied", Status: 403,
		Rule: "default", Reason: "no line allows a tunnel to api.new.example:443", Version: 7, Mode: "enforce",
		Suggestion: "under apps.shop.egress.allow add: - https://api.new.example\x1b[2J",
	}
}

func TestExplain(t *testing.T) {
	r := newCallsAPI(t)
	allowed := api.Explanation{
		App: "shop", URL: "http://api.partner.example/v1/items", Method: "POST", Verdict: "allow", Rule: "apps.shop.egress.allow[3]", Line: 14,
		Text: "        - {host: http://api.partner.example, rules: [{methods: [POST], paths: [/v1/**]}]}", Reason: "a line of the allow list names it",
		Via: "relay", OnLoss: "closed", Version: 7, Mode: "enforce",
		Addresses: []api.ExplainedAddress{{Address: "93.184.216.34", Allowed: true}, {Address: "10.0.0.7", Reason: "10.0.0.7 is not a public address: private (RFC 1918)"}},
	}
	reported := api.Explanation{App: "shop", URL: "https://x.example", Verdict: "report", Rule: "mode", Reason: "no line allows a tunnel to x.example:443",
		Via: "direct", Version: 0, Mode: "report", DNSError: "there is no such name"}
	var text string
	for _, e := range []api.Explanation{allowed, denied(), reported} {
		r.on("GET /egress/explain", e)
		d := newDesk().terminal(80, "")
		d.color = false
		if code, err := d.verb(t, "egress", "explain", e.URL, "--app", "shop", "--method", "post", "--instance", "web.1"); code != 0 || err != nil {
			t.Errorf("%d, %v", code, err)
		}
		text += d.screens() + "\n"
	}
	golden(t, "egress-explain.txt", text)
	if got := r.said()[0]; got != "GET /egress/explain?app=shop&instance=web.1&method=POST&url=http%3A%2F%2Fapi.partner.example%2Fv1%2Fitems" {
		t.Errorf("asked %q", got)
	}
}

// What the policy does not look at may be secret, and stays here.
func TestExplainSendsNoQueryAndAddsTheScheme(t *testing.T) {
	r := newCallsAPI(t)
	t.Setenv("POSTERN_TOKEN", token("developer", "shop"))
	r.on("GET /egress/explain", denied())
	for url, want := range map[string]string{
		"https://x.example/a?key=s3cret#s3cret": "https://x.example/a",
		"x.example":                             "https://x.example",
		"x.example:8443/@a":                     "https://x.example:8443/@a",
		"tcp://db.example:5432":                 "tcp://db.example:5432",
		"http://0x7f.1/":                        "http://0x7f.1/",
	} {
		if code, err := newDesk().verb(t, "egress", "explain", url); code != 0 {
			t.Fatal(code, err)
		}
		last := r.requests[len(r.requests)-1]
		if got := last.URL.Query().Get("url"); got != want || strings.Contains(last.URL.String(), "s3cret") {
			t.Errorf("%s: asked about %s", url, last.URL)
		}
	}
}

func TestExplainForScripts(t *testing.T) {
	r := newCallsAPI(t)
	r.on("GET /egress/explain", denied())
	d := newDesk()
	if code, err := d.verb(t, "egress", "explain", "--check", "--json", "--app=shop", "api.new.example"); code != exitFailed || !errors.Is(err, errWouldBeRefused) {
		t.Errorf("%d, %v", code, err)
	}
	var e api.Explanation
	if err := json.Unmarshal([]byte(d.stdout.String()), &e); err != nil || e.Cause != "denied" || strings.Contains(d.stdout.String(), "\x1b") {
		t.Errorf("%v in %s", err, d.stdout)
	}
	allowed := denied()
	allowed.Verdict = "allow"
	r.on("GET /egress/explain", allowed)
	if code, err := newDesk().verb(t, "egress", "explain", "--check", "--app=shop", "api.new.example"); code != 0 || err != nil {
		t.Errorf("%d, %v", code, err)
	}
}

func TestLearnPrintsTheYAMLAlone(t *testing.T) {
	r := newCallsAPI(t)
	learned := api.Learned{App: "shop", Since: noon.Add(-7 * 24 * time.Hour), YAML: "allow:\n  - https://api.stripe.com  # 120 calls, last 2026-11-21\x1b[2J\n",
		Rules: []api.LearnedRule{{Target: "https://api.stripe.com", Calls: 120}, {Target: "tcp://db.example:5432", Allowed: true}}}
	r.on("GET /egress/learn", learned)
	d := newDesk().terminal(80, "")
	if code, err := d.verb(t, "egress", "learn", "--app", "shop"); code != 0 || err != nil {
		t.Errorf("%d, %v", code, err)
	}
	if got, want := d.stdout.String(), "allow:\n  - https://api.stripe.com  # 120 calls, last 2026-11-21\\x1b[2J\n"; got != want {
		t.Errorf("printed %q, want %q", got, want)
	}
	if said := d.stderr.String(); said != "2 targets, of which the running version does not allow 1\n" {
		t.Errorf("said %q", said)
	}
	if got := r.said(); !slices.Equal(got, []string{"GET /egress/learn?app=shop&since=2026-11-14T12%3A00%3A00Z"}) {
		t.Errorf("asked %q", got)
	}
	r.on("GET /egress/learn", api.Learned{App: "shop"})
	d = newDesk()
	if code, err := d.verb(t, "egress", "learn", "--app", "shop", "--since", "1h"); code != 0 || err != nil || d.stdout.String() != "" || d.stderr.String() != "shop has called nothing since 2026-11-21 11:00\n" {
		t.Errorf("%d, %v, %s", code, err, d.screens())
	}
}

func someStatus() api.EgressStatus {
	return api.EgressStatus{
		Started: 1204, Logged: 1200, InFlight: 4, Serial: 42, Version: 7, Canary: 8, AppliedMS: -1,
		Warnings: []string{"app shop: exc_01 for https://api.new.example ends at 2026-11-21T12:20:00Z, owner ann\x07"},
		Agents: []api.EgressAgent{
			{App: "shop", Instance: "web.1", Serial: 42, Version: 7, AppliedAt: noon, DelayMS: 31},
			{App: "shop", Instance: "web.2", Serial: 41, Version: 8, AppliedAt: noon.Add(-time.Minute), DelayMS: 12},
			{App: "blog", Instance: "web.1", Serial: 40, Version: 7, AppliedAt: noon, Error: "the policy is too large\x1b[2J"},
			{App: "blog", Instance: "web.2"},
		},
	}
}

func TestEgressStatus(t *testing.T) {
	r := newCallsAPI(t)
	s := someStatus()
	r.on("GET /egress/status", s)
	d := newDesk()
	if code, err := d.verb(t, "egress", "status"); code != 0 || err != nil {
		t.Errorf("%d, %v", code, err)
	}
	text := d.screens()
	s.AppliedMS, s.Canary, s.Agents, s.Warnings, s.Logged = 180, 0, nil, nil, 1199
	r.on("GET /egress/status", s)
	d = newDesk()
	if code, err := d.verb(t, "egress", "status", "--app", "shop"); code != 0 || err != nil {
		t.Errorf("%d, %v", code, err)
	}
	golden(t, "egress-status.txt", text+"\n"+d.screens())
	if got := r.said(); !slices.Equal(got, []string{"GET /egress/status", "GET /egress/status?app=shop"}) {
		t.Errorf("asked %q", got)
	}
}

func TestEgressUsage(t *testing.T) {
	r := newCallsAPI(t)
	r.on("GET /egress/usage", api.UsageList{Since: noon.Add(-time.Hour), Usage: []api.Usage{
		{App: "shop", Team: "payments", Target: "api.stripe.com:443", Rule: "apps.shop.egress.allow[0]", Verdict: "allow", Calls: 1204, Failed: 2, Up: 5_300_000_000, Down: 7e12},
		{App: "blog", Target: "evil.example:443", Rule: "default", Verdict: "deny", Calls: 3},
	}})
	var text string
	for _, width := range []int{0, 100, 70} {
		d := newDesk()
		d.width = func() int { return width }
		if code, err := d.verb(t, "egress", "usage", "--since", "1h"); code != 0 || err != nil {
			t.Errorf("%d, %v", code, err)
		}
		text += d.screens() + "\n"
	}
	golden(t, "egress-usage.txt", text)
	if got := r.said()[0]; got != "GET /egress/usage?since=2026-11-21T11%3A00%3A00Z" {
		t.Errorf("asked %q", got)
	}
	r.on("GET /egress/usage", api.UsageList{})
	d := newDesk()
	if code, err := d.verb(t, "egress", "usage"); code != 0 || err != nil || d.stderr.String() != "no calls since 2026-11-20 12:00\n" {
		t.Errorf("%d, %v, %s", code, err, d.screens())
	}
}

// Whatever is wrong with the token, the hint names one that would do.
func TestRefusedAdministration(t *testing.T) {
	for _, test := range []struct {
		name, token string
		status      int
		args        string
		want        string
	}{
		{"a developer denies", token("developer", "shop"), 403, "egress deny a.example --for 1h --reason x", "This takes an administrator's token; make one with: postern-relay token create --scope admin"},
		{"an administrator of one app", token("admin", "shop"), 403, "manifest promote", "The token is for the app shop alone"},
		{"one that has expired", token("admin", ""), 401, "manifest history", "Make a new one with: postern-relay token create --scope admin"},
		{"a developer may look", token("developer", "shop"), 401, "egress status", "--app shop --scope developer"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newCallsAPI(t)
			t.Setenv("POSTERN_TOKEN", test.token)
			for route := range parameters {
				r.handle(route, func(w http.ResponseWriter, _ *http.Request) { refuse(w, test.status, "no", "not with this token") })
			}
			code, err := newDesk().verb(t, strings.Fields(test.args)...)
			if code != exitFailed || err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%d, %v; want %q", code, err, test.want)
			}
		})
	}
}

func TestAnOldRelayHasNoSuchAPI(t *testing.T) {
	r := newCallsAPI(t)
	for _, route := range slices.Collect(maps.Keys(parameters)) {
		r.handle(route, http.NotFound)
	}
	for args, want := range map[string]string{"egress status": "has no egress API", "manifest history": "has no manifest API"} {
		if code, err := newDesk().verb(t, strings.Fields(args)...); code != exitFailed || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %d, %v", args, code, err)
		}
	}
}

// hostile fills every text in v with what would steer a terminal, and makes every list
// two long.
func hostile(v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		v.SetString("\x1b[2J\u202ex\r\u009b1m")
	case reflect.Int, reflect.Int64:
		v.SetInt(7)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			hostile(v.Index(i))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				hostile(v.Field(i))
			}
		}
	}
}

func hostileAnswer[T any]() T {
	var v T
	hostile(reflect.ValueOf(&v).Elem())
	return v
}

// What the relay says comes from apps, from whoever they call and from colleagues: no
// verb lets it through to the terminal.
func TestNoVerbAboutCallsLetsAnythingSteerTheTerminal(t *testing.T) {
	r := newCallsAPI(t)
	orders := hostileAnswer[api.OrderList]()
	orders.Orders[0].Kind, orders.Orders[1].Kind = "deny", "allow"
	for route, v := range map[string]any{
		"GET /egress/explain": hostileAnswer[api.Explanation](), "GET /egress/flows": hostileAnswer[api.FlowList](),
		"GET /egress/learn": hostileAnswer[api.Learned](), "GET /egress/status": hostileAnswer[api.EgressStatus](),
		"GET /egress/usage": hostileAnswer[api.UsageList](), "GET /egress/orders": orders, "POST /egress/orders": hostileAnswer[api.Order](),
		"POST /egress/orders/den_01/end": hostileAnswer[api.Order](), "GET /manifest": hostileAnswer[api.ManifestVersion](),
		"GET /manifest/versions": hostileAnswer[api.ManifestList](), "POST /manifest/apply": hostileAnswer[api.ManifestVersion](),
		"POST /manifest/diff": hostileAnswer[api.ManifestDiff](), "POST /manifest/rollback": hostileAnswer[api.ManifestVersion](),
		"POST /manifest/promote": hostileAnswer[api.ManifestVersion](),
	} {
		r.on(route, v)
	}
	file := manifestFile(t, someManifest)
	for _, args := range []string{
		"egress explain --app shop x.example", "egress log", "egress deny --for 1h --reason x x.example", "egress deny --end den_01", "egress deny --list",
		"egress allow --list", "egress learn --app shop", "egress status", "egress usage", "apply -f " + file, "manifest diff -f " + file,
		"manifest history", "manifest show", "manifest rollback", "manifest promote",
	} {
		for _, more := range []string{"", "--json"} {
			d := newDesk().terminal(80, "")
			code, err := d.verb(t, strings.Fields(args+" "+more)...)
			if code != 0 || err != nil || d.stdout.String() == "" {
				t.Errorf("%s %s: %d, %v, %q", args, more, code, err, d.screens())
			}
			if strings.ContainsFunc(d.screens(), func(r rune) bool { return r != '\n' && !unicode.IsGraphic(r) }) {
				t.Errorf("%s %s: a terminal would be steered: %q", args, more, d.screens())
			}
		}
	}
}

// The verbs are registered, and their exit codes are the program's.
func TestProgramHasTheVerbsAboutCalls(t *testing.T) {
	for args, want := range map[string]struct {
		code           int
		stdout, stderr string
	}{
		"--help":             {0, "postern apply -f FILE", ""},
		"egress --help":      {0, "postern egress explain", ""},
		"manifest --help":    {0, "postern manifest rollback", ""},
		"apply --help":       {0, "--no-canary", ""},
		"egress":             {2, "", "which one? postern egress explain"},
		"egress log --lost":  {2, "", "there is no flag --lost; see postern egress log --help"},
		"manifest":           {2, "", "which one? postern manifest diff"},
		"apply":              {2, "", "which file? postern apply -f postern.yaml"},
		"apply -f none.yaml": {1, "", "the manifest cannot be read: open none.yaml"},
		"egress status":      {1, "", "http://127.0.0.1:1 cannot be reached"},
	} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			code, stdout, stderr := postern(t, []string{"POSTERN_RELAY=http://127.0.0.1:1", "POSTERN_TOKEN=" + token("admin", "")}, strings.Fields(args)...)
			if code != want.code || !strings.Contains(stdout, want.stdout) || !strings.Contains(stderr, want.stderr) {
				t.Errorf("exit code %d, %q, %q", code, stdout, stderr)
			}
		})
	}
}
