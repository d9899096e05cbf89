package protocol

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/coder/websocket"
)

// TunnelPath is where the relay accepts agents.
const TunnelPath = "/v1/tunnel"

// DialConfig is what the agent brings to a handshake.
type DialConfig struct {
	Config
	URL   string // the relay, http:// or https://
	Token string // the JWT
	Hello Hello  // Versions and Features are filled in here
	// Env looks up the proxy variables; nil ignores them. See Proxy.
	Env func(string) string
	// TLS is used for https; nil is Go's default.
	TLS *tls.Config
	// DialContext, when set, opens the TCP connection in place of the network
	// and the proxy: for tests, and for networks of one's own.
	DialContext func(ctx context.Context, addr string) (net.Conn, error)
	// DialTimeout bounds connect, proxy and TLS handshake together. Default 15 s.
	DialTimeout time.Duration
}

// Dial connects to the relay, through the proxy that the environment names, and
// runs the handshake. A *HandshakeError is the relay's own refusal.
func Dial(ctx context.Context, cfg DialConfig) (*Session, error) {
	target, err := tunnelURL(cfg.URL)
	if err != nil {
		return nil, err
	}
	d := &dialer{tls: cfg.TLS, timeout: cfg.DialTimeout, open: cfg.DialContext}
	if d.timeout <= 0 {
		d.timeout = 15 * time.Second
	}
	if d.open == nil {
		var via *url.URL
		if cfg.Env != nil {
			if via, err = Proxy(cfg.Env, target); err != nil {
				return nil, err
			}
		}
		d.open = func(ctx context.Context, addr string) (net.Conn, error) { return dialThrough(ctx, via, addr) }
	}
	ctx, cancel := context.WithTimeout(ctx, d.timeout+handshakeTimeout)
	defer cancel()
	ws, err := d.upgrade(ctx, target, cfg.Token)
	if err != nil {
		return nil, err
	}
	s := newSession(newWSConn(ws, d.conn), true, cfg.Config)
	stop := s.limitHandshake(ctx)
	defer stop()
	if err := s.greet(ctx, cfg.Hello); err != nil {
		s.mux.close(err)
		return nil, err
	}
	return s, nil
}

// greet is the agent's half: write Hello, read Welcome or Refuse.
func (s *Session) greet(ctx context.Context, h Hello) error {
	h.Versions, h.Features = []int{Version}, Features()
	if err := h.validate(); err != nil {
		return err
	}
	s.hello = h
	control, err := s.mux.open()
	if err != nil {
		return fmt.Errorf("open the control stream: %w", err)
	}
	control.urgent = true
	s.control = control
	if err := s.send(Control{Type: FrameHello, Hello: &h}); err != nil {
		return err
	}
	body, err := readFrame(pump{s.mux, control}, nil)
	if err != nil {
		return fmt.Errorf("read the relay's welcome: %w", err)
	}
	c, err := DecodeControl(body)
	switch {
	case err != nil:
		return fmt.Errorf("read the relay's welcome: %w", err)
	case c.Type == FrameRefuse:
		return &HandshakeError{Reason: string(c.Code), Message: c.Message, RetryAfter: millis(c.RetryAfterMS, maxGrace)}
	case c.Type != FrameWelcome:
		return Errorf(CodeBadMessage, "the relay answered hello with %q", c.Type)
	case c.Welcome.Version != Version:
		return Errorf(CodeVersion, "the relay chose version %d, this agent offered %d", c.Welcome.Version, Version)
	}
	s.welcome = *c.Welcome
	return nil
}

