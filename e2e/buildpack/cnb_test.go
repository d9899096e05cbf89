//go:build linux

package buildpack

import (
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
)

// lifecycle is what calls a Cloud Native Buildpack: it lays out the folders and
// carries a layer's metadata, and nothing else of it, from one build to the next.
type lifecycle struct {
	buildpack string
	app       string
	layers    string
	platform  string
}

func newLifecycle(t *testing.T, buildpack string, env map[string]string) *lifecycle {
	t.Helper()
	l := &lifecycle{buildpack: buildpack, app: t.TempDir(), layers: t.TempDir(), platform: t.TempDir()}
	for name, value := range env {
		write(t, filepath.Join(l.platform, "env", name), value)
	}
	return l
}

func (l *lifecycle) env(more ...string) []string {
	return append([]string{
		"CNB_BUILDPACK_DIR=" + l.buildpack, "CNB_PLATFORM_DIR=" + l.platform, "CNB_LAYERS_DIR=" + l.layers,
		"CNB_TARGET_OS=linux", "CNB_TARGET_ARCH=" + runtime.GOARCH,
	}, more...)
}

func (l *lifecycle) detect(t *testing.T) (plan string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "plan.toml")
	write(t, file, "")
	mustRun(t, call{args: []string{filepath.Join(l.buildpack, "bin/detect"), l.platform, file}, dir: l.app, env: l.env("CNB_BUILD_PLAN_PATH=" + file)})
	return read(t, file)
}

func (l *lifecycle) build(t *testing.T, more ...string) result {
	t.Helper()
	plan := filepath.Join(t.TempDir(), "plan.toml")
	write(t, plan, "[[entries]]\nname = \"postern\"\n")
	return run(t, call{args: []string{filepath.Join(l.buildpack, "bin/build"), l.layers, l.platform, plan}, dir: l.app,
		env: l.env(append(more, "CNB_BP_PLAN_PATH="+plan)...)})
}

// restore is what happens between two builds to a layer for launch only: its
// contents stay in the image, and its metadata come back without the types.
func (l *lifecycle) restore(t *testing.T) {
	t.Helper()
	toml := filepath.Join(l.layers, "agent.toml")
	_, metadata, ok := strings.Cut(read(t, toml), "[metadata]\n")
	if !ok {
		t.Fatalf("the layer has no metadata:\n%s", read(t, toml))
	}
	l.layers = t.TempDir()
	write(t, filepath.Join(l.layers, "agent.toml"), "[metadata]\n"+metadata)
}

var layerTOML = regexp.MustCompile(`^\[types\]
launch = true
build = false
cache = false

\[metadata\]
version = "` + regexp.QuoteMeta(version) + `"
arch = "(amd64|arm64)"
sha256 = "([0-9a-f]{64})"
$`)

func (l *lifecycle) wantLayer(t *testing.T, sum string) {
	t.Helper()
	got := read(t, filepath.Join(l.layers, "agent.toml"))
	if parts := layerTOML.FindStringSubmatch(got); parts == nil || parts[2] != sum {
		t.Errorf("agent.toml, expected with checksum %s:\n%s", sum, got)
	}
}

func TestTheCloudNativeBuildpackMakesALaunchLayer(t *testing.T) {
	t.Parallel()
	release := publish(t)
	from := serve(t, release)
	l := newLifecycle(t, release.cnb, map[string]string{"POSTERN_AGENT_URL": from.url})
	if plan := l.detect(t); plan != "[[provides]]\nname = \"postern\"\n\n[[requires]]\nname = \"postern\"\n" {
		t.Errorf("build plan:\n%s", plan)
	}

	l.build(t).want(t, 0, "installed")
	l.wantLayer(t, release.sum)
	binary := filepath.Join(l.layers, "agent/bin/postern")
	if sumOf([]byte(read(t, binary))) != release.sum {
		t.Error("the binary is not the one that was released")
	}
	if says := mustRun(t, call{args: []string{binary, "--version"}}); !strings.HasPrefix(says, "postern ") {
		t.Errorf("postern --version prints %q", says)
	}
	if entries, _ := os.ReadDir(l.layers); len(entries) != 2 {
		t.Errorf("the layers' folder has %v", entries)
	}

	l.restore(t)
	l.build(t).want(t, 0, "in the image's layer already")
	l.wantLayer(t, release.sum)
	if exists(filepath.Join(l.layers, "agent")) {
		t.Error("the layer was made again, and would replace the image's")
	}
	if got := from.asked.Load(); got != 1 {
		t.Errorf("the server was asked %d times for two builds, expected 1", got)
	}

	// Another binary is wanted.
	l.restore(t)
	toml := filepath.Join(l.layers, "agent.toml")
	write(t, toml, strings.Replace(read(t, toml), release.sum, strings.Repeat("0", 64), 1))
	l.build(t).want(t, 0, "installed")
	l.wantLayer(t, release.sum)
	if !exists(filepath.Join(l.layers, "agent/bin/postern")) {
		t.Error("the old layer was kept")
	}
}

func TestTheCloudNativeBuildpackBuildsForTheTarget(t *testing.T) {
	t.Parallel()
	release := publish(t)
	other := map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]
	l := newLifecycle(t, release.cnb, map[string]string{"POSTERN_AGENT_URL": release.url()})
	l.build(t, "CNB_TARGET_ARCH="+other).want(t, 0, other)
	l.wantLayer(t, sumOf([]byte("a program of another architecture\n")))
}

func TestTheCloudNativeBuildpackFailsWithoutALayer(t *testing.T) {
	t.Parallel()
	release := publish(t)
	l := newLifecycle(t, release.cnb, map[string]string{"POSTERN_AGENT_URL": release.url(), "POSTERN_AGENT_SHA256": strings.Repeat("5", 64)})
	l.build(t).want(t, 1, "checksum is wrong")
	if entries, _ := os.ReadDir(l.layers); len(entries) != 0 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestTheCloudNativeBuildpackWrapsWhenAsked(t *testing.T) {
	t.Parallel()
	release := publish(t)
	l := newLifecycle(t, release.cnb, map[string]string{"POSTERN_AGENT_URL": release.url(), "POSTERN_AUTOWRAP": "1"})
	procfile := filepath.Join(l.app, "Procfile")
	write(t, procfile, "web: node server.js\n")
	l.build(t).want(t, 0, "+web: exec postern run -- node server.js")
	if got := read(t, procfile); got != "web: exec postern run -- node server.js\n" {
		t.Errorf("the Procfile is now %q", got)
	}
}

func TestTheDescriptorIsWhatALifecycleReads(t *testing.T) {
	t.Parallel()
	release := publish(t)
	got := read(t, filepath.Join(release.cnb, "buildpack.toml"))
	for _, line := range []string{`api = "0.10"`, `id = "posternhq/postern"`, `version = "` + strings.TrimPrefix(version, "v") + `"`} {
		if !strings.Contains(got, "\n"+line+"\n") {
			t.Errorf("buildpack.toml has no line %s:\n%s", line, got)
		}
	}
	if strings.Count(got, "[[targets]]") != 2 {
		t.Errorf("buildpack.toml:\n%s", got)
	}
}
