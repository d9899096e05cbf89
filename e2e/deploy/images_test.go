package deploy

import (
	"context"
	"debug/elf"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

// dockerfile parses a Dockerfile as BuildKit does.
func dockerfile(t testing.TB, path string) []instructions.Stage {
	t.Helper()
	parsed, err := parser.Parse(strings.NewReader(read(t, path)))
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	for _, warning := range parsed.Warnings {
		t.Errorf("%s: %s", path, warning.Short)
	}
	stages, _, err := instructions.Parse(parsed.AST, nil)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return stages
}

// commands are the RUN lines of a stage, those which name word.
func commands(stage instructions.Stage, word string) []string {
	var found []string
	for _, c := range stage.Commands {
		if run, ok := c.(*instructions.RunCommand); ok && strings.Contains(strings.Join(run.CmdLine, " "), word) {
			found = append(found, strings.Join(run.CmdLine, " "))
		}
	}
	return found
}

// buildContext copies what a .dockerignore lets through.
func buildContext(t *testing.T, ignore string) string {
	t.Helper()
	patterns, err := ignorefile.ReadAll(strings.NewReader(read(t, ignore)))
	if err != nil {
		t.Fatal(err)
	}
	matcher, err := patternmatcher.New(patterns)
	if err != nil {
		t.Fatal(err)
	}
	to := t.TempDir()
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		if d.IsDir() {
			if name := d.Name(); name == ".git" || name == "node_modules" || name == "bin" {
				return filepath.SkipDir
			}
			return nil
		}
		if ignored, err := matcher.MatchesOrParentMatches(rel); ignored || err != nil || !d.Type().IsRegular() {
			return err
		}
		if err := os.MkdirAll(filepath.Join(to, filepath.Dir(rel)), 0o755); err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), data, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
	return to
}

// The commands of the Dockerfiles are run by hand, on what their .dockerignore
// lets through; a static binary comes out of each.
func TestTheImagesBuild(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		file     string
		binaries []string
	}{
		{"deploy/docker/Dockerfile", []string{"postern", "postern-relay"}},
		{"deploy/compose/shop.Dockerfile", []string{"postern", "shop"}},
	} {
		t.Run(filepath.Base(c.file), func(t *testing.T) {
			t.Parallel()
			dir, out := buildContext(t, c.file+".dockerignore"), t.TempDir()
			builds := commands(dockerfile(t, c.file)[0], "go build")
			if len(builds) == 0 {
				t.Fatal("no RUN go build")
			}
			for _, build := range builds {
				cmd := exec.CommandContext(t.Context(), "sh", "-c", swap(t, build, "/out/", out+"/"))
				cmd.Dir = dir
				cmd.Env = append(os.Environ(), "TARGETOS=linux", "TARGETARCH=amd64", "VERSION=v9.9.9", "GOFLAGS=", "GOWORK=off")
				if msg, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("%s: %v\n%s", build, err, msg)
				}
			}
			for _, name := range c.binaries {
				wantStatic(t, filepath.Join(out, name))
			}
			if c.file == "deploy/docker/Dockerfile" {
				version, err := exec.CommandContext(t.Context(), filepath.Join(out, "postern-relay"), "--version").Output()
				if err != nil || !strings.Contains(string(version), "v9.9.9") {
					t.Errorf("--version of what was built: %q, %v", version, err)
				}
			}
		})
	}
}

// wantStatic checks that a binary asks for no dynamic linker, which is in no image.
func wantStatic(t *testing.T, path string) {
	t.Helper()
	binary, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer binary.Close()
	for _, prog := range binary.Progs {
		if prog.Type == elf.PT_INTERP {
			t.Errorf("%s needs a dynamic linker", filepath.Base(path))
		}
	}
}

