package platform

import (
	"encoding/json"
	"slices"
	"strings"
	"time"
)

// isDokku looks for the variables that Dokku's own settings leave in a container.
// None of them is always there, so a DYNO beside the GIT_REV that Dokku sets at
// each push counts too, unless Heroku's metadata contradicts it: taking Dokku for
// Heroku would withhold SIGTERM from the app, while the opposite mistake only
// sends it twice.
func isDokku(get lookup) bool {
	if get(dokkuMarks...) != "" {
		return true
	}
	return get("DYNO") != "" && get("GIT_REV") != "" && get("HEROKU_APP_ID", "HEROKU_APP_NAME") == ""
}

var dokkuMarks = []string{"DOKKU_APP_TYPE", "DOKKU_APP_RESTORE", "DOKKU_APP_NAME", "DOKKU_PROXY_PORT",
	"DOKKU_PROXY_PORT_MAP", "DOKKU_PROXY_TYPE", "DOKKU_DOCKER_STOP_TIMEOUT", "DOKKU_LETSENCRYPT_EMAIL"}

// dokku tells its containers no app name; only a plugin or the operator does.
// Its signals are Docker's: to the first process alone.
func dokku(get lookup) Platform {
	process := dynoProcess(get("DYNO"))
	return Platform{
		Name:     Dokku,
		App:      get("DOKKU_APP_NAME"),
		Process:  process,
		Instance: get("DYNO"),
		Commit:   get("GIT_REV"),
		// Its check looks whether the process still runs, unless app.json asks for more.
		GivesPort: process == "web",
		Grace:     seconds(get("DOKKU_DOCKER_STOP_TIMEOUT"), 30*time.Second),
		OneOff:    slices.Contains([]string{"run", "cron"}, process),
	}
}

// heroku gives a port to web processes alone, and watches none but theirs.
func heroku(get lookup) Platform {
	process := dynoProcess(get("DYNO"))
	p := Platform{
		Name:           Heroku,
		App:            get("HEROKU_APP_NAME"),
		Process:        process,
		Instance:       get("DYNO"),
		Release:        get("HEROKU_RELEASE_VERSION"),
		Commit:         get("HEROKU_BUILD_COMMIT", "HEROKU_SLUG_COMMIT"),
		Grace:          30 * time.Second,
		OneOff:         slices.Contains([]string{"run", "release", "scheduler"}, process),
		BroadcastsTERM: true,
	}
	if process == "web" {
		p.GivesPort, p.BootLimit = true, 60*time.Second
		p.Sleeps = "an Eco dyno sleeps after 30 minutes without web traffic; what comes through the tunnel does not count"
	}
	return p
}

// dynoProcess takes the process type out of a dyno's name: web.1 on Cedar and
// Dokku; web-848cd4f64d-pvpr2, a Kubernetes pod's name, on Fir. A process type
// may itself contain dashes, so a pod's name loses its last two parts.
func dynoProcess(dyno string) string {
	if process, _, ok := strings.Cut(dyno, "."); ok {
		return process
	}
	parts := strings.Split(dyno, "-")
	return strings.Join(parts[:max(1, len(parts)-2)], "-")
}

// render gives a port to web services.
func render(get lookup) Platform {
	process := get("RENDER_SERVICE_TYPE")
	p := Platform{
		Name:     Render,
		App:      get("RENDER_SERVICE_NAME"),
		Process:  process,
		Instance: get("RENDER_INSTANCE_ID"),
		Commit:   get("RENDER_GIT_COMMIT"),
		Grace:    30 * time.Second, // maxShutdownDelaySeconds, which is in no variable
		OneOff:   process == "cron",
	}
	if process == "web" {
		p.GivesPort, p.BootLimit = true, 15*time.Minute
		p.Sleeps = "a free instance sleeps after 15 minutes without inbound traffic; what comes through the tunnel does not count"
	}
	return p
}

// fly gives no PORT: it sends to internal_port of fly.toml, and no variable says
// whether this machine is sent anything.
func fly(get lookup) Platform {
	p := Platform{
		Name:         Fly,
		App:          get("FLY_APP_NAME"),
		Process:      get("FLY_PROCESS_GROUP"),
		Instance:     get("FLY_MACHINE_ID"),
		Release:      get("FLY_MACHINE_VERSION"),
		Region:       get("FLY_REGION"),
		Grace:        5 * time.Second, // kill_timeout, which is in no variable
		OneOff:       get("RELEASE_COMMAND") != "",
		StopsWithINT: true,
	}
	if !p.OneOff {
		p.Sleeps = "a machine with auto_stop_machines is stopped when nothing comes through Fly Proxy; what comes through the tunnel does not count"
	}
	return p
}

