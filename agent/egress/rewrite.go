package egress

import (
	"net"
	"strings"

	"github.com/posternhq/postern/protocol/policy"
)

// plainURL is a URL taken apart without changing a byte of it. It knows the forms that
// databases have besides: jdbc:postgresql://…, and several hosts.
type plainURL struct {
	scheme    string // the last one before ://, lower case
	before    string // up to the host: scheme, user, password
	authority string // host:port, or several with commas
	after     string // path, query
}

func splitURL(value string) (plainURL, bool) {
	i := strings.Index(value, "://")
	if i <= 0 {
		return plainURL{}, false
	}
	scheme := value[:i]
	scheme = strings.ToLower(scheme[strings.LastIndexByte(scheme, ':')+1:])
	start, end := i+3, len(value)
	if n := strings.IndexAny(value[start:], "/?#"); n >= 0 {
		end = start + n
	}
	// A password may have a slash that nobody has escaped; then the @ comes later.
	if at := strings.LastIndexByte(value[start:end], '@'); at >= 0 {
		start += at + 1
	}
	return plainURL{scheme: scheme, before: value[:start], authority: value[start:end], after: value[end:]}, true
}

// hosts are without ports and brackets.
func (u plainURL) hosts() []string {
	var list []string
	for one := range strings.SplitSeq(u.authority, ",") {
		host, _, err := net.SplitHostPort(one)
		if err != nil {
			host = strings.Trim(one, "[]")
		}
		list = append(list, host)
	}
	return list
}

// usualPorts are those of URLs that name none.
var usualPorts = map[string]string{
	"postgres": "5432", "postgresql": "5432", "mysql": "3306", "mysql2": "3306", "mariadb": "3306",
	"redis": "6379", "rediss": "6379", "mongodb": "27017", "amqp": "5672", "amqps": "5671",
	"sqlserver": "1433", "mssql": "1433", "smtp": "25", "smtps": "465", "ldap": "389", "ldaps": "636",
	"memcached": "11211", "nats": "4222", "kafka": "9092", "http": "80", "https": "443",
}

// target is where u leads to, as a forward names it; "" when that cannot be told.
func (u plainURL) target() string {
	authority := u.authority
	if _, _, err := net.SplitHostPort(authority); err != nil {
		port := usualPorts[u.scheme]
		if port == "" {
			return ""
		}
		authority += ":" + port
	}
	t, err := policy.ParseTunnel(authority)
	if err != nil {
		return ""
	}
	return t.HostPort()
}

// rewrite leads the variables that were named to forwards.
func (e *environment) rewrite() {
	for _, name := range e.o.Rewrite {
		value := e.get(name)
		u, ok := splitURL(value)
		switch {
		case value == "":
			e.note("%s is not set, so it is not rewritten", name)
			continue
		case !ok || strings.Contains(u.authority, ","):
			e.note("%s is not rewritten: expected a URL with one host", name)
			continue
		}
		target := u.target()
		local := ""
		for _, f := range e.o.Forwards {
			if f.Target == target {
				local = f.Local
			}
		}
		if local == "" {
			if target == "" {
				target = "HOST:PORT"
			}
			e.note("%s is not rewritten: no forward leads to its host; add --forward PORT=%s", name, target)
			continue
		}
		e.set(name, u.before+local+u.after)
		if u.checksName() {
			e.note("%s leads to %s now: its TLS settings have the server's certificate checked for that name, which will fail; have the driver check for %s instead, or let it verify the authority only (sslmode=verify-ca)",
				name, local, u.hosts()[0])
		}
	}
}

// checksName reports whether a driver compares the certificate with the URL's host.
func (u plainURL) checksName() bool {
	query := strings.ToLower(u.after)
	for _, setting := range []string{"sslmode=verify-full", "ssl-mode=verify_identity", "sslmode=verify_identity", "tls=true", "ssl=true"} {
		if strings.Contains(query, setting) {
			return true
		}
	}
	switch u.scheme {
	case "rediss", "amqps", "smtps", "ldaps", "https", "mongodb+srv":
		return true
	}
	return false
}

// ForwardsFor lists the targets of the variables named in rewrite that no forward leads
// to yet: one on any free port for each would do.
func ForwardsFor(environ, rewrite []string, have []Forward) []Forward {
	e := &environment{list: environ}
	var more []Forward
	for _, name := range rewrite {
		u, ok := splitURL(e.get(name))
		if !ok || u.target() == "" {
			continue
		}
		known := false
		for _, f := range append(have, more...) {
			t, err := policy.ParseTunnel(f.Target)
			known = known || err == nil && t.HostPort() == u.target()
		}
		if !known {
			more = append(more, Forward{Local: "127.0.0.1:0", Target: u.target()})
		}
	}
	return more
}
