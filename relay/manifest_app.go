package relay

import (
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Limits of an app and its endpoints.
const (
	maxListed      = 1000      // items of any list
	maxTeam        = 64        // characters
	maxInFlight    = 1000      // deliveries of one endpoint at once
	maxMaxBody     = 256 << 20 // bytes; a body is held in memory
	maxSecrets     = 10        // of one endpoint: each is tried on every webhook
	maxRetries     = 50        // steps of a schedule
	maxRetryPause  = 7 * 24 * time.Hour
	minRetryPause  = time.Millisecond
	providerNone   = "none" // takes everything, verifies nothing
	endpointPrefix = "/webhooks/"
)

func (r *manifestReader) readApp(p place) App {
	f := r.fields(p, "team", "ingress", "endpoints", "egress", "debug")
	app := App{
		ID:        AppID(p.name),
		Team:      r.readTeam(f["team"]),
		Ingress:   r.readIngress(AppID(p.name), f["ingress"]),
		Endpoints: map[string]Endpoint{},
	}
	for _, e := range r.entries(f["endpoints"]) {
		if _, expected := parseName(e.name); expected != "" {
			r.failAt(e.key, f["endpoints"].path, "expected %s, found %s", expected, quote(e.name))
			continue
		}
		app.Endpoints[e.name] = r.readEndpoint(app.ID, e)
	}
	if r.checkEgress(f["egress"]) {
		r.unused = append(r.unused, f["egress"].path)
	}
	if r.checkDebug(f["debug"]) {
		r.unused = append(r.unused, f["debug"].path)
	}
	return app
}

func (r *manifestReader) readTeam(p place) string {
	if !p.given() {
		return ""
	}
	const what = "a team name of 1 to 64 characters"
	team, _ := parsed(r, p, what, func(s string) (string, string) {
		n := utf8.RuneCountInString(s)
		if n < 1 || n > maxTeam || strings.TrimSpace(s) != s || hasControl(s) {
			return "", what
		}
		return s, ""
	})
	return team
}

func hasControl(s string) bool {
	return strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c >= 0x7f && c < 0xa0 })
}

func (r *manifestReader) readIngress(app AppID, p place) Ingress {
	f := r.fields(p, "hosts", "allow_ips", "auth", "protocol")
	return Ingress{
		Hosts:    r.readHosts(app, f["hosts"]),
		AllowIPs: r.readAllowed(f["allow_ips"]),
		Basic:    r.readAuth(f["auth"]),
		Protocol: r.choice(f["protocol"], "http1", "h2c"),
	}
}

func (r *manifestReader) readHosts(app AppID, p place) []string {
	var hosts []string
	for _, item := range r.items(p, maxListed) {
		host, ok := parsed(r, item, expectedHost, parseHost)
		if ok && r.claimHost(app, item, host) {
			hosts = append(hosts, host)
		}
	}
	return hosts
}

// claimHost notes that host is app's. A request goes to the app its Host names,
// so a host has one app in the whole file.
func (r *manifestReader) claimHost(app AppID, p place, host string) bool {
	if claim, taken := r.hosts[host]; taken {
		r.fail(p, "expected a host that is named once, %s is apps.%s's on line %d already", host, claim.app, claim.line)
		return false
	}
	if label, ok := strings.CutSuffix(host, "."+r.opts.AppsDomain); ok && r.opts.AppsDomain != "" {
		if other := AppID(label); other != app && r.apps[other] {
			r.fail(p, "expected a host of this app, %s is the built-in name of apps.%s", host, other)
			return false
		}
	}
	r.hosts[host] = hostClaim{app: app, line: p.node.Line}
	return true
}

// readAllowed reads allow_ips. An empty list is refused: it reads like "nobody"
// and would mean "everybody".
func (r *manifestReader) readAllowed(p place) []netip.Prefix {
	if p.given() && p.empty() {
		r.fail(p, "expected at least one range; to let everybody in leave the key out")
	}
	return r.readRanges(p)
}

func (r *manifestReader) readRanges(p place) []netip.Prefix {
	var ranges []netip.Prefix
	for _, item := range r.items(p, maxListed) {
		if prefix, ok := parsed(r, item, expectedRange, parseRange); ok {
			ranges = append(ranges, prefix)
		}
	}
	return ranges
}

