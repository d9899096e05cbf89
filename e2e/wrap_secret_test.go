package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/posternhq/postern/e2e/rig"
)

// nobody is a user without rights.
const nobody = 65534

// lookAround is an app that prints all that it can read of the process that has
// started it, and of itself.
const lookAround = `
echo "own environment:"
env
echo "the agent:"
for f in environ cmdline; do echo "$f:"; tr '\0' '\n' < /proc/$PPID/$f; done
echo "its files:"
for f in /proc/$PPID/fd/*; do
	echo "$f"
	case $f in */[012]) ;; *) timeout 1 cat "$f" 2>&1 | head -c 4096 ;; esac # its output is not ours to take
done
echo "its memory:"
grep -q '[heap]' /proc/$PPID/maps 2>&1 && dd if=/proc/$PPID/mem bs=1 count=1 skip=$((0x$(grep -m1 ' rw' /proc/$PPID/maps | cut -d- -f1))) 2>&1
echo looked
exec cat >/dev/null`

// The token opens every tunnel of the app: whoever sits beside the agent must
// not find it.
func TestTheTokenIsNotToBeFoundBesideTheAgent(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/proc/self/environ"); err != nil {
		t.Skip("no /proc here")
	}
	r := rig.StartRelay(t, rig.RelayConfig{})
	t.Run("by root", func(t *testing.T) {
		t.Parallel()
		token := r.Token("shop")
		agent := r.StartRun(faultAppCommand(t, "", 0), rig.AgentConfig{Token: token})
		for _, pid := range agent.Tree() {
			for _, file := range []string{"environ", "cmdline"} {
				path := fmt.Sprintf("/proc/%d/%s", pid, file)
				text, err := os.ReadFile(path)
				// Only root may read it, and need not be able to.
				if err != nil && !errors.Is(err, fs.ErrPermission) {
					t.Error(err)
				}
				if strings.Contains(string(text), token) {
					t.Errorf("%s shows the token", path)
				}
				if strings.Contains(string(text), "POSTERN_TOKEN=") {
					t.Errorf("%s has POSTERN_TOKEN", path)
				}
			}
		}
	})
	t.Run("by the app", func(t *testing.T) {
		t.Parallel()
		token := r.Token("shop")
		agent := r.StartRun(rig.Command{Args: []string{"/bin/sh", "-c", lookAround}}, rig.AgentConfig{Token: token, NoWait: true})
		agent.Log.Wait(t, wait, 0, 1, "looked")
		if strings.Contains(agent.Log.String(), token) {
			t.Error("the app can see the token")
		}
		if strings.Contains(agent.Log.String(), "POSTERN_TOKEN=") {
			t.Error("the app's environment has POSTERN_TOKEN")
		}
	})
	t.Run("by an app of the same user", func(t *testing.T) {
		t.Parallel()
		if os.Getuid() != 0 {
			t.Skip("to become another user needs root")
		}
		setpriv, err := exec.LookPath("setpriv")
		if err != nil {
			t.Skip("no setpriv here, of the package util-linux")
		}
		binary := binaryForAll(t)
		token := r.Token("shop")
		agent := r.StartRun(rig.Command{Args: []string{"/bin/sh", "-c", lookAround}}, rig.AgentConfig{
			Token: token, NoWait: true,
			// The rig's binary, which follows, becomes $0 of a shell that nobody may execute.
			Under: []string{setpriv, "--reuid=65534", "--regid=65534", "--clear-groups", "/bin/sh", "-c", `exec ` + binary + ` "$@"`},
		})
		agent.Log.Wait(t, wait, 0, 1, "looked")
		log := agent.Log.String()
		if strings.Contains(log, token) {
			t.Error("the app can see the token")
		}
		for _, file := range []string{"environ", "fd/0", "mem"} {
			if err := readAs(nobody, fmt.Sprintf("/proc/%d/%s", agent.PID(), file)); err == nil {
				t.Errorf("a process of the same user can read %s of the agent", file)
			}
		}
		if _, after, _ := strings.Cut(log, "its files:"); strings.Contains(after, "/proc/"+fmt.Sprint(agent.PID())+"/fd/0") {
			t.Error("the app can list the agent's files")
		}
	})
}

// binaryForAll is a copy of postern that any user may execute.
func binaryForAll(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "postern-e2e-all-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	binary, err := os.ReadFile(rig.Binary(t, "postern"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "postern")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(path, binary, 0o755)); err != nil {
		t.Fatal(err)
	}
	return path
}

// readAs is nil when a process of that user can read path.
func readAs(uid uint32, path string) error {
	cmd := exec.Command("head", "-c", "1", path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	return cmd.Run()
}

// An app that prints its own secrets is not helped by us to spread them; the
// platform's log gets what the app wrote.
func TestSecretsThatTheAppPrintsAreMaskedInItsLogs(t *testing.T) {
	t.Parallel()
	const secret, password = "correct horse battery 91", "hunter2-and-more" // of no known form
	r := rig.StartRelay(t, rig.RelayConfig{})
	agent := r.StartRun(waitingShell(`echo "key $PAYMENT_API_KEY"; echo "db $DATABASE_URL" >&2; echo plain`), rig.AgentConfig{
		NoWait: true, NoPort: true, Flags: []string{"--no-port"},
		Env: []string{"PAYMENT_API_KEY=" + secret, "DATABASE_URL=postgres://shop:" + password + "@db.example/shop"},
	})
	agent.Log.Wait(t, wait, 0, 1, "key "+secret) // as it was written
	agent.Log.Wait(t, wait, 0, 1, "plain")
	agent.AwaitTunnels(0)
	out := awaitLogs(t, r, "shop", "plain")
	if !strings.Contains(out, "key ") || !strings.Contains(out, "db ") {
		t.Errorf("the lines are not there: %q", out)
	}
	if strings.Contains(out, secret) || strings.Contains(out, password) {
		t.Errorf("the logs show a secret: %q", out)
	}
}

// awaitLogs is what postern logs prints once it has a line with word.
func awaitLogs(t *testing.T, r *rig.Relay, app, word string) string {
	t.Helper()
	env := r.CLI(app)
	var out rig.Output
	rig.Eventually(t, wait, "the logs", func() error {
		if out = rig.Postern(t, env, "logs", app); out.Code != 0 || !strings.Contains(out.Stdout, word) {
			return fmt.Errorf("code %d: %s%s", out.Code, out.Stdout, out.Stderr)
		}
		return nil
	})
	return out.Stdout
}
