//go:build linux

package buildpack

import (
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/posternhq/postern/e2e/rig"
)

// server is where releases are, on the network; it counts what it is asked.
type server struct {
	url   string
	asked atomic.Int64
	// answer, when it is not nil, may answer the nth request instead, 1 being the
	// first; it returns false when it has not.
	answer func(w http.ResponseWriter, n int64) bool
}

func serve(t *testing.T, release published) *server {
	t.Helper()
	s := &server{}
	files := http.FileServer(http.Dir(release.store))
	s.url = "http://" + rig.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := s.asked.Add(1)
		if s.answer == nil || !s.answer(w, n) {
			files.ServeHTTP(w, r)
		}
	}))
	return s
}

func TestDetectAndReleaseSayWhatAPlatformExpects(t *testing.T) {
	t.Parallel()
	release := publish(t)
	if got := mustRun(t, call{args: []string{filepath.Join(release.classic, "bin/detect"), t.TempDir()}}); got != "Postern agent\n" {
		t.Errorf("detect prints %q", got)
	}
	if got := mustRun(t, call{args: []string{filepath.Join(release.classic, "bin/release"), t.TempDir()}}); got != "--- {}\n" {
		t.Errorf("release prints %q", got)
	}
}

// The build that a push starts, and the one after it, which need not download.
func TestCompileInstallsThePinnedAgentAndCachesIt(t *testing.T) {
	t.Parallel()
	release := publish(t)
	from := serve(t, release)
	config, cache := map[string]string{"POSTERN_AGENT_URL": from.url + "/\n"}, t.TempDir()
	for round, test := range []struct {
		says  string
		asked int64
	}{{"downloading " + from.url + "/" + version, 1}, {"from the cache", 1}} {
		build := t.TempDir()
		write(t, filepath.Join(build, "Procfile"), "web: exec postern run -- node server.js\n")
		release.compile(t, build, cache, config).want(t, 0, test.says, release.sum)
		if got := from.asked.Load(); got != test.asked {
			t.Errorf("build %d: the server was asked %d times, expected %d", round+1, got, test.asked)
		}
		if sumOf([]byte(read(t, filepath.Join(build, ".postern/bin/postern")))) != release.sum {
			t.Errorf("build %d: the binary is not the one that was released", round+1)
		}
		says := mustRun(t, call{args: []string{"bash", "-c", `source "$HOME/.profile.d/postern.sh"; postern --version`}, env: []string{"HOME=" + build}})
		if !strings.HasPrefix(says, "postern ") {
			t.Errorf("build %d: postern --version prints %q", round+1, says)
		}
		if got := read(t, filepath.Join(build, "Procfile")); got != "web: exec postern run -- node server.js\n" {
			t.Errorf("build %d: the Procfile was changed: %q", round+1, got)
		}
	}

	cached, err := filepath.Glob(filepath.Join(cache, "postern/*"))
	if err != nil || len(cached) != 1 {
		t.Fatalf("the cache has %q", cached)
	}
	write(t, cached[0], "something else")
	release.compile(t, t.TempDir(), cache, config).want(t, 0, "downloading")
	if got := from.asked.Load(); got != 2 {
		t.Errorf("a damaged cache: the server was asked %d times, expected 2", got)
	}
}

// A builder that gives no ENV_DIR, and nothing but variables.
func TestCompileTakesVariablesOfTheEnvironmentToo(t *testing.T) {
	t.Parallel()
	release := publish(t)
	build := t.TempDir()
	run(t, call{args: []string{filepath.Join(release.classic, "bin/compile"), build, t.TempDir()}, env: []string{"POSTERN_AGENT_URL=" + release.url()}}).
		want(t, 0, "installed", "No process of the Procfile is wrapped yet")
	if !exists(filepath.Join(build, ".postern/bin/postern")) {
		t.Error("nothing was installed")
	}
}

