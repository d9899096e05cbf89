package platform

import (
	"slices"
	"strings"
	"syscall"
	"time"
)

// Mimicry is what a platform sets and does around one process of an app that it
// sends web traffic to: enough to behave like it on any machine. Its defaults are
// the platform's own; nothing in it is secret or true.
type Mimicry struct {
	Name string // one of the constants
	Says string // what people call it: "Heroku", "Cloud Run"

	// Env are variables as "NAME=value", without PORT. Detect reads the same
	// platform out of them.
	Env []string

	// Where traffic is sent.
	Port      int  // 0: another high port at each start
	GivesPort bool // PORT says so; where it does not, the app must know by itself

	// The start.
	BootLimit   time.Duration // 0: no limit
	BootFailure string        // how the platform puts it when nobody listens in time

	// The stop.
	Signal    syscall.Signal // which one says stop
	Broadcast bool           // to every process; else to the first one only
	Repeats   bool           // it may come several times
	Grace     time.Duration  // until SIGKILL; 0: at once
	AfterStop string         // what the platform says and does when the grace has passed
	GraceKey  string         // the setting that makes the grace longer; "" when it is fixed
	GraceMax  time.Duration  // the most that it takes; 0: no limit is known
}

// Mimics lists the names that Mimic knows.
func Mimics() []string {
	names := make([]string, len(mimicries))
	for i, m := range mimicries {
		names[i] = m.Name
	}
	return names
}

// Mimic is the platform of that name.
func Mimic(name string) (Mimicry, bool) {
	i := slices.IndexFunc(mimicries, func(m Mimicry) bool { return m.Name == name })
	if i < 0 {
		return Mimicry{}, false
	}
	m := mimicries[i]
	m.Env = slices.Clone(m.Env)
	return m, true
}

// Own reports whether a platform sets the variable of that name by itself, so that
// it would contradict a mimicry if it stayed in the environment. Whatever an
// operator sets is not meant, whoever's name it begins with: HEROKU_API_KEY is some
// app's secret.
func Own(name string) bool {
	return slices.Contains(others, name) || slices.ContainsFunc(mimicries, func(m Mimicry) bool {
		return slices.ContainsFunc(m.Env, func(entry string) bool {
			mine, _, _ := strings.Cut(entry, "=")
			return mine == name
		})
	})
}

// others are variables that Detect reads and no mimicry sets.
var others = append([]string{
	"PORT", "RELEASE_COMMAND", "CLOUD_RUN_JOB", "CLOUD_RUN_EXECUTION", "CLOUD_RUN_TASK_INDEX",
	"CLOUD_RUN_WORKER_POOL", "CLOUD_RUN_WORKER_POOL_REVISION", "CLOUD_RUN_REGION",
	"RAILWAY_DEPLOYMENT_DRAINING_SECONDS", "WEBSITES_CONTAINER_START_TIME_LIMIT", "WEBSITES_CONTAINER_STOP_TIME_LIMIT",
}, dokkuMarks...)

const commit = "c0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ff"

