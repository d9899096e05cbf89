package node

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/posternhq/postern/relay"
	"github.com/posternhq/postern/relay/admin"
	"github.com/posternhq/postern/relay/auth"
	"github.com/posternhq/postern/relay/egress"
	"github.com/posternhq/postern/relay/inbox"
	"github.com/posternhq/postern/relay/ingress"
	"github.com/posternhq/postern/relay/instances"
	"github.com/posternhq/postern/relay/policies"
	"github.com/posternhq/postern/relay/provider"
	"github.com/posternhq/postern/relay/sqlite"
	"github.com/posternhq/postern/relay/tunnel"
	"github.com/posternhq/postern/relay/wake"
)

// Node is one relay process. Make one with New, then call Run once.
type Node struct {
	cfg    *settings
	health health

	// Built by build, in this order; each knows only the ones before it.
	name        string
	lock        *os.File // held while this process uses the data folder
	store       relay.Store
	revocations *auth.Revocations
	directory   *directory
	watcher     *ManifestWatcher // nil without a manifest
	registry    *tunnel.Registry
	tunnels     *tunnel.Server
	instances   *instances.Tracker
	policies    *policies.Policies
	egress      *egress.Egress
	waker       *wake.Waker
	inbox       *inbox.Inbox
	api         *admin.Server
	public      *http.Server
	admin       *http.Server
}

// New checks cfg. It opens and starts nothing.
func New(cfg Config) (*Node, error) {
	s, err := cfg.check()
	if err != nil {
		return nil, err
	}
	return &Node{cfg: s}, nil
}

// Limits of the public listener.
const (
	headerTimeout = 10 * time.Second
	keepAliveTime = 75 * time.Second // longer than common routers keep theirs
	maxHeader     = 64 << 10
)

// Run serves until ctx ends, then stops in this order:
//
//	not ready → agents told → no new connections, no new tunnels → requests in
//	flight finish → worker stops, leases released → tunnels closed → store closed
//
// all within Config.Grace. It returns nil after an orderly stop.
func (n *Node) Run(ctx context.Context) error {
	if err := n.build(ctx); err != nil {
		n.closeStore()
		return err
	}
	defer n.closeStore()
	public, admin, err := n.listen()
	if err != nil {
		return err
	}
	// The parts outlive ctx: they are stopped one after another.
	parts, stopParts := context.WithCancel(context.WithoutCancel(ctx))
	defer stopParts()
	var running sync.WaitGroup
	failed := make(chan error, 8)
	start := func(what string, run func() error) {
		running.Go(func() {
			if err := run(); err != nil && !errors.Is(err, http.ErrServerClosed) {
				failed <- fmt.Errorf("%s: %w", what, err)
			}
		})
	}
	start("public listener", func() error { return n.servePublic(public) })
	if admin != nil {
		start("admin listener", func() error { return n.admin.Serve(admin) })
	}
	start("inbox", func() error { return n.inbox.Run(parts) })
	reports, stopReports := context.WithCancel(parts)
	defer stopReports()
	running.Go(func() { n.instances.Run(reports) })
	start("policies", func() error { return n.policies.Run(parts) })
	start("egress", func() error { return n.egress.Run(parts) })
	start("revocations", func() error { return n.revocations.Run(parts) })
	running.Go(func() { n.cutRevoked(parts) })
	if n.watcher != nil {
		start("manifest", func() error { return n.watcher.Run(parts) })
	}
	n.health.ready.Store(true)
	n.cfg.Logger.Info("relay ready", "listen", public.Addr().String(), "url", n.cfg.public.String(),
		"apps", "*."+n.cfg.AppsDomain, "node", n.name)
	if n.cfg.Ready != nil {
		n.cfg.Ready(public.Addr())
	}
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	stopReports() // before agents are told to leave: what is lost from now on is lost on our account
	n.stop(stopParts, &running)
	return err
}

