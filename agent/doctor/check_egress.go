package doctor

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/posternhq/postern/agent/proc"
	"github.com/posternhq/postern/protocol"
)

// egress is what was seen of the app's calls to the outside. Empty where no proxy
// of ours is in force.
type egress struct {
	node    proc.Process // a Node process; PID 0: none
	version string       // its version, "" when it cannot be told
	java    proc.Process
	direct  []proc.Socket // connections past the proxy
}

// checkEgress is about the way out: EGR01 to EGR04.
func checkEgress(s *sight) []protocol.Finding {
	list := foreignProxy(s)
	if !s.place.Proxy.IsValid() || s.exit != nil {
		return list
	}
	if p := s.egress.node; p.PID != 0 {
		list = append(list, nodeProxy(s, p)...)
	}
	if p := s.egress.java; p.PID != 0 {
		list = append(list, s.finding("EGR02", protocol.SeverityWarning,
			"the JVM does not read HTTPS_PROXY, so its calls go past the proxy",
			fmt.Sprintf("%s has no -Dhttps.proxyHost in its arguments, JAVA_TOOL_OPTIONS or JDK_JAVA_OPTIONS", named(p.Name, p.PID)),
			fmt.Sprintf("append to JAVA_TOOL_OPTIONS: -Dhttp.proxyHost=%[1]v -Dhttp.proxyPort=%[2]d -Dhttps.proxyHost=%[1]v -Dhttps.proxyPort=%[2]d -Dhttp.nonProxyHosts=localhost|127.*",
				s.place.Proxy.Addr(), s.place.Proxy.Port())))
	}
	if len(s.egress.direct) > 0 {
		l := s.egress.direct[0]
		list = append(list, s.finding("EGR04", protocol.SeverityWarning,
			"the app connects to the outside past the proxy",
			fmt.Sprintf("%s has a connection to %v of its own, which is neither the proxy, %v, nor excepted by NO_PROXY; %d in all",
				named(l.Process, l.PID), l.Remote, s.place.Proxy, len(s.egress.direct)),
			"find the client library that ignores HTTPS_PROXY and give it the proxy; or except the host with NO_PROXY"))
	}
	return list
}

var proxyVariables = []string{"HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"}

// foreignProxy is about a proxy that somebody else set. Its address may have a
// password in it.
func foreignProxy(s *sight) []protocol.Finding {
	for _, name := range proxyVariables {
		value := s.place.env(name)
		if value == "" {
			continue
		}
		raw := value
		if !strings.Contains(raw, "://") {
			raw = "http://" + raw
		}
		u, err := url.Parse(raw)
		if err != nil || u.Host == "" || u.Host == s.place.Proxy.String() {
			continue
		}
		return []protocol.Finding{s.finding("EGR03", protocol.SeverityNote,
			"the app's calls already go through another proxy", fmt.Sprintf("%s is set and names %.100s", name, u.Host),
			fmt.Sprintf("unset %s to let calls go through the relay; it is respected as long as it is set", name))}
	}
	return nil
}

// nodeProxy is about Node, which reads HTTPS_PROXY from 22.21 and 24 on, and only
// when told to.
func nodeProxy(s *sight, p proc.Process) []protocol.Finding {
	const cause = "Node does not use HTTPS_PROXY, so its calls go past the proxy"
	who := named(p.Name, p.PID)
	options := s.place.env("NODE_OPTIONS")
	if strings.Contains(options, "--require") || strings.Contains(options, "-r ") {
		return nil // a shim may be at work, and calls past the proxy show as EGR04
	}
	told := s.place.env("NODE_USE_ENV_PROXY") == "1" || strings.Contains(options, "--use-env-proxy") || slices.Contains(p.Args, "--use-env-proxy")
	version := s.egress.version
	if !told {
		return []protocol.Finding{s.finding("EGR01", protocol.SeverityWarning, cause,
			who+" has neither NODE_USE_ENV_PROXY=1 nor --use-env-proxy", "set NODE_USE_ENV_PROXY=1, with Node 22.21, 24 or later")}
	}
	if version == "" {
		return []protocol.Finding{s.finding("EGR01", protocol.SeverityNote, "Node's version cannot be told from outside: before 22.21 it does not use HTTPS_PROXY",
			who+" does not show its version by its path, nor by NODE_VERSION", "run Node 22.21, 24 or later")}
	}
	if !tooOld(version) {
		return nil
	}
	return []protocol.Finding{s.finding("EGR01", protocol.SeverityWarning, cause,
		fmt.Sprintf("%s is version %s; NODE_USE_ENV_PROXY works from 22.21 and 24 on", who, version), "run Node 22.21, 24 or later")}
}

func tooOld(version string) bool {
	major, rest, _ := strings.Cut(version, ".")
	minor, _, _ := strings.Cut(rest, ".")
	a, _ := strconv.Atoi(major)
	b, _ := strconv.Atoi(minor)
	return a < 22 || a == 22 && b < 21 || a == 23
}

// calls looks at the app's runtimes and outgoing connections.
func (s *sight) calls(ctx context.Context) egress {
	var e egress
	if !s.place.Proxy.IsValid() || s.blind {
		return e
	}
	for _, p := range s.tree {
		switch program(p) {
		case "node", "nodejs":
			if e.node.PID == 0 {
				e.node, e.version = p, s.nodeVersion(p)
			}
		case "java":
			if e.java.PID == 0 && !s.javaProxied(p) {
				e.java = p
			}
		}
	}
	e.direct = s.outside(ctx)
	return e
}

