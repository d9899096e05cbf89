package e2e

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/posternhq/postern/e2e/rig"
)

// gitServer serves the bare repositories in root over git's smart protocol.
func gitServer(t testing.TB, git, root string) http.Handler {
	t.Helper()
	out, err := exec.Command(git, "--exec-path").Output()
	if err != nil {
		t.Fatal(err)
	}
	backend := filepath.Join(strings.TrimSpace(string(out)), "git-http-backend")
	if _, err := os.Stat(backend); err != nil {
		t.Skip("this git has no git-http-backend")
	}
	return &cgi.Handler{
		Path: backend, Dir: root, Stderr: &bytes.Buffer{},
		Env: []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_NOSYSTEM=1", "HOME=" + root, "REMOTE_USER=e2e",
			// The files may be another user's: those of the tests' own container.
			"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"},
	}
}

// postgresTools finds initdb and postgres, or skips the test.
func postgresTools(t testing.TB) (initdb, postgres string) {
	t.Helper()
	dirs, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	slices.Reverse(dirs)
	for _, dir := range append(dirs, filepath.SplitList(os.Getenv("PATH"))...) {
		initdb, postgres = filepath.Join(dir, "initdb"), filepath.Join(dir, "postgres")
		if _, err := os.Stat(initdb); err == nil {
			if _, err := os.Stat(postgres); err == nil {
				return initdb, postgres
			}
		}
	}
	t.Skip("there is no PostgreSQL, of the package postgresql")
	return "", ""
}

// startPostgres starts a PostgreSQL of the test's own, whose user is shop with this
// password, and returns its port.
func startPostgres(t *testing.T, password string) string {
	t.Helper()
	initdb, postgres := postgresTools(t)
	dir, err := os.MkdirTemp("", "postern-e2e-postgres-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	file := filepath.Join(dir, "password")
	if err := os.WriteFile(file, []byte(password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	attributes := &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if os.Getuid() == 0 { // PostgreSQL does not run as root
		u, err := user.Lookup("postgres")
		if err != nil {
			t.Skip("there is no user postgres, of the package postgresql")
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		attributes.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		for _, path := range []string{dir, file} {
			if err := os.Chown(path, uid, gid); err != nil {
				t.Fatal(err)
			}
		}
	}
	data := filepath.Join(dir, "data")
	env := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "LC_ALL=C"}
	made := exec.Command(initdb, "-D", data, "-U", "shop", "-A", "scram-sha-256", "--pwfile", file, "--no-sync", "-E", "UTF8")
	made.Env, made.Dir, made.SysProcAttr = env, dir, attributes
	if out, err := made.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v: %s", err, out)
	}
	addr := rig.FreeAddr(t)
	var log bytes.Buffer
	server := exec.Command(postgres, "-D", data, "-p", portOf(addr), "-c", "listen_addresses=127.0.0.1",
		"-c", "unix_socket_directories="+dir, "-c", "fsync=off", "-c", "shared_buffers=16MB")
	server.Env, server.Dir, server.SysProcAttr, server.Stdout, server.Stderr = env, dir, attributes, &log, &log
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		server.Wait()
	}()
	t.Cleanup(func() {
		server.Process.Signal(syscall.SIGINT) // "fast shutdown"
		select {
		case <-ended:
		case <-time.After(wait):
			server.Process.Kill()
			<-ended
		}
		if t.Failed() {
			t.Logf("log of PostgreSQL:\n%s", log.String())
		}
	})
	rig.Eventually(t, rig.StartsWithin, "PostgreSQL", func() error {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
		}
		return err
	})
	return portOf(addr)
}

// No driver of a database knows proxies: the app calls a port on loopback that the
// agent forwards, by an address that was rewritten for it.
func TestADatabaseIsReachedByANamedForward(t *testing.T) {
	t.Parallel()
	lookClient(t, "psql", "postgresql-client")
	const name, password = "db.shop.test", "not very secret"
	port := startPostgres(t, password)
	s := &clientSite{site: newSite(t, loopbackManifest([]string{port}, map[string]string{
		"shop": fmt.Sprintf(`{allow: ["tcp://%s:%s"]}`, name, port),
	}), name)}
	local := portOf(rig.FreeAddr(t))
	agent := s.StartRun(rig.Command{
		Args: []string{"/bin/sh", "-c", `
			echo "url $DATABASE_URL"
			psql "$DATABASE_URL" -Atqc "create table t (n int, x text)"
			psql "$DATABASE_URL" -Atqc "insert into t select n, repeat('x', 1000) from generate_series(1, 5000) n"
			psql "$DATABASE_URL" -Atc "select x from t" | wc -c
			psql "$DATABASE_URL" -Atc "select 'sum ' || sum(n) from t"`},
		Env: []string{"DATABASE_URL=postgres://shop:not%20very%20secret@" + name + ":" + port + "/postgres?sslmode=disable&connect_timeout=20",
			"PGPASSFILE=/dev/null"},
	}, rig.AgentConfig{NoWait: true, NoPort: true, Tunnels: 1, Flags: []string{
		"--forward", local + "=" + name + ":" + port, "--rewrite", "DATABASE_URL",
	}})
	if code := agent.ExitCode(rig.StartsWithin * 2); code != 0 {
		t.Errorf("exit code %d", code)
	}
	for _, want := range []string{
		"url postgres://shop:not%20very%20secret@127.0.0.1:" + local + "/postgres?sslmode=disable&connect_timeout=20",
		"5005000", "sum 12502500",
	} {
		if !strings.Contains(agent.Log.String(), want+"\n") {
			t.Errorf("psql has not said %q", want)
		}
	}
	if asked := s.dns.Asked(0); len(asked) == 0 {
		t.Error("the relay did not look up the database")
	}
	// The password is the app's business.
	if s.Log.Count(0, "not%20very") > 0 {
		t.Error("the relay has logged the password")
	}
	s.checkCounts(t, 0)
}