func TestTheDockerfile(t *testing.T) {
	t.Parallel()
	stages := dockerfile(t, "deploy/docker/Dockerfile")
	var names []string
	for _, s := range stages {
		names = append(names, s.Name)
	}
	if want := []string{"build", "binary", "agent", "relay"}; !slices.Equal(names, want) {
		t.Fatalf("stages %v, want %v; the last one is what is built without --target", names, want)
	}
	for _, s := range stages[2:] {
		var user, entry, healthcheck string
		for _, c := range s.Commands {
			switch c := c.(type) {
			case *instructions.UserCommand:
				user = c.User
			case *instructions.EntrypointCommand:
				entry = c.CmdLine[0]
				if c.PrependShell {
					t.Errorf("%s: the entry point goes through a shell, which is not there", s.Name)
				}
			case *instructions.HealthCheckCommand:
				healthcheck = "there is one"
			case *instructions.VolumeCommand:
				t.Errorf("%s: Railway refuses VOLUME", s.Name)
			}
		}
		if user != "65532:65532" && user != "${RUN_AS}" {
			t.Errorf("%s runs as %q", s.Name, user)
		}
		if base := filepath.Base(entry); base != map[string]string{"agent": "postern", "relay": "postern-relay"}[s.Name] {
			t.Errorf("%s starts %q", s.Name, entry)
		}
		if healthcheck != "" {
			t.Errorf("%s: a HEALTHCHECK has nothing to call in this image", s.Name)
		}
	}
	for _, file := range []string{"deploy/docker/Dockerfile", "deploy/compose/shop.Dockerfile"} {
		if strings.Contains(read(t, file), "type=cache") {
			t.Errorf("%s: Railway refuses cache mounts without its own ids", file)
		}
		wantGo(t, file)
	}
}

// wantGo checks that an image builds with the Go that go.mod asks for.
func wantGo(t *testing.T, file string) {
	t.Helper()
	mod := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(read(t, "go.mod"))
	image := regexp.MustCompile(`golang:(\d+\.\d+)`).FindStringSubmatch(read(t, file))
	if mod == nil || image == nil || mod[1] != image[1] {
		t.Errorf("%s builds with %v, go.mod wants %v", file, image, mod)
	}
}

// The Compose file is loaded as Docker Compose does: against its schema, with the
// variables of the example.
func TestTheComposeFile(t *testing.T) {
	t.Parallel()
	env := types.NewMapping(settings(t, read(t, "deploy/compose/env.example")))
	dir, err := filepath.Abs(filepath.Join(root, "deploy/compose"))
	if err != nil {
		t.Fatal(err)
	}
	load := func(env types.Mapping) (*types.Project, error) {
		return loader.LoadWithContext(context.Background(), types.ConfigDetails{
			WorkingDir:  dir,
			ConfigFiles: []types.ConfigFile{{Filename: filepath.Join(dir, "compose.yaml")}},
			Environment: env,
		})
	}
	project, err := load(env)
	if err != nil {
		t.Fatal(err)
	}
	for name, service := range project.Services {
		if service.Build != nil {
			for _, path := range []string{service.Build.Context, filepath.Join(service.Build.Context, service.Build.Dockerfile)} {
				if _, err := os.Stat(path); err != nil {
					t.Errorf("%s is built from: %v", name, err)
				}
			}
			if target := service.Build.Target; target != "" && !slices.ContainsFunc(dockerfile(t, "deploy/docker/Dockerfile"), func(s instructions.Stage) bool { return s.Name == target }) {
				t.Errorf("%s is built as %q, which the Dockerfile has not", name, target)
			}
		}
		for _, v := range service.Volumes {
			if v.Type == "bind" {
				if _, err := os.Stat(v.Source); err != nil {
					t.Errorf("%s mounts: %v", name, err)
				}
			}
		}
		for key, value := range service.Environment {
			if value != nil && strings.Contains(*value, "example.com") && strings.HasPrefix(key, "POSTERN_PUBLIC") && *value != "https://relay.example.com" {
				t.Errorf("%s: %s is %q", name, key, *value)
			}
		}
	}
	if subnet := project.Networks["postern"].Ipam.Config[0].Subnet; *project.Services["relay"].Environment["POSTERN_TRUSTED_PROXIES"] != subnet {
		t.Errorf("the relay does not trust %s, where Caddy is", subnet)
	}
	if _, err := load(nil); err == nil {
		t.Error("without the names of the example it is loaded all the same")
	}
}

// Caddy takes the other two files, with names filled in.
func TestCaddyLikesTheOtherCaddyfiles(t *testing.T) {
	t.Parallel()
	caddy := program(t, "caddy", "caddy")
	dir := t.TempDir()
	for name, text := range map[string]string{
		"compose":   read(t, "deploy/compose/Caddyfile"),
		"terraform": swap(t, read(t, "deploy/terraform/Caddyfile.tftpl"), "${email}", "ops@example.com", `${join(", ", hosts)}`, "relay.example.com, shop.apps.example.com"),
	} {
		config := filepath.Join(dir, name)
		write(t, config, text)
		cmd := exec.CommandContext(t.Context(), caddy, "validate", "--adapter", "caddyfile", "--config", config)
		cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir,
			"RELAY_HOST=relay.example.com", "APP_HOSTS=shop.apps.example.com, blog.apps.example.com", "ACME_EMAIL=ops@example.com")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}
