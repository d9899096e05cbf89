package node

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/posternhq/postern/relay/tunnel"
)

// Config is what one relay process is told. The zero value is not usable; see
// the defaults at the fields. It is read once, by cmd/postern-relay.
type Config struct {
	Listen      string // public listener, host:port; default 127.0.0.1:8080
	PublicURL   string // how the outside reaches it; default http://localhost:8080
	AppsDomain  string // apps are at <app>.<domain>; default localhost
	Data        string // folder of the database and the keys; default ./postern-data
	Manifest    string // file, "" for none
	AdminListen string // pprof and health; default 127.0.0.1:9090, "off" for none
	TLS         string // "off" (default) or "cert.pem,key.pem"
	// TrustedProxies are CIDRs or addresses, separated by commas.
	TrustedProxies string

	// Resolver is the DNS server for the apps' calls to the outside, udp://host:port;
	// "" is the system's.
	Resolver string
	// EgressAddresses are the public addresses that these calls leave from, separated by
	// commas: refused as destinations, and published for partners. Default: the public
	// ones of the interfaces. Where addresses are translated those are not to be seen.
	EgressAddresses string

	Heartbeat time.Duration // default protocol.DefaultHeartbeat
	Idle      time.Duration // silence allowed on a request; default 5 min
	Grace     time.Duration // for requests in flight at the end; default 25 s
	Limits    tunnel.Limits
	// MinFree is how many bytes the disk must have left for a webhook to be taken;
	// default 256 MiB, negative: none.
	MinFree int64

	Version string
	Env     func(string) (string, bool) // for the manifest's secrets
	Logger  *slog.Logger                // required
	// Ready, when set, is called with the public listener's address once
	// requests are served.
	Ready func(net.Addr)
}

// settings is a Config that was checked.
type settings struct {
	Config
	public  *url.URL
	trusted []netip.Prefix
	egress  []netip.Addr // EgressAddresses, as they were given
	cert    string
	key     string
}

// check applies the defaults and refuses what cannot work, all faults at once.
func (c Config) check() (*settings, error) {
	c.Listen = cmp.Or(c.Listen, "127.0.0.1:8080")
	c.PublicURL = cmp.Or(c.PublicURL, "http://localhost:8080")
	c.AppsDomain = strings.ToLower(strings.Trim(cmp.Or(c.AppsDomain, "localhost"), "."))
	c.Data = cmp.Or(c.Data, "./postern-data")
	c.AdminListen = cmp.Or(c.AdminListen, "127.0.0.1:9090")
	c.Idle = cmp.Or(c.Idle, 5*time.Minute)
	c.Grace = cmp.Or(c.Grace, 25*time.Second)
	s := &settings{Config: c}
	var faults []error
	var err error
	if s.public, err = publicURL(c.PublicURL); err != nil {
		faults = append(faults, err)
	}
	if s.trusted, err = prefixes(c.TrustedProxies); err != nil {
		faults = append(faults, err)
	}
	if s.cert, s.key, err = tlsFiles(c.TLS); err != nil {
		faults = append(faults, err)
	}
	if s.egress, err = addresses(c.EgressAddresses); err != nil {
		faults = append(faults, err)
	}
	return s, errors.Join(faults...)
}

func addresses(list string) ([]netip.Addr, error) {
	var out []netip.Addr
	for part := range strings.SplitSeq(list, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		addr, err := netip.ParseAddr(part)
		if err != nil || addr.Zone() != "" {
			return nil, fmt.Errorf("egress addresses: %q is not an address", part)
		}
		out = append(out, addr.Unmap())
	}
	return out, nil
}

func publicURL(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("public URL: %w", err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || strings.Trim(u.Path, "/") != "" {
		return nil, fmt.Errorf("public URL %q: expected http:// or https:// and a host, nothing behind it", raw)
	}
	u.Path, u.Host = "", strings.ToLower(u.Host)
	return u, nil
}

func prefixes(list string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for part := range strings.SplitSeq(list, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		p, err := netip.ParsePrefix(part)
		if err != nil {
			addr, addrErr := netip.ParseAddr(part)
			if addrErr != nil {
				return nil, fmt.Errorf("trusted proxies: %q is neither an address nor a CIDR", part)
			}
			p = netip.PrefixFrom(addr, addr.BitLen())
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

func tlsFiles(value string) (cert, key string, err error) {
	switch {
	case value == "" || value == "off":
		return "", "", nil
	case strings.HasPrefix(value, "acme:"):
		return "", "", errors.New("TLS: this version does not fetch certificates by itself; use cert.pem,key.pem or a proxy in front")
	}
	cert, key, ok := strings.Cut(value, ",")
	if !ok || cert == "" || key == "" {
		return "", "", fmt.Errorf("TLS %q: expected off or cert.pem,key.pem", value)
	}
	return cert, key, nil
}
