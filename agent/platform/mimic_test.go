package platform_test

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/posternhq/postern/agent/platform"
)

// What is mimicked is what is detected: a mimicry's environment must be read as
// its platform, with the whole identity that this platform tells its processes.
func TestAMimicryIsDetectedAsItsPlatform(t *testing.T) {
	t.Parallel()
	// What no variable of the platform says.
	silent := map[string]string{
		"heroku":   "region",
		"dokku":    "release region",
		"render":   "release region",
		"fly":      "commit",
		"railway":  "process",
		"cloudrun": "instance commit region",
		"cf":       "commit region",
		"azure":    "process release commit",
	}
	if len(platform.Mimics()) != len(silent) {
		t.Fatalf("mimics %v, want the %d of the table", platform.Mimics(), len(silent))
	}
	for _, name := range platform.Mimics() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m, ok := platform.Mimic(name)
			if !ok || m.Name != name || m.Says == "" || m.BootFailure == "" || m.AfterStop == "" {
				t.Fatalf("%v, %+v", ok, m)
			}
			env := environ(m)
			if m.GivesPort {
				env["PORT"] = strconv.Itoa(m.Port)
			}
			p := platform.Detect(lookupIn(env), noHost)
			if p.Name != name || p.OneOff {
				t.Fatalf("detected as %+v", p)
			}
			for field, value := range map[string]string{"app": p.App, "process": p.Process, "instance": p.Instance,
				"release": p.Release, "commit": p.Commit, "region": p.Region} {
				if isSilent := slices.Contains(strings.Fields(silent[name]), field); (value == "") != isSilent {
					t.Errorf("%s is %q", field, value)
				}
			}
			if p.GivesPort != m.GivesPort || p.BootLimit != m.BootLimit || p.Grace != m.Grace || p.BroadcastsTERM != m.Broadcast {
				t.Errorf("promises %+v\nmimics   %+v", p, m)
			}
			if want := map[bool]syscall.Signal{true: syscall.SIGINT, false: syscall.SIGTERM}[p.StopsWithINT]; m.Signal != want {
				t.Errorf("stops with %v, want %v", m.Signal, want)
			}
		})
	}
}

// The facts of the platforms' documents, once more and apart from the code.
func TestMimicriesFollowTheirPlatforms(t *testing.T) {
	t.Parallel()
	for _, want := range []struct {
		name               string
		port               int
		boot, grace        time.Duration
		signal             syscall.Signal
		broadcast, repeats bool
		variable           string
	}{
		{"heroku", 0, time.Minute, 30 * time.Second, syscall.SIGTERM, true, true, "DYNO=web.1"},
		{"dokku", 5000, 0, 30 * time.Second, syscall.SIGTERM, false, false, "DYNO=web.1"},
		{"render", 10000, 15 * time.Minute, 30 * time.Second, syscall.SIGTERM, false, false, "RENDER=true"},
		{"fly", 8080, 0, 5 * time.Second, syscall.SIGINT, false, false, "FLY_PROCESS_GROUP=app"},
		{"railway", 0, 5 * time.Minute, 0, syscall.SIGTERM, false, false, "RAILWAY_SERVICE_NAME=rehearsal"},
		{"cloudrun", 8080, 4 * time.Minute, 10 * time.Second, syscall.SIGTERM, false, false, "K_SERVICE=rehearsal"},
		{"cf", 8080, time.Minute, 10 * time.Second, syscall.SIGTERM, false, false, "CF_INSTANCE_INDEX=0"},
		{"azure", 8080, 230 * time.Second, 5 * time.Second, syscall.SIGTERM, false, false, "WEBSITE_SITE_NAME=rehearsal"},
	} {
		m, _ := platform.Mimic(want.name)
		if m.Port != want.port || m.BootLimit != want.boot || m.Grace != want.grace || m.Signal != want.signal ||
			m.Broadcast != want.broadcast || m.Repeats != want.repeats || !slices.Contains(m.Env, want.variable) {
			t.Errorf("%+v\nwant %+v", m, want)
		}
	}
	if m, _ := platform.Mimic("fly"); m.GivesPort {
		t.Error("fly gives no PORT")
	}
	if _, ok := platform.Mimic("lambda"); ok {
		t.Error("mimics what it does not know")
	}
}

func TestOnePlatformsVariablesDoNotSurviveInAnothersPlace(t *testing.T) {
	t.Parallel()
	for _, from := range platform.Mimics() {
		m, _ := platform.Mimic(from)
		for name := range environ(m) {
			if !platform.Own(name) {
				t.Errorf("%s of %s would stay", name, from)
			}
		}
	}
	for _, name := range []string{"PORT", "DOKKU_APP_RESTORE", "CLOUD_RUN_JOB", "RELEASE_COMMAND"} {
		if !platform.Own(name) {
			t.Errorf("%s would stay", name)
		}
	}
	for _, name := range []string{"HEROKU_API_KEY", "HEROKU_POSTGRESQL_BLUE_URL", "FLY_API_TOKEN", "PATH", "MEMORY_LIMIT"} {
		if platform.Own(name) {
			t.Errorf("%s is the app's and would go", name)
		}
	}
}

func TestAMimicryIsACopy(t *testing.T) {
	t.Parallel()
	first, _ := platform.Mimic("heroku")
	first.Env[0] = "DYNO=changed"
	if second, _ := platform.Mimic("heroku"); second.Env[0] == first.Env[0] {
		t.Error("a change reached the table")
	}
}

// Nothing of a mimicry may hold a newline or a NUL: it becomes an environment.
func TestMimicriesAreEnvironments(t *testing.T) {
	t.Parallel()
	for _, name := range platform.Mimics() {
		m, _ := platform.Mimic(name)
		for _, entry := range m.Env {
			if !strings.Contains(entry, "=") || strings.ContainsAny(entry, "\x00\n") || os.Expand(entry, func(string) string { return "" }) != entry {
				t.Errorf("%s: %q", name, entry)
			}
		}
	}
}

func environ(m platform.Mimicry) map[string]string {
	env := map[string]string{}
	for _, entry := range m.Env {
		name, value, _ := strings.Cut(entry, "=")
		env[name] = value
	}
	return env
}