func (r *manifestReader) readAuth(p place) *BasicAuth {
	f := r.fields(p, "basic")
	if p.given() {
		r.require(p, f, "basic")
	}
	basic := f["basic"]
	if !basic.given() {
		return nil
	}
	b := r.fields(basic, "user", "password")
	r.require(basic, b, "user", "password")

	auth := &BasicAuth{}
	if user := b["user"]; user.given() {
		const what = "a user name without : and control characters" // RFC 7617, section 2
		auth.User, _ = parsed(r, user, what, func(s string) (string, string) {
			if s == "" || len(s) > 255 || strings.Contains(s, ":") || hasControl(s) {
				return "", what
			}
			return s, ""
		})
	}
	if password := b["password"]; password.given() {
		auth.Password = r.readSecret(password)
	}
	return auth
}

func (r *manifestReader) readEndpoint(app AppID, p place) Endpoint {
	f := r.fields(p, "provider", "secrets", "mode", "path", "order_by",
		"max_in_flight", "rate", "retry", "resign", "max_body")
	r.require(p, f, "provider")

	e := Endpoint{
		App:         app,
		Name:        p.name,
		Provider:    r.readProvider(f["provider"]),
		Secrets:     r.readSecrets(f["secrets"]),
		Mode:        Mode(r.choice(f["mode"], string(ModeStore), string(ModeHybrid), string(ModeSync))),
		Path:        endpointPrefix + p.name,
		MaxInFlight: int(r.integerIn(f["max_in_flight"], DefaultMaxInFlight, 1, maxInFlight)),
		Retry:       r.readRetry(f["retry"]),
		Resign:      r.boolean(f["resign"]),
		MaxBody:     r.size(f["max_body"], DefaultMaxBody, maxMaxBody),
	}
	if f["path"].given() {
		e.Path, _ = parsed(r, f["path"], expectedPath, parsePath)
	}
	if f["order_by"].given() {
		e.OrderBy, _ = parsed(r, f["order_by"], expectedPointer, parsePointer)
	}
	if f["rate"].given() {
		e.Rate, _ = parsed(r, f["rate"], expectedRate, parseRate)
	}
	r.checkSecretCount(p, e.Provider, f["secrets"])
	return e
}

func (r *manifestReader) readProvider(p place) string {
	if !p.given() {
		return ""
	}
	name, ok := r.text(p, "the name of a provider")
	if !ok || name == providerNone {
		return name
	}
	known := r.opts.Providers
	if known == nil {
		if _, expected := parseName(name); expected != "" {
			r.expected(p, "the name of a provider")
			return ""
		}
		return name
	}
	if !slices.Contains(known, name) {
		words := append([]string{providerNone}, known...)
		slices.Sort(words)
		words = slices.Compact(words)
		r.fail(p, "unknown provider %s; expected %s%s", quote(name), oneOf(words), didYouMean(name, words))
		return ""
	}
	return name
}

func (r *manifestReader) readSecrets(p place) []Secret {
	var secrets []Secret
	for _, item := range r.items(place{path: p.path, key: p.key, node: p.node, secret: true}, maxSecrets) {
		secrets = append(secrets, r.readSecret(item))
	}
	if r.opts.SkipSecrets {
		return nil // an empty key must not look like a key
	}
	return secrets
}

// checkSecretCount refuses an endpoint that could verify nothing. It counts
// what is written, so that a secret that cannot be resolved is one error only.
func (r *manifestReader) checkSecretCount(p place, provider string, secrets place) {
	if provider == "" || provider == providerNone || slices.Contains(r.opts.Secretless, provider) {
		return
	}
	if !secrets.empty() {
		return
	}
	r.failAt(p.key, p.path, "provider %s needs a secret; expected secrets: [{env: NAME}], or provider: none to accept everything", provider)
}

func (r *manifestReader) readRetry(p place) RetryPolicy {
	f := r.fields(p, "schedule")
	schedule := f["schedule"]
	if p.given() {
		r.require(p, f, "schedule")
	}
	if !schedule.given() {
		return RetryPolicy{Schedule: slices.Clone(DefaultRetry.Schedule)}
	}
	if isNull(schedule.node) {
		r.fail(schedule, "expected a list of durations, found nothing; to never retry write []")
	}
	var steps []time.Duration
	for _, item := range r.items(schedule, maxRetries) {
		steps = append(steps, r.duration(item, minRetryPause, maxRetryPause))
	}
	return RetryPolicy{Schedule: steps}
}
