package platform_test

import (
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/agent/platform"
)

const vcap = `{"application_id":"e78e2dd4","application_name":"shop","application_uris":["shop.example.com"],` +
	`"application_version":"aac0a29b","instance_index":1,"limits":{"disk":64,"fds":16384,"mem":32},` +
	`"name":"shop","process_id":"e78e2dd4","process_type":"web","space_name":"prod","version":"aac0a29b"}`

// Why a process sleeps under its tunnel, each known by its beginning.
const (
	eco       = "an Eco dyno sleeps"
	free      = "a free instance sleeps"
	autostop  = "a machine with auto_stop_machines is stopped"
	throttled = "with request-based billing"
	unloaded  = "without Always On"
)

func TestEachPlatformIsKnownByItsOwnVariables(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		env  map[string]string
		want platform.Platform
	}{
		{"heroku web dyno with metadata", map[string]string{
			"DYNO": "web.1", "PORT": "46443", "HEROKU_APP_ID": "9daa2797", "HEROKU_APP_NAME": "shop",
			"HEROKU_DYNO_ID": "dyno-id", "HEROKU_RELEASE_VERSION": "v42", "HEROKU_SLUG_COMMIT": "slugc0ffee",
			"HEROKU_BUILD_COMMIT": "c0ffee", "GIT_REV": "set by hand",
		}, platform.Platform{Name: "heroku", App: "shop", Process: "web", Instance: "web.1", Release: "v42",
			Commit: "c0ffee", GivesPort: true, BootLimit: time.Minute, Sleeps: eco, Grace: 30 * time.Second, BroadcastsTERM: true}},
		{"heroku worker without metadata", map[string]string{"DYNO": "worker.12", "HEROKU_SLUG_COMMIT": "old"},
			platform.Platform{Name: "heroku", Process: "worker", Instance: "worker.12", Commit: "old",
				Grace: 30 * time.Second, BroadcastsTERM: true}},
		{"heroku fir dyno", map[string]string{"DYNO": "web-848cd4f64d-pvpr2"},
			platform.Platform{Name: "heroku", Process: "web", Instance: "web-848cd4f64d-pvpr2",
				GivesPort: true, BootLimit: time.Minute, Sleeps: eco, Grace: 30 * time.Second, BroadcastsTERM: true}},
		{"heroku fir dyno of a type with a dash", map[string]string{"DYNO": "mail-out-848cd4f64d-pvpr2"},
			platform.Platform{Name: "heroku", Process: "mail-out", Instance: "mail-out-848cd4f64d-pvpr2",
				Grace: 30 * time.Second, BroadcastsTERM: true}},
		{"heroku console", map[string]string{"DYNO": "run.3870"},
			platform.Platform{Name: "heroku", Process: "run", Instance: "run.3870",
				Grace: 30 * time.Second, OneOff: true, BroadcastsTERM: true}},
		{"heroku release phase", map[string]string{"DYNO": "release.7"},
			platform.Platform{Name: "heroku", Process: "release", Instance: "release.7",
				Grace: 30 * time.Second, OneOff: true, BroadcastsTERM: true}},
		{"heroku scheduler", map[string]string{"DYNO": "scheduler.9"},
			platform.Platform{Name: "heroku", Process: "scheduler", Instance: "scheduler.9",
				Grace: 30 * time.Second, OneOff: true, BroadcastsTERM: true}},
		{"heroku type that only begins like a one-off", map[string]string{"DYNO": "runner.1"},
			platform.Platform{Name: "heroku", Process: "runner", Instance: "runner.1",
				Grace: 30 * time.Second, BroadcastsTERM: true}},
		{"dokku, which sets DYNO too", map[string]string{
			"DYNO": "web.1", "PORT": "5000", "DOKKU_APP_TYPE": "herokuish", "DOKKU_APP_RESTORE": "1", "GIT_REV": "c0ffee",
		}, platform.Platform{Name: "dokku", Process: "web", Instance: "web.1", Commit: "c0ffee", GivesPort: true, Grace: 30 * time.Second}},
		{"dokku without a variable of its own", map[string]string{"DYNO": "web.2", "GIT_REV": "c0ffee"},
			platform.Platform{Name: "dokku", Process: "web", Instance: "web.2", Commit: "c0ffee", GivesPort: true, Grace: 30 * time.Second}},
		{"dokku run", map[string]string{"DYNO": "run.24622", "DOKKU_APP_TYPE": "dockerfile", "DOKKU_DOCKER_STOP_TIMEOUT": "600"},
			platform.Platform{Name: "dokku", Process: "run", Instance: "run.24622", Grace: 600 * time.Second, OneOff: true}},
		{"dokku cron", map[string]string{"DYNO": "cron.31", "DOKKU_PROXY_PORT": "80", "DOKKU_APP_NAME": "shop"},
			platform.Platform{Name: "dokku", App: "shop", Process: "cron", Instance: "cron.31", Grace: 30 * time.Second, OneOff: true}},
		{"render web service", map[string]string{
			"RENDER": "true", "PORT": "10000", "RENDER_SERVICE_ID": "srv-1", "RENDER_SERVICE_NAME": "shop",
			"RENDER_SERVICE_TYPE": "web", "RENDER_INSTANCE_ID": "srv-1-abcde", "RENDER_GIT_COMMIT": "c0ffee",
		}, platform.Platform{Name: "render", App: "shop", Process: "web", Instance: "srv-1-abcde", Commit: "c0ffee",
			GivesPort: true, BootLimit: 15 * time.Minute, Sleeps: free, Grace: 30 * time.Second}},
		{"render background worker", map[string]string{"RENDER": "true", "RENDER_SERVICE_TYPE": "worker", "RENDER_INSTANCE_ID": "srv-2"},
			platform.Platform{Name: "render", Process: "worker", Instance: "srv-2", Grace: 30 * time.Second}},
		{"render cron job", map[string]string{"RENDER": "true", "RENDER_SERVICE_TYPE": "cron", "RENDER_INSTANCE_ID": "crn-1"},
			platform.Platform{Name: "render", Process: "cron", Instance: "crn-1", Grace: 30 * time.Second, OneOff: true}},
		{"fly machine", map[string]string{
			"FLY_APP_NAME": "shop", "FLY_MACHINE_ID": "148ed599c14189", "FLY_ALLOC_ID": "148ed599c14189", "FLY_REGION": "ams",
			"FLY_PROCESS_GROUP": "app", "FLY_MACHINE_VERSION": "01H9RK9EYO9PGNBYAKGXSHV0PH", "PRIMARY_REGION": "fra",
		}, platform.Platform{Name: "fly", App: "shop", Process: "app", Instance: "148ed599c14189",
			Release: "01H9RK9EYO9PGNBYAKGXSHV0PH", Region: "ams", Sleeps: autostop, Grace: 5 * time.Second, StopsWithINT: true}},
		{"fly release command", map[string]string{"FLY_MACHINE_ID": "1", "RELEASE_COMMAND": "1"},
			platform.Platform{Name: "fly", Instance: "1", Grace: 5 * time.Second, OneOff: true, StopsWithINT: true}},
		{"railway with its default of no grace", map[string]string{
			"RAILWAY_SERVICE_ID": "sid", "RAILWAY_SERVICE_NAME": "shop", "RAILWAY_REPLICA_ID": "rid",
			"RAILWAY_REPLICA_REGION": "europe-west4", "RAILWAY_DEPLOYMENT_ID": "did", "RAILWAY_GIT_COMMIT_SHA": "c0ffee",
		}, platform.Platform{Name: "railway", App: "shop", Instance: "rid", Release: "did", Commit: "c0ffee",
			Region: "europe-west4", GivesPort: true, BootLimit: 5 * time.Minute}},
		{"railway that drains", map[string]string{
			"RAILWAY_SERVICE_ID": "sid", "RAILWAY_REPLICA_ID": "rid", "RAILWAY_DEPLOYMENT_DRAINING_SECONDS": "45",
		}, platform.Platform{Name: "railway", Instance: "rid", GivesPort: true, BootLimit: 5 * time.Minute, Grace: 45 * time.Second}},
		{"cloud run service", map[string]string{
			"K_SERVICE": "shop", "K_REVISION": "shop-00042-abc", "K_CONFIGURATION": "shop", "PORT": "8080",
		}, platform.Platform{Name: "cloudrun", App: "shop", Process: "service", Instance: "host-1",
			Release: "shop-00042-abc", GivesPort: true, BootLimit: 4 * time.Minute, Sleeps: throttled, Grace: 10 * time.Second}},
		{"cloud run worker pool", map[string]string{
			"CLOUD_RUN_WORKER_POOL": "shop", "CLOUD_RUN_WORKER_POOL_REVISION": "shop-00001", "CLOUD_RUN_REGION": "europe-west1",
		}, platform.Platform{Name: "cloudrun", App: "shop", Process: "worker-pool", Instance: "host-1",
			Release: "shop-00001", Region: "europe-west1", Grace: 10 * time.Second}},
		{"cloud run job", map[string]string{
			"CLOUD_RUN_JOB": "nightly", "CLOUD_RUN_EXECUTION": "nightly-x7", "CLOUD_RUN_TASK_INDEX": "3", "CLOUD_RUN_TASK_COUNT": "5",
		}, platform.Platform{Name: "cloudrun", App: "nightly", Process: "job", Instance: "nightly-x7-3",
			Release: "nightly-x7", Grace: 10 * time.Second, OneOff: true}},
		{"cloud foundry", map[string]string{
			"VCAP_APPLICATION": vcap, "CF_INSTANCE_INDEX": "1", "CF_INSTANCE_GUID": "3a59e422", "PORT": "8080",
		}, platform.Platform{Name: "cf", App: "shop", Process: "web", Instance: "web.1", Release: "aac0a29b",
			GivesPort: true, BootLimit: time.Minute, Grace: 10 * time.Second}},
		{"cloud foundry worker", map[string]string{
			"VCAP_APPLICATION": strings.Replace(vcap, `"process_type":"web"`, `"process_type":"worker"`, 1), "CF_INSTANCE_INDEX": "0",
		}, platform.Platform{Name: "cf", App: "shop", Process: "worker", Instance: "worker.0", Release: "aac0a29b",
			Grace: 10 * time.Second}},
		{"cloud foundry with a document that does not parse", map[string]string{
			"VCAP_APPLICATION": `{"application_name":"shop","application_version":7}`, "CF_INSTANCE_GUID": "3a59e422",
		}, platform.Platform{Name: "cf", Instance: "3a59e422", GivesPort: true, BootLimit: time.Minute, Grace: 10 * time.Second}},
		{"azure", map[string]string{
			"WEBSITE_SITE_NAME": "shop", "WEBSITE_HOSTNAME": "shop.azurewebsites.net", "WEBSITE_ROLE_INSTANCE_ID": "0",
			"WEBSITE_INSTANCE_ID": "5568f9f8", "REGION_NAME": "West Europe", "PORT": "8080",
		}, platform.Platform{Name: "azure", App: "shop", Instance: "5568f9f8", Region: "West Europe",
			GivesPort: true, BootLimit: 230 * time.Second, Sleeps: unloaded, Grace: 5 * time.Second}},
		{"azure custom container with longer times", map[string]string{
			"WEBSITE_SITE_NAME": "shop", "WEBSITE_ROLE_INSTANCE_ID": "0",
			"WEBSITES_CONTAINER_START_TIME_LIMIT": "1800", "WEBSITES_CONTAINER_STOP_TIME_LIMIT": "120",
		}, platform.Platform{Name: "azure", App: "shop", Instance: "0", BootLimit: 30 * time.Minute, Sleeps: unloaded, Grace: 120 * time.Second}},
		{"a plain machine", map[string]string{"PORT": "3000", "GIT_REV": "c0ffee"},
			platform.Platform{Instance: "host-1", Grace: 10 * time.Second}},
		{"variables that are set but empty", map[string]string{"DYNO": "", "RENDER": "", "FLY_MACHINE_ID": ""},
			platform.Platform{Instance: "host-1", Grace: 10 * time.Second}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got := platform.Detect(lookupIn(test.env), func() (string, error) { return "host-1", nil })
			if test.want.Sleeps != "" && strings.HasPrefix(got.Sleeps, test.want.Sleeps) {
				got.Sleeps = test.want.Sleeps
			}
			if got != test.want {
				t.Errorf("got  %+v\nwant %+v", got, test.want)
			}
		})
	}
}

