package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/posternhq/postern/protocol"
)

func newServer(idle time.Duration) *http.Server {
	return &http.Server{IdleTimeout: idle, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/close" {
			w.Header().Set("Connection", "close")
		}
		fmt.Fprintln(w, "hello")
	})}
}

// playDoctor examines the process that a test names, as somebody else.
func playDoctor(part string) int {
	pid, _ := strconv.Atoi(os.Getenv("PID"))
	port, _ := strconv.Atoi(os.Getenv("WANTED"))
	d := New(Config{
		Place: Place{Platform: "heroku", Process: "web", Port: port, PortVar: strconv.Itoa(port), Serves: true, BootLimit: time.Minute, Grace: 30 * time.Second},
		Dir:   os.TempDir(),
		Child: func() (int, *protocol.Exit) { return pid, nil },
	})
	d.Examine(context.Background())
	d.backdate(5 * time.Second)
	json.NewEncoder(os.Stdout).Encode(d.Examine(context.Background()))
	return 0
}

// An app and its doctor are nobody special on a platform. They see themselves, and
// nothing of others.
func TestWithoutPrivileges(t *testing.T) {
	t.Parallel()
	skipWithoutProc(t)
	if os.Getuid() != 0 {
		t.Skip("only root can become somebody else")
	}
	raw, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "doctor-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	exe := filepath.Join(dir, "test")
	if err := os.WriteFile(exe, raw, 0o755); err != nil {
		t.Fatal(err)
	}
	os.Chmod(dir, 0o755)
	examine := func(pid, port int) Diagnosis {
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), helperVariable+"=doctor", "PID="+strconv.Itoa(pid), "WANTED="+strconv.Itoa(port))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		var d Diagnosis
		if err := json.Unmarshal(out, &d); err != nil {
			t.Fatal(err)
		}
		return d
	}
	nobody := func() *app { return start(t, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups") }
	if _, err := exec.LookPath("setpriv"); err != nil {
		t.Skip("setpriv (util-linux) is not there")
	}

	port, other := freePort(t), freePort(t)
	a := nobody().do(fmt.Sprintf("tcp 0.0.0.0:%d", other))
	f := expect(t, examine(a.cmd.Process.Pid, port), protocol.StateStarting, "PORT02")
	contains(t, f.Evidence, fmt.Sprintf("(pid %d)", a.cmd.Process.Pid))

	start(t).do(fmt.Sprintf("tcp 0.0.0.0:%d", port)) // root's
	got := examine(a.cmd.Process.Pid, port)
	expect(t, got, protocol.StateStarting, "PORT09", "PORT02")
	contains(t, got.Findings.List[1].Cause, "belongs to another process", "cannot be told")
	if strings.Contains(got.Findings.List[1].Fix, "kill") {
		t.Errorf("nobody is known, and the fix is %q", got.Findings.List[1].Fix)
	}

	// An app that became somebody else hides what it holds: its listener is taken on
	// trust, and nobody is accused.
	root := start(t)
	hidden := freePort(t)
	root.do(fmt.Sprintf("tcp 0.0.0.0:%d", hidden))
	expect(t, examine(root.cmd.Process.Pid, hidden), protocol.StateReady)
}
