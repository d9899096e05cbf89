package deploy

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/posternhq/postern/e2e/rig"
)

func TestShellcheckLikesEveryScript(t *testing.T) {
	t.Parallel()
	shellcheck := program(t, "shellcheck", "shellcheck")
	var scripts []string
	for _, file := range deployFiles(t) {
		if strings.HasSuffix(file, ".sh") || strings.HasPrefix(read(t, file), "#!/bin/sh") {
			scripts = append(scripts, filepath.Join(root, file))
		}
	}
	if len(scripts) < 3 {
		t.Fatalf("found the scripts %v, expected three at least", scripts)
	}
	if out, err := exec.CommandContext(t.Context(), shellcheck, scripts...).CombinedOutput(); err != nil {
		t.Errorf("shellcheck: %v\n%s", err, out)
	}
	for _, script := range scripts {
		if info, err := os.Stat(script); err != nil || info.Mode()&0o111 == 0 {
			t.Errorf("%s cannot be executed", script)
		}
	}
}

// The installer of the server takes the binary that was meant, and no other.
func TestTheInstallerChecksWhatItFetches(t *testing.T) {
	t.Parallel()
	program(t, "curl", "curl")
	binary, err := os.ReadFile(rig.Binary(t, "postern-relay"))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/good":
			w.Write(binary)
		case "/other":
			w.Write(append(bytes.Clone(binary), 'x')) // it would run as well
		default:
			http.NotFound(w, r)
		}
	}))
	defer server.Close()
	for _, c := range []struct {
		path string
		good bool
	}{{"/good", true}, {"/other", false}, {"/missing", false}} {
		dir := t.TempDir()
		target := filepath.Join(dir, "postern-relay")
		cmd := exec.CommandContext(t.Context(), filepath.Join(root, "deploy/terraform/install.sh"), server.URL+c.path, fmt.Sprintf("%x", sha256.Sum256(binary)))
		cmd.Env = append(os.Environ(), "TARGET="+target, "NO_PROXY=127.0.0.1")
		out, err := cmd.CombinedOutput()
		if (err == nil) != c.good {
			t.Errorf("%s: %v\n%s", c.path, err, out)
		}
		left, _ := os.ReadDir(dir)
		if want := map[bool]int{true: 1}[c.good]; len(left) != want {
			t.Errorf("%s: %d files are left, want %d", c.path, len(left), want)
		}
		if c.good {
			if out, err := exec.CommandContext(t.Context(), target, "--version").Output(); err != nil {
				t.Errorf("the installed binary does not run: %v %s", err, out)
			}
		}
	}
}

// install.sh puts everything where the unit looks for it, and changes nothing
// that was configured.
func TestTheUnitsInstaller(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	run := func() {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), filepath.Join(root, "deploy/systemd/install.sh"), rig.Binary(t, "postern-relay"))
		cmd.Env = append(os.Environ(), "DESTDIR="+dir)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("install.sh: %v\n%s", err, out)
		}
	}
	run()
	for _, name := range []string{"usr/local/bin/postern-relay", "usr/lib/sysusers.d/postern.conf", "etc/systemd/system/postern-relay.service", "etc/postern/postern.yaml"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Errorf("not installed: %v", err)
		}
	}
	env := filepath.Join(dir, "etc/postern/relay.env")
	if info, err := os.Stat(env); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("relay.env, which has secrets: %v, %v", info.Mode(), err)
	}
	write(t, env, "POSTERN_PUBLIC_URL=https://mine.example\n")
	run()
	if got, _ := os.ReadFile(env); string(got) != "POSTERN_PUBLIC_URL=https://mine.example\n" {
		t.Errorf("a second install changed the settings: %s", got)
	}
	out, err := exec.CommandContext(t.Context(), rig.Binary(t, "postern-relay"), "manifest", "validate", filepath.Join(dir, "etc/postern/postern.yaml")).CombinedOutput()
	if err != nil {
		t.Errorf("the manifest to begin with: %v\n%s", err, out)
	}
}