// Every refusal ends the build, says what to do, and leaves no binary behind.
func TestCompileFailsWithWhatToDo(t *testing.T) {
	t.Parallel()
	release := publish(t)
	closed := rig.FreeAddr(t)
	other := strings.Repeat("5", 64)
	for _, test := range []struct {
		name   string
		config map[string]string
		env    []string
		answer func(w http.ResponseWriter, n int64) bool
		asked  int64
		says   []string
	}{
		{name: "another file is at the place", asked: 1,
			answer: func(w http.ResponseWriter, _ int64) bool { fmt.Fprint(w, "#!/bin/sh\n"); return true },
			says:   []string{"checksum is wrong", "expected sha256 " + release.sum, sumOf([]byte("#!/bin/sh\n")), "Nothing was installed"}},
		{name: "the given checksum is another one", config: map[string]string{"POSTERN_AGENT_SHA256": other}, asked: 1,
			says: []string{"checksum is wrong", "expected sha256 " + other, release.sum}},
		{name: "a checksum that is none", config: map[string]string{"POSTERN_AGENT_SHA256": "latest"},
			says: []string{"is not a SHA-256", "64 hexadecimal digits"}},
		{name: "a version without a checksum", config: map[string]string{"POSTERN_AGENT_VERSION": "v1.0.0"},
			says: []string{"no checksum is known for postern v1.0.0", version + " (amd64)", "POSTERN_AGENT_SHA256"}},
		{name: "a version that is a path", config: map[string]string{"POSTERN_AGENT_VERSION": "../../etc"},
			says: []string{"is not a version"}},
		{name: "the file is not there", asked: 1,
			answer: func(w http.ResponseWriter, _ int64) bool { w.WriteHeader(http.StatusNotFound); return true },
			says:   []string{"could not be downloaded", "404", "POSTERN_AGENT_URL", "stays as it is"}},
		{name: "the server is in trouble", asked: 3,
			answer: func(w http.ResponseWriter, _ int64) bool { w.WriteHeader(http.StatusBadGateway); return true },
			says:   []string{"trying again", "could not be downloaded", "502"}},
		{name: "nothing listens there", config: map[string]string{"POSTERN_AGENT_URL": "http://" + closed},
			says: []string{"trying again", "could not be downloaded", closed}},
		{name: "the host has no name", config: map[string]string{"POSTERN_AGENT_URL": "http://mirror.invalid"},
			says: []string{"could not be downloaded", "mirror.invalid", "the build may reach that host"}},
		{name: "no file on this disk", config: map[string]string{"POSTERN_AGENT_URL": "file:///nowhere"},
			says: []string{"could not be downloaded", "file:///nowhere"}},
		{name: "an address of another kind", config: map[string]string{"POSTERN_AGENT_URL": "ftp://mirror.invalid"},
			says: []string{"expected http://, https:// or file://"}},
		{name: "a redirect to a file of this disk", asked: 3,
			answer: func(w http.ResponseWriter, _ int64) bool {
				w.Header().Set("Location", "file://"+release.store+"/"+version+"/postern-linux-amd64")
				w.WriteHeader(http.StatusFound)
				return true
			},
			says: []string{"could not be downloaded"}},
		{name: "an unknown architecture", env: []string{"POSTERN_AGENT_ARCH=riscv64"},
			says: []string{"no agent for the architecture riscv64", "amd64", "arm64"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			from := serve(t, release)
			from.answer = test.answer
			config := map[string]string{"POSTERN_AGENT_URL": from.url}
			maps.Copy(config, test.config)
			build, cache := t.TempDir(), t.TempDir()
			release.compile(t, build, cache, config, test.env...).want(t, 1, append(test.says, "!     ")...)
			if got := from.asked.Load(); got != test.asked {
				t.Errorf("the server was asked %d times, expected %d", got, test.asked)
			}
			left, _ := filepath.Glob(filepath.Join(build, ".postern/bin/*"))
			kept, _ := filepath.Glob(filepath.Join(cache, "postern/*"))
			if len(left) > 0 || len(kept) > 0 {
				t.Errorf("left behind: %q, in the cache: %q", left, kept)
			}
		})
	}
}

func TestADownloadIsTriedAgain(t *testing.T) {
	t.Parallel()
	release := publish(t)
	from := serve(t, release)
	from.answer = func(w http.ResponseWriter, n int64) bool {
		switch n {
		case 1: // the connection breaks in the middle
			w.Header().Set("Content-Length", "1000000")
			fmt.Fprint(w, "half")
			return true
		case 2:
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		}
		return false
	}
	release.compile(t, t.TempDir(), t.TempDir(), map[string]string{"POSTERN_AGENT_URL": from.url}).want(t, 0, "trying again", "installed")
	if got := from.asked.Load(); got != 3 {
		t.Errorf("the server was asked %d times, expected 3", got)
	}
}

// The address of a mirror may have a password in it, and build logs are read by many.
func TestAMirrorsPasswordIsNotShown(t *testing.T) {
	t.Parallel()
	release := publish(t)
	from := serve(t, release)
	address := strings.Replace(from.url, "http://", "http://ci:s3cr3t@", 1)
	good := release.compile(t, t.TempDir(), t.TempDir(), map[string]string{"POSTERN_AGENT_URL": address})
	good.want(t, 0, "installed", "://…@")
	bad := release.compile(t, t.TempDir(), t.TempDir(), map[string]string{"POSTERN_AGENT_URL": address, "POSTERN_AGENT_SHA256": strings.Repeat("5", 64)})
	bad.want(t, 1, "checksum is wrong")
	gone := release.compile(t, t.TempDir(), t.TempDir(), map[string]string{"POSTERN_AGENT_URL": address + "/nowhere"})
	gone.want(t, 1, "could not be downloaded")
	if all := good.output + bad.output + gone.output; strings.Contains(all, "s3cr3t") {
		t.Errorf("the password is shown:\n%s", all)
	}
}