// tunnelURL is the relay's URL with the tunnel's path.
func tunnelURL(relay string) (*url.URL, error) {
	u, err := url.Parse(relay)
	if err != nil {
		return nil, errors.New("relay URL cannot be read, expected https://host") // err repeats it, with any password in it
	}
	switch u.Scheme {
	case "http", "https":
	case "ws", "wss":
		u.Scheme = "http" + strings.TrimPrefix(u.Scheme, "ws")
	default:
		return nil, fmt.Errorf("relay URL %q: expected https://host", u.Redacted())
	}
	if u.Host == "" {
		return nil, fmt.Errorf("relay URL %q names no host", u.Redacted())
	}
	u = u.JoinPath(TunnelPath)
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	return u, nil
}

// dialer makes the connection for one WebSocket and keeps its framer, which
// the WebSocket library would hide from us.
type dialer struct {
	open    func(ctx context.Context, addr string) (net.Conn, error)
	tls     *tls.Config
	timeout time.Duration
	conn    *framer // set by connect
}

// upgrade runs the HTTP upgrade.
func (d *dialer) upgrade(ctx context.Context, target *url.URL, token string) (*websocket.Conn, error) {
	dialCtx := func(secure bool) func(context.Context, string, string) (net.Conn, error) {
		return func(ctx context.Context, _, addr string) (net.Conn, error) { return d.connect(ctx, addr, secure) }
	}
	transport := &http.Transport{
		DialContext: dialCtx(false), DialTLSContext: dialCtx(true),
		DisableKeepAlives: true, ResponseHeaderTimeout: handshakeTimeout,
		MaxResponseHeaderBytes: 64 << 10,
	}
	ws, resp, err := websocket.Dial(ctx, target.String(), &websocket.DialOptions{
		HTTPClient:   &http.Client{Transport: transport, CheckRedirect: noRedirect},
		HTTPHeader:   http.Header{"Authorization": {"Bearer " + token}},
		Subprotocols: []string{Subprotocol},
	})
	if err == nil && ws.Subprotocol() != Subprotocol {
		ws.CloseNow()
		return nil, fmt.Errorf("%s speaks WebSocket but not %s: is this the relay?", target.Host, Subprotocol)
	}
	if err == nil {
		return ws, nil
	}
	if resp == nil {
		return nil, fmt.Errorf("connect to the relay at %s: %w", target.Host, err)
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return nil, fmt.Errorf("the answer of %s is not our tunnel: %w", target.Host, err)
	}
	body, _ := io.ReadAll(resp.Body) // at most 1 KiB, the library has cut it
	return nil, decodeRefusal(resp.StatusCode, resp.Header.Get("Retry-After"), body)
}

// noRedirect keeps the token from following a redirect to somewhere else.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// connect opens the socket for addr and, when secure, TLS on it. The framer lies
// on top, so that one write is one TLS record.
func (d *dialer) connect(ctx context.Context, addr string, secure bool) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	conn, err := d.open(ctx, addr)
	if err != nil {
		return nil, err
	}
	if secure {
		if conn, err = startTLS(ctx, conn, addr, d.tls); err != nil {
			return nil, err
		}
	}
	d.conn = &framer{Conn: conn, masked: true}
	return d.conn, nil
}

// startTLS offers HTTP/1.1 only: HTTP/2 has no upgrade.
func startTLS(ctx context.Context, conn net.Conn, addr string, base *tls.Config) (net.Conn, error) {
	cfg := base.Clone()
	if cfg == nil {
		cfg = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if cfg.ServerName == "" {
		host, _, err := net.SplitHostPort(addr)
		if err != nil {
			conn.Close()
			return nil, fmt.Errorf("address %q: %w", addr, err)
		}
		cfg.ServerName = host
	}
	cfg.NextProtos = []string{"http/1.1"}
	secured := tls.Client(conn, cfg)
	if err := secured.HandshakeContext(ctx); err != nil {
		conn.Close()
		var unknown *tls.CertificateVerificationError
		if errors.As(err, &unknown) {
			return nil, fmt.Errorf("TLS with %s: %w (is something between here and the relay opening TLS?)", addr, err)
		}
		return nil, fmt.Errorf("TLS with %s: %w", addr, err)
	}
	return secured, nil
}