// stop is the second half of Run.
func (n *Node) stop(stopParts func(), running *sync.WaitGroup) {
	log := n.cfg.Logger
	log.Info("relay stops", "grace", n.cfg.Grace)
	n.health.ready.Store(false)
	n.waker.Close()
	ctx, cancel := context.WithTimeout(context.Background(), n.cfg.Grace)
	defer cancel()
	told, done := context.WithTimeout(ctx, 2*time.Second)
	n.registry.Drain(told, n.cfg.Grace, reconnectSpread)
	done()
	if err := n.public.Shutdown(ctx); err != nil {
		log.Warn("requests cut off by the end of the grace period", "err", err)
		n.public.Close()
	}
	calls, done := context.WithTimeout(ctx, callsTime)
	if err := n.egress.Drain(calls); err != nil {
		log.Info("calls to the outside cut off by the end", "err", err)
	}
	done()
	stopParts() // the worker finishes its attempts, which needs the tunnels
	n.admin.Close()
	running.Wait()
	n.tunnels.Close()
	log.Info("relay stopped")
}

// callsTime is what the apps' calls to the outside get at the end. Connections to
// databases have no end of their own.
const callsTime = 5 * time.Second

// reconnectSpread is over how long agents are asked to come back.
const reconnectSpread = 500 * time.Millisecond

func (n *Node) closeStore() {
	if n.store != nil {
		if err := n.store.Close(); err != nil {
			n.cfg.Logger.Error("store not closed", "err", err)
		}
	}
	if n.lock != nil {
		n.lock.Close()
	}
}

// build makes the parts.
func (n *Node) build(ctx context.Context) error {
	log := n.cfg.Logger
	var err error
	if err := makeFolder(n.cfg.Data); err != nil {
		return err
	}
	if n.lock, err = lockData(ctx, n.cfg.Data, log); err != nil {
		return err
	}
	if n.store, err = OpenStore(ctx, n.cfg.Data, n.cfg.MinFree, log); err != nil {
		return err
	}
	if n.name, err = nodeName(n.cfg.Data); err != nil {
		return err
	}
	keys, err := OpenKeys(n.cfg.Data)
	if err != nil {
		return err
	}
	n.revocations = auth.NewRevocations(auth.RevocationsConfig{Tokens: n.store, Logger: log})
	if err := n.revocations.Load(ctx); err != nil {
		return fmt.Errorf("read revoked tokens: %w", err)
	}
	n.directory = newDirectory(n.store, log)
	if err := n.directory.load(ctx); err != nil {
		return fmt.Errorf("read apps: %w", err)
	}
	verifier := auth.NewVerifier(auth.VerifierConfig{Keys: keys, Revocations: n.revocations})
	n.buildTunnels(verifier)
	if err := n.buildEgress(keys); err != nil {
		return err
	}
	if err := n.loadManifest(ctx); err != nil {
		return err
	}
	n.buildInbox(verifier, keys)
	n.buildServers()
	return nil
}

// loadManifest puts the manifest in force that was applied last, or the file's when
// that has changed since.
func (n *Node) loadManifest(ctx context.Context) error {
	if n.cfg.Manifest == "" {
		return n.policies.Load(ctx)
	}
	n.watcher = NewManifestWatcher(WatchConfig{
		Path: n.cfg.Manifest, Options: n.manifestOptions(), Logger: n.cfg.Logger,
		Apply: func(source []byte, m *relay.Manifest) error {
			ctx, cancel := context.WithTimeout(context.Background(), storeTime)
			defer cancel()
			return n.policies.SetFile(ctx, source, m)
		},
	})
	source, m, err := n.watcher.Load()
	if err != nil {
		return err
	}
	var outdated relay.ManifestErrors
	if err := n.policies.Load(ctx); errors.As(err, &outdated) {
		// Written for another version of this program, or with a secret that is gone:
		// the file takes over.
		n.cfg.Logger.Warn("the manifest that ran last cannot be read any more", "err", err)
	} else if err != nil {
		return err
	}
	return n.policies.SetFile(ctx, source, m)
}

// storeTime is how long the store may take for what nobody waits for.
const storeTime = 10 * time.Second

// applyManifest puts m in force.
func (n *Node) applyManifest(m *relay.Manifest) {
	for _, app := range m.Apps {
		if app.Ingress.Protocol == "h2c" {
			n.cfg.Logger.Warn("protocol h2c is served as http1 by this version", "app", app.ID)
		}
	}
	n.directory.manifest.Store(m)
	n.cfg.Logger.Info("manifest applied", "apps", len(m.Apps))
}

