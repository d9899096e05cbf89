// Package platform tells from the environment which platform the agent runs on
// and what that platform calls this process: the app, the process type, the
// instance, the release. It also knows what the platform promises at both ends of
// a process's life: which port it gives, how long it waits for somebody to listen
// there, how long it waits at the end, and whom it tells.
//
// Detect reads all that from the environment; Mimic is the reverse, what a
// platform would set and do, for whoever wants to behave like one.
//
// It reads variables that are handed to it and nothing else: no metadata
// service, no file, no network. It decides nothing from what it finds; whether a
// one-off process gets an agent is the caller's choice.
//
// The one rule to know: the order of the checks matters, because platforms imitate
// each other. Dokku sets DYNO like Heroku and must be recognised first.
package platform

import (
	"crypto/rand"
	"encoding/hex"
	"strconv"
	"time"
)

// The names of the platforms. A machine that is none of them has the empty name.
const (
	Dokku    = "dokku"
	Heroku   = "heroku"
	Render   = "render"
	Fly      = "fly"
	Railway  = "railway"
	CloudRun = "cloudrun"
	CF       = "cf"
	Azure    = "azure"
)

// Platform is what the environment says about where this process runs. Every
// field may be empty: Heroku, for one, does not tell an app its own name unless
// a laboratory feature is switched on.
type Platform struct {
	Name string // one of the constants above, or "" on a plain machine

	// Who this process is, in the platform's own words.
	App      string // the platform's name of the app or service
	Process  string // the process type: web, worker, run
	Instance string // what tells this copy from its siblings; not unique over time
	Release  string // the deployed version
	Commit   string // the commit it was built from
	Region   string

	// How its life begins, and what may interrupt it.
	GivesPort bool          // this process is told in PORT where to listen
	BootLimit time.Duration // until somebody must listen, or the platform gives up; 0: no limit
	// Sleeps says when the platform stops a process that has nothing but a tunnel
	// for traffic; "" when it does not. Which plan or setting applies is in no
	// variable, so the sentence names it.
	Sleeps string

	// How its life ends.
	Grace          time.Duration // from the platform's signal to its SIGKILL; 0 = none at all
	OneOff         bool          // runs to its own end and serves nobody: a console, a release task, a job
	BroadcastsTERM bool          // the platform sends SIGTERM to every process, not just the first
	StopsWithINT   bool          // the platform says stop with SIGINT unless configured otherwise
}

// Detect reads the platform from env (os.LookupEnv in production) and, where the
// platform names no instance, from hostname (os.Hostname). A variable that is set
// but empty counts as absent; a host name that cannot be read is left empty.
func Detect(env func(string) (string, bool), hostname func() (string, error)) Platform {
	get := func(names ...string) string {
		for _, name := range names {
			if value, ok := env(name); ok && value != "" {
				return value
			}
		}
		return ""
	}
	p := detect(get)
	if p.Instance == "" {
		if name, err := hostname(); err == nil && name != "localhost" {
			p.Instance = name
		}
	}
	return p
}

// lookup returns the first value that is not empty among the named variables.
type lookup func(names ...string) string

func detect(get lookup) Platform {
	switch {
	case isDokku(get):
		return dokku(get)
	case get("DYNO") != "":
		return heroku(get)
	case get("RENDER") != "":
		return render(get)
	case get("FLY_MACHINE_ID") != "":
		return fly(get)
	case get("RAILWAY_SERVICE_ID") != "":
		return railway(get)
	case get("K_SERVICE", "CLOUD_RUN_JOB", "CLOUD_RUN_WORKER_POOL") != "":
		return cloudRun(get)
	case get("VCAP_APPLICATION") != "":
		return cloudFoundry(get)
	case get("WEBSITE_SITE_NAME") != "":
		return azure(get)
	}
	// A plain machine or container: Docker's ten seconds, the shortest of the
	// usual supervisors (systemd waits 90, Kubernetes 30).
	return Platform{Grace: 10 * time.Second}
}

// NewBootID makes the 128 random bits, in hex, that name one start of an agent.
// Two agents with the same app and instance overlap at every deploy; the boot id
// is what keeps them apart.
func NewBootID() string {
	var raw [16]byte
	rand.Read(raw[:]) // never fails (crypto/rand documents it)
	return hex.EncodeToString(raw[:])
}

// seconds parses a whole number of seconds; anything else is fallback.
func seconds(value string, fallback time.Duration) time.Duration {
	n, err := strconv.Atoi(value)
	if err != nil || n < 0 {
		return fallback
	}
	return time.Duration(n) * time.Second
}