// The fact sheet's order: each step adds the variable of the next platform up,
// and the platform that is asked first must win.
func TestTheEarlierPlatformWins(t *testing.T) {
	t.Parallel()
	env := map[string]string{}
	for _, step := range []struct{ variable, want string }{
		{"WEBSITE_SITE_NAME", "azure"},
		{"VCAP_APPLICATION", "cf"},
		{"K_SERVICE", "cloudrun"},
		{"RAILWAY_SERVICE_ID", "railway"},
		{"FLY_MACHINE_ID", "fly"},
		{"RENDER", "render"},
		{"DYNO", "heroku"},
		{"DOKKU_APP_TYPE", "dokku"},
	} {
		env[step.variable] = "x"
		if got := platform.Detect(lookupIn(env), noHost).Name; got != step.want {
			t.Errorf("with %s added: got %q, want %q", step.variable, got, step.want)
		}
	}
}

func TestAHostNameThatSaysNothingIsLeftOut(t *testing.T) {
	t.Parallel()
	none := lookupIn(nil)
	if got := platform.Detect(none, noHost).Instance; got != "" {
		t.Errorf("unreadable host name: instance %q, want none", got)
	}
	local := func() (string, error) { return "localhost", nil } // what Cloud Run calls every instance
	if got := platform.Detect(none, local).Instance; got != "" {
		t.Errorf("localhost: instance %q, want none", got)
	}
}

func TestABootIDIs128BitsAndNeverTheSame(t *testing.T) {
	t.Parallel()
	first, second := platform.NewBootID(), platform.NewBootID()
	raw, err := hex.DecodeString(first)
	if err != nil || len(raw) != 16 {
		t.Errorf("boot id %q: %d bytes, %v", first, len(raw), err)
	}
	if first == second {
		t.Errorf("two boot ids are the same: %s", first)
	}
}

func lookupIn(env map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		value, ok := env[name]
		return value, ok
	}
}

func noHost() (string, error) { return "", errors.New("no host name") }
