package main

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/posternhq/postern/relay/node"
	"github.com/posternhq/postern/relay/tunnel"
)

// serve runs the relay until a signal.
func serve(ctx context.Context, args []string) error {
	f := newFlags("serve", "run the relay until SIGTERM or SIGINT")
	var (
		listen   = f.text("listen", "POSTERN_LISTEN", "", "public listener, host:port; PORT alone means 0.0.0.0:$PORT; else 127.0.0.1:8080")
		public   = f.text("public-url", "POSTERN_PUBLIC_URL", "http://localhost:8080", "how the outside reaches the relay")
		domain   = f.text("apps-domain", "POSTERN_APPS_DOMAIN", "localhost", "apps are at <app>.<domain>")
		data     = f.text("data", "POSTERN_DATA", "./postern-data", "folder of the database and the keys")
		manifest = f.text("manifest", "POSTERN_MANIFEST", "", "manifest applied at start and watched")
		admin    = f.text("admin-listen", "POSTERN_ADMIN_LISTEN", "127.0.0.1:9090", "pprof and health, off for none")
		tls      = f.text("tls", "POSTERN_TLS", "off", "off, or cert.pem,key.pem")
		resolver = f.text("resolver", "POSTERN_RESOLVER", "", "DNS server for the apps' calls to the outside, udp://host:port; default: the system's")
		leaves   = f.text("egress-addresses", "POSTERN_EGRESS_ADDRESSES", "", "the public addresses that the apps' calls leave from, by commas; default: those of this machine's interfaces")
		proxies  = f.text("trusted-proxies", "POSTERN_TRUSTED_PROXIES", "", "CIDRs whose X-Forwarded-* is believed, by commas")
	)
	duration := func(name, env string, def time.Duration, about string) *time.Duration {
		f.env[name] = env
		return f.Duration(name, def, about)
	}
	beat := duration("heartbeat", "POSTERN_HEARTBEAT", 20*time.Second, "how often agents are asked whether they live")
	idle := duration("idle-timeout", "POSTERN_IDLE_TIMEOUT", 5*time.Minute, "how long a request may be silent in both directions")
	grace := duration("grace", "POSTERN_GRACE", 25*time.Second, "time for requests in flight when the relay stops")
	park := duration("park", "POSTERN_PARK", 8*time.Second, "how long a request waits for an agent to come back")
	f.env["app-memory"] = "POSTERN_APP_MEMORY"
	memory := f.Int64("app-memory", 512<<20, "bytes that one app's streams may make the relay buffer; each stream counts 262144")
	f.env["min-free"] = "POSTERN_MIN_FREE"
	free := f.Int64("min-free", 256<<20, "bytes that the disk must have left for a webhook to be taken; negative: none")
	if err := f.parse(args, 0); err != nil {
		return ignoreHelp(err)
	}
	if *listen == "" && os.Getenv("PORT") != "" {
		*listen = "0.0.0.0:" + os.Getenv("PORT")
	}
	log, err := f.logger()
	if err != nil {
		return err
	}
	for _, name := range []string{"DATABASE_URL", "POSTERN_MASTER_KEY"} {
		if os.Getenv(name) != "" {
			log.Warn("this version does not act on a variable that is set", "variable", name)
		}
	}
	if os.Getenv("DATABASE_URL") != "" {
		log.Warn("all state is kept in SQLite in the data folder; on a disk that is not kept, events and keys are lost at a restart", "data", *data)
	}
	n, err := node.New(node.Config{
		Listen: *listen, PublicURL: *public, AppsDomain: *domain, Data: *data, Manifest: *manifest,
		AdminListen: *admin, TLS: *tls, TrustedProxies: *proxies,
		Resolver: *resolver, EgressAddresses: *leaves,
		Heartbeat: *beat, Idle: *idle, Grace: *grace, MinFree: *free,
		Limits:  tunnel.Limits{Memory: *memory, Park: *park},
		Version: version, Env: os.LookupEnv, Logger: log,
	})
	if err != nil {
		return usageError{err}
	}
	return n.Run(ctx)
}

// ignoreHelp makes a printed help a success.
func ignoreHelp(err error) error {
	if errors.Is(err, errHelp) {
		return nil
	}
	return err
}
