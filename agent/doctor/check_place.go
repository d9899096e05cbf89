package doctor

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/posternhq/postern/protocol"
)

// checkPlace is about what the platform gives and expects, whatever the app does:
// PORT01, PORT08, PORT17, PORT19, PORT20.
func checkPlace(s *sight) []protocol.Finding {
	var list []protocol.Finding
	list = append(list, portUnset(s)...)
	list = append(list, sentElsewhere(s)...)
	list = append(list, portByHand(s)...)
	list = append(list, shortGrace(s)...)
	list = append(list, putToSleep(s)...)
	return list
}

// putToSleep needs proof: which plan an app is on, and so whether it sleeps, no
// variable says.
func putToSleep(s *sight) []protocol.Finding {
	h := s.past
	if h.frozen == 0 {
		return nil
	}
	evidence := fmt.Sprintf("nothing of this process ran for %v until %s", h.frozen.Round(time.Second), h.thawed.UTC().Format("15:04:05Z"))
	if s.place.Sleeps != "" {
		evidence += "; " + s.place.Sleeps
	}
	return []protocol.Finding{s.finding("PORT20", protocol.SeverityWarning,
		fmt.Sprintf("%s stopped this process for a while, and a tunnel does not keep it awake", s.place.name()),
		evidence, awake[s.place.Platform])}
}

// finding fills in what all findings have. An empty fix is the general advice.
func (s *sight) finding(code string, severity protocol.Severity, cause, evidence, fix string) protocol.Finding {
	if fix == "" {
		fix = "see docs/doctor.md"
	}
	return protocol.Finding{Code: code, Severity: severity, Cause: cause, Evidence: evidence, Fix: fix, Framework: s.framework.Name}
}

// givers are the platforms that set PORT, and where it is set if they did not.
var givers = map[string]string{
	"heroku":   "only the process type web is given PORT: name this process `web` in the Procfile, or set --port (POSTERN_PORT) to where the app listens, or --no-port when nothing is to reach it",
	"dokku":    "only the process type web is given PORT: name this process `web` in the Procfile, or set --port to where the app listens, or --no-port when nothing is to reach it",
	"render":   "only web services are given PORT: make it a web service, or set --port to where the app listens, or --no-port when nothing is to reach it",
	"railway":  "set PORT in the service's variables, or --port to where the app listens",
	"cloudrun": "only services are given PORT, not jobs and worker pools: deploy it as a service, or set --port to where the app listens, or --no-port when nothing is to reach it",
	"cf":       "only processes with a route are given PORT: map a route, or set --port to where the app listens, or --no-port when nothing is to reach it",
	"azure":    "set PORT and WEBSITES_PORT in the app settings to the port the app listens on, or --port",
	"fly":      "Fly.io sets no PORT: set it in [env] of fly.toml to the value of internal_port, or set --port",
}

func portUnset(s *sight) []protocol.Finding {
	if !s.place.Serves || s.place.Port != 0 {
		return nil
	}
	cause := "PORT is not set, so nobody knows where the app should listen"
	if s.place.PortVar != "" {
		cause = "PORT is not the number of a port"
	} else if s.place.Platform != "" && s.place.Process != "" {
		cause = fmt.Sprintf("%s gives no PORT to this process, which is of type %s", s.place.name(), s.place.Process)
	}
	evidence := "PORT is not in the environment"
	if v := s.place.PortVar; v != "" {
		evidence = fmt.Sprintf("PORT=%.20q", v)
	}
	if l := s.main(); l.Local.IsValid() {
		evidence += fmt.Sprintf("; %s listens on %v", named(l.Process, l.PID), l.Local)
	}
	fix := givers[s.place.Platform]
	if fix == "" {
		fix = "set PORT, or --port to where the app listens; --no-port when nothing is to reach it"
	}
	return []protocol.Finding{s.finding("PORT01", protocol.SeverityError, cause, evidence, fix)}
}

// sentElsewhere compares where the app listens with what the platform was told,
// where that can be read from here.
func sentElsewhere(s *sight) []protocol.Finding {
	if !s.ready() {
		return nil
	}
	targets, from, fix := platformPorts(s)
	if len(targets) == 0 {
		return nil
	}
	for _, l := range slices.Concat(s.mine, s.elsewhere) {
		if slices.Contains(targets, int(l.Local.Port())) {
			return nil
		}
	}
	if slices.Contains(targets, s.place.Port) {
		return nil
	}
	return []protocol.Finding{s.finding("PORT08", protocol.SeverityError,
		fmt.Sprintf("%s sends to port %d, the app listens on port %d", s.place.name(), targets[0], s.place.Port),
		fmt.Sprintf("%s; %s listens on %v", from, named(s.listener().Process, s.listener().PID), s.target()),
		fmt.Sprintf(fix, s.place.Port))}
}