var mimicries = []Mimicry{
	{
		Name: Heroku, Says: "Heroku",
		Env: []string{"DYNO=web.1", "HEROKU_APP_ID=00000000-0000-4000-8000-000000000000", "HEROKU_APP_NAME=rehearsal",
			"HEROKU_DYNO_ID=00000000-0000-4000-8000-000000000001", "HEROKU_RELEASE_VERSION=v1",
			"HEROKU_RELEASE_CREATED_AT=2026-01-01T00:00:00Z", "HEROKU_SLUG_COMMIT=" + commit, "HEROKU_BUILD_COMMIT=" + commit},
		GivesPort: true,
		BootLimit: 60 * time.Second, BootFailure: "Error R10 (Boot timeout): the dyno is killed, and requests get H20",
		Signal: syscall.SIGTERM, Broadcast: true, Repeats: true, Grace: 30 * time.Second,
		AfterStop: "SIGKILL to all processes, and Error R12 (Exit timeout) in the log",
	},
	{
		Name: Dokku, Says: "Dokku",
		Env:       []string{"DYNO=web.1", "DOKKU_APP_NAME=rehearsal", "DOKKU_APP_TYPE=herokuish", "DOKKU_PROXY_TYPE=nginx", "GIT_REV=" + commit},
		Port:      5000,
		GivesPort: true, BootFailure: "502 Bad Gateway from nginx",
		Signal: syscall.SIGTERM, Grace: 30 * time.Second,
		AfterStop: "SIGKILL", GraceKey: "dokku ps:set APP stop-timeout-seconds",
	},
	{
		Name: Render, Says: "Render",
		Env: []string{"RENDER=true", "IS_PULL_REQUEST=false", "RENDER_SERVICE_ID=srv-rehearsal", "RENDER_SERVICE_NAME=rehearsal",
			"RENDER_SERVICE_TYPE=web", "RENDER_INSTANCE_ID=srv-rehearsal-00000", "RENDER_GIT_COMMIT=" + commit, "RENDER_GIT_BRANCH=main",
			"RENDER_EXTERNAL_HOSTNAME=rehearsal.onrender.com", "RENDER_EXTERNAL_URL=https://rehearsal.onrender.com"},
		Port: 10000, GivesPort: true,
		BootLimit: 15 * time.Minute, BootFailure: "No open ports detected: the deploy times out",
		Signal: syscall.SIGTERM, Grace: 30 * time.Second,
		AfterStop: "SIGKILL", GraceKey: "maxShutdownDelaySeconds in render.yaml", GraceMax: 300 * time.Second,
	},
	{
		Name: Fly, Says: "Fly.io",
		Env: []string{"FLY_APP_NAME=rehearsal", "FLY_MACHINE_ID=00000000000000", "FLY_ALLOC_ID=00000000000000", "FLY_REGION=ams",
			"FLY_PROCESS_GROUP=app", "FLY_MACHINE_VERSION=00000000000000000000000000", "FLY_VM_MEMORY_MB=256", "PRIMARY_REGION=ams"},
		Port:        8080,
		BootFailure: "PC01: instance refused connection on internal_port",
		Signal:      syscall.SIGINT, Grace: 5 * time.Second,
		AfterStop: "the machine is stopped", GraceKey: "kill_timeout in fly.toml", GraceMax: 300 * time.Second,
	},
	{
		Name: Railway, Says: "Railway",
		Env: []string{"RAILWAY_SERVICE_ID=00000000-0000-4000-8000-000000000000", "RAILWAY_SERVICE_NAME=rehearsal",
			"RAILWAY_DEPLOYMENT_ID=00000000-0000-4000-8000-000000000001", "RAILWAY_REPLICA_ID=00000000-0000-4000-8000-000000000002",
			"RAILWAY_REPLICA_REGION=europe-west4", "RAILWAY_GIT_COMMIT_SHA=" + commit, "RAILWAY_ENVIRONMENT_NAME=production",
			"RAILWAY_PUBLIC_DOMAIN=rehearsal.up.railway.app"},
		GivesPort: true,
		BootLimit: 300 * time.Second, BootFailure: "502 Application failed to respond",
		Signal:    syscall.SIGTERM,
		AfterStop: "SIGKILL at once, unless RAILWAY_DEPLOYMENT_DRAINING_SECONDS is set",
		GraceKey:  "RAILWAY_DEPLOYMENT_DRAINING_SECONDS",
	},
	{
		Name: CloudRun, Says: "Cloud Run",
		Env:  []string{"K_SERVICE=rehearsal", "K_REVISION=rehearsal-00001-aaa", "K_CONFIGURATION=rehearsal"},
		Port: 8080, GivesPort: true,
		BootLimit:   240 * time.Second,
		BootFailure: "The user-provided container failed to start and listen on the port defined provided by the PORT=8080 environment variable within the allocated timeout",
		Signal:      syscall.SIGTERM, Grace: 10 * time.Second,
		AfterStop: "SIGKILL",
	},
	{
		Name: CF, Says: "Cloud Foundry",
		Env: []string{"CF_INSTANCE_INDEX=0", "CF_INSTANCE_GUID=00000000-0000-4000-8000-000000000000",
			`VCAP_APPLICATION={"application_id":"00000000-0000-4000-8000-000000000001","application_name":"rehearsal",` +
				`"application_uris":["rehearsal.example.com"],"application_version":"00000000-0000-4000-8000-000000000002",` +
				`"name":"rehearsal","process_type":"web"}`},
		Port: 8080, GivesPort: true,
		BootLimit: 60 * time.Second, BootFailure: "Timed out after 1m0s: health check never passed",
		Signal: syscall.SIGTERM, Grace: 10 * time.Second,
		AfterStop: "SIGKILL",
	},
	{
		// A built-in stack. Python's listens on 8000; a custom container is assumed on
		// 80, or on WEBSITES_PORT.
		Name: Azure, Says: "Azure App Service",
		Env: []string{"WEBSITE_SITE_NAME=rehearsal", "WEBSITE_HOSTNAME=rehearsal.azurewebsites.net", "WEBSITE_ROLE_INSTANCE_ID=0",
			"WEBSITE_INSTANCE_ID=0000000000000000000000000000000000000000000000000000000000000000", "REGION_NAME=West Europe"},
		Port: 8080, GivesPort: true,
		BootLimit: 230 * time.Second, BootFailure: "Container didn't respond to HTTP pings on port: 8080, failing site start",
		Signal: syscall.SIGTERM, Grace: 5 * time.Second,
		AfterStop: "SIGKILL", GraceKey: "WEBSITES_CONTAINER_STOP_TIME_LIMIT", GraceMax: 120 * time.Second,
	},
}
