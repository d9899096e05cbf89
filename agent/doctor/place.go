package doctor

import (
	"net/netip"
	"time"
)

// Place is where the app runs and what is expected of it there. The zero value is
// an app on a plain machine to which nothing is sent.
type Place struct {
	Platform string // heroku, render, fly, …; "" on a plain machine
	Process  string // the process type: web, worker

	Port    int    // where the app should listen; 0: nobody knows
	PortVar string // PORT as the platform gave it; "" when it gave none
	// PortBefore is PORT of the start before this one, where it is known.
	PortBefore string
	Serves     bool // something is sent to this process

	BootLimit time.Duration // how long the platform waits for Port; 0: not known
	// Patience is after what time an app that does not listen is spoken of; 0: a sixth
	// of the limit.
	Patience time.Duration
	Grace    time.Duration // from the platform's signal to its SIGKILL
	Drain    time.Duration // how long the app took to stop, where that was seen; 0: it was not
	Sleeps   string        // why and when the platform puts it to sleep under us; "": it does not

	// Env is the environment the app gets; nil is an empty one.
	Env func(string) string
	// ReadyPath is asked with GET and must answer 2xx or 3xx; "" asks nothing.
	ReadyPath string
	// Proxy is where our egress proxy listens, the zero value when there is none.
	Proxy netip.AddrPort
}

func (p *Place) env(name string) string {
	if p.Env == nil {
		return ""
	}
	return p.Env(name)
}

// defaultLimit is how long a boot may take where no platform sets a limit.
const defaultLimit = 60 * time.Second

func (p *Place) limit() time.Duration {
	if p.BootLimit > 0 {
		return p.BootLimit
	}
	return defaultLimit
}

// patience is how long an app may do nothing while it boots.
func (p *Place) patience() time.Duration {
	if p.Patience > 0 {
		return p.Patience
	}
	return min(max(p.limit()/6, time.Second), time.Minute)
}

// name is the platform in words.
func (p *Place) name() string {
	if name := platformNames[p.Platform]; name != "" {
		return name
	}
	if p.Platform != "" {
		return p.Platform
	}
	return "the platform"
}

var platformNames = map[string]string{
	"heroku": "Heroku", "dokku": "Dokku", "render": "Render", "fly": "Fly.io", "railway": "Railway",
	"cloudrun": "Cloud Run", "cf": "Cloud Foundry", "azure": "Azure App Service",
}
