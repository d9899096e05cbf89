package protocol

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"golang.org/x/net/http/httpproxy"
	"golang.org/x/net/proxy"
)

// Proxy is the proxy through which target is reached: HTTPS_PROXY or HTTP_PROXY
// by target's scheme, else ALL_PROXY, each in either case, all subject to
// NO_PROXY; nil means direct. Known schemes are http, https, socks5 and socks5h.
func Proxy(env func(string) string, target *url.URL) (*url.URL, error) {
	get := func(upper, lower string) string {
		if v := env(lower); v != "" {
			return v
		}
		return env(upper)
	}
	all := get("ALL_PROXY", "all_proxy")
	cfg := httpproxy.Config{
		HTTPProxy: get("HTTP_PROXY", "http_proxy"), HTTPSProxy: get("HTTPS_PROXY", "https_proxy"),
		NoProxy: get("NO_PROXY", "no_proxy"),
	}
	if cfg.HTTPProxy == "" {
		cfg.HTTPProxy = all
	}
	if cfg.HTTPSProxy == "" {
		cfg.HTTPSProxy = all
	}
	flagUnreadable(&cfg.HTTPProxy)
	flagUnreadable(&cfg.HTTPSProxy)
	u, err := cfg.ProxyFunc()(target)
	if err != nil {
		return nil, fmt.Errorf("proxy from the environment: %w", err)
	}
	if u == nil {
		return nil, nil
	}
	switch u.Scheme {
	case "http", "https", "socks5", "socks5h":
		return u, nil
	case unreadable:
		return nil, errors.New("proxy from the environment: not a URL; does its password need percent-encoding?")
	}
	return nil, fmt.Errorf("proxy from the environment: scheme %q is not known, use http, https or socks5", u.Scheme)
}

// unreadable is the scheme of a stand-in for a proxy that is no URL.
const unreadable = "unreadable"

// flagUnreadable keeps the library from taking a proxy that it cannot parse for
// none, and us from repeating it, and its password, in an error.
func flagUnreadable(value *string) {
	if _, err := url.Parse(*value); err == nil {
		return
	}
	if _, err := url.Parse("http://" + *value); err != nil {
		*value = unreadable + "://proxy"
	}
}

// dialThrough opens a TCP connection to addr by way of via, nil for directly.
// HTTP proxies are asked to CONNECT even for plain http targets: many pass an
// upgrade on only inside a tunnel.
func dialThrough(ctx context.Context, via *url.URL, addr string) (net.Conn, error) {
	direct := &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 15 * time.Second, Count: 4}}
	if via == nil {
		return direct.DialContext(ctx, "tcp", addr)
	}
	conn, err := dialProxy(ctx, direct, via, addr)
	if err != nil {
		return nil, fmt.Errorf("through proxy %s: %w", via.Redacted(), err)
	}
	return conn, nil
}

func dialProxy(ctx context.Context, direct *net.Dialer, via *url.URL, addr string) (net.Conn, error) {
	if via.Scheme == "socks5" || via.Scheme == "socks5h" {
		p, err := proxy.FromURL(via, direct)
		if err != nil {
			return nil, err
		}
		// The library's SOCKS dialer always has DialContext.
		return p.(proxy.ContextDialer).DialContext(ctx, "tcp", addr)
	}
	conn, err := direct.DialContext(ctx, "tcp", proxyAddr(via))
	if err != nil {
		return nil, err
	}
	if via.Scheme == "https" {
		if conn, err = startTLS(ctx, conn, proxyAddr(via), nil); err != nil {
			return nil, err
		}
	}
	if err := connectThrough(ctx, conn, via, addr); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func proxyAddr(via *url.URL) string {
	if via.Port() != "" {
		return via.Host
	}
	if via.Scheme == "https" {
		return net.JoinHostPort(via.Hostname(), "443")
	}
	return net.JoinHostPort(via.Hostname(), "80")
}

// connectThrough runs CONNECT (RFC 9110, section 9.3.6) on conn.
func connectThrough(ctx context.Context, conn net.Conn, via *url.URL, addr string) error {
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: addr}, Host: addr, Header: http.Header{}}
	if u := via.User; u != nil {
		password, _ := u.Password()
		req.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(u.Username()+":"+password)))
	}
	if err := req.Write(conn); err != nil {
		return fmt.Errorf("ask for CONNECT: %w", err)
	}
	// The proxy sends nothing of the tunnel before we do, so that nothing is
	// lost in this reader; the limit keeps a broken proxy from filling memory.
	br := bufio.NewReader(io.LimitReader(conn, 64<<10))
	resp, err := http.ReadResponse(br, req)
	if err != nil {
		return fmt.Errorf("read the answer to CONNECT: %w", err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("CONNECT %s was answered %s", addr, resp.Status)
	}
	if br.Buffered() > 0 {
		return fmt.Errorf("the proxy sent %d bytes before the tunnel began", br.Buffered())
	}
	return nil
}
