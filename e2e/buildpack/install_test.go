//go:build linux

package buildpack

import (
	"path/filepath"
	"strings"
	"testing"
)

// The line for Render and Railway, as it stands in the README.
func TestTheOneLineInstalls(t *testing.T) {
	t.Parallel()
	release := publish(t)
	from := serve(t, release)
	_, rest, _ := strings.Cut(read(t, filepath.Join(root, "deploy/buildpack/README.md")), "<!-- one line: tested -->\n```sh\n")
	line, _, found := strings.Cut(rest, "\n```")
	if !found || strings.Contains(line, "\n") {
		t.Fatalf("the README has no such line: %q", line)
	}
	// The README is for amd64, as these platforms are.
	sum := sumOf([]byte(read(t, filepath.Join(release.store, version, "postern-linux-amd64"))))
	for _, test := range []struct {
		name, sum string
		code      int
	}{{"the right checksum", sum, 0}, {"a wrong one", strings.Repeat("5", 64), 1}} {
		dir := t.TempDir()
		r := run(t, call{args: []string{"sh", "-c", line}, dir: dir,
			env: []string{"POSTERN_AGENT_URL=" + from.url, "POSTERN_AGENT_VERSION=" + version, "POSTERN_AGENT_SHA256=" + test.sum}})
		if (r.code == 0) != (test.code == 0) {
			t.Errorf("%s: exit code %d:\n%s", test.name, r.code, r.output)
		}
		runs := run(t, call{args: []string{"sh", "-c", "test -x bin/postern"}, dir: dir}).code == 0
		if runs != (test.code == 0) {
			t.Errorf("%s: executable: %v", test.name, runs)
		}
	}
}

func TestTheInstallScriptStandsAlone(t *testing.T) {
	t.Parallel()
	release := publish(t)
	script := read(t, filepath.Join(release.classic, "install.sh"))
	env := []string{"POSTERN_AGENT_URL=" + release.url(), "POSTERN_AGENT_VERSION=" + version}
	shells := []string{"sh", "bash"}
	for _, shell := range shells {
		dir := t.TempDir()
		// Through a pipe there are no pinned checksums beside it.
		run(t, call{args: []string{shell}, dir: dir, env: env, stdin: script}).want(t, 1, "no checksum is known", "POSTERN_AGENT_SHA256")
		run(t, call{args: []string{shell}, dir: dir, env: append(env, "POSTERN_AGENT_SHA256="+release.sum), stdin: script}).want(t, 0, "installed")
		if sumOf([]byte(read(t, filepath.Join(dir, "bin/postern")))) != release.sum {
			t.Errorf("%s: another binary", shell)
		}
		// Beside its checksums it needs nothing, and replaces what is there.
		write(t, filepath.Join(dir, "tools/postern"), "an older one")
		run(t, call{args: []string{shell, filepath.Join(release.classic, "install.sh"), "tools"}, dir: dir, env: env[:1]}).want(t, 0, "installed")
		if sumOf([]byte(read(t, filepath.Join(dir, "tools/postern")))) != release.sum {
			t.Errorf("%s: the older one is still there", shell)
		}
	}
}

func TestAPublishedVersionIsNotPinnedAnew(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	copyTree(t, filepath.Join(root, "deploy/buildpack"), filepath.Join(dir, "buildpack"))
	sums := filepath.Join(dir, "buildpack/agent.sums")
	files := filepath.Join(dir, "files")
	pin := func(version string) result {
		return run(t, call{args: []string{"sh", filepath.Join(dir, "buildpack/pin"), version, files}})
	}
	pin("v1.0.0").want(t, 1, "postern-linux-amd64 is missing")
	write(t, filepath.Join(files, "postern-linux-amd64"), "a")
	write(t, filepath.Join(files, "postern-linux-arm64"), "b")
	pin("v1.0.0").want(t, 0, "v1.0.0 amd64 "+sumOf([]byte("a")), "v1.0.0 arm64 "+sumOf([]byte("b")))
	first := read(t, sums)
	pin("v1.0.0").want(t, 0, "pinned already, with these checksums")
	write(t, filepath.Join(files, "postern-linux-arm64"), "c")
	pin("v1.0.0").want(t, 1, "pinned already, with other checksums")
	if got := read(t, sums); got != first {
		t.Errorf("agent.sums is now\n%s", got)
	}
	pin("v1.1.0").want(t, 0)
	if got := mustRun(t, call{args: []string{"sh", filepath.Join(dir, "buildpack/install.sh"), "--pinned"}, env: []string{"POSTERN_AGENT_ARCH=aarch64"}}); got != "v1.1.0 arm64 "+sumOf([]byte("c"))+"\n" {
		t.Errorf("the newest for arm64 is %q", got)
	}
	pin("../v1").want(t, 2, "is not a version")
}