func (s *sight) javaProxied(p proc.Process) bool {
	texts := append(slices.Clone(p.Args), s.place.env("JAVA_TOOL_OPTIONS"), s.place.env("JDK_JAVA_OPTIONS"), s.place.env("_JAVA_OPTIONS"))
	return slices.ContainsFunc(texts, func(text string) bool {
		return strings.Contains(text, "-Dhttps.proxyHost") || strings.Contains(text, "-Dhttp.proxyHost") || strings.Contains(text, "-Djava.net.useSystemProxies=true")
	})
}

// nodeVersion tells a Node's version without running it: by the header file beside
// it, by its path (…/versions/node/v20.11.0/bin/node), by what npm or the image say
// in its environment. "" when none of them does.
func (s *sight) nodeVersion(p proc.Process) string {
	exe := s.world.executable(p.PID)
	if exe != "" {
		header := s.world.file(filepath.Join(filepath.Dir(filepath.Dir(exe)), "include", "node", "node_version.h"))
		if v := headerVersion(header); v != "" {
			return v
		}
		for part := range strings.SplitSeq(exe, "/") {
			part = strings.TrimPrefix(strings.TrimPrefix(part, "node-"), "v")
			if v := dotted(part); v != "" {
				return v
			}
		}
	}
	for _, pair := range s.world.environ(p.PID) {
		name, value, _ := strings.Cut(pair, "=")
		switch name {
		case "npm_config_user_agent": // npm/10.8.2 node/v20.11.0 linux x64
			if _, rest, ok := strings.Cut(value, "node/v"); ok {
				if v := dotted(rest); v != "" {
					return v
				}
			}
		case "NODE_VERSION":
			if v := dotted(strings.TrimPrefix(value, "v")); v != "" {
				return v
			}
		}
	}
	return ""
}

// dotted returns the digits and dots that text begins with, if they are a version.
func dotted(text string) string {
	end := strings.IndexFunc(text, func(r rune) bool { return r != '.' && (r < '0' || r > '9') })
	if end >= 0 {
		text = text[:end]
	}
	if len(text) > 16 || strings.Count(text, ".") != 2 || strings.HasPrefix(text, ".") || strings.HasSuffix(text, ".") {
		return ""
	}
	return text
}

func headerVersion(header []byte) string {
	var parts [3]string
	for line := range bytes.Lines(header) {
		fields := bytes.Fields(line)
		if len(fields) != 3 || string(fields[0]) != "#define" {
			continue
		}
		for i, name := range []string{"NODE_MAJOR_VERSION", "NODE_MINOR_VERSION", "NODE_PATCH_VERSION"} {
			if string(fields[1]) == name {
				parts[i] = string(fields[2])
			}
		}
	}
	return dotted(strings.Join(parts[:], "."))
}

// outside lists the app's own connections to public addresses on the ports of HTTP,
// which are the ones a proxy is for. What came in, through a port the app listens on,
// is none of them.
func (s *sight) outside(ctx context.Context) []proc.Socket {
	sockets, err := s.world.sockets(s.tree)
	if err != nil {
		return nil
	}
	served := map[uint16]bool{}
	for _, l := range sockets {
		if l.Listens() {
			served[l.Local.Port()] = true
		}
	}
	var list []proc.Socket
	for _, l := range sockets {
		ip := l.Remote.Addr()
		if l.State != "ESTABLISHED" && l.State != "SYN_SENT" || served[l.Local.Port()] || l.Remote == s.place.Proxy ||
			l.Remote.Port() != 80 && l.Remote.Port() != 443 || !ip.IsGlobalUnicast() || ip.IsPrivate() {
			continue
		}
		list = append(list, l)
	}
	if len(list) == 0 {
		return nil
	}
	noProxy := s.place.env("NO_PROXY") + "," + s.place.env("no_proxy")
	except, certain := exceptions(ctx, s.world, noProxy)
	if !certain {
		return nil // a pattern of names cannot be turned into addresses
	}
	return slices.DeleteFunc(list, func(l proc.Socket) bool {
		return slices.ContainsFunc(except, func(p netip.Prefix) bool { return p.Contains(l.Remote.Addr()) })
	})
}

// maxNames bounds how many names of NO_PROXY are resolved.
const maxNames = 16

// exceptions turns NO_PROXY into addresses. certain is false when it cannot: "*", or
// names that stand for others ("*.example.com", ".example.com", and, by the rules of
// many clients, every plain name), unless those cannot be public ones.
func exceptions(ctx context.Context, w *world, noProxy string) (list []netip.Prefix, certain bool) {
	names := 0
	for entry := range strings.SplitSeq(noProxy, ",") {
		entry = strings.ToLower(strings.TrimSpace(entry))
		if prefix, err := netip.ParsePrefix(entry); err == nil {
			list = append(list, prefix)
			continue
		}
		if addr, err := netip.ParseAddrPort(entry); err == nil {
			list = append(list, netip.PrefixFrom(addr.Addr(), addr.Addr().BitLen()))
			continue
		}
		if addr, err := netip.ParseAddr(strings.Trim(entry, "[]")); err == nil {
			list = append(list, netip.PrefixFrom(addr, addr.BitLen()))
			continue
		}
		host, _, _ := strings.Cut(entry, ":")
		switch {
		case host == "", host == "localhost", strings.HasSuffix(host, ".internal"), strings.HasSuffix(host, ".local"):
			continue
		case strings.ContainsAny(host, "*") || strings.HasPrefix(host, "."):
			return nil, false
		}
		if names++; names > maxNames {
			return nil, false
		}
		addrs, err := w.lookup(ctx, host)
		if err != nil {
			return nil, false
		}
		for _, ip := range addrs {
			ip = ip.Unmap()
			list = append(list, netip.PrefixFrom(ip, ip.BitLen()))
		}
	}
	return list, true
}