// platformPorts is where the platform sends to, from what it told or from its file.
func platformPorts(s *sight) (ports []int, from, fix string) {
	switch s.place.Platform {
	case "fly":
		ports = internalPorts(s.file("fly.toml"), s.place.Process)
		if len(ports) > 0 {
			from = fmt.Sprintf("fly.toml has internal_port = %d", ports[0])
		}
		return ports, from, "set internal_port = %d in fly.toml, or move the app"
	case "azure":
		if n, err := strconv.Atoi(s.place.env("WEBSITES_PORT")); err == nil {
			return []int{n}, fmt.Sprintf("WEBSITES_PORT=%d", n), "set WEBSITES_PORT=%d in the app settings, or move the app"
		}
	case "railway":
		if n, err := strconv.Atoi(s.place.env("RAILWAY_TCP_APPLICATION_PORT")); err == nil && s.place.env("RAILWAY_PUBLIC_DOMAIN") == "" {
			return []int{n}, fmt.Sprintf("RAILWAY_TCP_APPLICATION_PORT=%d", n), "set the TCP proxy's port to %d in the service's settings, or move the app"
		}
	}
	return nil, "", ""
}

// internalPorts reads the internal_port keys of a fly.toml, those of services that
// are for other process groups left out.
func internalPorts(toml []byte, process string) []int {
	var ports []int
	port, skip := 0, false
	flush := func() {
		if port != 0 && !skip {
			ports = append(ports, port)
		}
		port, skip = 0, false
	}
	for line := range strings.Lines(string(toml)) {
		line, _, _ = strings.Cut(strings.TrimSpace(line), "#")
		key, value, found := strings.Cut(line, "=")
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		switch {
		case strings.HasPrefix(line, "[[services]]"), strings.HasPrefix(line, "[http_service]"):
			flush()
		case !found:
		case key == "internal_port":
			if n, err := strconv.Atoi(value); err == nil && n > 0 && n < 1<<16 {
				port = n
			}
		case key == "processes" && process != "" && strings.HasPrefix(value, "["):
			skip = !strings.Contains(value, `"`+process+`"`) && !strings.Contains(value, "'"+process+"'")
		}
	}
	flush()
	return ports
}

// usualPorts are the defaults of frameworks. Heroku's own values are random ones out
// of some sixty thousand.
var usualPorts = []string{"80", "443", "1234", "3000", "3001", "4000", "4200", "4567", "5000", "5173", "8000", "8080", "8081",
	"8443", "8888", "9000", "9292", "10000"}

// portByHand finds a PORT that the platform did not choose. Fir, whose dynos are
// named web-848cd4f64d-pvpr2, is not known to choose at random.
func portByHand(s *sight) []protocol.Finding {
	value := s.place.PortVar
	if value == "" {
		return nil
	}
	fixed := value == s.place.PortBefore
	finding := func(evidence, fix string) []protocol.Finding {
		return []protocol.Finding{s.finding("PORT17", protocol.SeverityWarning,
			fmt.Sprintf("PORT was set by hand, which hides the one %s chose", s.place.name()), evidence, fix)}
	}
	switch s.place.Platform {
	case "heroku":
		dyno := s.place.env("DYNO")
		if s.place.Process != "web" || dyno != "" && !strings.Contains(dyno, ".") {
			return nil
		}
		fix := "`heroku config:unset PORT`"
		if slices.Contains(usualPorts, value) {
			return finding(fmt.Sprintf("PORT=%s, while Heroku gives each dyno a random high port", value), fix)
		}
		if fixed {
			return finding(fmt.Sprintf("PORT=%s, as at the start before, while Heroku gives each dyno a random port", value), fix)
		}
	case "dokku":
		ports := s.place.env("DOKKU_PROXY_PORT_MAP") // http:80:5000 https:443:5000
		if ports == "" {
			return nil
		}
		for mapping := range strings.FieldsSeq(ports) {
			if i := strings.LastIndexByte(mapping, ':'); mapping[i+1:] == value {
				return nil
			}
		}
		return finding(fmt.Sprintf("PORT=%s, while the proxy is set to %.60q", value, ports), "`dokku config:unset APP PORT`, or `dokku ports:set APP http:80:"+value+"`")
	}
	return nil
}