func (n *Node) buildTunnels(verifier *auth.Verifier) {
	n.registry = tunnel.NewRegistry(n.cfg.Limits, func(id relay.AppID) {
		n.waker.Arrived(id)
		n.inbox.AgentConnected(id)
	})
	n.waker = wake.New(wake.Config{
		URL:       func(app relay.AppID) string { a, _ := n.directory.manifest.Load().App(app); return a.PublicURL },
		Visit:     newVisitor().visit,
		Connected: n.registry.Connected,
		Logger:    n.cfg.Logger,
	})
	n.registry.Absent = n.waker.Wake
	n.instances = instances.New(instances.Config{
		Save: n.store.SaveLastWords, Instances: n.registry.Instances, Logger: n.cfg.Logger,
	})
	n.tunnels = tunnel.NewServer(tunnel.ServerConfig{
		Stream:   n.serveStream,
		Opened:   n.tellPolicy,
		Registry: n.registry,
		Authorize: func(r *http.Request) (relay.Principal, error) {
			p, err := verifier.Authorize(r.Context(), r, relay.ScopeAgent, relay.ScopeDeveloper)
			return p, withReason(err)
		},
		Revoked:   n.revocations.Revoked,
		Known:     n.directory.ensure,
		AppURL:    n.appURL,
		Node:      n.name,
		Heartbeat: n.cfg.Heartbeat,
		Logger:    n.cfg.Logger,
	})
}

// agents are the connected instances together with what they report.
type agents struct {
	*tunnel.Registry
	reports *instances.Tracker
}

// Instances implements admin.Agents.
func (a agents) Instances(app relay.AppID) []relay.Instance {
	list := a.Registry.Instances(app)
	a.reports.Fill(list)
	return list
}

// buildInbox makes what takes, keeps, delivers and shows webhooks.
func (n *Node) buildInbox(verifier *auth.Verifier, keys *auth.Keyring) {
	apps := &tunnel.Transport{Registry: n.registry, Idle: n.cfg.Idle}
	rules := provider.New(provider.Config{Fetch: newFetcher().fetch})
	n.inbox = inbox.New(inbox.Config{
		Store: n.store, Node: n.name, Endpoint: n.directory.Endpoint,
		Verify: rules.Verify, Explain: n.explain(rules), Resign: rules.Resign, Facts: provider.Facts,
		App: apps, Connected: n.registry.Connected, Absent: func(app relay.AppID) { n.waker.Wake(app) }, URLs: newOutward(), Quota: n.directory.quota,
		DrainTimeout: n.cfg.Grace / 2, Logger: n.cfg.Logger,
	})
	n.api = admin.New(admin.Config{
		Store: n.store, Inbox: n.inbox, Endpoint: n.directory.Endpoint, Resign: rules.Resign,
		Agents: agents{n.registry, n.instances}, Policies: n.policies, Calls: n.egress,
		Known: func(_ context.Context, app relay.AppID) (bool, error) {
			_, known := n.directory.App(app)
			return known, nil
		},
		Authorize: func(r *http.Request) (relay.Principal, error) {
			p, err := verifier.Authorize(r.Context(), r, relay.ScopeDeveloper, relay.ScopeAdmin)
			return p, withReason(err)
		},
		RequestID: ingress.RequestID, Logger: n.cfg.Logger,
	})
	n.public = &http.Server{Handler: ingress.New(ingress.Config{
		Directory: n.directory, Inbox: n.inbox, Apps: apps, Own: ownRoutes(&n.health, n.tunnels, n.api, n.serveFeed(keys)), Facts: provider.Facts,
		Operator: operatorOf(verifier), Findings: n.instances.Findings,
		PublicURL: n.cfg.public, AppsDomain: n.cfg.AppsDomain, TrustedProxies: n.cfg.trusted,
		Idle: n.cfg.Idle, Logger: n.cfg.Logger,
	})}
}

// operatorOf tells whose tokens may see the inside of an app.
func operatorOf(verifier *auth.Verifier) func(context.Context, string, relay.AppID) bool {
	return func(ctx context.Context, token string, app relay.AppID) bool {
		p, err := verifier.Verify(ctx, token)
		return err == nil && (p.Scope == relay.ScopeDeveloper || p.Scope == relay.ScopeAdmin) &&
			auth.AuthorizeApp(p, app) == nil
	}
}

