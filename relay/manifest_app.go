package relay

import (
	"net/netip"
	"net/url"
	"strings"
	"unicode/utf8"
)

// Limits of an app.
const (
	maxListed  = 1000          // items of any list
	maxTeam    = 64            // characters
	maxQuota   = 1 << 44       // bytes
	maxWaiting = 1_000_000_000 // deliveries
)

func (r *manifestReader) readApp(p place) App {
	f := r.fields(p, "team", "public_url", "ingress", "endpoints", "quota", "egress", "debug")
	app := App{
		ID:        AppID(p.name),
		Team:      r.readTeam(f["team"]),
		PublicURL: r.readPublicURL(AppID(p.name), f["public_url"]),
		Ingress:   r.readIngress(AppID(p.name), f["ingress"]),
		Endpoints: map[string]Endpoint{},
		Quota:     r.readQuota(f["quota"]),
	}
	for _, e := range r.entries(f["endpoints"]) {
		if _, expected := parseName(e.name); expected != "" {
			r.failAt(e.key, f["endpoints"].path, "expected %s, found %s", expected, quote(e.name))
			continue
		}
		app.Endpoints[e.name] = r.readEndpoint(app.ID, e)
	}
	app.Egress = r.readEgress(f["egress"])
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

// readPublicURL reads where the app's own platform serves it. An address of this
// relay would wake nobody.
func (r *manifestReader) readPublicURL(app AppID, p place) string {
	if !p.given() {
		return ""
	}
	s := r.readURL(p)
	u, err := url.Parse(s)
	if err != nil || s == "" {
		return ""
	}
	host := strings.ToLower(u.Hostname())
	if d := r.opts.AppsDomain; d != "" && strings.HasSuffix(host, "."+d) {
		r.fail(p, "expected the address at the app's own platform, %s is an address of this relay", host)
		return ""
	}
	return s
}

// readQuota reads how much of an app is kept. There is no 0: it would mean that
// every webhook is refused, or that none ever is, and nobody knows which.
func (r *manifestReader) readQuota(p place) Quota {
	f := r.fields(p, "bytes", "waiting")
	return Quota{
		Bytes:   r.size(f["bytes"], 0, maxQuota),
		Waiting: int(r.integerIn(f["waiting"], 0, 1, maxWaiting)),
	}
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