// graces are the settings of the platforms whose time to stop is short.
var graces = map[string]string{
	"railway": "set RAILWAY_DEPLOYMENT_DRAINING_SECONDS=30 in the service's variables (drainingSeconds in railway.json)",
	"azure":   "set WEBSITES_CONTAINER_STOP_TIME_LIMIT=30 in the app settings (120 at most)",
	"fly":     "set kill_timeout = 30 in fly.toml (300 at most), and kill_signal = \"SIGTERM\"",
	"render":  "set maxShutdownDelaySeconds in render.yaml (300 at most)",
	"cf":      "shorten the app's shutdown: the ten seconds are the operator's setting",
	"heroku":  "shorten the app's shutdown: the thirty seconds are fixed",
	"dokku":   "`dokku ps:set APP stop-timeout-seconds 60`",
}

// comfort is the time to stop below which requests in flight are in danger.
const comfort = 10 * time.Second

func shortGrace(s *sight) []protocol.Finding {
	place := s.place
	fix := graces[place.Platform]
	if fix == "" {
		fix = "lengthen the time to stop, and tell us with --grace"
	}
	switch {
	case place.Drain > place.Grace && place.Drain > 0:
		return []protocol.Finding{s.finding("PORT19", protocol.SeverityWarning,
			fmt.Sprintf("the app needs longer to stop than %s waits", place.name()),
			fmt.Sprintf("it took %s to stop, and is killed after %s", seconds(place.Drain), seconds(place.Grace)), fix)}
	case !place.Serves || place.Drain > 0:
	case place.Platform == "railway" && place.Grace <= 0:
		return []protocol.Finding{s.finding("PORT19", protocol.SeverityWarning,
			"Railway kills the app at once when it stops it: requests in flight are cut at every deploy",
			"RAILWAY_DEPLOYMENT_DRAINING_SECONDS is 0 or not set, and 0 is the default", fix)}
	case (place.Platform == "azure" || place.Platform == "fly") && place.Grace < comfort:
		return []protocol.Finding{s.finding("PORT19", protocol.SeverityNote,
			fmt.Sprintf("%s gives the app %s to stop", place.name(), seconds(place.Grace)),
			fmt.Sprintf("the time from its signal to its SIGKILL is %s; requests that take longer are cut at every deploy", seconds(place.Grace)), fix)}
	}
	return nil
}

// awake is how to keep an app awake.
var awake = map[string]string{
	"heroku":   "use Basic dynos or above in place of Eco, or give the manifest the app's public URL, so that the relay wakes it",
	"render":   "use a paid instance type in place of Free, or give the manifest the app's public URL, so that the relay wakes it",
	"fly":      "set auto_stop_machines = \"off\" and min_machines_running = 1 in fly.toml",
	"railway":  "switch Serverless off in the service's settings",
	"cloudrun": "use instance-based billing (--no-cpu-throttling) and --min-instances 1, or a worker pool",
	"azure":    "switch Always On on in the app's settings",
}

// platformHost is the host name that the platform's health checks or its router send.
func platformHost(p *Place) string {
	name := ""
	switch p.Platform {
	case "railway":
		name = "healthcheck.railway.app"
	case "render":
		name = p.env("RENDER_EXTERNAL_HOSTNAME")
	case "azure":
		name = p.env("WEBSITE_HOSTNAME")
	case "fly":
		if app := p.env("FLY_APP_NAME"); app != "" {
			name = app + ".fly.dev"
		}
	case "heroku":
		name = p.env("HEROKU_APP_DEFAULT_DOMAIN_NAME")
	}
	for i := range len(name) {
		if c := name[i]; c != '-' && c != '.' && c != ':' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
			return ""
		}
	}
	return name
}

// reachable is where a bridge can connect to.
func (s *sight) reachable() netip.AddrPort {
	port := uint16(s.place.Port)
	if !s.place.Serves || s.exit != nil {
		return netip.AddrPort{}
	}
	switch {
	case s.loopback == open && s.ours():
		if len(s.mine) > 0 && allLoopback(s.mine) || s.blind && s.outer == refused {
			return s.target()
		}
		return netip.AddrPort{}
	case s.six == open && (s.blind || anySix(s.mine)):
		return netip.AddrPortFrom(netip.IPv6Loopback(), port)
	case s.outer == open && (s.blind || len(s.mine) > 0):
		return netip.AddrPortFrom(s.outerAt, port)
	case len(s.mine) > 0:
		if ip := s.mine[0].Local.Addr(); ip.IsLoopback() {
			return netip.AddrPortFrom(ip, port)
		}
	}
	if l := s.main(); len(s.mine) == 0 && l.PID != 0 && s.past.detourOf == keyOf(l) {
		return s.past.detour
	}
	return netip.AddrPort{}
}
