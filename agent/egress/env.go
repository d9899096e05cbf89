package egress

import (
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// EnvOptions is what Environment is told.
type EnvOptions struct {
	Proxy    netip.AddrPort // of the Proxy; zero: none, only Rewrite is done
	ShimDir  string         // a folder of the agent's own, for the file that old Nodes load; "": none
	Rewrite  []string       // names of variables with URLs that are to lead to a forward
	Forwards []Forward      // as Proxy.Forwards has them
}

// Environment is environ with what makes the app use the proxy and the forwards, each
// language in its own way. What somebody else has set of a proxy stays, and is in
// notes, as is whatever a person should know. No note has a password.
//
//	curl, Go, Python, Ruby, PHP   HTTP_PROXY, HTTPS_PROXY, NO_PROXY; each reads the case it likes
//	Node 22.21, 24.5 and later    NODE_USE_ENV_PROXY
//	older Nodes                   NODE_OPTIONS loads a file that does the same, see shim.cjs
//	JVM                           JAVA_TOOL_OPTIONS
//	what knows no proxy           a forward, and a URL that leads to it
func Environment(environ []string, o EnvOptions) (env []string, notes []string) {
	e := &environment{list: slices.Clone(environ), o: o}
	e.rewrite()
	if o.Proxy.IsValid() {
		e.proxies()
	}
	return e.list, e.notes
}

// environment is one run of Environment.
type environment struct {
	list  []string
	o     EnvOptions
	notes []string
}

func (e *environment) note(format string, args ...any) {
	e.notes = append(e.notes, fmt.Sprintf(format, args...))
}

// get returns the value that a process would see: of two entries the last one, as
// os/exec has it.
func (e *environment) get(name string) string {
	for _, entry := range slices.Backward(e.list) {
		if value, ok := strings.CutPrefix(entry, name+"="); ok {
			return value
		}
	}
	return ""
}

func (e *environment) set(name, value string) {
	e.list = slices.DeleteFunc(e.list, func(entry string) bool { return strings.HasPrefix(entry, name+"=") })
	e.list = append(e.list, name+"="+value)
}

// proxies sets what leads to the proxy.
func (e *environment) proxies() {
	address := "http://" + e.o.Proxy.String()
	ours := map[string]bool{}
	for _, scheme := range []string{"http", "https"} {
		ours[scheme] = e.scheme(scheme, address)
	}
	e.set("POSTERN_PROXY", address)
	if !ours["http"] && !ours["https"] {
		return // whose proxy it is says what goes past it
	}
	hosts := e.noProxy()
	e.node()
	e.java(ours, hosts)
}

// scheme leads the calls of one scheme to the proxy, unless somebody else's does.
func (e *environment) scheme(scheme, address string) bool {
	variable := scheme + "_proxy"
	before := e.get("POSTERN_PROXY") // of an agent around this one: the inner one is the app's
	for _, name := range []string{strings.ToUpper(variable), variable, "ALL_PROXY", "all_proxy"} {
		if value := e.get(name); value != "" && value != before {
			e.note("%s is set already, to %s: calls to %s:// go there and not through Postern", name, withoutUser(value), scheme)
			return false
		}
	}
	e.set(strings.ToUpper(variable), address)
	e.set(variable, address)
	return true
}

// withoutUser is the host of a proxy's URL: all else may be secret.
func withoutUser(value string) string {
	if !strings.Contains(value, "://") {
		value = "http://" + value
	}
	if u, err := url.Parse(value); err == nil && u.Host != "" {
		return u.Host
	}
	return "something that is no URL"
}

// pastTheProxy is what never goes through it: this machine, the platform's metadata,
// names that mean something only inside the platform's network.
var pastTheProxy = []string{"localhost", "127.0.0.1", "::1", "169.254.169.254", ".internal"}

// noProxy merges what is there with ours and with the hosts of databases, and returns
// it.
func (e *environment) noProxy() []string {
	var hosts []string
	add := func(list ...string) {
		for _, h := range list {
			if h = strings.TrimSpace(h); h != "" && !slices.Contains(hosts, h) {
				hosts = append(hosts, h)
			}
		}
	}
	add(strings.Split(e.get("NO_PROXY"), ",")...)
	add(strings.Split(e.get("no_proxy"), ",")...)
	if slices.Contains(hosts, "*") {
		e.note("NO_PROXY has *: most clients send all calls past the proxy")
	}
	add(pastTheProxy...)
	add(e.databases()...)
	e.set("NO_PROXY", strings.Join(hosts, ","))
	e.set("no_proxy", strings.Join(hosts, ","))
	return hosts
}

// databases are the hosts of URLs in the environment that are not for HTTP. Their
// drivers know no proxy; a library that does shall not try.
func (e *environment) databases() []string {
	found := map[string]bool{}
	for _, entry := range e.list {
		name, value, _ := strings.Cut(entry, "=")
		if !strings.HasSuffix(name, "_URL") && !strings.HasSuffix(name, "_URI") {
			continue
		}
		u, ok := splitURL(value)
		if !ok || strings.HasPrefix(u.scheme, "http") || u.scheme == "file" || u.scheme == "ws" || u.scheme == "wss" {
			continue
		}
		for _, h := range u.hosts() {
			if isHost(h) {
				found[h] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// isHost reports whether h can stand in a list of hosts.
func isHost(h string) bool {
	if _, err := netip.ParseAddr(h); err == nil {
		return true
	}
	return h != "" && len(h) <= 253 && strings.IndexFunc(h, func(r rune) bool {
		return r != '.' && r != '-' && r != '_' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	}) < 0
}

// java adds to JAVA_TOOL_OPTIONS, which every JVM reads: none reads HTTPS_PROXY.
func (e *environment) java(ours map[string]bool, hosts []string) {
	before := e.get("JAVA_TOOL_OPTIONS")
	there := before + " " + e.get("JDK_JAVA_OPTIONS")
	var options []string
	for _, scheme := range []string{"http", "https"} {
		if !ours[scheme] {
			continue
		}
		if strings.Contains(there, "-D"+scheme+".proxyHost=") {
			e.note("the JVM's options have -D%s.proxyHost already: they are left alone", scheme)
			continue
		}
		options = append(options,
			fmt.Sprintf("-D%s.proxyHost=%s", scheme, e.o.Proxy.Addr()),
			fmt.Sprintf("-D%s.proxyPort=%d", scheme, e.o.Proxy.Port()))
	}
	if len(options) == 0 {
		return
	}
	if !strings.Contains(there, "-Dhttp.nonProxyHosts=") { // it is for both schemes
		options = append(options, "-Dhttp.nonProxyHosts="+javaHosts(hosts))
	}
	e.set("JAVA_TOOL_OPTIONS", strings.TrimSpace(before+" "+strings.Join(options, " ")))
}

// javaHosts writes NO_PROXY as the JVM has it: with bars, and a * where a suffix begins.
func javaHosts(hosts []string) string {
	list := []string{"127.*"}
	for _, h := range hosts {
		switch {
		case strings.HasPrefix(h, "."):
			h = "*" + h
		case strings.Count(h, ":") > 1:
			h = "[" + h + "]"
		case strings.ContainsAny(h, ":/ \"'|"):
			continue // a port or a range, which the JVM does not know
		}
		list = append(list, h)
	}
	return strings.Join(list, "|")
}