// railway kills at once unless the service asks for time to drain. Its sleep waits
// for ten minutes without outbound packets, which an agent's heartbeats never grant.
func railway(get lookup) Platform {
	return Platform{
		Name:     Railway,
		App:      get("RAILWAY_SERVICE_NAME"),
		Instance: get("RAILWAY_REPLICA_ID"),
		Release:  get("RAILWAY_DEPLOYMENT_ID"),
		Commit:   get("RAILWAY_GIT_COMMIT_SHA"),
		Region:   get("RAILWAY_REPLICA_REGION"),

		GivesPort: true,
		BootLimit: 300 * time.Second,
		Grace:     seconds(get("RAILWAY_DEPLOYMENT_DRAINING_SECONDS"), 0),
	}
}

// cloudRun has services, worker pools and jobs, each with variables of its own.
// Only a job's task has a name; the instances of the others are told apart by
// the metadata service alone, which is not asked here.
func cloudRun(get lookup) Platform {
	p := Platform{
		Name:   CloudRun,
		App:    get("K_SERVICE", "CLOUD_RUN_WORKER_POOL", "CLOUD_RUN_JOB"),
		Region: get("CLOUD_RUN_REGION"),
		Grace:  10 * time.Second,
	}
	switch {
	case get("K_SERVICE") != "":
		p.Process, p.Release = "service", get("K_REVISION")
		p.GivesPort, p.BootLimit = true, 240*time.Second
		p.Sleeps = "with request-based billing there is no CPU between requests, and without a minimum of instances none is kept; what comes through the tunnel does not count as a request"
	case get("CLOUD_RUN_WORKER_POOL") != "":
		p.Process, p.Release = "worker-pool", get("CLOUD_RUN_WORKER_POOL_REVISION")
	default:
		p.Process, p.Release, p.OneOff = "job", get("CLOUD_RUN_EXECUTION"), true
		p.Instance = joined("-", p.Release, get("CLOUD_RUN_TASK_INDEX"))
	}
	return p
}

// cloudFoundry keeps its names in a JSON document. One that does not parse costs
// the names, not the platform. Instances are numbered per process type, as in
// "cf ssh APP --process worker -i 0".
func cloudFoundry(get lookup) Platform {
	var app struct {
		Name    string `json:"application_name"`
		Version string `json:"application_version"`
		Process string `json:"process_type"`
	}
	if json.Unmarshal([]byte(get("VCAP_APPLICATION")), &app) != nil {
		app.Name, app.Version, app.Process = "", "", ""
	}
	p := Platform{
		Name:    CF,
		App:     app.Name,
		Process: app.Process,
		Release: app.Version,
		Grace:   10 * time.Second,
	}
	// Only web processes have a port unless a route was mapped to another one; a
	// document that did not parse says nothing, and most processes are web.
	if app.Process == "web" || app.Process == "" {
		p.GivesPort, p.BootLimit = true, 60*time.Second
	}
	if index := get("CF_INSTANCE_INDEX"); index != "" {
		p.Instance = joined(".", app.Process, index)
	} else {
		p.Instance = get("CF_INSTANCE_GUID")
	}
	return p
}

// azure numbers WEBSITE_ROLE_INSTANCE_ID per host, where it is nearly always 0,
// so the long instance id goes first. A custom container is given no PORT, and
// nothing tells it from a built-in stack but that.
func azure(get lookup) Platform {
	return Platform{
		Name:     Azure,
		App:      get("WEBSITE_SITE_NAME"),
		Instance: get("WEBSITE_INSTANCE_ID", "WEBSITE_ROLE_INSTANCE_ID"),
		Region:   get("REGION_NAME"),

		GivesPort: get("PORT") != "",
		BootLimit: seconds(get("WEBSITES_CONTAINER_START_TIME_LIMIT"), 230*time.Second),
		Sleeps:    "without Always On the app is unloaded after 20 minutes without requests; what comes through the tunnel does not count",
		Grace:     seconds(get("WEBSITES_CONTAINER_STOP_TIME_LIMIT"), 5*time.Second),
	}
}

// joined puts the parts that are not empty together.
func joined(separator string, parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), separator)
}
