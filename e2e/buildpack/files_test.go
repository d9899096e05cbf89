//go:build linux

package buildpack

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/posternhq/postern/e2e/rig"
)

// The scripts, by the linter. It is a Debian package, and not everywhere.
func TestShellcheckHasNothingToSay(t *testing.T) {
	t.Parallel()
	need(t, "shellcheck", "shellcheck")
	var scripts []string
	for _, pattern := range []string{"buildpack/bin/*", "buildpack/*.sh", "buildpack/pin", "buildpack/package", "cnb/bin/*"} {
		found, err := filepath.Glob(filepath.Join(root, "deploy", pattern))
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: %v, %v", pattern, found, err)
		}
		scripts = append(scripts, found...)
	}
	mustRun(t, call{args: append([]string{"shellcheck", "--shell=sh"}, scripts...)})
}

// appJSON is Heroku's schema of app.json, in which nothing else is allowed.
type appJSON struct {
	Name        string            `json:"name"`
	Description string            `json:"description"`
	Keywords    []string          `json:"keywords"`
	Website     string            `json:"website"`
	Repository  string            `json:"repository"`
	Logo        string            `json:"logo"`
	SuccessURL  string            `json:"success_url"`
	Scripts     map[string]string `json:"scripts"`
	Env         map[string]struct {
		Description string  `json:"description"`
		Value       *string `json:"value"`
		Required    *bool   `json:"required"`
		Generator   string  `json:"generator"`
	} `json:"env"`
	Formation map[string]struct {
		Quantity int    `json:"quantity"`
		Size     string `json:"size"`
	} `json:"formation"`
	Addons []struct {
		Plan string `json:"plan"`
		As   string `json:"as"`
	} `json:"addons"`
	Buildpacks []struct {
		URL string `json:"url"`
	} `json:"buildpacks"`
	Environments map[string]json.RawMessage `json:"environments"`
	Stack        string                     `json:"stack"`
	Image        string                     `json:"image"`
}

func readAppJSON(t *testing.T, folder string) appJSON {
	t.Helper()
	var app appJSON
	dec := json.NewDecoder(strings.NewReader(read(t, filepath.Join(folder, "app.json"))))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&app); err != nil {
		t.Fatalf("%s: %v", folder, err)
	}
	return app
}

func TestEveryAppJSONFollowsHerokusSchema(t *testing.T) {
	t.Parallel()
	folders := []string{root}
	for _, name := range []string{"go", "node", "python", "ruby"} {
		folders = append(folders, filepath.Join(root, "deploy/examples", name))
	}
	variable := regexp.MustCompile(`^[A-Z][A-Z0-9_]*$`)
	for _, folder := range folders {
		app := readAppJSON(t, folder)
		if len(app.Name) < 3 || len(app.Name) > 30 || app.Description == "" {
			t.Errorf("%s: name %q, description %q", folder, app.Name, app.Description)
		}
		for name, v := range app.Env {
			if !variable.MatchString(name) || v.Description == "" || v.Generator != "" && (v.Generator != "secret" || v.Value != nil) {
				t.Errorf("%s: env %s: %+v", folder, name, v)
			}
		}
		types := procfile(t, folder)
		for name := range app.Formation {
			if types[name] == "" {
				t.Errorf("%s: formation %s is not in the Procfile", folder, name)
			}
		}
		if len(app.Buildpacks) == 0 || app.Buildpacks[len(app.Buildpacks)-1].URL == "" {
			t.Errorf("%s: buildpacks %v", folder, app.Buildpacks)
		}
		if !strings.HasPrefix(types["web"], "exec ") {
			t.Errorf("%s: web: %s: without exec a shell keeps the signals", folder, types["web"])
		}
		if folder != root && (!strings.HasPrefix(types["web"], "exec postern run -- ") || !strings.Contains(app.Buildpacks[0].URL, "postern")) {
			t.Errorf("%s: the agent is not first: %s, %v", folder, types["web"], app.Buildpacks)
		}
	}
}

// Whoever presses the button must read, before anything is lost, what is not kept.
func TestTheRelaysAppJSONSaysWhatIsLost(t *testing.T) {
	t.Parallel()
	app := readAppJSON(t, root)
	for _, words := range []string{"TRIAL ONLY", "empties at every restart", "Webhooks not yet delivered, tokens and keys are lost", "Postgres add-on is set up for the version that uses it; this one does not"} {
		if !strings.Contains(app.Description, words) {
			t.Errorf("the description does not say %q", words)
		}
	}
	if len(app.Addons) != 1 || !strings.HasPrefix(app.Addons[0].Plan, "heroku-postgresql:") {
		t.Errorf("add-ons: %v", app.Addons)
	}
	if app.Env["POSTERN_MASTER_KEY"].Generator != "secret" {
		t.Error("POSTERN_MASTER_KEY is not generated")
	}
}

// heroku/go builds the commands into bin/ under the names of their folders.
func TestTheRelaysProcfileRunsAsOnHeroku(t *testing.T) {
	t.Parallel()
	build := t.TempDir()
	write(t, filepath.Join(build, "Procfile"), read(t, filepath.Join(root, "Procfile")))
	commands, err := filepath.Glob(filepath.Join(root, "cmd/*"))
	if err != nil || !slices.Contains(commands, filepath.Join(root, "cmd/postern-relay")) {
		t.Fatalf("commands: %q, %v", commands, err)
	}
	write(t, filepath.Join(build, "bin/postern-relay"), read(t, rig.Binary(t, "postern-relay")))

	env := []string{"DATABASE_URL=postgres://u:p@db.invalid/d", "DYNO=web.1"}
	for name, v := range readAppJSON(t, root).Env {
		switch {
		case v.Generator == "secret":
			env = append(env, name+"="+strings.Repeat("0f", 32))
		case v.Value != nil:
			env = append(env, name+"="+*v.Value)
		}
	}
	addr := rig.FreeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	env = append(env, "POSTERN_PUBLIC_URL=http://localhost:"+port, "POSTERN_APPS_DOMAIN=localhost", "POSTERN_ADMIN_LISTEN="+rig.FreeAddr(t))

	release := startDyno(t, build, "release", env...)
	if code := release.exitCode(t, awhile); code != 0 {
		t.Fatalf("release: exit code %d:\n%s", code, release.log)
	}
	web := startDyno(t, build, "web", append(env, "PORT="+port)...)
	rig.Eventually(t, rig.StartsWithin, "the relay is ready", func() error {
		resp, err := http.Get("http://" + addr + "/readyz")
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("/readyz answers %s", resp.Status)
		}
		return nil
	})
	web.await(t, "does not act on a variable", "DATABASE_URL")
	web.await(t, "events and keys are lost at a restart")
	web.broadcast(t, syscall.SIGTERM)
	if code := web.exitCode(t, awhile); code != 0 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
}

// The directives in go.mod, without which heroku/go would build every program of
// the module.
func TestGoModTellsHerokuWhatToBuild(t *testing.T) {
	t.Parallel()
	text := read(t, filepath.Join(root, "go.mod"))
	for _, line := range []string{"// +heroku install ./cmd/...", "// +heroku goVersion go1."} {
		if !strings.Contains(text, "\n"+line) {
			t.Errorf("go.mod has no line %s", line)
		}
	}
	out, err := exec.Command("go", "-C", root, "list", "-f", "{{.Name}} {{.Target}}", "./cmd/...").Output()
	if err != nil || !regexp.MustCompile(`(?m)^main .*/postern-relay$`).Match(out) {
		t.Errorf("go install makes %s (%v)", out, err)
	}
}
