//go:build linux

package buildpack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/posternhq/postern/e2e/rig"
)

func TestMain(m *testing.M) { os.Exit(rig.Main(m)) }

const (
	root    = "../.."
	version = "v9.8.7"
)

// awhile is how long a script or a process may take on a busy machine.
const awhile = 30 * time.Second

// published is a release as it would be made: binaries on a server's disk, and
// buildpacks in which their checksums are pinned.
type published struct {
	store   string // holds <version>/postern-linux-<arch>
	classic string // the classic buildpack, unpacked
	cnb     string // the Cloud Native one
	sum     string // of the binary for this machine
}

// publish makes a release of the agent that is built beside these tests.
func publish(t *testing.T) published {
	t.Helper()
	dir := t.TempDir()
	p := published{store: filepath.Join(dir, "store"), classic: filepath.Join(dir, "classic"), cnb: filepath.Join(dir, "dist/postern-cnb")}
	binary, err := os.ReadFile(rig.Binary(t, "postern"))
	if err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(p.store, version)
	for _, arch := range []string{"amd64", "arm64"} {
		text := binary
		if arch != runtime.GOARCH {
			text = []byte("a program of another architecture\n")
		}
		write(t, filepath.Join(folder, "postern-linux-"+arch), string(text))
	}
	p.sum = sumOf(binary)
	// In a copy, because pin writes into its own folder.
	source := filepath.Join(dir, "source")
	copyTree(t, filepath.Join(root, "deploy/buildpack"), filepath.Join(source, "buildpack"))
	copyTree(t, filepath.Join(root, "deploy/cnb"), filepath.Join(source, "cnb"))
	mustRun(t, call{args: []string{"sh", filepath.Join(source, "buildpack/pin"), version, folder}})
	mustRun(t, call{args: []string{"sh", filepath.Join(source, "buildpack/package"), version, filepath.Join(dir, "dist")}})
	if err := os.Mkdir(p.classic, 0o755); err != nil {
		t.Fatal(err)
	}
	mustRun(t, call{args: []string{"tar", "-xzf", filepath.Join(dir, "dist/postern-buildpack.tgz"), "-C", p.classic}})
	return p
}

func (p published) url() string { return "file://" + p.store }

// compile runs the classic buildpack, config being the app's config vars.
func (p published) compile(t *testing.T, build, cache string, config map[string]string, env ...string) result {
	t.Helper()
	vars := t.TempDir()
	for name, value := range config {
		write(t, filepath.Join(vars, name), value)
	}
	return run(t, call{args: []string{filepath.Join(p.classic, "bin/compile"), build, cache, vars}, env: env})
}

// call is a command to run to its end.
type call struct {
	args  []string
	dir   string
	env   []string // besides PATH and HOME
	stdin string
}

type result struct {
	output string // both streams
	code   int
}

func run(t *testing.T, c call) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*awhile)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, c.args[0], c.args[1:]...)
	cmd.WaitDelay = time.Second // its own children may hold the pipe open
	cmd.Dir, cmd.Stdin = c.dir, strings.NewReader(c.stdin)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "LANG=C.UTF-8"}, c.env...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil && (cmd.ProcessState == nil || ctx.Err() != nil) {
		t.Fatalf("%q: %v; output:\n%s", c.args, err, &out)
	}
	return result{out.String(), cmd.ProcessState.ExitCode()}
}

func mustRun(t *testing.T, c call) string {
	t.Helper()
	r := run(t, c)
	if r.code != 0 {
		t.Fatalf("%q: exit code %d:\n%s", c.args, r.code, r.output)
	}
	return r.output
}

// want checks how a command ended and what it said.
func (r result) want(t *testing.T, code int, words ...string) {
	t.Helper()
	if (r.code == 0) != (code == 0) {
		t.Errorf("exit code %d, expected %d", r.code, code)
	}
	for _, word := range words {
		if !strings.Contains(r.output, word) {
			t.Errorf("%q is not said", word)
		}
	}
	if t.Failed() {
		t.Fatalf("output:\n%s", r.output)
	}
}

func sumOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func exists(file string) bool {
	_, err := os.Lstat(file)
	return err == nil
}

func copyTree(t *testing.T, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(file string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(from, file)
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		write(t, filepath.Join(to, name), read(t, file))
		return os.Chmod(filepath.Join(to, name), info.Mode())
	})
	if err != nil {
		t.Fatal(err)
	}
}

// need skips the test when a program is missing, and says where it comes from.
func need(t *testing.T, program, debian string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Skipf("%s is not installed (Debian: apt-get install %s)", program, debian)
	}
}
