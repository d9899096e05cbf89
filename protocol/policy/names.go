package policy

import "strings"

// loopbackNames are this machine, whatever a resolver says of them: localhost and all
// below it (RFC 6761, section 6.3), and what hosts files have besides. No line of a
// manifest lets them through.
var loopbackNames = map[string]bool{
	"localhost.localdomain":   true,
	"localhost4":              true,
	"localhost4.localdomain4": true,
	"localhost6":              true,
	"localhost6.localdomain6": true,
	"loopback":                true,
	"broadcasthost":           true,
	"ip6-localhost":           true,
	"ip6-loopback":            true,
	"ip6-localnet":            true,
	"ip6-mcastprefix":         true,
	"ip6-allnodes":            true,
	"ip6-allrouters":          true,
	"ip6-allhosts":            true,
}

// innerLabels are last labels of names that are only known inside some network. Asking
// for them tells strangers about it at best, and finds a host inside at worst.
var innerLabels = map[string]bool{
	"internal":     true, // reserved by ICANN in 2024; metadata.google.internal, host.docker.internal
	"local":        true, // RFC 6762
	"localdomain":  true, // hosts files
	"localdomain4": true,
	"localdomain6": true,
	"lan":          true, // RFC 6762, appendix G, with intranet, private, corp and home
	"intranet":     true,
	"private":      true,
	"corp":         true,
	"home":         true,
	"mail":         true, // never to be delegated, like corp and home: ICANN, 2018
	"workgroup":    true,
	"svc":          true, // Kubernetes, with its search domain
	"consul":       true, // Consul
	"localspace":   true, // Heroku's private spaces
	"flycast":      true, // Fly
	"onion":        true, // RFC 7686: never looked up
	"alt":          true, // RFC 9476: not DNS
}

// isLoopbackName reports whether a name is this machine.
func isLoopbackName(host string) bool {
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || loopbackNames[host]
}

// isInnerName reports whether a name is only known inside some network.
func isInnerName(host string) bool {
	i := strings.LastIndexByte(host, '.')
	if i < 0 {
		return true // a search domain would make something of it
	}
	return innerLabels[host[i+1:]] || host == "home.arpa" || strings.HasSuffix(host, ".home.arpa") // RFC 8375
}
