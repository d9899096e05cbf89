package main

import (
	"log/slog"
	"os"

	"github.com/posternhq/postern/agent"
	"github.com/posternhq/postern/agent/egress"
	"github.com/posternhq/postern/agent/platform"
)

// outletFlags are those of a verb beside which the app's calls go out.
func (f *flags) outletFlags(listen string) {
	f.egressListen = f.text("egress-listen", "POSTERN_EGRESS_LISTEN", listen, "where the proxy for the app's calls to the outside listens, on a loopback address")
	f.forward = f.listed("forward", "POSTERN_FORWARD", "a local port that leads to a database outside, 15432=db.partner:5432; may be given again")
}

// namedForwards are what --forward says.
func (f *flags) namedForwards() ([]egress.Forward, error) {
	var all []egress.Forward
	for _, s := range *f.forward {
		forward, err := egress.ParseForward(s)
		if err != nil {
			return nil, err
		}
		all = append(all, forward)
	}
	return all, nil
}

// outlet opens the app's way out.
func (f *flags) outlet(p platform.Platform, log *slog.Logger) (*agent.Outlet, error) {
	forwards, err := f.namedForwards()
	if err != nil {
		return nil, err
	}
	return agent.NewOutlet(agent.OutletConfig{
		Listen: *f.egressListen, Forwards: forwards, Instance: clean(p.Instance), Version: version, Logger: log,
	})
}

// wayOut opens the app's way out and tells the app of it, through its environment.
// The second result takes away what was made for it.
func (f *runFlags) wayOut(p platform.Platform, where *ports, log *slog.Logger) (*agent.Outlet, func()) {
	nothing := func() {}
	if *f.noEgress && len(*f.forward) == 0 {
		return nil, nothing
	}
	outlet, err := f.outlet(p, log)
	if err != nil {
		log.Error("the app's calls do not go through the relay", "err", err)
		return nil, nothing
	}
	o := egress.EnvOptions{Rewrite: *f.rewrite, Forwards: outlet.Forwards()}
	cleanUp := nothing
	if !*f.noEgress {
		o.Proxy = outlet.Addr()
		if o.ShimDir, err = os.MkdirTemp("", "postern-"); err != nil {
			log.Warn("old versions of Node will not use the proxy", "err", err)
		}
		cleanUp = func() { os.RemoveAll(o.ShimDir) }
	}
	env, notes := egress.Environment(where.env, o)
	where.env = env
	for _, note := range notes {
		log.Info(note)
	}
	for _, forward := range outlet.Forwards() {
		log.Info("forward", "from", forward.Local, "to", forward.Target)
	}
	return outlet, cleanUp
}