// A server that accepts and says nothing must not hold a build for ever. The limit
// is made short for the test; that there is one is what it shows.
func TestASilentServerEndsTheBuild(t *testing.T) {
	t.Parallel()
	release := publish(t)
	script := filepath.Join(release.classic, "install.sh")
	text := read(t, script)
	short := strings.Replace(text, "TRANSFER=60 ", "TRANSFER=1 ", 1)
	if short == text {
		t.Fatal("install.sh has no limit of the name that this test knows")
	}
	write(t, script, short)
	silent := "http://" + rig.ServeRaw(t, func(conn net.Conn) { <-t.Context().Done() })
	began := time.Now()
	release.compile(t, t.TempDir(), t.TempDir(), map[string]string{"POSTERN_AGENT_URL": silent}).want(t, 1, "could not be downloaded", "timed out")
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
}

// What is in the sources today: no release, and a message that says so.
func TestWithoutAReleaseTheMessageSaysSo(t *testing.T) {
	t.Parallel()
	sums := read(t, filepath.Join(root, "deploy/buildpack/agent.sums"))
	for line := range strings.Lines(sums) {
		if !strings.HasPrefix(line, "#") {
			t.Skip("a release is pinned")
		}
	}
	build := t.TempDir()
	run(t, call{args: []string{filepath.Join(root, "deploy/buildpack/bin/compile"), build, t.TempDir(), t.TempDir()}}).
		want(t, 1, "there is no version to install", "No release is pinned in agent.sums", "README.md")
}

// Somebody's own build, before there are releases.
func TestAnOwnBuildIsInstalledByItsChecksum(t *testing.T) {
	t.Parallel()
	release := publish(t)
	write(t, filepath.Join(release.classic, "agent.sums"), "")
	build := t.TempDir()
	release.compile(t, build, t.TempDir(), map[string]string{
		"POSTERN_AGENT_URL": release.url(), "POSTERN_AGENT_VERSION": version, "POSTERN_AGENT_SHA256": strings.ToUpper(release.sum),
	}).want(t, 0, "installed")
	info, err := os.Stat(filepath.Join(build, ".postern/bin/postern"))
	if err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("installed: %v, %v", info, err)
	}
}

// The script is sourced by whatever shell starts a process, also one that somebody
// made strict, and again in a session inside the dyno.
func TestTheProfileScriptOnlyExtendsThePath(t *testing.T) {
	t.Parallel()
	release := publish(t)
	build := t.TempDir()
	release.compile(t, build, t.TempDir(), map[string]string{"POSTERN_AGENT_URL": release.url()}).want(t, 0)
	script := filepath.Join(build, ".profile.d/postern.sh")
	for _, shell := range [][]string{{"bash"}, {"bash", "-eu"}, {"sh"}, {"sh", "-eu"}, {"bash", "--posix", "-eu"}} {
		for _, test := range []struct{ name, before, want string }{
			{"as it is", `PATH=/usr/bin:/bin; HOME=/app`, "/app/.postern/bin:/usr/bin:/bin"},
			{"twice", `PATH=/usr/bin:/bin; HOME=/app; . "$1"`, "/app/.postern/bin:/usr/bin:/bin"},
			{"without a home", `PATH=/usr/bin:/bin; unset HOME`, "/app/.postern/bin:/usr/bin:/bin"},
			{"without a path", `unset PATH; HOME=/app`, "/app/.postern/bin"},
			{"a home with a blank", `PATH=/bin; HOME="/a b"`, "/a b/.postern/bin:/bin"},
		} {
			t.Run(strings.Join(shell, " ")+", "+test.name, func(t *testing.T) {
				t.Parallel()
				// Only builtins: there is not always a PATH.
				program := test.before + `
names() { set | while IFS== read -r name _; do case $name in PATH | before | after | *[!A-Za-z0-9_]*) ;; *) printf '%s ' "$name" ;; esac; done; }
before= after=
before=$(names)
. "$1"
after=$(names)
[ "$before" = "$after" ] || echo "variables were made: $before / $after"
echo "PATH=$PATH"`
				args := append(append([]string{}, shell...), "-c", program, "shell", script)
				if got := mustRun(t, call{args: args}); got != "PATH="+test.want+"\n" {
					t.Errorf("printed %q, expected PATH=%s", got, test.want)
				}
			})
		}
	}
}
