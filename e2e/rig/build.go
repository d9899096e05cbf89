package rig

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// buildsWithin is generous: the first build with the race detector compiles the
// database from scratch.
const buildsWithin = 10 * time.Minute

// built is what one run of the tests builds, once.
var built struct {
	once sync.Once
	dir  string // removed by Main
	err  error
}

// Race reports whether the binaries carry the race detector
// (POSTERN_E2E_RACE=1). They are slower and larger then, and a data race fails
// the test that owns the process.
func Race() bool { return os.Getenv("POSTERN_E2E_RACE") == "1" }

// Binary is the path of postern or postern-relay, built from the sources beside
// these tests.
func Binary(t testing.TB, name string) string {
	t.Helper()
	built.once.Do(build)
	if built.err != nil {
		t.Fatal(built.err)
	}
	return filepath.Join(built.dir, name)
}

// binVariable names a folder with binaries that are there already; tests that start
// themselves again inside a network namespace have it.
const binVariable = "POSTERN_E2E_BIN"

// Again is the environment in which a copy of this test process finds the binaries.
func Again(t testing.TB) []string {
	t.Helper()
	return []string{binVariable + "=" + filepath.Dir(Binary(t, "postern"))}
}

func build() {
	if dir := os.Getenv(binVariable); dir != "" {
		built.dir = dir
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), buildsWithin)
	defer cancel()
	mod, err := goTool(ctx, "", nil, "env", "GOMOD") // ours, one folder below the product's
	if err != nil {
		built.err = fmt.Errorf("find the product: %w", err)
		return
	}
	if built.dir, built.err = os.MkdirTemp("", "postern-e2e-"); built.err != nil {
		return
	}
	args, env := []string{"build", "-o", built.dir + string(filepath.Separator)}, []string{"CGO_ENABLED=0"}
	if Race() {
		args, env = append(args, "-race"), []string{"CGO_ENABLED=1"}
	}
	root := filepath.Dir(filepath.Dir(mod))
	// In the product's own folder, so that its go.sum decides and not ours.
	if _, err := goTool(ctx, root, env, append(args, "./cmd/postern", "./cmd/postern-relay")...); err != nil {
		built.err = fmt.Errorf("build the product: %w", err)
	}
}

func goTool(ctx context.Context, dir string, env []string, args ...string) (string, error) {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir, cmd.Env, cmd.Stderr = dir, append(os.Environ(), env...), &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go %s: %w: %s", args[0], err, stderr.Bytes())
	}
	return strings.TrimSpace(string(out)), nil
}

// Main is the body of TestMain: it runs the tests, or, in a process that
// AppCommand describes, the app.
func Main(m *testing.M) int {
	if target := os.Getenv(shimVariable); target != "" {
		return shim(target)
	}
	code := m.Run()
	if built.dir != "" && os.Getenv(binVariable) == "" {
		os.RemoveAll(built.dir)
	}
	return code
}