// withReason lets the token's reason stand in the answer.
func withReason(err error) error {
	var e *relay.Error
	if errors.As(err, &e) && e.Reason == "" {
		e.Reason = string(auth.ReasonOf(err))
	}
	return err
}

// appURL is where the outside reaches an app.
func (n *Node) appURL(id relay.AppID) string {
	u := *n.cfg.public
	u.Host = string(id) + "." + n.cfg.AppsDomain
	if port := n.cfg.public.Port(); port != "" {
		u.Host = net.JoinHostPort(u.Host, port)
	}
	return u.String()
}

func (n *Node) buildServers() {
	n.public.ReadHeaderTimeout = headerTimeout
	n.public.IdleTimeout = keepAliveTime
	n.public.MaxHeaderBytes = maxHeader
	n.public.ConnContext = ingress.ConnContext
	n.public.RegisterOnShutdown(n.api.Close)     // live streams have no end of their own
	n.public.DisableGeneralOptionsHandler = true // "OPTIONS *" is the app's to answer
	n.public.ErrorLog = debugLog(n.cfg.Logger)
	n.admin = &http.Server{Handler: adminRoutes(&n.health, n.metrics), ReadHeaderTimeout: headerTimeout, ErrorLog: debugLog(n.cfg.Logger)}
}

func (n *Node) listen() (public, admin net.Listener, err error) {
	if public, err = net.Listen("tcp", n.cfg.Listen); err != nil {
		return nil, nil, fmt.Errorf("public listener: %w", err)
	}
	if n.cfg.AdminListen == "off" {
		return public, nil, nil
	}
	if admin, err = net.Listen("tcp", n.cfg.AdminListen); err != nil {
		public.Close()
		return nil, nil, fmt.Errorf("admin listener: %w (set POSTERN_ADMIN_LISTEN, or off)", err)
	}
	return public, admin, nil
}

func (n *Node) servePublic(l net.Listener) error {
	if n.cfg.cert != "" {
		return n.public.ServeTLS(l, n.cfg.cert, n.cfg.key)
	}
	return n.public.Serve(l)
}

// cutRevoked ends the tunnels of tokens that were revoked while they were open.
func (n *Node) cutRevoked(ctx context.Context) {
	for {
		changed := n.revocations.Changed()
		n.registry.CloseTokens(n.revocations.Revoked)
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// OpenStore opens the database in the data folder, which it makes when there is
// none. The offline verbs use it beside a running relay. minFree is as in Config.
func OpenStore(ctx context.Context, data string, minFree int64, log *slog.Logger) (relay.Store, error) {
	if err := makeFolder(data); err != nil {
		return nil, err
	}
	store, err := sqlite.Open(ctx, sqlite.Config{Path: filepath.Join(data, "postern.db"), MinFree: minFree, Logger: log})
	if err != nil {
		return nil, fmt.Errorf("open the store: %w", err)
	}
	return store, nil
}

func makeFolder(data string) error {
	if err := os.MkdirAll(data, 0o700); err != nil {
		return fmt.Errorf("make the data folder: %w", err)
	}
	return nil
}

// OpenKeys opens the keys in the data folder, making the first one.
func OpenKeys(data string) (*auth.Keyring, error) {
	keys, err := auth.OpenKeyring(filepath.Join(data, "keys"))
	if err != nil {
		return nil, fmt.Errorf("open the keys: %w", err)
	}
	return keys, nil
}

// debugLog is for what net/http says about misbehaving clients.
func debugLog(to *slog.Logger) *log.Logger {
	return slog.NewLogLogger(to.Handler(), slog.LevelDebug)
}

// nodeName is this process's name in leases and logs: made once per data folder,
// so that a restarted relay recognises what it held.
func nodeName(data string) (string, error) {
	path := filepath.Join(data, "node")
	if name, err := os.ReadFile(path); err == nil {
		if s := strings.TrimSpace(string(name)); s != "" {
			return s, nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read the node's name: %w", err)
	}
	var raw [6]byte
	rand.Read(raw[:])
	name := "node-" + hex.EncodeToString(raw[:])
	if err := os.WriteFile(path, []byte(name+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("write the node's name: %w", err)
	}
	return name, nil
}
